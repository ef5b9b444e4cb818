"""StreamService: streams over REST, as server-sent events or as lines."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from google.protobuf.message import Message

from millstream.application.views.artifacts import Sent
from millstream.domain.errors import ValidationFailed
from millstream.transport.context import Context
from millstream.transport.mapping import run_streams, task_logs
from millstream.transport.mapping.artifacts import watched_of
from millstream.transport.mapping.events import RETRY, error_event, event, event_body
from millstream.transport.mapping.lines import NDJSON, artifact_object, body, error_line, sent_line
from millstream.transport.mapping.run_streams import Shown, cursor_of
from millstream.transport.mapping.task_logs import watch_query_of
from millstream.transport.use_cases import LogWatching, RunWatching, Watching
from millstream.wire.v1 import stream_service_pb2 as wire

LAST_EVENT = "last-event-id"
CURSOR_MOST = 40_000
"""As the contract bounds the parameter."""

Answers = AsyncGenerator[Message | bytes, None]


class StreamService:
    """Streams as text."""

    def __init__(self, watching: Watching, runs: RunWatching, logs: LogWatching) -> None:
        self._watching = watching
        self._runs = runs
        self._logs = logs

    async def stream_artifacts(self, request: wire.StreamArtifactsRequest, context: Context) -> Answers:
        """Send artifacts as they are stored."""
        cursor = _resumed(request.cursor, context)
        as_lines = _begin(context, cursor)
        watch = self._watching.watch(context.principal, watched_of(request), cursor)
        began = False
        async with aclosing(watch):
            async for sent in watch:
                context.cursor = sent.cursor
                if as_lines:
                    yield body(sent_line(sent))
                else:
                    yield event_body(_event(sent) if began else RETRY + _event(sent))
                began = True

    async def stream_run(self, request: wire.StreamRunRequest, context: Context) -> Answers:
        """Send what happens in a run."""
        cursor = cursor_of(request.after_sequence, request.cursor, request.include_descendants)
        async for answer in self._run(
            context, request.run_id, cursor, run_streams.of_run, deep=request.include_descendants
        ):
            yield answer

    async def stream_run_tasks(self, request: wire.StreamRunTasksRequest, context: Context) -> Answers:
        """Send what happens to the tasks of a run."""
        cursor = cursor_of(request.after_sequence, request.cursor, request.include_descendants)
        async for answer in self._run(
            context, request.run_id, cursor, run_streams.of_run, deep=request.include_descendants, tasks=True
        ):
            yield answer

    async def stream_workflow_execution(
        self, request: wire.StreamWorkflowExecutionRequest, context: Context
    ) -> Answers:
        """Send what happens in an execution."""
        cursor = cursor_of(request.after_sequence, request.cursor, False)
        async for answer in self._run(context, request.workflow_execution_id, cursor, run_streams.of_execution):
            yield answer

    async def stream_workflow_execution_tree(
        self, request: wire.StreamWorkflowExecutionTreeRequest, context: Context
    ) -> Answers:
        """Send what happens in an execution and its descendants."""
        async for answer in self._run(
            context, request.workflow_execution_id, request.cursor, run_streams.of_execution, deep=True
        ):
            yield answer

    async def stream_workflow_execution_tasks(
        self, request: wire.StreamWorkflowExecutionTasksRequest, context: Context
    ) -> Answers:
        """Send what happens to the tasks of an execution."""
        cursor = cursor_of(request.after_sequence, request.cursor, False)
        async for answer in self._run(
            context, request.workflow_execution_id, cursor, run_streams.of_execution, tasks=True
        ):
            yield answer

    async def stream_task_logs(self, request: wire.StreamTaskLogsRequest, context: Context) -> Answers:
        """Send what a task logs."""
        async for answer in self._of_logs(request, context):
            yield answer

    async def stream_run_logs(self, request: wire.StreamRunLogsRequest, context: Context) -> Answers:
        """Send what the tasks of a run log."""
        async for answer in self._of_logs(request, context):
            yield answer

    async def _of_logs(self, request: Any, context: Context) -> Answers:
        cursor = _resumed(request.cursor, context)
        as_lines = _begin(context, cursor)
        encode = task_logs.ndjson if as_lines else task_logs.sse
        watch = self._logs.watch(context.principal, watch_query_of(request), cursor)
        began = as_lines
        async with aclosing(watch):
            async for sent in watch:
                if not began:
                    began = True
                    yield event_body(RETRY)
                context.cursor = sent.cursor
                yield encode(sent)

    async def _run(
        self, context: Context, run_id: str, cursor: str, shown: Shown, *, deep: bool = False, tasks: bool = False
    ) -> Answers:
        cursor = _resumed(cursor, context)
        as_lines = _begin(context, cursor)
        encode = run_streams.ndjson if as_lines else run_streams.sse
        watch = self._runs.watch(context.principal, run_id.lower(), cursor, deep=deep, tasks=tasks)
        began = as_lines
        async with aclosing(watch):
            async for sent in watch:
                if not began:
                    began = True
                    yield event_body(RETRY)
                context.cursor = sent.cursor
                yield encode(sent, shown)


def _begin(context: Context, cursor: str) -> bool:
    """Say what a stream of text needs; whether it is of lines."""
    as_lines = NDJSON in context.metadata.get("accept", "")
    context.cursor = cursor
    context.headers["cache-control"] = "no-store"
    context.last_words = (error_line if as_lines else error_event)(lambda: context.cursor)
    return as_lines


def _resumed(cursor: str, context: Context) -> str:
    """Where to go on: a page that began with a cursor resumes by the header, and the browser sends both."""
    last = context.metadata.get(LAST_EVENT, "")
    if len(last) > CURSOR_MOST:
        raise ValidationFailed.of(LAST_EVENT, f"has over {CURSOR_MOST:,} characters", "OUT_OF_RANGE")
    return last or cursor


def _event(sent: Sent) -> bytes:
    if sent.artifact is None:
        return event("heartbeat", sent.cursor, {})
    return event("artifact", sent.cursor, artifact_object(sent.artifact))
