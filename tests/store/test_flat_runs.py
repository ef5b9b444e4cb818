"""WM-5: a page of runs costs the same wherever it stands in a large table and whatever it asks for, and so does what is
stuck: pinned by the blocks that the plans touch, in tables of 300,000 runs and 100,000 tasks."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from tests.engine.database import Database, Postgres

from millstream.application.views.runs import RunQuery, StuckQuery
from millstream.domain.runs import RunKind, RunStatus
from millstream.store import labels as labels_store
from millstream.store import run_lists, stuck
from millstream.store.connections import Database as Pool
from millstream.store.query import compiled
from millstream.store.run_lists import RunLists

ROWS = 300_000
TASKS = 100_000
BEGIN_US = 1_700_000_000_000_000
PAGE = 50
BLOCKS_MOST = 600
"""Of a page of 51 that an index leads to: each row may stand on a block of its own. A scan of the table takes more than
ten times as many."""
LOOKED_AT_BLOCKS_MOST = 6_000
"""Of one that looks at SCAN_MOST runs, or sorts SORT_MOST of them."""

_FILL = f"""
INSERT INTO run (id, tenant, kind, status, created_us, updated_us, finished_us, labels, error_code, error_message,
workflow, parent_id)
SELECT (lpad(to_hex(({BEGIN_US} + n::int8 * 1000000) / 1000), 12, '0') || '70008' || lpad(to_hex(n), 15, '0'))::uuid,
CASE WHEN n % 10 = 0 THEN 'other' ELSE 'acme' END, CASE WHEN n % 3 = 0 THEN 2 ELSE 1 END,
CASE WHEN n % 7001 = 1 THEN 5 WHEN n % 1000 = 1 THEN 4 WHEN n % 30011 = 1 THEN 1 ELSE 3 END,
{BEGIN_US} + n::int8 * 1000000, {BEGIN_US} + n::int8 * 1000000 + n % 977, CASE WHEN n % 30011 = 1 THEN 0 ELSE 1 END,
CASE WHEN n % 50021 = 7 THEN '{{"rare":"yes","env":"prod"}}' WHEN n % 10 = 0 THEN '{{"env":"prod","shared":"yes"}}'
WHEN n % 40009 = 5 THEN '{{"shared":"yes"}}' WHEN n % 2 = 0 THEN '{{"env":"prod"}}' ELSE '' END,
CASE WHEN n % 1000 = 1 THEN 'DECLINED' ELSE '' END, CASE WHEN n % 40009 = 3 THEN 'a needle' ELSE '' END,
CASE WHEN n % 60013 = 11 THEN 'seldom' WHEN n % 4 = 0 THEN 'often' ELSE '' END,
CASE WHEN n % 30000 = 13 THEN '{"0" * 31}1'::uuid END
FROM generate_series(1, {ROWS}) n;
INSERT INTO task (id, run_id, tenant, kind, queue, status, run_at_us, urgency, tries, finished_us, created_us)
SELECT lpad(to_hex(n), 32, '0')::uuid, lpad(to_hex(n), 32, '0')::uuid, 'acme', 'k' || n % 5, 'q' || n % 4,
CASE WHEN n % 2 = 0 THEN 2 ELSE 4 END, n, n % 3, 1, CASE WHEN n % 500 = 0 OR n % 2 = 0 THEN 0 ELSE 1 END, n
FROM generate_series(1, {TASKS}) n;
UPDATE task SET tries = 0 WHERE id >= lpad(to_hex(1000), 32, '0')::uuid;
ANALYZE run;
ANALYZE task;
"""


@pytest.fixture(scope="module")
async def database() -> AsyncIterator[Database]:
    """Large tables, analyzed, as autovacuum leaves them."""
    async with Postgres.running() as postgres, postgres.database("flat_runs") as database:
        await database.execute(_FILL)
        await database.execute("VACUUM ANALYZE run")
        yield database


async def blocks_of(database: Database, text: str, *arguments: object, settings: tuple[str, ...] = ()) -> int:
    """Blocks that a statement touches."""
    async with database.other() as connection:
        for each in ("jit = off", *settings):
            await connection.execute(f"SET {each}")
        plan = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {text}", *arguments)
    top = json.loads(plan)[0]["Plan"]
    scans = [node for node in _nodes(top) if node["Node Type"] == "Seq Scan"]
    assert not [node for node in scans if node["Relation Name"] in ("run", "task", "attempt")]
    return int(top["Shared Hit Blocks"] + top["Shared Read Blocks"])


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)


DEEP = (BEGIN_US + ROWS // 3 * 1_000_000, "f" * 8 + "-ffff-ffff-ffff-" + "f" * 12)
INDEXED = {
    "all": RunQuery(),
    "the oldest": RunQuery(ascending=True),
    "failed": RunQuery((RunStatus.FAILED,)),
    "ended badly": RunQuery((RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.CANCELLING)),
    "a common workflow": RunQuery(workflow="often"),
    "a rare workflow": RunQuery(workflow="seldom"),
    "no such workflow": RunQuery(workflow="never"),
    "children": RunQuery(parent_id="0" * 8 + "-0000-0000-0000-" + "0" * 11 + "1"),
    "an old hour": RunQuery(created_after_us=DEEP[0], created_before_us=DEEP[0] + 3_600_000_000),
    "failed in an old hour": RunQuery((RunStatus.FAILED,), created_before_us=DEEP[0]),
    "an id": RunQuery(text="018bcfe5-68ff-7000-8000-000000000001"),
    "the beginning of an id": RunQuery(text="018bcfe5-68ff"),
}
LOOKED_AT = {
    "completed": RunQuery((RunStatus.COMPLETED,)),
    "running": RunQuery((RunStatus.RUNNING,)),
    "a kind": RunQuery(kind=RunKind.SINGLE),
    "a rare text": RunQuery(text="needle"),
    "no such text": RunQuery(text="haystack"),
    "a text in failed ones": RunQuery((RunStatus.FAILED,), text="needle"),
    "a text in a workflow": RunQuery(workflow="often", text="nothing"),
    "a common label": RunQuery(labels=(("env", "prod"),)),
    "by update": RunQuery(by_updated=True),
    "failed by update": RunQuery((RunStatus.FAILED,), by_updated=True),
    "by update, the oldest": RunQuery(by_updated=True, ascending=True),
}


@pytest.mark.parametrize("name", [*INDEXED, *LOOKED_AT])
async def test_a_page_costs_the_same_at_any_depth(database: Database, name: str) -> None:
    """WM-5, FL-12: the first page and one two thirds down."""
    query, most = (INDEXED[name], BLOCKS_MOST) if name in INDEXED else (LOOKED_AT[name], LOOKED_AT_BLOCKS_MOST)
    for after in (None, DEEP):
        text, arguments = compiled(run_lists.page_of("acme", query, after, 0, PAGE))
        blocks = await blocks_of(database, text, *arguments)
        assert blocks < most, (name, after, blocks)


@pytest.mark.parametrize("name", LOOKED_AT)
async def test_to_find_where_to_go_on_is_cheap(database: Database, name: str) -> None:
    """WM-5: of a page that found too little."""
    text, arguments = compiled(run_lists.end_of("acme", LOOKED_AT[name], DEEP, 0))
    assert await blocks_of(database, text, *arguments) < LOOKED_AT_BLOCKS_MOST


@pytest.mark.parametrize(
    ("labels", "found", "most"),
    [
        ('{"rare":"yes"}', 5, BLOCKS_MOST),
        ('{"env":"prod","rare":"yes"}', 5, BLOCKS_MOST),
        # 30,000 runs of another tenant have it, too.
        ('{"shared":"yes"}', 7, BLOCKS_MOST),
        ('{"env":"nowhere"}', 0, BLOCKS_MOST),
        ('{"env":"prod"}', labels_store.LABELLED_MOST + 1, LOOKED_AT_BLOCKS_MOST),
    ],
)
async def test_labels_that_few_runs_have_are_looked_up(database: Database, labels: str, found: int, most: int) -> None:
    """WM-5: by their index, whatever the planner thinks of them; and these runs by their ids."""
    settings = tuple(f"{each} = off" for each in labels_store.BY_LABELS)
    assert await blocks_of(database, labels_store.SQL["run"], "acme", labels, settings=settings) < most
    rows = await database.rows(labels_store.SQL["run"], "acme", labels)
    assert len(rows) == found
    ids = [row["id"] for row in rows[:10]]
    for query in (RunQuery(), RunQuery((RunStatus.FAILED,)), RunQuery(by_updated=True), RunQuery(text="needle")):
        text, arguments = compiled(run_lists.page_of("acme", query, None, 0, PAGE, ids))
        assert await blocks_of(database, text, *arguments) < BLOCKS_MOST


async def test_runs_are_found_by_labels_that_many_or_few_have(database: Database) -> None:
    """WM-5: both ways tell the same runs."""
    pool = await Pool.open(database.url, 1)
    try:
        reads = RunLists(pool)
        stored = """SELECT id::text FROM run WHERE tenant = 'acme' AND labels LIKE $1 AND status = ANY($2::int[])
        ORDER BY created_us DESC LIMIT 50"""
        for label, pattern in ((("rare", "yes"), "%rare%"), (("env", "prod"), "%prod%")):
            for statuses in ((RunStatus.COMPLETED,), (RunStatus.FAILED,), (RunStatus.COMPLETED, RunStatus.FAILED)):
                query = RunQuery(statuses, labels=(label,))
                found: list[str] = []
                after = None
                while len(found) < 50:
                    page = await reads.runs("acme", query, after, 0, 50 - len(found))
                    found, after = [*found, *(run.id for run in page.runs)], page.after
                    if after is None:
                        break
                wanted = await database.rows(stored, pattern, [int(each) for each in statuses])
                assert found == [row["id"] for row in wanted]
        assert (await reads.runs("acme", RunQuery(labels=(("rare", "yes"), ("rare", "no"))), None, 0, 50)).runs == []
    finally:
        await pool.close()


async def test_totals_say_where_they_are_estimates(database: Database) -> None:
    """Contract, pagination: exact where little had to be looked at, and near the truth elsewhere."""
    pool = await Pool.open(database.url, 1)
    try:
        reads = RunLists(pool)
        assert await reads.count_runs("acme", RunQuery((RunStatus.FAILED,))) == (299, False)
        assert await reads.count_runs("acme", RunQuery(workflow="seldom")) == (4, False)
        total, is_estimate = await reads.count_runs("acme", RunQuery(kind=RunKind.SINGLE))
        assert is_estimate
        assert 60_000 < total < 120_000
        assert await reads.count_runs("nobody", RunQuery(text="x")) == (0, False)
        assert await reads.count_runs("acme", RunQuery((RunStatus.FAILED,), text="needle")) == (0, False)
    finally:
        await pool.close()


async def test_every_run_is_found_page_by_page(database: Database) -> None:
    """FL-12: though pages look at 10,000 runs each and find next to nothing."""
    pool = await Pool.open(database.url, 1)
    try:
        reads, after, found, pages = RunLists(pool), None, [], 0
        query = RunQuery((RunStatus.RUNNING,))
        while pages == 0 or after is not None:
            page = await reads.runs("acme", query, after, 0, PAGE)
            found += [run.id for run in page.runs]
            after, pages = page.after, pages + 1
        stored = "SELECT id::text FROM run WHERE tenant = 'acme' AND status = 1 ORDER BY created_us DESC"
        assert found == [row["id"] for row in await database.rows(stored)]
        assert 27 <= pages <= 28
    finally:
        await pool.close()


async def test_what_is_stuck_costs_the_same(database: Database) -> None:
    """FV-19: 500 retried tasks among 100,000, and 50,000 that wait in 20 queues and kinds."""
    pages = await blocks_of(database, stuck._RETRYING, "acme", stuck.FIRST_ID, "", "", 1 << 60, 50)
    assert pages < BLOCKS_MOST
    waiting = await blocks_of(database, stuck._WAITING, "acme", 0, "", "", 1 << 60, False, 1000)
    # A thousand of each are counted.
    assert waiting < 30 * 1000
    pool = await Pool.open(database.url, 1)
    try:
        found = await stuck.StuckReads(pool).waiting("acme", StuckQuery(waiting=True), 1 << 60, 1000)
        assert len(found) == 10
        assert {each.waiting for each in found} == {1000}
        oldest = "SELECT min(run_at_us) AS first FROM task WHERE status = 2 GROUP BY queue, kind ORDER BY 1"
        assert [each.since_us for each in found] == [row["first"] for row in await database.rows(oldest)]
    finally:
        await pool.close()
