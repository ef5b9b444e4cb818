"""What the service answers, as small values in place of protobuf messages."""

import builtins
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import BaseModel

from millstream.sdk.errors import FieldDetail, ServiceError, service_error
from millstream.sdk.payload import JsonValue, from_struct, from_value
from millstream.sdk.policies import seconds
from millstream.v1 import artifact_pb2, artifact_service_pb2, error_pb2, run_pb2

ModelT = TypeVar("ModelT", bound=BaseModel)


def when(message: Any, name: str) -> datetime | None:
    """The time in the field `name`, in UTC; None where it is absent."""
    if not message.HasField(name):
        return None
    stamp: Timestamp = getattr(message, name)
    return stamp.ToDatetime(UTC)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A typed, immutable piece of data."""

    id: str
    type: str
    payload: dict[str, JsonValue]
    produced_by: str = ""
    correlation_id: str = ""
    created_at: datetime | None = None
    visibility: str = ""
    partition_key: str = ""
    tags: tuple[str, ...] = ()
    version: int = 0
    consumed_by: tuple[str, ...] = ()
    """In lists with `embed_meta`."""
    consumptions: tuple[JsonValue, ...] = ()
    """As `consumed_by`: who took it up, when, and in which run."""
    payload_ref: str = ""
    """The data are kept outside, and `payload` is empty; `client.payloads` downloads them."""
    payload_bytes: int = 0
    """With payload_ref: their size."""

    def as_model(self, model: builtins.type[ModelT]) -> ModelT:
        """The payload as a model.

        Raises:
            pydantic.ValidationError: it is not one.
        """
        return model.model_validate(self.payload)

    @classmethod
    def from_wire(cls, wire: artifact_pb2.Artifact | artifact_service_pb2.GetArtifactResponse) -> "Artifact":
        """The value of a message."""
        consumed_by: tuple[str, ...] = ()
        consumptions: tuple[JsonValue, ...] = ()
        if isinstance(wire, artifact_pb2.Artifact):
            consumed_by = tuple(value.string_value for value in wire.consumed_by.values)
            consumptions = tuple(from_value(value) for value in wire.consumptions.values)
        return cls(
            id=wire.id,
            type=wire.type,
            payload=from_struct(wire.payload),
            produced_by=wire.produced_by,
            correlation_id=wire.correlation_id,
            created_at=when(wire, "created_at"),
            visibility=wire.visibility_kind,
            partition_key=wire.partition_key,
            tags=tuple(wire.tags),
            version=wire.version,
            consumed_by=consumed_by,
            consumptions=consumptions,
            payload_ref=wire.payload_ref,
            payload_bytes=int(wire.payload_bytes),
        )


@dataclass(frozen=True, slots=True)
class Published:
    """That an artifact was stored. `replayed`: by an earlier call with the same idempotency key."""

    artifact_id: str
    correlation_id: str
    replayed: bool = False
    deprecation: str = ""
    """Its type is deprecated: what to use in its place."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A finally failed task of a cascade."""

    agent: str
    task_id: str
    code: str
    message: str
    attempts: int
    artifact_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What a cascade made."""

    correlation_id: str
    artifacts: tuple[Artifact, ...]
    """In the order they were stored, the input included."""
    completed: bool
    """The cascade is idle. False: the time passed first."""
    duration_ms: float
    failures: tuple[Failure, ...] = ()
    truncated: bool = False
    """There is more than is returned here."""
    next_page_token: str = ""
    """With truncated: lists the rest as `page_token` of `client.artifacts.list` with this correlation id."""
    replayed: bool = False
    deprecation: str = ""
    """The input's type is deprecated: what to use in its place."""

    def of(self, model: type[ModelT]) -> list[ModelT]:
        """The artifacts of one type, as models, in the order they were stored."""
        return [artifact.as_model(model) for artifact in self.artifacts if artifact.type == model.__name__]


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """What became of one item of a batch: `status` is "accepted", "duplicate" or "failed"."""

    index: int
    status: str
    id: str = ""
    """Id of the artifact, or of the task."""
    run_id: str = ""
    """Id of the cascade (which is the correlation id), or of the task's run."""
    error: ServiceError | None = None
    deprecation: str = ""
    """The artifact's type is deprecated: what to use in its place."""


