"""The feed's rows and cursors in their stored forms."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.application.ports import FULL
from millstream.application.watch_cursor import WatchCursor
from millstream.domain.artifacts import PUBLIC, Artifact
from millstream.store.feed import packed, unpacked

IDS = st.uuids().map(str)


def artifact(tenant: str, artifact_id: str) -> Artifact:
    return Artifact(artifact_id, tenant, artifact_id, 1, "T", 1, b"", "external", PUBLIC, (), "", 0)


@given(st.lists(st.tuples(st.text(min_size=1, max_size=128), IDS), max_size=20))
def test_ids_come_back_by_tenant_in_their_order(stored: list[tuple[str, str]]) -> None:
    expected: dict[str, tuple[str, ...]] = {}
    for tenant, artifact_id in stored:
        expected[tenant] = (*expected.get(tenant, ()), artifact_id)
    data = packed([artifact(*each) for each in stored])
    assert unpacked(data, expected) == expected
    for tenant, ids in expected.items():
        assert unpacked(data, {tenant}) == {tenant: ids}
    assert unpacked(data, ()) == {}


@given(
    st.dictionaries(IDS, st.tuples(st.integers(0, (1 << 62) - 1), st.integers(0, FULL)), max_size=20),
    st.integers(0, (1 << 62) - 1),
    IDS,
)
def test_a_cursor_comes_back(places: dict[str, tuple[int, int]], at_us: int, after_id: str) -> None:
    cursor = WatchCursor(places, at_us, after_id)
    assert WatchCursor.decode(cursor.encode()) == cursor
    assert cursor.covers(places)


@given(IDS, st.integers(0, (1 << 31) - 1))
def test_a_cursor_of_a_cascade_comes_back(run_id: str, seq: int) -> None:
    cursor = WatchCursor({}, 7, run_id=run_id, seq=seq)
    assert WatchCursor.decode(cursor.encode()) == cursor


def test_a_cursor_of_a_thousand_lanes_fits_the_contract() -> None:
    cursor = WatchCursor({str(uuid.uuid4()): (1, FULL) for _ in range(1000)}, 1)
    assert len(cursor.encode()) < 40_000


@pytest.mark.parametrize(("first", "second"), [((5, 2), (5, FULL)), ((5, FULL), (6, 0))])
def test_a_place_only_moves_on(first: tuple[int, int], second: tuple[int, int]) -> None:
    lane = str(uuid.uuid4())
    cursor = WatchCursor({lane: second})
    cursor.join({lane: first})
    assert cursor.places == {lane: second}
    assert not WatchCursor({lane: first}).covers({lane: second})
