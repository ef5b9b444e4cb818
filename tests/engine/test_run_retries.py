"""Retrying runs by hand, and repeating them: what is done stays, what failed begins again."""

import asyncio

import pytest
from tests.engine.database import Database
from tests.engine.servers import Roles, Start, killed
from tests.engine.workers import Handler, Worker, failed, publishing
from tests.engine.world import (
    FOREVER,
    ROOT,
    agent,
    blind,
    check_all,
    data_of,
    events_of,
    key,
    kinds_of,
    made,
    payload_of,
    principal,
    register,
    seconds,
    types,
)

from millstream.application.ids import new_id
from millstream.application.paging import PageRequest
from millstream.application.views.artifacts import ArtifactQuery
from millstream.application.views.leases import Lease
from millstream.application.views.reports import AttemptFailure, Completion
from millstream.application.views.runs import ManyRuns, RunQuery
from millstream.application.views.tasks import NewTask, TaskQuery
from millstream.domain.artifacts import Visibility
from millstream.domain.errors import Conflict, MillstreamError, NotFound, ValidationFailed
from millstream.domain.retry import RetryPolicy
from millstream.domain.runs import AttemptStatus, EventType, RunStatus, Task, TaskStatus
from millstream.domain.struct_wire import encode_value
from millstream.wiring import Service

ONCE = RetryPolicy(initial_us=0, jitter=0.0, max_attempts=1)
SUMS = NewTask("sums", encode_value({"n": 1}), retry=ONCE, timeouts=FOREVER, labels='{"a":"b"}')
GRACE_S = 30


async def run_status(service: Service, run_id: str) -> RunStatus:
    """Where a run stands."""
    return (await service.runs.get(ROOT, run_id)).status


async def tasks_of(service: Service, run_id: str) -> dict[str, Task]:
    """A run's tasks by their kind."""
    page = await service.runs.tasks(ROOT, TaskQuery(run_id=run_id), PageRequest())
    return {task.kind: task for task in page.items}


async def failed_run(service: Service, worker: Worker, new: NewTask = SUMS) -> str:
    """The run of a task that failed."""
    created = (await service.tasks.create(ROOT, new, None)).task
    for _ in range(new.retry.max_attempts):
        await worker.fail(await worker.take(), "DECLINED")
    assert await run_status(service, created.run_id) is RunStatus.FAILED
    return created.run_id


async def test_a_retry_goes_on_growing_the_attempts(spread: Roles, database: Database) -> None:
    """FV-9, rule 9: past the automatic maximum; the error is cleared, who and why stands in the events."""
    async with Worker(spread.worker, kinds=["sums"]) as worker:
        twice = NewTask("sums", retry=RetryPolicy(initial_us=0, jitter=0.0, max_attempts=2), timeouts=FOREVER)
        run_id = await failed_run(spread.publisher, worker, twice)
        run, replayed = await spread.publisher.run_operations.retry(ROOT, run_id, "mended", "", None)
        assert (run.status, run.redone, run.error_code, run.failed_tasks, replayed) == (
            RunStatus.RUNNING, 1, "", 0, False,
        )  # fmt: skip
        third = await worker.take()
        assert (third.attempt, third.tries) == (3, 1)
        await worker.fail(third)
        fourth = await worker.take()
        await worker.complete(fourth, output=encode_value("ok"))
    view = await spread.worker.tasks.get(ROOT, third.task.id)
    assert (view.task.status, view.task.attempt, view.output) == (TaskStatus.COMPLETED, 4, encode_value("ok"))
    attempts, _ = await spread.worker.tasks.attempts(ROOT, third.task.id, 0, 10)
    assert [each.status for each in attempts] == [AttemptStatus.FAILED] * 3 + [AttemptStatus.COMPLETED]
    asked = [each for each in await events_of(spread.worker, run_id) if each.type is EventType.RETRY_REQUESTED]
    assert [(each.task_id, each.attempt) for each in asked] == [("", 0), (third.task.id, 2)]
    assert data_of(asked[0]) == {"note": "mended", "by": "root", "retry_attempt": 1, "tasks": 1}
    assert await run_status(spread.worker, run_id) is RunStatus.COMPLETED
    await check_all(database)


