"""Large payloads: stored once by tenant and content, dropped after the last artifact; what broke leaves nothing."""

import hashlib
from collections.abc import AsyncIterator

import pytest
from tests.engine.database import Database, Postgres
from tests.engine.world import principal

from millstream.application.ids import new_id
from millstream.application.payloads import CHUNK_BYTES, Expected, Payloads, Uploaded
from millstream.domain.errors import Conflict, NotFound, PayloadTooLarge, ValidationFailed
from millstream.store import payloads as store
from millstream.store.connections import Database as Pool

CONTENT = bytes(range(256)) * 3000
"""Of 768,000 bytes: two full chunks and a part of one."""
MOST = 1_000_000
ANYTHING = Expected()
LEFT = "SELECT (SELECT count(*) FROM payload_chunk) + (SELECT count(*) FROM payload_upload)"


@pytest.fixture(scope="module")
async def postgres() -> AsyncIterator[Postgres]:
    """One server for the module."""
    async with Postgres.running() as running:
        yield running


@pytest.fixture
async def database(postgres: Postgres) -> AsyncIterator[Database]:
    """An empty database."""
    async with postgres.database(f"payloads_{new_id().replace('-', '')}") as database:
        yield database


class Bench:
    """The use case over the real store, at a time that a test sets."""

    def __init__(self, pool: Pool) -> None:
        self.now_us = 1000
        self.store = store.Payloads(pool)
        self.payloads = Payloads(self.store, lambda: self.now_us, MOST)

    async def upload(
        self, content: bytes = CONTENT, tenant: str = "acme", by: str = "ann", expected: Expected = ANYTHING
    ) -> Uploaded:
        """Upload in pieces that fit no chunk."""
        return await self.payloads.upload(principal(by, tenant), pieces(content), "text/plain", expected)

    async def sweep(self) -> None:
        """Sweep all that may go by now."""
        while await self.store.sweep(self.now_us, 2):
            pass


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    """A content in pieces."""
    for begin in range(0, len(content), 100_001):
        yield content[begin : begin + 100_001]


@pytest.fixture
async def bench(database: Database) -> AsyncIterator[Bench]:
    """The use case on the test's database."""
    pool = await Pool.open(database.url, 3)
    yield Bench(pool)
    await pool.close()


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, None), (0, 0), (5, 10), (CHUNK_BYTES - 1, 2), (CHUNK_BYTES, CHUNK_BYTES), (700_000, 10**9), (768_000, None)],
)
async def test_any_range_comes_back_as_it_was_sent(bench: Bench, offset: int, length: int | None) -> None:
    found = await bench.upload()
    assert found.sha256 == hashlib.sha256(CONTENT).digest()
    assert not found.existed
    read = [chunk async for chunk in bench.payloads.read(found.payload, offset, length)]
    assert b"".join(read) == CONTENT[offset : None if length is None else offset + length]
    assert all(len(chunk) <= CHUNK_BYTES for chunk in read)


async def test_chunks_alone_are_not_waited_for(bench: Bench, database: Database) -> None:
    """The commit that makes a payload of them is, as all that comes by the same connections."""
    name = await database.value("SELECT current_database()")
    await database.execute(f"ALTER DATABASE {name} SET synchronous_commit = on")
    pool = await Pool.open(database.url, 1)
    assert not (await Bench(pool).upload()).existed
    assert await pool.fetchval("SHOW synchronous_commit") == "on"
    await pool.close()


async def test_an_offset_behind_the_end_names_the_end(bench: Bench) -> None:
    found = await bench.upload()
    with pytest.raises(ValidationFailed, match="768000"):
        await anext(bench.payloads.read(found.payload, 768_001))


async def test_the_same_content_is_stored_once(bench: Bench, database: Database) -> None:
    first, second = await bench.upload(), await bench.upload(by="bob")
    assert second.existed
    assert second.payload == first.payload
    await bench.sweep()
    assert await database.value(LEFT) == 3
    assert [await bench.store.held("acme", first.sha256, by) for by in ("ann", "bob", "eve")] == [True, True, False]


