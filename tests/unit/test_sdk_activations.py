"""Runs of workflows in a worker's hands: kept between activations, fetched where they are not. (FV-18)"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
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


# -- ahead of the service --------------------------------------------------------------------------------------


def step_of(run_id: str, number: int, kind: str = "first", attempt: int = 1) -> worker_pb2.Lease:
    """A lease of a task that a run's code asked for."""
    task_id = run_id.replace("7000", f"70{number:02}")
    return worker_pb2.Lease(task_id=task_id, run_id=run_id, attempt=attempt, kind=kind, step=number, tries=1)


@asynccontextmanager
async def going_ahead(flow: Any, **tasks: Any) -> AsyncIterator[tuple[Histories, Stream]]:
    """A worker with a workflow and its tasks, that has answered the activation with which a run begins."""
    server = Histories()
    async with serving(service=server):
        worker = Worker(server.target)
        worker.workflow("flow")(flow)
        for kind in ("first", "second"):
            worker.task(kind)(tasks.get(kind) or _told(kind))
        async with worker:
            stream = await server.next()
            await answer_to(stream, activation(RUNS[0], 1, 1, event(1, "STARTED")))
            yield server, stream


def _told(kind: str) -> Any:
    async def told(_: Any) -> str:
        return f"{kind} done"

    return told


async def done_by(stream: Stream, lease: Any) -> list[code_pb2.AnswerAhead]:
    """Push a task; what came with its completion."""
    await stream.push(lease)
    await stream.until(lambda each: any(done.task_id == lease.task_id for done in each.completions))
    await stream.ack()
    (message,) = [each for each in stream.received if any(done.task_id == lease.task_id for done in each.completions)]
    return list(message.ahead)


async def two_steps(ctx: WorkflowContext, _: Any) -> str:
    """One after the other."""
    first = await ctx.task("first")
    return f"{first}, {await ctx.task('second', first)}"


async def test_what_follows_comes_along_with_the_completion() -> None:
    """FV-18: of the task that the code waits for; the token grows with each that the service took."""
    async with going_ahead(two_steps) as (server, stream):
        (said,) = await done_by(stream, step_of(RUNS[0], 1))
        assert (said.run_id, said.token, said.attempt) == (RUNS[0], "1", 1)
        (command,) = said.commands
        assert (command.number, command.after_sequence, command.task.kind) == (2, 0, "second")
        assert command.task.input.string_value == "first done"
        (said,) = await done_by(stream, step_of(RUNS[0], 2, "second"))
        assert (said.token, said.end.completed.string_value) == ("2", "first done, second done")
        assert server.asked == []


async def test_where_it_was_not_taken_the_same_is_answered() -> None:
    """FV-18: to the activation that comes in its place, from what the code did already; it is not led again."""
    calls: list[str] = []

    async def counting(ctx: WorkflowContext, given: Any) -> str:
        first = await ctx.task("first")
        calls.append(first)
        return f"{first}, {await ctx.task('second', first)}"

    async with going_ahead(counting) as (server, stream):
        await done_by(stream, step_of(RUNS[0], 1))
        told = activation(
            RUNS[0], 2, 5, event(5, "COMPLETED", step=1), cache_token="1", seen_sequence=1, command_count=1
        )
        answer = await answer_to(stream, told)
        assert [(each.number, each.after_sequence) for each in answer.commands] == [(2, 5)]
        assert (calls, server.asked) == (["first done"], [])
        (said,) = await done_by(stream, step_of(RUNS[0], 2, "second"))
        assert said.token == "2"


async def test_where_something_else_came_first_the_copy_is_dropped() -> None:
    """FV-18: the order of events is the service's to say: the history is fetched, and led through."""
    async with going_ahead(two_steps) as (server, stream):
        await done_by(stream, step_of(RUNS[0], 1))
        started, asked = event(1, "STARTED"), command(1, 1, "TASK", "first")
        server.pages = [[started, asked, event(4, "CANCELLING"), event(5, "COMPLETED", step=1)]]
        told = activation(RUNS[0], 2, 5, event(4, "CANCELLING"), event(5, "COMPLETED", step=1), cache_token="1")
        told.activation.seen_sequence = 1
        answer = await answer_to(stream, told)
        assert server.asked == [(0, 0)]
        assert answer.end.cancelled


async def test_code_that_waits_for_more_is_not_told_ahead() -> None:
    """FV-18: which of two comes first is the service's to say."""

    async def both(ctx: WorkflowContext, _: Any) -> Any:
        return await ctx.gather(ctx.task("first"), ctx.task("second"))

    async def with_signal(ctx: WorkflowContext, _: Any) -> Any:
        return await ctx.gather(ctx.task("first"), ctx.signal("go"))

    for flow in (both, with_signal):
        async with going_ahead(flow) as (_, stream):
            assert await done_by(stream, step_of(RUNS[0], 1)) == []
            told = activation(RUNS[0], 2, 5, event(5, "COMPLETED", step=1), cache_token="1", seen_sequence=1)
            assert not (await answer_to(stream, told)).commands


