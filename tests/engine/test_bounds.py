"""Bounds by key: how many tasks run at once, and how many start in a while, over all servers."""

import asyncio
import itertools

import pytest
from tests.engine.database import Database
from tests.engine.servers import PATIENCE_S, Start, eventually, killed, server
from tests.engine.workers import Worker
from tests.engine.world import AT_ONCE, FOREVER, ROOT, check_all, principal, seconds

from millstream.application.views.tasks import CreatedTask, NewTask
from millstream.domain.bounds import Bounds
from millstream.domain.retry import Timeouts
from millstream.domain.runs import Task, TaskStatus
from millstream.wiring import Service

SLOW = Bounds("shop", 2)


def bounded(bounds: Bounds = SLOW, kind: str = "sums", **fields: object) -> NewTask:
    """A task with bounds."""
    return NewTask(kind, bounds=bounds, retry=AT_ONCE, timeouts=FOREVER, **fields)  # type: ignore[arg-type]


async def create(service: Service, *new: NewTask) -> list[Task]:
    """Create tasks, in their order."""
    batch = await service.tasks.create_batch(ROOT, new, [None] * len(new), None)
    made = [result.task for result in batch.results if isinstance(result, CreatedTask)]
    assert len(made) == len(new)
    return made


_RUNNING = "SELECT count(*) FROM task WHERE status = 3 AND concurrency_key = $1"


async def running(database: Database, key: str = "shop") -> int:
    """How many tasks of a key run, as it is stored."""
    return int(await database.value(_RUNNING, key))


async def quiet(service: Service) -> None:
    """Return when a server has looked at all lines that it was told of."""
    lines = service.engine.lines

    async def nothing_marked() -> bool:
        return lines.idle and not service.engine.dispatcher._backlog

    await eventually(nothing_marked, "that all lines were looked at")


@pytest.mark.parametrize("limit", [1, 3])
async def test_no_more_of_a_key_run_at_once_than_its_limit_over_two_servers(
    start: Start, database: Database, limit: int, owner_path: bool
) -> None:
    """FV-5: the bound holds whoever creates and whoever works, every task gets its turn, and none runs twice."""
    here, there = await start(owner_path=owner_path)
    seen: list[str] = []
    worst = 0
    all_done = asyncio.Event()

    async def work(worker: Worker) -> None:
        nonlocal worst
        async with database.other() as connection:
            while True:
                lease = await worker.take(PATIENCE_S)
                seen.append(lease.task.id)
                worst = max(worst, await connection.fetchval(_RUNNING, "shop"))
                await worker.complete(lease)
                if len(seen) == 40:
                    all_done.set()

    async with Worker(here, kinds=["sums"]) as one, Worker(there, kinds=["sums"]) as two:
        workers = [asyncio.create_task(work(each)) for each in (one, two)]
        tasks = [
            *await create(here, *[bounded(Bounds("shop", limit))] * 20),
            *await create(there, *[bounded(Bounds("shop", limit))] * 20),
        ]
        async with asyncio.timeout(4 * PATIENCE_S):
            await all_done.wait()
        for each in workers:
            each.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    assert sorted(seen) == sorted(task.id for task in tasks)
    assert 1 <= worst <= limit
    await check_all(database)


async def test_the_first_and_most_urgent_of_a_line_is_next(start: Start) -> None:
    """FV-5: in a line, priority first, then the order of creation."""
    here, _ = await start()
    async with Worker(here, kinds=["sums"]) as worker:
        first, *others, urgent = await create(
            here, *[bounded(Bounds("shop", 1))] * 4, bounded(Bounds("shop", 1), priority=5)
        )
        order = []
        for _ in range(5):
            lease = await worker.take()
            order.append(lease.task.id)
            await worker.complete(lease)
    assert order in (
        [first.id, urgent.id, *(task.id for task in others)],
        [urgent.id, first.id, *(task.id for task in others)],
    )


async def test_a_long_line_stands_in_nobodys_way(start: Start, database: Database) -> None:
    """Thousands that wait for one key are in no list that a worker's pull reads: others of the same queue and kind are
    taken at once, with more than one server too."""
    here, there = await start()
    async with Worker(there, kinds=["sums"], slots=10_000) as worker:
        for _ in range(4):
            await create(here, *[bounded(Bounds("shop", 1), priority=100)] * 1000)
        blocked = await worker.take()
        free = await create(here, *[NewTask("sums")] * 20, bounded(Bounds("other", 1)))
        assert {lease.task.id for lease in await worker.take_many(21)} == {task.id for task in free}
        assert await running(database) == 1
        assert await database.value("SELECT count(*) FROM task WHERE status = 2") == 0
        assert await database.value("SELECT count(*) FROM task WHERE status = 0") == 3999
        await worker.complete(blocked)
        assert (await worker.take()).task.bounds.concurrency_key == "shop"
    shown = await here.tasks.get(ROOT, free[0].id)
    assert shown.task.shown_status is TaskStatus.RUNNING


