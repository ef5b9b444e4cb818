"""Leases: fenced by their attempt, lost with their worker, taken over after a reconnect."""

import asyncio

import pytest
from tests.engine.database import Database
from tests.engine.servers import Roles, Start, eventually, killed
from tests.engine.workers import Worker, done, failed, ref
from tests.engine.world import (
    AT_ONCE,
    CHAIN,
    CHAIN_AGENTS,
    FOREVER,
    ROOT,
    check_all,
    kinds_of,
    made,
    order,
    seconds,
    types,
)

from millstream.application.ids import new_id
from millstream.application.views.leases import LeaseRef
from millstream.application.views.reports import Reports
from millstream.application.views.tasks import NewTask
from millstream.domain.retry import RetryPolicy
from millstream.domain.runs import AttemptStatus, TaskStatus
from millstream.wiring import Service

SUMS = NewTask("sums", retry=AT_ONCE, timeouts=FOREVER)


async def create(service: Service, new: NewTask = SUMS) -> str:
    """Create a task; its id."""
    return (await service.tasks.create(ROOT, new, None)).task.id


async def statuses(service: Service, task_id: str) -> list[AttemptStatus]:
    """Of a task's attempts."""
    return [item.status for item in (await service.tasks.attempts(ROOT, task_id, 0, 100))[0]]


async def lease_runs_out(database: Database, *services: Service) -> None:
    """An hour passes, which is what a lease holds here, without a renewal; then the servers look."""
    await database.pass_time(3601)
    for service in services:
        await service.loops.poll()


async def test_a_worker_that_goes_loses_its_tasks_to_another(roles: Roles, database: Database) -> None:
    """FV-19, rule 7: the attempt is LOST and counts, since its lease had arrived; another worker does the task."""
    worker = await Worker(roles.worker, kinds=["sums"]).open()
    task_id = await create(roles.publisher)
    lease = await worker.take()
    await worker.ack(lease)
    await worker.close()
    async with Worker(roles.publisher, kinds=["sums"]) as other:
        await roles.publisher.loops.poll()
        again = await other.take()
        assert (again.task.id, again.attempt, again.tries) == (task_id, 2, 2)
        await other.complete(again)
    assert await statuses(roles.publisher, task_id) == [AttemptStatus.LOST, AttemptStatus.COMPLETED]
    attempt = (await roles.publisher.tasks.attempts(ROOT, task_id, 0, 1))[0][0]
    assert attempt.error_code == "WORKER_LOST"
    await check_all(database)


async def test_a_lease_that_never_arrived_burns_no_attempt(roles: Roles) -> None:
    """Rule 7: the attempt counts from the delivery ack; the fence grows all the same (rule 9)."""
    worker = await Worker(roles.worker, kinds=["sums"]).open()
    task_id = await create(roles.publisher)
    await worker.take()
    await worker.close()
    async with Worker(roles.publisher, kinds=["sums"]) as other:
        await roles.publisher.loops.poll()
        again = await other.take()
        assert (again.attempt, again.tries) == (2, 1)
        await other.complete(again)
    assert await statuses(roles.publisher, task_id) == [AttemptStatus.COMPLETED]
    view = await roles.publisher.tasks.get(ROOT, task_id)
    assert (view.task.attempt, view.task.tries) == (2, 1)
    assert "TASK_RELEASED" in await kinds_of(roles.publisher, view.task.run_id)


async def test_a_task_that_kills_its_workers_ends(roles: Roles) -> None:
    """FV-19: nothing goes on for ever: after max_attempts lost workers the task has failed."""
    task_id = await create(roles.publisher, NewTask("sums", retry=RetryPolicy(initial_us=0, max_attempts=2)))
    for _ in range(2):
        worker = await Worker(roles.worker, kinds=["sums"]).open()
        await worker.ack(await worker.take())
        await worker.close()
        await roles.worker.loops.poll()
    view = await roles.publisher.tasks.get(ROOT, task_id)
    assert (view.task.status, view.task.error_code) == (TaskStatus.FAILED, "WORKER_LOST")


async def test_a_server_that_dies_loses_its_leases(start: Start, database: Database) -> None:
    """FV-19, invariant: a lease that is not renewed is reclaimed by any server."""
    here, there = await start()
    worker = await Worker(there, kinds=["sums"]).open()
    task_id = await create(here)
    await worker.ack(await worker.take())
    await there.loops.renew()
    await killed(there)
    async with Worker(here, kinds=["sums"]) as other:
        await database.pass_time(3000)
        await here.loops.poll()
        assert other.leases.empty()
        await lease_runs_out(database, here)
        assert (await other.take()).task.id == task_id
    assert (await statuses(here, task_id))[0] is AttemptStatus.LOST


