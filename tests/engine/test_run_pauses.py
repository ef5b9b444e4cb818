"""Pauses of runs, and their time: nothing new of a paused run starts, and none takes longer than it may."""

import pytest
from tests.engine.database import Database
from tests.engine.servers import Roles, Start, eventually, killed
from tests.engine.workers import Worker
from tests.engine.world import (
    FOREVER,
    ROOT,
    agent,
    check_all,
    data_of,
    events_of,
    key,
    kinds_of,
    made,
    principal,
    register,
    seconds,
    types,
)

from millstream.application.paging import PageRequest
from millstream.application.views.tasks import NewTask, TaskQuery
from millstream.domain.errors import Conflict, LeaseLost, NotFound, ValidationFailed
from millstream.domain.retry import RetryPolicy
from millstream.domain.runs import EventType, RunStatus, Task, TaskStatus
from millstream.wiring import Service

LATER = RetryPolicy(initial_us=seconds(60), jitter=0.0)
SUMS = NewTask("sums", timeouts=FOREVER)
LIMITED = NewTask("sums", retry=LATER, timeouts=FOREVER, run_timeout_us=seconds(100))
GRACE_S = 30


async def tasks_of(service: Service, run_id: str) -> dict[str, Task]:
    """A run's tasks by their agent, or kind."""
    page = await service.runs.tasks(ROOT, TaskQuery(run_id=run_id), PageRequest())
    return {task.agent or task.kind: task for task in page.items}


async def quiet(service: Service, worker: Worker) -> None:
    """Nothing is leased here, however the server looks for work."""
    await service.loops.poll()
    dispatcher = service.engine.dispatcher

    async def calm() -> bool:
        await service.engine.look_for_work()
        return not dispatcher.wanting() and not dispatcher.wanted.is_set() and not service.engine.queue.items

    await eventually(calm)
    assert worker.leases.empty()


# Pauses.


async def test_nothing_new_of_a_paused_run_starts_and_what_runs_ends(spread: Roles, database: Database) -> None:
    """FV-5: with a running, a waiting and a delayed task; what the running one sets off waits, too."""
    publisher, there = spread.publisher, spread.worker
    specs = (agent("runs", "Order", "Payment"), agent("ships", "Payment"), agent("delayed", "Order", retry=LATER))
    async with Worker(there, agents=specs, known=types("Order", "Payment"), slots=2) as worker:
        await register(publisher, (), agent("waits", "Order"))
        run_id = (await publisher.artifacts.publish(ROOT, made("Order"), None)).correlation_id
        leases = {lease.task.agent: lease for lease in await worker.take_many(2)}
        await worker.fail(leases["delayed"])
        paused, _ = await publisher.run_operations.pause(ROOT, run_id, "look", None)
        assert paused.paused_us > 0
        assert paused.status is RunStatus.RUNNING
        async with Worker(publisher, kinds=["agent:waits"]) as waiter:
            await worker.complete(leases["runs"], made("Payment"))
            await database.pass_time(61)
            await quiet(publisher, waiter)
            await quiet(there, worker)
            held = await tasks_of(there, run_id)
            assert {name: task.status for name, task in held.items()} == {
                "runs": TaskStatus.COMPLETED,
                "ships": TaskStatus.SCHEDULED,
                "delayed": TaskStatus.SCHEDULED,
                "waits": TaskStatus.SCHEDULED,
            }
            assert all(task.held_us for name, task in held.items() if name != "runs")
            await check_all(database)
            resumed, _ = await there.run_operations.resume(ROOT, run_id, None)
            assert resumed.paused_us == 0
            again = {lease.task.agent: lease for lease in await worker.take_many(2)}
            assert {name: lease.attempt for name, lease in again.items()} == {"ships": 1, "delayed": 2}
            for lease in again.values():
                await worker.complete(lease)
            await waiter.complete(await waiter.take())
    run = await publisher.runs.get(ROOT, run_id)
    assert run.status is RunStatus.COMPLETED
    kinds = [each for each in await events_of(publisher, run_id) if each.type in (31, 32)]
    assert [(each.type.name, data_of(each)) for each in kinds] == [
        ("RUN_PAUSED", {"reason": "look", "by": "root"}),
        ("RUN_RESUMED", {"by": "root"}),
    ]
    assert not any(task.held_us for task in (await tasks_of(publisher, run_id)).values())
    await check_all(database)


async def test_a_task_keeps_its_time_over_a_pause(spread: Roles, database: Database) -> None:
    """FV-5: one that is delayed longer than its run is paused starts at its time, not before."""
    created = (await spread.publisher.tasks.create(ROOT, NewTask("sums", delay_us=seconds(60)), None)).task
    await spread.worker.run_operations.pause(ROOT, created.run_id, "", None)
    async with Worker(spread.publisher, kinds=["sums"]) as worker:
        await spread.publisher.run_operations.resume(ROOT, created.run_id, None)
        await quiet(spread.publisher, worker)
        task = (await tasks_of(spread.worker, created.run_id))["sums"]
        assert (task.status, task.run_at_us, task.held_us) == (TaskStatus.SCHEDULED, created.run_at_us, 0)
        await database.pass_time(61)
        await spread.publisher.loops.poll()
        await worker.complete(await worker.take())
    await check_all(database)


