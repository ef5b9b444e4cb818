"""Idempotency: a key and the effect it guards are one, on whichever server the duplicate arrives."""

import asyncio

import pytest
from tests.engine.database import Database
from tests.engine.servers import Roles, Start, eventually
from tests.engine.workers import Worker, chain_worker
from tests.engine.world import (
    CHAIN,
    CHAIN_AGENTS,
    ROOT,
    agent,
    check_all,
    key,
    made,
    order,
    principal,
    register,
    types,
)

from millstream.application.views.artifacts import Published, SyncResult
from millstream.application.views.tasks import CreatedTask, NewTask
from millstream.application.views.types import TypeSpec
from millstream.domain.errors import IdempotencyConflict, NotFound
from millstream.domain.runs import RunStatus, TaskStatus
from millstream.wiring import Service

DAY_S = 86_400


def answer_of(result: SyncResult) -> tuple[object, ...]:
    """What a caller gets, but for the flag."""
    return (
        result.correlation_id,
        [(item.id, item.payload, item.seq) for item in result.artifacts],
        result.completed,
        result.duration_ms,
        [(failure.agent, failure.code, failure.task_id) for failure in result.failures],
    )


async def test_the_same_key_gives_the_same_answer_and_publishes_once(spread: Roles, database: Database) -> None:
    """FL-8: the duplicate gets the original response, marked as replayed, on either server; nothing runs again."""
    await register(spread.publisher, ("Order",))
    first = await spread.publisher.artifacts.publish(ROOT, order(), key("k"))
    assert not first.replayed
    for service in (spread.publisher, spread.worker):
        again = await service.artifacts.publish(ROOT, order(), key("k"))
        assert again == Published(first.artifact_id, first.correlation_id, replayed=True)
    assert await database.value("SELECT count(*) FROM artifact") == 1
    await check_all(database)


async def test_the_same_key_with_another_body_conflicts(spread: Roles, database: Database) -> None:
    """FL-8: IDEMPOTENCY_CONFLICT, on either server, and nothing is stored."""
    await register(spread.publisher, ("Order",))
    await spread.publisher.artifacts.publish(ROOT, order(), key("k", request="one"))
    for service in (spread.publisher, spread.worker):
        with pytest.raises(IdempotencyConflict):
            await service.artifacts.publish(ROOT, order(2), key("k", request="two"))
        with pytest.raises(IdempotencyConflict):
            await service.artifacts.publish_sync(ROOT, order(2), key("k", request="two"), 5)
    assert await database.value("SELECT count(*) FROM artifact") == 1


async def test_other_keys_other_callers_and_no_key_are_untouched(spread: Roles, database: Database) -> None:
    """FL-8: a key's scope is tenant, principal and RPC."""
    await register(spread.publisher, ("Order",))
    await register(spread.publisher, ("Order",), tenant="other")
    publish = spread.publisher.artifacts.publish
    published = [
        await publish(ROOT, order(), key("k")),
        await publish(ROOT, order(), key("l")),
        await publish(ROOT, order(), key("k", "PublishSync")),
        await publish(principal("else"), order(), key("k")),
        await publish(principal("root", "other"), order(), key("k")),
        await publish(ROOT, order(), None),
        await publish(ROOT, order(), None),
    ]
    assert not any(item.replayed for item in published)
    assert len({item.correlation_id for item in published}) == 7


async def test_a_finished_sync_publish_is_answered_the_same_again(spread: Roles) -> None:
    """FL-8: artifacts, order, duration and failures as at first, from either server."""
    async with chain_worker(spread.worker):
        first = await spread.publisher.artifacts.publish_sync(ROOT, order(), key("k"), 10)
        for service in (spread.publisher, spread.worker):
            again = await service.artifacts.publish_sync(ROOT, order(), key("k"), 10)
            assert again.replayed
            assert answer_of(again) == answer_of(first)


async def test_a_replay_ends_where_the_first_answer_ended(spread: Roles) -> None:
    """FL-8, rule 24: though the cascade was reopened, grew and failed since, the answer is the original one."""
    breaks = agent("breaks", "Payment")
    async with Worker(spread.worker, agents=[breaks], known=types("Order", "Payment")) as worker:
        first = await spread.publisher.artifacts.publish_sync(ROOT, order(), key("k"), 10)
        grow = asyncio.create_task(
            spread.worker.artifacts.publish_sync(ROOT, made("Payment", first.correlation_id), key("l"), 10)
        )
        await worker.fail(await worker.take(), retryable=False)
        second = await grow
    assert [item.type for item in second.artifacts] == ["Order", "Payment"]
    assert len(second.failures) == 1
    for service in (spread.publisher, spread.worker):
        assert answer_of(await service.artifacts.publish_sync(ROOT, order(), key("k"), 10)) == answer_of(first)
        same = await service.artifacts.publish_sync(ROOT, made("Payment", first.correlation_id), key("l"), 10)
        assert answer_of(same) == answer_of(second)


