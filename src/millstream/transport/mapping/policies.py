"""Retry policies and timeouts."""

from millstream.domain.retry import DEFAULT_RETRY, DEFAULT_TIMEOUTS, RetryPolicy, Timeouts
from millstream.transport.mapping.times import duration_us, put_duration
from millstream.wire.v1 import retry_pb2


def retry_of(message: retry_pb2.RetryPolicy) -> RetryPolicy:
    """The policy, with its defaults where nothing was given."""
    default = DEFAULT_RETRY
    given = message.HasField
    return RetryPolicy(
        initial_us=duration_us(message.initial_interval) if given("initial_interval") else default.initial_us,
        factor=message.factor if given("factor") else default.factor,
        maximum_us=duration_us(message.maximum_interval) if given("maximum_interval") else default.maximum_us,
        jitter=message.jitter if given("jitter") else default.jitter,
        max_attempts=message.max_attempts if given("max_attempts") else default.max_attempts,
        non_retryable=tuple(message.non_retryable_codes),
    )


def timeouts_of(message: retry_pb2.Timeouts) -> Timeouts:
    """The timeouts, with their defaults where nothing was given."""
    default = DEFAULT_TIMEOUTS
    given = message.HasField
    return Timeouts(
        schedule_to_start_us=duration_us(message.schedule_to_start)
        if given("schedule_to_start")
        else default.schedule_to_start_us,
        start_to_close_us=duration_us(message.start_to_close) if given("start_to_close") else default.start_to_close_us,
        heartbeat_us=duration_us(message.heartbeat) if given("heartbeat") else default.heartbeat_us,
    )


def put_retry(out: retry_pb2.RetryPolicy, policy: RetryPolicy) -> None:
    """Write a policy."""
    put_duration(out.initial_interval, policy.initial_us)
    out.factor = policy.factor
    put_duration(out.maximum_interval, policy.maximum_us)
    out.jitter = policy.jitter
    out.max_attempts = policy.max_attempts
    out.non_retryable_codes.extend(policy.non_retryable)
    out.initial_interval.SetInParent()
    out.maximum_interval.SetInParent()


def put_timeouts(out: retry_pb2.Timeouts, timeouts: Timeouts) -> None:
    """Write timeouts; those that are not set are left out."""
    out.SetInParent()
    if timeouts.schedule_to_start_us:
        put_duration(out.schedule_to_start, timeouts.schedule_to_start_us)
    if timeouts.start_to_close_us:
        put_duration(out.start_to_close, timeouts.start_to_close_us)
    if timeouts.heartbeat_us:
        put_duration(out.heartbeat, timeouts.heartbeat_us)
