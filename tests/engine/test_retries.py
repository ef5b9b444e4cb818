"""Retries and timeouts: every stored timeout is enforced, every retry follows its policy."""

import pytest
from tests.engine.database import Database
from tests.engine.servers import Roles, Start
from tests.engine.workers import Worker, ref
from tests.engine.world import AT_ONCE, ROOT, check_all, data_of, events_of, kinds_of, seconds

from millstream.application.views.reports import AttemptFailure
from millstream.application.views.tasks import NewTask
from millstream.domain.retry import RetryPolicy, Timeouts
from millstream.domain.runs import AttemptStatus, EventType, RunStatus, TaskStatus
from millstream.wiring import Service


async def create(service: Service, **fields: object) -> str:
    """Create a task of kind "sums"; its id."""
    return (await service.tasks.create(ROOT, NewTask("sums", **fields), None)).task.id  # type: ignore[arg-type]


async def statuses(service: Service, task_id: str) -> list[AttemptStatus]:
    """Of a task's attempts."""
    return [item.status for item in (await service.tasks.attempts(ROOT, task_id, 0, 100))[0]]


async def poll(*services: Service) -> None:
    """What the loops do once a second."""
    for service in services:
        await service.loops.poll()


async def test_the_waits_grow_by_the_factor_up_to_the_maximum(spread: Roles, database: Database) -> None:
    """Issue 2: initial, factor, maximum, max attempts; each wait stands in its event, and is waited."""
    retry = RetryPolicy(initial_us=seconds(10), factor=3, maximum_us=seconds(60), jitter=0, max_attempts=5)
    async with Worker(spread.worker, kinds=["sums"]) as worker:
        task_id = await create(spread.publisher, retry=retry)
        for wait in (10, 30, 60, 60):
            await worker.fail(await worker.take())
            view = await spread.publisher.tasks.get(ROOT, task_id)
            assert view.task.status is TaskStatus.SCHEDULED
            await database.pass_time(wait - 2)
            await poll(spread.worker, spread.publisher)
            assert worker.leases.empty()
            await database.pass_time(3)
            await poll(spread.worker)
        await worker.fail(await worker.take(), "LAST")
    view = await spread.publisher.tasks.get(ROOT, task_id)
    assert (view.task.status, view.task.tries, view.task.error_code) == (TaskStatus.FAILED, 5, "LAST")
    waits = [
        data_of(event)["next_attempt_in_ms"]
        for event in await events_of(spread.worker, view.task.run_id)
        if event.type is EventType.TASK_RETRY
    ]
    assert waits == [10_000, 30_000, 60_000, 60_000]
    assert (await kinds_of(spread.worker, view.task.run_id)).count("TASK_READY") == len(waits)
    run = await spread.publisher.runs.get(ROOT, view.task.run_id)
    assert (run.status, run.error_code, run.error_message) == (RunStatus.FAILED, "LAST", "LAST it is")
    await check_all(database)


async def test_jitter_spreads_the_waits_within_its_bounds(start: Start) -> None:
    """Issue 2: jitter."""
    here, _ = await start()
    retry = RetryPolicy(initial_us=seconds(100), maximum_us=seconds(900), jitter=0.2)
    async with Worker(here, kinds=["sums"]) as worker:
        for _ in range(20):
            await create(here, retry=retry)
        waits = set()
        for lease in await worker.take_many(20):
            await worker.fail(lease)
            view = await here.tasks.get(ROOT, lease.task.id)
            event = (await events_of(here, view.task.run_id))[-1]
            waits.add(data_of(event)["next_attempt_in_ms"])
    assert all(80_000 <= wait <= 120_000 for wait in waits)
    assert len(waits) > 10


async def test_some_codes_are_final_at_once(spread: Roles) -> None:
    """Issue 2: non-retryable codes."""
    retry = RetryPolicy(initial_us=0, non_retryable=("BAD_INPUT", "GONE"))
    async with Worker(spread.worker, kinds=["sums"]) as worker:
        task_id = await create(spread.publisher, retry=retry)
        await worker.fail(await worker.take(), "OTHER")
        await worker.fail(await worker.take(), "GONE")
    view = await spread.publisher.tasks.get(ROOT, task_id)
    assert (view.task.status, view.task.tries, view.task.error_code) == (TaskStatus.FAILED, 2, "GONE")