@pytest.mark.parametrize("where", ["same server", "other server"])
async def test_a_replay_of_an_unfinished_sync_publish_waits_with_the_first(start: Start, where: str) -> None:
    """FL-8: the second caller attaches to the same run and gets the same answer; the work is done once."""
    here, there = await start()
    second = here if where == "same server" else there
    async with Worker(here, agents=CHAIN_AGENTS[:1], known=types(*CHAIN)) as worker:
        one = asyncio.create_task(here.artifacts.publish_sync(ROOT, order(), key("k"), 10))
        lease = await worker.take()
        two = asyncio.create_task(second.artifacts.publish_sync(ROOT, order(), key("k"), 10))
        await _waits(second, lease.task.run_id)
        await worker.complete(lease, made("Payment"))
        first, again = await asyncio.gather(one, two)
    assert (first.completed, first.replayed) == (True, False)
    assert (again.completed, again.replayed) == (True, True)
    assert [item.id for item in again.artifacts] == [item.id for item in first.artifacts]
    assert len(worker.seen) == 1


async def _waits(service: Service, run_id: str) -> None:
    async def waiting() -> bool:
        return run_id in service.engine.waiters.runs

    await eventually(waiting, "that a caller waits")


async def test_an_answer_that_timed_out_is_not_final(spread: Roles) -> None:
    """FL-8, FL-3: after completed False the same key waits on, and gets the whole cascade."""
    async with Worker(spread.worker, agents=CHAIN_AGENTS[:1], known=types(*CHAIN)) as worker:
        first = await spread.publisher.artifacts.publish_sync(ROOT, order(), key("k"), 0.05)
        assert not first.completed
        again = await spread.worker.artifacts.publish_sync(ROOT, order(), key("k"), 0.05)
        assert (again.completed, again.replayed) == (False, True)
        await worker.complete(await worker.take(), made("Payment"))
    last = await spread.publisher.artifacts.publish_sync(ROOT, order(), key("k"), 10)
    assert (last.completed, last.replayed, last.correlation_id) == (True, True, first.correlation_id)
    assert [item.type for item in last.artifacts] == ["Order", "Payment"]


async def test_fifty_calls_with_one_key_make_one_cascade(start: Start, database: Database, owner_path: bool) -> None:
    """FL-8: concurrent, over both servers, sync and not; all get the same ids."""
    here, there = await start(owner_path=owner_path)
    async with chain_worker(there):
        calls = [
            (here, there)[n % 2].artifacts.publish_sync(ROOT, order(), key("k"), 20)
            if n % 5 == 0
            else (here, there)[n % 2].artifacts.publish(ROOT, order(), key("k"))
            for n in range(50)
        ]
        answers: list[Published | SyncResult] = await asyncio.gather(*calls)
    assert len({answer.correlation_id for answer in answers}) == 1
    assert sum(not answer.replayed for answer in answers) == 1
    assert await database.value("SELECT count(*) FROM run") == 1
    sync = [answer for answer in answers if isinstance(answer, SyncResult)]
    assert len({str(answer_of(answer)) for answer in sync}) == 1
    await check_all(database)


async def test_items_of_a_batch_have_keys_of_their_own(spread: Roles) -> None:
    """FL-11: `duplicate` by item; a batch and a single publish know each other's keys."""
    await register(spread.publisher, ("Order",))
    single = await spread.publisher.artifacts.publish(ROOT, order(1), key("one"))
    items = [order(1), order(2), order(2), order(3)]
    keys = [key("one"), key("two"), key("two"), None]
    batch = await spread.worker.artifacts.publish_batch(ROOT, items, keys, None)
    first, second, third, fourth = batch.results
    assert first == Published(single.artifact_id, single.correlation_id, replayed=True)
    assert isinstance(second, Published)
    assert third == Published(second.artifact_id, second.correlation_id, replayed=True)
    assert isinstance(fourth, Published)
    assert (second.replayed, fourth.replayed, batch.replayed) == (False, False, False)


async def test_an_item_whose_key_had_another_body_fails_alone(spread: Roles) -> None:
    """FL-11, FL-8."""
    await register(spread.publisher, ("Order",))
    keys = [key("k", request="one"), key("k", request="two"), None]
    batch = await spread.publisher.artifacts.publish_batch(ROOT, [order(n) for n in range(3)], keys, None)
    assert [type(result) for result in batch.results] == [Published, IdempotencyConflict, Published]


