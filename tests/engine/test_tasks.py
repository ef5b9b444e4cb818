"""Standalone tasks: created, leased, completed, listed."""

import asyncio
from typing import Any

import pytest
from tests.engine.database import Database
from tests.engine.servers import Roles, Start, eventually, killed
from tests.engine.workers import Worker, done, failed, ref
from tests.engine.world import AT_ONCE, ROOT, check_all, kinds_of, made, principal, seconds

from millstream.application.paging import PageRequest
from millstream.application.views.reports import Reports
from millstream.application.views.tasks import CreatedTask, NewTask, TaskQuery
from millstream.domain.bounds import Bounds
from millstream.domain.errors import MillstreamError, NotFound, ValidationFailed
from millstream.domain.runs import AttemptStatus, RunKind, RunStatus, TaskStatus
from millstream.domain.struct_wire import decode_value, encode_value


async def test_a_task_is_created_leased_and_completed(spread: Roles, database: Database) -> None:
    """FV-5: input arrives as it was given, the output is kept, and the run of its own ends with it."""
    async with Worker(spread.worker, kinds=["sums"]) as worker:
        new = NewTask("sums", encode_value([1, {"b": 2, "a": None}]), labels='{"team":"x"}', priority=7)
        task = (await spread.publisher.tasks.create(ROOT, new, None)).task
        lease = await worker.take()
        assert (lease.task.id, lease.attempt, lease.tries, lease.artifacts) == (task.id, 1, 1, [])
        assert decode_value(lease.task.input) == [1, {"b": 2, "a": None}]
        await worker.complete(lease, output=encode_value({"sum": 3}))
    view = await spread.publisher.tasks.get(ROOT, task.id)
    assert decode_value(view.output) == {"sum": 3}
    assert view.task.status is TaskStatus.COMPLETED
    assert (view.task.attempt, view.task.tries, view.task.priority, view.task.labels) == (1, 1, 7, '{"team":"x"}')
    assert view.task.created_us <= view.task.started_us <= view.task.finished_us
    assert (view.task.owner, view.task.lease_until_us) == ("", 0)
    run = await spread.worker.runs.get(ROOT, task.run_id)
    assert (run.kind, run.status, run.labels) == (RunKind.SINGLE, RunStatus.COMPLETED, '{"team":"x"}')
    assert await kinds_of(spread.worker, run.id) == [
        "RUN_CREATED", "TASK_CREATED", "TASK_STARTED", "TASK_COMPLETED", "RUN_COMPLETED",
    ]  # fmt: skip
    await check_all(database)


async def test_attempts_are_listed_the_running_one_too(spread: Roles) -> None:
    """FV-11: number, status, times, worker, error of each."""
    async with Worker(spread.worker, kinds=["sums"]) as worker:
        task = (await spread.publisher.tasks.create(ROOT, NewTask("sums", retry=AT_ONCE), None)).task
        await worker.fail(await worker.take(), "BROKEN")
        lease = await worker.take()
        attempts, rest = await spread.publisher.tasks.attempts(ROOT, task.id, 0, 10)
        assert [(item.number, item.status) for item in attempts] == [
            (1, AttemptStatus.FAILED), (2, AttemptStatus.RUNNING),
        ]  # fmt: skip
        assert rest is None
        assert (attempts[0].error_code, attempts[0].error_message) == ("BROKEN", "BROKEN it is")
        assert {item.worker_name for item in attempts} == {worker.session._session.name}
        await worker.complete(lease, output=encode_value(1))
    attempts, _ = await spread.publisher.tasks.attempts(ROOT, task.id, 0, 10)
    assert [item.status for item in attempts] == [AttemptStatus.FAILED, AttemptStatus.COMPLETED]
    assert attempts[0].finished_us <= attempts[1].started_us <= attempts[1].finished_us
    first, after = await spread.worker.tasks.attempts(ROOT, task.id, 0, 1)
    assert after == 1
    assert first + (await spread.worker.tasks.attempts(ROOT, task.id, after, 1))[0] == attempts


async def test_a_batch_is_created_in_order(spread: Roles, database: Database) -> None:
    """FV-5: results in request order, a run each."""
    batch = await spread.publisher.tasks.create_batch(
        ROOT, [NewTask("sums", encode_value(n)) for n in range(200)], [None] * 200, None
    )
    tasks = [result.task for result in batch.results if isinstance(result, CreatedTask)]
    assert [decode_value(task.input) for task in tasks] == [*range(200)]
    async with Worker(spread.worker, kinds=["sums"], slots=1000) as worker:
        leases = await worker.take_many(200)
        assert [lease.task.id for lease in leases] == [task.id for task in tasks]
    await check_all(database)


