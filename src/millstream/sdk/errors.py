"""Errors of the SDK.

MillstreamError                 everything below: code, message, retryable, details, correlation_id
├── ServiceError                the service refused or failed a call
│   ├── InvalidRequestError     VALIDATION_ERROR, BAD_REQUEST, PAYLOAD_TOO_LARGE; `details` names the fields
│   ├── AccessError             UNAUTHENTICATED, FORBIDDEN
│   ├── NotFoundError           NOT_FOUND
│   ├── ConflictError           CONFLICT, IDEMPOTENCY_CONFLICT, LEASE_LOST
│   ├── RateLimitedError        RATE_LIMITED
│   ├── DeadlineError           TIMEOUT
│   └── UnavailableError        UNAVAILABLE: the service answered that it cannot serve now
│       └── ConnectError        it could not be reached at all
├── PayloadError                a value that JSON, and so the wire, cannot hold
├── TaskError                   raised by a handler: fails the attempt with a code of its own
├── StepFailed                  what a workflow waits for failed: a task, a child, a promise, a recorded side effect
└── TaskCancelled               raised by Context.check_cancelled in a task that is being cancelled
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import grpc
from google.rpc import error_details_pb2, status_pb2

CORRELATION_HEADER: Final = "x-correlation-id"
_DETAILS_HEADER: Final = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class FieldDetail:
    """A field at fault: its path, what is wrong with it, and the kind of fault, such as "OUT_OF_RANGE"."""

    field: str
    message: str
    code: str = ""


class MillstreamError(Exception):
    """Anything that went wrong.

    Attributes:
        code: machine-readable, such as "VALIDATION_ERROR".
        message: one sentence for people.
        retryable: the same call may succeed later.
        details: the fields at fault, if any.
        correlation_id: label of the call in the service's logs, or "".
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retryable: bool = False,
        details: tuple[FieldDetail, ...] = (),
        correlation_id: str = "",
    ) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.retryable = retryable
        self.details = details
        self.correlation_id = correlation_id

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class ServiceError(MillstreamError):
    """The service refused or failed a call."""

    retry_after: float | None = None
    """Seconds to wait before the call is tried again, where the service said so."""


class InvalidRequestError(ServiceError):
    """The request breaks the contract's rules; `details` names the fields."""


class AccessError(ServiceError):
    """No credentials, unknown ones, or without the permission."""


class NotFoundError(ServiceError):
    """No such resource, or none that the caller may see."""


class ConflictError(ServiceError):
    """The resource's state, or an idempotency key used before, forbids it."""


class RateLimitedError(ServiceError):
    """A queue of the service is full."""


class DeadlineError(ServiceError):
    """The deadline passed first."""


class UnavailableError(ServiceError):
    """The service cannot serve now."""


class ConnectError(UnavailableError):
    """The service could not be reached."""