async def test_a_key_of_the_whole_batch_replays_all_of_it(spread: Roles, database: Database) -> None:
    """FL-8: the call's own key; what failed may be tried again under it after its cause is mended."""
    await register(spread.publisher, ("Order",))
    items = [order(1), made("Payment"), order(2)]
    first = await spread.publisher.artifacts.publish_batch(ROOT, items, [None] * 3, key("k", "PublishBatch"))
    assert [type(result) for result in first.results] == [Published, NotFound, Published]
    await register(spread.publisher, ("Payment",))
    again = await spread.worker.artifacts.publish_batch(ROOT, items, [None] * 3, key("k", "PublishBatch"))
    assert [result.replayed for result in again.results if isinstance(result, Published)] == [True, False, True]
    assert await database.value("SELECT count(*) FROM artifact") == 3
    third = await spread.publisher.artifacts.publish_batch(ROOT, items, [None] * 3, key("k", "PublishBatch"))
    assert third.replayed


async def test_a_key_of_the_whole_batch_stands_for_its_request(spread: Roles, database: Database) -> None:
    """FL-8: another request under it is refused as a whole, though its items have keys of their own, or are more."""
    await register(spread.publisher, ("Order",))
    first, other = key("k", "PublishBatch"), key("k", "PublishBatch", "other")
    await spread.publisher.artifacts.publish_batch(ROOT, [order(1)], [key("own")], first)
    with pytest.raises(IdempotencyConflict):
        await spread.worker.artifacts.publish_batch(ROOT, [order(1), order(2)], [key("a"), None], other)
    tasks, others = key("k", "CreateBatch"), key("k", "CreateBatch", "other")
    await spread.publisher.tasks.create_batch(ROOT, [NewTask("sums")], [key("own", "CreateTask")], tasks)
    with pytest.raises(IdempotencyConflict):
        await spread.worker.tasks.create_batch(ROOT, [NewTask("sums")] * 2, [None, None], others)
    assert await database.value("SELECT count(*) FROM artifact") == 1
    assert await database.value("SELECT count(*) FROM task") == 1


async def test_tasks_replay(spread: Roles, database: Database) -> None:
    """FL-8: create and create_batch; the duplicate's answer is the task."""
    first = await spread.publisher.tasks.create(ROOT, NewTask("sums"), key("k", "CreateTask"))
    again = await spread.worker.tasks.create(ROOT, NewTask("sums"), key("k", "CreateTask"))
    assert (again.task.id, first.replayed, again.replayed) == (first.task.id, False, True)
    with pytest.raises(IdempotencyConflict):
        await spread.worker.tasks.create(ROOT, NewTask("sums"), key("k", "CreateTask", "other"))
    call = key("k", "CreateBatch")
    batches = [await service.tasks.create_batch(ROOT, [NewTask("sums")] * 3, [None] * 3, call) for service in
               (spread.publisher, spread.worker)]  # fmt: skip
    made_ids = [[result.task.id for result in batch.results if isinstance(result, CreatedTask)] for batch in batches]
    assert made_ids[0] == made_ids[1]
    assert [batch.replayed for batch in batches] == [False, True]
    assert await database.value("SELECT count(*) FROM task") == 4


async def test_types_and_agents_replay(spread: Roles) -> None:
    """FL-8: the duplicate of a registration is answered like the first, also by the other server."""
    here, there = spread.publisher, spread.worker
    made_type, replayed = await here.types.create(ROOT, TypeSpec("Order"), key("k", "CreateType"))
    assert not replayed
    assert await there.types.create(ROOT, TypeSpec("Order"), key("k", "CreateType")) == (made_type, True)
    await here.types.create(ROOT, TypeSpec("Order", '{"type":"object"}'), None)
    assert await there.types.create(ROOT, TypeSpec("Order"), key("k", "CreateType")) == (made_type, True)
    spec = agent("plain", "Order")
    made_agent, replayed = await here.agents.create(ROOT, spec, key("k", "CreateAgent"))
    assert not replayed
    assert await there.agents.create(ROOT, spec, key("k", "CreateAgent")) == (made_agent, True)
    for service in (here, there):
        with pytest.raises(IdempotencyConflict):
            await service.agents.create(ROOT, spec, key("k", "CreateAgent", "other"))
        with pytest.raises(IdempotencyConflict):
            await service.types.create(ROOT, TypeSpec("Other"), key("k", "CreateType", "other"))