async def test_a_kind_that_nobody_works_on_keeps_no_room_from_others(start: Start, database: Database) -> None:
    """Nothing starves: room belongs to what runs, not to what is called up and finds no worker."""
    here, there = await start()
    await create(here, *[bounded(Bounds("shop", 1), kind="nobodys")] * 5)
    async with Worker(there, kinds=["sums"]) as worker:
        tasks = await create(here, *[bounded(Bounds("shop", 1))] * 5)
        for task in tasks:
            lease = await worker.take()
            assert lease.task.id == task.id
            await worker.complete(lease)
    await quiet(here)
    called = await database.rows("SELECT kind, count(*) AS n FROM task WHERE status = 2 GROUP BY kind")
    assert called == [{"kind": "nobodys", "n": 1}]
    async with Worker(there, kinds=["nobodys"]) as worker:
        for _ in range(5):
            await worker.complete(await worker.take())
    await check_all(database)


async def test_another_tenants_key_is_another_key(start: Start) -> None:
    """WM: a tenant is neither told of another's line, nor held up by it."""
    here, _ = await start()
    others = principal(tenant="globex")
    async with (
        Worker(here, kinds=["sums"]) as ours,
        Worker(here, kinds=["sums"], who=others) as theirs,
    ):
        await create(here, bounded(Bounds("shop", 1)))
        await here.tasks.create(others, bounded(Bounds("shop", 1)), None)
        await ours.take()
        await theirs.take()


@pytest.mark.parametrize("ending", ["failed", "released", "cancelled", "retried"])
async def test_whatever_ends_a_task_leaves_its_room(start: Start, database: Database, ending: str) -> None:
    """FV-5: the next one starts, and the bound still holds."""
    here, there = await start()
    async with Worker(there, kinds=["sums"]) as worker:
        await create(here, *[bounded(Bounds("shop", 1))] * 2)
        lease = await worker.take()
        if ending == "failed":
            await worker.fail(lease, retryable=False)
        elif ending == "retried":
            await worker.fail(lease)
        elif ending == "released":
            await worker.release(lease)
        else:
            await here.tasks.cancel(ROOT, lease.task.id, "", None)
            await worker.fail(lease, "CANCELLED")
        following = await worker.take()
        assert await running(database) == 1
        await worker.complete(following)
        if ending in ("retried", "released"):
            again = await worker.take()
            assert {again.task.id, following.task.id} >= {lease.task.id}
            await worker.complete(again)
    await check_all(database)


async def test_a_held_task_is_cancelled_and_timed_out_like_any_that_waits(start: Start, database: Database) -> None:
    """FV-4, FL-15: it ends at once, and schedule_to_start counts the time in the line too."""
    here, there = await start()
    async with Worker(there, kinds=["sums"]) as worker:
        await create(here, bounded(Bounds("shop", 1)))
        blocker = await worker.take()
        new = NewTask("sums", bounds=Bounds("shop", 1), timeouts=Timeouts(seconds(30), 0))
        first, second = await create(here, bounded(Bounds("shop", 1)), new)
        assert (await here.tasks.get(ROOT, first.id)).task.status is TaskStatus.IN_LINE
        assert (await here.tasks.cancel(ROOT, first.id, "", None)).task.status is TaskStatus.CANCELLED
        await database.pass_time(31)
        await there.loops.poll()
        ended = (await here.tasks.get(ROOT, second.id)).task
        assert (ended.status, ended.error_code) == (TaskStatus.FAILED, "SCHEDULE_TO_START_TIMEOUT")
        await worker.complete(blocker)
        await quiet(here)
        assert worker.leases.empty()
    await check_all(database)


async def test_no_more_start_in_a_period_than_the_rate_lets(start: Start, database: Database) -> None:
    """FV-5: over two servers; the rest follows when the window lets it, woken by a timer that the first look set."""
    here, there = await start()
    async with Worker(here, kinds=["sums"]) as one, Worker(there, kinds=["sums"]) as two:
        await create(here, *[bounded(Bounds(rate_key="mail", rate_limit=3, rate_period_us=seconds(3600)))] * 8)

        async def started(count: int) -> bool:
            return bool(len(one.seen) + len(two.seen) == count)

        for count in (3, 6, 8):
            await eventually(lambda count=count: started(count), f"{count} starts")  # type: ignore[misc]
            await quiet(here)
            await quiet(there)
            assert await started(count)
            assert here.engine.lines._opening or there.engine.lines._opening or count == 8
            await database.pass_time(3600 * 1.01)
            await here.engine.lines.sweep()
    await check_all(database)


