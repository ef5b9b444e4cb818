"""How much ends: counted where it is committed, noted for all servers, told of the last minute.

A sum over what is stored would read the more the more there was to do; a counter in memory knows of one server. So each
server notes its counts every few seconds, a row for each tenant of which something ended.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from millstream.application.engine.clock import Clock
from millstream.application.views.queues import Ends
from millstream.application.whenever import whenever
from millstream.domain.batch import Batch
from millstream.domain.runs import EventType

log = logging.getLogger(__name__)

WINDOW_S: Final = 60
NOTED_EVERY_S: Final = 5.0
_PLACES: Final = {
    int(EventType.TASK_COMPLETED): 0,
    int(EventType.TASK_FAILED): 1,
    int(EventType.TASK_RETRY): 2,
    int(EventType.TASK_CANCELLED): 3,
    int(EventType.RUN_COMPLETED): 4,
    int(EventType.RUN_FAILED): 5,
    int(EventType.RUN_CANCELLED): 6,
}
"""The types of events that are counted, and where each stands among the fields of Ends."""


class ThroughputStore(Protocol):
    """Keeps counts; see store.throughput."""

    async def note(self, lane: str, at_us: int, ends: Mapping[str, Sequence[int]]) -> None: ...
    async def since(self, tenant: str, since_us: int) -> Ends: ...


class Throughput:
    """What ends at this server, and at all.

    Args:
        lane: The lane by which this server is known.
    """

    def __init__(self, lane: str, clock: Clock, store: ThroughputStore) -> None:
        self._lane = lane
        self._clock = clock
        self._store = store
        self._counts: dict[str, list[int]] = {}
        self._noting: tuple[int, dict[str, list[int]]] = (0, {})
        """When, and what, is being noted: the same again where it was not heard whether it is stored."""
        self._wanted = asyncio.Event()

    def committed(self, batch: Batch) -> None:
        """Count what a batch ended."""
        for event in batch.events:
            place = _PLACES.get(event[3])
            if place is None:
                continue
            tenant = batch.runs[event[1]].tenant
            counts = self._counts.get(tenant)
            if counts is None:
                counts = self._counts[tenant] = [0] * len(_PLACES)
                self._wanted.set()
            counts[place] += 1

    async def run(self) -> None:
        """Note what ends, until cancelled; nothing where nothing does."""
        await whenever(self._wanted, self.note, log, "what ended could not be noted", NOTED_EVERY_S)

    async def note(self) -> None:
        """Note what was counted. Raises MillstreamError; what could not be noted is noted by the next call."""
        if not self._noting[1]:
            self._noting, self._counts = (self._clock.now_us(), self._counts), {}
        await self._store.note(self._lane, *self._noting)
        self._noting = (0, {})
        if self._counts:
            self._wanted.set()

    async def lately(self, tenant: str) -> Ends:
        """What ended within the last WINDOW_S seconds, at all servers."""
        return await self._store.since(tenant, self._clock.now_us() - WINDOW_S * 1_000_000)