async def test_a_bad_item_fails_alone(spread: Roles) -> None:
    """FL-11 for tasks: what one item breaks does not fail its neighbours."""
    items: list[NewTask | MillstreamError] = [
        NewTask("sums"),
        NewTask("sums", run_at_us=1, delay_us=1),
        NewTask("agent:payments"),
        ValidationFailed.of("tasks[3].kind", "is bad"),
        NewTask("sums"),
    ]
    batch = await spread.publisher.tasks.create_batch(ROOT, items, [None] * 5, None)
    assert [type(result) for result in batch.results] == [
        CreatedTask, ValidationFailed, ValidationFailed, ValidationFailed, CreatedTask,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("new", "field"), [(NewTask("sums", run_at_us=1, delay_us=1), "delay"), (NewTask("agent:payments"), "kind")]
)
async def test_a_task_that_cannot_be_is_refused(start: Start, new: NewTask, field: str) -> None:
    """FL-10: the error names the field."""
    here, _ = await start()
    with pytest.raises(ValidationFailed) as refused:
        await here.tasks.create(ROOT, new, None)
    assert [fault.field for fault in refused.value.details] == [field]


async def test_the_most_urgent_goes_first(spread: Roles) -> None:
    """Issue 2: by priority, then by age."""
    for name, priority in [("a", 0), ("b", 5), ("c", -3), ("d", 5), ("e", 100)]:
        await spread.publisher.tasks.create(ROOT, NewTask("sums", encode_value(name), priority=priority), None)
    async with Worker(spread.worker, kinds=["sums"]) as worker:
        leases = await worker.take_many(5)
    assert [decode_value(lease.task.input) for lease in leases] == ["e", "b", "d", "a", "c"]


async def test_a_task_waits_for_its_time(spread: Roles, database: Database) -> None:
    """Issue 2: run_at and delay; SCHEDULED until then, on whichever server the timer fires."""
    now_us = await database.now_us()
    async with Worker(spread.worker, kinds=["sums"]) as worker:
        late = (await spread.publisher.tasks.create(ROOT, NewTask("sums", delay_us=seconds(60)), None)).task
        later = (await spread.publisher.tasks.create(ROOT, NewTask("sums", run_at_us=now_us + seconds(120)), None)).task
        past = (await spread.publisher.tasks.create(ROOT, NewTask("sums", run_at_us=now_us - seconds(9)), None)).task
        assert (await worker.take()).task.id == past.id
        assert (await spread.worker.tasks.get(ROOT, late.id)).task.status is TaskStatus.SCHEDULED
        await spread.worker.loops.poll()
        assert worker.leases.empty()
        await database.pass_time(61)
        await spread.worker.loops.poll()
        assert (await worker.take()).task.id == late.id
        kinds = await kinds_of(spread.publisher, late.run_id)
        assert kinds == ["RUN_CREATED", "TASK_CREATED", "TASK_READY", "TASK_STARTED"]
        await database.pass_time(61)
        await spread.publisher.loops.poll()
        assert (await worker.take()).task.id == later.id
        assert worker.leases.empty()
    await check_all(database)


async def test_a_timer_fires_at_its_time_by_itself(start: Start) -> None:
    """Issue 2: within a poll's time of what was asked, without anybody asking again."""
    here, there = await start()
    async with Worker(there, kinds=["sums"]) as worker:
        task = (await here.tasks.create(ROOT, NewTask("sums", delay_us=seconds(0.15)), None)).task
        assert (await worker.take()).task.id == task.id
        view = await here.tasks.get(ROOT, task.id)
        assert seconds(0.15) <= view.task.started_us - view.task.created_us < seconds(0.6)


async def test_a_timer_of_a_server_that_died_is_found_by_another(start: Start, database: Database) -> None:
    """Rule 8, FV-19: what one server scheduled, another fires."""
    here, there = await start()
    task = (await here.tasks.create(ROOT, NewTask("sums", delay_us=seconds(60)), None)).task
    await killed(here)
    async with Worker(there, kinds=["sums"]) as worker:
        await database.pass_time(61)
        assert (await worker.take()).task.id == task.id


