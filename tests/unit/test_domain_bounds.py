"""Lines: how many run at once, and how many start in a while."""

from hypothesis import given
from hypothesis import strategies as st

from millstream.domain.bounds import BUCKETS, Bounds, Line
from millstream.store.policies import bounds_of, bounds_text, starts_of, starts_text

NOW = 1_700_000_000_000_000
SECOND = 1_000_000


def rate(limit: int, period_us: int) -> Bounds:
    """A rate."""
    return Bounds(rate_key="k", rate_limit=limit, rate_period_us=period_us)


def test_a_task_waits_for_its_concurrency_key_first_then_for_its_rate() -> None:
    assert Bounds().lines == ()
    assert Bounds("a", 1).lines == ("c:a",)
    assert rate(1, 1).lines == ("r:k",)
    assert Bounds("a", 1, "k", 1, 1).lines == ("c:a", "r:k")


def test_room_is_what_the_tasks_own_limit_leaves() -> None:
    """Tasks of one key may give different limits."""
    line = Line("c:a", running=2)
    assert [line.room(Bounds("a", limit), NOW) for limit in (1, 2, 3, 10)] == [0, 0, 1, 8]
    line.start(Bounds("a", 10), NOW)
    assert line.room(Bounds("a", 3), NOW) == 0
    assert not line.changed


@given(
    st.integers(1, 5),
    st.integers(100_000, 10 * SECOND),
    st.lists(st.tuples(st.integers(0, 4 * SECOND), st.integers(1, 4)), max_size=60),
)
def test_no_period_has_more_starts_than_the_limit(limit: int, period_us: int, asked: list[tuple[int, int]]) -> None:
    """FV-5: wherever the period begins; and who waits may start a hundredth of the period late at most."""
    bounds, line, now_us = rate(limit, period_us), Line("r:k"), NOW
    starts: list[int] = []
    for pause_us, wanted in asked:
        now_us += pause_us
        for _ in range(min(line.room(bounds, now_us), wanted)):
            line.start(bounds, now_us)
            starts.append(now_us)
        opens_us = line.opens_us(bounds, now_us)
        assert (opens_us == now_us) == (line.room(bounds, now_us) > 0)
        assert line.room(bounds, opens_us) > 0
        if opens_us > now_us:
            assert line.room(bounds, opens_us - 1) == 0
            assert opens_us <= starts[-limit] + period_us + max(period_us // BUCKETS, 1)
        line = Line("r:k", period_us=line.period_us, starts=starts_of(starts_text(line.starts)))
        assert len(line.starts) <= BUCKETS + 2
    for index, at_us in enumerate(starts):
        assert sum(at_us <= each < at_us + period_us for each in starts[index:]) <= limit


def test_tasks_of_one_rate_may_give_different_periods() -> None:
    """What the longest of them needs is remembered."""
    line, short, long = Line("r:k"), rate(1, SECOND), rate(2, 60 * SECOND)
    line.start(long, NOW)
    line.start(short, NOW + 2 * SECOND)
    line.start(short, NOW + 10 * SECOND)
    assert line.room(long, NOW + 12 * SECOND) == 0
    assert line.room(short, NOW + 12 * SECOND) == 1


def test_bounds_are_stored_as_text() -> None:
    for bounds in (Bounds(), Bounds('ä"[', 3), rate(7, 60 * SECOND), Bounds("a", 1, "b", 2, 3)):
        assert bounds_of(bounds_text(bounds)) == bounds
    assert bounds_text(Bounds()) == ""
