"""The plans of the statements that must stay fast are pinned: each by the index that it means to use, on tables that
were never analyzed and are full of dead leases (research: a plan that flips in mid-run)."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from tests.engine.database import Database, Postgres

from millstream.application.views.dead_letters import DeadLetterQuery
from millstream.domain.agents import Activation
from millstream.domain.artifacts import NewArtifact
from millstream.domain.batch import Batch, Claim, KeyClaim, Limits
from millstream.domain.lifecycle import create
from millstream.domain.publication import Produce, complete, publish
from millstream.domain.retry import DEFAULT_RETRY, DEFAULT_TIMEOUTS
from millstream.domain.runs import Run, RunKind, Task
from millstream.store import (
    artifacts,
    dead_letters,
    feed,
    labels,
    lane,
    lines,
    maintenance,
    payloads,
    promises,
    queues,
    registry,
    run_feed,
    run_lists,
    runs,
    stuck,
    throughput,
)
from millstream.store.columns import names, numbers, texts, uuids
from millstream.store.query import compiled
from millstream.store.tables.tasks import task as task_table

TASKS = 4000
NOW_US = 1_700_000_000_000_000
ID = "00000000-0000-0000-0000-000000000001"
TASK_ID = "00000000-0000-0000-0000-000000000002"
"""Another than its run's: only a code run's own task has its run's id."""
DIGEST = b"\1" * 32
IDS = uuids([ID, "00000000-0000-0000-0000-000000000002"])

_FILL = f"""
ALTER TABLE task SET (autovacuum_enabled = off);
ALTER TABLE run SET (autovacuum_enabled = off);
ALTER TABLE event SET (autovacuum_enabled = off);
ALTER TABLE artifact SET (autovacuum_enabled = off);
ALTER TABLE attempt SET (autovacuum_enabled = off);
ALTER TABLE idempotency SET (autovacuum_enabled = off);
INSERT INTO run (id, tenant, created_us, finished_us, keep_until_us, status)
SELECT lpad(to_hex(n), 32, '0')::uuid, 'acme', n, n, 0, 3 FROM generate_series(1, {TASKS}) n;
INSERT INTO task (id, run_id, tenant, kind, queue, status, run_at_us, lease_until_us, owner, worker_id, agent)
SELECT lpad(to_hex(n), 32, '0')::uuid, lpad(to_hex(n), 32, '0')::uuid, 'acme', 'sums', 'default', 2, n, 0, '', '', ''
FROM generate_series(1, {TASKS}) n;
INSERT INTO event (day, run_id, seq, type, at_us)
SELECT 1, lpad(to_hex(n), 32, '0')::uuid, s, 1, n FROM generate_series(1, {TASKS}) n, generate_series(1, 3) s;
INSERT INTO artifact (tenant, id, run_id, seq, type, created_us)
SELECT 'acme', lpad(to_hex(n), 32, '0')::uuid, lpad(to_hex(n), 32, '0')::uuid, 2, 'Order', n
FROM generate_series(1, {TASKS}) n;
INSERT INTO attempt (day, task_id, number)
SELECT 1, lpad(to_hex(n), 32, '0')::uuid, 1 FROM generate_series(1, {TASKS}) n;
INSERT INTO idempotency (tenant, principal, rpc, key, expires_us)
SELECT 'acme', 'root', 'Publish', 'k' || n, n FROM generate_series(1, {TASKS}) n;
INSERT INTO agent (tenant, name, id)
SELECT 'acme', 'a' || n, lpad(to_hex(n), 32, '0')::uuid FROM generate_series(1, 50) n;
INSERT INTO artifact_type (tenant, name, version) SELECT 'acme', 't' || n, 1 FROM generate_series(1, 50) n;
INSERT INTO registry VALUES ('acme', 1);
INSERT INTO payload (tenant, sha256, blob)
SELECT 'acme', decode(lpad(to_hex(n), 64, '0'), 'hex'), lpad(to_hex(n), 32, '0')::uuid FROM generate_series(1, 4000) n;
INSERT INTO payload (tenant, sha256, blob) VALUES ('acme', decode(repeat('01', 32), 'hex'), gen_random_uuid());
INSERT INTO payload_holder SELECT tenant, sha256, 'root' FROM payload;
INSERT INTO payload_chunk (blob, n, bytes) SELECT blob, 0, '' FROM payload;
INSERT INTO throughput (tenant, at_us, lane)
SELECT 'acme', n, lpad(to_hex(n), 32, '0')::uuid FROM generate_series(1, {TASKS}) n;
INSERT INTO line (tenant, name, until_us) SELECT 'acme', 'c:k' || n, n FROM generate_series(1, {TASKS}) n;
"""
_DEAD_LEASES = (
    f"UPDATE task SET status = 3, owner = 'x', worker_id = 'w', lease_until_us = {NOW_US}",
    f"UPDATE task SET status = 4, owner = '', lease_until_us = 0, finished_us = {NOW_US}",
    "UPDATE task SET status = 1 WHERE run_at_us % 50 = 0",
    "UPDATE task SET status = 2 WHERE run_at_us % 50 = 1",
    "UPDATE task SET status = 3, owner = 'x', worker_id = 'w', limited = true WHERE run_at_us % 50 = 2",
    "UPDATE task SET status = 0, waits_for = 'c:k', concurrency_key = 'k' WHERE run_at_us % 50 = 3",
    "UPDATE task SET status = 3, concurrency_key = 'k' WHERE run_at_us % 50 = 4",
    "UPDATE task SET status = 5 WHERE run_at_us % 50 = 5",
)


