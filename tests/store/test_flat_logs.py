"""WM-5, FV-12: a page of a log costs the same wherever it stands in a long log and whatever it asks for, and reads no
partition of a day on which there was nothing of it: pinned by the plans, in a table of 360,000 lines of six days."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from tests.engine.database import Database, Postgres

from millstream.application.views.task_logs import LogQuery, LogSpan
from millstream.store import log_feed, task_logs
from millstream.store.columns import uuids
from millstream.store.connections import Database as Pool
from millstream.store.log_partitions import make_partition
from millstream.store.query import compiled

FIRST_DAY = 20_000
DAYS = 6
LONG_FROM = FIRST_DAY + 2
"""On which the long run began."""
LONG_LINES = 120_000
TASKS = 30
RUN, SHORT_RUN = (f"00000000-0000-0000-0000-{n:012d}" for n in (1, 500))
TASK = "00000000-0000-0000-0001-000000000007"
PAGE = 100
BLOCKS_MOST = 500
"""Of a page of 101: each line may stand on a block of its own. The index of the run alone has more than five times as
many."""
LOOKED_AT_BLOCKS_MOST = 3_000
"""Of a watch's page, which looks through 20,000 lines at most; those of a task stand on many blocks."""

_FILL = f"""
INSERT INTO task_log (day, run_id, seq, task_id, attempt, n, level, at_us, logger, message)
SELECT {LONG_FROM} + n * 4 / {LONG_LINES + 1}, '{RUN}', n,
('00000000-0000-0000-0001-' || lpad((n % {TASKS})::text, 12, '0'))::uuid, 1 + n / {LONG_LINES // 2 + 1}, n / {TASKS},
CASE WHEN n % 20021 = 7 THEN 4 WHEN n % 3 = 0 THEN 1 ELSE 2 END, n::int8 * 1000, 'task',
CASE WHEN n % 30013 = 11 THEN 'a needle' ELSE 'line ' || n || repeat(' of hay', 5) END
FROM generate_series(1, {LONG_LINES}) n;
INSERT INTO task_log (day, run_id, seq, task_id, attempt, n, level, message)
SELECT {FIRST_DAY} + run % {DAYS}, lpad((500 + run)::text, 32, '0')::uuid, n, gen_random_uuid(), 1, n, 2, 'line ' || n
FROM generate_series(0, 2399) run, generate_series(1, 100) n;
INSERT INTO run_log_end SELECT run_id, max(day), max(seq) FROM task_log GROUP BY run_id;
INSERT INTO task_log_end (task_id, run_id, day, attempt) SELECT task_id, min(run_id::text)::uuid, max(day), 1
FROM task_log GROUP BY task_id;
"""


@pytest.fixture(scope="module")
async def database() -> AsyncIterator[Database]:
    """A large table, analyzed, as autovacuum leaves it."""
    async with Postgres.running() as postgres, postgres.database("flat_logs") as database:
        async with database.other() as connection:
            for day in range(FIRST_DAY, FIRST_DAY + DAYS):
                await make_partition(connection, day)
        await database.execute(_FILL)
        await database.execute("VACUUM ANALYZE task_log, run_log_end, task_log_end")
        yield database


async def plan_of(database: Database, text: str, *arguments: object, generic: bool = False) -> dict[str, Any]:
    """The plan of a statement that was run."""
    async with database.other() as connection:
        await connection.execute(f"SET plan_cache_mode = force_{'generic' if generic else 'custom'}_plan")
        await connection.execute("SET jit = off")
        plan = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {text}", *arguments)
    top: dict[str, Any] = json.loads(plan)[0]["Plan"]
    return top


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)


def blocks(plan: dict[str, Any]) -> int:
    """How many blocks a plan touched that reads no partition from end to end."""
    assert not [node for node in _nodes(plan) if node["Node Type"] == "Seq Scan"], plan
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def days(plan: dict[str, Any]) -> set[int]:
    """The days whose partitions a plan reads."""
    names = {node["Relation Name"] for node in _nodes(plan) if node.get("Actual Loops") and "Relation Name" in node}
    return {int(name.removeprefix("task_log_d")) for name in names if name.startswith("task_log_d")}


QUERIES = {
    "of the run": LogQuery(RUN),
    "of a task": LogQuery(RUN, TASK),
    "of an attempt": LogQuery(RUN, attempt=2),
    "of an attempt of a task": LogQuery(RUN, TASK, attempt=2),
    "of a common level": LogQuery(RUN, levels=(1, 2)),
    "of a common level of a task": LogQuery(RUN, TASK, levels=(1, 2)),
    "with a common text": LogQuery(RUN, text="HAY"),
    "with a common text of a task": LogQuery(RUN, TASK, text="hay"),
    "since a time": LogQuery(RUN, since_us=1),
    "until a time": LogQuery(RUN, until_us=LONG_LINES * 1000),
    "of a task in a time": LogQuery(RUN, TASK, since_us=1, until_us=LONG_LINES * 1000),
    "the newest": LogQuery(RUN, newest_first=True),
    "the newest of a task": LogQuery(RUN, TASK, newest_first=True),
}
DEEP = LONG_LINES * 2 // 3


