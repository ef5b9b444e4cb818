"""How errors leave the service: one table of statuses, and the forms of gRPC and REST.

Over gRPC an error is a `google.rpc.Status` with ErrorInfo (reason, domain "millstream", correlation id),
BadRequest for fields and RetryInfo. The proxy gets the finished REST body in trailing metadata instead,
because it cannot build that form itself. Both are kept small: clients drop answers whose metadata exceed 8 KiB.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import grpc
from google.protobuf.any_pb2 import Any
from google.rpc import error_details_pb2, status_pb2

from millstream.domain.errors import FieldFault, MillstreamError, RateLimited, TimedOut, Unavailable, ValidationFailed

DOMAIN = "millstream"
REST_BODY_BYTES = 7 * 1024
"""Bound of the REST body in metadata; 8 KiB is where clients begin to refuse."""
_IN_PAYLOAD = re.compile(r"(input|value)[.\[]").match
_WORD = re.compile(r"_([a-z0-9])")
_STATUS_BYTES = 3 * 1024
_MESSAGE_BYTES = 1000
# What a caller is told to wait where the error itself names no time.
_DEFAULT_RETRY_S = 1.0


class Statuses(NamedTuple):
    """What a code means to gRPC and to REST."""

    grpc: grpc.StatusCode
    http: int
    retryable: bool


STATUSES: dict[str, Statuses] = {
    "BAD_REQUEST": Statuses(grpc.StatusCode.INVALID_ARGUMENT, 400, False),
    "VALIDATION_ERROR": Statuses(grpc.StatusCode.INVALID_ARGUMENT, 422, False),
    "UNAUTHENTICATED": Statuses(grpc.StatusCode.UNAUTHENTICATED, 401, False),
    "FORBIDDEN": Statuses(grpc.StatusCode.PERMISSION_DENIED, 403, False),
    "NOT_FOUND": Statuses(grpc.StatusCode.NOT_FOUND, 404, False),
    "METHOD_NOT_ALLOWED": Statuses(grpc.StatusCode.UNIMPLEMENTED, 405, False),
    "CONFLICT": Statuses(grpc.StatusCode.FAILED_PRECONDITION, 409, False),
    "IDEMPOTENCY_CONFLICT": Statuses(grpc.StatusCode.FAILED_PRECONDITION, 409, False),
    "LEASE_LOST": Statuses(grpc.StatusCode.FAILED_PRECONDITION, 409, False),
    # Not RESOURCE_EXHAUSTED: generic clients retry that, and this request will never fit.
    "PAYLOAD_TOO_LARGE": Statuses(grpc.StatusCode.INVALID_ARGUMENT, 413, False),
    "RATE_LIMITED": Statuses(grpc.StatusCode.RESOURCE_EXHAUSTED, 429, True),
    "INTERNAL": Statuses(grpc.StatusCode.INTERNAL, 500, False),
    "UNAVAILABLE": Statuses(grpc.StatusCode.UNAVAILABLE, 503, True),
    "TIMEOUT": Statuses(grpc.StatusCode.DEADLINE_EXCEEDED, 504, True),
    "CANCELLED": Statuses(grpc.StatusCode.CANCELLED, 499, False),
    "NOT_IMPLEMENTED": Statuses(grpc.StatusCode.UNIMPLEMENTED, 501, False),
    "CASCADE_LIMIT": Statuses(grpc.StatusCode.FAILED_PRECONDITION, 409, False),
}
"""The one table: ErrorBody.Reason to statuses."""


class Internal(MillstreamError):
    """A fault of ours; callers learn nothing but the correlation id."""

    def __init__(self) -> None:
        super().__init__("internal error")


def public(error: BaseException) -> MillstreamError:
    """The error that callers are told of, for any exception."""
    if isinstance(error, MillstreamError):
        return error
    if isinstance(error, TimeoutError):
        return TimedOut("the time for this call passed first")
    return Internal()


def told(error: BaseException, camel_case: bool) -> MillstreamError:
    """The error that callers are told of, for any exception, with its fields in the case of their path."""
    found = public(error)
    return in_camel_case(found) if camel_case else found


def in_camel_case(error: MillstreamError) -> MillstreamError:
    """The error with its fields named as paths that have camelCase names show them; what stands in payloads stays."""
    if not isinstance(error, ValidationFailed):
        return error
    faults = [replace(each, field=_camel_case(each.field)) for each in error.details]
    message = error.message
    first = error.details[0].field if error.details else ""
    if first and message.startswith(f"{first}: "):
        message = faults[0].field + message[len(first) :]
    return ValidationFailed(message, faults)


def _camel_case(field: str) -> str:
    if _IN_PAYLOAD(field):
        return field
    return _WORD.sub(lambda word: word[1].upper(), field)


def retry_after_s(error: MillstreamError) -> float | None:
    """Seconds that the caller should wait, or None where trying again is of no use."""
    if error.retry_after_s is not None:
        return error.retry_after_s
    return _DEFAULT_RETRY_S if isinstance(error, RateLimited | Unavailable) else None


def metadata_of(
    error: MillstreamError, correlation_id: str, rest: bool, trace: str = ""
) -> list[tuple[str, str | bytes]]:
    """Trailing metadata that carry the error, in the form of REST or of gRPC; with the trace, where it is of one."""
    out: list[tuple[str, str | bytes]] = [("x-correlation-id", correlation_id)]
    wait = retry_after_s(error)
    if rest:
        out.append(("x-error-body", rest_body(error, correlation_id, trace)))
        out.append(("x-http-status", str(STATUSES[error.code].http)))
        if wait is not None:
            out.append(("retry-after", str(max(1, round(wait)))))
    else:
        out.append(("grpc-status-details-bin", _status(error, correlation_id, wait, trace).SerializeToString()))
    return out


def message_of(error: MillstreamError) -> str:
    """The message, cut to what fits into metadata even when percent-encoded."""
    return _cut(error.message, _MESSAGE_BYTES)


def rest_body(error: MillstreamError, correlation_id: str, trace: str = "") -> str:
    """The error as the JSON of REST, ASCII only, at most REST_BODY_BYTES: details go first, then the message."""
    details = [{"field": f.field, "message": f.message, "code": f.code} for f in error.details]
    body = {
        "code": error.code,
        "message": error.message,
        "correlation_id": correlation_id,
        "retryable": error.retryable,
        "details": details,
    }
    if trace:
        body["trace_id"] = trace
    text = json.dumps(body, separators=(",", ":"))
    while len(text) > REST_BODY_BYTES and details:
        del details[max(1, len(details) // 2) if len(details) > 1 else 0 :]
        text = json.dumps(body, separators=(",", ":"))
    if len(text) > REST_BODY_BYTES:
        # A character of the message is six of JSON at most.
        body["message"] = _cut(error.message, _MESSAGE_BYTES)
        text = json.dumps(body, separators=(",", ":"))
    return text


def _status(error: MillstreamError, correlation_id: str, wait: float | None, trace: str) -> status_pb2.Status:
    statuses = STATUSES[error.code]
    status = status_pb2.Status(code=statuses.grpc.value[0], message=message_of(error))
    labels = {"correlation_id": correlation_id} | ({"trace_id": trace} if trace else {})
    info = error_details_pb2.ErrorInfo(reason=error.code, domain=DOMAIN, metadata=labels)
    _pack(status, info)
    if error.details:
        _pack(status, _bad_request(error.details))
    if wait is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(int(wait * 1000))
        _pack(status, retry)
    return status


def _bad_request(details: Sequence[FieldFault]) -> error_details_pb2.BadRequest:
    bad = error_details_pb2.BadRequest()
    for fault in details:
        bad.field_violations.add(field=fault.field, description=fault.message, reason=fault.code)
        if bad.ByteSize() > _STATUS_BYTES:
            del bad.field_violations[-1]
            break
    return bad


def _pack(status: status_pb2.Status, detail: error_details_pb2.ErrorInfo) -> None:
    packed = Any()
    packed.Pack(detail)
    status.details.append(packed)


def _cut(text: str, size: int) -> str:
    """The text in at most `size` bytes of UTF-8, with a mark where it was cut."""
    raw = text.encode(errors="replace")
    return text if len(raw) <= size else raw[: size - 3].decode(errors="ignore") + "..."