async def test_only_a_failed_run_is_retried(spread: Roles) -> None:
    """FV-9: running, completed and cancelled ones are CONFLICT; another tenant's is NOT_FOUND."""
    operations = spread.publisher.run_operations
    async with Worker(spread.worker, kinds=["sums"]) as worker:
        running = (await spread.publisher.tasks.create(ROOT, SUMS, None)).task.run_id
        with pytest.raises(Conflict, match="RUNNING"):
            await operations.retry(ROOT, running, "", "", None)
        await worker.complete(await worker.take())
        with pytest.raises(Conflict, match="COMPLETED"):
            await operations.retry(ROOT, running, "", "", None)
        run_id = await failed_run(spread.publisher, worker)
        with pytest.raises(NotFound):
            await operations.retry(principal(tenant="other"), run_id, "", "", None)
        with pytest.raises(ValidationFailed, match="from_step"):
            await operations.retry(ROOT, run_id, "", "pay", None)
        # What was refused left no trace.
        assert (await spread.worker.runs.get(ROOT, run_id)).redone == 0
        assert "RETRY_REQUESTED" not in await kinds_of(spread.publisher, run_id)


async def test_a_retry_under_a_key_is_done_once(spread: Roles) -> None:
    """FL-8: the same key answers the run as it is, and retries nothing."""
    async with Worker(spread.worker, kinds=["sums"]) as worker:
        run_id = await failed_run(spread.publisher, worker)
        retried = key("again", "RetryRun")
        await spread.publisher.run_operations.retry(ROOT, run_id, "", "", retried)
        await worker.fail(await worker.take())
        run, replayed = await spread.worker.run_operations.retry(ROOT, run_id, "", "", retried)
        assert (run.status, run.redone, replayed) == (RunStatus.FAILED, 1, True)


MIXED = (
    agent("done", "Order", "Payment"),
    agent("declined", "Order", retry=ONCE),
    agent("broken", "Order", retry=ONCE),
    agent("shipper", "Payment"),
)


def mixed(fine: set[str]) -> Handler:
    """A handler that fails what is not fine."""
    publish = publishing({"done": "Payment"})

    def handle(lease: Lease) -> Completion | AttemptFailure | None:
        return publish(lease) if lease.task.agent in fine else failed(lease, "DECLINED")

    return handle


async def test_what_is_done_stays_and_what_failed_begins_again(spread: Roles, database: Database) -> None:
    """WM-4: of a cascade with finished and failed tasks the failed ones alone run again, and its artifacts stay."""
    fine = {"done", "shipper"}
    handler = mixed(fine)
    async with Worker(spread.worker, agents=MIXED, known=types("Order", "Payment"), handler=handler) as worker:
        result = await spread.publisher.artifacts.publish_sync(ROOT, made("Order", n=1), None, 5)
        run_id = result.correlation_id
        assert await run_status(spread.publisher, run_id) is RunStatus.FAILED
        before = len(worker.seen)
        fine.update(("declined", "broken"))
        with spread.publisher.engine.waiters.wait(run_id) as ended:
            await spread.publisher.run_operations.retry(ROOT, run_id, "", "", None)
            async with asyncio.timeout(5):
                await ended
        assert sorted(lease.task.agent for lease in worker.seen[before:]) == ["broken", "declined"]
        assert [payload_of(each) for each in worker.seen[-1].artifacts] == [{"n": 1.0}]
    run = await spread.worker.runs.get(ROOT, run_id)
    assert (run.status, run.task_count, run.failed_tasks, run.artifact_count) == (RunStatus.COMPLETED, 4, 0, 2)
    await check_all(database)


