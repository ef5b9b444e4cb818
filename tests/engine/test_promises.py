"""Promises: made, settled once by id or key, awaited over servers, timed out."""

import asyncio

import pytest
from tests.engine.database import Database
from tests.engine.servers import Roles, Start, eventually, killed, server
from tests.engine.workers import Worker
from tests.engine.world import ROOT, check_all, data_of, events_of, key, kinds_of, principal, seconds

from millstream.application.engine.commands import AttachWaiter
from millstream.application.paging import PageRequest
from millstream.application.views.promises import PromiseQuery, PromiseRef, PromiseView
from millstream.application.views.tasks import NewTask, TaskQuery
from millstream.domain.errors import Conflict, IdempotencyConflict, NotFound, TimedOut, ValidationFailed
from millstream.domain.promises import NewPromise, PromiseState, Rejection, Resolution, state_of
from millstream.domain.retry import Timeouts
from millstream.domain.runs import RunKind, RunStatus, TaskStatus
from millstream.domain.struct_wire import decode_value, encode_value
from millstream.runtime.loops import Loops
from millstream.wiring import Service

YES = Resolution(encode_value({"approved": True, "by": ["ann", None]}))
NO = Rejection("DECLINED", "too expensive")


async def made(service: Service, promise_key: str = "", **fields: object) -> PromiseRef:
    """A promise, by its id."""
    new = NewPromise("approval", promise_key, **fields)  # type: ignore[arg-type]
    return PromiseRef((await service.promises.create(ROOT, new, None)).task.id)


async def waited(service: Service, ref: PromiseRef) -> "asyncio.Task[PromiseView]":
    """A call that waits for the promise by now."""
    waiting = asyncio.create_task(service.promises.wait(ROOT, ref, 30, fail_on_timeout=False))

    async def noted() -> bool:
        run = (await service.promises.get(ROOT, ref)).task.run_id
        return service.engine.lane_id in (await service.runs.get(ROOT, run)).waiters

    await eventually(noted, "that a caller waits")
    return waiting


async def test_a_promise_is_resolved_once_and_its_run_ends_with_it(spread: Roles, database: Database) -> None:
    """FV-17: PENDING in a run of its own; its value is kept, and who gave it; input, key and labels come back."""
    new = NewPromise("approval", "order-1", encode_value({"amount": 12.5}), seconds(60), '{"team":"x"}')
    task = (await spread.publisher.promises.create(ROOT, new, None)).task
    assert (task.status, task.queue, task.labels) == (TaskStatus.PENDING, "~promise", '{"team":"x"}')
    settled = await spread.worker.promises.settle(principal("ann"), PromiseRef(task.id), YES, None)
    assert decode_value(settled.value) == {"approved": True, "by": ["ann", None]}
    view = await spread.publisher.promises.get(ROOT, PromiseRef(task.id))
    assert (state_of(view.task), view.value, view.task.worker_name) == (PromiseState.RESOLVED, YES.value, "ann")
    assert (decode_value(view.task.input), view.task.promise_key) == ({"amount": 12.5}, "order-1")
    run = await spread.worker.runs.get(ROOT, task.run_id)
    assert (run.kind, run.status, run.labels) == (RunKind.SINGLE, RunStatus.COMPLETED, '{"team":"x"}')
    assert await kinds_of(spread.worker, run.id) == [
        "RUN_CREATED", "TASK_CREATED", "PROMISE_RESOLVED", "TASK_COMPLETED", "RUN_COMPLETED",
    ]  # fmt: skip
    told = data_of((await events_of(spread.worker, run.id))[2])
    assert told == {"name": "approval", "key": "order-1", "by": "ann"}
    attempts, _ = await spread.publisher.tasks.attempts(ROOT, task.id, 0, 10)
    assert [(each.number, each.output) for each in attempts] == [(1, YES.value)]
    await check_all(database)


async def test_a_rejected_promise_has_its_error_and_fails_its_run(spread: Roles, database: Database) -> None:
    """FV-17: code and message."""
    ref = await made(spread.publisher)
    settled = await spread.worker.promises.settle(ROOT, ref, NO, None)
    assert state_of(settled.task) is PromiseState.REJECTED
    view = await spread.publisher.promises.get(ROOT, ref)
    assert (view.task.error_code, view.task.error_message, view.value) == ("DECLINED", "too expensive", b"")
    run = await spread.publisher.runs.get(ROOT, view.task.run_id)
    assert (run.status, run.error_code, run.error_message) == (RunStatus.FAILED, "DECLINED", "too expensive")
    await check_all(database)