@pytest.fixture(scope="module")
async def postgres() -> AsyncIterator[Postgres]:
    """A server for the module."""
    async with Postgres.running() as postgres:
        yield postgres


@pytest.fixture(scope="module")
async def database(postgres: Postgres) -> AsyncIterator[Database]:
    """Tables without statistics, most of whose tasks died after a lease."""
    async with postgres.database("plans") as database:
        await database.execute(_FILL)
        for statement in _DEAD_LEASES:
            await database.execute(statement)
        assert await database.value("SELECT count(*) FROM pg_stats WHERE schemaname = 'public'") == 0
        yield database


async def plan_of(
    database: Database, sql: str, *arguments: object, settings: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    """The nodes of a statement's generic plan, which is the one that prepared statements end up with."""
    async with database.other() as connection:
        for name, value in (settings or {}).items():
            await connection.execute(f"SET {name} = '{value}'")
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        transaction = connection.transaction()
        await transaction.start()
        plan = await connection.fetchval(f"EXPLAIN (FORMAT JSON) {sql}", *arguments)
        await transaction.rollback()
    return [*_nodes(json.loads(plan)[0]["Plan"])]


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)


BIG = {"run", "task", "event", "artifact", "attempt", "idempotency"}


def used(nodes: list[dict[str, Any]]) -> set[str]:
    """The indexes that a plan reads by."""
    return {node["Index Name"] for node in nodes if "Index Name" in node}


