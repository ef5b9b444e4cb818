"""The events of the runs that are watched here, read once for all who watch.

What is committed here is handed on as it is; what other servers commit is read when they tell of it, of all runs at
once. As the events of a run are numbered without gaps, whoever misses one knows. While nobody watches, nothing is read
and nothing is kept.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Final, Protocol

from millstream.application.following import Inbox
from millstream.application.ports import RunHead
from millstream.application.run_topics import RunSent, Topic
from millstream.application.views.reports import Streamed
from millstream.application.whenever import whenever
from millstream.domain.batch import Batch, EventRow
from millstream.domain.runs import Event, EventType

log = logging.getLogger(__name__)

READ_MOST: Final = 200
"""Events of a run that are read at once."""
RUNS_MOST: Final = 500
"""Runs whose events are read at once."""
GAP_S: Final = 0.002
"""Between two readings: under load many commits are read at once."""
INBOX_ITEMS: Final = 2000
INBOX_BYTES: Final = 512 * 1024
READERS: Final = 4
"""Histories that are read at once: those who watch wait in turn, so that a thousand of them leave room for others."""


class RunFeedStore(Protocol):
    """Reads events; see store.run_feed."""

    async def heads(self, run_ids: Sequence[str]) -> dict[str, RunHead]: ...
    async def events_of(
        self, after: Mapping[str, int], limit: int, upto: Mapping[str, int] | None = None
    ) -> list[Event]: ...
    async def branches(self, upto: Mapping[str, int]) -> list[Event]: ...


class RunFeed:
    """The runs that are watched at this server.

    Attributes:
        on_change: Called when another tenant is watched here, or one no longer.
        passed_over: Told how many readers were not sent what a task streams, as they are behind.
        reading: Taken by whoever reads a history.
    """

    def __init__(self, store: RunFeedStore) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self.passed_over: Callable[[int], None] = lambda readers: None
        self.reading = asyncio.Semaphore(READERS)
        self.store = store
        self._topics: dict[tuple[str, bool], Topic] = {}
        self._by_run: dict[str, set[Topic]] = {}
        self._tenants: Counter[str] = Counter()
        self._marked: dict[tuple[Topic, str], None] = {}
        self._asking: dict[Topic, list[asyncio.Future[None]]] = {}
        self._ending: dict[Topic, None] = {}
        self._wanted = asyncio.Event()

    @property
    def watched(self) -> set[str]:
        """The tenants in which runs are watched here."""
        return set(self._tenants)

    def __len__(self) -> int:
        return len(self._topics)

    @contextlib.asynccontextmanager
    async def watching(self, tenant: str, run_id: str, deep: bool) -> AsyncIterator[tuple[Topic, Inbox[RunSent]]]:
        """One who watches a run of a tenant: its inbox, not attached yet."""
        topic = self._topics.get((run_id, deep))
        if topic is None:
            topic = self._topics[run_id, deep] = Topic(tenant, run_id, deep)
            self._by_run.setdefault(run_id, set()).add(topic)
            self._tenants[tenant] += 1
            if self._tenants[tenant] == 1:
                self.on_change()
        inbox: Inbox[RunSent] = Inbox(INBOX_ITEMS, INBOX_BYTES)
        topic.watchers.add(inbox)
        try:
            yield topic, inbox
        finally:
            topic.watchers.discard(inbox)
            if not topic.watchers:
                self._drop(topic)

    def _drop(self, topic: Topic) -> None:
        tree = topic.tree
        del self._topics[tree.root, tree.deep]
        for run_id in tree.depths:
            topics = self._by_run.get(run_id, set())
            topics.discard(topic)
            if not topics:
                self._by_run.pop(run_id, None)
        for future in self._asking.pop(topic, ()):
            future.cancel()
        self._ending.pop(topic, None)
        self._tenants[topic.tenant] -= 1
        if not self._tenants[topic.tenant]:
            del self._tenants[topic.tenant]
            self.on_change()

    async def up_to_date(self, topic: Topic) -> None:
        """Return when everything of a topic was handed on that was committed before this was called. Raises what keeps
        it from being read."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asking.setdefault(topic, []).append(future)
        self._wanted.set()
        await future

    # What may be new.

    def committed(self, batch: Batch) -> None:
        """A batch was committed here."""
        if not self._by_run:
            return
        known, dirty = self._by_run, batch.dirty_runs
        if len(known) > len(dirty):
            if not any(run_id in known for run_id in dirty):
                return
        elif not any(run_id in dirty for run_id in known):
            return
        for row in batch.events:
            topics = known.get(row[1])
            if topics:
                self._offer(_event(row), topics)

    def _offer(self, event: Event, topics: Iterable[Topic]) -> None:
        for topic in [*topics]:
            if (topic, event.run_id) in self._marked or not self._hand(topic, event):
                self._mark(topic, event.run_id)

    def stream(self, run_id: str, streamed: Streamed) -> None:
        """A task of a run streams something."""
        for topic in self._by_run.get(run_id, ()):
            if topic.loaded and (readers := topic.put_streamed(run_id, streamed)):
                self.passed_over(readers)

    def look(self, run_id: str) -> None:
        """Something of a run was committed elsewhere."""
        for topic in self._by_run.get(run_id, ()):
            self._mark(topic, run_id)

    async def poll(self) -> None:
        """Find what no wake-up told of."""
        if not self._topics:
            return
        heads = await self._heads([*self._by_run])
        for run_id, head in heads.items():
            for topic in self._by_run.get(run_id, ()):
                if topic.loaded and topic.place.get(run_id, 0) < head.last_seq:
                    self._mark(topic, run_id)

    def _mark(self, topic: Topic, run_id: str) -> None:
        self._marked[topic, run_id] = None
        self._wanted.set()

    def _hand(self, topic: Topic, event: Event, due: set[str] | None = None) -> bool:
        """Hand an event on; False where one before it is missing. `due` is told of the members that it adds."""
        added = topic.hand(event)
        if added is None:
            return False
        for run_id in added:
            self._by_run.setdefault(run_id, set()).add(topic)
            self._mark(topic, run_id)
        if due is not None:
            due.update(added)
        if topic.seems_over:
            self._ending[topic] = None
            self._wanted.set()
        return True

    # Reading it.

    async def run(self) -> None:
        """Read what is new whenever there may be something, until cancelled."""
        await whenever(self._wanted, self._look_all, log, "events could not be read for those who watch", GAP_S)

    async def _look_all(self) -> None:
        asking, self._asking = self._asking, {}
        try:
            for topic in asking:
                if not topic.loaded:
                    await self._load(topic)
            await self._read_marked(asking, await self._mark_behind([*asking]))
            await self._end_some()
        except Exception as error:
            for futures in asking.values():
                _answer(futures, error)
            raise

    async def _load(self, topic: Topic) -> None:
        """Learn how far a run is, and what it began, level by level."""
        # An earlier attempt may have come half the way.
        topic.forget()
        tree, place = topic.tree, topic.place
        level = [tree.root]
        while level:
            heads = await self._heads(level)
            if tree.root in level and tree.root not in heads:
                return
            upto = {run_id: head.last_seq for run_id, head in heads.items()}
            for run_id in upto:
                tree.began(run_id)
            level = []
            for event in await self.store.branches(upto) if upto else ():
                level += tree.learn(event)
            place |= upto
        topic.loaded = True
        if topic.watchers:
            for run_id in tree.depths:
                self._by_run.setdefault(run_id, set()).add(topic)
            if topic.seems_over:
                self._ending[topic] = None

    async def _mark_behind(self, topics: Sequence[Topic]) -> dict[Topic, set[str]]:
        """Mark what is behind, of all members of some topics; which these are."""
        found: dict[Topic, set[str]] = {topic: set() for topic in topics if topic.loaded and topic.watchers}
        members = {run_id for topic in found for run_id in topic.tree.depths}
        heads = await self._heads([*members])
        for topic, due in found.items():
            for run_id in topic.tree.depths:
                head = heads.get(run_id)
                if head is not None and topic.place.get(run_id, 0) < head.last_seq:
                    self._mark(topic, run_id)
                    due.add(run_id)
        return found

    async def _read_marked(
        self, asking: Mapping[Topic, list["asyncio.Future[None]"]], due: dict[Topic, set[str]]
    ) -> None:
        """Read what is marked, and what that leads to, of many runs at once. Who asked is answered when what was due
        then was read, whatever comes meanwhile."""
        while True:
            for topic in [topic for topic in asking if not due.get(topic)]:
                _answer(asking[topic])
            if not self._marked:
                break
            taken = [*self._marked][:RUNS_MOST]
            after: dict[str, int] = {}
            for topic, run_id in taken:
                place = topic.place.get(run_id, 0)
                after[run_id] = min(after.get(run_id, place), place)
            # What is marked from here on may have been committed too late for this reading.
            for each in taken:
                del self._marked[each]
            try:
                events = await self.store.events_of(after, READ_MOST)
            except Exception:
                self._marked |= dict.fromkeys(taken)
                raise
            counts: Counter[str] = Counter(event.run_id for event in events)
            for event in in_time(events):
                for topic in [*self._by_run.get(event.run_id, ())]:
                    self._hand(topic, event, due.get(topic))
            for topic, run_id in taken:
                if counts[run_id] >= READ_MOST and topic.watchers:
                    self._mark(topic, run_id)
                elif topic in due:
                    due[topic].discard(run_id)

    async def _end_some(self) -> None:
        """Tell those who watch what has ended altogether: nothing is behind, be it of a run whose beginning was not
        heard of."""
        if not self._ending:
            return
        ending = [topic for topic in self._ending if topic.seems_over and topic.watchers]
        heads = await self._heads(sorted({run_id for topic in ending for run_id in topic.tree.depths}))
        for topic in ending:
            place = topic.place
            behind = [run_id for run_id, head in heads.items() if head.last_seq > place.get(run_id, 0)]
            behind = [run_id for run_id in behind if run_id in topic.tree.depths]
            for run_id in behind:
                self._mark(topic, run_id)
            if topic.seems_over and not behind:
                topic.finish()
        for topic in ending:
            self._ending.pop(topic, None)

    async def _heads(self, run_ids: Sequence[str]) -> dict[str, RunHead]:
        found: dict[str, RunHead] = {}
        for at in range(0, len(run_ids), 10 * RUNS_MOST):
            found |= await self.store.heads(run_ids[at : at + 10 * RUNS_MOST])
        return found


def _answer(futures: Iterable["asyncio.Future[None]"], error: Exception | None = None) -> None:
    for future in futures:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


def in_time(events: Iterable[Event]) -> list[Event]:
    """Events of several runs, those of each in order, by their times; clocks of servers may differ a little."""
    latest: dict[str, int] = {}
    keyed = []
    for event in events:
        at_us = latest[event.run_id] = max(event.at_us, latest.get(event.run_id, 0))
        keyed.append((at_us, event))
    keyed.sort(key=lambda each: each[0])
    return [event for _, event in keyed]


def _event(row: EventRow) -> Event:
    day, run_id, seq, kind, at_us, task_id, artifact_id, attempt, data = row
    return Event(run_id, day, seq, EventType(kind), at_us, task_id, artifact_id, attempt, data)
