"""Runs whose logs are followed, and what those who follow are sent."""

import asyncio
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Final

from millstream.application.following import Inbox
from millstream.application.paging import encode_token
from millstream.application.views.task_logs import LogEntry, LogQuery
from millstream.domain.artifacts import Reader

PAGES_MOST: Final = 1000
"""Pages that wait for one who follows: under load a page has many lines, else there are few."""
PAGES_BYTES: Final = 1024 * 1024
"""And about how large they are together. They are the same pages for all who follow the run."""


@dataclass(slots=True, eq=False)
class SentLine:
    """A line, None for a sign of life; shared by all who are sent it.

    Attributes:
        cursor: Goes on behind it.
        ended: The last: nothing more comes.
        forms: It as it is sent, by whoever sends it: encoded once for all.
    """

    entry: LogEntry | None
    cursor: str
    ended: bool = False
    forms: dict[Any, bytes] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        return 400 + (self.entry.size_bytes if self.entry else 0)


@dataclass(slots=True, eq=False)
class LogPage:
    """Lines that are handed on at once, in order.

    Attributes:
        place: How far the log was handed on with it.
        over: Tasks that log nothing any more, "" for the run.
        whole: Those of its tasks of which a reader may see all that they were given, by reader: asked once for all who
            are alike.
    """

    lines: Sequence[SentLine]
    place: int
    over: Set[str]
    whole: dict[Reader, "asyncio.Future[Set[str]]"] = field(default_factory=dict)

    @property
    def tasks(self) -> set[str]:
        """The tasks that logged them."""
        return {sent.entry.task_id for sent in self.lines if sent.entry}


class LogTopic:
    """A run whose log, or those of whose tasks, are followed here.

    Attributes:
        day: On which it began.
        place: Number of the line up to which was handed on what those who follow asked for.
        loaded: It is known where that is.
        over: Of what is followed, that which logs nothing any more: tasks, "" for the run.
        followers: Each with the task that it follows, "" for the run.
    """

    def __init__(self, tenant: str, run_id: str, day: int) -> None:
        self.tenant = tenant
        self.run_id = run_id
        self.day = day
        self.place = 0
        self.loaded = False
        self.over: Set[str] = frozenset()
        self.followers: dict[Inbox[LogPage], str] = {}

    @property
    def subjects(self) -> set[str]:
        """What is followed: tasks, "" for the run."""
        return set(self.followers.values())

    @property
    def only(self) -> str:
        """The task whose lines are enough, "" for those of the whole run."""
        subjects = self.subjects
        return subjects.pop() if len(subjects) == 1 else ""

    def attach(self, inbox: Inbox[LogPage]) -> int:
        """From here on the inbox has everything behind the place that is returned."""
        inbox.attach()
        return self.place

    def hand(self, entries: Sequence[LogEntry], place: int) -> None:
        """Hand lines on, which are all up to a place."""
        self.place = place
        if entries:
            kind = kind_of(self.run_id)
            self._put(LogPage([SentLine(each, encode_token(kind, each.seq)) for each in entries], place, frozenset()))

    def finish(self, over: Set[str]) -> None:
        """This logs nothing any more, and all of it was handed on."""
        fresh, self.over = over - self.over, over
        if fresh:
            self._put(LogPage((), self.place, over))

    def _put(self, page: LogPage) -> None:
        size = sum(sent.size_bytes for sent in page.lines)
        for inbox in self.followers:
            if inbox.attached:
                inbox.put(page, size)


def kind_of(run_id: str) -> str:
    """What cursors of a run's log are for."""
    return f"log of {run_id}"


def wanted(query: LogQuery, entry: LogEntry) -> bool:
    """Whether a line of the run is one that was asked for."""
    return (
        (not query.task_id or entry.task_id == query.task_id)
        and (not query.attempt or entry.attempt == query.attempt)
        and (not query.levels or entry.line.level in query.levels)
        and (not query.text or query.text.lower() in entry.line.message.lower())
    )