async def test_progress_is_shown(spread: Roles) -> None:
    """FV-13: share and message of the running attempt; a next attempt begins anew."""
    async with Worker(spread.worker, kinds=["sums"]) as worker:
        task = (await spread.publisher.tasks.create(ROOT, NewTask("sums"), None)).task
        lease = await worker.take()
        told = await worker.progress(lease, 0.5, "half way")
        assert told.error is None
        view = await spread.publisher.tasks.get(ROOT, task.id)
        assert (view.task.progress, view.task.progress_message) == (0.5, "half way")
        await worker.release(lease)
        again = await worker.take()
        view = await spread.publisher.tasks.get(ROOT, task.id)
        assert (view.task.attempt, view.task.progress, view.task.progress_message) == (2, 0.0, "")
        late = await worker.progress(lease, 0.9, "too late")
        assert late.error is not None
        await worker.progress(again, 1.0)
    assert (await spread.publisher.tasks.get(ROOT, task.id)).task.progress == 1.0


async def test_a_standalone_task_cannot_publish(spread: Roles, database: Database) -> None:
    """FV-19: its result is refused with a reason and the task fails; neither it nor its run hangs."""
    async with Worker(spread.worker, kinds=["sums"], known=()) as worker:
        task = (await spread.publisher.tasks.create(ROOT, NewTask("sums"), None)).task
        told = await worker.complete(await worker.take(), made("Order"))
        assert told.error is not None
        assert told.error.code == "CONFLICT"
    assert (await spread.publisher.tasks.get(ROOT, task.id)).task.status is TaskStatus.FAILED
    assert (await spread.publisher.runs.get(ROOT, task.run_id)).status is RunStatus.FAILED
    await check_all(database)


async def test_tasks_are_listed_by_what_is_asked(spread: Roles) -> None:
    """FV-5: status, queue, kind; newest first; pages and totals."""
    for n in range(5):
        await spread.publisher.tasks.create(ROOT, NewTask("sums", queue="slow" if n == 4 else ""), None)
    other = (await spread.publisher.tasks.create(ROOT, NewTask("other"), None)).task
    async with Worker(spread.worker, kinds=["other"]) as worker:
        await worker.complete(await worker.take())
    tasks = spread.worker.tasks
    page = await tasks.list(ROOT, TaskQuery(kind="sums"), PageRequest(page_size=2))
    assert page.info.total == 5
    ids = [task.id for task in page.items]
    while page.info.next_page_token:
        page = await tasks.list(
            ROOT, TaskQuery(kind="sums"), PageRequest(page_size=2, page_token=page.info.next_page_token)
        )
        ids += [task.id for task in page.items]
    assert ids == sorted(ids, reverse=True)
    assert len(ids) == 5
    done = await tasks.list(ROOT, TaskQuery(status=TaskStatus.COMPLETED), PageRequest())
    assert [task.id for task in done.items] == [other.id]
    slow = await tasks.list(ROOT, TaskQuery(queue="slow"), PageRequest())
    assert slow.info.total == 1
    strange = await tasks.list(principal("spy", "other"), TaskQuery(), PageRequest())
    assert strange.items == []


async def test_a_task_of_another_tenant_is_not_found(spread: Roles) -> None:
    """Invariant: not to read, not to cancel, not to lease, not to report on."""
    task = (await spread.publisher.tasks.create(ROOT, NewTask("sums"), None)).task
    spy = principal("spy", "other")
    with pytest.raises(NotFound):
        await spread.worker.tasks.get(spy, task.id)
    with pytest.raises(NotFound):
        await spread.worker.tasks.cancel(spy, task.id, "", None)
    with pytest.raises(NotFound):
        await spread.worker.runs.cancel(spy, task.run_id, "", None)
    async with Worker(spread.worker, kinds=["sums"], who=spy) as thief, Worker(spread.worker, kinds=["sums"]) as worker:
        lease = await worker.take()
        for told in (await thief.complete(lease), await thief.fail(lease), await thief.release(lease)):
            assert told.error is not None
            assert told.error.code == "NOT_FOUND"
        for told in (await thief.beat(lease), await thief.progress(lease, 1.0)):
            assert told.error is not None
        assert thief.seen == []
        assert (await worker.complete(lease)).error is None


async def test_a_worker_takes_from_its_queues_only(spread: Roles) -> None:
    """Issue 2: queues."""
    async with Worker(spread.worker, kinds=["sums"], queues=["fast"]) as worker:
        await spread.publisher.tasks.create(ROOT, NewTask("sums"), None)
        fast = (await spread.publisher.tasks.create(ROOT, NewTask("sums", queue="fast"), None)).task
        assert (await worker.take()).task.id == fast.id
        for service in (spread.publisher, spread.worker):
            await service.loops.poll()
        assert worker.leases.empty()