async def test_what_is_paused_delays_nobody_else(spread: Roles) -> None:
    """FV-5: the tasks of other runs of the same kind are leased past it."""
    held = (await spread.publisher.tasks.create(ROOT, SUMS, None)).task
    await spread.publisher.run_operations.pause(ROOT, held.run_id, "", None)
    async with Worker(spread.worker, kinds=["sums"]) as worker:
        other = (await spread.publisher.tasks.create(ROOT, SUMS, None)).task
        assert (await worker.take()).task.id == other.id
        await quiet(spread.worker, worker)


async def test_pausing_and_resuming_twice_changes_nothing(spread: Roles) -> None:
    """FL-8; an ended run is CONFLICT, another tenant's NOT_FOUND."""
    operations = spread.publisher.run_operations
    run_id = (await spread.publisher.tasks.create(ROOT, SUMS, None)).task.run_id
    await operations.resume(ROOT, run_id, None)
    first, _ = await operations.pause(ROOT, run_id, "", key("k", "PauseRun"))
    again, replayed = await spread.worker.run_operations.pause(ROOT, run_id, "", key("k", "PauseRun"))
    assert (again.paused_us, replayed) == (first.paused_us, True)
    await spread.worker.run_operations.pause(ROOT, run_id, "once more", None)
    with pytest.raises(NotFound):
        await operations.pause(principal(tenant="other"), run_id, "", None)
    await operations.resume(ROOT, run_id, None)
    assert (await kinds_of(spread.publisher, run_id))[-2:] == ["RUN_PAUSED", "RUN_RESUMED"]
    await operations.pause(ROOT, run_id, "", None)
    cancelled, _ = await spread.worker.runs.cancel(ROOT, run_id, "", None)
    assert (cancelled.status, cancelled.paused_us) == (RunStatus.CANCELLED, 0)
    for refused in (operations.pause(ROOT, run_id, "", None), operations.resume(ROOT, run_id, None)):
        with pytest.raises(Conflict, match="CANCELLED"):
            await refused


async def test_a_pause_holds_when_its_server_is_killed(start: Start, database: Database) -> None:
    """FV-19: it stands in the database, so another server that finds the work holds to it."""
    here, there = await start()
    run_id = (await here.tasks.create(ROOT, SUMS, None)).task.run_id
    await here.run_operations.pause(ROOT, run_id, "", None)
    await killed(here)
    async with Worker(there, kinds=["sums"]) as worker:
        await quiet(there, worker)
        await there.run_operations.resume(ROOT, run_id, None)
        await worker.complete(await worker.take())
    await check_all(database)


async def test_what_an_older_server_made_ready_is_held_where_it_is_leased(start: Start, database: Database) -> None:
    """WM-7: a server of the version before knows no pauses; this one does not lease what that made ready."""
    here, _ = await start()
    created = (await here.tasks.create(ROOT, SUMS, None)).task
    await database.execute("UPDATE run SET paused_us = 1")
    here.engine.cache.clear()
    async with Worker(here, kinds=["sums"]) as worker:

        async def is_held() -> bool:
            await here.engine.look_for_work()
            return (await tasks_of(here, created.run_id))["sums"].held_us > 0

        await eventually(is_held)
        await quiet(here, worker)
        await here.run_operations.resume(ROOT, created.run_id, None)
        await worker.complete(await worker.take())
    await check_all(database)


# Time-outs.


async def test_a_run_that_takes_too_long_fails(spread: Roles, database: Database) -> None:
    """FV-19: while it waits between two attempts; its task is cancelled and never runs again."""
    async with Worker(spread.worker, kinds=["sums"]) as worker:
        created = (await spread.publisher.tasks.create(ROOT, LIMITED, None)).task
        await worker.fail(await worker.take())
        await database.pass_time(61)
        await spread.publisher.loops.poll()
        await worker.fail(await worker.take())
        await database.pass_time(40)
        await spread.worker.loops.poll()
        run = await spread.publisher.runs.get(ROOT, created.run_id)
        assert (run.status, run.error_code, run.deadline_us) == (RunStatus.FAILED, "RUN_TIMEOUT", 0)
        assert run.error_message == "the run took longer than 100 s"
        task = (await tasks_of(spread.worker, run.id))["sums"]
        assert (task.status, task.error_code) == (TaskStatus.CANCELLED, "RUN_TIMEOUT")
        assert (await kinds_of(spread.publisher, run.id))[-3:] == ["RUN_TIMED_OUT", "TASK_CANCELLED", "RUN_FAILED"]
        await database.pass_time(600)
        await quiet(spread.worker, worker)
    await check_all(database)


