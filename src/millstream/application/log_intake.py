"""What takes in the lines that tasks log: beside the engine, so that a flood of them delays nothing else.

Lines wait as the bytes they came in, bounded for each worker; what comes over that is passed over, and asked for again
once there is room. One writer takes a little of each task in turn, reads it, stores it, and then tells the workers
how far they are. It gives others their turn between its steps, and while the engine works it takes so little of a task
that the engine's work hardly waits for it: the lines of many tasks still go as fast, those of one that floods wait.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from millstream.application.engine.clock import Clock
from millstream.application.ports import Refused
from millstream.domain.errors import MillstreamError, ValidationFailed
from millstream.domain.principals import Principal
from millstream.domain.task_logs import LogAck, LogBatch

log = logging.getLogger(__name__)

WINDOW_BYTES: Final = 1024 * 1024
"""What a worker may have on its way."""
SOURCE_BYTES: Final = 2 * WINDOW_BYTES
"""What may wait of a worker."""
ALL_BYTES: Final = 64 * 1024 * 1024
"""What may wait in a server, of workers that went, too."""
TURN_BYTES: Final = 16 * 1024
"""Taken of a task before the next one's turn."""
END_BYTES: Final = 64
"""What the end of an attempt counts for in a turn."""
WRITE_LINES: Final = 500
"""Written at once, about: more lines a transaction are stored faster, and hold up the commits beside it."""
WRITE_BYTES: Final = 1024 * 1024
GAP_S: Final = 0.005
"""Between two writes: under load many batches are written at once."""
BUSY_S: Final = 0.05
"""For so long after a commit the engine counts as at work."""
BUSY_LINES: Final = 100
"""While it does, about so many lines of a task are written at once,"""
BUSY_GAP_S: Final = 0.02
"""and so long lies between two writes: some 3,000 lines a second of each task."""
RETRY_S: Final = 0.5

Read = Callable[[bytes], LogBatch]
"""Reads a batch as it came; one that breaks a rule has its fault."""
Told = Callable[[list[LogAck]], None]


class Written(Protocol):
    """What became of batches, in their order, the runs, by tenant, that have new lines, how many these are, and how
    many were cut."""

    @property
    def acks(self) -> list[LogAck]: ...
    @property
    def runs(self) -> set[tuple[str, str]]: ...
    @property
    def lines(self) -> int: ...
    @property
    def cut(self) -> int: ...


class LogMeter(Protocol):
    """Measures what is taken in; see adapters.metrics."""

    def stored(self, lines: int, cut: int) -> None:
        """So many lines were stored, and so many cut."""

    def passed_over(self) -> None:
        """There was no room for a batch: its sender is told to send it again."""


class LogStore(Protocol):
    """Writes lines; see store.log_writer."""

    async def write(self, batches: Sequence[tuple[str, LogBatch]], now_us: int) -> Written: ...
    async def close(self) -> None: ...


class _Waiting:
    """What waits of one task of a sender: batches, each behind the bytes that it counts for."""

    __slots__ = ("batches", "source", "task")

    def __init__(self, source: "LogSource", task: str) -> None:
        self.source = source
        self.task = task
        self.batches: deque[tuple[int, bytes | LogBatch]] = deque()

    def take(self, most: int) -> list[LogBatch]:
        """What may be written in its turn: about so many lines, or TURN_BYTES."""
        taken: list[LogBatch] = []
        lines = size = 0
        while self.batches and size < TURN_BYTES and lines < most:
            counted, each = self.batches.popleft()
            batch = each if isinstance(each, LogBatch) else self.source.read(each)
            taken.append(batch)
            size += counted or END_BYTES
            lines += len(batch.lines)
            self.source.count(-counted)
        return taken


class LogSource:
    """One who sends lines: a connected worker."""

    def __init__(self, intake: "LogIntake", tenant: str, read: Read, told: Told) -> None:
        self.tenant = tenant
        self.read = read
        self.told = told
        self._intake = intake
        self._waiting: dict[str, _Waiting] = {}
        self._bytes = 0
        self._room = asyncio.Event()
        self._room.set()
        self._open = 0
        self._settled = asyncio.Event()
        self._settled.set()

    def put(self, batches: Sequence[tuple[str, bytes]]) -> None:
        """Take batches as they came, each behind what tells its task from others; never blocks."""
        for task, raw in batches:
            if self._bytes + len(raw) > SOURCE_BYTES or self._intake.full:
                self._pass_over(task, raw)
            else:
                self.count(len(raw))
                self._add(task, len(raw), raw)

    def ended(self, ends: Sequence[tuple[str, int, int]]) -> None:
        """Attempts have ended: (task, attempt, number of its last line)."""
        for task_id, attempt, final in ends:
            self._add(task_id, 0, LogBatch(task_id, attempt, final=final))

    async def room(self) -> None:
        """Wait until there is room for more."""
        await self._room.wait()

    async def settled(self) -> None:
        """Wait until all that came is answered."""
        await self._settled.wait()

    def answer(self, acks: list[LogAck]) -> None:
        """Tell the sender what became of so many batches."""
        self.told(acks)
        self._open -= len(acks)
        if not self._open:
            self._settled.set()

    def close(self) -> None:
        """It went: what came of it is stored, but it is told nothing any more."""
        self.told = lambda acks: None

    def count(self, more: int) -> None:
        """So many bytes more of it wait."""
        self._bytes += more
        self._intake.bytes += more
        if self._bytes < SOURCE_BYTES / 2:
            self._room.set()
        else:
            self._room.clear()

    def forget(self, task: str) -> None:
        """Nothing of the task waits any more."""
        del self._waiting[task]

    def _add(self, task: str, counted: int, batch: bytes | LogBatch) -> None:
        waiting = self._waiting.get(task)
        if waiting is None:
            waiting = self._waiting[task] = _Waiting(self, task)
        waiting.batches.append((counted, batch))
        self._open += 1
        self._settled.clear()
        self._intake.filled(waiting)

    def _pass_over(self, task: str, raw: bytes) -> None:
        """Once what came before is stored, its sender is told to send this again."""
        self._intake.meter.passed_over()
        batch = self.read(raw)
        where = LogBatch(batch.task_id, batch.attempt)
        waiting = self._waiting.get(task)
        if waiting is None or (0, where) not in waiting.batches:
            self._add(task, 0, where)


