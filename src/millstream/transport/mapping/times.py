"""Times: microseconds since the epoch inside, Timestamp and Duration on the wire."""

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from millstream.domain.errors import ValidationFailed

SECOND_US = 1_000_000
# 0001-01-01 and 9999-12-31, the bounds of Timestamp.
_FIRST_S = -62_135_596_800
_LAST_S = 253_402_300_799


def put(at: Timestamp, us: int) -> None:
    """Write a time; 0, which is "not yet", is left out."""
    if us:
        at.seconds, rest = divmod(us, SECOND_US)
        at.nanos = rest * 1000


def put_duration(span: Duration, us: int) -> None:
    """Write a duration."""
    span.seconds, rest = divmod(us, SECOND_US)
    span.nanos = rest * 1000


def us(at: Timestamp, field: str) -> int:
    """A time that was given. Raises ValidationFailed outside of years 1 to 9999."""
    if not (_FIRST_S <= at.seconds <= _LAST_S and 0 <= at.nanos < 1_000_000_000):
        raise ValidationFailed.of(field, "must be a time of the years 1 to 9999", "OUT_OF_RANGE")
    return at.seconds * SECOND_US + at.nanos // 1000


def duration_us(span: Duration) -> int:
    """A duration that was given; the contract's rules have bounded it."""
    return span.seconds * SECOND_US + span.nanos // 1000
