"""Retry delays: bounded, growing, never overflowing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.domain.retry import SECOND_US, RetryPolicy

DAY_US = 86_400 * SECOND_US


@pytest.mark.parametrize(("tries", "expected"), [(1, 1), (2, 2), (3, 4), (4, 8), (7, 60), (1000, 60)])
def test_the_wait_doubles_up_to_the_maximum(tries: int, expected: int) -> None:
    """Issue 2: initial, factor, maximum, by default 1 s, 2 and 60 s; attempt 1,000 does not overflow."""
    assert RetryPolicy(jitter=0).delay_us(tries, 0.7) == expected * SECOND_US


@pytest.mark.parametrize("factor", [1.0, 2.0, 10.0, 100.0])
def test_no_number_of_tries_overflows(factor: float) -> None:
    """Replay lessons: back-off overflowed at attempt 59; here every bound of the contract is tried."""
    policy = RetryPolicy(initial_us=DAY_US, factor=factor, maximum_us=7 * DAY_US, jitter=1.0, max_attempts=10_000)
    for tries in (0, 1, 58, 59, 60, 64, 65, 1000, 10_000):
        assert 0 <= policy.delay_us(tries, 1.0) <= 14 * DAY_US


@given(
    st.integers(0, DAY_US),
    st.floats(1, 100),
    st.integers(0, 7 * DAY_US),
    st.floats(0, 1),
    st.integers(1, 10_000),
    st.floats(0, 1),
)
def test_jitter_spreads_the_wait_around_itself(
    initial_us: int, factor: float, maximum_us: int, jitter: float, tries: int, chance: float
) -> None:
    """Issue 2: within jitter of the wait without it, whatever the policy."""
    plain = RetryPolicy(initial_us, factor, maximum_us, 0.0).delay_us(tries, 0.5)
    spread = RetryPolicy(initial_us, factor, maximum_us, jitter).delay_us(tries, chance)
    assert plain <= maximum_us
    assert plain * (1 - jitter) - 1 <= spread <= plain * (1 + jitter) + 1


@given(st.integers(1, 100), st.floats(1, 100))
def test_waits_never_shrink(tries: int, factor: float) -> None:
    """Issue 2: factor is at least 1."""
    policy = RetryPolicy(factor=factor, maximum_us=7 * DAY_US, jitter=0)
    assert policy.delay_us(tries, 0) <= policy.delay_us(tries + 1, 0)
