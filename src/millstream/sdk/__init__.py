"""What users of Millstream import: an async client, a worker, and the values they speak in."""

from millstream.sdk.context import Context
from millstream.sdk.errors import (
    AccessError,
    ConflictError,
    ConnectError,
    DeadlineError,
    FieldDetail,
    InvalidRequestError,
    MillstreamError,
    NotFoundError,
    PayloadError,
    RateLimitedError,
    ServiceError,
    TaskCancelled,
    TaskError,
    UnavailableError,
)
from millstream.sdk.policies import RetryPolicy, Subscription, Timeouts, Visibility
from millstream.sdk.worker import Worker

__all__ = [
    "AccessError",
    "ConflictError",
    "ConnectError",
    "Context",
    "DeadlineError",
    "FieldDetail",
    "InvalidRequestError",
    "MillstreamError",
    "NotFoundError",
    "PayloadError",
    "RateLimitedError",
    "RetryPolicy",
    "ServiceError",
    "Subscription",
    "TaskCancelled",
    "TaskError",
    "Timeouts",
    "UnavailableError",
    "Visibility",
    "Worker",
]
