"""Watching what is published: every artifact that a caller may see, once, when it is committed or becomes visible."""

from collections.abc import AsyncGenerator

from millstream.application.engine.clock import Clock
from millstream.application.feed import Feed, FeedStore, WatchedArtifacts
from millstream.application.following import StreamMeters
from millstream.application.sight import restricted
from millstream.application.views.artifacts import Sent
from millstream.application.watch_kinds import CascadeWatch, FeedWatch
from millstream.application.watches import Watch, WatchFilter
from millstream.domain.principals import Principal


class Watching:
    """The use case of watching.

    Args:
        resume_s: How old a cursor may be.
    """

    def __init__(
        self,
        clock: Clock,
        feed: Feed,
        store: FeedStore,
        artifacts: WatchedArtifacts,
        resume_s: float,
        meters: StreamMeters,
    ) -> None:
        self._clock = clock
        self._feed = feed
        self._store = store
        self._artifacts = artifacts
        self._resume_s = resume_s
        self._meter = meters.meter("artifacts")

    async def watch(self, principal: Principal, wanted: WatchFilter, cursor: str) -> AsyncGenerator[Sent, None]:
        """What is published from now on, of one cascade from its beginning, or behind a cursor; the first is a cursor
        alone, and so is each heartbeat.

        Never ends by itself. Raises ValidationFailed on a cursor that is none, or too old.
        """
        kind = CascadeWatch if wanted.correlation_id else FeedWatch
        async with self._feed.watching(principal.tenant) as watcher:
            watch: Watch = kind(
                self._clock,
                self._feed,
                self._store,
                self._artifacts,
                watcher,
                restricted(principal),
                wanted,
                self._meter,
            )
            if isinstance(watch, FeedWatch):
                watch.resume_us = int(self._resume_s * 1e6)
            await watch.start(cursor)
            async for sent in watch.run():
                yield sent
