"""Watching what is published: every artifact that a caller may see, once, when it is committed or becomes visible."""

import asyncio
import contextlib
import heapq
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from millstream.application.engine.clock import Clock
from millstream.application.feed import (
    ROWS_READ,
    ArtifactStore,
    Feed,
    FeedStore,
    Stored,
    Watcher,
    load,
)
from millstream.application.ports import FULL, FeedRow, Places
from millstream.application.sight import may_see, restricted
from millstream.application.views import Sent
from millstream.application.watch_cursor import LAST_ID, WatchCursor
from millstream.domain.artifacts import Artifact, Reader, delay_us
from millstream.domain.errors import ValidationFailed
from millstream.domain.principals import Principal

HEARTBEAT_S: Final = 15.0
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


class Watching:
    """The use case of watching.

    Args:
        resume_s: How old a cursor may be.
    """

    def __init__(self, clock: Clock, feed: Feed, store: FeedStore, artifacts: ArtifactStore, resume_s: float) -> None:
        self._clock = clock
        self._feed = feed
        self._store = store
        self._artifacts = artifacts
        self._resume_s = resume_s

    async def watch(self, principal: Principal, wanted: WatchFilter, cursor: str) -> AsyncGenerator[Sent, None]:
        """What is published from now on, or behind a cursor; the first is a cursor alone, and so is each heartbeat.

        Never ends by itself. Raises ValidationFailed on a cursor that is none, or too old.
        """
        resume_us = int(self._resume_s * 1e6)
        async with self._feed.watching(principal.tenant) as watcher:
            watch = _Watch(self._clock, self._feed, self._store, self._artifacts, resume_us, watcher)
            watch.reader, watch.wanted = restricted(principal), wanted
            await watch.start(cursor)
            async for sent in watch.run():
                yield sent