@pytest.mark.parametrize("name", QUERIES)
async def test_a_page_costs_the_same_at_any_depth(database: Database, name: str) -> None:
    """The first page, and one two thirds down behind a cursor."""
    query = QUERIES[name]
    for beyond in (DEEP,) if query.attempt else (None, DEEP):
        for generic in (False, True):
            text, arguments = compiled(task_logs.page_of(query, LONG_FROM, beyond, 0, PAGE))
            plan = await plan_of(database, text, *arguments, generic=generic)
            assert blocks(plan) < BLOCKS_MOST, (beyond, generic, blocks(plan), plan)
            # A day more at the beginning: servers read the time a moment apart.
            assert days(plan) <= {*range(LONG_FROM - 1, FIRST_DAY + DAYS)}


RARE = {
    "of a rare level": LogQuery(RUN, levels=(4,)),
    "of no level": LogQuery(RUN, levels=(3,)),
    "of a rare level of a task": LogQuery(RUN, TASK, levels=(4,)),
    "with a rare text": LogQuery(RUN, text="needle"),
    "with no such text": LogQuery(RUN, text="haystack"),
    "of no time": LogQuery(RUN, since_us=LONG_LINES * 2000),
    "of no attempt": LogQuery(RUN, attempt=9),
}


@pytest.mark.parametrize("name", RARE)
async def test_who_watches_for_what_is_rare_is_read_for_bit_by_bit(database: Database, name: str) -> None:
    """No reading of a watch looks through more than so many lines, however few it finds."""
    for after in (0, DEEP):
        text, arguments = compiled(task_logs.page_of(RARE[name], LONG_FROM, after, 0, PAGE, 20_000))
        plan = await plan_of(database, text, *arguments)
        assert blocks(plan) < LOOKED_AT_BLOCKS_MOST, (after, blocks(plan), plan)


@pytest.mark.parametrize("name", RARE)
async def test_what_is_rare_is_looked_for_since_the_run_began(database: Database, name: str) -> None:
    """In the partitions of these days; how, is for the planner to say, who knows how much of them is the run's."""
    text, arguments = compiled(task_logs.page_of(RARE[name], LONG_FROM, None, 0, PAGE))
    plan = await plan_of(database, text, *arguments)
    assert days(plan) <= {*range(LONG_FROM - 1, FIRST_DAY + DAYS)}


async def test_a_short_log_is_read_of_its_days(database: Database) -> None:
    """It began on the last day but one: the days before are passed over."""
    text, arguments = compiled(task_logs.page_of(LogQuery(SHORT_RUN), FIRST_DAY + DAYS - 1, None, 0, PAGE))
    plan = await plan_of(database, text, *arguments)
    assert blocks(plan) < BLOCKS_MOST
    assert days(plan) <= {FIRST_DAY + DAYS - 2, FIRST_DAY + DAYS - 1}


@pytest.mark.parametrize("statement", [log_feed.SPANS, log_feed.TASK_SPANS], ids=["runs", "tasks"])
async def test_what_is_new_of_many_logs_is_read_at_the_cost_of_its_lines(database: Database, statement: str) -> None:
    """Of fifty runs at once, one of them long."""
    runs = [RUN, *(f"00000000-0000-0000-0000-{n:012d}" for n in range(600, 649))]
    spans = [LogSpan(RUN, LONG_FROM, DEEP, TASK)]
    spans += [LogSpan(each, FIRST_DAY, 90, TASK) for each in runs[1:]]
    for generic in (False, True):
        plan = await plan_of(database, statement, *log_feed.columns_of(spans), 11, generic=generic)
        # A few blocks for each of the partitions of each run.
        assert blocks(plan) < len(runs) * DAYS * 6, (generic, blocks(plan), plan)


async def test_where_logs_end_is_known_by_their_ids(database: Database) -> None:
    for statement in (log_feed.ENDS, log_feed.TASK_ENDS):
        ids = uuids([RUN, SHORT_RUN, TASK])
        assert blocks(await plan_of(database, statement, ids, generic=True)) < 30


async def test_what_is_missing_of_a_run_is_found_by_its_tasks(database: Database) -> None:
    assert blocks(await plan_of(database, log_feed.RUNS_OWED, uuids([RUN, SHORT_RUN]), generic=True)) < 30


async def test_pages_have_all_lines_in_order(database: Database) -> None:
    """The same lines, whichever way they are read."""
    pool = await Pool.open(database.url, 1)
    try:
        reads, feed = task_logs.TaskLogReads(pool), log_feed.LogFeedReads(pool)
        found = await reads.lines(LogQuery(RUN, TASK), LONG_FROM, DEEP, 0, 20)
        spans = await feed.spans([LogSpan(RUN, LONG_FROM, DEEP, TASK), LogSpan(SHORT_RUN, FIRST_DAY, 90)], 20)
        assert spans[RUN] == found
        assert [each.seq for each in spans[SHORT_RUN]] == [*range(91, 101)]
        over_midnight = await reads.lines(LogQuery(RUN), LONG_FROM, 59_998, 0, 3)
        assert [each.seq for each in over_midnight] == [*range(59_999, 60_003)]
        rare = await reads.lines(LogQuery(RUN, levels=(4,)), LONG_FROM, None, 0, 100)
        assert [each.seq for each in rare] == [7, 20_028, 40_049, 60_070, 80_091, 100_112]
    finally:
        await pool.close()
