"""The feed of what is committed, read once for all who watch at this server.

Woken by commits here and by wake-ups from other servers, it reads what is new in the store and hands each watcher what
is of its tenant. A watcher whose inbox is full, or that missed something, reads the store itself from its own place on
(see watching). While nobody watches, nothing is read and nothing is kept.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from millstream.application.following import Inbox
from millstream.application.ports import FULL, FeedRow, Places
from millstream.application.views.artifacts import ArtifactQuery
from millstream.application.whenever import whenever
from millstream.domain.artifacts import Artifact, Reader, size_bytes

log = logging.getLogger(__name__)

ROWS_READ: Final = 256
"""Rows of a lane that are read at once; each holds what one transaction stored."""
LOADED_MOST: Final = 200
"""Artifacts that are held in memory at once to be handed out; but all of one row."""
GAP_S: Final = 0.005
"""Between two readings: under load many commits are read at once."""
INBOX_BYTES: Final = 1024 * 1024
INBOX_ROWS: Final = 1000

_NOBODY: Final[set[str]] = set()


@dataclass(frozen=True, slots=True)
class Stored:
    """What one batch stored of one tenant, in its order; None for one that is gone."""

    lane: str
    n: int
    artifacts: Sequence[Artifact | None]

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        return sum(size_bytes(each) for each in self.artifacts if each is not None)


class FeedStore(Protocol):
    """Reads the feed; see store.feed."""

    async def end(self) -> Places: ...
    async def rows(
        self, places: Mapping[str, tuple[int, int]], limit: int, tenants: Container[str]
    ) -> tuple[list[FeedRow], Places, bool]: ...
    async def hidden(
        self, tenant: str, run_id: str, after: tuple[int, str], limit: int
    ) -> list[tuple[int, Artifact]]: ...


class ArtifactStore(Protocol):
    """Reads artifacts; see store.artifacts."""

    async def by_ids(self, tenant: str, ids: list[str]) -> dict[str, Artifact]: ...


class WatchedArtifacts(ArtifactStore, Protocol):
    """Reads artifacts of a cascade, too."""

    async def seen_of_run(
        self, tenant: str, query: ArtifactQuery, reader: Reader | None, now_us: int, after_seq: int, limit: int
    ) -> tuple[list[Artifact], bool]: ...


class Watcher(Inbox[Stored]):
    """One who watches a tenant: its inbox."""

    def __init__(self, tenant: str) -> None:
        super().__init__(INBOX_ROWS, INBOX_BYTES)
        self.tenant = tenant


class Feed:
    """The feed of this server.

    Attributes:
        on_change: Called when another tenant is watched here, or one no longer.
    """

    def __init__(self, store: FeedStore, artifacts: ArtifactStore) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self._store = store
        self._artifacts = artifacts
        self._watchers: dict[str, set[Watcher]] = {}
        self._places: Places | None = None
        self._starting = asyncio.Lock()
        self._wanted = asyncio.Event()

    @property
    def watched(self) -> set[str]:
        """The tenants that are watched here."""
        return set(self._watchers) if self._watchers else _NOBODY

    def look(self, tenants: Iterable[str] | None = None) -> None:
        """Something of these tenants was committed, or may have been (None)."""
        if self._watchers and (tenants is None or not self._watchers.keys().isdisjoint(tenants)):
            self._wanted.set()

    @contextlib.asynccontextmanager
    async def watching(self, tenant: str) -> AsyncIterator[Watcher]:
        """A watcher of a tenant; not attached yet."""
        watcher = Watcher(tenant)
        first = tenant not in self._watchers
        self._watchers.setdefault(tenant, set()).add(watcher)
        try:
            if first:
                self.on_change()
            yield watcher
        finally:
            watchers = self._watchers[tenant]
            watchers.discard(watcher)
            if not watchers:
                del self._watchers[tenant]
                self.on_change()
            if not self._watchers:
                self._places = None

    async def join(self, watcher: Watcher) -> Places:
        """Attach a watcher; its inbox has what is behind the place that is returned."""
        async with self._starting:
            places = self._places
            if places is None:
                places = self._places = await self._store.end()
                # What was committed since was told to nobody.
                self._wanted.set()
            watcher.attach()
            return dict(places)

    def place(self) -> Places:
        """How far the feed was read."""
        return dict(self._places or {})

    async def run(self) -> None:
        """Read what is new whenever there may be something, until cancelled."""
        await whenever(self._wanted, self._look, log, "the feed could not be read", GAP_S)

    async def _look(self) -> None:
        if self._places is not None and await self._read(self._places):
            self._wanted.set()

    async def _read(self, places: Places) -> bool:
        """Read on, and hand out what was read; whether there is more."""
        tenants = self.watched
        rows, behind, more = await self._store.rows(places, ROWS_READ, tenants)
        fresh = [row for row in rows if row.n > places.get(row.lane, (0, 0))[0]]
        for part in parts(fresh, lambda row: sum(map(len, row.ids.values())), LOADED_MOST):
            found = {tenant: await load(self._artifacts, tenant, part) for tenant in tenants}
            if self._places is not places:
                return True
            self._hand_out(found)
            # Step by step: who joins meanwhile begins behind what was handed out.
            self._places = places = places | {row.lane: (row.n, FULL) for row in part}
        if self._places is not places:
            return True
        self._places = behind
        return more

    def _hand_out(self, found: Mapping[str, Sequence[Stored]]) -> None:
        for tenant, watchers in self._watchers.items():
            for watcher in watchers:
                if tenant not in found:
                    # It came while this was read, and without it.
                    watcher.detach()
                elif watcher.attached:
                    for stored in found[tenant]:
                        watcher.put(stored, stored.size_bytes)


def parts(rows: Sequence[FeedRow], count: Callable[[FeedRow], int], most: int) -> Iterator[list[FeedRow]]:
    """Rows by as many as hold so many artifacts at most, but one at least."""
    part: list[FeedRow] = []
    size = 0
    for row in rows:
        held = count(row)
        if part and size + held > most:
            yield part
            part, size = [], 0
        part.append(row)
        size += held
    if part:
        yield part


async def load(artifacts: ArtifactStore, tenant: str, rows: Iterable[FeedRow]) -> list[Stored]:
    """What rows of the feed hold of a tenant."""
    wanted = [(row, row.ids[tenant]) for row in rows if tenant in row.ids]
    if not wanted:
        return []
    found = await artifacts.by_ids(tenant, [each for _, ids in wanted for each in ids])
    return [Stored(row.lane, row.n, [found.get(each) for each in ids]) for row, ids in wanted]