async def test_code_that_looks_at_the_time_is_not_told_ahead_twice() -> None:
    """FV-18: an event has the time that the service says: what saw another is led through its history again."""
    seen: list[float] = []

    async def timely(ctx: WorkflowContext, _: Any) -> str:
        await ctx.task("first")
        seen.append(ctx.now.timestamp())
        await ctx.task("second")
        return str(seen[-1])

    async with going_ahead(timely) as (server, stream):
        assert await done_by(stream, step_of(RUNS[0], 1)) == []
        ended = event(5, "COMPLETED", step=1)
        ended.event.at.seconds = 700
        server.pages = [[event(1, "STARTED"), command(1, 1, "TASK", "first"), ended]]
        told = activation(RUNS[0], 2, 5, ended, cache_token="1", seen_sequence=1, command_count=1)
        assert [each.number for each in (await answer_to(stream, told)).commands] == [2]
        assert (seen[-1], server.asked) == (700, [(0, 0)])
        assert await done_by(stream, step_of(RUNS[0], 2, "second")) == []


async def test_side_effects_wait_until_the_service_has_told() -> None:
    """FV-18: a completion does not wait for them, and they are done once; promises and artifacts wait likewise."""
    done: list[int] = []

    def count() -> int:
        done.append(1)
        return len(done)

    async def effective(ctx: WorkflowContext, _: Any) -> Any:
        await ctx.task("first")
        value = await ctx.run(count, "count")
        return await ctx.promise("approval", key=f"key-{value}")

    async with going_ahead(effective) as (server, stream):
        assert (await done_by(stream, step_of(RUNS[0], 1)), done) == ([], [])
        told = activation(RUNS[0], 2, 5, event(5, "COMPLETED", step=1), cache_token="1", seen_sequence=1)
        answer = await answer_to(stream, told)
        assert [(each.number, each.after_sequence) for each in answer.commands] == [(2, 5), (3, 5)]
        assert (answer.commands[0].record.value.number_value, answer.commands[1].promise.key) == (1, "key-1")
        assert (done, server.asked) == ([1], [])


async def test_what_came_while_a_history_was_fetched_is_not_told_yet() -> None:
    """FV-18: an answer says nothing of events behind its activation's; they make an activation of their own."""
    async with connected() as (server, stream):
        started, asked = event(1, "STARTED"), command(1, 1, "TASK", "first")
        server.pages = [[asked], [event(5, "COMPLETED", step=1), event(7, "COMPLETED", step=2)]]
        told = activation(RUNS[0], 4, 5, started, more=True, seen_sequence=1, command_count=1)
        answer = await answer_to(stream, told)
        assert [(each.number, each.after_sequence) for each in answer.commands] == [(2, 5)]
        assert not answer.HasField("end")


async def test_nothing_goes_ahead_of_an_activation_that_is_here() -> None:
    """FV-18: a signal and a task's end that come together are told as they came."""
    async with going_ahead(two_steps) as (server, stream):
        told = activation(RUNS[0], 2, 4, event(4, "SIGNALLED", name="go"), cache_token="1", seen_sequence=1)
        before = len(stream.answers)
        await stream.push(step_of(RUNS[0], 1), told)
        await stream.until(lambda each: bool(each.completions) and len(each.answers) > before)
        await stream.ack()
        assert not any(each.ahead for each in stream.received)
        assert server.asked == []


async def test_code_that_logs_does_it_once_in_an_activation(caplog: pytest.LogCaptureFixture) -> None:
    """FV-18: a line belongs to the activation that the code is led through; ahead of it nothing is logged."""

    async def talkative(ctx: WorkflowContext, _: Any) -> None:
        await ctx.task("first")
        ctx.log.warning("first is done")
        await ctx.task("second")

    async with going_ahead(talkative) as (server, stream):
        assert await done_by(stream, step_of(RUNS[0], 1)) == []
        assert "first is done" not in caplog.text
        server.pages = [[event(1, "STARTED"), command(1, 1, "TASK", "first"), event(5, "COMPLETED", step=1)]]
        told = activation(RUNS[0], 2, 5, event(5, "COMPLETED", step=1), cache_token="1", seen_sequence=1)
        assert [each.number for each in (await answer_to(stream, told)).commands] == [2]
        assert caplog.text.count("first is done") == 1
