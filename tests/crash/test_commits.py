"""The connection to PostgreSQL lost at the commit (engine-rules 3): what was committed is not done again, what was not
is, and nothing is acknowledged that is not there."""

from __future__ import annotations

import asyncio
import random

import asyncpg
import pytest
from tests.crash.cluster import Cluster
from tests.crash.summary import Row
from tests.crash.wire import CUTS, Wire

pytestmark = [pytest.mark.crash, pytest.mark.slow]

_TERMINATE = """SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND (query LIKE $1 OR random() < 0.1)
ORDER BY random() LIMIT 2) lanes"""


@pytest.mark.parametrize("cuts", [12, pytest.param(400, marks=pytest.mark.soak)])
async def test_a_connection_cut_at_the_commit_leaves_no_loss_and_no_duplicate(
    armed: Cluster, wire: Wire, rows: list[Row], cuts: int
) -> None:
    async with armed.scenario("cut at the commit", 8, rows, joiners=2) as scenario:
        before = wire.cuts.total()
        wire.chance = 0.03
        try:
            async with asyncio.timeout(30 + cuts):
                while wire.cuts.total() - before < cuts:
                    await scenario.load.acknowledged(1)
        finally:
            wire.chance = 0.0
            scenario.faults += wire.cuts.total() - before
    assert all(wire.cuts[cut] for cut in CUTS)


@pytest.mark.parametrize("rounds", [8, pytest.param(150, marks=pytest.mark.soak)])
async def test_a_terminated_backend_leaves_no_loss_and_no_duplicate(
    cluster: Cluster, rows: list[Row], rounds: int
) -> None:
    """Busy lanes lose a batch under way; idle ones find out at their next."""
    chance = random.Random(9)
    for name, clients, pause_s in (("terminate busy", 8, 0.04), ("terminate idle", 3, 0.5)):
        async with cluster.scenario(f"{name} backend", 9, rows, clients=clients, pause_s=pause_s) as scenario:
            for _ in range(rounds):
                await asyncio.sleep(chance.uniform(0.05, 0.4))
                connection = await asyncpg.connect(cluster.url)
                try:
                    scenario.faults += await connection.fetchval(_TERMINATE, "%commit_batch%")
                finally:
                    await connection.close()
            await scenario.load.acknowledged(10)
