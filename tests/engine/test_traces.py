"""Traces: what a call sets off goes on in its trace, over servers, workers, workflows and their children."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest
from tests.collector import Collector, collecting
from tests.engine.database import Database
from tests.engine.servers import Roles
from tests.engine.test_code_runs import Coder, begin, done, task
from tests.engine.test_graph_runs import adding, define, know, step
from tests.engine.workers import Worker, chain_worker
from tests.engine.world import ROOT, check_all, data_of, events_of, order

from millstream.adapters.tracing import Tracer
from millstream.application.paging import PageRequest
from millstream.application.tracing import CALL_TRACE
from millstream.application.views.runs import RunQuery
from millstream.application.views.tasks import NewTask, TaskQuery
from millstream.application.workflow_runs import NewRun
from millstream.domain.retry import RetryPolicy
from millstream.domain.runs import EventType, Task
from millstream.domain.struct_wire import encode_value
from millstream.domain.tracing import below, span_id, trace_id
from millstream.domain.workflows import Definition, StepKind
from millstream.wiring import Service

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


@contextlib.asynccontextmanager
async def exporting(*services: Service) -> AsyncIterator[Collector]:
    """A collector that these servers export what they commit to, all of it by the end of the block."""
    async with collecting() as collector:
        tracer = Tracer(collector.endpoint, 1.0, "0", "test")
        for engine in {id(each): each.engine for each in services}.values():
            engine.recorded.append(tracer.committed)
        yield collector
        await asyncio.to_thread(tracer.close)


def ends_of(collector: Collector, name: str) -> list[tuple[str, str]]:
    """The spans of a name: their id and what they ended with."""
    spans = [span for span in collector.spans if span.name == name]
    return [(span.span_id.hex(), span.status.message) for span in spans]


async def test_a_run_that_ends_again_has_another_span(roles: Roles, traced: None) -> None:
    """Retried by hand: the first is what its tasks lie below, whose attempts have a span each."""
    async with exporting(roles.publisher, roles.worker) as collector:
        async with Worker(roles.worker, kinds=["work"]) as worker:
            new = NewTask("work", b"", retry=RetryPolicy(initial_us=0, jitter=0.0, max_attempts=1))
            run_id = (await roles.publisher.tasks.create(ROOT, new, None)).task.run_id
            for _ in range(2):
                await worker.fail(await worker.take(), "DECLINED")
                await roles.publisher.run_operations.retry(ROOT, run_id, "", "", None)
            last = await worker.take()
            await worker.complete(last)
        assert last.task.trace == below(CALL, run_id)
    ends = ends_of(collector, "run single")
    assert [status for _, status in ends] == ["DECLINED", "DECLINED", ""]
    assert ends[0][0] == span_id(below(CALL, run_id))
    spans = [*ends, *ends_of(collector, "task work")]
    assert len(spans) == len({span for span, _ in spans}) == 6


async def test_a_cascade_that_ends_again_has_another_span(roles: Roles, traced: None) -> None:
    """Reopened by what is published into it."""
    async with exporting(roles.publisher, roles.worker) as collector, chain_worker(roles.worker):
        run_id = (await roles.publisher.artifacts.publish_sync(ROOT, order(1), None, 10)).correlation_id
        for n in (2, 3):
            await roles.worker.artifacts.publish_sync(ROOT, order(n, correlation_id=run_id), None, 10)
    ends = ends_of(collector, "run cascade")
    assert ends[0][0] == span_id(below(CALL, run_id))
    assert len(ends) == len({span for span, _ in ends}) == 3


async def test_a_task_for_later_stays_in_its_trace(roles: Roles, traced: None) -> None:
    """It is told its place when it starts, by whichever server that is, be it of no call by then."""
    await roles.publisher.tasks.create(ROOT, NewTask("work", b"", delay_us=20_000), None)
    async with Worker(roles.worker, kinds=["work"]) as worker:
        lease = await worker.take()
        assert lease.task.trace == below(CALL, lease.task.run_id)
        await worker.complete(lease)


async def test_a_run_of_code_and_its_tasks_are_one_trace(roles: Roles, traced: None) -> None:
    """The activations of its code lie below the run, and what the code begins below the run, too."""
    async with Coder(roles.worker) as coder:
        run_id = await begin(roles.publisher)
        lease, _ = await coder.activation()
        await coder.answer(lease, task())
        step_lease = await coder.take()
        assert lease.task.trace == step_lease.task.trace == below(CALL, run_id)
        await coder.complete(step_lease, output=encode_value(1))
        lease, _ = await coder.activation()
        await coder.answer(lease, end=done(1))
    assert (await roles.worker.runs.get(ROOT, run_id)).trace == CALL


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
