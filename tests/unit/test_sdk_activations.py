"""Runs of workflows in a worker's hands: kept between activations, fetched where they are not. (FV-18)"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.unit.workserver import Stream, WorkServer, serving

from millstream.sdk import Worker, WorkflowContext
from millstream.v1 import activation_pb2, code_pb2, worker_pb2
from millstream.v1 import worker_service_pb2 as wire

RUNS = ["01900000-0000-7000-8000-00000000000%d" % n for n in range(1, 4)]  # noqa: UP031  (an id, readably)


class Histories(WorkServer):
    """Gives histories, and notes what was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.pages: list[list[activation_pb2.HistoryItem]] = []
        self.asked: list[tuple[int, int]] = []

    async def FetchHistory(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The next page."""
        self.asked.append((request.after_sequence, request.after_number))
        return wire.FetchHistoryResponse(items=self.pages.pop(0), more=bool(self.pages))


def event(sequence: int, kind: str, **fields: Any) -> activation_pb2.HistoryItem:
    """An event of a history."""
    item = activation_pb2.HistoryItem()
    item.event.sequence, item.event.type = sequence, activation_pb2.HistoryEvent.Type.Value(kind)
    for name, value in fields.items():
        setattr(item.event, name, value)
    return item


def command(number: int, after: int, kind: str, name: str) -> activation_pb2.HistoryItem:
    """A command of a history."""
    item = activation_pb2.HistoryItem()
    item.command.number, item.command.after_sequence, item.command.name = number, after, name
    item.command.type = activation_pb2.RecordedCommand.Type.Value(kind)
    return item


def activation(run_id: str, attempt: int, base: int, *items: activation_pb2.HistoryItem, **fields: Any) -> Any:
    """A lease of a run's own task."""
    lease = worker_pb2.Lease(task_id=run_id, run_id=run_id, attempt=attempt, kind="workflow:flow@1", tries=1)
    lease.activation.workflow, lease.activation.version = "flow", "1"
    lease.activation.base_sequence, lease.activation.answer_token = base, str(attempt)
    lease.activation.history.extend(items)
    for name, value in fields.items():
        setattr(lease.activation, name, value)
    return lease


@asynccontextmanager
async def connected(live_runs: int = 10) -> AsyncIterator[tuple[Histories, Stream]]:
    """A worker with the workflow "flow", connected."""
    server = Histories()
    async with serving(service=server):
        worker = Worker(server.target, live_runs=live_runs)

        @worker.workflow("flow")
        async def flow(ctx: WorkflowContext, _: Any) -> str:
            first = await ctx.task("first")
            return f"{first} {await ctx.task('second')}"

        async with worker:
            yield server, await server.next()


async def answer_to(stream: Stream, lease: Any) -> code_pb2.ActivationAnswer:
    """Push an activation; what the worker answers."""
    before = len(stream.answers)
    await stream.push(lease)
    await stream.until(lambda each: len(each.answers) > before)
    await stream.ack()
    return stream.answers[-1]


async def test_a_run_that_is_kept_goes_on_from_what_it_has_seen() -> None:
    """FV-18: a warm run is told the new event alone, and nothing is fetched."""
    async with connected() as (server, stream):
        first = await answer_to(stream, activation(RUNS[0], 1, 1, event(1, "STARTED")))
        assert [each.task.kind for each in first.commands] == ["first"]
        done = activation(
            RUNS[0], 2, 5, event(5, "COMPLETED", step=1), cache_token="1", seen_sequence=1, command_count=1
        )
        second = await answer_to(stream, done)
        assert [(each.number, each.after_sequence, each.task.kind) for each in second.commands] == [(2, 5, "second")]
        assert server.asked == []


async def test_a_run_that_was_evicted_or_went_another_way_is_fetched_whole() -> None:
    """FV-18: the cache is bounded; and a copy whose answer was not the one that was accepted is never gone on from."""
    history = [event(1, "STARTED"), command(1, 1, "TASK", "first"), event(5, "COMPLETED", step=1)]
    for live_runs, token in ((1, "1"), (10, "7")):
        async with connected(live_runs) as (server, stream):
            await answer_to(stream, activation(RUNS[0], 1, 1, event(1, "STARTED")))
            await answer_to(stream, activation(RUNS[1], 1, 1, event(1, "STARTED")))
            server.pages = [history[:2], history[2:]]
            warm = activation(RUNS[0], 8, 5, history[2], cache_token=token, seen_sequence=1, command_count=1)
            answer = await answer_to(stream, warm)
            assert [(each.number, each.task.kind) for each in answer.commands] == [(2, "second")]
            assert server.asked == [(0, 0), (1, 1)]


async def test_changed_code_fails_the_activation_for_good_with_both_histories() -> None:
    """FV-18: NON_DETERMINISM is reported, and nothing is executed."""
    async with connected() as (_, stream):
        history = [event(1, "STARTED"), command(1, 1, "TASK", "other")]
        await stream.push(activation(RUNS[0], 1, 1, *history, seen_sequence=1, command_count=1))
        await stream.until(lambda each: bool(each.failures))
        await stream.ack()
        (failure,) = stream.failures
        assert (failure.code, failure.retryable) == ("NON_DETERMINISM", False)
        assert "'other'" in failure.message
        assert "'first'" in failure.message
