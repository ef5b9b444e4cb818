"""Traces: what a call sets off goes on in its trace, over servers, workers, workflows and their children."""

from collections.abc import Iterator

import pytest
from tests.engine.database import Database
from tests.engine.servers import Roles
from tests.engine.test_graph_runs import adding, define, know, step
from tests.engine.workers import Worker, chain_worker
from tests.engine.world import ROOT, check_all, data_of, events_of, order

from millstream.application.paging import PageRequest
from millstream.application.tracing import CALL_TRACE
from millstream.application.views.runs import RunQuery
from millstream.application.views.tasks import NewTask, TaskQuery
from millstream.application.workflow_runs import NewRun
from millstream.domain.runs import EventType, Task
from millstream.domain.tracing import below, trace_id
from millstream.domain.workflows import Definition, StepKind

CALL = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def traced() -> Iterator[None]:
    """Calls of this test belong to a trace."""
    token = CALL_TRACE.set(CALL)
    yield
    CALL_TRACE.reset(token)


async def tasks_of(roles: Roles, run_id: str) -> dict[str, Task]:
    """The tasks of a run by kind, as the other server reads them."""
    found = await roles.worker.runs.tasks(ROOT, TaskQuery(run_id=run_id), PageRequest())
    return {task.kind: task for task in found.items}


async def test_a_cascade_is_one_trace_in_which_each_task_follows_from_the_one_that_fed_it(
    roles: Roles, database: Database
) -> None:
    """The run is below the call, its first task below the run, each other below the attempt that published for it; the
    worker is told its attempt's own place. The events name the trace."""
    token = CALL_TRACE.set(CALL)
    async with chain_worker(roles.worker) as worker:
        result = await roles.publisher.artifacts.publish_sync(ROOT, order(), None, 10)
    CALL_TRACE.reset(token)
    run = await roles.worker.runs.get(ROOT, result.correlation_id)
    found = await tasks_of(roles, run.id)
    payments, shipping, notifier = (found[f"agent:{name}"] for name in ("payments", "shipping", "notifier"))
    assert run.trace == CALL
    assert payments.trace == below(CALL, run.id)
    assert shipping.trace == below(CALL, payments.id, 1)
    assert notifier.trace == below(CALL, shipping.id, 1)
    assert [lease.task.trace for lease in worker.seen] == [payments.trace, shipping.trace, notifier.trace]
    events = await events_of(roles.publisher, run.id)
    named = [event for event in events if event.type in (EventType.RUN_CREATED, EventType.TASK_CREATED)]
    assert len(named) == 4
    assert {data_of(event)["trace_id"] for event in named} == {trace_id(CALL)}
    await check_all(database)


async def test_what_belongs_to_no_trace_has_none(roles: Roles) -> None:
    async with chain_worker(roles.worker):
        result = await roles.publisher.artifacts.publish_sync(ROOT, order(), None, 10)
    run = await roles.worker.runs.get(ROOT, result.correlation_id)
    assert run.trace == ""
    assert {task.trace for task in (await tasks_of(roles, run.id)).values()} == {""}
    assert "trace_id" not in data_of((await events_of(roles.publisher, run.id))[0])


async def test_a_workflow_and_its_children_are_one_trace(roles: Roles, traced: None) -> None:
    """Each step is below the run, as it may follow from several; a child's run below its parent's task."""
    know(roles, Definition("child", (step("inner"),), version=1))
    define(roles, step("a"), step("b", "a", kind=StepKind.WORKFLOW, target="child"))
    async with Worker(roles.worker, kinds=["a", "inner"], handler=adding):
        run = (await roles.publisher.workflow_runs.execute_sync(ROOT, NewRun("w"), None, 10)).run
    found = await tasks_of(roles, run.id)
    child_task = next(task for kind, task in found.items() if kind != "a")
    children = await roles.worker.runs.list(ROOT, RunQuery(parent_id=run.id), PageRequest())
    child = children.items[0]
    assert run.trace == CALL
    assert found["a"].trace == below(CALL, run.id)
    assert child_task.trace == below(CALL, run.id)
    assert child.trace == child_task.trace
    assert (await tasks_of(roles, child.id))["inner"].trace == below(CALL, child.id)


async def test_a_retry_is_another_span_of_the_same_task(roles: Roles, traced: None) -> None:
    """An attempt that fails leaves the task where it was in its trace."""
    async with Worker(roles.worker, kinds=["work"]) as worker:
        await roles.publisher.tasks.create(ROOT, NewTask("work", b""), None)
        lease = await worker.take()
        await worker.fail(lease)
        again = await worker.take()
        assert (lease.attempt, again.attempt) == (1, 2)
        assert again.task.trace == lease.task.trace == below(CALL, lease.task.run_id)
        await worker.complete(again)
