"""Cancellation: nothing new starts, workers are told, and a timer forces the end."""

import pytest
from tests.engine.database import Database
from tests.engine.servers import Roles, Start
from tests.engine.workers import Worker, ref
from tests.engine.world import (
    AT_ONCE,
    CHAIN,
    CHAIN_AGENTS,
    FOREVER,
    ROOT,
    agent,
    check_all,
    data_of,
    events_of,
    kinds_of,
    made,
    order,
    register,
    seconds,
    types,
)

from millstream.application.ids import new_id
from millstream.application.paging import PageRequest
from millstream.application.views.tasks import NewTask, TaskQuery
from millstream.domain.errors import Conflict, NotFound
from millstream.domain.retry import RetryPolicy
from millstream.domain.runs import AttemptStatus, EventType, RunStatus, TaskStatus
from millstream.wiring import Service

SUMS = NewTask("sums", retry=AT_ONCE, timeouts=FOREVER)
GRACE_S = 30


async def create(service: Service, new: NewTask = SUMS) -> str:
    """Create a task; its id."""
    return (await service.tasks.create(ROOT, new, None)).task.id


async def task_of(service: Service, task_id: str) -> tuple[TaskStatus, str]:
    """A task's status and error."""
    task = (await service.tasks.get(ROOT, task_id)).task
    return task.status, task.error_code


async def graces_pass(database: Database, *services: Service) -> None:
    """The grace of a cancellation passes, and the servers look."""
    await database.pass_time(GRACE_S + 1)
    for service in services:
        await service.loops.poll()


@pytest.mark.parametrize("new", [SUMS, NewTask("sums", delay_us=seconds(60))])
async def test_a_task_that_waits_ends_at_once(spread: Roles, database: Database, new: NewTask) -> None:
    """FV-5, rule 14: pending or scheduled; it is never leased, and its run has ended with it."""
    task_id = await create(spread.publisher, new)
    view = await spread.worker.tasks.cancel(ROOT, task_id, "no more", None)
    assert view.task.status is TaskStatus.CANCELLED
    run = await spread.publisher.runs.get(ROOT, view.task.run_id)
    assert (run.status, run.error_code) == (RunStatus.CANCELLED, "CANCELLED")
    await database.pass_time(61)
    await spread.publisher.loops.poll()
    async with Worker(spread.publisher, kinds=["sums"]) as worker:
        other = await create(spread.publisher)
        assert (await worker.take()).task.id == other
    await check_all(database)


async def test_the_worker_of_a_running_task_is_told(spread: Roles) -> None:
    """Rule 14: on whichever server it is connected; what it then reports ends the task."""
    async with Worker(spread.worker, kinds=["sums"]) as worker:
        task_id = await create(spread.publisher)
        lease = await worker.take()
        view = await spread.publisher.tasks.cancel(ROOT, task_id, "no more", None)
        assert (view.task.status, view.task.cancelling) == (TaskStatus.RUNNING, True)
        told = await worker.told()
        assert (told.task_id, told.attempt, told.reason) == (task_id, 1, "CANCELLED")
        await worker.fail(lease, "STOPPED")
    ended = (await spread.publisher.tasks.get(ROOT, task_id)).task
    assert (ended.status, ended.error_code, ended.error_message) == (TaskStatus.CANCELLED, "CANCELLED", "no more")
    attempts, _ = await spread.publisher.tasks.attempts(ROOT, task_id, 0, 10)
    assert [(item.status, item.error_code) for item in attempts] == [(AttemptStatus.FAILED, "STOPPED")]
    run = await spread.publisher.runs.get(ROOT, view.task.run_id)
    assert (run.status, run.error_message) == (RunStatus.CANCELLED, "no more")
    asked = [item for item in await events_of(spread.worker, run.id) if item.type is EventType.TASK_CANCELLING]
    assert [(item.task_id, item.attempt, data_of(item)) for item in asked] == [
        (task_id, 1, {"reason": "no more", "by": "root"})
    ]


