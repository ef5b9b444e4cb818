"""Following what happens: history first, then what comes, in order, with signs of life, to the end if there is one.

Whoever follows reads the store from a place of its own on, until its inbox tells of the rest. What the inbox has no
room for is never waited for: the store has it, too.
"""

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from typing import Final, Generic, Protocol, TypeVar

HEARTBEAT_S: Final = 15.0

ItemT = TypeVar("ItemT")
SentT = TypeVar("SentT")


class StreamMeter(Protocol):
    """Measures the streams of a kind; see adapters.metrics. It is asked for each message, and has to be cheap."""

    def begin(self) -> None:
        """A stream begins."""

    def end(self) -> None:
        """It ended."""

    def item(self) -> None:
        """Something that is stored is sent."""

    def fresh_item(self, late_us: int) -> None:
        """The same, live, so long after it was stored."""

    def value(self) -> None:
        """Something that is not stored is sent."""

    def beat(self) -> None:
        """A sign of life is sent."""

    def too_slow(self) -> None:
        """A reader did not keep pace, which ends its stream."""


class StreamMeters(Protocol):
    """The meters of all kinds of streams; see adapters.metrics."""

    def meter(self, stream: str) -> StreamMeter:
        """That of a kind: "artifacts", "run", "run_tree", "run_tasks", "task_logs" or "run_logs"."""
        ...


class Inbox(Generic[ItemT]):
    """What came for one who follows; bounded.

    Attributes:
        attached: It goes on where the last reading of the store ended. Else something is missing.
        overflown: Something is missing because nobody took what came.
        filled: Set when there is something to look at.

    Args:
        most: Items that may wait.
        most_bytes: And about how large they may be together; but one may always wait.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self.attached = False
        self.overflown = False
        self.filled = asyncio.Event()
        self.items: list[ItemT] = []
        self._most = most
        self._most_bytes = most_bytes
        self._bytes = 0

    def attach(self) -> None:
        """From here on it has everything."""
        self.attached, self.overflown = True, False
        self.take()

    def detach(self) -> None:
        """Something is missing: the store has it."""
        self.attached = False
        self.take()
        self.filled.set()

    def take(self) -> list[ItemT]:
        """What came."""
        taken, self.items, self._bytes = self.items, [], 0
        self.filled.clear()
        return taken

    def put(self, item: ItemT, size_bytes: int) -> None:
        """Something came; never blocks."""
        self.items.append(item)
        self._bytes += size_bytes
        self.filled.set()
        if len(self.items) > self._most or (self._bytes > self._most_bytes and len(self.items) > 1):
            self.overflown = True
            self.detach()

    @property
    def half_full(self) -> bool:
        """There is less room than was taken: what can be done without had better not come."""
        return 2 * len(self.items) > self._most or 2 * self._bytes > self._most_bytes


class Following(ABC, Generic[SentT]):
    """One who follows. Where it reads, and what it makes of what came, is its kind's own."""

    def __init__(self, inbox: Inbox[ItemT], meter: StreamMeter) -> None:
        self._inbox = inbox
        self._meter = meter

    @abstractmethod
    def _beat(self) -> SentT:
        """A sign of life, with the place where to go on."""

    @abstractmethod
    def _catch_up(self) -> AsyncGenerator[SentT, None]:
        """Read the store from the own place on, until the inbox tells of the rest: attach it on the way."""

    @abstractmethod
    def _listen(self) -> AsyncGenerator[SentT, None]:
        """What the inbox tells of."""

    def _measure_stored(self, sent: SentT) -> None:
        """Measure what the store had."""
        self._meter.item()

    def _measure_live(self, sent: SentT) -> None:
        """Measure what the inbox told of."""
        self._meter.item()

    async def _begin(self) -> None:
        """What is needed before anything is read, and after the first sign of life."""

    async def _advance(self) -> AsyncGenerator[SentT, None]:
        """What the time brings."""
        nothing: tuple[SentT, ...] = ()
        for each in nothing:
            yield each

    @property
    def _due_s(self) -> float | None:
        """In how many seconds the time brings something; None: never."""
        return None

    @property
    def _ended(self) -> bool:
        """All was sent that will ever be."""
        return False

    async def run(self) -> AsyncGenerator[SentT, None]:
        """Send until nobody asks any more, or to the end; a sign of life first, and whenever there was none for a
        while."""
        loop, meter = asyncio.get_running_loop(), self._meter
        meter.begin()
        try:
            meter.beat()
            yield self._beat()
            await self._begin()
            beat_at = loop.time() + HEARTBEAT_S
            while True:
                if not self._inbox.attached:
                    async for sent in self._catch_up():
                        self._measure_stored(sent)
                        yield sent
                async for sent in self._listen():
                    self._measure_live(sent)
                    yield sent
                async for sent in self._advance():
                    meter.item()
                    yield sent
                if self._ended:
                    return
                if loop.time() >= beat_at:
                    meter.beat()
                    yield self._beat()
                    beat_at = loop.time() + HEARTBEAT_S
                await self._wait(beat_at)
        finally:
            meter.end()

    async def _wait(self, beat_at: float) -> None:
        """Wait for something new, for what is due, or for the next sign of life."""
        if not self._inbox.attached:
            return
        wait_s = beat_at - asyncio.get_running_loop().time()
        due_s = self._due_s
        if due_s is not None:
            wait_s = min(wait_s, due_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, wait_s)):
                await self._inbox.filled.wait()