async def test_a_worker_can_say_that_a_failure_is_final(spread: Roles) -> None:
    """Issue 2: retryable False; None and True leave it to the policy."""
    async with Worker(spread.worker, kinds=["sums"]) as worker:
        task_id = await create(spread.publisher, retry=AT_ONCE)
        await worker.fail(await worker.take(), retryable=True)
        await worker.fail(await worker.take(), retryable=False)
    view = await spread.publisher.tasks.get(ROOT, task_id)
    assert (view.task.status, view.task.tries) == (TaskStatus.FAILED, 2)


async def test_a_worker_can_ask_for_a_longer_wait(spread: Roles, database: Database) -> None:
    """Issue 2: retry_after is a floor; a shorter one changes nothing."""
    retry = RetryPolicy(initial_us=seconds(10), factor=1, jitter=0, max_attempts=9)
    async with Worker(spread.worker, kinds=["sums"]) as worker:
        task_id = await create(spread.publisher, retry=retry)
        for after, wait in ((100, 100_000), (1, 10_000)):
            await worker.fail(await worker.take(), retry_after_us=seconds(after))
            view = await spread.publisher.tasks.get(ROOT, task_id)
            assert data_of((await events_of(spread.worker, view.task.run_id))[-1])["next_attempt_in_ms"] == wait
            await database.pass_time(101)
            await poll(spread.worker)


async def test_a_long_message_is_cut(start: Start) -> None:
    """Contract: a failure's message is cut at 4,000 characters."""
    here, _ = await start()
    async with Worker(here, kinds=["sums"]) as worker:
        task_id = await create(here)
        found = ref(await worker.take())
        await worker.report(failures=(AttemptFailure(found.task_id, found.attempt, "E", "x" * 9000, False),))
    assert len((await here.tasks.get(ROOT, task_id)).task.error_message) == 4000


async def test_nobody_starts_it_in_time(spread: Roles, database: Database) -> None:
    """Issue 2: schedule-to-start; a final failure that is no attempt."""
    task_id = await create(spread.publisher, timeouts=Timeouts(schedule_to_start_us=seconds(30)))
    await database.pass_time(29)
    await poll(spread.worker)
    assert (await spread.worker.tasks.get(ROOT, task_id)).task.status is TaskStatus.PENDING
    await database.pass_time(2)
    await poll(spread.worker)
    view = await spread.publisher.tasks.get(ROOT, task_id)
    assert (view.task.status, view.task.error_code) == (TaskStatus.FAILED, "SCHEDULE_TO_START_TIMEOUT")
    assert (view.task.attempt, view.task.tries) == (0, 0)
    assert "30 s" in view.task.error_message
    assert await statuses(spread.publisher, task_id) == []
    await check_all(database)


async def test_the_time_to_start_counts_from_when_it_is_ready(spread: Roles, database: Database) -> None:
    """Issue 2: not while it is scheduled, and anew for each attempt."""
    new: dict[str, object] = {"timeouts": Timeouts(schedule_to_start_us=seconds(30)), "delay_us": seconds(100)}
    task_id = await create(spread.publisher, retry=RetryPolicy(initial_us=seconds(50), jitter=0), **new)
    await database.pass_time(99)
    await poll(spread.worker, spread.publisher)
    await database.pass_time(2)
    await poll(spread.publisher)
    await database.pass_time(28)
    async with Worker(spread.worker, kinds=["sums"], slots=1) as worker:
        await worker.report(failures=())
        lease = await worker.take()
        await worker.fail(lease)
        worker.session.drain()
        await database.pass_time(51)
        await poll(spread.publisher)
        assert (await spread.worker.tasks.get(ROOT, task_id)).task.status is TaskStatus.PENDING
        await database.pass_time(29)
        await poll(spread.publisher, spread.worker)
        assert (await spread.worker.tasks.get(ROOT, task_id)).task.status is TaskStatus.PENDING
        await database.pass_time(2)
        await poll(spread.publisher)
    view = await spread.worker.tasks.get(ROOT, task_id)
    assert (view.task.error_code, view.task.attempt) == ("SCHEDULE_TO_START_TIMEOUT", 1)