async def test_many_registrations_with_one_key_make_one_agent(start: Start) -> None:
    """FL-8: concurrent, over both servers."""
    here, there = await start()
    await register(here, ("Order",))
    spec = agent("plain", "Order")
    answers = await asyncio.gather(
        *((here, there)[n % 2].agents.create(ROOT, spec, key("k", "CreateAgent")) for n in range(10))
    )
    assert len({state.agent.id for state, _ in answers}) == 1
    assert sum(not replayed for _, replayed in answers) == 1


async def test_cancellations_replay(spread: Roles) -> None:
    """FL-8: cancelling a run and a task; the duplicate is no CONFLICT, though the run has ended since."""
    here, there = spread.publisher, spread.worker
    await register(here, ("Order",), agent("plain", "Order"))
    published = await here.artifacts.publish(ROOT, order(), None)
    run, replayed = await here.runs.cancel(ROOT, published.correlation_id, "no more", key("k", "CancelRun"))
    assert (run.status, replayed) == (RunStatus.CANCELLED, False)
    run, replayed = await there.runs.cancel(ROOT, published.correlation_id, "no more", key("k", "CancelRun"))
    assert (run.status, replayed) == (RunStatus.CANCELLED, True)
    task = (await here.tasks.create(ROOT, NewTask("sums"), None)).task
    first = await here.tasks.cancel(ROOT, task.id, "", key("k", "CancelTask"))
    again = await there.tasks.cancel(ROOT, task.id, "", key("k", "CancelTask"))
    assert (first.task.status, first.replayed) == (TaskStatus.CANCELLED, False)
    assert (again.task.status, again.replayed) == (TaskStatus.CANCELLED, True)


async def test_errors_are_not_kept(spread: Roles) -> None:
    """FL-8: after the cause is mended the same key succeeds."""
    with pytest.raises(NotFound):
        await spread.publisher.artifacts.publish(ROOT, order(), key("k"))
    await register(spread.worker, ("Order",))
    assert not (await spread.publisher.artifacts.publish(ROOT, order(), key("k"))).replayed


async def test_an_expired_key_can_be_used_anew(spread: Roles, database: Database) -> None:
    """FL-8: within its TTL the key holds, then it is free, also for another body; on both paths."""
    await register(spread.publisher, ("Order",))
    first = await spread.publisher.artifacts.publish(ROOT, order(), key("k"))
    await database.pass_time(DAY_S - 60)
    await spread.worker.loops.poll()
    assert (await spread.worker.artifacts.publish(ROOT, order(), key("k"))).replayed
    await database.pass_time(120)
    again = await spread.worker.artifacts.publish(ROOT, order(2), key("k", request="another"))
    assert not again.replayed
    assert again.correlation_id != first.correlation_id
    assert (await spread.publisher.artifacts.publish(ROOT, order(2), key("k", request="another"))).replayed


async def test_an_expired_key_of_a_registration_can_be_used_anew(start: Start, database: Database) -> None:
    """FL-8."""
    here, there = await start()
    await here.types.create(ROOT, TypeSpec("Order"), key("k", "CreateType"))
    await database.pass_time(DAY_S + 1)
    other = key("k", "CreateType", "other")
    assert not (await there.types.create(ROOT, TypeSpec("Payment"), other))[1]
    assert (await here.types.create(ROOT, TypeSpec("Payment"), other))[1]


async def test_expired_keys_are_cleaned_up(start: Start, database: Database) -> None:
    """FL-9: however many there are, and no others."""
    here, _ = await start()
    await register(here, ("Order",))
    await here.artifacts.publish(ROOT, order(), key("old"))
    await database.execute(
        """INSERT INTO idempotency (tenant, principal, rpc, key, expires_us)
        SELECT 'acme', 'root', 'Publish', 'old' || n, 1 FROM generate_series(1, 12000) n"""
    )
    await database.pass_time(DAY_S + 1)
    await here.loops.poll()
    await here.artifacts.publish(ROOT, order(), key("live"))
    await here.loops.sweep()
    assert await database.rows("SELECT key FROM idempotency") == [{"key": "live"}]


async def test_a_key_and_its_effect_are_one(spread: Roles, database: Database) -> None:
    """Invariant: the key stands in the transaction of the effect it guards; no run without, no key alone."""
    await register(spread.publisher, ("Order",))
    chosen = (await spread.publisher.tasks.create(ROOT, NewTask("sums"), None)).task.run_id
    with pytest.raises(Exception, match="another kind"):
        await spread.publisher.artifacts.publish(ROOT, order(correlation_id=chosen), key("k"))
    assert await database.value("SELECT count(*) FROM idempotency") == 0
    await spread.publisher.artifacts.publish(ROOT, order(), key("k"))
    (row,) = await database.rows("SELECT xmin FROM idempotency")
    assert await database.rows("SELECT DISTINCT xmin FROM artifact") == [row]