async def test_renewals_keep_the_leases_of_a_connected_worker(roles: Roles, database: Database) -> None:
    """FV-19: as long as its server lives, a task may take its time; the worker need not do anything."""
    async with Worker(roles.worker, kinds=["sums"]) as worker:
        await create(roles.publisher, SUMS)
        lease = await worker.take()
        for _ in range(4):
            await database.pass_time(2000)
            await roles.worker.loops.poll()
            await roles.worker.loops.renew()
        await roles.publisher.loops.poll()
        assert (await worker.complete(lease)).error is None
        assert worker.cancellations.empty()


async def test_a_late_result_is_refused_and_never_applied(roles: Roles, database: Database) -> None:
    """Rule 9, invariant: fenced by (task, attempt): while another attempt runs, and after it has ended."""
    async with Worker(roles.worker, agents=CHAIN_AGENTS[:1], known=types(*CHAIN)) as worker:
        published = await roles.publisher.artifacts.publish(ROOT, order(), None)
        first = await worker.take()
        await worker.ack(first)
        await roles.worker.loops.renew()
        await lease_runs_out(database, roles.publisher, roles.worker)
        second = await worker.take()
        assert second.attempt == 2

        async def late() -> None:
            for service in (roles.worker, roles.publisher):
                answers = await service.workers.report(
                    ROOT,
                    Reports(
                        completions=(done(first, made("Payment")),),
                        failures=(failed(first),),
                        released=(ref(first),),
                        heartbeats=(ref(first),),
                    ),
                )
                assert [answer.error.code for answer in answers if answer.error] == ["LEASE_LOST"] * 4

        await late()
        await worker.complete(second, made("Payment"))
        await late()
    run = await roles.publisher.runs.get(ROOT, published.correlation_id)
    assert (run.artifact_count, run.failed_tasks) == (2, 0)
    assert await statuses(roles.publisher, first.task.id) == [AttemptStatus.LOST, AttemptStatus.COMPLETED]
    await check_all(database)


async def test_completing_twice_is_once(roles: Roles, database: Database) -> None:
    """Rule 11, invariant: the second completion of an attempt answers as the first, on any server."""
    async with Worker(roles.worker, agents=CHAIN_AGENTS[:1], known=types(*CHAIN)) as worker:
        published = await roles.publisher.artifacts.publish(ROOT, order(), None)
        lease = await worker.take()
        for service in (roles.worker, roles.publisher, roles.worker):
            answers = await service.workers.report(ROOT, Reports(completions=(done(lease, made("Payment")),)))
            assert [answer.error for answer in answers] == [None]
    run = await roles.publisher.runs.get(ROOT, published.correlation_id)
    assert run.artifact_count == 2
    await check_all(database)


async def test_duplicates_in_one_message_count_once(roles: Roles, database: Database) -> None:
    """Rule 11: the same completion several times in a batch."""
    async with Worker(roles.worker, agents=CHAIN_AGENTS[:1], known=types(*CHAIN)) as worker:
        published = await roles.publisher.artifacts.publish(ROOT, order(), None)
        lease = await worker.take()
        answers = await worker.report(completions=(done(lease, made("Payment")),) * 3, failures=(failed(lease),))
        assert [answer.error is None for answer in answers] == [True, True, True, False]
    assert (await roles.publisher.runs.get(ROOT, published.correlation_id)).artifact_count == 2
    await check_all(database)


async def test_a_released_lease_goes_to_another_worker(roles: Roles) -> None:
    """Contract: given back unstarted it burns no attempt."""
    async with Worker(roles.worker, kinds=["sums"], slots=1) as one:
        task_id = await create(roles.publisher)
        lease = await one.take()
        async with Worker(roles.publisher, kinds=["sums"]) as two:
            one.session.drain()
            assert (await one.report(released=(ref(lease),)))[0].error is None
            again = await two.take()
            assert (again.task.id, again.attempt, again.tries) == (task_id, 2, 1)


@pytest.mark.parametrize("where", ["same server", "other server"])
async def test_a_worker_that_comes_back_keeps_what_it_holds(start: Start, database: Database, where: str) -> None:
    """Rule 7: on hello it lists its leases, which are its own still, on whichever server; the rest is released."""
    here, there = await start(reconnect_grace_s=60.0)
    worker_id = new_id()
    first = await Worker(here, kinds=["sums"], worker_id=worker_id).open()
    await create(here)
    await create(here)
    held, forgotten = await first.take_many(2)
    await first.close()
    back = here if where == "same server" else there
    async with Worker(back, kinds=["sums"], worker_id=worker_id, held=[ref(held), LeaseRef(new_id(), 1)]) as second:
        assert second.session.held == (ref(held),)
        again = await second.take()
        assert (again.task.id, again.attempt, again.tries) == (forgotten.task.id, 2, 1)
        await second.ack(again)
        await database.pass_time(3000)
        await back.loops.poll()
        await back.loops.renew()
        await database.pass_time(3000)
        for service in (here, there):
            await service.loops.poll()
        assert (await second.complete(held)).error is None
    assert await statuses(there, held.task.id) == [AttemptStatus.COMPLETED]


