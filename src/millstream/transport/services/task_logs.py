"""TaskLogService: reading what tasks log."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from google.protobuf.message import Message

from millstream.transport.context import Context
from millstream.transport.mapping import task_logs as mapping
from millstream.transport.mapping.pages import pagination
from millstream.transport.use_cases import LogWatching, TaskLogs
from millstream.wire.v1 import task_log_service_pb2 as wire


class TaskLogService:
    """Logs over the wire."""

    def __init__(self, logs: TaskLogs, watching: LogWatching) -> None:
        self._logs = logs
        self._watching = watching

    async def list_task_logs(self, request: wire.ListTaskLogsRequest, context: Context) -> Message:
        """List the lines of a task."""
        page = await self._logs.of_task(context.principal, mapping.query_of(request), mapping.log_page_of(request))
        out = wire.ListTaskLogsResponse(pagination=pagination(page.info))
        for entry in page.items:
            mapping.put_entry(out.items.add(), entry)
        return out

    async def list_run_logs(self, request: wire.ListRunLogsRequest, context: Context) -> Message:
        """List the lines of a run."""
        page = await self._logs.of_run(context.principal, mapping.query_of(request), mapping.log_page_of(request))
        out = wire.ListRunLogsResponse(pagination=pagination(page.info))
        for entry in page.items:
            mapping.put_entry(out.items.add(), entry)
        return out

    async def watch_task_logs(
        self, request: wire.WatchTaskLogsRequest, context: Context
    ) -> AsyncGenerator[bytes, None]:
        """Send the lines of a task."""
        async for answer in self._watch(request, context):
            yield answer

    async def watch_run_logs(self, request: wire.WatchRunLogsRequest, context: Context) -> AsyncGenerator[bytes, None]:
        """Send the lines of a run."""
        async for answer in self._watch(request, context):
            yield answer

    async def _watch(
        self, request: wire.WatchTaskLogsRequest | wire.WatchRunLogsRequest, context: Context
    ) -> AsyncGenerator[bytes, None]:
        context.cursor = request.cursor
        watch = self._watching.watch(context.principal, mapping.watch_query_of(request), request.cursor)
        async with aclosing(watch):
            async for sent in watch:
                context.cursor = sent.cursor
                yield mapping.message(sent)
