"""The errors of the service.

MillstreamError
├── BadRequest            the request could not be read
├── ValidationFailed      fields break their rules
├── Unauthenticated       no known credentials
├── Forbidden             a permission is missing
├── NotFound              no such resource
├── Conflict              the resource's state forbids it
├── IdempotencyConflict   the key was used with another request
├── LeaseLost             the lease is not the caller's
├── PayloadTooLarge       over a limit of size
├── RateLimited           a queue is full
├── Unavailable           cannot serve now
├── TimedOut              the deadline passed first
└── NotImplementedHere    no such method

Transport maps each to its statuses in one table; `code` is the name users see.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class FieldFault:
    """A field at fault.

    Attributes:
        field: Path of the field, such as "artifacts[3].payload.amount".
        message: What is wrong, with the limit and the fix.
        code: Machine-readable kind, such as "REQUIRED" or "OUT_OF_RANGE".
    """

    field: str
    message: str
    code: str = "INVALID"


class MillstreamError(Exception):
    """Base of all errors that callers are told of.

    Attributes:
        message: One sentence for people.
        details: The fields at fault, if any.
        retry_after_s: Seconds to wait before trying again, or None.
    """

    code: ClassVar[str] = "INTERNAL"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, details: Sequence[FieldFault] = (), retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details = tuple(details)
        self.retry_after_s = retry_after_s


class BadRequest(MillstreamError):
    """The request could not be read."""

    code = "BAD_REQUEST"


class ValidationFailed(MillstreamError):
    """Fields break their rules; `details` names each."""

    code = "VALIDATION_ERROR"

    @classmethod
    def of(cls, field: str, message: str, code: str = "INVALID") -> "ValidationFailed":
        """An error about one field."""
        return cls(f"{field}: {message}", (FieldFault(field, message, code),))


class Unauthenticated(MillstreamError):
    """No credentials, or none that are known."""

    code = "UNAUTHENTICATED"


class Forbidden(MillstreamError):
    """The caller's roles do not grant the permission."""

    code = "FORBIDDEN"


class NotFound(MillstreamError):
    """No such resource, or none that the caller may see."""

    code = "NOT_FOUND"


class Conflict(MillstreamError):
    """The resource's state forbids it."""

    code = "CONFLICT"


class IdempotencyConflict(MillstreamError):
    """The idempotency key was used with another request."""

    code = "IDEMPOTENCY_CONFLICT"


class LeaseLost(MillstreamError):
    """The lease is not, or no longer, the caller's."""

    code = "LEASE_LOST"


class PayloadTooLarge(MillstreamError):
    """Over a limit of size, which the message names."""

    code = "PAYLOAD_TOO_LARGE"


class RateLimited(MillstreamError):
    """A queue of the server is full."""

    code = "RATE_LIMITED"
    retryable = True


class Unavailable(MillstreamError):
    """The server, or its database, cannot serve now."""

    code = "UNAVAILABLE"
    retryable = True


class TimedOut(MillstreamError):
    """The deadline passed first."""

    code = "TIMEOUT"
    retryable = True


class NotImplementedHere(MillstreamError):
    """The method does not exist in this version."""

    code = "NOT_IMPLEMENTED"
