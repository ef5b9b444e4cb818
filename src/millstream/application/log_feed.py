"""The logs of the runs that are followed here, read once for all who follow.

A wake-up is a hint: what is new is read behind the place up to which it was handed on, of many runs at once. As the
lines of a run are numbered without gaps in the order of their commits, nothing behind that place was passed over. Once
a second all that is followed is looked at, and so what no wake-up told of is found. While nobody follows, nothing is
read and nothing is kept.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Final, Protocol

from millstream.application.engine.clock import Clock
from millstream.application.following import Inbox
from millstream.application.log_topics import PAGES_BYTES, PAGES_MOST, LogPage, LogTopic
from millstream.application.paging import fitting
from millstream.application.views.task_logs import LogEntry, LogSpan, LogState
from millstream.application.whenever import whenever

log = logging.getLogger(__name__)

POLL_S: Final = 1.0
GAP_S: Final = 0.005
"""Between two readings: under load many batches are read at once."""
LINES_READ: Final = 500
"""Lines that are read at once, of all runs together; but some of each."""
LEAST_READ: Final = 10
RUNS_READ: Final = 50
"""Runs whose lines are read at once."""
RUNS_ASKED: Final = 5000
"""Runs whose ends are asked for at once."""
PAGE_BYTES: Final = 256 * 1024
READERS: Final = 4
"""Histories that are read at once: those who follow wait in turn, so that a thousand of them leave room for others."""
LATE_US: Final = 2_000_000
"""Lines of an ended task may come so late, where its worker has not told which is the last,"""
OWED_US: Final = 60_000_000
"""and so late where it has, and they are missing: it is slow, or gone with them."""

_NOBODY: Final[set[str]] = set()


class LogFeedStore(Protocol):
    """Reads lines, and where logs end; see store.log_feed."""

    async def ends(self, run_ids: Sequence[str]) -> dict[str, int]: ...
    async def states(self, run_ids: Sequence[str], task_ids: Sequence[str]) -> dict[str, LogState]: ...
    async def spans(self, wanted: Sequence[LogSpan], limit: int) -> dict[str, list[LogEntry]]: ...


class LogFeed:
    """The logs that are followed at this server.

    Attributes:
        on_change: Called when logs of another tenant are followed here, or of one no longer.
        reading: Taken by whoever reads a history.
    """

    def __init__(self, store: LogFeedStore, clock: Clock) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self.reading = asyncio.Semaphore(READERS)
        self._store = store
        self._clock = clock
        self._topics: dict[str, LogTopic] = {}
        self._tenants: Counter[str] = Counter()
        self._marked: dict[LogTopic, None] = {}
        self._asking: dict[LogTopic, list[asyncio.Future[None]]] = {}
        self._wanted = asyncio.Event()
        self._followed = asyncio.Event()

    @property
    def watched(self) -> set[str]:
        """The tenants of which logs are followed here."""
        return set(self._tenants) if self._tenants else _NOBODY

    def look(self, run_ids: Iterable[str]) -> None:
        """These runs have new lines or have ended, or may have."""
        for run_id in run_ids:
            topic = self._topics.get(run_id)
            if topic is not None:
                self._marked[topic] = None
                self._wanted.set()

    @contextlib.asynccontextmanager
    async def following(
        self, tenant: str, run_id: str, day: int, task_id: str
    ) -> AsyncIterator[tuple[LogTopic, Inbox[LogPage]]]:
        """One who follows the log of a run of a tenant, or of a task of it: its inbox, not attached yet."""
        topic = self._topics.get(run_id)
        if topic is None:
            topic = self._topics[run_id] = LogTopic(tenant, run_id, day)
            self._followed.set()
            self._tenants[tenant] += 1
            if self._tenants[tenant] == 1:
                self.on_change()
        inbox: Inbox[LogPage] = Inbox(PAGES_MOST, PAGES_BYTES)
        topic.followers[inbox] = task_id
        try:
            yield topic, inbox
        finally:
            del topic.followers[inbox]
            if not topic.followers:
                self._drop(topic)

    def _drop(self, topic: LogTopic) -> None:
        del self._topics[topic.run_id]
        self._marked.pop(topic, None)
        for future in self._asking.pop(topic, ()):
            future.cancel()
        self._tenants[topic.tenant] -= 1
        if not self._tenants[topic.tenant]:
            del self._tenants[topic.tenant]
            self.on_change()

    async def up_to_date(self, topic: LogTopic) -> None:
        """Return when everything of a run was handed on that was stored before this was called. Raises what keeps it
        from being read."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asking.setdefault(topic, []).append(future)
        self._wanted.set()
        await future

    async def run(self) -> None:
        """Read what is new whenever there may be something, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._look_often())
            await whenever(self._wanted, self._look, log, "logs could not be read for those who follow", GAP_S)

    async def _look_often(self) -> None:
        while True:
            if not self._topics:
                self._followed.clear()
            await self._followed.wait()
            await asyncio.sleep(POLL_S)
            self.look(self._topics)

    async def _look(self) -> None:
        """Read what is new of what is marked. Whether more can come is asked first: so nothing comes in between."""
        asking, self._asking = self._asking, {}
        marked, self._marked = self._marked, {}
        topics = [topic for topic in {**marked, **asking} if topic.followers]
        try:
            over = await self._over(topics)
            ends: dict[str, int] = {}
            for at in range(0, len(topics), RUNS_ASKED):
                ends |= await self._store.ends([topic.run_id for topic in topics[at : at + RUNS_ASKED]])
            await self._read({topic: ends.get(topic.run_id, 0) for topic in topics})
        except Exception as error:
            self._marked = marked | self._marked
            for futures in asking.values():
                _answer(futures, error)
            raise
        for topic in topics:
            topic.finish(over[topic])
        for futures in asking.values():
            _answer(futures)

    async def _over(self, topics: Sequence[LogTopic]) -> dict[LogTopic, set[str]]:
        """What logs nothing any more, of what is followed: tasks, "" for the run."""
        subjects = {topic: topic.subjects for topic in topics}
        states: dict[str, LogState] = {}
        for at in range(0, len(topics), RUNS_ASKED):
            some = topics[at : at + RUNS_ASKED]
            runs = [topic.run_id for topic in some if "" in subjects[topic]]
            states |= await self._store.states(runs, [each for topic in some for each in subjects[topic] if each])
        now_us = self._clock.now_us()
        return {
            topic: {each for each in followed if _is_over(states.get(each or topic.run_id), now_us)}
            for topic, followed in subjects.items()
        }

    async def _read(self, ends: Mapping[LogTopic, int]) -> None:
        """Hand on what there is up to these ends at least, a page of each in turn."""
        due: dict[LogTopic, int] = {}
        for topic, end in ends.items():
            if not topic.loaded:
                topic.place, topic.loaded = end, True
            elif end > topic.place:
                due[topic] = end
        while due:
            taken = {topic: topic.only for topic in [*due][:RUNS_READ]}
            limit = max(LINES_READ // len(taken), LEAST_READ)
            spans = [LogSpan(each.run_id, each.day, each.place, only) for each, only in taken.items()]
            found = await self._store.spans(spans, limit)
            for topic, only in taken.items():
                end = due.pop(topic)
                if only in ("", topic.only):
                    self._hand(topic, found.get(topic.run_id, []), end, limit)
                # Else who follows another task came meanwhile, and lines of that are missing here.
                if topic.followers and topic.place < end:
                    due[topic] = end

    @staticmethod
    def _hand(topic: LogTopic, found: Sequence[LogEntry], end: int, limit: int) -> None:
        page = fitting(found, limit, lambda entry: entry.size_bytes, PAGE_BYTES)
        # Nothing is missing before what was read: lines are numbered in the order of their commits.
        last = page[-1].seq if page else 0
        topic.hand(page, last if len(found) > len(page) else max(end, last))


def _is_over(state: LogState | None, now_us: int) -> bool:
    """Whether no line comes any more; None: what is gone logs nothing."""
    if state is None or state.complete:
        return True
    return 0 < state.finished_us <= now_us - (OWED_US if state.owed else LATE_US)


def _answer(futures: Iterable["asyncio.Future[None]"], error: Exception | None = None) -> None:
    for future in futures:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
