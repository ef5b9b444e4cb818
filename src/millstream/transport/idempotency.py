"""Idempotency keys: read from metadata, with a fingerprint of the request they stand for."""

from collections.abc import Container, Iterable
from hashlib import blake2b

from google.protobuf.message import DecodeError, Message

from millstream.application.views.idempotency import Key
from millstream.domain.errors import BadRequest, ValidationFailed

HEADER = "x-idempotency-key"
_NAMES = (HEADER, "idempotency-key")
_IDS = ("correlation_id", "run_id", "task_id", "workflow_execution_id")


def may_have_key(metadata: Container[str]) -> bool:
    """Whether a call's metadata has a key at all, by its names; to read them anew costs more than most calls' keys."""
    return any(name in metadata for name in _NAMES)


def key_of(metadata: Iterable[tuple[str, str | bytes]]) -> str | None:
    """The key of a call; None: it has none.

    Raises BadRequest where two different ones were sent, ValidationFailed where it is no key.
    """
    found = {value for name, value in metadata if name in _NAMES}
    if not found:
        return None
    if len(found) > 1:
        raise BadRequest(f"different idempotency keys were sent; use {HEADER} alone")
    key = found.pop()
    return checked(key if isinstance(key, str) else key.decode("latin-1"), HEADER)


def checked(key: str, field: str) -> str:
    """The key. Raises ValidationFailed unless it is 1 to 255 printable ASCII characters."""
    if not 1 <= len(key) <= 255:
        raise ValidationFailed.of(field, "must have 1 to 255 characters", "OUT_OF_RANGE")
    if not (key.isascii() and key.isprintable()):
        raise ValidationFailed.of(field, "must be printable ASCII characters")
    return key


def fingerprint(raw: bytes, request: type[Message]) -> bytes:
    """16 bytes that tell a request from others, however its maps are ordered.

    `request` is the class in the contract, not in the twin: clients write the members of a payload in an order of
    their process's, so that a retry after a restart would look like another request. Raises BadRequest.
    """
    try:
        message = request.FromString(raw)
    except DecodeError:
        raise BadRequest("the request could not be read: it is malformed or nested too deeply") from None
    for name in _IDS:
        field = message.DESCRIPTOR.fields_by_name.get(name)
        if field is not None:
            setattr(message, name, getattr(message, name).lower())
    return blake2b(message.SerializeToString(deterministic=True), digest_size=16).digest()


def key(value: str, rpc: str, raw: bytes, request: type[Message]) -> Key:
    """The key `value` of a call of `rpc` with these request bytes."""
    return Key(value, rpc, fingerprint(raw, request))
