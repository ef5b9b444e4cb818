"""Artifacts as lines of JSON, as REST shows them elsewhere: there the proxy writes the JSON, here it passes it on."""

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import orjson
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.message import Message

from millstream.application.views.artifacts import Sent
from millstream.domain.artifacts import Artifact, Visibility
from millstream.domain.struct_wire import decode_struct
from millstream.transport.mapping.payloads import ref_of
from millstream.transport.mapping.times import SECOND_US

NDJSON = "application/x-ndjson"
CHUNK_BYTES = 256 * 1024
"""Lines go together up to this size; one that is longer goes alone."""


def artifact_object(artifact: Artifact) -> dict[str, Any]:
    """An artifact as the JSON of REST has it."""
    out: dict[str, Any] = {
        "id": artifact.id,
        "type": artifact.type,
        "payload": decode_struct(artifact.payload),
        "produced_by": artifact.produced_by,
        "visibility": _visibility(artifact.visibility),
        "visibility_kind": artifact.visibility.kind,
        "created_at": fraction(artifact.created_us, "%Y-%m-%dT%H:%M:%S") + "Z",
        "correlation_id": artifact.run_id,
        "partition_key": artifact.partition_key,
        "tags": list(artifact.tags),
        "version": artifact.version,
    }
    if artifact.payload_digest:
        out |= {"payload_ref": ref_of(artifact.payload_digest), "payload_bytes": artifact.payload_bytes}
    return out


def line(value: dict[str, Any]) -> bytes:
    """A line of JSON."""
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)


def joined(artifacts: Iterable[Sent]) -> Iterator[tuple[bytes, str]]:
    """Lines of artifacts, joined to messages of about CHUNK_BYTES, each with the cursor of its last one."""
    lines: list[bytes] = []
    size, last = 0, ""
    for sent in artifacts:
        text = sent_line(sent)
        if lines and size + len(text) > CHUNK_BYTES:
            yield b"".join(lines), last
            lines, size = [], 0
        lines.append(text)
        size, last = size + len(text), sent.cursor
    if lines:
        yield b"".join(lines), last


def sent_line(sent: Sent) -> bytes:
    """An artifact with the cursor behind it, as a line; the cursor alone where there is none."""
    return line({**(artifact_object(sent.artifact) if sent.artifact else {}), "cursor": sent.cursor})


def body(data: bytes) -> Message:
    """Lines, or a piece of one, as a message of a stream."""
    message: Message = HttpBody(content_type=NDJSON, data=data)
    return message


def error_line(cursor: Callable[[], str]) -> Callable[[str], Message]:
    """Makes the line of an error, given as JSON, that ends a stream at the cursor."""
    return lambda error: body(b'{"error":%s,"cursor":%s}\n' % (error.encode(), orjson.dumps(cursor())))


def _visibility(visibility: Visibility) -> dict[str, Any]:
    out: dict[str, Any] = {
        "kind": visibility.kind,
        "agents": list(visibility.agents),
        "required_labels": list(visibility.required_labels),
        "tenant_id": visibility.tenant_id,
    }
    if visibility.kind == "After":
        out["ttl"] = f"{fraction(visibility.ttl_us)}s"
        if visibility.then is not None:
            out["then"] = _visibility(visibility.then)
    return out


def fraction(at_us: int, form: str = "") -> str:
    """Seconds, or a time, with as many digits behind the point as protobuf's JSON writes: none, three or six."""
    seconds, rest = divmod(at_us, SECOND_US)
    whole = f"{datetime.fromtimestamp(seconds, UTC):{form}}" if form else str(seconds)
    if not rest:
        return whole
    return f"{whole}.{rest // 1000:03d}" if rest % 1000 == 0 else f"{whole}.{rest:06d}"