async def test_an_attempt_that_takes_too_long_is_ended(spread: Roles, database: Database) -> None:
    """Issue 2: start-to-close; the attempt is TIMED_OUT, the worker told, and the task tried again."""
    timeouts = Timeouts(start_to_close_us=seconds(60))
    async with Worker(spread.worker, kinds=["sums"]) as worker:
        task_id = await create(spread.publisher, timeouts=timeouts, retry=AT_ONCE)
        first = await worker.take()
        await worker.ack(first)
        await database.pass_time(59)
        await spread.worker.loops.renew()
        await poll(spread.publisher, spread.worker)
        assert worker.leases.empty()
        await database.pass_time(2)
        await spread.worker.loops.renew()
        await poll(spread.worker)
        told = await worker.told()
        assert (told.task_id, told.attempt, told.reason) == (task_id, 1, "LEASE_LOST")
        second = await worker.take()
        assert (second.attempt, second.tries) == (2, 2)
        refused = await worker.complete(first)
        assert refused.error is not None
        assert refused.error.code == "LEASE_LOST"
        assert (await worker.complete(second)).error is None
    assert await statuses(spread.publisher, task_id) == [AttemptStatus.TIMED_OUT, AttemptStatus.COMPLETED]
    attempt = (await spread.publisher.tasks.attempts(ROOT, task_id, 0, 1))[0][0]
    assert (attempt.error_code, "60 s" in attempt.error_message) == ("START_TO_CLOSE_TIMEOUT", True)
    await check_all(database)


async def test_a_worker_without_signs_of_life_loses_the_attempt(spread: Roles, database: Database) -> None:
    """Issue 2: heartbeat timeout, though the connection itself lives and is renewed."""
    timeouts = Timeouts(heartbeat_us=seconds(20))
    async with Worker(spread.worker, kinds=["sums"]) as worker:
        task_id = await create(spread.publisher, timeouts=timeouts, retry=AT_ONCE)
        lease = await worker.take()
        for _ in range(3):
            await database.pass_time(15)
            await poll(spread.worker)
            assert (await worker.beat(lease)).error is None
            await spread.worker.loops.renew()
        await database.pass_time(15)
        await poll(spread.worker)
        assert (await worker.progress(lease, 0.5)).error is None
        await database.pass_time(21)
        await spread.worker.loops.renew()
        await poll(spread.publisher)
        assert (await worker.take()).attempt == 2
        late = await worker.beat(lease)
        assert late.error is not None
        assert late.error.code == "LEASE_LOST"
    attempts, _ = await spread.publisher.tasks.attempts(ROOT, task_id, 0, 1)
    assert (attempts[0].status, attempts[0].error_code) == (AttemptStatus.TIMED_OUT, "HEARTBEAT_TIMEOUT")


async def test_timeouts_use_up_attempts(spread: Roles, database: Database) -> None:
    """Issue 2: after max_attempts a task that always times out has failed."""
    retry = RetryPolicy(initial_us=0, jitter=0, max_attempts=2)
    async with Worker(spread.worker, kinds=["sums"]) as worker:
        task_id = await create(spread.publisher, timeouts=Timeouts(start_to_close_us=seconds(60)), retry=retry)
        for _ in range(2):
            await worker.take()
            await database.pass_time(61)
            await poll(spread.worker)
    view = await spread.publisher.tasks.get(ROOT, task_id)
    assert (view.task.status, view.task.error_code) == (TaskStatus.FAILED, "START_TO_CLOSE_TIMEOUT")
    assert (await kinds_of(spread.publisher, view.task.run_id))[-2:] == ["TASK_FAILED", "RUN_FAILED"]


@pytest.mark.parametrize("tries", [1, 2, 3])
async def test_a_lease_tells_which_try_it_is(start: Start, tries: int) -> None:
    """Issue 2: the context's attempt counts what counts."""
    here, _ = await start()
    async with Worker(here, kinds=["sums"]) as worker:
        await create(here, retry=AT_ONCE)
        for _ in range(tries - 1):
            await worker.fail(await worker.take())
        assert (await worker.take()).tries == tries
