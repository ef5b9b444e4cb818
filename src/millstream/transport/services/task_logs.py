"""TaskLogService: reading what tasks log."""

from google.protobuf.message import Message

from millstream.transport.context import Context
from millstream.transport.mapping import task_logs as mapping
from millstream.transport.mapping.pages import pagination
from millstream.transport.use_cases import TaskLogs
from millstream.wire.v1 import task_log_service_pb2 as wire


class TaskLogService:
    """Logs over the wire."""

    def __init__(self, logs: TaskLogs) -> None:
        self._logs = logs

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