async def test_the_timer_of_a_rate_starts_the_next(start: Start, database: Database) -> None:
    """FV-5: nobody polls: with the safety poll away, the line opens by its own timer."""
    here, there = await start()
    here.engine.lines.sweep = there.engine.lines.sweep = _never  # type: ignore[method-assign]
    async with Worker(there, kinds=["sums"]) as worker:
        bounds = Bounds(rate_key="mail", rate_limit=1, rate_period_us=seconds(0.2))
        await create(here, *[bounded(bounds)] * 4)
        leases = await worker.take_many(4)
    starts = [lease.task.started_us for lease in leases]
    assert all(after - before >= seconds(0.2) for before, after in itertools.pairwise(starts))


async def _never() -> None:
    """In place of the safety poll."""


async def test_both_bounds_hold_together(start: Start, database: Database) -> None:
    """FV-5: a task waits in the line of its concurrency key, then in that of its rate."""
    here, there = await start()
    bounds = Bounds("shop", 2, "mail", 3, seconds(3600))
    async with Worker(there, kinds=["sums"]) as worker:
        await create(here, *[bounded(bounds)] * 6)
        leases = await worker.take_many(2)
        await quiet(here)
        assert worker.leases.empty()
        await worker.complete(leases[0])
        await worker.take()
        await worker.complete(leases[1])
        await quiet(here)
        await quiet(there)
        assert worker.leases.empty()
        waits = await database.rows("SELECT waits_for, count(*) AS n FROM task WHERE status = 0 GROUP BY 1 ORDER BY 1")
        assert sum(row["n"] for row in waits) == 3
        await database.pass_time(3600 * 1.01)
        await here.engine.lines.sweep()
        await worker.take()
        assert await running(database) == 2
    await check_all(database)


async def test_a_killed_server_takes_no_bound_and_no_task_with_it(database: Database) -> None:
    """FV-19: what it knew of lines is in the database: another one goes on, within the bounds."""
    async with server(database) as gone, Worker(gone, kinds=["sums"]) as worker:
        await create(gone, *[bounded(Bounds("shop", 1, "mail", 2, seconds(3600)))] * 4)
        held = await worker.take()
        await killed(gone)
    async with server(database) as other, Worker(other, kinds=["sums"]) as worker:
        await other.engine.lines.sweep()
        await quiet(other)
        assert worker.leases.empty()
        await database.pass_time(3600 * 1.02)
        await other.loops.poll()
        again = await worker.take()
        await worker.complete(again)
        following = await worker.take()
        await worker.complete(following)
        assert held.task.id in (again.task.id, following.task.id, *(lease.task.id for lease in worker.seen))
        await quiet(other)
        await database.pass_time(3600 * 1.02)
        await other.loops.poll()
        for _ in range(2):
            await worker.complete(await worker.take())
    assert await database.value("SELECT count(*) FROM task WHERE finished_us = 0") == 0
    await check_all(database)


async def test_lines_that_are_not_used_are_swept(start: Start, database: Database) -> None:
    """Memory bounded: keys come and go, such as one for each customer or each run."""
    here, _ = await start()
    async with Worker(here, kinds=["sums"]) as worker:
        await create(here, *[bounded(Bounds(f"k{n}", 1)) for n in range(5)])
        for _ in range(5):
            await worker.complete(await worker.take())
        assert await database.value("SELECT count(*) FROM line") == 5
        await database.pass_time(2 * 86_400)
        await here.loops.sweep()
        assert await database.value("SELECT count(*) FROM line") == 0
        await create(here, bounded(Bounds("k1", 1)))
        await worker.take()


async def test_a_paused_runs_task_leaves_its_place_in_line(start: Start, database: Database) -> None:
    """FV-5: the next one takes its turn; resumed, it waits in the line again, in the order of its time."""
    here, there = await start()
    async with Worker(there, kinds=["sums"]) as worker:
        blocker, paused, following = await create(here, *[bounded(Bounds("shop", 1))] * 3)
        lease = await worker.take()
        assert lease.task.id == blocker.id
        await here.run_operations.pause(ROOT, paused.run_id, "", None)
        await worker.complete(lease)
        lease = await worker.take()
        assert lease.task.id == following.id
        await here.run_operations.resume(ROOT, paused.run_id, None)
        assert (await here.tasks.get(ROOT, paused.id)).task.status is TaskStatus.IN_LINE
        await worker.complete(lease)
        await worker.complete(await worker.take())
    await check_all(database)
