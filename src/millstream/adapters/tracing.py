"""Traces, exported by OTLP over gRPC. Imported only where an endpoint is configured.

A call has a span below its caller's, a run one below that of the call that began it, an attempt one below what made its
task. The latter two are made when they end, by whichever server commits that, with ids that follow from theirs (see
domain.tracing): what happens in between is on servers and workers that do not know each other.
"""

from typing import Final
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Span, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from millstream.domain.batch import Batch
from millstream.domain.runs import Attempt, AttemptStatus, Run, RunStatus, Task
from millstream.domain.tracing import below, end_of, sampled, span_id, trace_id

_QUEUED_MOST: Final = 8192
"""Spans that wait to be exported; what is over is dropped, never waited for."""
_EXPORT_S: Final = 5.0
"""How long an export may take, that at the end included."""


class _Ids(RandomIdGenerator):
    """Random ids, but where the span's own is known."""

    def __init__(self) -> None:
        self.known = 0

    def generate_span_id(self) -> int:
        """The known one, or a random one."""
        return self.known or super().generate_span_id()


class CallSpan:
    """The span of a call.

    Attributes:
        traceparent: The context of what the call sets off.
    """

    __slots__ = ("_span", "traceparent")

    def __init__(self, span: Span) -> None:
        found = span.get_span_context()
        self._span = span
        self.traceparent = f"00-{found.trace_id:032x}-{found.span_id:016x}-{int(found.trace_flags):02x}"

    def end(self, code: str) -> None:
        """The call ended with a code of the error table, or "OK"."""
        if code != "OK":
            self._span.set_attribute("error.type", code)
            self._span.set_status(Status(StatusCode.ERROR, code))
        self._span.end()


class Tracer:
    """Makes spans and exports them.

    Args:
        endpoint: The collector, "http://host:4317", or https.
        ratio: Share of the traces begun here that are recorded; one that a caller has begun is as that chose.
        version: Of the service.
        instance: Name of this server.
    """

    def __init__(self, endpoint: str, ratio: float, version: str, instance: str) -> None:
        self._ids = _Ids()
        resource = {"service.name": "millstream", "service.version": version, "service.instance.id": instance}
        self._provider = TracerProvider(
            sampler=ParentBasedTraceIdRatio(ratio),
            id_generator=self._ids,
            resource=Resource.create(resource),
            shutdown_on_exit=False,
        )
        exporter = OTLPSpanExporter(endpoint, urlsplit(endpoint).scheme == "http", timeout=_EXPORT_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=_QUEUED_MOST))
        self._tracer = self._provider.get_tracer("millstream", version)

    def begin(self, rpc: str, traceparent: str) -> CallSpan | None:
        """The span of a call that begins, below its caller's context or "" for none; None where it is not recorded."""
        parent = set_span_in_context(NonRecordingSpan(_context(traceparent))) if traceparent else None
        attributes = {"rpc.system.name": "grpc", "rpc.method": f"millstream.v1.{rpc}"}
        span = self._tracer.start_span(rpc, parent, SpanKind.SERVER, attributes)
        return CallSpan(span) if isinstance(span, Span) else None

    def committed(self, batch: Batch) -> None:
        """Export the runs and the attempts that ended with a commit."""
        for attempt in batch.attempts:
            task = batch.tasks.get(attempt.task_id)
            if task is not None and sampled(task.trace):
                self._attempt(task, attempt)
        for run in batch.ended.values():
            if run.finished_us and sampled(run.trace):
                self._run(run)

    def close(self) -> None:
        """Export what waits, and end. It blocks, for seconds where the collector is away."""
        self._provider.shutdown()

    def _attempt(self, task: Task, attempt: Attempt) -> None:
        attributes: dict[str, str | int] = {
            "millstream.run.id": task.run_id,
            "millstream.task.id": task.id,
            "millstream.task.kind": task.kind,
            "millstream.task.attempt": attempt.number,
            "millstream.queue": task.queue,
            "millstream.tenant": task.tenant,
            "millstream.worker": attempt.worker_name,
            "millstream.status": attempt.status.name,
        }
        # Of an error only its code: the message is the worker's own words, and goes to those who may read the run.
        error = "" if attempt.status is AttemptStatus.COMPLETED else attempt.error_code or attempt.status.name
        self._ended(
            f"task {task.kind}", task.trace, below(task.trace, task.id, attempt.number), attributes,
            attempt.started_us, attempt.finished_us, error,
        )  # fmt: skip

    def _run(self, run: Run) -> None:
        attributes: dict[str, str | int] = {
            "millstream.run.id": run.id,
            "millstream.run.kind": run.kind.name,
            "millstream.workflow": run.workflow,
            "millstream.tenant": run.tenant,
            "millstream.status": run.status.name,
        }
        error = "" if run.status is RunStatus.COMPLETED else run.error_code or run.status.name
        name = f"run {run.workflow or run.kind.name.lower()}"
        self._ended(
            name, run.trace, end_of(run.trace, run.id, run.ends_before), attributes,
            run.created_us, run.finished_us, error,
        )  # fmt: skip

    def _ended(
        self,
        name: str,
        parent: str,
        own: str,
        attributes: dict[str, str | int],
        began_us: int,
        ended_us: int,
        error: str,
    ) -> None:
        """A span that has ended, with the id that it was known by."""
        self._ids.known = int(span_id(own), 16)
        try:
            context = set_span_in_context(NonRecordingSpan(_context(parent)))
            span = self._tracer.start_span(name, context, SpanKind.INTERNAL, attributes, start_time=began_us * 1000)
        finally:
            self._ids.known = 0
        if error:
            span.set_attribute("error.type", error)
            span.set_status(Status(StatusCode.ERROR, error))
        span.end(ended_us * 1000)


def _context(traceparent: str) -> SpanContext:
    return SpanContext(
        int(trace_id(traceparent), 16), int(span_id(traceparent), 16), True, TraceFlags(int(traceparent[53:55], 16))
    )