async def test_a_former_connection_that_ends_late_takes_nothing_away(start: Start) -> None:
    """Rule 7: the worker connected again before its old connection was found dead."""
    here, _ = await start()
    worker_id = new_id()
    first = await Worker(here, kinds=["sums"], worker_id=worker_id).open()
    await create(here)
    lease = await first.take()
    async with Worker(here, kinds=["sums"], worker_id=worker_id, held=[ref(lease)]) as second:
        await first.close()
        await here.loops.poll()
        await here.loops.renew()
        assert second.cancellations.empty()
        assert (await second.complete(lease)).error is None


async def test_a_lease_that_was_lost_meanwhile_is_not_kept(roles: Roles, database: Database) -> None:
    """Rule 7: the welcome names what is still the worker's; a later report is refused."""
    worker_id = new_id()
    first = await Worker(roles.publisher, kinds=["sums"], worker_id=worker_id).open()
    await create(roles.publisher)
    lease = await first.take()
    await first.ack(lease)
    await first.close()
    await lease_runs_out(database, roles.worker)
    async with Worker(roles.worker, kinds=["sums"], worker_id=worker_id, held=[ref(lease)]) as second:
        assert second.session.held == ()
        assert (await second.take()).attempt == 2
        told = await second.complete(lease)
        assert told.error is not None
        assert told.error.code == "LEASE_LOST"


async def test_a_worker_that_restarted_burns_the_attempts_that_had_arrived(roles: Roles) -> None:
    """Rule 7: what it had received and holds no more is lost, and counts; what never arrived does not."""
    worker_id = new_id()
    retry = RetryPolicy(initial_us=0, jitter=0, max_attempts=2)
    first = await Worker(roles.publisher, kinds=["sums"], worker_id=worker_id).open()
    arrived_id = await create(roles.publisher, NewTask("sums", retry=retry))
    await first.ack(await first.take())
    not_arrived_id = await create(roles.publisher, NewTask("sums", retry=retry))
    await first.take()
    await first.close()
    async with Worker(roles.worker, kinds=["sums"], worker_id=worker_id) as second:
        leases = {lease.task.id: lease for lease in await second.take_many(2)}
        assert (leases[arrived_id].attempt, leases[arrived_id].tries) == (2, 2)
        assert (leases[not_arrived_id].attempt, leases[not_arrived_id].tries) == (2, 1)


async def test_another_workers_leases_are_not_taken_over(roles: Roles) -> None:
    """Rule 7: whoever names a lease that is not its own does not get it."""
    async with Worker(roles.publisher, kinds=["sums"]) as owner:
        await create(roles.publisher)
        lease = await owner.take()
        async with Worker(roles.worker, kinds=["sums"], held=[ref(lease)]) as thief:
            assert thief.session.held == ()
        assert (await owner.complete(lease)).error is None


async def test_a_lease_handed_on_is_its_former_workers_no_more(start: Start, database: Database) -> None:
    """Rule 7: when the former worker goes, the task's present lease is not cut short with it."""
    here, _ = await start()
    one = await Worker(here, kinds=["sums"], slots=1).open()
    two = await Worker(here, kinds=["sums"], slots=1).open()
    await create(here)
    lease = await one.take()
    await one.session.report(Reports(failures=(failed(lease),), delivered=(ref(lease),)))
    again = await two.take()
    await one.close()
    await here.loops.poll()
    assert (await two.complete(again)).error is None
    await two.close()


async def test_a_second_try_by_the_same_worker_counts_from_its_own_delivery(start: Start) -> None:
    """Rule 7: the ack of the first try is not the ack of the second."""
    here, there = await start()
    worker = await Worker(here, kinds=["sums"]).open()
    task_id = await create(here)
    lease = await worker.take()
    await worker.ack(lease)
    await worker.fail(lease)
    await worker.take()
    await worker.close()
    await there.loops.poll()
    view = await there.tasks.get(ROOT, task_id)
    assert (view.task.attempt, view.task.tries) == (2, 1)


