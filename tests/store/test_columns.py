"""Columns as array literals: what a caller writes arrives as it was written, and nothing gets out of its quotes."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.engine.database import Postgres

from millstream.store import columns
from millstream.store.columns import blobs, flags, lists, names, numbers, texts, uuids

NASTY = [
    "",
    "NULL",
    "null",
    '"',
    "\\",
    '\\"',
    "{}",
    "{",
    "}",
    ",",
    "a,b",
    "'",
    "''; DROP TABLE run; --",
    " ",
    "\n\t\r",
    "ü€😀",
    "$1",
    "%s",
    "\\x00",
]
TEXT = st.sampled_from(NASTY) | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
FAST = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
async def postgres() -> AsyncIterator[Postgres]:
    """A server for the module."""
    async with Postgres.running() as postgres:
        yield postgres


@pytest.fixture(scope="module")
async def connection(postgres: Postgres) -> AsyncIterator[Any]:
    """A connection to it."""
    async with postgres.database("columns") as database:
        yield database.connection


@FAST
@given(st.lists(TEXT, max_size=6))
async def test_texts_arrive_as_they_were_written(connection: Any, values: list[str]) -> None:
    """Architecture: payload and names are data, whatever they hold."""
    for encode in (texts, names):
        assert await connection.fetchval("SELECT $1::text::text[]", encode(values)) == values


@FAST
@given(st.lists(st.lists(TEXT, max_size=4), max_size=4))
async def test_lists_of_texts_arrive_as_they_were_written(connection: Any, values: list[list[str]]) -> None:
    """Architecture: tags: arrays in an array, quoted twice."""
    rows = await connection.fetch("SELECT u::text[] AS found FROM unnest($1::text::text[]) u", lists(values))
    assert [row["found"] for row in rows] == values


@FAST
@given(st.lists(st.binary(max_size=30), max_size=6))
async def test_bytes_arrive_as_they_were_written(connection: Any, values: list[bytes]) -> None:
    """Architecture: payloads are bytes end to end; here all of a batch in one piece."""
    whole, offsets, lengths = blobs(values)
    rows = await connection.fetch(
        "SELECT substring($1::bytea from at for n) AS found FROM unnest($2::text::int4[], $3::text::int4[]) u(at, n)",
        whole,
        offsets,
        lengths,
    )
    assert [bytes(row["found"]) for row in rows] == values


@FAST
@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5),
    st.lists(st.booleans(), max_size=5),
    st.lists(st.uuids(), max_size=5),
)
async def test_numbers_flags_and_ids_arrive_as_they_were_written(
    connection: Any, integers: list[int], booleans: list[bool], ids: list[Any]
) -> None:
    """Architecture: the other columns; "" is no id."""
    assert await connection.fetchval("SELECT $1::text::int8[]", numbers(integers)) == integers
    assert await connection.fetchval("SELECT $1::text::bool[]", flags(booleans)) == booleans
    found = await connection.fetchval("SELECT $1::text::uuid[]", uuids([*map(str, ids), ""]))
    assert found == [*ids, None]


async def test_what_is_quoted_once_is_remembered_within_bounds(connection: Any) -> None:
    """Invariant: nothing without a bound."""
    names(f"name {n}" for n in range(columns._QUOTED_MOST + 100))
    assert len(columns._QUOTED) <= columns._QUOTED_MOST + 2
    names(["x" * 10_000])
    assert "x" * 10_000 not in columns._QUOTED
    assert await connection.fetchval("SELECT $1::text::text[]", names(["", "name 1"])) == ["", "name 1"]
