"""kill -9 of any process in the middle of load, at random moments: nothing acknowledged is lost, nothing happens twice,
every cascade finishes (architecture.md, invariants; FV-19, FL-8)."""

from __future__ import annotations

import asyncio
import random

import pytest
from tests.crash.cluster import Cluster
from tests.crash.processes import Child
from tests.crash.summary import Row

pytestmark = [pytest.mark.crash, pytest.mark.slow]

QUICK, LONG = 2, 25
rounds_of = pytest.mark.parametrize("rounds", [QUICK, pytest.param(LONG, marks=pytest.mark.soak)])


async def _kill_in_turns(
    cluster: Cluster, rows: list[Row], name: str, victims: list[Child], rounds: int, seed: int
) -> None:
    chance = random.Random(seed)
    async with cluster.scenario(name, seed, rows) as scenario:
        for number in range(rounds):
            await asyncio.sleep(chance.uniform(0.2, 1.0))
            victim = victims[number % len(victims)]
            await scenario.kill(victim)
            await asyncio.sleep(chance.uniform(0, 0.7))
            await victim.start()
        await scenario.load.acknowledged(20)


@rounds_of
async def test_a_killed_server_loses_and_repeats_nothing(cluster: Cluster, rows: list[Row], rounds: int) -> None:
    await _kill_in_turns(cluster, rows, "kill -9 server", [*cluster.servers], rounds, seed=1)


@rounds_of
async def test_a_killed_worker_loses_and_repeats_nothing(cluster: Cluster, rows: list[Row], rounds: int) -> None:
    await _kill_in_turns(cluster, rows, "kill -9 worker", [*cluster.workers], rounds, seed=2)


@rounds_of
async def test_a_killed_envoy_loses_and_repeats_nothing(cluster: Cluster, rows: list[Row], rounds: int) -> None:
    assert cluster.envoy is not None
    await _kill_in_turns(cluster, rows, "kill -9 envoy", [cluster.envoy], rounds, seed=3)


@rounds_of
async def test_a_killed_postgresql_recovers_and_loses_and_repeats_nothing(
    cluster: Cluster, rows: list[Row], rounds: int
) -> None:
    await _kill_in_turns(cluster, rows, "kill -9 postgres", [cluster.postgres], rounds, seed=4)