@dataclass(frozen=True, slots=True)
class CorrelationStatus:
    """Where a cascade stands: `state` is "active", "completed", "failed" or "not_found"."""

    correlation_id: str
    state: str
    has_pending_work: bool = False
    artifact_count: int = 0
    """Those that the caller may see."""
    error_count: int = 0
    started_at: datetime | None = None
    last_activity_at: datetime | None = None
    artifact_count_is_estimate: bool = False


@dataclass(frozen=True, slots=True)
class ArtifactSummary:
    """Counts of artifacts."""

    total: int
    by_type: Mapping[str, int]
    by_producer: Mapping[str, int]
    by_visibility: Mapping[str, int]
    tag_counts: Mapping[str, int]
    earliest_created_at: datetime | None
    latest_created_at: datetime | None


@dataclass(frozen=True, slots=True)
class ArtifactType:
    """A named type of artifacts with its JSON Schema."""

    name: str
    version: int
    schema: dict[str, JsonValue]
    description: str
    created_at: datetime | None
    compatibility: str = ""
    allowed_changes: tuple[str, ...] = ()
    retention_days: int = 0
    deprecated: bool = False
    deprecation_message: str = ""
    examples: tuple[dict[str, JsonValue], ...] = ()


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a task, an attempt or a run failed."""

    code: str
    message: str

    @classmethod
    def of(cls, wire: Any) -> "Fault | None":
        """The `error` of a message; None where it is absent."""
        return cls(wire.error.code, wire.error.message) if wire.HasField("error") else None


@dataclass(frozen=True, slots=True)
class RunResult:
    """A run as it stands, with its output where it has ended well."""

    run_id: str
    status: str
    completed: bool
    """It has ended, however."""
    output: JsonValue = None
    error: Fault | None = None
    started: bool = False
    """It began by this call."""
    workflow: str = ""
    version: str = ""
    """That it follows."""
    duration_ms: float = 0.0
    """From its beginning to its end, or to the answer."""

    @classmethod
    def from_wire(cls, wire: Any) -> "RunResult":
        """The value of a response."""
        return cls(
            wire.run_id, run_pb2.Run.Status.Name(wire.status), wire.completed, from_value(wire.output),
            Fault.of(wire), getattr(wire, "started", False), getattr(wire, "workflow", ""),
            getattr(wire, "version", ""), getattr(wire, "duration_ms", 0.0),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """A unit of durable work: the cascade of an artifact, or a standalone task."""

    run_id: str
    kind: str
    status: str
    created_at: datetime | None
    updated_at: datetime | None
    finished_at: datetime | None
    error: Fault | None
    task_count: int
    open_tasks: int
    failed_tasks: int
    artifact_count: int
    last_sequence: int
    created_by: str
    labels: Mapping[str, str] = field(default_factory=dict)
    open_gates: int = 0
    """Gates in which artifacts of it wait for others."""
    parent_run_ids: tuple[str, ...] = ()
    """Of a cascade that a gate of the tenant began: those whose artifacts opened it."""
    retry_attempt: int = 0
    """How often it was retried by hand."""
    paused_at: datetime | None = None
    """Since when nothing new of it starts."""
    timeout: float | None = None
    """How long it may take in all, seconds."""
    deadline: datetime | None = None
    rerun_of: str = ""
    """The run that it repeats."""
    workflow: str = ""
    workflow_version: str = ""
    parent_run_id: str = ""
    """The run that began it as its child."""
    parent_task_id: str = ""
    input: JsonValue = None
    """What a run of a workflow was given. Not in lists."""
    output: JsonValue = None
    """What a run of a workflow answered. Not in lists."""

    @classmethod
    def from_wire(cls, wire: Any) -> "Run":
        """The value of a Run, or of a response with a run's fields."""
        return cls(
            run_id=wire.run_id,
            kind=run_pb2.RunKind.Kind.Name(wire.kind),
            status=run_pb2.Run.Status.Name(wire.status),
            created_at=when(wire, "created_at"),
            updated_at=when(wire, "updated_at"),
            finished_at=when(wire, "finished_at"),
            error=Fault.of(wire),
            task_count=wire.task_count,
            open_tasks=wire.open_tasks,
            failed_tasks=wire.failed_tasks,
            artifact_count=wire.artifact_count,
            last_sequence=wire.last_sequence,
            created_by=wire.created_by,
            labels=dict(wire.labels),
            open_gates=wire.open_gates,
            parent_run_ids=tuple(wire.parent_run_ids),
            retry_attempt=wire.retry_attempt,
            paused_at=when(wire, "paused_at"),
            timeout=seconds(wire, "timeout"),
            deadline=when(wire, "deadline"),
            rerun_of=wire.rerun_of,
            workflow=wire.workflow,
            workflow_version=wire.workflow_version,
            parent_run_id=wire.parent_run_id,
            parent_task_id=wire.parent_task_id,
            input=from_value(wire.input) if wire.HasField("input") else None,
            output=from_value(wire.output) if wire.HasField("output") else None,
        )


