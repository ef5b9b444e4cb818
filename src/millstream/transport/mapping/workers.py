"""Workers: what they say of themselves, what they are given, and what they report."""

from collections.abc import Iterable
from typing import Any

from millstream.application.views.leases import Cancellation, Hello, Lease, LeaseRef
from millstream.application.views.reports import AttemptFailure, Completion, Progress, ReportResult
from millstream.domain.tracing import below
from millstream.domain.workers import TASK_KIND, KindQuery, KindSpec, KnownKind, KnownWorker, WorkerQuery
from millstream.transport.mapping.agents import agent_spec, put_serving
from millstream.transport.mapping.artifacts import new_artifact, put_artifact, type_spec
from millstream.transport.mapping.code import put_activation
from millstream.transport.mapping.errors import body
from millstream.transport.mapping.json import struct_of, text_of
from millstream.transport.mapping.pages import known
from millstream.transport.mapping.times import duration_us, put, put_duration
from millstream.transport.payloads import too_large
from millstream.wire.v1 import worker_pb2
from millstream.wire.v1 import worker_service_pb2 as wire

DEFAULT_QUEUE = "default"
MAX_KIND_SCHEMA_BYTES = 64 * 1024
_MAX_CODE = 128
_MAX_MESSAGE = 4000


def hello_of(message: worker_pb2.WorkerHello) -> Hello:
    """Who a worker is. Without queues it takes from "default" and those of its agents."""
    agents = tuple(agent_spec(each) for each in message.agents)
    queues = message.queues or [DEFAULT_QUEUE, *(agent.queue for agent in agents)]
    return Hello(
        worker_id=message.worker_id.lower(),
        name=message.name,
        kinds=tuple(message.kinds),
        queues=tuple(dict.fromkeys(queues)),
        agents=agents,
        types=tuple(type_spec(each, f"hello.types[{i}].schema") for i, each in enumerate(message.types)),
        held=refs_of(message.held),
        slots=message.slots,
        specs=tuple(_kind_spec(each, f"hello.kind_specs[{i}].") for i, each in enumerate(message.kind_specs)),
    )


def _kind_spec(message: worker_pb2.KindSpec, prefix: str) -> KindSpec:
    for field in ("input_schema", "output_schema"):
        size = len(getattr(message, field))
        if size > MAX_KIND_SCHEMA_BYTES:
            raise too_large(prefix + field, size, MAX_KIND_SCHEMA_BYTES)
    return KindSpec(
        name=message.kind,
        category=int(message.category) or TASK_KIND,
        version=message.version,
        description=message.description,
        input_schema=text_of(message.input_schema),
        output_schema=text_of(message.output_schema),
    )


def refs_of(messages: Iterable[worker_pb2.LeaseRef]) -> tuple[LeaseRef, ...]:
    """Leases by their fences."""
    return tuple([LeaseRef(each.task_id.lower(), each.attempt) for each in messages])


def completion_of(message: worker_pb2.Completion) -> Completion:
    """A task done. Raises ValidationFailed where a visibility makes no sense."""
    return Completion(
        task_id=message.task_id.lower(),
        attempt=message.attempt,
        output=message.output,
        artifacts=[new_artifact(each, prefix=f"artifacts[{index}].") for index, each in enumerate(message.artifacts)],
    )


def failure_of(message: worker_pb2.AttemptFailure) -> AttemptFailure:
    """A failed attempt.

    Its text is made to fit instead of refused: a worker whose report of a failure fails has nowhere to go.
    """
    return AttemptFailure(
        task_id=message.task_id.lower(),
        attempt=message.attempt,
        code=_fit(message.code, _MAX_CODE) or "ERROR",
        message=_fit(message.message, _MAX_MESSAGE),
        retryable=message.retryable if message.HasField("retryable") else None,
        retry_after_us=duration_us(message.retry_after) if message.HasField("retry_after") else 0,
    )


def progress_of(message: worker_pb2.TaskProgress) -> Progress:
    """How far a task is."""
    return Progress(
        task_id=message.task_id.lower(),
        attempt=message.attempt,
        fraction=message.fraction,
        message=message.message.replace("\0", "\ufffd"),
    )


