"""What is missing of several runs, sent by the times of its events though each run is read by pages of its own."""

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from millstream.application.run_tree import Place
from millstream.domain.runs import Event

PAGE_EVENTS: Final = 1000
"""Events that are read at once."""
PAGE_RUNS: Final = 500
"""Of so many runs at most."""
HELD_MOST: Final = 2 * PAGE_EVENTS
"""Events that are held, of all runs together; those that are due last are read again."""

AT_ONCE: Final = 100
"""So many of those that are read again are read together."""

_Due = tuple[int, int, int, str]


@dataclass(slots=True)
class _Missing:
    """A run of which something is missing.

    Attributes:
        depth: How deep it stands. What a run and its child tell at one time, the child told first.
        after: Number of the last event that is held, or was sent.
        upto: Number of the last that is to be sent.
        due_us: Its next event is of this time, or later where none is held.
        begun: Its parent's event that tells of it was sent.
        queued: It has its place among those that are due.
    """

    run_id: str
    depth: int
    nth: int
    after: int
    upto: int
    due_us: int = 0
    begun: bool = False
    queued: bool = False
    held: deque[Event] = field(default_factory=deque)

    @property
    def due(self) -> _Due:
        """Its place among others."""
        return self.due_us, -self.depth, self.nth, self.run_id

    @property
    def whole(self) -> bool:
        """All of it that is missing is held."""
        return self.after >= self.upto


class RunHistory:
    """A merge of runs by time. Whoever has it reads what it asks for, and sends what it gives.

    It gives the event that is due first, once it is known of each run when its next one is due; so few pages are held,
    however many runs there are. False when nothing is missing any more.
    """

    def __init__(self) -> None:
        self._runs: dict[str, _Missing] = {}
        self._order: list[_Due] = []
        self._ahead: dict[str, None] = {}
        self._put_off: dict[str, None] = {}
        self._lively: set[str] = set()
        self._held = 0
        self._nth = 0

    def __bool__(self) -> bool:
        return bool(self._order)

    def begin(self, run_id: str, depth: int, after: int, upto: int) -> None:
        """Events of a run are due from here on: those behind a number, up to another."""
        self.expect(run_id, depth, after, upto)
        self._ahead.pop(run_id, None)
        if run := self._runs.get(run_id):
            run.begun = True
            self._queue(run)

    def expect(self, run_id: str, depth: int, after: int, upto: int) -> None:
        """A run will begin soon: it is read along with others."""
        if run_id not in self._runs and after < upto:
            self._nth += 1
            self._runs[run_id] = _Missing(run_id, depth, self._nth, after, upto)
            self._ahead[run_id] = None

    def next(self) -> Event | None:
        """The event that is due; None where something has to be read before that is known."""
        run = self._first()
        if run is None or not run.held:
            return None
        event = run.held.popleft()
        self._held -= 1
        self._lively.add(run.run_id)
        if run.held:
            run.due_us = max(run.due_us, run.held[0].at_us)
        elif run.whole:
            heapq.heappop(self._order)
            del self._runs[run.run_id]
        return event

    def wanted(self) -> tuple[Place, int]:
        """What is to be read: runs, with the number behind which, and how many events of each at most."""
        found: Place = {}
        while len(found) < PAGE_RUNS and (run := self._first()) and not run.held:
            heapq.heappop(self._order)
            run.queued = False
            found[run.run_id] = run.after
        more = self._lively_ones(found)
        if not all(found.values()):
            more += self._ahead
        if any(run_id in self._put_off for run_id in found):
            more += self._put_off_first()
        for run_id in more[: PAGE_RUNS - len(found)]:
            found[run_id] = self._runs[run_id].after
        for run_id in found:
            self._ahead.pop(run_id, None)
            self._put_off.pop(run_id, None)
        return found, max(PAGE_EVENTS // max(len(found), 1), 1)

    def _lively_ones(self, found: Place) -> list[str]:
        """Runs that were sent of since the last reading, and of which little is held: those that take turns are read
        together."""
        lively = [run for run_id in self._lively if (run := self._runs.get(run_id)) and not run.whole]
        self._lively.clear()
        share = PAGE_EVENTS // max(len(found), len(lively), 1)
        return [run.run_id for run in lively if 2 * len(run.held) <= share]

    def _put_off_first(self) -> list[str]:
        """Of those that were not held any more some that are due first: each alone would be a reading of its own."""
        return heapq.nsmallest(AT_ONCE, self._put_off, key=lambda run_id: self._runs[run_id].due)

    def take(self, asked: Place, page: Sequence[Event]) -> Place:
        """What was read; the events of a run in order. Of what was asked for, that of which there is nothing."""
        for event in page:
            run = self._runs[event.run_id]
            run.held.append(event)
            run.after = event.seq
        self._held += len(page)
        gone: Place = {}
        for run_id, after in asked.items():
            run = self._runs[run_id]
            if run.after == after:
                gone[run_id] = after
                del self._runs[run_id]
                continue
            run.due_us = max(run.due_us, run.held[0].at_us)
            if run.begun:
                self._queue(run)
        if self._held > HELD_MOST:
            self._make_room()
        return gone

    def _make_room(self) -> None:
        """Hold no more what is due last; when that is, is remembered."""
        holding = sorted((run for run in self._runs.values() if run.held), key=lambda run: run.due, reverse=True)
        for run in holding[:-1]:
            if self._held <= HELD_MOST // 2:
                break
            self._held -= len(run.held)
            run.after = run.held[0].seq - 1
            run.held.clear()
            self._put_off[run.run_id] = None

    def _queue(self, run: _Missing) -> None:
        if not run.queued:
            run.queued = True
            heapq.heappush(self._order, run.due)

    def _first(self) -> _Missing | None:
        """The run that is due first."""
        while self._order:
            due = self._order[0]
            run = self._runs[due[-1]]
            if run.due == due:
                return run
            heapq.heapreplace(self._order, run.due)
        return None
