"""Errors that stand in an answer: of an item, of a report."""

from millstream.domain.errors import MillstreamError
from millstream.transport.errors import public
from millstream.wire.v1.error_pb2 import ErrorBody, FieldError


def body(error: MillstreamError, correlation_id: str) -> ErrorBody:
    """The error as a message."""
    error = public(error)
    return ErrorBody(
        code=error.code,
        message=error.message,
        correlation_id=correlation_id,
        retryable=error.retryable,
        details=[FieldError(field=f.field, message=f.message, code=f.code) for f in error.details],
    )
