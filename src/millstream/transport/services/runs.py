"""RunService: reading runs, cancelling, retrying, repeating and pausing them."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from google.protobuf.message import Message

from millstream.domain.runs import Run
from millstream.transport.context import Context
from millstream.transport.mapping import code_runs as code_mapping
from millstream.transport.mapping import runs as mapping
from millstream.transport.mapping.code import put_history
from millstream.transport.mapping.executions import DEFAULT_WAIT_S, check_in_time, put_result
from millstream.transport.mapping.pages import page_of, pagination
from millstream.transport.mapping.run_streams import cursor_of, message
from millstream.transport.mapping.steps import put_step
from millstream.transport.mapping.tasks import put_task, task_query
from millstream.transport.use_cases import CodeRuns, Executions, RunOperations, Runs, RunSteps, RunWatching
from millstream.wire.v1 import run_pb2
from millstream.wire.v1 import run_service_pb2 as wire

DEFAULT_EVENTS = 100


class RunService:
    """Runs over the wire."""

    def __init__(
        self,
        runs: Runs,
        watching: RunWatching,
        operations: RunOperations,
        steps: RunSteps,
        executions: Executions,
        code_runs: CodeRuns,
    ) -> None:
        self._runs = runs
        self._watching = watching
        self._code_runs = code_runs
        self._operations = operations
        self._executions = executions
        self._steps = steps

    async def list_runs(self, request: wire.ListRunsRequest, context: Context) -> Message:
        """List runs."""
        page = await self._runs.list(context.principal, mapping.run_query(request), page_of(request))
        out = wire.ListRunsResponse(pagination=pagination(page.info))
        for run in page.items:
            mapping.put_run(out.items.add(), run)
        return out

    async def get_run(self, request: wire.GetRunRequest, context: Context) -> Message:
        """Get a run."""
        return mapping.run_view(await self._runs.view(context.principal, request.run_id.lower()))

    async def list_run_events(self, request: wire.ListRunEventsRequest, context: Context) -> Message:
        """List the events of a run."""
        limit = request.limit if request.HasField("limit") else DEFAULT_EVENTS
        events, following = await self._runs.events(
            context.principal, request.run_id.lower(), request.after_sequence, limit
        )
        out = wire.ListRunEventsResponse(next_after_sequence=following)
        for event in events:
            mapping.put_event(out.items.add(), event)
        return out

    async def list_run_tasks(self, request: wire.ListRunTasksRequest, context: Context) -> Message:
        """List the tasks of a run."""
        query = task_query(request, run_id=request.run_id)
        page = await self._runs.tasks(context.principal, query, page_of(request))
        out = wire.ListRunTasksResponse(pagination=pagination(page.info))
        for task in page.items:
            put_task(out.items.add(), task)
        return out

    async def list_run_steps(self, request: wire.ListRunStepsRequest, context: Context) -> Message:
        """List the steps of a run."""
        page = await self._steps.list(context.principal, request.run_id.lower(), page_of(request))
        out = wire.ListRunStepsResponse(pagination=pagination(page.info))
        for step in page.items:
            put_step(out.items.add(), step)
        return out

    async def watch_run(self, request: wire.WatchRunRequest, context: Context) -> AsyncGenerator[bytes, None]:
        """Send what happens in a run."""
        async for answer in self._watch(request, context, tasks=False):
            yield answer

    async def watch_run_tasks(
        self, request: wire.WatchRunTasksRequest, context: Context
    ) -> AsyncGenerator[bytes, None]:
        """Send what happens to the tasks of a run."""
        async for answer in self._watch(request, context, tasks=True):
            yield answer

    async def _watch(
        self, request: wire.WatchRunRequest | wire.WatchRunTasksRequest, context: Context, *, tasks: bool
    ) -> AsyncGenerator[bytes, None]:
        deep = request.include_descendants
        cursor = cursor_of(request.after_sequence, request.cursor, deep)
        watch = self._watching.watch(context.principal, request.run_id.lower(), cursor, deep=deep, tasks=tasks)
        async with aclosing(watch):
            async for sent in watch:
                context.cursor = sent.cursor
                yield message(sent)

    async def get_run_result(self, request: wire.GetRunResultRequest, context: Context) -> Message:
        """Wait for the end of a run."""
        timeout_s = request.timeout if request.HasField("timeout") else DEFAULT_WAIT_S
        result = await self._executions.result(context.principal, request.run_id.lower(), timeout_s)
        check_in_time(result, request.fail_on_timeout, timeout_s)
        answer: Message = put_result(wire.GetRunResultResponse(), result, self._executions.now_us())
        return answer

    async def cancel_run(self, request: wire.CancelRunRequest, context: Context) -> Message:
        """Cancel a run."""
        run, replayed = await self._runs.cancel(context.principal, request.run_id.lower(), request.reason, context.key)
        return _answer(run, replayed, context)

    async def list_run_children(self, request: wire.ListRunChildrenRequest, context: Context) -> Message:
        """List the children of a run."""
        page = await self._runs.children(context.principal, request.run_id.lower(), page_of(request))
        out = wire.ListRunChildrenResponse(pagination=pagination(page.info))
        for run in page.items:
            mapping.put_run(out.items.add(), run)
        return out

    async def retry_run(self, request: wire.RetryRunRequest, context: Context) -> Message:
        """Retry a failed run."""
        run, replayed = await self._operations.retry(
            context.principal, request.run_id.lower(), request.note, request.from_step, context.key
        )
        return _answer(run, replayed, context)

    async def rerun_run(self, request: wire.RerunRunRequest, context: Context) -> Message:
        """Begin a new run with what another was given."""
        run, replayed = await self._operations.rerun(
            context.principal, request.run_id.lower(), request.version, context.key
        )
        return _answer(run, replayed, context)

    async def pause_run(self, request: wire.PauseRunRequest, context: Context) -> Message:
        """Pause a run."""
        run, replayed = await self._operations.pause(
            context.principal, request.run_id.lower(), request.reason, context.key
        )
        return _answer(run, replayed, context)

    async def resume_run(self, request: wire.ResumeRunRequest, context: Context) -> Message:
        """Resume a run."""
        run, replayed = await self._operations.resume(context.principal, request.run_id.lower(), context.key)
        return _answer(run, replayed, context)

    async def retry_runs(self, request: wire.RetryRunsRequest, context: Context) -> Message:
        """Retry many runs."""
        many = mapping.many_runs(request, request.note)
        done = await self._operations.retry_many(context.principal, many, context.key)
        context.replayed(done.replayed)
        return mapping.put_done(wire.RetryRunsResponse(), done, context.correlation_id)

    async def cancel_runs(self, request: wire.CancelRunsRequest, context: Context) -> Message:
        """Cancel many runs."""
        many = mapping.many_runs(request, request.reason)
        done = await self._operations.cancel_many(context.principal, many, context.key)
        context.replayed(done.replayed)
        return mapping.put_done(wire.CancelRunsResponse(), done, context.correlation_id)

    async def start_run(self, request: wire.StartRunRequest, context: Context) -> Message:
        """Start a code-first run."""
        result = await self._code_runs.start(
            context.principal, code_mapping.new_code_run(request), context.key, request.wait
        )
        context.replayed(result.replayed)
        return code_mapping.put_started(result)

    async def signal_run(self, request: wire.SignalRunRequest, context: Context) -> Message:
        """Signal a run."""
        run_id = request.run_id.lower()
        sequence, replayed = await self._code_runs.signal(
            context.principal, run_id, request.name, request.value, context.key
        )
        context.replayed(replayed)
        return wire.SignalRunResponse(run_id=run_id, sequence=sequence)

    async def get_run_state(self, request: wire.GetRunStateRequest, context: Context) -> Message:
        """Get what a run remembers."""
        state = await self._code_runs.state(context.principal, request.run_id.lower())
        return wire.GetRunStateResponse(state=code_mapping.state_struct(state))

    async def get_run_history(self, request: wire.GetRunHistoryRequest, context: Context) -> Message:
        """Get what a run's code has seen and done."""
        found = await self._code_runs.history(
            context.principal, request.run_id.lower(), request.after_sequence, request.after_number
        )
        run = found.run
        out = wire.GetRunHistoryResponse(
            run_id=run.id, workflow=run.workflow, version=run.workflow_version, first_number=found.first,
            seen_sequence=found.seen, more=found.history.more,
        )  # fmt: skip
        put_history(out.items, found.history)
        return out


def _answer(run: Run, replayed: bool, context: Context) -> Message:
    context.replayed(replayed)
    return mapping.put_run(run_pb2.Run(), run)