class LogIntake:
    """Takes in lines, and has them written.

    Args:
        logged: Told which runs, by tenant, have new lines.
    """

    def __init__(
        self, store: LogStore, clock: Clock, logged: Callable[[set[tuple[str, str]]], None], meter: LogMeter
    ) -> None:
        self.meter = meter
        self._store = store
        self._clock = clock
        self._logged = logged
        self._turns: dict[_Waiting, None] = {}
        self._filled = asyncio.Event()
        self._worked_s = -BUSY_S
        self.bytes = 0
        self.drained = asyncio.Event()
        """Set when the server goes: senders go on elsewhere."""

    def now_us(self) -> int:
        """The time of lines that say none."""
        return self._clock.now_us()

    def drain(self) -> None:
        """The server goes."""
        self.drained.set()

    def engine_works(self) -> None:
        """The engine has committed something."""
        self._worked_s = time.monotonic()

    @property
    def full(self) -> bool:
        """Whether no more may wait."""
        return self.bytes >= ALL_BYTES

    def open(self, principal: Principal, read: Read, told: Told) -> LogSource:
        """One who sends lines; `told` is called with how far they are stored."""
        return LogSource(self, principal.tenant, read, told)

    def filled(self, waiting: _Waiting) -> None:
        """Something of a task waits."""
        self._turns[waiting] = None
        self._filled.set()

    async def run(self) -> None:
        """Write what waits, until cancelled; then what still does."""
        try:
            while True:
                await self._filled.wait()
                await self._write(await self._take())
                await asyncio.sleep(BUSY_GAP_S if self._busy else GAP_S)
        finally:
            await self._store.close()

    async def flush(self) -> None:
        """Write all that waits; raises what the store raises."""
        while self._turns:
            await self._attempt(await self._take())

    @property
    def _busy(self) -> bool:
        return time.monotonic() < self._worked_s + BUSY_S

    async def _take(self) -> list[tuple[LogSource, LogBatch]]:
        """What is written next: a little of each task, in turn; while the engine works, once of each."""
        taken: list[tuple[LogSource, LogBatch]] = []
        lines = size = 0
        once = len(self._turns) if self._busy else None
        most = WRITE_LINES if once is None else BUSY_LINES
        while self._turns and once != 0 and lines < WRITE_LINES and size < WRITE_BYTES:
            waiting = next(iter(self._turns))
            del self._turns[waiting]
            batches = waiting.take(most)
            taken += [(waiting.source, batch) for batch in batches]
            lines += sum(len(batch.lines) for batch in batches)
            size += TURN_BYTES
            if waiting.batches:
                self._turns[waiting] = None
            else:
                waiting.source.forget(waiting.task)
            once = None if once is None else once - 1
            await asyncio.sleep(0)
        if not self._turns:
            self._filled.clear()
        return taken

    async def _write(self, taken: list[tuple[LogSource, LogBatch]]) -> None:
        while True:
            try:
                await self._attempt(taken)
            except MillstreamError as error:
                log.warning("what tasks logged could not be stored yet: %s", error.message)
            except Exception:
                log.exception("what tasks logged could not be stored yet")
            else:
                return
            await asyncio.sleep(RETRY_S)

    async def _attempt(self, taken: list[tuple[LogSource, LogBatch]]) -> None:
        """Store it; what the database refuses fails alone."""
        if not taken:
            return
        try:
            written = await self._store.write([(source.tenant, batch) for source, batch in taken], self._clock.now_us())
        except Refused:
            if len(taken) > 1:
                half = len(taken) // 2
                await self._attempt(taken[:half])
                await self._attempt(taken[half:])
                return
            source, batch = taken[0]
            error = ValidationFailed.of("lines", "the database cannot hold a value of these lines")
            source.answer([LogAck(batch.task_id, batch.attempt, max(batch.offset - 1, 0), error=error)])
            return
        self.meter.stored(written.lines, written.cut)
        self._tell([source for source, _ in taken], written.acks)
        if written.runs:
            self._logged(written.runs)

    @staticmethod
    def _tell(sources: Sequence[LogSource], acks: Sequence[LogAck]) -> None:
        by_source: dict[LogSource, list[LogAck]] = {}
        for source, ack in zip(sources, acks, strict=True):
            by_source.setdefault(source, []).append(ack)
        for source, own in by_source.items():
            source.answer(own)
