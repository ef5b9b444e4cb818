"""What the service answers of artifacts, as small values in place of protobuf messages."""

import builtins
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import BaseModel

from millstream.sdk.errors import FieldDetail, ServiceError, service_error
from millstream.sdk.payload import JsonValue, from_struct, from_value
from millstream.v1 import artifact_pb2, artifact_service_pb2, error_pb2

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