async def test_a_retry_finds_tasks_in_every_state(start: Start, database: Database) -> None:
    """FV-9: a run that took too long, with a finished, a running, a waiting, a delayed and a failed task at once."""
    here, there = await start(cancel_grace_s=GRACE_S)
    late = agent("late", "Order", retry=RetryPolicy(initial_us=seconds(3600), maximum_us=seconds(3600), jitter=0.0))
    spec = (agent("done", "Order"), agent("running", "Order"), agent("declined", "Order", retry=ONCE), late)
    async with Worker(here, agents=spec, known=types("Order")) as worker:
        await register(there, (), agent("waiting", "Order"))
        run_id = (await there.artifacts.publish(ROOT, made("Order"), None)).correlation_id
        leases = {lease.task.agent: lease for lease in await worker.take_many(4)}
        await worker.complete(leases["done"])
        await worker.fail(leases["declined"])
        await worker.fail(leases["late"])
        # Cascades have no time of their own: one is given to this, as a workflow's runs have it.
        await database.execute("UPDATE run SET timeout_us = 60000000, deadline_us = created_us + 60000000")
        await database.pass_time(61)
        here.engine.cache.clear()
        there.engine.cache.clear()
        await there.loops.poll()
        assert (await worker.told()).task_id == leases["running"].task.id
        await worker.fail(leases["running"], "STOPPED")
        run = await here.runs.get(ROOT, run_id)
        assert (run.status, run.error_code) == (RunStatus.FAILED, "RUN_TIMEOUT")
        await check_all(database)
        run, _ = await there.run_operations.retry(ROOT, run_id, "", "", None)
        assert (run.status, run.open_tasks, run.deadline_us - run.updated_us) == (RunStatus.RUNNING, 4, 60_000_000)
        again = {lease.task.agent: lease for lease in await worker.take_many(3)}
        assert {name: lease.attempt for name, lease in again.items()} == {"running": 2, "declined": 2, "late": 2}
        for lease in again.values():
            await worker.complete(lease)
        async with Worker(there, agents=[agent("waiting", "Order")]) as other:
            await other.complete(await other.take())
    statuses = {task.agent: task.status for task in (await tasks_of(here, run_id)).values()}
    assert set(statuses.values()) == {TaskStatus.COMPLETED}
    assert await run_status(there, run_id) is RunStatus.COMPLETED
    await check_all(database)


async def test_a_retry_survives_the_server_that_took_it(start: Start, database: Database) -> None:
    """FV-19: the server is killed right after its commit; another one's worker does the work."""
    here, there = await start()
    async with Worker(here, kinds=["sums"]) as worker:
        run_id = await failed_run(here, worker)
    await here.run_operations.retry(ROOT, run_id, "", "", None)
    await killed(here)
    async with Worker(there, kinds=["sums"]) as worker:
        lease = await worker.take()
        assert lease.attempt == 2
        await worker.complete(lease)
    assert await run_status(there, run_id) is RunStatus.COMPLETED
    await check_all(database)


async def test_what_was_lost_to_a_bound_is_no_task_to_retry(start: Start) -> None:
    """Rule 6: CASCADE_LIMIT made no task, so there is nothing to try again."""
    here, _ = await start(max_tasks_per_run=1)
    await register(here, ("Order",), agent("one", "Order"), agent("two", "Order"))
    async with Worker(here, kinds=["agent:one", "agent:two"]) as worker:
        run_id = (await here.artifacts.publish(ROOT, made("Order"), None)).correlation_id
        await worker.complete(await worker.take())
        assert await run_status(here, run_id) is RunStatus.FAILED
        with pytest.raises(Conflict, match="CASCADE_LIMIT"):
            await here.run_operations.retry(ROOT, run_id, "", "", None)


async def test_a_cascade_that_lost_what_its_tasks_were_given_is_not_retried(spread: Roles, database: Database) -> None:
    """Rule 15: artifacts have a retention of their own; a task is never begun with a part of what it was given."""
    await register(spread.publisher, ("Order",), agent("declined", "Order", retry=ONCE))
    async with Worker(spread.worker, kinds=["agent:declined"]) as worker:
        run_id = (await spread.publisher.artifacts.publish(ROOT, made("Order"), None)).correlation_id
        await worker.fail(await worker.take())
        await database.execute("DELETE FROM artifact")
        with pytest.raises(Conflict, match="gone"):
            await spread.publisher.run_operations.retry(ROOT, run_id, "", "", key("k", "RetryRun"))
        done = await spread.publisher.run_operations.retry_many(ROOT, ManyRuns(ids=(run_id,)), None)
        assert isinstance(done.outcomes[0][1], Conflict)
    assert await run_status(spread.worker, run_id) is RunStatus.FAILED


# Repeating.


async def test_a_task_is_repeated_as_it_was(spread: Roles, database: Database) -> None:
    """FV-9: a new run with the same input, linked; whatever became of the first, and at once where that was delayed."""
    async with Worker(spread.worker, kinds=["sums"]) as worker:
        new = NewTask("sums", encode_value([1, 2]), priority=7, delay_us=seconds(60), retry=ONCE, labels='{"a":"b"}',
                      run_timeout_us=seconds(3600))  # fmt: skip
        first = (await spread.publisher.tasks.create(ROOT, new, None)).task
        run, replayed = await spread.publisher.run_operations.rerun(ROOT, first.run_id, "", key("k", "RerunRun"))
        assert (run.rerun_of, run.labels, run.timeout_us, replayed) == (first.run_id, '{"a":"b"}', seconds(3600), False)
        lease = await worker.take()
        task = lease.task
        assert (task.run_id, task.input, task.priority, task.retry) == (run.id, encode_value([1, 2]), 7, ONCE)
        again, replayed = await spread.worker.run_operations.rerun(ROOT, first.run_id, "", key("k", "RerunRun"))
        assert (again.id, replayed) == (run.id, True)
        with pytest.raises(ValidationFailed, match="version"):
            await spread.publisher.run_operations.rerun(ROOT, first.run_id, "latest", None)
    await check_all(database)