async def test_the_same_again_succeeds_and_anything_else_is_a_conflict(spread: Roles) -> None:
    """FV-17: once; whoever lost the answer may ask again, at any server, without a key."""
    ref = await made(spread.publisher)
    await spread.publisher.promises.settle(ROOT, ref, YES, None)
    again = Resolution(encode_value({"by": ["ann", None], "approved": True}))  # the same in another order
    view = await spread.worker.promises.settle(principal("bob"), ref, again, None)
    assert (view.value, view.task.worker_name) == (YES.value, "root")
    for other in (Resolution(b""), Resolution(encode_value({"approved": False})), NO):
        with pytest.raises(Conflict, match="is RESOLVED already"):
            await spread.worker.promises.settle(ROOT, ref, other, None)
    rejected = await made(spread.publisher)
    await spread.worker.promises.settle(ROOT, rejected, NO, None)
    await spread.publisher.promises.settle(ROOT, rejected, NO, None)
    for changed in (Rejection("DECLINED", "too late"), YES):
        with pytest.raises(Conflict, match="is REJECTED already"):
            await spread.publisher.promises.settle(ROOT, rejected, changed, None)


async def test_of_two_servers_that_settle_at_once_one_wins(start: Start, database: Database) -> None:
    """FV-17: no lost update: one caller gets its value stored, all others CONFLICT, whichever server each asked."""
    servers = await start()
    for round_ in range(10):
        ref = await made(servers[round_ % 2])
        outcomes = [Resolution(encode_value(n)) for n in range(6)]
        calls = [
            each.promises.settle(ROOT, ref, outcome, None) for each, outcome in zip(servers * 3, outcomes, strict=True)
        ]
        told = await asyncio.gather(*calls, return_exceptions=True)
        won = [each for each in told if isinstance(each, PromiseView)]
        assert len(won) == 1
        assert [type(each) for each in told if not isinstance(each, PromiseView)] == [Conflict] * 5
        assert (await servers[0].promises.get(ROOT, ref)).value == won[0].value
        assert (await servers[1].promises.get(ROOT, ref)).value == won[0].value
    await check_all(database)


async def test_a_promise_is_named_by_its_key(spread: Roles) -> None:
    """FV-17: the open one, or else the latest; the key is free again once it was settled."""
    by_key = PromiseRef(key="order-1")
    first = await made(spread.publisher, "order-1")
    with pytest.raises(Conflict, match=f"'order-1' is that of promise {first.id}"):
        await made(spread.worker, "order-1")
    assert (await spread.worker.promises.settle(ROOT, by_key, YES, None)).task.id == first.id
    assert (await spread.worker.promises.settle(ROOT, by_key, YES, None)).task.id == first.id
    second = await made(spread.worker, "order-1")
    assert (await spread.publisher.promises.get(ROOT, by_key)).task.id == second.id
    assert (await spread.publisher.promises.settle(ROOT, by_key, NO, None)).task.id == second.id
    assert (await spread.publisher.promises.get(ROOT, by_key)).task.id == second.id
    third = await made(spread.publisher, "order-1")
    await spread.worker.promises.cancel(ROOT, by_key, "", None)
    assert state_of((await spread.publisher.promises.get(ROOT, third)).task) is PromiseState.CANCELLED
    with pytest.raises(NotFound, match="of the key 'order-2'"):
        await spread.publisher.promises.get(ROOT, PromiseRef(key="order-2"))


async def test_of_two_servers_that_make_a_promise_of_a_key_one_succeeds(start: Start, database: Database) -> None:
    """FV-17: the key is unique among the open ones, over any number of servers, and within one batch."""
    servers = await start()
    for round_ in range(5):
        new = NewPromise("approval", f"order-{round_}")
        calls = [each.promises.create(ROOT, new, None) for each in servers * 4]
        told = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(each, PromiseView) for each in told) == 1
        assert sum(isinstance(each, Conflict) for each in told) == 7
    assert await database.value("SELECT count(*) FROM task") == 5
    assert await database.value("SELECT count(*) FROM run") == 5
    await check_all(database)


