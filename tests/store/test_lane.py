"""A lane tells truly what became of a write whose connection was lost."""

import asyncio
import random
from collections.abc import AsyncIterator

import asyncpg
import pytest

from millstream.application.ids import new_id
from millstream.application.ports import Disconnected
from millstream.domain.batch import Batch, Limits
from millstream.domain.runs import Run, RunKind
from millstream.store import migrations
from millstream.store.embedded import EmbeddedPostgres
from millstream.store.lane import PostgresLane

NOW_US = 1_800_000_000_000_000


@pytest.fixture(scope="module")
async def url() -> AsyncIterator[str]:
    """A database with the tables."""
    async with EmbeddedPostgres(ephemeral=True) as server:
        await migrations.upgrade(server.url)
        yield server.url


@pytest.fixture
async def lane(url: str) -> AsyncIterator[PostgresLane]:
    """A lane that has committed one batch."""
    lane = PostgresLane(url, new_id())
    await lane.open()
    await lane.write(lane.prepare(batch_of(lane), {}))
    yield lane
    await lane.close()


def batch_of(lane: PostgresLane) -> Batch:
    """A batch that makes one run."""
    batch = Batch(NOW_US, lane.id, Limits(), lambda _: None, lambda _: None, random.random)
    batch.add_run(Run(new_id(), "default", RunKind.SINGLE, NOW_US))
    return batch


async def lose_connection(url: str, lane: PostgresLane) -> None:
    """End the lane's connection from the other side, and wait until it has noticed."""
    connection = lane._connection
    assert connection is not None
    noticed = asyncio.Event()
    connection.add_termination_listener(lambda _: noticed.set())
    other = await asyncpg.connect(url)
    try:
        await other.execute("SELECT pg_terminate_backend($1)", connection.get_server_pid())
        await asyncio.wait_for(noticed.wait(), 10)
    finally:
        await other.close()


async def test_a_write_that_finds_no_connection_is_not_taken_for_the_one_before(url: str, lane: PostgresLane) -> None:
    await lose_connection(url, lane)
    with pytest.raises(Disconnected):
        await lane.write(lane.prepare(batch_of(lane), {}))
    assert await lane.settle() is False


async def test_a_transaction_that_finds_no_connection_is_not_taken_for_the_one_before(
    url: str, lane: PostgresLane
) -> None:
    await lose_connection(url, lane)
    with pytest.raises(Disconnected):
        async with lane.transaction():
            pass
    assert await lane.settle() is False


async def test_a_write_that_was_committed_before_its_connection_was_lost_is_told_so(
    url: str, lane: PostgresLane
) -> None:
    await lose_connection(url, lane)
    assert await lane.settle() is True


async def test_settling_again_after_a_lost_answer_tells_the_same(url: str, lane: PostgresLane) -> None:
    await lose_connection(url, lane)
    with pytest.raises(Disconnected):
        await lane.write(lane.prepare(batch_of(lane), {}))
    assert [await lane.settle(), await lane.settle()] == [False, False]


async def test_a_write_is_lost_for_good_once_settle_has_said_so(url: str, lane: PostgresLane) -> None:
    statement = lane.prepare(batch_of(lane), {})
    await lose_connection(url, lane)
    with pytest.raises(Disconnected):
        await lane.write(statement)
    assert await lane.settle() is False
    assert await lane.write(statement) > 0
    connection = await asyncpg.connect(url)
    try:
        numbers = await connection.fetch("SELECT n FROM commit_batch WHERE lane = $1::text::uuid ORDER BY n", lane.id)
    finally:
        await connection.close()
    assert [row["n"] for row in numbers] == [-2, 1, 2, 3]