@pytest.mark.parametrize("size", [1, CHUNK_BYTES, CHUNK_BYTES + 1, 700_000])
async def test_what_is_at_hand_is_stored_in_the_chunks_of_an_upload(
    bench: Bench, database: Database, size: int
) -> None:
    """Once, like all else, and as what it is known to be, whatever its uploader said."""
    content = CONTENT[:size]
    for _ in range(2):
        digest = await bench.payloads.keep("acme", content, "application/x-known")
    found = await bench.store.find("acme", digest)
    assert found is not None
    assert (digest, found.size_bytes) == (hashlib.sha256(content).digest(), size)
    assert b"".join([chunk async for chunk in bench.payloads.read(found)]) == content
    uploaded = await bench.upload(content)
    assert (uploaded.existed, uploaded.payload) == (True, found)
    await bench.sweep()
    assert await database.value(LEFT) == -(-size // CHUNK_BYTES)
    other = await bench.upload(content[1:])
    assert await bench.payloads.keep("acme", content[1:], "application/x-known") == other.sha256
    retyped = await bench.store.find("acme", other.sha256)
    assert retyped is not None
    assert (retyped.blob, retyped.media_type) == (other.payload.blob, "application/x-known")


async def test_a_tenant_does_not_learn_what_another_has(bench: Bench) -> None:
    first = await bench.upload()
    assert await bench.store.find("other", first.sha256) is None
    assert not await bench.store.held("other", first.sha256, "ann")
    second = await bench.upload(tenant="other")
    assert not second.existed
    assert second.payload.blob != first.payload.blob


@pytest.mark.parametrize("expected", [Expected(size_bytes=5), Expected(sha256=b"x" * 32)])
async def test_other_content_than_expected_is_refused_and_leaves_nothing(
    bench: Bench, database: Database, expected: Expected
) -> None:
    with pytest.raises(ValidationFailed):
        await bench.upload(expected=expected)
    await bench.sweep()
    assert await database.value(LEFT) == 0


async def test_over_the_maximum_names_the_limit_and_leaves_nothing(bench: Bench, database: Database) -> None:
    await bench.upload(b"x" * MOST)
    with pytest.raises(PayloadTooLarge, match=f"{MOST:,}.*max_upload_bytes"):
        await bench.upload(b"y" * (MOST + 1))
    await bench.sweep()
    assert await database.value(LEFT) == 4


async def test_a_size_over_the_maximum_is_refused_before_anything_is_sent(bench: Bench, database: Database) -> None:
    with pytest.raises(PayloadTooLarge):
        await bench.upload(b"", expected=Expected(size_bytes=MOST + 1))
    assert await database.value(LEFT) == 0


async def test_an_upload_whose_server_died_is_swept_once_silent(bench: Bench, database: Database) -> None:
    blob = new_id()
    await bench.store.begin("acme", blob, 1000)
    for number in range(5):
        assert await bench.store.append("acme", blob, number, b"x", 1000 + number)
    await bench.sweep()
    assert await database.value(LEFT) == 6, "one that was not silent for long was swept"
    bench.now_us = 2000
    await bench.sweep()
    assert await database.value(LEFT) == 0
    assert not await bench.store.append("acme", blob, 5, b"x", 2000)
    assert await database.value(LEFT) == 0


async def test_nothing_is_added_to_an_upload_that_waits_for_the_sweep(bench: Bench, database: Database) -> None:
    blob = new_id()
    await bench.store.begin("acme", blob, 1000)
    await bench.store.abandon("acme", blob)
    assert not await bench.store.append("acme", blob, 0, b"x", 1000)
    assert await database.value("SELECT count(*) FROM payload_chunk") == 0


async def test_an_upload_that_was_swept_in_its_midst_fails(bench: Bench, database: Database) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"x" * CHUNK_BYTES
        bench.now_us += 10
        await bench.sweep()
        yield b"y"

    with pytest.raises(Conflict, match="start it again"):
        await bench.payloads.upload(principal("ann"), slow(), "", Expected())
    await bench.sweep()
    assert await database.value(LEFT) == 0
    assert await database.value("SELECT count(*) FROM payload") == 0


async def test_it_goes_only_after_the_last_artifact_that_refers_to_it(bench: Bench, database: Database) -> None:
    found = await bench.upload()
    for _ in range(2):
        await database.execute(
            "INSERT INTO artifact (tenant, id, run_id, payload_digest) VALUES ('acme', $1, $1, $2)",
            new_id(),
            found.sha256,
        )
    assert await bench.store.release(1000, 1000, 10) == 0, "one that was touched just now was looked at"
    for now_us, left in ((2000, 1), (3000, 0)):
        assert await bench.store.release(now_us, now_us, 10) == 1
        assert await bench.store.find("acme", found.sha256), "one that is referred to was dropped"
        await database.execute("DELETE FROM artifact WHERE ctid = (SELECT max(ctid) FROM artifact)")
        assert await database.value("SELECT count(*) FROM artifact") == left
    assert await bench.store.release(4000, 4000, 10) == 1
    assert await bench.store.find("acme", found.sha256) is None
    assert not await bench.store.held("acme", found.sha256, "ann")
    await bench.sweep()
    assert await database.value(LEFT) == 0
    with pytest.raises(NotFound, match="retention"):
        await anext(bench.payloads.read(found.payload))


async def test_another_tenants_artifact_keeps_nothing(bench: Bench, database: Database) -> None:
    found = await bench.upload()
    await database.execute(
        "INSERT INTO artifact (tenant, id, run_id, payload_digest) VALUES ('other', $1, $1, $2)", new_id(), found.sha256
    )
    assert await bench.store.release(2000, 2000, 10) == 1
