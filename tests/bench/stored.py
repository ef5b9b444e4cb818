"""Rows of starts: in a database that has stored nothing, and in one with ten million finished runs."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import asyncpg
from tests.bench import rpc
from tests.bench.acks import Acks
from tests.bench.flows import define
from tests.bench.load import closed_loop, ensure
from tests.bench.report import Aim, Load, Result, Results, Row
from tests.bench.stand import Stand
from tests.bench.verify import verified
from tests.proxy import free_port

from millstream.cli import programs
from millstream.v1.workflow_service_pb2 import ExecuteWorkflowRequest, ExecuteWorkflowResponse

STORED_RUNS = 10_000_000
_TOLERANCE = 0.15
_CALLERS = 8
_CHUNK = 200_000
_RUN_BYTES = 3_000
"""Room on the disk that a run needs, its share of the log included."""
_AGE_US = 5 * 86_400_000_000
"""They began within the last five days: retention, of seven, leaves them alone."""
_EXECUTE = "/millstream.v1.WorkflowService/ExecuteWorkflow"
_Prepare = Callable[[Stand], contextlib.AbstractAsyncContextManager[Load]]
# Ids are of version 7 as the server's are: the time in milliseconds, then what tells them apart.
_RUN_ID = "(lpad(to_hex(at / 1000), 12, '0') || '70008' || lpad(to_hex(n), 15, '0'))::uuid"
_TASK_ID = "(lpad(to_hex(at / 1000), 12, '0') || '70009' || lpad(to_hex(n), 15, '0'))::uuid"
_DAY = "(at / 86400000000)::int"
_COLUMNS = """SELECT attname FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0
AND NOT attisdropped AND attgenerated = '' ORDER BY attnum"""
_NEW = {
    "run": {"id": _RUN_ID},
    "task": {"id": _TASK_ID, "run_id": _RUN_ID, "day": _DAY},
    "run_payload": {"run_id": _RUN_ID, "day": _DAY},
    "event": {"run_id": _RUN_ID, "day": _DAY, "task_id": f"CASE WHEN task_id IS NOT NULL THEN {_TASK_ID} END"},
}
"""What a copy of a row has of its own, beside its times; n is its number, at its run's beginning."""
_OF = {
    "run": "id = $1",
    "task": "run_id = $1",
    "run_payload": "run_id = $1",
    # The first and the last: the others would add nothing but length.
    "event": "run_id = $1 AND (seq = 1 OR seq = (SELECT last_seq FROM run WHERE id = $1))",
}
_TIMES = frozenset({"created_us", "updated_us", "started_us", "finished_us", "run_at_us", "at_us"})


async def _copies(connection: asyncpg.Connection[Any], table: str, run_id: Any, began_us: int) -> str:
    """The statement that copies a run's rows of a table, for numbers from $2 up to $3, $4 us apart from $5 on."""
    chosen = []
    columns = [row["attname"] for row in await connection.fetch(_COLUMNS, table)]
    for column in columns:
        if column in _NEW[table]:
            chosen.append(_NEW[table][column])
        elif column in _TIMES:
            chosen.append(f"CASE WHEN {column} > 0 THEN at + {column} - {began_us} ELSE 0 END")
        else:
            chosen.append(column)
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(chosen)} "
        f"FROM (SELECT n, $5::int8 + n * $4::int8 AS at FROM generate_series($2::int8, $3::int8 - 1) n) numbers, "
        f"(SELECT * FROM {table} WHERE {_OF[table]}) kept"
    )


async def fill(connection: asyncpg.Connection[Any], count: int) -> None:
    """Store so many runs, each as the finished one that is there."""
    run = await connection.fetchrow("SELECT id, created_us FROM run WHERE finished_us > 0 LIMIT 1")
    ensure(run is not None, "no run has ended", "")
    assert run is not None
    statements = [await _copies(connection, table, run["id"], run["created_us"]) for table in _NEW]
    first_us, step_us = run["created_us"] - _AGE_US, max(1, _AGE_US // max(1, count))
    # It need not outlast a crash, and its statistics are taken at the end.
    await connection.execute("SET synchronous_commit = off")
    for at in range(0, count, _CHUNK):
        for statement in statements:
            await connection.execute(statement, run["id"], at, min(count, at + _CHUNK), step_us, first_us)
    # What autovacuum does sooner or later, so that no figure depends on when.
    await connection.execute("VACUUM (ANALYZE)")
    await connection.execute("CHECKPOINT")


@contextlib.asynccontextmanager
async def _database(stand: Stand, name: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A database of its own, dropped at the end: what is stored there costs the other rows nothing."""
    admin = await stand.connect()
    await admin.execute(f"CREATE DATABASE {name}")
    try:
        yield admin
    finally:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


@contextlib.asynccontextmanager
async def _service(stand: Stand, name: str) -> AsyncIterator[tuple[int, Acks]]:
    """A server on that database with a worker; its port."""
    layout = replace(stand.layout, grpc_ports=(free_port(),), database_url=stand.url(name))
    kind, acks = name.replace("_", "."), Acks()
    async with (
        stand.program(programs.server(layout, 0), "server"),
        stand.worker(layout.grpc_ports[0], kind, acks),
    ):
        await define(layout.grpc_ports[0], {"name": "one", "steps": [{"id": "do", "kind": "task", "task": kind}]})
        yield layout.grpc_ports[0], acks


def _starting(name: str, stored: int) -> _Prepare:
    request = ExecuteWorkflowRequest(workflow_id="one")
    request.input.struct_value.update({"number": 17})
    raw = request.SerializeToString()

    @contextlib.asynccontextmanager
    async def prepare(stand: Stand) -> AsyncIterator[Load]:
        room = shutil.disk_usage(stand.base).free
        ensure(room > stored * _RUN_BYTES, f"{stored:,} runs need more room on the disk (see --stored-runs)", room)
        async with (
            _database(stand, name),
            _service(stand, name) as (port, acks),
            rpc.method(port, _EXECUTE) as execute,
        ):

            async def once() -> None:
                ensure(bool(ExecuteWorkflowResponse.FromString(await execute(raw)).run_id), "start", "")

            async def load(seconds: float) -> Any:
                first, start = acks.total, time.monotonic()
                began = await closed_loop([once] * _CALLERS, seconds)
                end = await acks.until(first + began.ops)
                began.notes["starts/s"] = began.ops / began.seconds
                began.seconds = max(began.seconds, end - start)
                return began

            connection = await stand.connect(name)
            if stored:
                await load(0.1)
                started = time.monotonic()
                await fill(connection, stored)
                size = await connection.fetchval("SELECT pg_database_size(current_database())")
                print(
                    f"  {stored:,} runs stored in {time.monotonic() - started:.0f} s, {size / 1e9:.1f} GB", flush=True
                )
            yield load
            if not stored:
                _, faults = await verified(connection, None)
                ensure(not faults, "the database afterwards", faults)
            await connection.close()

    return prepare


def _as_before(result: Result, results: Results) -> bool | None:
    base = results.get("start-empty")
    if base is None:
        return None
    return result.p50_ms <= base.p50_ms * (1 + _TOLERANCE)


def rows(stored: int) -> list[Row]:
    """The two, measured in turn."""
    title = f"runs of one step started over gRPC ({_CALLERS} clients) and done; ms: the start"
    return [
        Row("start-empty", f"{title}; a database that had nothing stored", _starting("bench_empty", 0), group="start"),
        Row("start-stored", f"{title}; with {stored:,} finished runs stored", _starting("bench_stored", stored),
            group="start", aim=Aim("p50 within 15 % of start-empty", _as_before)),
    ]  # fmt: skip
