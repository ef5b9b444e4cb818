"""Hand-off and dispatch: who gets which task, when, and in which order."""

import asyncio

import pytest
from tests.engine.database import Database
from tests.engine.servers import Roles, Start, eventually
from tests.engine.workers import Worker, done
from tests.engine.world import (
    AT_ONCE,
    ROOT,
    agent,
    check_all,
    events_of,
    order,
    register,
    types,
)

from millstream.application.views.reports import Reports
from millstream.application.views.tasks import NewTask
from millstream.domain.runs import RunStatus, TaskStatus
from millstream.domain.struct_wire import decode_value, encode_value
from millstream.store.lane import PostgresLane
from millstream.wiring import Service


async def create(service: Service, n: int, **fields: object) -> None:
    """Create a task whose input is a number."""
    await service.tasks.create(ROOT, NewTask("sums", encode_value(n), **fields), None)  # type: ignore[arg-type]


def inputs(worker: Worker) -> list[object]:
    """What a worker was given, in order."""
    return [decode_value(lease.task.input) for lease in worker.seen]


async def test_a_task_is_leased_in_the_transaction_that_creates_it(
    start: Start, database: Database, owner_path: bool
) -> None:
    """Architecture, rule 7: with a connected worker that has room there is no second transaction and no wait."""
    here, _ = await start(owner_path=owner_path)
    async with Worker(here, kinds=["sums"]) as worker:
        await eventually(lambda: _calm(here))
        task = (await here.tasks.create(ROOT, NewTask("sums"), None)).task
        await worker.take()
        events = await events_of(here, task.run_id)
        assert [event.type.name for event in events] == ["RUN_CREATED", "TASK_CREATED", "TASK_STARTED"]
        assert len({event.at_us for event in events}) == 1
        rows = await database.rows("SELECT DISTINCT xmin FROM event")
        assert rows == await database.rows("SELECT xmin FROM task")


async def _calm(service: Service) -> bool:
    return not service.engine.dispatcher._backlog


async def test_newer_work_does_not_overtake_what_waits(spread: Roles) -> None:
    """Rule 7: no hand-off past older pending work; the pull takes it in order."""
    async with Worker(spread.worker, kinds=["sums"], slots=1) as worker:
        for n in range(6):
            await create(spread.publisher, n)
        for _ in range(5):
            await worker.complete(await worker.take())
        await worker.take()
    assert inputs(worker) == [*range(6)]


async def test_freed_room_goes_to_the_oldest_not_to_the_newest(start: Start, owner_path: bool) -> None:
    """Rule 7: a task that is made in the moment a slot gets free does not take it from those that wait."""
    here, _ = await start(owner_path=owner_path)
    async with Worker(here, kinds=["sums"], slots=1) as worker:
        for n in range(3):
            await create(here, n)
        lease = await worker.take()
        await worker.session.report(Reports(completions=(done(lease),)))
        worker.session.add_credit(1)
        await create(here, 3)
        await worker.take()
    assert inputs(worker) == [0, 1]


async def test_more_urgent_work_that_waits_goes_first(spread: Roles) -> None:
    """Rule 7: urgency before age, on whichever server it was made."""
    async with Worker(spread.worker, kinds=["sums"], slots=1) as worker:
        await create(spread.publisher, 0)
        first = await worker.take()
        await create(spread.publisher, 1)
        await create(spread.worker, 2, priority=10)
        await create(spread.publisher, 3, priority=50)
        await spread.worker.loops.poll()
        await worker.complete(first)
        for _ in range(3):
            await worker.complete(await worker.take())
    assert inputs(worker) == [0, 3, 2, 1]


async def test_a_worker_gets_no_more_than_it_can_take(spread: Roles) -> None:
    """FV-19: slots; and each freed slot is filled."""
    async with Worker(spread.worker, kinds=["sums"], slots=3) as worker:
        for n in range(10):
            await create(spread.publisher, n)
        leases = await worker.take_many(3)
        for service in (spread.publisher, spread.worker):
            await service.loops.poll()
        assert worker.leases.empty()
        await worker.report(completions=tuple(map(done, leases)))
        await worker.take_many(3)
        assert worker.leases.empty()


