"""Watching runs: every event once, in order, from wherever the caller left off, to the end of the run."""

from collections.abc import AsyncGenerator
from typing import Final, Protocol

from millstream.application.engine.clock import Clock
from millstream.application.following import Following, Inbox, StreamMeter, StreamMeters
from millstream.application.run_feed import RunFeed
from millstream.application.run_history import RunHistory
from millstream.application.run_sight import RunSight
from millstream.application.run_topics import RunSent, Topic
from millstream.application.run_tree import EXPIRED, Cursor, Place, check_cursor, gone_within, place_of
from millstream.application.sight import Sight
from millstream.domain.errors import NotFound, RateLimited, ValidationFailed
from millstream.domain.principals import Principal
from millstream.domain.runs import Event, EventType, Run

TASK_EVENTS: Final = frozenset(each for each in EventType if each.name.startswith("TASK_"))


class RunReads(Protocol):
    """Reads runs; see store.runs."""

    async def run(self, tenant: str, run_id: str) -> Run | None: ...


class RunWatch(Following[RunSent]):
    """One who watches a run.

    Args:
        only: Of these types; None: of all.
    """

    def __init__(
        self,
        feed: RunFeed,
        topic: Topic,
        inbox: Inbox[RunSent],
        sight: RunSight,
        clock: Clock,
        only: frozenset[EventType] | None,
        meter: StreamMeter,
    ) -> None:
        super().__init__(inbox, meter)
        self._box = inbox
        self._feed = feed
        self._topic = topic
        self._sight = sight
        self._clock = clock
        self._only = only
        self._cursor = Cursor(topic.tree, {})
        self._last = ""
        self._live = False
        self._over = False

    async def start(self, cursor: str) -> None:
        """Begin at the beginning, or behind a cursor. Raises NotFound, ValidationFailed."""
        feed, topic = self._feed, self._topic
        if not topic.loaded or cursor:
            await feed.up_to_date(topic)
        if not topic.loaded:
            raise _no_run(topic.tree.root)
        if cursor:
            there = {run_id: seq for run_id, seq in topic.place.items() if seq}
            self._cursor = Cursor(topic.tree, place_of(cursor, topic.tree, there))
        self._last = self._cursor.text()

    def _beat(self) -> RunSent:
        return RunSent(self._last)

    @property
    def _ended(self) -> bool:
        return self._over

    async def _catch_up(self) -> AsyncGenerator[RunSent, None]:
        """Read the store up to where the topic is, and from there on the inbox."""
        if self._live:
            self._meter.too_slow()
            raise RateLimited("the reader is too slow for this stream; go on behind the last cursor", retry_after_s=1.0)
        target = self._topic.attach(self._box)
        tree, place, history = self._topic.tree, self._cursor.place, RunHistory()
        for run_id in tree.below(place):
            history.begin(run_id, tree.depths[run_id], place.get(run_id, 0), target.get(run_id, 0))
        while history:
            event = history.next()
            if event is None:
                await self._read(history, target)
                continue
            self._last = self._cursor.move(event.run_id, event.seq)
            for run_id in tree.told_by(event):
                history.begin(run_id, tree.depths[run_id], place.get(run_id, 0), target.get(run_id, 0))
            if self._asked_for(event):
                yield RunSent(self._last, event)
        if self._box.attached:
            self._live = True
            if self._topic.over and not self._box.items:
                self._over = True
                yield RunSent(self._last, ended=True)

    def _measure_stored(self, sent: RunSent) -> None:
        if sent.event is not None:
            self._meter.item()

    def _measure_live(self, sent: RunSent) -> None:
        if sent.event is not None:
            self._meter.fresh_item(self._clock.now_us() - sent.event.at_us)
        elif sent.streamed is not None:
            self._meter.value()

    async def _read(self, history: RunHistory, target: Place) -> None:
        """Read what is needed next. Raises NotFound, ValidationFailed where it is not kept any more, though a part of
        it was sent."""
        tree = self._topic.tree
        asked, limit = history.wanted()
        async with self._feed.reading:
            page = await self._feed.store.events_of(asked, limit, target)
        for event in page:
            for run_id in tree.told_by(event):
                history.expect(run_id, tree.depths[run_id], 0, target.get(run_id, 0))
        for run_id, seq in history.take(asked, await self._sight.events(page)).items():
            if seq:
                raise gone_within(run_id)
            if run_id == tree.root:
                raise _no_run(run_id)
            target[run_id] = 0

    async def _listen(self) -> AsyncGenerator[RunSent, None]:
        if not self._live:
            return
        taken = self._box.take()
        if taken:
            self._last = taken[-1].cursor
        for sent in await self._sight.sent([each for each in taken if self._asked_for(each.event)]):
            self._over = self._over or sent.ended
            yield sent

    def _asked_for(self, event: Event | None) -> bool:
        return event is None or self._only is None or event.type in self._only


class RunWatching:
    """The use case of watching runs.

    Args:
        kept_days: How long runs are kept after their end, to be told to who comes too late.
    """

    def __init__(
        self, clock: Clock, feed: RunFeed, reads: RunReads, sight: Sight, kept_days: float, meters: StreamMeters
    ) -> None:
        self._clock = clock
        self._feed = feed
        self._reads = reads
        self._sight = sight
        self._kept_days = kept_days
        self._meters = meters

    async def watch(
        self, principal: Principal, run_id: str, cursor: str = "", *, deep: bool = False, tasks: bool = False
    ) -> AsyncGenerator[RunSent, None]:
        """Events of a run from its first on, or behind a cursor; the first is a cursor alone, and so is each sign of
        life. Ends with the run, `deep`: and with all runs that it began, and those that they began. `tasks`: only what
        happens to its tasks.

        Raises NotFound; ValidationFailed on a cursor that is none, or behind which something is not kept any more (code
        EXPIRED); RateLimited where the reader does not keep pace.
        """
        if cursor:
            check_cursor(cursor, run_id, deep)
        if await self._reads.run(principal.tenant, run_id) is None:
            raise self._gone(run_id, cursor)
        async with self._feed.watching(principal.tenant, run_id, deep) as (topic, inbox):
            only = TASK_EVENTS if tasks else None
            meter = self._meters.meter("run_tasks" if tasks else "run_tree" if deep else "run")
            sight = RunSight(self._sight, self._clock, principal)
            watch = RunWatch(self._feed, topic, inbox, sight, self._clock, only, meter)
            await watch.start(cursor)
            async for sent in watch.run():
                yield sent

    def _gone(self, run_id: str, cursor: str) -> NotFound | ValidationFailed:
        """There is no such run, or none any more: whoever has a cursor once had it."""
        if not cursor or cursor == "0":
            return _no_run(run_id)
        kept = (
            f"is of a run that is not kept any more: ended runs are for {self._kept_days:g} days (run_retention_days)"
        )
        return ValidationFailed.of("cursor", kept, EXPIRED)


def _no_run(run_id: str) -> NotFound:
    return NotFound(f"there is no run {run_id}")