async def test_a_second_cancellation_changes_nothing(spread: Roles) -> None:
    """Rule 14: while the task or run is being cancelled; afterwards it is CONFLICT."""
    async with Worker(spread.worker, kinds=["sums"]) as worker:
        task_id = await create(spread.publisher)
        lease = await worker.take()
        first = (await spread.publisher.tasks.cancel(ROOT, task_id, "", None)).task
        again = (await spread.worker.tasks.cancel(ROOT, task_id, "", None)).task
        assert again.deadline_us == first.deadline_us
        await spread.worker.runs.cancel(ROOT, first.run_id, "", None)
        assert (await spread.publisher.runs.cancel(ROOT, first.run_id, "", None))[0].status is RunStatus.CANCELLING
        await worker.fail(lease)
    with pytest.raises(Conflict):
        await spread.worker.tasks.cancel(ROOT, task_id, "", None)
    with pytest.raises(Conflict):
        await spread.publisher.runs.cancel(ROOT, first.run_id, "", None)
    kinds = await kinds_of(spread.publisher, first.run_id)
    assert (kinds.count("RUN_CANCELLING"), kinds.count("TASK_CANCELLING")) == (1, 1)


async def test_a_worker_that_does_not_listen_is_cut_off(start: Start, database: Database, owner_path: bool) -> None:
    """Rule 14: after the grace the reaper forces the end; its attempt is CANCELLED, its late result refused."""
    here, there = await start(owner_path=owner_path, cancel_grace_s=GRACE_S)
    async with Worker(here, kinds=["sums"]) as worker:
        task_id = await create(here)
        lease = await worker.take()
        await worker.ack(lease)
        await there.tasks.cancel(ROOT, task_id, "no more", None)
        await worker.told()
        await database.pass_time(GRACE_S - 2)
        await here.loops.renew()
        await there.loops.poll()
        assert (await task_of(here, task_id))[0] is TaskStatus.RUNNING
        await graces_pass(database, here)
        assert await task_of(there, task_id) == (TaskStatus.CANCELLED, "CANCELLED")
        told = await worker.told()
        assert told.reason == "LEASE_LOST"
        late = await worker.complete(lease)
        assert late.error is not None
        assert late.error.code == "LEASE_LOST"
    attempts, _ = await here.tasks.attempts(ROOT, task_id, 0, 10)
    assert [item.status for item in attempts] == [AttemptStatus.CANCELLED]
    await check_all(database)


async def test_a_completion_within_the_grace_counts(spread: Roles) -> None:
    """Rule 14: the worker was quicker."""
    async with Worker(spread.worker, kinds=["sums"]) as worker:
        task_id = await create(spread.publisher)
        lease = await worker.take()
        await spread.publisher.tasks.cancel(ROOT, task_id, "", None)
        assert (await worker.complete(lease)).error is None
    assert await task_of(spread.publisher, task_id) == (TaskStatus.COMPLETED, "")


async def test_cancelling_a_run_ends_what_waits_and_tells_what_runs(spread: Roles, database: Database) -> None:
    """Rule 14: waiting and scheduled tasks end in the transaction of the cancellation, running ones are told."""
    agents = [
        agent("runs", "Order", retry=RetryPolicy(initial_us=seconds(60))),
        agent("retries", "Order", retry=RetryPolicy(initial_us=seconds(60))),
        agent("waits", "Order"),
    ]
    await register(spread.publisher, ("Order",), *agents)
    async with Worker(spread.worker, kinds=["agent:runs", "agent:retries"]) as worker:
        published = await spread.publisher.artifacts.publish(ROOT, order(), None)
        leases = {lease.task.agent: lease for lease in await worker.take_many(2)}
        await worker.fail(leases["retries"])
        run, _ = await spread.publisher.runs.cancel(ROOT, published.correlation_id, "no more", None)
        assert (run.status, run.open_tasks) == (RunStatus.CANCELLING, 1)
        told = await worker.told()
        assert (told.task_id, told.reason) == (leases["runs"].task.id, "CANCELLED")
        assert worker.cancellations.empty()
        page = await spread.worker.runs.tasks(ROOT, TaskQuery(run_id=run.id), PageRequest())
        assert {task.agent: task.status.name for task in page.items} == {
            "runs": "RUNNING", "retries": "CANCELLED", "waits": "CANCELLED",
        }  # fmt: skip
        await worker.fail(leases["runs"])
    run = await spread.publisher.runs.get(ROOT, run.id)
    assert (run.status, run.error_code, run.error_message) == (RunStatus.CANCELLED, "CANCELLED", "no more")
    events = await events_of(spread.publisher, run.id)
    cancelling = next(event for event in events if event.type is EventType.RUN_CANCELLING)
    assert data_of(cancelling) == {"reason": "no more", "by": "root"}
    assert events[-1].type is EventType.RUN_CANCELLED
    await check_all(database)


