"""Runs that are watched, and what those who watch are sent."""

from dataclasses import dataclass, field
from typing import Any

from millstream.application.following import Inbox
from millstream.application.run_tree import Cursor, Place, RunTree
from millstream.application.views.reports import Streamed
from millstream.domain.runs import Event


@dataclass(slots=True, eq=False)
class RunSent:
    """Something of a stream of a run, shared by all who are sent it.

    Attributes:
        cursor: Goes on behind it.
        event: What happened; None in a sign of life, and at the end.
        streamed: Something that a task of the run streams; it is not stored, and the cursor is that of before.
        run_id: That run.
        ended: The run has ended, and all that was asked for with it: nothing follows.
        forms: It as it is sent, by whoever sends it: encoded once for all.
    """

    cursor: str
    event: Event | None = None
    ended: bool = False
    streamed: Streamed | None = None
    run_id: str = ""
    forms: dict[Any, bytes] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        held = len(self.event.data) if self.event else len(self.streamed.value) if self.streamed else 0
        return 400 + len(self.cursor) + held


class Topic:
    """A run, alone or with its descendants, that is watched here.

    Attributes:
        tree: What is known of it.
        cursor: How far it was handed on to those who watch.
        loaded: It is known how far that is.
        over: All of it has ended, and was looked at since.
    """

    def __init__(self, tenant: str, root: str, deep: bool) -> None:
        self.tenant = tenant
        self.tree = RunTree(root, deep)
        self.cursor = Cursor(self.tree, {})
        self.watchers: set[Inbox[RunSent]] = set()
        self.users = 0
        self.loaded = False
        self.over = False

    @property
    def place(self) -> Place:
        """How far it was handed on."""
        return self.cursor.place

    def forget(self) -> None:
        """Begin again to load it, in place: those who watch hold its tree."""
        self.tree.forget()
        self.place.clear()

    def attach(self, inbox: Inbox[RunSent]) -> Place:
        """From here on the inbox has everything behind the place that is returned."""
        inbox.attach()
        return dict(self.place)

    def hand(self, event: Event) -> list[str] | None:
        """Hand an event on; the members that it adds, or None where one before it is missing."""
        known = self.place.get(event.run_id, 0)
        if event.seq <= known:
            return []
        if event.seq > known + 1 or not self.loaded:
            return None
        self.over = False
        added = self.tree.learn(event)
        self.put(RunSent(self.cursor.move(event.run_id, event.seq), event))
        return added

    def put(self, sent: RunSent) -> None:
        """Hand something to all who watch."""
        size = sent.size_bytes
        for inbox in self.watchers:
            if inbox.attached:
                inbox.put(sent, size)

    def put_streamed(self, run_id: str, streamed: Streamed) -> int:
        """Hand on what a task streams; not to those whose inbox is half full, for whom events matter more: how many
        that are."""
        sent = RunSent(self.cursor.text(), streamed=streamed, run_id=run_id)
        size, passed_over = sent.size_bytes, 0
        for inbox in self.watchers:
            if inbox.attached and not inbox.half_full:
                inbox.put(sent, size)
            elif inbox.attached:
                passed_over += 1
        return passed_over

    def finish(self) -> None:
        """Everything has ended."""
        self.over = True
        self.put(RunSent(self.cursor.text(), ended=True))

    @property
    def seems_over(self) -> bool:
        """All that began has ended, by what is known."""
        tree = self.tree
        return self.loaded and not self.over and tree.root in tree.ended and not tree.open
