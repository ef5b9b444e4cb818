"""What tasks log: the lines of an attempt, how far they are taken, and how many of a task are kept."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Final

from millstream.domain.errors import LeaseLost, MillstreamError

CUT_MOST: Final = (1 << 31) - 1
"""More are not counted."""
ALWAYS_KEPT: Final = 100
"""Lines of each attempt that are kept however much the task has logged before: its last one can say why it failed."""


class LineLevel(IntEnum):
    """How grave a line is, as it is stored."""

    DEBUG = 1
    INFO = 2
    WARN = 3
    ERROR = 4


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line.

    Attributes:
        at_us: When it was logged by the worker's clock, microseconds since the epoch.
        fields: google.protobuf.Struct in wire form, b"" for none.
        cut: Lines that are missing here.
    """

    level: int
    message: str
    at_us: int
    logger: str = ""
    fields: bytes = b""
    cut: int = 0

    @property
    def size_bytes(self) -> int:
        """What it takes, about."""
        return len(self.message) + len(self.logger) + len(self.fields) + 64


@dataclass(frozen=True, slots=True)
class LogBatch:
    """Lines of an attempt, one after the other.

    Attributes:
        offset: Number of the first of the lines, from 1.
        final: Number of the last line of the attempt, where that is known; None: it may log more.
        fault: Why none of them can be taken.
    """

    task_id: str
    attempt: int
    offset: int = 0
    lines: Sequence[LogLine] = ()
    final: int | None = None
    fault: MillstreamError | None = None


@dataclass(frozen=True, slots=True)
class LogAck:
    """How far the lines of an attempt are stored or cut; `again`: send from the next on again."""

    task_id: str
    attempt: int
    offset: int
    again: bool = False
    error: MillstreamError | None = None


def latest(before: LogAck | None, ack: LogAck) -> LogAck:
    """Of two acknowledgements of an attempt the one to tell: the later, but for why lines were refused; what the
    earlier one asks for again is still asked for."""
    if before is None:
        return ack
    if before.error is not None:
        return before
    return replace(ack, again=ack.again or before.again)


@dataclass(frozen=True, slots=True)
class LogBounds:
    """How much is kept of what a task logs, over all its attempts."""

    lines: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class LogEnd:
    """Where the log of a task stands. Attempts follow one another: the lines of an earlier one are not taken any more.

    Attributes:
        last: Number of the last line of the attempt that was taken.
        final: Number of the attempt's last line of all, where the worker has told it; else -1.
        lines: Lines kept of the task.
        size_bytes: What they take.
        cut: Lines of the attempt that were not kept, all from some number on; with those that its worker cut there.
        mark_day, mark_seq: Where the line stands that tells of them.
    """

    task_id: str
    run_id: str
    attempt: int = 0
    last: int = 0
    final: int = -1
    lines: int = 0
    size_bytes: int = 0
    cut: int = 0
    mark_day: int = 0
    mark_seq: int = 0

    @property
    def complete(self) -> bool:
        """Whether nothing more of the attempt comes."""
        return 0 <= self.final <= self.last


@dataclass(frozen=True, slots=True)
class Taken:
    """What becomes of a batch.

    Attributes:
        end: Where the log stands afterwards.
        kept: The lines to store, each with its number.
        ack: What the worker is told.
        cut_from: Number of the first line of the batch that is cut; 0: none is.
    """

    end: LogEnd
    ack: LogAck
    kept: list[tuple[int, LogLine]] = field(default_factory=list)
    cut_from: int = 0


def take(end: LogEnd, batch: LogBatch, bounds: LogBounds) -> Taken:
    """Take what is new of a batch. What came before is passed over, what leaves a gap is asked for again."""
    if batch.attempt < end.attempt:
        error = LeaseLost(f"attempt {end.attempt} of task {batch.task_id} has logged: attempt {batch.attempt} is over")
        return Taken(end, LogAck(batch.task_id, batch.attempt, 0, error=error))
    if batch.attempt > end.attempt:
        end = replace(end, attempt=batch.attempt, last=0, final=-1, cut=0, mark_day=0, mark_seq=0)
    if batch.final is not None:
        end = replace(end, final=batch.final)
    if batch.fault is not None:
        return Taken(end, LogAck(batch.task_id, batch.attempt, end.last, error=batch.fault))
    if not batch.lines or batch.offset > end.last + 1:
        again = bool(batch.lines) or batch.final is None
        return Taken(end, LogAck(batch.task_id, batch.attempt, end.last, again))
    kept: list[tuple[int, LogLine]] = []
    lines, size, cut, n, cut_from = end.lines, end.size_bytes, end.cut, end.last, 0
    for line in batch.lines[end.last + 1 - batch.offset :]:
        n += 1
        more = size + line.size_bytes
        if cut or (n > ALWAYS_KEPT and (lines >= bounds.lines or more > bounds.size_bytes)):
            cut = min(cut + max(line.cut, 1), CUT_MOST)
            cut_from = cut_from or n
        else:
            lines, size = lines + 1, more
            kept.append((n, line))
    end = replace(end, last=n, lines=lines, size_bytes=size, cut=cut)
    return Taken(end, LogAck(batch.task_id, batch.attempt, n), kept, cut_from)


def cut_message(cut: int, bounds: LogBounds) -> str:
    """What the mark of lines that were not kept says."""
    return (
        f"{cut:,} {'line was' if cut == 1 else 'lines were'} cut: of a task {bounds.lines:,} lines are kept, or "
        f"{bounds.size_bytes:,} bytes"
    )
