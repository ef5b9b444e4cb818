"""The checker finds what it is there for: each fault, planted into a clean history, is told by its name."""

from __future__ import annotations

from pathlib import Path

import asyncpg
import pytest
from tests.crash import checker
from tests.crash.cluster import Cluster
from tests.crash.history import Op, read
from tests.crash.summary import Row

pytestmark = [pytest.mark.crash, pytest.mark.slow]

_ANY = """(SELECT run_id FROM artifact WHERE type = 'Order'
AND run_id IN (SELECT id FROM run WHERE created_us >= {since}) LIMIT 1)"""
PLANTED = {
    "a lost artifact": ("losses", f"DELETE FROM artifact WHERE type = 'Order' AND run_id = {_ANY}"),
    "a lost cascade": (
        "losses",
        f"""WITH r AS {_ANY}, a AS (DELETE FROM artifact WHERE run_id IN (SELECT * FROM r)),
        t AS (DELETE FROM task WHERE run_id IN (SELECT * FROM r)),
        e AS (DELETE FROM event WHERE run_id IN (SELECT * FROM r)) DELETE FROM run WHERE id IN (SELECT * FROM r)""",
    ),
    "a doubled order": (
        "duplicates",
        f"""INSERT INTO artifact SELECT tenant, gen_random_uuid(), run_id, seq, type, version, payload, produced_by,
        visibility_kind, visibility, tags, partition_key, created_us FROM artifact WHERE run_id = {_ANY}""",
    ),
    "a missing event": ("gaps", f"DELETE FROM event WHERE seq = 3 AND run_id = {_ANY}"),
    "an event doubled": (
        "duplicates",
        f"""INSERT INTO event SELECT day + 1, run_id, seq, type, at_us, task_id, artifact_id, attempt, data FROM event
        WHERE seq = 3 AND run_id = {_ANY}""",
    ),
    "an open run": ("unfinished", f"UPDATE run SET status = 1 WHERE id = {_ANY}"),
    "an open task": ("unfinished", f"UPDATE task SET status = 3, finished_us = 0 WHERE run_id = {_ANY}"),
    "a wrong counter": ("others", f"UPDATE run SET artifact_count = artifact_count + 1 WHERE id = {_ANY}"),
    "a missing result": ("unfinished", f"DELETE FROM artifact WHERE type = 'Notification' AND run_id = {_ANY}"),
    "a lost key": (
        "losses",
        "DELETE FROM idempotency WHERE key = (SELECT key FROM idempotency WHERE created_us >= {since} LIMIT 1)",
    ),
    "an attempt that began twice": (
        "others",
        f"UPDATE event SET attempt = 7 WHERE type = 4 AND run_id = {_ANY}",
    ),
}


@pytest.fixture(scope="module")
async def clean(cluster: Cluster) -> tuple[str, list[Op], int]:
    """A clean history: URL, operations, since when."""
    rows: list[Row] = []
    since_us = await checker.now_us(cluster.url)
    async with cluster.scenario("clean", 10, rows, clients=4) as scenario:
        await scenario.load.acknowledged(60)
    return cluster.url, read(scenario.history.path), since_us


@pytest.mark.parametrize("name", PLANTED)
async def test_a_planted_fault_is_found(clean: tuple[str, list[Op], int], name: str) -> None:
    url, ops, since_us = clean
    kind, statement = PLANTED[name]
    connection = await asyncpg.connect(url)
    try:
        transaction = connection.transaction()
        await transaction.start()
        changed = await connection.execute(statement.replace("{since}", str(since_us)))
        assert not changed.endswith(" 0"), changed
        verdict = await checker.judge(connection, ops, None, since_us)
        await transaction.rollback()
    finally:
        await connection.close()
    assert getattr(verdict, kind), verdict.faults


async def test_an_execution_twice_under_one_fence_is_found(
    clean: tuple[str, list[Op], int], cluster: Cluster, tmp_path: Path
) -> None:
    url, ops, since_us = clean
    lines = cluster.executions.read_text()
    doubled = tmp_path / "executions.jsonl"
    doubled.write_text(lines + lines.splitlines()[-1] + "\n")
    assert not (await checker.check(url, ops, cluster.executions, since_us)).faults
    assert (await checker.check(url, ops, doubled, since_us)).others