async def test_a_cascade_is_repeated_with_its_first_artifact(spread: Roles, database: Database) -> None:
    """FV-9: it is published again, as whoever repeats it."""
    await register(spread.publisher, ("Order", "Payment"), agent("pays", "Order", "Payment"))
    handler = publishing({"pays": "Payment"})
    async with Worker(spread.worker, kinds=["agent:pays"], handler=handler):
        first = await spread.publisher.artifacts.publish_sync(ROOT, made("Order", n=7), None, 5)
        run, _ = await spread.publisher.run_operations.rerun(principal("other"), first.correlation_id, "", None)
        assert (run.rerun_of, run.created_by) == (first.correlation_id, "other")
        page = await spread.worker.artifacts.list(
            ROOT, ArtifactQuery(correlation_id=run.id, type="Order"), PageRequest(), False
        )
    assert [payload_of(each.artifact) for each in page.items] == [{"n": 7.0}]
    await check_all(database)


async def test_an_agent_run_by_name_is_repeated_by_name(spread: Roles) -> None:
    """FL-13: its inputs go to the same agent, and activate nobody else."""
    await register(spread.publisher, ("Order",), agent("pays", "Order"), agent("else", "Order"))
    async with Worker(spread.worker, kinds=["agent:pays", "agent:else"], handler=publishing({})) as worker:
        inputs = [made("Order", n=1), made("Order", n=2)]
        first = await spread.publisher.agents.run(ROOT, "pays", inputs, None, 5)
        run, _ = await spread.publisher.run_operations.rerun(ROOT, first.correlation_id, "", None)
        with spread.publisher.engine.waiters.wait(run.id) as ended:
            if await run_status(spread.publisher, run.id) is RunStatus.RUNNING:
                async with asyncio.timeout(5):
                    await ended
        tasks = await tasks_of(spread.publisher, run.id)
        assert list(tasks) == ["agent:pays"]
        lease = next(each for each in worker.seen if each.task.run_id == run.id)
        assert [payload_of(each) for each in lease.artifacts] == [{"n": 1.0}, {"n": 2.0}]


async def test_nobody_publishes_again_what_he_may_not_see(spread: Roles) -> None:
    """FL-15: whoever publishes an artifact sees it, so a rerun needs the right to see what it begins with."""
    await register(spread.publisher, ("Order",))
    hidden = made("Order", n=1)
    hidden = type(hidden)(hidden.type, hidden.payload, Visibility(kind="Private", agents=("pays",)))
    run_id = (await spread.publisher.artifacts.publish(ROOT, hidden, None)).correlation_id
    with pytest.raises(NotFound, match="not yours to see"):
        await spread.worker.run_operations.rerun(blind("nosy"), run_id, "", None)
    assert (await spread.worker.runs.list(ROOT, RunQuery(), PageRequest())).info.total == 1


async def test_a_rerun_under_a_key_stands_when_its_run_is_gone(spread: Roles, database: Database) -> None:
    """FL-8"""
    first = (await spread.publisher.tasks.create(ROOT, SUMS, None)).task
    run, _ = await spread.publisher.run_operations.rerun(ROOT, first.run_id, "", key("k", "RerunRun"))
    await database.execute("DELETE FROM task WHERE run_id = $1::text::uuid", first.run_id)
    await database.execute("DELETE FROM run WHERE id = $1::text::uuid", first.run_id)
    again, replayed = await spread.worker.run_operations.rerun(ROOT, first.run_id, "", key("k", "RerunRun"))
    assert (again.id, replayed) == (run.id, True)
    with pytest.raises(NotFound):
        await spread.worker.run_operations.rerun(ROOT, first.run_id, "", key("other", "RerunRun"))


# Many.


