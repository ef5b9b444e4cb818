"""When a failed task is tried again, and how long tasks may take."""

from dataclasses import dataclass

SECOND_US = 1_000_000


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Attempt n+1 follows initial * factor^(n-1), at most maximum, spread by jitter.

    Attributes:
        initial_us: Wait before the second attempt, microseconds.
        factor: Growth of the wait, at least 1.
        maximum_us: The longest wait, microseconds.
        jitter: Share of the wait that is random, 0 to 1.
        max_attempts: Attempts in all.
        non_retryable: Failure codes that are final at once.
    """

    initial_us: int = SECOND_US
    factor: float = 2.0
    maximum_us: int = 60 * SECOND_US
    jitter: float = 0.1
    max_attempts: int = 3
    non_retryable: tuple[str, ...] = ()

    def delay_us(self, tries: int, chance: float) -> int:
        """Wait after `tries` failed attempts; `chance` is a random number from 0 to 1.

        The exponent is capped, so that attempt 1,000 does not overflow.
        """
        grown = self.initial_us * self.factor ** min(max(tries - 1, 0), 64)
        wait = min(grown, float(self.maximum_us))
        return int(wait * (1 - self.jitter + 2 * self.jitter * chance))


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a task may take, microseconds; 0 is none.

    Attributes:
        schedule_to_start_us: From ready to started.
        start_to_close_us: One attempt.
        heartbeat_us: Between two signs of life of the code that runs.
    """

    schedule_to_start_us: int = 0
    start_to_close_us: int = 300 * SECOND_US
    heartbeat_us: int = 0

    @property
    def fault(self) -> str:
        """What is wrong with the heartbeat, which must not be bounded by nothing but the attempt; "" if nothing."""
        if not 0 < self.start_to_close_us < self.heartbeat_us:
            return ""
        return (
            f"has no effect: start_to_close, {self.start_to_close_us / SECOND_US:g} s, ends the attempt before; "
            "make it shorter, or start_to_close longer"
        )


DEFAULT_RETRY = RetryPolicy()
DEFAULT_TIMEOUTS = Timeouts()
