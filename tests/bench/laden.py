"""Rows again, with a million artifacts and a million finished tasks stored, and while an old snapshot is held."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence

from tests.bench import rpc
from tests.bench.artifacts import grpc_load
from tests.bench.load import closed_loop
from tests.bench.report import Aim, Load, Result, Results, Row
from tests.bench.stand import ORDER, Stand

STORED = 1_000_000
"""Artifacts, and finished tasks, that the usual run stores first."""
_TOLERANCE = 0.15
_ROWS = (
    "tasks-c4", "task-one", "sync-rest-c1", "sync-rest-c64", "sync-grpc-c64", "publish-rest-c32", "publish-key-c32",
    "batch-rest-c4", "batch-grpc-c4",
)  # fmt: skip
_BY_LATENCY = frozenset({"task-one", "sync-rest-c1"})
_Prepare = Callable[[Stand], contextlib.AbstractAsyncContextManager[Load]]
_COUNTS = "SELECT (SELECT count(*) FROM artifact), (SELECT count(*) FROM task WHERE finished_us > 0)"


async def fill(stand: Stand, stored: int) -> None:
    """Publish artifacts and have tasks done until so many of each are stored, the way that clients do."""
    connection = await stand.connect()
    artifacts, tasks = await connection.fetchrow(_COUNTS)  # type: ignore[misc]
    if artifacts < stored:
        raw = rpc.batch_request("Receipt", ORDER, 100)
        async with grpc_load(rpc.BATCH, raw, 8, lambda answer: rpc.batched(answer, 100), 100)(stand) as load:
            while artifacts < stored:
                artifacts += (await load(2.0)).ops
    if tasks < stored:
        request = rpc.tasks_request("bench.near", {"number": 1}, 100)
        async with rpc.method(stand.grpc_port, rpc.CREATE_TASKS) as create:

            async def once() -> None:
                rpc.tasks_created(await create(request), 100)

            while tasks < stored:
                first = stand.near.total
                made = (await closed_loop([once] * 4, 2.0, 100)).ops
                await stand.near.until(first + made)
                tasks += made
    # What autovacuum does sooner or later, so that no figure depends on when.
    await connection.execute("VACUUM (ANALYZE)")
    await connection.close()


def _laden(prepare: _Prepare, stored: int) -> _Prepare:
    @contextlib.asynccontextmanager
    async def laden(stand: Stand) -> AsyncIterator[Load]:
        await fill(stand, stored)
        async with prepare(stand) as load:
            yield load

    return laden


def _held(prepare: _Prepare, stored: int) -> _Prepare:
    """With a snapshot of before the row, as a dump has one: no version of a row since then can be removed."""

    @contextlib.asynccontextmanager
    async def held(stand: Stand) -> AsyncIterator[Load]:
        await fill(stand, stored)
        connection = await stand.connect()
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            await connection.fetchval("SELECT count(*) FROM (SELECT 1 FROM run LIMIT 1) one")
            async with prepare(stand) as load:
                yield load
        await connection.close()

    return held


def _as_before(name: str) -> Aim:
    def judge(result: Result, results: Results) -> bool | None:
        base = results.get(name)
        if base is None:
            return None
        if name in _BY_LATENCY:
            return result.p50_ms <= base.p50_ms * (1 + _TOLERANCE)
        return result.median.value >= base.median.value * (1 - _TOLERANCE)

    return Aim(f"within 15 % of {name}", judge)


def rows(before: Sequence[Row], stored: int) -> list[Row]:
    """The rows again, laden and with a snapshot held."""
    chosen = [row for row in before if row.name in _ROWS]
    found: list[Row] = []
    for prefix, title, around in (
        ("laden", f"with {stored:,} artifacts and tasks stored", _laden),
        ("held", "and while a snapshot of before is held", _held),
    ):
        found += [
            dataclasses.replace(
                row, name=f"{prefix}-{row.name}", title=f"{row.name} {title}", prepare=around(row.prepare, stored),
                aim=_as_before(row.name), floor=None, remark="", group=prefix,
            )
            for row in chosen
        ]  # fmt: skip
    return found