async def test_a_run_without_running_tasks_is_cancelled_at_once(spread: Roles) -> None:
    """Rule 14: nothing to wait for."""
    await register(spread.publisher, ("Order",), agent("waits", "Order"))
    published = await spread.publisher.artifacts.publish(ROOT, order(), None)
    run, _ = await spread.worker.runs.cancel(ROOT, published.correlation_id, "", None)
    assert run.status is RunStatus.CANCELLED


async def test_what_completes_in_the_grace_is_recorded_but_not_planned(spread: Roles, database: Database) -> None:
    """Rule 14: no artifact is published, no agent activated."""
    async with Worker(spread.worker, agents=CHAIN_AGENTS, known=types(*CHAIN)) as worker:
        published = await spread.publisher.artifacts.publish(ROOT, order(), None)
        lease = await worker.take()
        await spread.publisher.runs.cancel(ROOT, published.correlation_id, "", None)
        assert (await worker.complete(lease, made("Payment"))).error is None
    assert await task_of(spread.publisher, lease.task.id) == (TaskStatus.COMPLETED, "")
    run = await spread.publisher.runs.get(ROOT, published.correlation_id)
    assert (run.status, run.artifact_count, run.task_count) == (RunStatus.CANCELLED, 1, 1)
    await check_all(database)


async def test_a_run_that_hangs_is_ended_after_the_grace(start: Start, database: Database, owner_path: bool) -> None:
    """Rule 14: by any server."""
    here, there = await start(owner_path=owner_path, cancel_grace_s=GRACE_S)
    async with Worker(here, agents=CHAIN_AGENTS, known=types(*CHAIN)) as worker:
        published = await here.artifacts.publish(ROOT, order(), None)
        lease = await worker.take()
        await here.runs.cancel(ROOT, published.correlation_id, "no more", None)
        assert (await worker.told()).reason == "CANCELLED"
        await graces_pass(database, there)
        run = await here.runs.get(ROOT, published.correlation_id)
        assert (run.status, run.open_tasks, run.cancel_by_us) == (RunStatus.CANCELLED, 0, 0)
        assert (await worker.told()).reason == "LEASE_LOST"
        late = await worker.complete(lease, made("Payment"))
        assert late.error is not None
    attempts, _ = await here.tasks.attempts(ROOT, lease.task.id, 0, 10)
    assert [item.status for item in attempts] == [AttemptStatus.CANCELLED]
    await check_all(database)


async def test_a_cancelled_cascade_takes_no_more_artifacts(spread: Roles) -> None:
    """Rule 14: neither while it is being cancelled nor afterwards, on any server."""
    async with Worker(spread.worker, agents=CHAIN_AGENTS, known=types(*CHAIN)) as worker:
        published = await spread.publisher.artifacts.publish(ROOT, order(), None)
        again = order(correlation_id=published.correlation_id)
        lease = await worker.take()
        await spread.publisher.runs.cancel(ROOT, published.correlation_id, "", None)
        for service in (spread.publisher, spread.worker):
            with pytest.raises(Conflict):
                await service.artifacts.publish(ROOT, again, None)
        await worker.fail(lease)
        for service in (spread.publisher, spread.worker):
            with pytest.raises(Conflict):
                await service.artifacts.publish_sync(ROOT, again, None, 5)