@dataclass(frozen=True, slots=True)
class RunEvent:
    """Something that happened in a run; `sequence` counts from 1 without gaps."""

    sequence: int
    type: str
    created_at: datetime | None
    task_id: str
    artifact_id: str
    attempt: int
    data: dict[str, JsonValue]


@dataclass(frozen=True, slots=True)
class Task:
    """A piece of work for one worker. Lists leave out `input` and `output`."""

    task_id: str
    run_id: str
    kind: str
    queue: str
    status: str
    priority: int
    attempt: int
    max_attempts: int
    created_at: datetime | None
    run_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    input: JsonValue
    output: JsonValue
    error: Fault | None
    worker: str
    agent: str
    artifact_ids: tuple[str, ...]
    progress: float
    progress_message: str
    labels: Mapping[str, str] = field(default_factory=dict)
    held: bool = False
    """Its run is paused: it does not start before that is resumed."""
    waiting_for: str = ""
    """While it waits for its turn, for what: "concurrency:" or "rate:" and the key."""
    dropped: bool = False
    """It was dropped from the dead letters."""

    @classmethod
    def from_wire(cls, wire: Any) -> "Task":
        """The value of a Task, or of a response with a task's fields."""
        return cls(
            task_id=wire.task_id,
            run_id=wire.run_id,
            kind=wire.kind,
            queue=wire.queue,
            status=run_pb2.Task.Status.Name(wire.status),
            priority=wire.priority,
            attempt=wire.attempt,
            max_attempts=wire.max_attempts,
            created_at=when(wire, "created_at"),
            run_at=when(wire, "run_at"),
            started_at=when(wire, "started_at"),
            finished_at=when(wire, "finished_at"),
            input=from_value(wire.input),
            output=from_value(wire.output),
            error=Fault.of(wire),
            worker=wire.worker,
            agent=wire.agent,
            artifact_ids=tuple(wire.artifact_ids),
            progress=wire.progress,
            progress_message=wire.progress_message,
            labels=dict(wire.labels),
            held=wire.held,
            waiting_for=wire.waiting_for,
            dropped=wire.dropped,
        )


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a task."""

    attempt: int
    status: str
    started_at: datetime | None
    finished_at: datetime | None
    duration_ms: float
    worker: str
    error: Fault | None
    output: JsonValue


def item_error(wire: error_pb2.ErrorBody) -> ServiceError:
    """The error of one item of a batch, or of a refused report."""
    error = service_error(
        wire.code,
        wire.message,
        details=tuple(FieldDetail(d.field, d.message, d.code) for d in wire.details),
        correlation_id=wire.correlation_id,
    )
    error.retryable = wire.retryable
    return error
