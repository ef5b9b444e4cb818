"""Artifacts and their types."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Protocol

from millstream.application.views.artifacts import ArtifactQuery, ListedArtifact, Summary
from millstream.application.views.types import TypeChange, TypeSpec
from millstream.application.watches import WatchFilter
from millstream.domain.agents import ArtifactType
from millstream.domain.artifacts import PUBLIC, Artifact, NewArtifact, Visibility
from millstream.domain.errors import ValidationFailed
from millstream.domain.runs import Failure
from millstream.transport.mapping.json import struct_of, text_of
from millstream.transport.mapping.payloads import digest_of, ref_of
from millstream.transport.mapping.times import SECOND_US, duration_us, put, put_duration, us
from millstream.transport.payloads import too_large
from millstream.wire.v1 import artifact_pb2
from millstream.wire.v1.artifact_service_pb2 import (
    CreateArtifactTypeRequest,
    SummarizeArtifactsResponse,
    UpdateArtifactTypeRequest,
)

MAX_SCHEMA_BYTES = 256 * 1024
_MAX_THEN = 8
_BELONGS_TO = {
    "agents": "Private",
    "required_labels": "Labelled",
    "tenant_id": "Tenant",
    "ttl": "After",
    "then": "After",
}
"""The kind of visibility that uses a field."""
_NEEDED = ("agents", "required_labels", "ttl")


def visibility_of(message: artifact_pb2.Visibility, field: str = "visibility") -> Visibility:
    """The visibility. Raises ValidationFailed where its parts do not fit its kind."""
    chain: list[artifact_pb2.Visibility] = [message]
    while chain[-1].HasField("then"):
        chain.append(chain[-1].then)
        if len(chain) > _MAX_THEN:
            raise ValidationFailed.of(f"{field}.then", f"goes deeper than {_MAX_THEN} levels", "OUT_OF_RANGE")
    then: Visibility | None = None
    for depth in range(len(chain) - 1, -1, -1):
        part = chain[depth]
        _check_visibility(part, field + ".then" * depth)
        then = Visibility(
            kind=part.kind or "Public",
            agents=tuple(part.agents),
            required_labels=tuple(part.required_labels),
            tenant_id=part.tenant_id,
            ttl_us=duration_us(part.ttl),
            then=then,
        )
    return PUBLIC if then is None or then == PUBLIC else then


def _check_visibility(part: artifact_pb2.Visibility, field: str) -> None:
    """Raise ValidationFailed on a field that the kind does not use, too: to pass over it could show what was meant to
    stay hidden."""
    kind = part.kind or "Public"
    given = {
        "agents": bool(part.agents),
        "required_labels": bool(part.required_labels),
        "tenant_id": bool(part.tenant_id),
        "ttl": part.HasField("ttl"),
        "then": part.HasField("then"),
    }
    for name, owner in _BELONGS_TO.items():
        if given[name] and kind != owner:
            raise ValidationFailed.of(
                f"{field}.{name}", f'belongs to the kind {owner}: set kind to "{owner}", or leave {name} out'
            )
    for name in _NEEDED:
        if kind == _BELONGS_TO[name] and not given[name]:
            raise ValidationFailed.of(f"{field}.{name}", f"is required for the kind {kind}", "REQUIRED")


def put_visibility(out: artifact_pb2.Visibility, visibility: Visibility) -> None:
    """Write a visibility."""
    out.kind = visibility.kind
    out.agents.extend(visibility.agents)
    out.required_labels.extend(visibility.required_labels)
    out.tenant_id = visibility.tenant_id
    if visibility.kind == "After":
        put_duration(out.ttl, visibility.ttl_us)
        out.ttl.SetInParent()
        if visibility.then is not None:
            put_visibility(out.then, visibility.then)


class _NewArtifact(Protocol):
    """What every message that brings an artifact has."""

    type: str
    payload: bytes
    payload_ref: str
    partition_key: str

    @property
    def visibility(self) -> artifact_pb2.Visibility: ...
    @property
    def tags(self) -> Any: ...
    def HasField(self, field_name: Any) -> bool: ...  # noqa: N802 (protobuf's name)


def new_artifact(message: _NewArtifact, correlation_id: str = "", prefix: str = "") -> NewArtifact:
    """The artifact to publish. `prefix` stands before its fields in errors. Raises ValidationFailed."""
    return NewArtifact(
        type=message.type,
        payload=message.payload,
        visibility=visibility_of(message.visibility, f"{prefix}visibility")
        if message.HasField("visibility")
        else PUBLIC,
        tags=tuple(message.tags),
        partition_key=message.partition_key,
        correlation_id=correlation_id.lower(),
        payload_digest=digest_of(message.payload_ref) if message.payload_ref else b"",
    )


def put_artifact(out: artifact_pb2.Artifact, artifact: Artifact) -> artifact_pb2.Artifact:
    """Write an artifact."""
    out.id = artifact.id
    out.type = artifact.type
    # Set even where it is empty, so that {} is shown.
    out.payload = artifact.payload
    out.produced_by = artifact.produced_by
    put_visibility(out.visibility, artifact.visibility)
    out.visibility_kind = artifact.visibility.kind
    put(out.created_at, artifact.created_us)
    out.correlation_id = artifact.run_id
    out.partition_key = artifact.partition_key
    out.tags.extend(artifact.tags)
    out.version = artifact.version
    if artifact.payload_digest:
        out.payload_ref = ref_of(artifact.payload_digest)
        out.payload_bytes = artifact.payload_bytes
    return out


def put_listed(out: artifact_pb2.Artifact, listed: ListedArtifact) -> None:
    """Write an artifact of a list, with who consumed it where that was asked for."""
    put_artifact(out, listed.artifact)
    if listed.consumptions is None:
        return
    out.consumptions.SetInParent()
    out.consumed_by.SetInParent()
    for each in listed.consumptions:
        out.consumptions.add_struct().update(
            {
                "artifact_id": each.artifact_id,
                "consumer": each.consumer,
                "run_id": each.run_id,
                "correlation_id": listed.artifact.run_id,
                "consumed_at": _iso(each.consumed_us),
            }
        )
    for name in dict.fromkeys(each.consumer for each in listed.consumptions):
        out.consumed_by.append(name)


def put_failure(out: artifact_pb2.Failure, failure: Failure) -> None:
    """Write a finally failed task."""
    out.agent = failure.agent
    out.task_id = failure.task_id
    out.code = failure.code
    out.message = failure.message
    out.attempts = failure.attempts
    out.artifact_ids.extend(failure.artifact_ids)


def query_of(request: Any) -> ArtifactQuery:
    """Which artifacts a request asks for."""
    return ArtifactQuery(
        type=request.type,
        produced_by=request.produced_by,
        correlation_id=request.correlation_id.lower(),
        tag=request.tag,
        from_us=us(request.created_from, "from") if request.HasField("created_from") else 0,
        to_us=us(request.created_to, "to") if request.HasField("created_to") else 0,
        visibility=request.visibility,
    )


def watched_of(request: Any) -> WatchFilter:
    """Which artifacts a request watches."""
    return WatchFilter(
        types=frozenset(request.types),
        produced_by=frozenset(request.produced_by),
        tags=frozenset(request.tags),
        visibility=frozenset(request.visibility),
        correlation_id=request.correlation_id.lower(),
    )


def put_summary(out: SummarizeArtifactsResponse.Summary, summary: Summary) -> None:
    """Write counts of artifacts."""
    out.total = summary.total
    out.by_type.update(summary.by_type)
    out.by_producer.update(summary.by_producer)
    out.by_visibility.update(summary.by_visibility)
    out.tag_counts.update(summary.tag_counts)
    put(out.earliest_created_at, summary.earliest_us)
    put(out.latest_created_at, summary.latest_us)


def type_spec(message: Any, field: str = "schema") -> TypeSpec:
    """The type to register. Raises PayloadTooLarge over the bound of schemas."""
    if len(message.schema) > MAX_SCHEMA_BYTES:
        raise too_large(field, len(message.schema), MAX_SCHEMA_BYTES)
    return TypeSpec(name=message.name, schema=text_of(message.schema), description=message.description)


def new_type(request: CreateArtifactTypeRequest) -> TypeSpec:
    """The type to register, with its options. Raises ValidationFailed, PayloadTooLarge."""
    _check_changes(request.compatibility, request.allowed_changes)
    return replace(
        type_spec(request),
        compatibility=request.compatibility,
        allowed_changes=tuple(request.allowed_changes),
        retention_days=request.retention_days if request.HasField("retention_days") else None,
        examples=_examples(request.examples),
    )


def type_change(request: UpdateArtifactTypeRequest) -> TypeChange:
    """What to change of a type. Raises ValidationFailed."""
    _check_changes(request.compatibility, request.allowed_changes)
    given = request.HasField
    return TypeChange(
        request.name,
        request.version if given("version") else None,
        request.description if given("description") else None,
        request.deprecated if given("deprecated") else None,
        request.deprecation_message if given("deprecation_message") else None,
        request.retention_days if given("retention_days") else None,
        request.compatibility if given("compatibility") else None,
        tuple(request.allowed_changes),
        _examples(request.examples) or None,
    )


def _examples(given: Sequence[Any]) -> tuple[str, ...]:
    return tuple(text_of(each) or "{}" for each in given)


def _check_changes(compatibility: str, allowed: Sequence[str]) -> None:
    if compatibility == "rules" and not allowed:
        text = 'compatibility "rules" needs the changes that it allows; name them, or use "backward", which allows none'
        raise ValidationFailed.of("allowed_changes", text, "REQUIRED")
    if allowed and compatibility != "rules":
        raise ValidationFailed.of("allowed_changes", 'needs compatibility "rules"; give that, or leave it out')


def put_type(out: artifact_pb2.ArtifactType, kind: ArtifactType) -> artifact_pb2.ArtifactType:
    """Write a type."""
    out.name = kind.name
    out.version = kind.version
    out.schema = struct_of(kind.schema)
    out.description = kind.description
    put(out.created_at, kind.created_us)
    out.compatibility = kind.options.compatibility
    out.allowed_changes.extend(kind.options.allowed_changes)
    out.retention_days = kind.options.retention_days
    out.deprecated = kind.options.deprecated
    out.deprecation_message = kind.options.deprecation
    out.examples.extend(struct_of(each) for each in kind.options.examples)
    return out


def _iso(at_us: int) -> str:
    seconds, rest = divmod(at_us, SECOND_US)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:06d}Z"