def scanned(nodes: list[dict[str, Any]]) -> set[str]:
    """The big tables that a plan reads from end to end."""
    return {node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"} & {*BIG, "throughput"}


KEYS = (names(["acme"]), names(["root"]), names(["Publish"]), ["k1"])


@pytest.mark.parametrize(
    ("sql", "arguments", "indexes"),
    [
        (
            maintenance._CANDIDATES,
            (names(["acme"]), names(["default"]), names(["sums"]), numbers([10])),
            {"task_ready"},
        ),
        (maintenance._DUE, (NOW_US, 500), {"task_scheduled"}),
        (maintenance._NEXT_DUE, (1,), {"task_scheduled", "task_start_by", "task_line_start_by"}),
        (maintenance._EXPIRED, (NOW_US, 500), {"task_lease"}),
        (maintenance._TOO_LATE, (NOW_US, 500), {"task_start_by"}),
        (maintenance._TOO_LATE_IN_LINE, (NOW_US, 500), {"task_line_start_by"}),
        (maintenance._OVERDUE_CANCELS, (NOW_US, 500), {"run_cancel"}),
        (maintenance._OVERTIME, (NOW_US, 500), {"run_deadline"}),
        (maintenance._NEXT_OVERTIME, (NOW_US,), {"run_deadline"}),
        (lines._GROUPS, (names(["acme"]), names(["c:k"])), {"task_line", "task_running", "line_pkey"}),
        (
            lines._FIRST_OF,
            (names(["acme"]), names(["c:k"]), names(["default"]), names(["sums"]), numbers([10])),
            {"task_line"},
        ),
        (lines._AFTER, ("", "", 200), {"task_line"}),
        (dead_letters._BEREFT, (IDS, "acme"), {"task_pkey", "task_tenant", "artifact_pkey"}),
        (queues._RUNNING, ("acme",), {"task_lease"}),
        (queues._NAMES_BY[0], ("acme",), {"task_in_line"}),
        (queues._NAMES_BY[1], ("acme",), {"task_delayed"}),
        (queues._NAMES_BY[2], ("acme",), {"task_ready"}),
        (queues._COUNTS[0], ("acme", names(["default"])), {"task_in_line"}),
        (queues._COUNTS[1], ("acme", names(["default"])), {"task_delayed"}),
        (queues._COUNTS[2], ("acme", names(["default"])), {"task_ready"}),
        (maintenance._OF_WORKER, ("w",), {"task_lease", "task_limited"}),
        (maintenance._RENEW, (IDS, "x", NOW_US), {"task_pkey"}),
        (maintenance._DELIVERED, (IDS, "x"), {"task_pkey"}),
        (maintenance._SHORTEN, (IDS, "x", NOW_US, IDS), {"task_pkey"}),
        (maintenance._BEAT, (IDS, numbers([1, 1]), numbers([0, 0]), NOW_US, NOW_US), {"task_pkey"}),
        (maintenance._PROGRESS, (IDS, numbers([1, 1]), numbers([0.5, 1]), ["", ""]), {"task_pkey"}),
        (runs._RUN, (ID, "acme"), {"run_pkey"}),
        (runs._TASK, (ID, "acme"), {"task_pkey", "task_tenant"}),
        (runs._EVENTS, (1, ID, 0, 50), {"event_pkey"}),
        (runs._FIRST_END, (1, ID, 0, [10]), {"event_pkey"}),
        (runs._LIMITS, (1, ID, 15), {"event_pkey"}),
        (runs._ATTEMPTS, (1, ID, 0, 50), {"attempt_pkey"}),
        (runs._OUTPUT, (1, ID, 1), {"attempt_pkey"}),
        (runs._FAILED, (ID,), {"task_run"}),
        (runs._ENDED, ([ID],), {"run_pkey", "task_pkey"}),
        (run_lists._BY_IDS, ("acme", [ID]), {"run_pkey"}),
        (stuck._RETRYING, ("acme", ID, "", "", NOW_US, 50), {"task_retrying", "attempt_pkey"}),
        (stuck._LAST_LOOKED_AT, ("acme", ID), {"task_retrying"}),
        (
            stuck._WAITING,
            ("acme", NOW_US, "", "", NOW_US, False, 50),
            {"task_ready", "task_pkey", "interest_pkey", "lane_pkey"},
        ),
        (promises._PROMISE, (ID, "acme"), {"task_pkey", "task_promise"}),
        (promises._OF_KEY, ("acme", "k1"), {"task_promise_key"}),
        (artifacts._BY_IDS, ("acme", [ID]), {"artifact_pkey"}),
        (artifacts._OF_RUN, (ID, 0, 50), {"artifact_run"}),
        (runs._SHARES, (IDS,), {"task_run"}),
        (run_feed._HEADS, (IDS,), {"run_pkey"}),
        (run_feed._EVENTS, (IDS, numbers([0, 0]), numbers([99, 99]), 50), {"run_pkey", "event_pkey"}),
        (run_feed._BRANCHES, (IDS, numbers([99, 99]), [10]), {"run_pkey", "event_pkey"}),
        (feed._END, (), {"commit_batch_pkey"}),
        (feed._ROWS, (IDS, numbers([TASKS - 50, 1]), 64), {"commit_batch_pkey"}),
        (feed._DROP, (TASKS // 2, 500), {"commit_batch_pkey"}),
        (registry._KEY, ("acme", "root", "Publish", "k1"), {"idempotency_pkey"}),
        (payloads._FIND, ("acme", DIGEST), {"payload_pkey"}),
        (payloads._HELD, ("acme", DIGEST, "root"), {"payload_holder_pkey"}),
        (payloads._LEASED, ("acme", DIGEST, ID, 1), {"task_pkey", "task_tenant", "artifact_payload"}),
        (payloads._CHUNK, (ID, 0), {"payload_chunk_pkey"}),
        (throughput.SINCE, ("acme", TASKS - 12), {"throughput_pkey"}),
        (throughput.DROP, (TASKS // 2, 500), {"throughput_at"}),
    ],
    ids=lambda value: value.split()[0].lower() if isinstance(value, str) and " " in value else "",
)
async def test_what_is_read_in_the_background_uses_its_index(
    database: Database, sql: str, arguments: tuple[object, ...], indexes: set[str]
) -> None:
    """Architecture, SQL rules: no big table is read from end to end, though nobody analyzed it."""
    nodes = await plan_of(database, sql, *arguments, settings={"jit": "off"})
    assert scanned(nodes) == set()
    assert used(nodes) <= indexes
    assert used(nodes)


@pytest.mark.parametrize(
    ("sql", "arguments", "indexes"),
    [
        (lane._LOCK_RUNS, (IDS, IDS), {"run_pkey", "task_pkey"}),
        (lane._WAIT_RUNS, (IDS, IDS), {"run_pkey", "task_pkey"}),
        (lane._KNOWN_RUNS, (IDS,), {"run_pkey"}),
        (lane._TASKS, (IDS,), {"task_pkey"}),
        (lane._OPEN_TASKS, (IDS,), {"task_run"}),
        (lane._FAILED_TASKS, (IDS,), {"task_run"}),
        (lane._KEYS, KEYS, {"idempotency_pkey"}),
        (lane._DROP_KEYS, (*KEYS, NOW_US), {"idempotency_pkey"}),
        (lane._LOCK_AGENTS, (names(["acme"]), names(["a1"])), {"agent_pkey"}),
        (lane._RUNNING, ("acme", "sums"), {"task_limited"}),
        (lane._LOCK_LINES, (names(["acme"]), names(["c:k"])), {"line_pkey"}),
        (lane._LINES_RUNNING, (names(["acme"]), names(["c:k"])), {"task_running"}),
        (
            lane._STARTED,
            (names(["acme"]), names(["r:k"]), numbers([1]), texts(["[[1,1]]"]), numbers([NOW_US])),
            {"line_pkey"},
        ),
        (lane._ENDED_OF_KEYS, (IDS,), {"run_pkey"}),
        (lane._FREE_KEYS, (*KEYS, ["[]"]), {"idempotency_pkey"}),
        (lane._REGISTRY, (names(["acme"]),), {"registry_pkey"}),
        (lane._PRUNE, (ID, 1, 2), {"commit_batch_pkey"}),
        (lane._PAYLOADS, (names(["acme"]), names([DIGEST.hex()])), {"payload_pkey"}),
        (lane._OPEN_PROMISES, (names(["acme"]), names(["k1"])), {"task_promise_key"}),
    ],
    ids=[
        "lock",
        "wait",
        "known",
        "tasks",
        "open",
        "failed",
        "keys",
        "drop",
        "agents",
        "running",
        "lines",
        "lines running",
        "started",
        "ended of keys",
        "free keys",
        "registry",
        "prune",
        "payloads",
        "promises",
    ],
)
async def test_what_the_committer_reads_uses_primary_keys(
    database: Database, sql: str, arguments: tuple[object, ...], indexes: set[str]
) -> None:
    """Architecture, SQL rules: with the settings of its connection, so nothing else can be chosen in mid-run."""
    nodes = await plan_of(database, sql, *arguments, settings=lane._SETTINGS)
    assert {node["Node Type"] for node in nodes} & {"Seq Scan", "Hash Join", "Merge Join"} == set()
    assert used(nodes) == indexes


def _batch() -> Batch:
    """A batch that touches every table: a publish into an old run, a new run, a task done and one made."""
    claim = Claim("s", "w", "worker")
    batch = Batch(NOW_US, ID, Limits(), lambda task: claim, lambda task: claim, lambda: 0.5)
    old = Run(ID, "acme", RunKind.CASCADE, NOW_US, last_seq=3, open_tasks=1, task_count=1)
    task = Task(TASK_ID, ID, "acme", "agent:a", "default", NOW_US, 2, agent="a")
    batch.runs[ID] = old
    batch.tasks[TASK_ID] = task
    batch.new_tasks.add(TASK_ID)
    create(batch, old, task)
    batch.new_tasks.clear()
    produce = Produce(
        NewArtifact("Order", b"x", tags=("t",), partition_key="p"),
        "00000000-0000-7000-8000-0000000000a1",
        1,
        [Activation("a", "agent:a", "default", 0, DEFAULT_RETRY, DEFAULT_TIMEOUTS)],
        [("00000000-0000-7000-8000-0000000000b1", "")],
    )
    complete(batch, old, task, 1, b"out", [produce])
    new = Run("00000000-0000-7000-8000-0000000000c1", "acme", RunKind.CASCADE, NOW_US)
    batch.add_run(new)
    outside = NewArtifact("Order", payload_digest=DIGEST, payload_bytes=1)
    publish(batch, new, Produce(outside, "00000000-0000-7000-8000-0000000000d1", 1))
    claimed = KeyClaim("acme", "root", "Publish", "new", b"f" * 16, "[]", NOW_US)
    batch.claims[claimed.id] = claimed
    return batch


async def test_a_batch_is_written_by_primary_keys(database: Database) -> None:
    """Architecture, SQL rules: the one statement finds rows by their primary keys, from the array's side, and never by
    a partial index, whose predicate could flip the plan."""
    statement = lane.statement_of(_batch(), {"acme": 1})
    nodes = await plan_of(database, statement.text, ID, 1, *statement.parameters, settings=lane._SETTINGS)
    assert {node["Node Type"] for node in nodes} & {"Seq Scan", "Hash Join", "Merge Join", "Bitmap Heap Scan"} == set()
    assert used(nodes) <= {"run_pkey", "task_pkey", "registry_pkey", "payload_pkey"}
    assert {"run_pkey", "task_pkey", "payload_pkey"} <= used(nodes)
    written = {node["Relation Name"] for node in nodes if node["Node Type"] == "ModifyTable"}
    assert written >= BIG


@pytest.mark.parametrize(
    ("sql", "arguments", "indexes"),
    [
        (maintenance._OLD_RUNS, (NOW_US, NOW_US, 500), {"run_created"}),
        (
            maintenance._OLD_ARTIFACTS,
            (names(["acme"]), names(["Order"]), uuids([ID]), numbers([NOW_US]), NOW_US, 500),
            {"artifact_kind", "run_parents", "run_pkey"},
        ),
        (maintenance._KEYS, (NOW_US, 5000), {"idempotency_expires"}),
        (maintenance._LINES, (NOW_US, 500), {"line_until"}),
    ],
    ids=["runs", "artifacts", "keys", "lines"],
)
async def test_what_is_old_is_found_by_its_age(
    database: Database, sql: str, arguments: tuple[object, ...], indexes: set[str]
) -> None:
    """Architecture, rule 15: in the order of age, without looking at what is young."""
    nodes = await plan_of(database, sql, *arguments, settings=maintenance._ORDERLY)
    assert used(nodes) == indexes
    assert {node["Node Type"] for node in nodes} & {"Seq Scan", "Sort"} == set()


async def test_a_line_costs_the_same_however_long_it_is(database: Database) -> None:
    """To look at it, and to find who is first: pinned by the blocks that are touched, with 10 and with 10,000 tasks
    that wait, and as many of other lines."""
    fill = """INSERT INTO task (id, run_id, tenant, kind, queue, status, run_at_us, waits_for, concurrency_key, bounds)
    SELECT gen_random_uuid(), gen_random_uuid(), 'long', 'k' || n % 2, 'default', 0, n, 'c:' || $1, $1, '["x",1,"",0,0]'
    FROM generate_series(1, $2::int) n"""
    touched: dict[str, list[int]] = {}
    async with database.other() as connection:
        for key, count in (("few", 10), ("many", 10_000), ("other", 10_000)):
            await connection.execute(fill, key, count)
        for key in ("few", "many"):
            line = (names(["long"]), names([f"c:{key}"]))
            first = (*line, names(["default"]), names(["k1"]), numbers([3]))
            touched[key] = []
            for sql, arguments in ((lines._GROUPS, line), (lines._FIRST_OF, first), (lane._LINES_RUNNING, line)):
                plan = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", *arguments)
                top = json.loads(plan)[0]["Plan"]
                touched[key].append(top["Shared Hit Blocks"] + top["Shared Read Blocks"])
        await connection.execute("DELETE FROM task WHERE tenant = 'long'")
    for few, many in zip(touched["few"], touched["many"], strict=True):
        assert many <= few + 12


async def test_few_tasks_with_labels_are_found_by_their_index(database: Database) -> None:
    """The planner cannot know that they are few, so it is told."""
    settings = dict.fromkeys(labels.BY_LABELS, "off")
    nodes = await plan_of(database, labels.SQL["task"], "acme", '{"a":"b"}', settings=settings)
    assert used(nodes) == {"task_tenant_labels"}
    assert scanned(nodes) == set()


async def test_dead_letters_are_found_in_their_order(database: Database) -> None:
    """A page costs the same however many tasks there are: in the order of their index, in both directions."""
    failed, id_ = task_table.c.finished_us, task_table.c.id
    for statement in (
        dead_letters._dead("acme", DeadLetterQuery(kind="sums")).order_by(failed.desc(), id_.desc()),
        dead_letters._dead("acme", DeadLetterQuery(since_us=1)).order_by(failed, id_),
    ):
        text, arguments = compiled(statement.limit(50))
        nodes = await plan_of(database, text, *arguments, settings={"jit": "off"})
        assert used(nodes) == {"task_dead"}
        assert {node["Node Type"] for node in nodes} & {"Seq Scan", "Sort"} == set()


async def test_a_batch_costs_the_same_in_a_large_table(database: Database) -> None:
    """Architecture: bounded state: buffers touched do not grow with what is stored."""
    statement = lane.statement_of(_batch(), {})
    async with database.other() as connection:
        for name, value in lane._SETTINGS.items():
            await connection.execute(f"SET {name} = '{value}'")
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("UPDATE run SET updated_us = 0 WHERE id = $1::text::uuid", ID)
        plan = await connection.fetchval(
            f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement.text}", ID, 1, *statement.parameters
        )
        await transaction.rollback()
    top = json.loads(plan)[0]["Plan"]
    assert top["Shared Hit Blocks"] + top["Shared Read Blocks"] < 400
