"""WorkerService: the stream of workers, its unary twins for the simple client, and who the workers are."""

from typing import Any

from google.protobuf.message import Message

from millstream.application.views.leases import LeaseRef
from millstream.application.views.reports import ReportResult, Reports
from millstream.transport.context import Context
from millstream.transport.log_stream import LogStream
from millstream.transport.mapping import reports
from millstream.transport.mapping import task_logs as logs
from millstream.transport.mapping import workers as mapping
from millstream.transport.mapping.code import put_history
from millstream.transport.mapping.pages import page_of, pagination
from millstream.transport.payloads import PayloadRules
from millstream.transport.pipeline import Stream
from millstream.transport.reading import Reader
from millstream.transport.use_cases import Discovery, LogIntake, Workers
from millstream.transport.work_stream import WorkStream
from millstream.wire.v1 import worker_pb2
from millstream.wire.v1 import worker_service_pb2 as wire

DEFAULT_POLL_S = 30.0


class WorkerService:
    """Workers over the wire."""

    def __init__(
        self, workers: Workers, logs: LogIntake, discovery: Discovery, rules: PayloadRules, version: str
    ) -> None:
        self._workers = workers
        self._logs = logs
        self._discovery = discovery
        self._rules = rules
        self._version = version

    async def work(self, stream: Stream, context: Context, reader: Reader) -> None:
        """A worker's connection."""
        await WorkStream(stream, context, reader, self._workers, self._logs, self._version).serve()

    async def stream_logs(self, stream: Stream, context: Context, reader: Reader) -> None:
        """A stream of lines."""
        await LogStream(stream, context, reader, self._logs).serve()

    async def poll(self, request: wire.PollRequest, context: Context) -> Message:
        """Lease tasks, waiting for the first."""
        leases = await self._workers.poll(
            context.principal,
            request.worker_id.lower(),
            request.name,
            tuple(request.kinds),
            mapping.queues_of(request),
            request.max_tasks if request.HasField("max_tasks") else 1,
            request.wait if request.HasField("wait") else DEFAULT_POLL_S,
        )
        out = wire.PollResponse()
        for lease in leases:
            mapping.put_lease(out.leases.add(), lease)
        return out

    async def complete(self, request: wire.CompleteRequest, context: Context) -> Message:
        """Complete tasks."""
        taken = reports.completions(request.completions, self._rules, context.trusted)
        self._note_ends(context, request.completions)
        out = wire.CompleteResponse()
        _put(out.results, await self._report(context, Reports(completions=tuple(taken))), context)
        return out

    async def fail(self, request: wire.FailRequest, context: Context) -> Message:
        """Report failed attempts."""
        failures = tuple(mapping.failure_of(each) for each in request.failures)
        self._note_ends(context, request.failures)
        out = wire.FailResponse()
        _put(out.results, await self._report(context, Reports(failures=failures)), context)
        return out

    async def answer_activations(self, request: wire.AnswerActivationsRequest, context: Context) -> Message:
        """Answer activations."""
        taken = reports.answers(request.answers, self._rules, context.trusted)
        out = wire.AnswerActivationsResponse()
        _put(out.results, await self._report(context, Reports(answers=tuple(taken))), context)
        return out

    async def fetch_history(self, request: wire.FetchHistoryRequest, context: Context) -> Message:
        """Read the history of a run."""
        history = await self._workers.history(
            context.principal, LeaseRef(request.task_id.lower(), request.attempt), request.after_sequence,
            request.after_number,
        )  # fmt: skip
        out = wire.FetchHistoryResponse(more=history.more)
        put_history(out.items, history)
        return out

    async def heartbeat(self, request: wire.HeartbeatRequest, context: Context) -> Message:
        """Renew leases."""
        out = wire.HeartbeatResponse()
        _put(out.results, await self._report(context, Reports(heartbeats=mapping.refs_of(request.leases))), context)
        return out

    async def report_progress(self, request: wire.ReportProgressRequest, context: Context) -> Message:
        """Report progress."""
        progress = tuple(mapping.progress_of(each) for each in request.progress)
        out = wire.ReportProgressResponse()
        _put(out.results, await self._report(context, Reports(progress=progress)), context)
        return out

    async def list_workers(self, request: wire.ListWorkersRequest, context: Context) -> Message:
        """List workers."""
        page = await self._discovery.workers(context.principal, mapping.worker_query(request), page_of(request))
        out = wire.ListWorkersResponse(pagination=pagination(page.info))
        for worker in page.items:
            mapping.put_worker(out.items.add(), worker)
        return out

    async def get_worker(self, request: wire.GetWorkerRequest, context: Context) -> Message:
        """Get a worker."""
        found = await self._discovery.worker(context.principal, request.worker_id.lower())
        return mapping.put_worker(worker_pb2.Worker(), found)

    async def list_kinds(self, request: wire.ListKindsRequest, context: Context) -> Message:
        """List kinds."""
        page = await self._discovery.kinds(context.principal, mapping.kind_query(request), page_of(request))
        out = wire.ListKindsResponse(pagination=pagination(page.info))
        for kind in page.items:
            mapping.put_kind(out.items.add(), kind)
        return out

    def _note_ends(self, context: Context, told: Any) -> None:
        """Note where attempts have ended to log."""
        if ends := logs.ends_of(told):
            source = self._logs.open(context.principal, logs.reader_of(self._logs.now_us), lambda acks: None)
            source.ended(ends)

    async def _report(self, context: Context, what: Reports) -> list[ReportResult]:
        return await self._workers.report(context.principal, what)


def _put(out: Any, results: list[ReportResult], context: Context) -> None:
    for result in results:
        mapping.put_result(out.add(), result, context.correlation_id)