async def test_a_failure_in_the_grace_is_not_tried_again(spread: Roles) -> None:
    """Rule 14: nor is a released or lost lease."""
    for how in ("fail", "release", "restart"):
        worker_id = new_id()
        worker = await Worker(spread.worker, kinds=["sums"], worker_id=worker_id).open()
        task_id = await create(spread.publisher)
        lease = await worker.take()
        await spread.publisher.tasks.cancel(ROOT, task_id, "", None)
        if how == "restart":
            await worker.close()
            worker = await Worker(spread.publisher, kinds=["sums"], worker_id=worker_id).open()
        else:
            await (worker.fail(lease) if how == "fail" else worker.release(lease))
        assert (await task_of(spread.publisher, task_id))[0] is TaskStatus.CANCELLED, how
        await worker.close()


async def test_a_worker_that_was_away_is_told_when_it_comes_back(spread: Roles) -> None:
    """Rules 7, 14: the cancellation was asked for between its connections."""
    worker_id = new_id()
    first = await Worker(spread.publisher, kinds=["sums"], worker_id=worker_id).open()
    task_id = await create(spread.publisher)
    lease = await first.take()
    await first.ack(lease)
    first.service.engine.disconnect(first.session._session)
    await spread.worker.tasks.cancel(ROOT, task_id, "", None)
    async with Worker(spread.worker, kinds=["sums"], worker_id=worker_id, held=[ref(lease)]) as second:
        told = await second.told()
        assert (told.task_id, told.attempt, told.reason) == (task_id, 1, "CANCELLED")


async def test_cancelling_one_task_lets_its_cascade_go_on(spread: Roles, database: Database) -> None:
    """FV-5: a cancelled task is no failure."""
    await register(spread.publisher, ("Order",), agent("one", "Order"), agent("two", "Order"))
    published = await spread.publisher.artifacts.publish(ROOT, order(), None)
    page = await spread.publisher.tasks.list(ROOT, TaskQuery(kind="agent:one"), PageRequest())
    await spread.worker.tasks.cancel(ROOT, page.items[0].id, "", None)
    async with Worker(spread.worker, kinds=["agent:two"]) as worker:
        await worker.complete(await worker.take())
    run = await spread.publisher.runs.get(ROOT, published.correlation_id)
    assert (run.status, run.failed_tasks) == (RunStatus.COMPLETED, 0)
    await check_all(database)


async def test_a_cancelled_agents_artifacts_are_not_published(spread: Roles, database: Database) -> None:
    """Rule 14: what completes in the grace is recorded, and sets nothing off, where one task is cancelled too."""
    await register(spread.publisher, ("Order", "Payment"), agent("one", "Order"), agent("two", "Payment"))
    async with Worker(spread.worker, kinds=["agent:one", "agent:two"]) as worker:
        published = await spread.publisher.artifacts.publish(ROOT, order(), None)
        lease = await worker.take()
        await spread.publisher.tasks.cancel(ROOT, lease.task.id, "no more", None)
        assert (await worker.complete(lease, made("Payment"))).error is None
    run = await spread.publisher.runs.get(ROOT, published.correlation_id)
    assert (run.status, run.task_count, run.artifact_count) == (RunStatus.COMPLETED, 1, 1)
    await check_all(database)


async def test_what_is_not_there_cannot_be_cancelled(start: Start) -> None:
    """FL-10: NOT_FOUND."""
    here, _ = await start()
    with pytest.raises(NotFound):
        await here.runs.cancel(ROOT, new_id(), "", None)
    with pytest.raises(NotFound):
        await here.tasks.cancel(ROOT, new_id(), "", None)
