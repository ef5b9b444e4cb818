"""Both forms of the writing statement write the same rows: plain parameters and arrays (see store.single)."""

import copy
from typing import Any

import asyncpg
import pytest

from millstream.domain.artifacts import Artifact, Visibility
from millstream.domain.batch import Batch, KeyClaim, Limits
from millstream.domain.retry import RetryPolicy
from millstream.domain.runs import Attempt, AttemptStatus, EventType, Run, RunKind, RunStatus, Task, TaskStatus
from millstream.store import migrations, single
from millstream.store.embedded import EmbeddedPostgres
from millstream.store.lane import PostgresLane

NOW = 1_795_000_000_000_000
RUN, TASK, OTHER, ARTIFACT, LANE = (f"01a1fb00-0000-7000-8000-00000000000{n}" for n in range(5))
TABLES = ("run", "task", "artifact", "event", "attempt", "idempotency")


def _batch() -> Batch:
    return Batch(NOW, LANE, Limits(), lambda task: None, lambda task: None, lambda: 0.5)


def _made(rich: bool) -> Batch:
    """A run with a task, an artifact, an attempt and a key: with defaults in the rare columns, or without."""
    batch = _batch()
    run = Run(RUN, "t", RunKind.CASCADE, NOW, "me", updated_us=NOW, waiters=(LANE,) if rich else ())
    batch.add_run(run)
    task = Task(
        TASK, RUN, "t", "agent:a", "q", NOW, run.day, agent="a", artifact_ids=(ARTIFACT, OTHER), input=b"\x08\0"
    )
    artifact = Artifact(ARTIFACT, "t", RUN, 1, "Order", 1, b"\x0a\0", "external", Visibility(), (), "", NOW)
    if rich:
        run.labels, run.error_code, run.error_message, run.keep_until_us = '{"a":"b"}', "X", 'said "no" \\', NOW + 1
        task.labels, task.start_by_us, task.limited, task.retry = '{"ä":"{}"}', NOW + 5, True, RetryPolicy(factor=3)
        artifact.tags, artifact.partition_key = ("a", 'b"c', "{d,e}", "NULL"), 'p\\"q'
        artifact.visibility = Visibility("Private", agents=("x", "y"))
    batch.touch(run, task)
    batch.new_tasks.add(TASK)
    batch.artifacts.append(artifact)
    batch.record(run, EventType.ARTIFACT_PUBLISHED, artifact_id=ARTIFACT, data='{"type":"Order"}')
    batch.attempts.append(
        Attempt(
            TASK, 1, run.day, AttemptStatus.FAILED, NOW, NOW + 7, "w", "E" if rich else "", "", b"out" if rich else b""
        )
    )
    claim = KeyClaim("t", "me", "Publish", 'k"\\', b"\x00\xff" * 8, '["a"]', NOW + 9)
    batch.claims[claim.id] = claim
    return batch


def _changed(made: Batch) -> Batch:
    """The same run and task, changed."""
    batch = _batch()
    batch.now_us = NOW + 1000
    run, task = copy.copy(made.dirty_runs[RUN]), copy.copy(made.dirty_tasks[TASK])
    run.stored_us = NOW
    batch.runs[RUN], batch.tasks[TASK] = run, task
    task.status, task.attempt, task.delivered, task.worker_name = TaskStatus.RUNNING, 4, True, 'w "x"'
    run.status, run.failed_tasks, run.cancel_by_us = RunStatus.CANCELLING, 2, NOW + 8
    batch.touch(run, task)
    batch.record(run, EventType.TASK_STARTED, task_id=TASK, attempt=4)
    return batch


async def _written(server: EmbeddedPostgres, name: str, rich: bool) -> dict[str, list[dict[str, Any]]]:
    """What both batches leave in a database of their own."""
    admin = await asyncpg.connect(server.url)
    await admin.execute(f"CREATE DATABASE {name}")
    await admin.close()
    url = server.url.replace("/millstream?", f"/{name}?")
    await migrations.upgrade(url)
    lane = PostgresLane(url, LANE)
    await lane.open()
    made = _made(rich)
    await lane.write(lane.prepare(made, {}))
    await lane.write(lane.prepare(_changed(made), {}))
    await lane.close()
    connection = await asyncpg.connect(url)
    found = {
        table: [dict(row) for row in await connection.fetch(f"SELECT * FROM {table} ORDER BY 1, 2")] for table in TABLES
    }
    await connection.close()
    return found


@pytest.mark.parametrize("rich", [False, True])
async def test_both_forms_write_the_same_rows(rich: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of one must not differ from the same command in a batch of many."""
    async with EmbeddedPostgres(ephemeral=True) as server:
        plain = await _written(server, "plain", rich)
        monkeypatch.setattr(single, "fits", lambda rows: False)
        arrays = await _written(server, "arrays", rich)
    assert plain == arrays
    assert [len(plain[table]) for table in TABLES] == [1, 1, 1, 3, 1, 1]