async def test_a_key_of_another_tenant_is_another_key(spread: Roles) -> None:
    """Invariant: nobody learns of another tenant's promises, by key or by id."""
    spy = principal("spy", "other")
    ref = await made(spread.publisher, "order-1")
    theirs = (await spread.publisher.promises.create(spy, NewPromise("approval", "order-1"), None)).task
    assert (await spread.worker.promises.get(spy, PromiseRef(key="order-1"))).task.id == theirs.id
    for call in (
        spread.worker.promises.get(spy, ref),
        spread.worker.promises.settle(spy, ref, YES, None),
        spread.worker.promises.cancel(spy, ref, "", None),
        spread.worker.promises.wait(spy, ref, 5, fail_on_timeout=False),
    ):
        with pytest.raises(NotFound):
            await call
    page = await spread.worker.promises.list(spy, PromiseQuery(), PageRequest())
    assert [task.id for task in page.items] == [theirs.id]


async def test_a_call_waits_until_the_promise_is_settled_at_any_server(start: Start) -> None:
    """FV-17: a wake-up tells the server that waits; its safety poll is off here."""
    first, second = await start()
    for service in (first, second):
        next(task for task in service._background if task.get_name() == "loops").cancel()
    ref = await made(first)
    here, there = await waited(first, ref), await waited(second, ref)
    await second.promises.settle(ROOT, ref, YES, None)
    for waiting in (here, there):
        view = await asyncio.wait_for(waiting, 5)
        assert (state_of(view.task), view.value) == (PromiseState.RESOLVED, YES.value)
    again = await first.promises.wait(ROOT, ref, 30, fail_on_timeout=True)
    assert again.value == YES.value


async def test_a_lost_wake_up_is_found_by_the_safety_poll(start: Start) -> None:
    """engine-rules 8"""
    first, second = await start()
    second.core.peers.send = lambda lane, message: None
    ref = await made(first)
    waiting = await waited(first, ref)
    await second.promises.settle(ROOT, ref, NO, None)
    assert state_of((await asyncio.wait_for(waiting, 10)).task) is PromiseState.REJECTED


async def test_waiting_ends_with_the_time_given(spread: Roles) -> None:
    """FV-17: the promise as it stands, or TIMEOUT where that is asked for; it stays open."""
    ref = await made(spread.publisher)
    view = await spread.worker.promises.wait(ROOT, ref, 0.01, fail_on_timeout=False)
    assert state_of(view.task) is PromiseState.PENDING
    assert (
        state_of((await spread.worker.promises.wait(ROOT, ref, 0, fail_on_timeout=False)).task) is PromiseState.PENDING
    )
    with pytest.raises(TimedOut, match="stays open"):
        await spread.worker.promises.wait(ROOT, ref, 0.01, fail_on_timeout=True)
    await spread.worker.promises.settle(ROOT, ref, YES, None)


async def test_a_promise_is_rejected_when_its_time_has_passed(spread: Roles, database: Database) -> None:
    """FV-17: PROMISE_TIMEOUT, by a timer; who waits is told, and its key is free."""
    ref = await made(spread.publisher, "order-1", timeout_us=seconds(3600))
    waiting = await waited(spread.worker, ref)
    await database.pass_time(3601)
    view = await asyncio.wait_for(waiting, 10)
    assert state_of(view.task) is PromiseState.REJECTED
    assert (view.task.error_code, view.task.worker_name) == ("PROMISE_TIMEOUT", "")
    assert view.task.error_message == "nobody settled it within 3600 s"
    with pytest.raises(Conflict, match="is REJECTED already"):
        await spread.worker.promises.settle(ROOT, ref, YES, None)
    await made(spread.worker, "order-1")
    await check_all(database)