def _fit(text: str, size: int) -> str:
    return text.replace("\0", "\ufffd")[:size]


def put_lease(out: worker_pb2.Lease, lease: Lease) -> None:
    """Write a lease."""
    task = lease.task
    out.task_id = task.id
    out.attempt = lease.attempt
    out.run_id = task.run_id
    out.kind = task.kind
    out.queue = task.queue
    out.agent = task.agent
    if task.input:
        out.input = task.input
    for artifact in lease.artifacts:
        put_artifact(out.artifacts.add(), artifact)
    out.idempotency_token = task.id
    put(out.deadline, task.deadline_us)
    if task.timeouts.heartbeat_us:
        put_duration(out.heartbeat_timeout, task.timeouts.heartbeat_us)
    out.tries = lease.tries
    out.max_attempts = task.retry.max_attempts
    put(out.created_at, task.created_us)
    out.step = task.step
    if task.trace:
        out.traceparent = below(task.trace, task.id, lease.attempt)
    if lease.activation is not None:
        put_activation(out.activation, lease.activation, lease.attempt, lease.history)


def put_cancellation(out: worker_pb2.Cancellation, cancellation: Cancellation) -> None:
    """Write that a lease must be given up."""
    out.task_id = cancellation.task_id
    out.attempt = cancellation.attempt
    out.reason = cancellation.reason


def put_result(out: worker_pb2.ReportResult, result: ReportResult, correlation_id: str) -> None:
    """Write what became of a report."""
    out.task_id = result.task_id
    out.attempt = result.attempt
    out.cancel_requested = result.cancel_requested
    if result.error is not None:
        out.error.CopyFrom(body(result.error, correlation_id))


def worker_query(request: wire.ListWorkersRequest) -> WorkerQuery:
    """Which workers a request asks for."""
    status = known(request.status, 3, "status")
    return WorkerQuery(
        status=worker_pb2.Worker.Status.Name(status) if status else "",  # type: ignore[arg-type]
        kind=request.kind,
        queue=request.queue,
        name=request.name,
    )


def kind_query(request: wire.ListKindsRequest) -> KindQuery:
    """Which kinds a request asks for."""
    status = known(request.status, 2, "status")
    return KindQuery(
        name=request.kind,
        category=known(request.category, 2, "category"),
        status=worker_pb2.Kind.Status.Name(status) if status else "",  # type: ignore[arg-type]
    )


def put_worker(out: worker_pb2.Worker, worker: KnownWorker) -> worker_pb2.Worker:
    """Write a worker."""
    out.worker_id, out.name, out.server = worker.worker_id, worker.name, worker.server
    out.status = worker_pb2.Worker.Status.Value(worker.status)
    put(out.connected_at, worker.connected_us)
    put(out.last_heartbeat_at, worker.heard_us)
    put(out.disconnected_at, worker.left_us)
    out.slots, out.slots_used = worker.slots, worker.used
    out.queues.extend(worker.queues)
    out.agents.extend(worker.agents)
    for spec in worker.kinds:
        _put_spec(out.kinds.add(), spec)
    out.truncated = worker.truncated
    return out


def put_kind(out: worker_pb2.Kind, kind: KnownKind) -> None:
    """Write a kind with who serves it."""
    _put_spec(out, kind.spec)
    out.status = worker_pb2.Kind.Status.Value("ONLINE" if kind.count else "OFFLINE")
    out.queues.extend(kind.queues)
    out.worker_count = kind.count
    for worker in kind.workers:
        put_serving(out.served_by.add(), worker)
    put(out.registered_at, kind.registered_us)


def _put_spec(out: worker_pb2.KindSpec | worker_pb2.Kind, spec: KindSpec) -> None:
    out.kind, out.version, out.description = spec.name, spec.version, spec.description
    out.category = spec.category  # type: ignore[assignment]
    if spec.input_schema:
        out.input_schema = struct_of(spec.input_schema)
    if spec.output_schema:
        out.output_schema = struct_of(spec.output_schema)


def queues_of(message: Any) -> tuple[str, ...]:
    """Queues that a polling worker takes from."""
    return tuple(dict.fromkeys(message.queues)) or (DEFAULT_QUEUE,)
