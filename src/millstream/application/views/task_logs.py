"""What use cases of logs take and give."""

from dataclasses import dataclass

from millstream.domain.task_logs import LogLine


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A line as it is stored.

    Attributes:
        seq: Its number in the log of its run.
        offset: Its number among the lines of its attempt.
    """

    run_id: str
    seq: int
    task_id: str
    attempt: int
    offset: int
    line: LogLine

    @property
    def size_bytes(self) -> int:
        """What it takes in a list, about."""
        return 150 + self.line.size_bytes


@dataclass(frozen=True, slots=True)
class LogQuery:
    """Which lines; "", () and 0 are "any".

    Attributes:
        levels: Of one of these levels.
        text: With this in the message, whatever the case.
        since_us, until_us: Logged from the one on, and before the other, microseconds.
        newest_first: The other way round.
    """

    run_id: str = ""
    task_id: str = ""
    attempt: int = 0
    levels: tuple[int, ...] = ()
    text: str = ""
    since_us: int = 0
    until_us: int = 0
    newest_first: bool = False

    @property
    def sifts(self) -> bool:
        """Whether lines are looked through for those that are wanted: no index leads to them."""
        return bool(self.attempt or self.levels or self.text or self.since_us or self.until_us)


@dataclass(frozen=True, slots=True)
class LogState:
    """When a task or run ended, microseconds, 0: not yet; and whether it is known that all its lines are stored, or
    that some of them are not (`owed`)."""

    finished_us: int
    complete: bool
    owed: bool = False


@dataclass(frozen=True, slots=True)
class LogSpan:
    """Lines of a run that began on a day, behind a number; of a task alone where one is given."""

    run_id: str
    day: int
    after: int
    task_id: str = ""