async def test_the_worker_of_a_run_that_takes_too_long_is_told_then_cut_off(start: Start, database: Database) -> None:
    """Rule 14: a grace, then force: it never hangs; a late result is refused."""
    here, there = await start(cancel_grace_s=GRACE_S)
    async with Worker(here, kinds=["sums"]) as worker:
        run_id = (await there.tasks.create(ROOT, LIMITED, None)).task.run_id
        lease = await worker.take()
        await worker.ack(lease)
        await database.pass_time(101)
        await there.loops.poll()
        assert (await worker.told()).reason == "CANCELLED"
        assert (await here.runs.get(ROOT, run_id)).status is RunStatus.CANCELLING
        await database.pass_time(GRACE_S + 1)
        await there.loops.poll()
        run = await here.runs.get(ROOT, run_id)
        assert (run.status, run.error_code) == (RunStatus.FAILED, "RUN_TIMEOUT")
        assert isinstance((await worker.complete(lease)).error, LeaseLost)
    await check_all(database)


async def test_what_is_done_in_the_grace_is_recorded_and_a_retry_does_it_again(
    start: Start, database: Database
) -> None:
    """Rule 14: nothing follows from it, so it says RUN_TIMEOUT; the retry has its whole time."""
    here, there = await start(cancel_grace_s=GRACE_S)
    async with Worker(here, kinds=["sums"]) as worker:
        run_id = (await there.tasks.create(ROOT, LIMITED, None)).task.run_id
        lease = await worker.take()
        await database.pass_time(101)
        await there.loops.poll()
        await worker.told()
        assert (await worker.complete(lease)).error is None
        task = (await tasks_of(there, run_id))["sums"]
        assert (task.status, task.error_code) == (TaskStatus.COMPLETED, "RUN_TIMEOUT")
        assert (await there.runs.get(ROOT, run_id)).status is RunStatus.FAILED
        run, _ = await there.run_operations.retry(ROOT, run_id, "", "", None)
        assert run.deadline_us == run.updated_us + seconds(100)
        await worker.complete(await worker.take())
    run = await here.runs.get(ROOT, run_id)
    assert (run.status, run.deadline_us, (await tasks_of(here, run_id))["sums"].error_code) == (
        RunStatus.COMPLETED, 0, "",
    )  # fmt: skip
    await database.pass_time(200)
    await there.loops.poll()
    assert (await here.runs.get(ROOT, run_id)).status is RunStatus.COMPLETED
    await check_all(database)


async def test_a_time_out_fires_when_its_server_is_killed(start: Start, database: Database) -> None:
    """FV-19: nothing stays RUNNING for ever."""
    here, there = await start()
    run_id = (await here.tasks.create(ROOT, LIMITED, None)).task.run_id
    await killed(here)
    await database.pass_time(101)
    await there.loops.poll()
    assert (await there.runs.get(ROOT, run_id)).error_code == "RUN_TIMEOUT"
    await check_all(database)


async def test_a_time_out_fires_by_itself(start: Start) -> None:
    """FV-19: by the timers, without anybody who looks."""
    here, _ = await start()
    new = NewTask("sums", timeouts=FOREVER, run_timeout_us=20_000)
    run_id = (await here.tasks.create(ROOT, new, None)).task.run_id

    async def ended() -> bool:
        return (await here.runs.get(ROOT, run_id)).status is RunStatus.FAILED

    await eventually(ended)


async def test_a_run_that_was_cancelled_does_not_time_out(start: Start, database: Database) -> None:
    """Rule 14: what somebody asked for first stands."""
    here, there = await start(cancel_grace_s=200)
    async with Worker(here, kinds=["sums"]) as worker:
        run_id = (await there.tasks.create(ROOT, LIMITED, None)).task.run_id
        await worker.take()
        await here.runs.cancel(ROOT, run_id, "enough", None)
        await database.pass_time(101)
        await there.loops.poll()
        await database.pass_time(100)
        await there.loops.poll()
    run = await here.runs.get(ROOT, run_id)
    assert (run.status, run.error_code, run.error_message) == (RunStatus.CANCELLED, "CANCELLED", "enough")
    assert EventType.RUN_TIMED_OUT not in {each.type for each in await events_of(here, run_id)}


async def test_a_paused_runs_time_goes_on(spread: Roles, database: Database) -> None:
    """FV-19: a pause that nobody ends does not keep it for ever."""
    run_id = (await spread.publisher.tasks.create(ROOT, LIMITED, None)).task.run_id
    await spread.publisher.run_operations.pause(ROOT, run_id, "", None)
    await database.pass_time(101)
    await spread.worker.loops.poll()
    run = await spread.publisher.runs.get(ROOT, run_id)
    assert (run.status, run.paused_us) == (RunStatus.FAILED, 0)
    await check_all(database)


async def test_a_time_that_is_over_before_it_begins_is_refused(start: Start) -> None:
    """FL-10"""
    here, _ = await start()
    with pytest.raises(ValidationFailed, match="run_timeout"):
        await here.tasks.create(ROOT, NewTask("sums", delay_us=seconds(60), run_timeout_us=seconds(60)), None)
