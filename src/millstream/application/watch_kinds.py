"""The two kinds of watches: of all that is published, by the feed; and of one cascade, by its own numbers."""

from collections.abc import AsyncGenerator, Iterator
from typing import Final

from millstream.application.feed import ROWS_READ, Stored, load, parts
from millstream.application.ports import FULL, Places
from millstream.application.views.artifacts import ArtifactQuery, Sent
from millstream.application.watch_cursor import WatchCursor
from millstream.application.watches import LOADED_MOST, Watch
from millstream.domain.errors import ValidationFailed

EXPIRED: Final = "EXPIRED"
"""Code of a cursor that is too old."""


class FeedWatch(Watch):
    """A watch of the tenant, from now on. `resume_us` is how old a cursor may be."""

    resume_us: int

    async def _fresh(self) -> WatchCursor:
        return WatchCursor(await self._store.end(), self._clock.now_us())

    def _check(self) -> None:
        if self._cursor.run_id:
            raise ValidationFailed.of("cursor", f"is of a watch of the cascade {self._cursor.run_id}; start without it")
        if self._clock.now_us() - self._cursor.at_us > self.resume_us:
            raise ValidationFailed.of(
                "cursor",
                f"is older than {self.resume_us // 1_000_000:,} s, after which watches cannot be resumed; "
                "start without it, and list what was stored in between",
                EXPIRED,
            )

    async def _catch_up(self) -> AsyncGenerator[Sent, None]:
        """Read the store from the own place on until the inbox has the rest."""
        self._check()
        target = await self._store.end()
        async for sent in self._read_until(target):
            yield sent
        self._settled = True
        target = await self._feed.join(self._watcher)
        async for sent in self._read_until(target):
            yield sent

    async def _read_until(self, target: Places) -> AsyncGenerator[Sent, None]:
        tenant = self._watcher.tenant
        while not self._cursor.covers(target):
            rows, behind, _ = await self._store.rows(self._cursor.places, ROWS_READ, (tenant,))
            for part in parts(rows, lambda row: len(row.ids.get(tenant, ())), LOADED_MOST):
                for stored in await load(self._artifacts, tenant, part):
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
            if artifact is not None:
                yield from self._judge(artifact)
        cursor.move(stored.lane, stored.n, FULL)

    async def _listen(self) -> AsyncGenerator[Sent, None]:
        for stored in self._watcher.take():
            for sent in self._read(stored):
                yield sent
        if self._watcher.attached and not self._watcher.items:
            # All up to there was judged, what is of others too.
            self._cursor.join(self._feed.place())


class CascadeWatch(Watch):
    """A watch of one cascade, from its first artifact on.

    Whoever adds to a cascade holds its run until the commit: its numbers are in the order of commits, so the last one
    read is a place, and the feed only tells when to look.
    """

    async def _fresh(self) -> WatchCursor:
        return WatchCursor({}, self._clock.now_us(), run_id=self._wanted.correlation_id)

    def _check(self) -> None:
        named = self._cursor.run_id
        if named != self._wanted.correlation_id:
            of = f"of a watch of the cascade {named}" if named else "of a watch of all cascades"
            raise ValidationFailed.of("cursor", f"is {of}; start without it")

    async def _catch_up(self) -> AsyncGenerator[Sent, None]:
        await self._feed.join(self._watcher)
        async for sent in self._look():
            yield sent
        self._settled = True

    async def _listen(self) -> AsyncGenerator[Sent, None]:
        run_id = self._cursor.run_id
        taken = self._watcher.take()
        if any(each is not None and each.run_id == run_id for stored in taken for each in stored.artifacts):
            async for sent in self._look():
                yield sent

    async def _look(self) -> AsyncGenerator[Sent, None]:
        """Read the cascade from the last number on."""
        query, more = ArtifactQuery(correlation_id=self._cursor.run_id), True
        while more:
            found, more = await self._artifacts.seen_of_run(
                self._watcher.tenant, query, None, self._clock.now_us(), self._cursor.seq, LOADED_MOST
            )
            for artifact in found:
                self._cursor.seq = artifact.seq
                for sent in self._judge(artifact):
                    yield sent
