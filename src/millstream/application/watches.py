"""Watches under way: what they hold back until it is visible, and how they go on.

A cursor is a place among what is committed, and a moment. Sent up to it are the artifacts up to the place that are
visible at the moment: a function of the cursor alone, so any server goes on from it, nothing lost and nothing doubled.
"""

import asyncio
import heapq
from abc import abstractmethod
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from typing import Final

from millstream.application.engine.clock import Clock
from millstream.application.feed import Feed, FeedStore, WatchedArtifacts, Watcher
from millstream.application.following import Following, StreamMeter
from millstream.application.sight import may_see
from millstream.application.views.artifacts import Sent
from millstream.application.watch_cursor import LAST_ID, WatchCursor
from millstream.domain.artifacts import Artifact, Reader, delay_us
from millstream.domain.errors import ValidationFailed

HELD_MOST: Final = 1000
"""Artifacts whose After is not over, of which a watch knows id and time; those behind are read when these are sent."""
LOADED_MOST: Final = 100
"""Artifacts that are read, and kept in memory, at once; but all of one row."""
AHEAD_US: Final = 5_000_000
"""How far the clock of another server may be ahead."""


@dataclass(frozen=True, slots=True)
class WatchFilter:
    """Which artifacts; an empty field is "any", one with several "one of them"."""

    types: frozenset[str] = frozenset()
    produced_by: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()
    visibility: frozenset[str] = frozenset()
    correlation_id: str = ""

    def matches(self, artifact: Artifact) -> bool:
        """Whether an artifact is one of them."""
        return (
            (not self.types or artifact.type in self.types)
            and (not self.produced_by or artifact.produced_by in self.produced_by)
            and (not self.tags or not self.tags.isdisjoint(artifact.tags))
            and (not self.visibility or artifact.visibility.kind in self.visibility)
            and (not self.correlation_id or artifact.run_id == self.correlation_id)
        )


class Watch(Following[Sent]):
    """One watch under way. Where it reads what is committed, and in which order, is its kind's own."""

    def __init__(
        self,
        clock: Clock,
        feed: Feed,
        store: FeedStore,
        artifacts: WatchedArtifacts,
        watcher: Watcher,
        reader: Reader | None,
        wanted: WatchFilter,
        meter: StreamMeter,
    ) -> None:
        super().__init__(watcher, meter)
        self._clock = clock
        self._feed = feed
        self._store = store
        self._artifacts = artifacts
        self._watcher = watcher
        self._reader = reader
        self._wanted = wanted
        self._cursor = WatchCursor()
        self._held: dict[str, int] = {}
        self._due: list[tuple[int, str]] = []
        self._known: tuple[int, str] | None = None
        """All that is held up to here is known; None: all."""
        self._settled = False
        """What is held does not also stand in rows that are not read yet."""

    async def start(self, cursor: str) -> None:
        """Begin behind a cursor, or anew. Raises ValidationFailed on a cursor that is none of this watch."""
        if not cursor:
            self._cursor = await self._fresh()
            return
        self._cursor = WatchCursor.decode(cursor)
        ahead_us = self._cursor.at_us - self._clock.now_us()
        if ahead_us > AHEAD_US:
            raise ValidationFailed.of("cursor", "is no cursor of a watch; start without it")
        if ahead_us > 0:
            # Nothing may be shown before its time.
            await asyncio.sleep(ahead_us / 1e6)
        self._check()

    @abstractmethod
    async def _fresh(self) -> WatchCursor:
        """Where a watch without a cursor begins."""

    @abstractmethod
    def _check(self) -> None:
        """Raise ValidationFailed where the cursor cannot be gone on from."""

    def _beat(self) -> Sent:
        return Sent(None, self._cursor.encode())

    def _measure_live(self, sent: Sent) -> None:
        if sent.artifact is not None:
            self._meter.fresh_item(self._clock.now_us() - sent.artifact.created_us)

    async def _begin(self) -> None:
        await self._load_held()

    @property
    def _due_s(self) -> float | None:
        return (self._due[0][0] - self._clock.now_us()) / 1e6 if self._due else None

    def _judge(self, artifact: Artifact) -> Iterator[Sent]:
        """An artifact behind the cursor: send it, hold it until it is visible, or pass it over."""
        if not self._wanted.matches(artifact):
            return
        visible_us = self._visible_from(artifact)
        if visible_us is not None:
            if (visible_us, artifact.id) <= self._cursor.moment:
                yield Sent(artifact, self._cursor.encode())
            else:
                self._hold(visible_us, artifact.id)

    # What becomes visible later.

    def _visible_from(self, artifact: Artifact) -> int | None:
        """Since when the reader may see an artifact, microseconds; 0: from the first; None: never."""
        if self._reader is None or may_see(self._reader, artifact, artifact.created_us):
            return 0
        settled_us = artifact.created_us + delay_us(artifact.visibility)
        return settled_us if may_see(self._reader, artifact, settled_us) else None

    async def _load_held(self) -> None:
        """Learn what is stored and not visible yet, the next of it to become so."""
        self._held, self._due, self._known, self._settled = {}, [], None, False
        if self._reader is None:
            return
        found = await self._store.hidden(
            self._watcher.tenant, self._wanted.correlation_id, self._cursor.moment, HELD_MOST
        )
        if len(found) >= HELD_MOST:
            self._known = (found[-1][0], found[-1][1].id)
        for _, artifact in found:
            visible_us = self._visible_from(artifact)
            if visible_us and self._wanted.matches(artifact):
                self._hold(visible_us, artifact.id)

    def _hold(self, due_us: int, artifact_id: str) -> None:
        if artifact_id in self._held or (self._known is not None and (due_us, artifact_id) > self._known):
            return
        self._held[artifact_id] = due_us
        heapq.heappush(self._due, (due_us, artifact_id))
        if len(self._due) > 2 * HELD_MOST:
            self._due = heapq.nsmallest(HELD_MOST, self._due)
            self._held = {each: at_us for at_us, each in self._due}
            self._known = self._due[-1]

    async def _advance(self) -> AsyncGenerator[Sent, None]:
        """Send what has become visible up to now, in the order in which it did."""
        if not self._settled:
            return
        now_us = self._clock.now_us()
        while self._due and self._due[0][0] <= now_us:
            due: list[tuple[int, str]] = []
            while self._due and self._due[0][0] <= now_us and len(due) < LOADED_MOST:
                due.append(heapq.heappop(self._due))
            found = await self._artifacts.by_ids(self._watcher.tenant, [artifact_id for _, artifact_id in due])
            for due_us, artifact_id in due:
                del self._held[artifact_id]
                self._cursor.at_us, self._cursor.after_id = due_us, artifact_id
                if artifact_id in found:
                    yield Sent(found[artifact_id], self._cursor.encode())
        if self._known is not None and self._known[0] <= now_us:
            # There is more: read it, and with it the rows in which it may stand, too.
            self._cursor.at_us, self._cursor.after_id = self._known
            await self._load_held()
            self._watcher.detach()
        else:
            self._cursor.at_us, self._cursor.after_id = now_us, LAST_ID
