"""What the use cases of queues give."""

from dataclasses import dataclass

from millstream.domain.agents import Pause


@dataclass(frozen=True, slots=True)
class QueueState:
    """A queue as it stands; counts end at 10,001."""

    queue: str
    ready: int = 0
    in_line: int = 0
    scheduled: int = 0
    running: int = 0
    oldest_us: int = 0
    pause: Pause | None = None


@dataclass(frozen=True, slots=True)
class Ends:
    """How often something ended, or an attempt failed, within a time."""

    tasks_completed: int = 0
    tasks_failed: int = 0
    tasks_retried: int = 0
    tasks_cancelled: int = 0
    runs_completed: int = 0
    runs_failed: int = 0
    runs_cancelled: int = 0
