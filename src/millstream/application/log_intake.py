"""What takes in the lines that tasks log: beside the engine, so that a flood of them delays nothing else.

Lines wait as the bytes they came in, bounded for each worker; what comes over that is passed over, and asked for again
once there is room. One writer takes a little of each worker in turn, reads it, stores it, and then tells the workers
how far they are. It gives others their turn between its steps.
"""

import asyncio
import logging
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
"""Taken of a worker before the next one's turn."""
WRITE_LINES: Final = 1000
"""Written at once, about: more lines a transaction are stored faster, and hold up the commits beside it."""
WRITE_BYTES: Final = 1024 * 1024
GAP_S: Final = 0.01
"""Between two writes: under load many batches are written at once."""
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


class LogSource:
    """One who sends lines: a connected worker."""

    def __init__(self, intake: "LogIntake", tenant: str, read: Read, told: Told) -> None:
        self.tenant = tenant
        self.read = read
        self.told = told
        self._intake = intake
        self._waiting: deque[bytes | LogBatch] = deque()
        self._bytes = 0
        self._room = asyncio.Event()
        self._room.set()

    def put(self, batches: Sequence[bytes]) -> None:
        """Take batches as they came; never blocks."""
        for raw in batches:
            if self._bytes + len(raw) > SOURCE_BYTES or self._intake.full:
                self._pass_over(raw)
            else:
                self._bytes += len(raw)
                self._intake.bytes += len(raw)
                self._waiting.append(raw)
        if self._bytes >= SOURCE_BYTES / 2:
            self._room.clear()
        self._intake.filled(self)

    def ended(self, ends: Sequence[tuple[str, int, int]]) -> None:
        """Attempts have ended: (task, attempt, number of its last line)."""
        for task_id, attempt, final in ends:
            self._waiting.append(LogBatch(task_id, attempt, final=final))
        self._intake.filled(self)

    async def room(self) -> None:
        """Wait until there is room for more."""
        await self._room.wait()

    def close(self) -> None:
        """It went: what came of it is stored, but it is told nothing any more."""
        self.told = lambda acks: None

    def take(self) -> list[LogBatch]:
        """What it may have written in its turn."""
        taken: list[LogBatch] = []
        size = 0
        while self._waiting and size < TURN_BYTES:
            each = self._waiting.popleft()
            if isinstance(each, LogBatch):
                taken.append(each)
                size += 64
                continue
            size += len(each)
            taken.append(self.read(each))
        self._bytes -= min(size, self._bytes)
        self._intake.bytes -= min(size, self._intake.bytes)
        if not self._waiting:
            self._intake.bytes, self._bytes = self._intake.bytes - self._bytes, 0
        if self._bytes < SOURCE_BYTES / 2:
            self._room.set()
        return taken

    @property
    def empty(self) -> bool:
        """Whether nothing of it waits."""
        return not self._waiting

    def _pass_over(self, raw: bytes) -> None:
        """Once what came before is stored, its sender is told to send this again."""
        self._intake.meter.passed_over()
        batch = self.read(raw)
        where = LogBatch(batch.task_id, batch.attempt)
        if where not in self._waiting:
            self._waiting.append(where)


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
        self._turns: dict[LogSource, None] = {}
        self._filled = asyncio.Event()
        self.bytes = 0
        self.drained = asyncio.Event()
        """Set when the server goes: senders go on elsewhere."""

    def now_us(self) -> int:
        """The time of lines that say none."""
        return self._clock.now_us()

    def drain(self) -> None:
        """The server goes."""
        self.drained.set()

    @property
    def full(self) -> bool:
        """Whether no more may wait."""
        return self.bytes >= ALL_BYTES

    def open(self, principal: Principal, read: Read, told: Told) -> LogSource:
        """One who sends lines; `told` is called with how far they are stored."""
        return LogSource(self, principal.tenant, read, told)

    def filled(self, source: LogSource) -> None:
        """Something of a source waits."""
        if not source.empty:
            self._turns[source] = None
            self._filled.set()

    async def run(self) -> None:
        """Write what waits, until cancelled; then what still does."""
        try:
            while True:
                await self._filled.wait()
                await self._write(await self._take())
                await asyncio.sleep(GAP_S)
        finally:
            await self._store.close()

    async def flush(self) -> None:
        """Write all that waits; raises what the store raises."""
        while self._turns:
            await self._attempt(await self._take())

    async def _take(self) -> list[tuple[LogSource, LogBatch]]:
        """What is written next: a little of each, in turn."""
        taken: list[tuple[LogSource, LogBatch]] = []
        lines = size = 0
        while self._turns and lines < WRITE_LINES and size < WRITE_BYTES:
            source = next(iter(self._turns))
            del self._turns[source]
            batches = source.take()
            taken += [(source, batch) for batch in batches]
            lines += sum(len(batch.lines) for batch in batches)
            size += TURN_BYTES
            if not source.empty:
                self._turns[source] = None
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
            source.told([LogAck(batch.task_id, batch.attempt, max(batch.offset - 1, 0), error=error)])
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
            source.told(own)
