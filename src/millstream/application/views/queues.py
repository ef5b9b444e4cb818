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