class _Watch:
    """One watch under way."""

    wanted: WatchFilter
    reader: Reader | None

    def __init__(
        self,
        clock: Clock,
        feed: Feed,
        store: FeedStore,
        artifacts: ArtifactStore,
        resume_us: int,
        watcher: Watcher,
    ) -> None:
        self._clock = clock
        self._feed = feed
        self._store = store
        self._artifacts = artifacts
        self._resume_us = resume_us
        self._watcher = watcher
        self._cursor = WatchCursor()
        self._held: dict[str, int] = {}
        self._due: list[tuple[int, str]] = []
        self._known: tuple[int, str] | None = None
        """All that is held up to here is known; None: all."""
        self._settled = False
        """What is held does not also stand in rows that are not read yet."""

    async def start(self, cursor: str) -> None:
        """Begin behind a cursor, or now."""
        if not cursor:
            self._cursor = WatchCursor(await self._store.end(), self._clock.now_us())
            return
        self._cursor = WatchCursor.decode(cursor)
        ahead_us = self._cursor.at_us - self._clock.now_us()
        if ahead_us > AHEAD_US:
            raise ValidationFailed.of("cursor", "is no cursor of a watch; start without it")
        if ahead_us > 0:
            # Nothing may be shown before its time.
            await asyncio.sleep(ahead_us / 1e6)
        self._check_age()

    def _check_age(self) -> None:
        if self._clock.now_us() - self._cursor.at_us > self._resume_us:
            raise ValidationFailed.of(
                "cursor",
                f"is older than {self._resume_us // 1_000_000:,} s, after which watches cannot be resumed; "
                "start without it, and list what was stored in between",
                "EXPIRED",
            )

    async def run(self) -> AsyncGenerator[Sent, None]:
        """Send until nobody asks any more."""
        loop = asyncio.get_running_loop()
        yield Sent(None, self._cursor.encode())
        await self._load_held()
        beat_at = loop.time() + HEARTBEAT_S
        while True:
            if not self._watcher.attached:
                async for sent in self._catch_up():
                    yield sent
            for stored in self._watcher.take():
                for sent in self._read(stored):
                    yield sent
            if self._settled:
                async for sent in self._advance():
                    yield sent
            if self._watcher.attached and not self._watcher.inbox:
                self._cursor.join(self._feed.place())
            if loop.time() >= beat_at:
                yield Sent(None, self._cursor.encode())
                beat_at = loop.time() + HEARTBEAT_S
            await self._wait(beat_at)

    async def _wait(self, beat_at: float) -> None:
        """Wait for something new, for what becomes visible, or for the next heartbeat."""
        if not self._watcher.attached:
            return
        wait_s = beat_at - asyncio.get_running_loop().time()
        if self._due:
            wait_s = min(wait_s, (self._due[0][0] - self._clock.now_us()) / 1e6)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, wait_s)):
                await self._watcher.filled.wait()

    # What is committed.

    async def _catch_up(self) -> AsyncGenerator[Sent, None]:
        """Read the store from the own place on until the inbox has the rest."""
        self._check_age()
        target = await self._store.end()
        async for sent in self._read_until(target):
            yield sent
        self._settled = True
        target = await self._feed.join(self._watcher)
        async for sent in self._read_until(target):
            yield sent

    async def _read_until(self, target: Places) -> AsyncGenerator[Sent, None]:
        while not self._cursor.covers(target):
            rows, behind, _ = await self._store.rows(self._cursor.places, ROWS_READ)
            for part in _parts(rows, self._watcher.tenant):
                for stored in await load(self._artifacts, self._watcher.tenant, part):
                    for sent in self._read(stored):
                        yield sent
            # The rows of a lane that has none any more were too old for any watch.
            self._cursor.join({lane: place for lane, place in target.items() if lane not in behind} | behind)

    def _read(self, stored: Stored) -> Iterator[Sent]:
        """Judge what a batch stored, but for what was read of it already."""
        cursor = self._cursor
        n, taken = cursor.places.get(stored.lane, (0, 0))
        if stored.n < n:
            return
        for place, artifact in enumerate(stored.artifacts):
            if stored.n == n and place < taken:
                continue
            cursor.move(stored.lane, stored.n, place + 1)
            if artifact is None or not self.wanted.matches(artifact):
                continue
            visible_us = self._visible_from(artifact)
            if visible_us is not None:
                if (visible_us, artifact.id) <= cursor.moment:
                    yield Sent(artifact, cursor.encode())
                else:
                    self._hold(visible_us, artifact.id)
        cursor.move(stored.lane, stored.n, FULL)

    # What becomes visible later.

    def _visible_from(self, artifact: Artifact) -> int | None:
        """Since when the reader may see an artifact, microseconds; 0: from the first; None: never."""
        if self.reader is None or may_see(self.reader, artifact, artifact.created_us):
            return 0
        settled_us = artifact.created_us + delay_us(artifact.visibility)
        return settled_us if may_see(self.reader, artifact, settled_us) else None

    async def _load_held(self) -> None:
        """Learn what is stored and not visible yet, the next of it to become so."""
        self._held, self._due, self._known, self._settled = {}, [], None, False
        if self.reader is None:
            return
        found = await self._store.hidden(self._watcher.tenant, self._cursor.moment, HELD_MOST)
        if len(found) >= HELD_MOST:
            self._known = (found[-1][0], found[-1][1].id)
        for _, artifact in found:
            visible_us = self._visible_from(artifact)
            if visible_us and self.wanted.matches(artifact):
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


def _parts(rows: Sequence[FeedRow], tenant: str) -> Iterator[list[FeedRow]]:
    """Rows by as many as hold LOADED_MOST of a tenant's artifacts, one at least."""
    part: list[FeedRow] = []
    size = 0
    for row in rows:
        count = len(row.ids.get(tenant, ()))
        if part and size + count > LOADED_MOST:
            yield part
            part, size = [], 0
        part.append(row)
        size += count
    if part:
        yield part