class PayloadError(MillstreamError):
    """A value that JSON, and so the wire, cannot hold."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__("INVALID_PAYLOAD", f"{path}: {message}" if path else message)
        self.reason = message
        self.path = path

    def under(self, step: str) -> "PayloadError":
        """The same error, seen from one level further out."""
        joint = "." if self.path and not self.path.startswith("[") else ""
        return PayloadError(self.reason, f"{step}{joint}{self.path}")


class StepFailed(MillstreamError):
    """Something that a workflow waits for failed, finally.

    Attributes:
        kind: what it was: "task", "child", "promise", "side effect".
        name: the task's kind, the child's workflow, the promise's or the side effect's name.
    """

    def __init__(self, code: str, message: str, kind: str = "", name: str = "") -> None:
        super().__init__(code, message)
        self.kind = kind
        self.name = name


class ContinueAsNew(BaseException):
    """Raised by `ctx.continue_as_new` to leave the workflow's function. Not an Exception, so that no handler takes it
    for a failure."""

    def __init__(self, input: object = None) -> None:  # noqa: A002  (the contract's name)
        super().__init__("continues as new")
        self.input = input


class TaskError(MillstreamError):
    """Raised by a handler to fail its attempt with a code of its own.

    Args:
        code: machine-readable, such as "PAYMENT_DECLINED"; at most 128 characters.
        message: what went wrong; cut at 4,000 characters.
        retryable: whether another attempt may follow, as the task's retry policy says. Default: final at once.
        retry_after: wait at least this long (seconds or a timedelta) before the next attempt.
    """

    def __init__(
        self,
        code: str,
        message: str = "",
        *,
        retryable: bool = False,
        retry_after: float | timedelta | None = None,
    ) -> None:
        super().__init__(code, message, retryable=retryable)
        self.retry_after = retry_after


class TaskCancelled(MillstreamError):
    """Raised by `Context.check_cancelled` in a task that is being cancelled."""

    def __init__(self) -> None:
        super().__init__("CANCELLED", "the task is being cancelled")


_CLASSES: Final[dict[str, type[ServiceError]]] = {
    "BAD_REQUEST": InvalidRequestError,
    "VALIDATION_ERROR": InvalidRequestError,
    "PAYLOAD_TOO_LARGE": InvalidRequestError,
    "UNAUTHENTICATED": AccessError,
    "FORBIDDEN": AccessError,
    "NOT_FOUND": NotFoundError,
    "CONFLICT": ConflictError,
    "IDEMPOTENCY_CONFLICT": ConflictError,
    "LEASE_LOST": ConflictError,
    "RATE_LIMITED": RateLimitedError,
    "TIMEOUT": DeadlineError,
    "UNAVAILABLE": UnavailableError,
}
_RETRYABLE: Final = frozenset({"RATE_LIMITED", "TIMEOUT", "UNAVAILABLE"})

# What a status says that carries no details: it was made by gRPC itself or by a proxy.
_BARE: Final[dict[grpc.StatusCode, str]] = {
    grpc.StatusCode.INVALID_ARGUMENT: "VALIDATION_ERROR",
    grpc.StatusCode.UNAUTHENTICATED: "UNAUTHENTICATED",
    grpc.StatusCode.PERMISSION_DENIED: "FORBIDDEN",
    grpc.StatusCode.NOT_FOUND: "NOT_FOUND",
    grpc.StatusCode.ALREADY_EXISTS: "CONFLICT",
    grpc.StatusCode.ABORTED: "CONFLICT",
    grpc.StatusCode.FAILED_PRECONDITION: "CONFLICT",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "RATE_LIMITED",
    grpc.StatusCode.DEADLINE_EXCEEDED: "TIMEOUT",
    grpc.StatusCode.UNAVAILABLE: "UNAVAILABLE",
    # Not by the caller, who would have no answer: a server that is going drops calls that it has not begun.
    grpc.StatusCode.CANCELLED: "UNAVAILABLE",
    grpc.StatusCode.UNIMPLEMENTED: "NOT_IMPLEMENTED",
}


def service_error(code: str, message: str, **more: object) -> ServiceError:
    """The error of the class that belongs to `code`."""
    kind = _CLASSES.get(code, ServiceError)
    return kind(code, message, retryable=code in _RETRYABLE, **more)  # type: ignore[arg-type]


def from_rpc(failed: grpc.aio.AioRpcError) -> ServiceError:
    """What a failed call says, from its google.rpc.Status where it carries one."""
    metadata = {
        str(key): value for part in (failed.initial_metadata(), failed.trailing_metadata()) for key, value in part or ()
    }
    correlation_id = _text(metadata.get(CORRELATION_HEADER, ""))
    raw = metadata.get(_DETAILS_HEADER)
    message = failed.details() or failed.code().name
    if isinstance(raw, bytes):
        described = _described(raw, message, correlation_id)
        if described is not None:
            return described
    code = _BARE.get(failed.code(), "INTERNAL")
    if code == "UNAVAILABLE":
        return ConnectError(code, message, retryable=True, correlation_id=correlation_id)
    return service_error(code, message, correlation_id=correlation_id)


def from_stream(failed: grpc.aio.AioRpcError) -> ServiceError:
    """What a stream that ended says. A reset that tells nothing is a server that died under it, or a proxy that did:
    the service itself always gives its reason."""
    error = from_rpc(failed)
    bare = _DETAILS_HEADER not in {str(key) for key, _ in failed.trailing_metadata() or ()}
    if bare and failed.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
        return ConnectError("UNAVAILABLE", error.message, retryable=True, correlation_id=error.correlation_id)
    return error


def _described(raw: bytes, message: str, correlation_id: str) -> ServiceError | None:
    """The error of a google.rpc.Status; None where it carries no reason."""
    status = status_pb2.Status.FromString(raw)
    reason, retry_after = "", None
    fields: list[FieldDetail] = []
    for packed in status.details:
        if packed.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo.FromString(packed.value)
            reason = info.reason
            correlation_id = correlation_id or info.metadata.get("correlation_id", "")
        elif packed.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest.FromString(packed.value)
            fields += [FieldDetail(v.field, v.description, v.reason) for v in bad.field_violations]
        elif packed.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            delay = error_details_pb2.RetryInfo.FromString(packed.value).retry_delay
            retry_after = delay.seconds + delay.nanos / 1e9
    if not reason:
        return None
    error = service_error(reason, status.message or message, details=tuple(fields), correlation_id=correlation_id)
    error.retry_after = retry_after
    return error


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