async def test_workers_take_turns(start: Start) -> None:
    """FV-19: work is spread over the workers of a server."""
    here, _ = await start()
    async with Worker(here, kinds=["sums"]) as one, Worker(here, kinds=["sums"]) as two:
        for n in range(10):
            await create(here, n)
        await eventually(lambda: _has(one, 5))
        await eventually(lambda: _has(two, 5))


async def _has(worker: Worker, count: int) -> bool:
    return len(worker.seen) == count


async def test_work_of_one_server_reaches_the_worker_of_another_at_once(start: Start) -> None:
    """Rule 8: by a wake-up, not by the safety poll."""
    here, there = await start()
    async with Worker(there, kinds=["sums"]) as worker:
        loop = asyncio.get_running_loop()
        began = loop.time()
        for n in range(5):
            await create(here, n)
            await worker.take()
        assert loop.time() - began < 0.9


async def test_only_the_servers_that_serve_it_are_woken(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 8, FV-19: a wake-up never goes to all."""
    here, there = await start()
    sent: list[tuple[str, tuple[str, ...]]] = []
    send = here.core.peers.send

    def note(lane: str, message: tuple[str, ...]) -> None:
        sent.append((lane, message))
        send(lane, message)

    monkeypatch.setattr(here.core.peers, "send", note)
    async with Worker(there, kinds=["sums"]):
        await create(here, 0)
        await here.tasks.create(ROOT, NewTask("nobody"), None)
    assert sent == [(there.engine.lane_id, ("ready", "acme", "default", "sums"))]


async def test_credit_comes_back_when_a_batch_fails(
    start: Start, monkeypatch: pytest.MonkeyPatch, owner_path: bool
) -> None:
    """Architecture: a batch that fails gives back the credit it took; the worker's slot is not lost."""
    here, _ = await start(owner_path=owner_path)
    async with Worker(here, kinds=["sums"], slots=1) as worker:
        await eventually(lambda: _calm(here))
        with pytest.raises(Exception, match="cannot hold"):
            await here.tasks.create(ROOT, NewTask("sums", labels="\0"), None)
        await create(here, 1)
        await worker.take()
    assert inputs(worker) == [1]


async def test_a_worker_that_connects_finds_what_waits(spread: Roles) -> None:
    """FV-19: work made before anybody served it, by any server, in order."""
    for n in range(5):
        await create(spread.publisher, n)
    async with Worker(spread.worker, kinds=["sums"]) as worker:
        await worker.take_many(5)
    assert inputs(worker) == [*range(5)]


async def test_much_waiting_work_is_pulled_to_the_last(start: Start) -> None:
    """FV-19, replay-lessons: beyond every page and batch size."""
    here, there = await start()
    batch = [NewTask("sums", encode_value(n)) for n in range(1300)]
    await here.tasks.create_batch(ROOT, batch, [None] * len(batch), None)
    async with Worker(there, kinds=["sums"], slots=700, handler=done) as worker:
        await eventually(lambda: _has(worker, 1300))
    assert inputs(worker) == [*range(1300)]


_COUNT_RUNNING = """
CREATE TABLE warp.running (n int8);
CREATE FUNCTION warp.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
INSERT INTO warp.running SELECT count(*) FROM public.task WHERE status = 3; RETURN NULL; END $$;
CREATE TRIGGER note AFTER INSERT OR UPDATE ON task FOR EACH STATEMENT EXECUTE FUNCTION warp.note();
"""


@pytest.mark.parametrize("bound", [1, 2])
async def test_an_agents_concurrency_is_bounded_over_all_servers(start: Start, database: Database, bound: int) -> None:
    """FL-14: max_concurrency is never exceeded and never stuck."""
    here, there = await start()
    await database.execute(_COUNT_RUNNING)
    spec = agent("slow", "Order", max_concurrency=bound)
    async with (
        Worker(here, agents=[spec], known=types("Order"), handler=done),
        Worker(there, agents=[spec], known=types("Order"), handler=done),
    ):
        calls = [(here, there)[n % 2].artifacts.publish_sync(ROOT, order(n), None, 20) for n in range(12)]
        results = await asyncio.gather(*calls)
    assert all(result.completed for result in results)
    assert await database.value("SELECT max(n) FROM warp.running") == bound
    await check_all(database)


async def test_a_bounded_agent_goes_on_when_its_worker_is_lost(start: Start) -> None:
    """FL-14, FV-19: a lost lease frees its place."""
    here, there = await start()
    spec = agent("slow", "Order", max_concurrency=1, retry=AT_ONCE)
    one = await Worker(here, agents=[spec], known=types("Order")).open()
    await here.artifacts.publish(ROOT, order(1), None)
    await here.artifacts.publish(ROOT, order(2), None)
    await one.ack(await one.take())
    async with Worker(there, agents=[spec], known=types("Order"), handler=done) as two:
        assert two.seen == []
        await one.close()
        await there.loops.poll()
        await eventually(lambda: _has(two, 2))


async def test_lifting_the_bound_frees_what_waits(start: Start) -> None:
    """FL-14: an agent registered anew without a bound is not stuck with tasks of the old one."""
    here, there = await start()
    async with Worker(here, agents=[agent("slow", "Order", max_concurrency=1)], known=types("Order")) as one:
        for n in range(3):
            await here.artifacts.publish(ROOT, order(n), None)
        await one.take()
        async with Worker(there, agents=[agent("slow", "Order")], known=types("Order"), handler=done) as two:
            await eventually(lambda: _has(two, 2))


async def test_the_blocking_lanes_leases_are_this_servers(
    start: Start, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rules 2, 7: a lease made by way of the blocking lane is renewed like any other."""
    here, _ = await start()
    async with Worker(here, kinds=["sums"]) as worker:
        task = (await here.tasks.create(ROOT, NewTask("sums", delay_us=3_600_000_000), None)).task
        here.engine.cache.clear()
        async with database.other() as connection:
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute("SELECT 1 FROM run WHERE id = $1::text::uuid FOR UPDATE", task.run_id)
            await database.pass_time(3601)
            polling = asyncio.create_task(here.loops.poll())
            await eventually(lambda: _in_blocking_lane(here))
            await transaction.rollback()
            await polling
        lease = await worker.take()
        assert lease.task.owner == here.engine.lane_id
        await here.loops.renew()
        assert worker.cancellations.empty()
        assert (await worker.complete(lease)).error is None


async def _in_blocking_lane(service: Service) -> bool:
    lane = service.engine._blocked.lane
    assert isinstance(lane, PostgresLane)
    return lane._n > 0


async def test_waiting_work_whose_run_is_held_elsewhere_is_leased_soon_after(
    start: Start, database: Database, owner_path: bool
) -> None:
    """Rules 2, 7: passed over, not forgotten until a poll; and looked at again without spinning."""
    here, _ = await start(owner_path=owner_path)
    task = (await here.tasks.create(ROOT, NewTask("sums"), None)).task
    here.engine.cache.clear()
    loops = here._background[1]
    assert loops.get_coro().__qualname__ == "Loops.run"  # type: ignore[union-attr]
    loops.cancel()
    async with database.other() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("SELECT 1 FROM run WHERE id = $1::text::uuid FOR UPDATE", task.run_id)
        async with Worker(here, kinds=["sums"]) as worker:
            looks: list[str] = []
            here.engine.committer.at = looks.append
            await asyncio.sleep(0.3)
            assert 3 < looks.count("inside transaction") < 30
            await transaction.rollback()
            assert (await worker.take(0.5)).task.id == task.id


async def test_an_agents_tasks_in_its_former_queue_are_still_taken(spread: Roles) -> None:
    """FV-19: by a worker that names the queue, though the agent has moved to another."""
    await register(spread.publisher, ("Order",), agent("moves", "Order", queue="slow"))
    published = await spread.publisher.artifacts.publish(ROOT, order(), None)
    async with Worker(spread.worker, agents=[agent("moves", "Order")], queues=["slow"]) as worker:
        await worker.complete(await worker.take())
        await spread.publisher.artifacts.publish(ROOT, order(), None)
        assert (await worker.take()).task.queue == "default"
    assert (await spread.publisher.runs.get(ROOT, published.correlation_id)).status is RunStatus.COMPLETED


async def test_a_task_in_hand_is_running(spread: Roles) -> None:
    """FV-5: who has it, since when."""
    async with Worker(spread.worker, kinds=["sums"]) as worker:
        await create(spread.publisher, 1)
        lease = await worker.take()
        task = (await spread.publisher.tasks.get(ROOT, lease.task.id)).task
    assert task.status is TaskStatus.RUNNING
    assert (task.worker_id, task.owner) == (worker.id, spread.worker.engine.lane_id)