async def test_a_time_out_is_found_by_its_timer_and_not_by_a_poll(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 4: durable timers; the polls are off, so that only the timer can find it."""
    monkeypatch.setattr(Loops, "poll", _nothing)
    first, _ = await start()
    later = await made(first, timeout_us=seconds(0.1))
    sooner = await made(first, timeout_us=seconds(0.05))
    for ref in (sooner, later):
        view = await first.promises.wait(ROOT, ref, 10, fail_on_timeout=True)
        assert view.task.error_code == "PROMISE_TIMEOUT"
        assert view.task.finished_us >= view.task.created_us + view.task.timeouts.schedule_to_start_us


async def _nothing(_: Loops) -> None:
    """A poll that finds nothing."""


async def test_time_outs_survive_the_death_of_all_servers(start: Start, database: Database) -> None:
    """Issue 4: what fell due while no server ran is found by the next one."""
    first, second = await start()
    ref = await made(first, timeout_us=seconds(3600))
    await killed(first)
    await killed(second)
    await database.pass_time(3601)
    async with server(database) as third:
        view = await third.promises.wait(ROOT, ref, 10, fail_on_timeout=True)
        assert view.task.error_code == "PROMISE_TIMEOUT"
    await check_all(database)


async def test_a_promise_survives_the_death_of_its_server(start: Start, database: Database) -> None:
    """FV-17: settled and awaited at another one."""
    first, second = await start()
    ref = await made(first, "order-1")
    await killed(first)
    waiting = await waited(second, ref)
    await second.promises.settle(ROOT, PromiseRef(key="order-1"), YES, None)
    assert (await asyncio.wait_for(waiting, 5)).value == YES.value
    await check_all(database)


async def test_a_cancelled_promise_frees_its_key_and_cancels_its_run(spread: Roles, database: Database) -> None:
    """FV-17: by itself, with its run, or as the task that it is; whoever waits is told."""

    async def cancelled(service: Service, ref: PromiseRef, how: int) -> None:
        if how == 0:
            await service.promises.cancel(ROOT, ref, "not needed", None)
        elif how == 1:
            await service.tasks.cancel(ROOT, ref.id, "not needed", None)
        else:
            task = (await service.promises.get(ROOT, ref)).task
            await service.runs.cancel(ROOT, task.run_id, "not needed", None)

    for how in range(3):
        ref = await made(spread.publisher, "order-1")
        waiting = await waited(spread.publisher, ref)
        await cancelled(spread.worker, ref, how)
        view = await asyncio.wait_for(waiting, 5)
        assert state_of(view.task) is PromiseState.CANCELLED
        assert (await spread.publisher.runs.get(ROOT, view.task.run_id)).status is RunStatus.CANCELLED
        with pytest.raises(Conflict, match="is CANCELLED already"):
            await spread.publisher.promises.settle(ROOT, ref, YES, None)
        with pytest.raises(Conflict, match="is CANCELLED already"):
            await spread.worker.promises.cancel(ROOT, ref, "", None)
    await check_all(database)


async def test_a_key_of_a_call_makes_and_settles_a_promise_once(spread: Roles) -> None:
    """FL-8: the first answer again; another request with the key is refused."""
    new = NewPromise("approval", "order-1")
    first = await spread.publisher.promises.create(ROOT, new, key("k", "CreatePromise"))
    again = await spread.worker.promises.create(ROOT, new, key("k", "CreatePromise"))
    assert (again.task.id, again.replayed) == (first.task.id, True)
    ref = PromiseRef(first.task.id)
    await spread.publisher.promises.settle(ROOT, ref, YES, key("k", "ResolvePromise"))
    replay = await spread.worker.promises.settle(ROOT, ref, YES, key("k", "ResolvePromise"))
    assert (replay.value, replay.replayed) == (YES.value, True)
    with pytest.raises(IdempotencyConflict):
        await spread.worker.promises.settle(ROOT, ref, YES, key("k", "ResolvePromise", "another"))


async def test_promises_are_listed_by_what_is_asked(spread: Roles) -> None:
    """FV-17: state, key, name, run; newest first, in pages."""
    refs = [await made(spread.publisher, f"order-{n}") for n in range(3)]
    other = (await spread.publisher.promises.create(ROOT, NewPromise("payment"), None)).task
    await spread.publisher.promises.settle(ROOT, refs[0], YES, None)
    await spread.worker.promises.settle(ROOT, refs[1], NO, None)

    async def ids(**query: object) -> list[str]:
        page = await spread.worker.promises.list(ROOT, PromiseQuery(**query), PageRequest())  # type: ignore[arg-type]
        assert page.info.total == len(page.items)
        return [task.id for task in page.items]

    assert await ids() == [other.id, *(ref.id for ref in reversed(refs))]
    assert await ids(state=PromiseState.RESOLVED) == [refs[0].id]
    assert await ids(state=PromiseState.REJECTED) == [refs[1].id]
    assert await ids(state=PromiseState.PENDING) == [other.id, refs[2].id]
    assert await ids(key="order-1") == [refs[1].id]
    assert await ids(name="payment", run_id=other.run_id) == [other.id]
    page = await spread.worker.promises.list(ROOT, PromiseQuery(), PageRequest(page_size=3, page_token=""))
    token = page.info.next_page_token
    assert token
    rest = await spread.worker.promises.list(ROOT, PromiseQuery(), PageRequest(page_size=3, page_token=token))
    assert [task.id for task in [*page.items, *rest.items]] == await ids()


async def test_a_promise_is_no_workers_work(spread: Roles) -> None:
    """FV-17: its queue is the server's; and it is not counted among what waits for workers."""
    ref = await made(spread.publisher)
    with pytest.raises(ValidationFailed, match=r"queues\[1\]"):
        async with Worker(spread.worker, kinds=["approval"], queues=["default", "~promise"]):
            pass
    with pytest.raises(ValidationFailed, match=r"queues\[0\]"):
        await spread.worker.workers.poll(ROOT, "w", "poller", ["approval"], ["~promise"], 1, 0)
    assert await spread.publisher.core.stores.maintenance.stats() == (0, 0)
    page = await spread.publisher.tasks.list(ROOT, TaskQuery(queue="~promise"), PageRequest())
    assert [task.id for task in page.items] == [ref.id]


async def test_a_task_that_nobody_takes_in_time_fails_by_its_timer(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FV-19: schedule_to_start of any task; the polls are off, so that only the timer can find it."""
    monkeypatch.setattr(Loops, "poll", _nothing)
    first, second = await start()
    task = (await first.tasks.create(ROOT, NewTask("sums", timeouts=Timeouts(schedule_to_start_us=50_000)), None)).task
    with second.engine.waiters.wait(task.run_id) as ended:
        await second.engine.submit(
            AttachWaiter(run_id=task.run_id, locked=True, tenant=ROOT.tenant, waiter=second.engine.lane_id)
        )
        await asyncio.wait_for(ended, 10)
    assert (await first.tasks.get(ROOT, task.id)).task.error_code == "SCHEDULE_TO_START_TIMEOUT"


async def test_a_settled_promise_is_not_tried_again(spread: Roles, database: Database) -> None:
    """FV-17: once: neither its run nor its task is retried, nor is it made anew by rerunning its run."""
    ref = await made(spread.publisher, "order-1")
    settled = (await spread.worker.promises.settle(ROOT, ref, NO, None)).task
    operations = spread.publisher.run_operations
    for call in (
        operations.retry(ROOT, settled.run_id, "", "", None),
        operations.rerun(ROOT, settled.run_id, "", None),
    ):
        with pytest.raises(Conflict, match="is of a promise, which is settled once; make another"):
            await call
    assert state_of((await spread.worker.promises.get(ROOT, ref)).task) is PromiseState.REJECTED
    await made(spread.worker, "order-1")
    await check_all(database)


async def test_a_promise_of_a_paused_run_is_settled_and_times_out(spread: Roles) -> None:
    """FV-17: a pause stops what starts, not what comes from outside."""
    for outcome in (YES, None):
        ref = await made(spread.publisher, timeout_us=seconds(3600 if outcome else 0.05))
        run_id = (await spread.publisher.promises.get(ROOT, ref)).task.run_id
        await spread.worker.run_operations.pause(ROOT, run_id, "wait", None)
        assert (await spread.publisher.promises.get(ROOT, ref)).task.finished_us == 0 or outcome is None
        if outcome:
            await spread.publisher.promises.settle(ROOT, ref, outcome, None)
        view = await spread.worker.promises.wait(ROOT, ref, 10, fail_on_timeout=True)
        assert state_of(view.task) is (PromiseState.RESOLVED if outcome else PromiseState.REJECTED)