async def test_a_lease_that_reaches_nobody_is_given_back_at_once(start: Start, database: Database) -> None:
    """Rule 7: the worker went while its lease was being committed."""
    here, there = await start()
    one = await Worker(here, kinds=["sums"]).open()
    async with database.other() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("LOCK TABLE task IN SHARE MODE")
        creating = asyncio.create_task(create(here))
        await _blocked(database)
        await one.close()
        async with Worker(there, kinds=["sums"]) as two:
            await transaction.rollback()
            task_id = await creating
            lease = await two.take()
            assert (lease.task.id, lease.attempt, lease.tries) == (task_id, 2, 1)


async def _blocked(database: Database) -> None:
    async def waits() -> bool:
        return bool(await database.value("SELECT count(*) FROM pg_locks WHERE NOT granted"))

    await eventually(waits, "that a statement waits for a lock")


async def test_outputs_and_artifacts_of_a_lost_attempt_are_not_kept(roles: Roles, database: Database) -> None:
    """Invariant: exactly-once effect on state."""
    async with Worker(roles.worker, agents=CHAIN_AGENTS[:1], known=types(*CHAIN)) as worker:
        published = await roles.publisher.artifacts.publish(ROOT, order(), None)
        await worker.ack(await worker.take())
        await lease_runs_out(database, roles.publisher)
        await worker.complete(await worker.take(), made("Payment", attempt=2))
    rows = await database.rows("SELECT type, seq FROM artifact WHERE run_id = $1::text::uuid", published.correlation_id)
    assert len(rows) == 2


async def test_an_answered_poll_is_the_delivery(roles: Roles, database: Database) -> None:
    """Contract of Poll: a simple worker that is lost burns the attempt, so no task kills its workers for ever."""
    task_id = await create(roles.publisher)
    (lease,) = await roles.worker.workers.poll(ROOT, "w", "poller", ["sums"], [], 1, 5)
    await lease_runs_out(database, roles.publisher)
    (again,) = await roles.worker.workers.poll(ROOT, "w", "poller", ["sums"], [], 1, 5)
    assert (lease.tries, again.tries) == (1, 2)
    assert (await statuses(roles.publisher, task_id))[0] is AttemptStatus.LOST


async def test_a_heartbeat_tells_that_a_cancellation_was_asked_for(roles: Roles) -> None:
    """Rule 14, for workers without a connection."""
    task_id = await create(roles.publisher)
    (lease,) = await roles.worker.workers.poll(ROOT, "w", "poller", ["sums"], [], 1, 5)
    beats = Reports(heartbeats=(ref(lease),))
    assert not (await roles.worker.workers.report(ROOT, beats))[0].cancel_requested
    await roles.publisher.tasks.cancel(ROOT, task_id, "", None)
    assert (await roles.worker.workers.report(ROOT, beats))[0].cancel_requested


async def test_a_heartbeat_of_a_simple_worker_keeps_its_lease(roles: Roles, database: Database) -> None:
    """FV-19: no connection renews it; its own signs of life do, through any server."""
    await create(roles.publisher, SUMS)
    (lease,) = await roles.worker.workers.poll(ROOT, "w", "poller", ["sums"], [], 1, 5)
    for service in (roles.publisher, roles.worker):
        await database.pass_time(3000)
        await service.loops.poll()
        assert (await service.workers.report(ROOT, Reports(heartbeats=(ref(lease),))))[0].error is None
    await lease_runs_out(database, roles.publisher)
    (answer,) = await roles.worker.workers.report(ROOT, Reports(heartbeats=(ref(lease),)))
    assert answer.error is not None
    assert answer.error.code == "LEASE_LOST"


async def test_a_draining_server_sends_its_workers_elsewhere(start: Start) -> None:
    """FV-19: they are told, get no more work here, and finish what they have."""
    here, there = await start()
    async with Worker(here, kinds=["sums"]) as worker:
        await create(here)
        lease = await worker.take()
        here.workers.drain()
        await asyncio.wait_for(worker.drained.wait(), 5)
        with pytest.raises(Exception, match="connect again"):
            await Worker(here, kinds=["sums"]).open()
        await create(here)
        async with Worker(there, kinds=["sums"]) as other:
            await other.take()
        assert (await worker.complete(lease)).error is None
        assert len(worker.seen) == 1


async def test_the_lease_is_as_long_as_configured(start: Start) -> None:
    """FV-19: lease_s in the welcome and in the row."""
    here, _ = await start(lease_s=7)
    async with Worker(here, kinds=["sums"]) as worker:
        await create(here)
        lease = await worker.take()
        assert worker.session.lease_s == 7
        assert lease.task.lease_until_us - lease.task.started_us == seconds(7)
