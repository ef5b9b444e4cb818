"""Places in trees of runs: packed small, and told apart exactly."""

import random

import pytest

from millstream.application.run_tree import FEW, Cursor, Place, RunTree, check_cursor, place_of
from millstream.domain.children import child_id
from millstream.domain.errors import ValidationFailed
from millstream.domain.runs import Event, EventType

ROOT = "0190f5e2-0000-7000-8000-000000000000"


class Grown:
    """A tree that grows, with the last number of each of its runs."""

    def __init__(self, seed: int = 0) -> None:
        self.tree = RunTree(ROOT, deep=True)
        self.last: Place = {}
        self._tasks = 0
        self._chance = random.Random(seed)

    def add(self, run_id: str, kind: EventType, data: str = "", task_id: str = "") -> None:
        seq = self.last[run_id] = self.last.get(run_id, 0) + 1
        self.tree.learn(Event(run_id, 0, seq, kind, 0, task_id, "", 0, data))

    def begin(self, run_id: str) -> str:
        """A task that waits for a run; the run."""
        self._tasks += 1
        task = f"0190f5e2-0000-7000-9000-{self._tasks << 8:012x}"
        self.add(run_id, EventType.TASK_CREATED, '{"kind":"workflow:w","queue":"~child"}', task)
        if self._chance.random() < 0.2:
            self.add(run_id, EventType.TASK_RETRY, task_id=task)
            return child_id(task, 2)
        return child_id(task, 1)

    def grow(self, run_id: str, depth: int) -> None:
        """A run with some that it begins, ended or not."""
        self.add(run_id, EventType.RUN_CREATED)
        for _ in range(self._chance.randrange(5) if depth else 0):
            child = self.begin(run_id)
            if self._chance.random() < 0.8:
                self.grow(child, depth - 1)
        for _ in range(self._chance.randrange(3)):
            self.add(run_id, EventType.TASK_STARTED)
        if self._chance.random() < 0.7:
            self.add(run_id, EventType.RUN_COMPLETED)
            if self._chance.random() < 0.2:
                self.add(run_id, EventType.RUN_REOPENED)

    def place(self) -> Place:
        """Some place in it: of each run that a parent has told of, up to some event."""
        found: Place = {}
        order = [ROOT]
        for run_id in order:
            last = self.last.get(run_id, 0)
            seq = self._chance.choice([last, self._chance.randrange(last + 1)])
            if seq:
                found[run_id] = seq
                tasks = [task for at, task in self.tree._tasks.get(run_id, ()) if at <= seq]
                order += [child_id(task, n) for task in tasks for n in self.tree._tries[task]]
        return found


@pytest.mark.parametrize("seed", range(200))
def test_a_place_is_what_its_cursor_says(seed: int) -> None:
    grown = Grown(seed)
    grown.grow(ROOT, 3)
    for _ in range(5):
        place = grown.place()
        if not place:
            continue
        text = Cursor(grown.tree, dict(place)).text()
        found = read(text, grown)
        assert {run_id: seq for run_id, seq in found.items() if seq} == place


def test_children_that_are_alike_are_told_once() -> None:
    """Ten thousand that ended, and ten thousand that have not begun: a few bytes."""
    grown = Grown()
    grown._chance = random.Random(0)
    grown._chance.random = lambda: 1.0  # type: ignore[method-assign]
    grown.add(ROOT, EventType.RUN_CREATED)
    children = [grown.begin(ROOT) for _ in range(20_000)]
    for child in children[:10_000]:
        grown.add(child, EventType.RUN_CREATED)
        grown.add(child, EventType.RUN_COMPLETED)
    grown.add(children[10_000], EventType.RUN_CREATED)
    cursor = Cursor(grown.tree, dict(grown.last)).text()
    assert len(cursor) < 60
    assert place_of(cursor, grown.tree, grown.last) == grown.last


def test_in_a_large_tree_a_cursor_tells_what_changed() -> None:
    """And is told anew after so many changes."""
    grown = Grown()
    grown.add(ROOT, EventType.RUN_CREATED)
    children = [grown.begin(ROOT) for _ in range(2 * FEW)]
    cursor = Cursor(grown.tree, dict(grown.last))
    bases = set()
    for child in children:
        grown.add(child, EventType.RUN_CREATED)
        text = cursor.move(child, 1)
        bases.add(text.partition(".")[0])
        assert place_of(text, grown.tree, grown.last) == cursor.place
    assert 2 <= len(bases) <= 4


@pytest.mark.parametrize("text", ["", ".", "A", "AA", "AwGQ9eIAAHAAgAAAAAAAAA", "AwGQ9eIAAHAAgAAAAAAAAAD_", "!.x"])
def test_what_is_no_cursor_is_refused(text: str) -> None:
    grown = Grown()
    grown.add(ROOT, EventType.RUN_CREATED)
    with pytest.raises(ValidationFailed):
        read(text, grown)


def read(text: str, grown: Grown) -> Place:
    """A cursor as a request's is read."""
    check_cursor(text, ROOT, deep=True)
    return place_of(text, grown.tree, grown.last)