async def test_many_runs_are_retried_by_what_they_have_in_common(spread: Roles, database: Database) -> None:
    """FV-9: a dry run tells which; each has an outcome; what is left is gone on with by the token."""
    operations = spread.publisher.run_operations
    async with Worker(spread.worker, kinds=["sums"]) as worker:
        run_ids = [await failed_run(spread.publisher, worker) for _ in range(5)]
        other = await failed_run(spread.publisher, worker, NewTask("sums", retry=ONCE, timeouts=FOREVER))
        many = ManyRuns(query=RunQuery(labels=(("a", "b"),)), limit=3, why="mended")
        dry = await operations.retry_many(ROOT, ManyRuns(query=many.query, dry_run=True), None)
        assert (dry.outcomes, dry.matched) == ([(each, "matched") for each in reversed(run_ids)], 5)
        assert "RETRY_REQUESTED" not in await kinds_of(spread.publisher, run_ids[0])
        done = await operations.retry_many(ROOT, many, None)
        assert (done.outcomes, done.matched, done.left) == ([(i, "accepted") for i in run_ids[:1:-1]], 5, 2)
        rest = ManyRuns(query=many.query, page_token=done.next_page_token)
        done = await operations.retry_many(ROOT, rest, None)
        assert (done.outcomes, done.left, done.next_page_token) == ([(i, "accepted") for i in run_ids[1::-1]], 0, "")
        assert {(await worker.take()).task.run_id for _ in run_ids} == {*run_ids}
        by_id = await operations.retry_many(ROOT, ManyRuns(ids=(other, run_ids[0], new_id())), None)
        told = [each.code if isinstance(each, MillstreamError) else each for _, each in by_id.outcomes]
        assert told == ["accepted", "CONFLICT", "NOT_FOUND"]
    await check_all(database)


async def test_many_runs_under_a_key_are_the_same_ones_again(spread: Roles) -> None:
    """FL-8: what began to match since is not touched by the call's repetition."""
    first = (await spread.publisher.tasks.create(ROOT, SUMS, None)).task.run_id
    many = ManyRuns(query=RunQuery(labels=(("a", "b"),)))
    done = await spread.publisher.run_operations.cancel_many(ROOT, many, key("k", "CancelRuns"))
    assert (done.outcomes, done.replayed) == ([(first, "accepted")], False)
    second = (await spread.publisher.tasks.create(ROOT, SUMS, None)).task.run_id
    again = await spread.worker.run_operations.cancel_many(ROOT, many, key("k", "CancelRuns"))
    assert (again.outcomes, again.replayed) == ([(first, "duplicate")], True)
    assert await run_status(spread.worker, second) is RunStatus.RUNNING


async def test_many_runs_are_cancelled_in_other_tenants_never(spread: Roles, database: Database) -> None:
    """CANCELLED at once where nothing runs; a filter finds the tenant's own alone, by id they are NOT_FOUND."""
    mine = [(await spread.publisher.tasks.create(ROOT, SUMS, None)).task.run_id for _ in range(3)]
    theirs = (await spread.publisher.tasks.create(principal(tenant="other"), SUMS, None)).task.run_id
    operations = spread.worker.run_operations
    done = await operations.cancel_many(ROOT, ManyRuns(query=RunQuery(labels=(("a", "b"),)), why="stop"), None)
    assert [each for each, _ in done.outcomes] == [*reversed(mine)]
    by_id = await operations.cancel_many(ROOT, ManyRuns(ids=(theirs,)), None)
    assert isinstance(by_id.outcomes[0][1], NotFound)
    assert {await run_status(spread.publisher, each) for each in mine} == {RunStatus.CANCELLED}
    assert (await spread.publisher.runs.get(principal(tenant="other"), theirs)).status is RunStatus.RUNNING
    await check_all(database)


@pytest.mark.parametrize(
    ("many", "field"),
    [
        (ManyRuns(), "run_ids"),
        (ManyRuns(ids=("a",), query=RunQuery(text="x")), "run_ids"),
        (ManyRuns(query=RunQuery()), "filter"),
        (ManyRuns(ids=("a",), page_token="t"), "page_token"),
        (ManyRuns(ids=("a", "b"), limit=1), "limit"),
    ],
)
async def test_many_runs_have_to_be_named_or_narrowed(start: Start, many: ManyRuns, field: str) -> None:
    """Fail closed: nothing said is not everything."""
    here, _ = await start()
    with pytest.raises(ValidationFailed) as refused:
        await here.run_operations.cancel_many(ROOT, many, None)
    assert refused.value.details[0].field == field
