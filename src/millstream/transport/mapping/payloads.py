"""Large payloads and their references."""

import re
from typing import Any

from millstream.application.payloads import Uploaded
from millstream.application.views.leases import LeaseRef
from millstream.application.views.payloads import STRUCT_TYPE, StoredPayload
from millstream.domain.errors import ValidationFailed
from millstream.transport.mapping.times import put
from millstream.wire.v1 import payload_service_pb2 as wire

BINARY = "application/octet-stream"
_PREFIX = "sha256:"
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,80}/[A-Za-z0-9!#$&^_.+-]{1,100}(?:[ \t]*;[\x20-\x7e]*)?").fullmatch
_MOST = 255


def digest_of(ref: str, field: str = "payload_ref") -> bytes:
    """The SHA-256 that a reference names; b"" for none. Raises ValidationFailed."""
    if not ref:
        return b""
    try:
        digest = bytes.fromhex(ref.removeprefix(_PREFIX))
    except ValueError:
        digest = b""
    if not ref.startswith(_PREFIX) or len(digest) != 32 or ref != ref_of(digest):
        raise ValidationFailed.of(field, 'must be "sha256:" and 64 hexadecimal digits in lower case')
    return digest


def ref_of(digest: bytes) -> str:
    """The reference to a payload."""
    return _PREFIX + digest.hex()


def media_type_of(given: str) -> str:
    """What a content is. Raises ValidationFailed where it could not be told as it was given."""
    if not given:
        return BINARY
    if given == STRUCT_TYPE:
        raise ValidationFailed.of(
            "content.content_type", "is that of payloads sent within requests; give application/x-protobuf alone"
        )
    if len(given) > _MOST or not _MEDIA_TYPE(given):
        raise ValidationFailed.of(
            "content.content_type", f"must be a media type such as text/csv, of at most {_MOST} characters"
        )
    return given


def lease_of(request: Any) -> LeaseRef | None:
    """The task that the caller was given, where it names one."""
    return LeaseRef(request.task_id.lower(), request.attempt) if request.task_id else None


def put_uploaded(out: wire.UploadPayloadResponse, uploaded: Uploaded) -> wire.UploadPayloadResponse:
    """Write what was stored."""
    out.payload_ref = ref_of(uploaded.sha256)
    out.size_bytes = uploaded.payload.size_bytes
    out.media_type = uploaded.payload.media_type
    out.existed = uploaded.existed
    return out


def put_payload(out: wire.GetPayloadResponse, ref: str, found: StoredPayload) -> wire.GetPayloadResponse:
    """Write what is known of a payload."""
    out.payload_ref = ref
    out.size_bytes = found.size_bytes
    out.media_type = found.media_type
    put(out.created_at, found.created_us)
    return out
