"""FL-12: a page of artifacts costs the same wherever it stands in a large table and whatever it asks for: pinned by the
blocks that its plan touches, in a table of 300,000 artifacts."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from tests.engine.database import Database, Postgres

from millstream.application.views.artifacts import ArtifactQuery
from millstream.domain.artifacts import Reader
from millstream.store import artifacts
from millstream.store.connections import Database as Pool
from millstream.store.query import compiled, first_id, uid
from millstream.store.tables.artifacts import artifact as table

ROWS = 300_000
BEGIN_US = 1_700_000_000_000_000
STEP_US = 1_000_000
PAGE = 51
BLOCKS_MOST = 900
"""Of a page of 51: each row may stand on a block of its own, and a rarer one is picked out of some that do not match.
A scan of the table takes more than ten times as many."""

_FILL = f"""
INSERT INTO artifact
(tenant, id, run_id, seq, type, payload, produced_by, visibility_kind, visibility, tags, created_us)
SELECT CASE WHEN n % 10 = 0 THEN 'other' ELSE 'acme' END,
(lpad(to_hex(({BEGIN_US} + n::int8 * {STEP_US}) / 1000), 12, '0') || '70008' || lpad(to_hex(n), 15, '0'))::uuid,
lpad(to_hex(n / 100), 32, '0')::uuid, n % 100,
CASE WHEN n % 50000 = 7 THEN 'Rare' WHEN n % 3 = 0 THEN 'Order' ELSE 'Payment' END,
convert_to(repeat(md5(n::text), 4), 'UTF8'),
CASE WHEN n % 40000 = 11 THEN 'seldom' WHEN n % 2 = 0 THEN 'payments' ELSE 'external' END,
CASE WHEN n % 5 = 0 THEN 'Private' WHEN n % 30000 = 13 THEN 'Labelled' ELSE 'Public' END,
CASE WHEN n % 5 = 0 THEN
'{{"kind":"Private","agents":["a"],"required_labels":[],"tenant_id":"","ttl_us":0,"then":null}}'
WHEN n % 30000 = 13 THEN
'{{"kind":"Labelled","agents":[],"required_labels":["eu"],"tenant_id":"","ttl_us":0,"then":null}}' ELSE '' END,
CASE WHEN n % 60000 = 17 THEN ARRAY['once'] WHEN n % 4 = 0 THEN ARRAY['often', 'x'] ELSE ARRAY[]::text[] END,
{BEGIN_US} + n::int8 * {STEP_US}
FROM generate_series(1, {ROWS}) n;
ANALYZE artifact;
"""


@pytest.fixture(scope="module")
async def database() -> AsyncIterator[Database]:
    """A large table, analyzed, as autovacuum leaves it."""
    async with Postgres.running() as postgres, postgres.database("flat") as database:
        await database.execute(_FILL)
        yield database


def at_us(number: int) -> int:
    """When an artifact was stored."""
    return BEGIN_US + number * STEP_US


async def cost(database: Database, query: ArtifactQuery, reader: Reader | None, after: str, generic: bool) -> int:
    """Blocks that the page after an id touches."""
    statement = artifacts._matching("acme", query, reader, at_us(ROWS)).order_by(table.c.id.desc())
    if after:
        statement = statement.where(table.c.id < uid(after))
    text, arguments = compiled(statement.limit(PAGE))
    async with database.other() as connection:
        await connection.execute(f"SET plan_cache_mode = force_{'generic' if generic else 'custom'}_plan")
        await connection.execute("SET jit = off")
        plan = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {text}", *arguments)
    top = json.loads(plan)[0]["Plan"]
    assert {node["Node Type"] for node in _nodes(top)} & {"Seq Scan", "Gather", "Gather Merge"} == set()
    return int(top["Shared Hit Blocks"] + top["Shared Read Blocks"])


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)


RUN = "00000000-0000-0000-0000-0000000005dc"
QUERIES = {
    "all": ArtifactQuery(),
    "a common type": ArtifactQuery(type="Order"),
    "a rare type": ArtifactQuery(type="Rare"),
    "no such type": ArtifactQuery(type="Nothing"),
    "a common producer": ArtifactQuery(produced_by="payments"),
    "clients": ArtifactQuery(produced_by="external"),
    "a rare producer": ArtifactQuery(produced_by="seldom"),
    "no such producer": ArtifactQuery(produced_by="nobody"),
    "a cascade": ArtifactQuery(correlation_id=RUN),
    "a common tag": ArtifactQuery(tag="often"),
    "a rare tag": ArtifactQuery(tag="once"),
    "no such tag": ArtifactQuery(tag="never"),
    "a common visibility": ArtifactQuery(visibility="Private"),
    "public": ArtifactQuery(visibility="Public"),
    "a rare visibility": ArtifactQuery(visibility="Labelled"),
    "since lately": ArtifactQuery(from_us=at_us(ROWS - 100)),
    "an old hour": ArtifactQuery(from_us=at_us(100_000), to_us=at_us(103_600)),
    "before long ago": ArtifactQuery(to_us=at_us(20_000)),
    "a type of an old hour": ArtifactQuery(type="Order", from_us=at_us(100_000), to_us=at_us(103_600)),
    "much at once": ArtifactQuery(type="Order", produced_by="payments", visibility="Public"),
}
HIDDEN_FROM_IT = {"a common visibility"}
"""Where nothing of what is asked for may be seen, all of it is passed over."""
BLIND = Reader("acme", "b", frozenset({"us"}), "somebody")


@pytest.mark.parametrize("name", QUERIES)
async def test_a_page_costs_the_same_at_any_depth(database: Database, name: str) -> None:
    """FL-12: the first page and one two thirds down, of one who sees all and of one who does not."""
    deep = first_id(at_us(ROWS // 3))
    for reader in (None, BLIND) if name not in HIDDEN_FROM_IT else (None,):
        for after in ("", deep):
            for generic in (False, True):
                blocks = await cost(database, QUERIES[name], reader, after, generic)
                assert blocks < BLOCKS_MOST, (name, reader, after, generic, blocks)


async def test_totals_beyond_ten_thousand_are_estimates_and_say_so(database: Database) -> None:
    """Contract, pagination: counting stops a step past 10,000; up to there totals are exact."""
    pool = await Pool.open(database.url, 1)
    try:
        reads = artifacts.ArtifactReads(pool)
        total, is_estimate = await reads.count("acme", ArtifactQuery(type="Order"), None, at_us(ROWS))
        assert is_estimate
        assert 60_000 < total < 120_000
        rare = await reads.count("acme", ArtifactQuery(produced_by="seldom"), None, at_us(ROWS))
        assert rare == (8, False)
        assert await reads.count("nobody", ArtifactQuery(), None, at_us(ROWS)) == (0, False)
    finally:
        await pool.close()
