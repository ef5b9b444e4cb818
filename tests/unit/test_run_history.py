"""What is missing of several runs comes by time, by few and small pages."""

import random

import pytest

from millstream.application import run_history
from millstream.application.run_history import RunHistory
from millstream.domain.runs import Event, EventType


class Reader:
    """Reads what a history asks for.

    Attributes:
        reads: How often.
        rows: How many events.
        held: How many were held at most.
    """

    def __init__(self, times: dict[str, list[int]]) -> None:
        self._runs = {
            run_id: [Event(run_id, 0, n, EventType.TASK_STARTED, at_us, "", "", 0, "") for n, at_us in enumerate(of, 1)]
            for run_id, of in times.items()
        }
        self.reads = 0
        self.rows = 0
        self.held = 0

    def all(self, after: dict[str, int] | None = None) -> list[Event]:
        """All that comes of runs that are due from the beginning."""
        history = RunHistory()
        for run_id, events in self._runs.items():
            history.begin(run_id, 1, (after or {}).get(run_id, 0), len(events))
        found = []
        while history:
            event = history.next()
            if event is not None:
                found.append(event)
            else:
                assert self._read(history) == {}
        return found

    def _read(self, history: RunHistory) -> dict[str, int]:
        asked, limit = history.wanted()
        page = [event for run_id, seq in asked.items() for event in self._runs[run_id][seq : seq + limit]]
        assert page
        assert len(page) <= run_history.PAGE_EVENTS
        gone = history.take(asked, page)
        self.reads += 1
        self.rows += len(page)
        self.held = max(self.held, history._held)
        return gone


@pytest.mark.parametrize("seed", range(100))
def test_events_come_by_time_and_once(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """FV-7: also where less is held than is under way."""
    chance = random.Random(seed)
    page = chance.choice([5, 50, 1000])
    monkeypatch.setattr(run_history, "PAGE_EVENTS", page)
    monkeypatch.setattr(run_history, "PAGE_RUNS", page // 2)
    monkeypatch.setattr(run_history, "HELD_MOST", 2 * page)
    times = {
        f"run {n}": sorted(chance.randrange(1000) for _ in range(chance.randrange(40)))
        for n in range(chance.randrange(1, 60))
    }
    after = {run_id: chance.randrange(len(of) + 1) for run_id, of in times.items() if chance.random() < 0.5}
    reader = Reader(times)
    found = reader.all(after)
    assert [event.at_us for event in found] == sorted(event.at_us for event in found)
    for run_id, of in times.items():
        numbers = [event.seq for event in found if event.run_id == run_id]
        assert numbers == [*range(after.get(run_id, 0) + 1, len(of) + 1)]
    assert reader.held <= 2 * page


@pytest.mark.parametrize(
    ("times", "reads_most", "rows_most"),
    [
        # One after another; the first page of each is read along with those of others.
        ({f"run {n}": [*range(1000 * n, 1000 * n + 20)] for n in range(2000)}, 2200, 3.0),
        # In turns.
        ({f"run {n}": [*range(n, 10_000, 2000)] for n in range(2000)}, 60, 3.0),
        # A few with much to tell, in turns; and one beside many others.
        ({f"run {n}": [*range(n, 50_000, 50)] for n in range(50)}, 150, 1.5),
        ({"run": [*range(20_000)]} | {f"run {n}": [n, n + 10_000] for n in range(2000)}, 300, 3.0),
    ],
)
def test_little_is_read_twice_however_runs_lie_in_time(
    times: dict[str, list[int]], reads_most: int, rows_most: float
) -> None:
    reader = Reader(times)
    count = sum(len(of) for of in times.values())
    assert len(reader.all()) == count
    assert reader.rows <= rows_most * count
    assert reader.reads <= reads_most
    assert reader.held <= run_history.HELD_MOST


def test_what_happened_at_one_time_is_told_of_those_that_were_begun_first() -> None:
    """A child's end comes before that of its parent."""
    history = RunHistory()
    for depth, run_id in enumerate(("root", "child")):
        history.begin(run_id, depth, 4, 5)
    asked, _ = history.wanted()
    history.take(asked, [Event(each, 0, 5, EventType.RUN_COMPLETED, 7, "", "", 0, "") for each in asked])
    assert [event.run_id for event in (history.next(), history.next()) if event] == ["child", "root"]
    assert not history


def test_of_what_is_gone_the_number_is_told_up_to_which_it_was_sent() -> None:
    history = RunHistory()
    for n, run_id in enumerate(("here", "gone", "gone in part")):
        history.begin(run_id, 1, n, 5)
    asked, _ = history.wanted()
    page = [Event("here", 0, n, EventType.TASK_STARTED, n, "", "", 0, "") for n in range(1, 6)]
    assert history.take(asked, page) == {"gone": 1, "gone in part": 2}
