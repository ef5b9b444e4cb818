"""One key, many callers at once, on every door of both servers: one cascade (FL-8)."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter

import asyncpg
import pytest
from tests.crash.cluster import Cluster
from tests.crash.history import Op
from tests.crash.load import Retry, doors_to
from tests.crash.summary import Row

pytestmark = [pytest.mark.crash, pytest.mark.slow]

CALLERS = 50


@pytest.mark.parametrize("kind", ["order", "sync", "task"])
@pytest.mark.parametrize("rounds", [2, pytest.param(50, marks=pytest.mark.soak)])
async def test_concurrent_calls_with_one_key_make_one_cascade(
    cluster: Cluster, rows: list[Row], kind: str, rounds: int
) -> None:
    await cluster.heal()
    targets = {server.name: server.target for server in cluster.servers}
    assert cluster.envoy is not None
    async with doors_to(cluster.envoy.url, {"grpc": cluster.envoy.target} | targets) as doors:
        for _ in range(rounds):
            order = str(uuid.uuid4())
            ops = [Op(number, kind, "", [order]) for number in range(CALLERS)]

            async def call(op: Op) -> None:
                door = doors[op.number % len(doors)]
                for _ in range(5):
                    try:
                        await getattr(door, kind)(op)
                    except Retry:
                        await asyncio.sleep(0.1)
                    else:
                        return

            await asyncio.gather(*map(call, ops))
            told = Counter((each.id, each.run) for op in ops for each in op.stored)
            assert len(told) == 1, told
            assert told.total() == CALLERS
            await _one_cascade(cluster, order, kind)
            if kind == "sync":
                assert {frozenset(op.cascade) for op in ops} == {frozenset(ops[0].cascade)}
                assert len(ops[0].cascade) == 4
    rows.append(Row(f"one key, {CALLERS} callers, {kind}", operations=CALLERS * rounds, acknowledged=rounds))


async def _one_cascade(cluster: Cluster, order: str, kind: str) -> None:
    await cluster.drain()
    lines = [line for line in cluster.executions.read_text().splitlines() if order in line]
    connection = await asyncpg.connect(cluster.url)
    try:
        keys = await connection.fetchval("SELECT count(*) FROM idempotency WHERE key = $1", f"key-{order}")
        stored = await connection.fetchval(
            "SELECT count(*) FROM artifact WHERE position($1::bytea IN payload) > 0", order.encode()
        )
    finally:
        await connection.close()
    assert keys == 1
    assert stored == (0 if kind == "task" else 4)
    # Nobody died, so nothing ran twice but what stumbled on purpose.
    assert len(set(lines)) - sum('"attempt": 2' in line for line in lines) == (1 if kind == "task" else 3)