async def test_a_simple_worker_polls(spread: Roles) -> None:
    """Issue 2: the unary twins: poll, heartbeat, complete and fail, each through any server."""
    here, there = spread.publisher, spread.worker
    ids = [(await here.tasks.create(ROOT, NewTask("sums"), None)).task.id for _ in range(3)]
    (one,) = await there.workers.poll(ROOT, "w", "poller", ["sums"], [], 1, 5)
    assert one.task.id == ids[0]
    rest = await there.workers.poll(ROOT, "w", "poller", ["sums"], [], 5, 5)
    assert [lease.task.id for lease in rest] == ids[1:]
    (beat,) = await here.workers.report(ROOT, Reports(heartbeats=(ref(one),)))
    assert beat.error is None
    results = await here.workers.report(
        ROOT, Reports(completions=(done(one), done(rest[0])), failures=(failed(rest[1], retryable=False),))
    )
    assert [result.error for result in results] == [None] * 3
    statuses = [(await there.tasks.get(ROOT, task_id)).task.status for task_id in ids]
    assert statuses == [TaskStatus.COMPLETED, TaskStatus.COMPLETED, TaskStatus.FAILED]


async def test_a_poll_waits_for_work_and_no_longer_than_asked(spread: Roles) -> None:
    """Issue 2: an empty answer after the wait, the first task as soon as there is one."""
    assert await spread.worker.workers.poll(ROOT, "w", "poller", ["sums"], [], 1, 0.05) == []
    polling = asyncio.create_task(spread.worker.workers.poll(ROOT, "w", "poller", ["sums"], [], 1, 10))

    async def served() -> bool:
        return bool(spread.worker.engine.dispatcher.served)

    await eventually(served)
    task = (await spread.publisher.tasks.create(ROOT, NewTask("sums"), None)).task
    assert [lease.task.id for lease in await polling] == [task.id]


async def test_tasks_are_found_by_run_agent_worker_and_labels(start: Start) -> None:
    """FV-5, FV-10: one by one and together, the newest or the oldest first, a page at a time."""
    here, there = await start()
    async with Worker(there, kinds=["sums"]) as worker:
        labelled = ('{"a":"1","b":"x y"}', '{"a":"1"}', '{"a":"2","b":"x y"}', "", '{"c":"ü\\"="}')
        made = [(await here.tasks.create(ROOT, NewTask("sums", labels=labels), None)).task for labels in labelled]
        await worker.take_many(5)

        async def found(**fields: Any) -> list[str]:
            page = await here.tasks.list(ROOT, TaskQuery(**fields), PageRequest())
            return [task.id for task in page.items]

        ids = [task.id for task in made]
        assert await found(labels='{"a":"1"}') == [ids[1], ids[0]]
        assert await found(labels='{"b":"x y","a":"1"}') == [ids[0]]
        assert await found(labels='{"c":"ü\\"="}') == [ids[4]]
        assert await found(labels='{"a":"3"}') == []
        assert await found(run_id=made[2].run_id, oldest_first=False) == [ids[2]]
        assert await found(run_id=made[2].run_id, labels='{"a":"1"}') == []
        assert await found(worker=worker.session._session.name) == ids[::-1]
        assert await found(worker="nobody") == []
        assert await found(agent="nobody") == []
        assert await found(oldest_first=True) == ids
        first = await here.tasks.list(ROOT, TaskQuery(oldest_first=True), PageRequest(page_size=3))
        request = PageRequest(page_size=3, page_token=first.info.next_page_token)
        second = await there.tasks.list(ROOT, TaskQuery(oldest_first=True), request)
        assert [task.id for task in [*first.items, *second.items]] == ids


async def test_a_task_in_line_is_pending_to_who_lists(start: Start) -> None:
    """FV-5: the engine's own status is nobody else's."""
    here, _ = await start()
    async with Worker(here, kinds=["sums"]) as worker:
        for _ in range(2):
            await here.tasks.create(ROOT, NewTask("sums", bounds=Bounds("k", 1)), None)
        await worker.take()
        page = await here.tasks.list(ROOT, TaskQuery(status=TaskStatus.PENDING), PageRequest())
        assert [task.status for task in page.items] == [TaskStatus.IN_LINE]
