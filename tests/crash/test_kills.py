"""kill -9 of any process in the middle of load, at random moments: nothing acknowledged is lost, nothing happens twice,
every cascade finishes (architecture.md, invariants; FV-19, FL-8)."""

from __future__ import annotations

import asyncio
import os
import random
import signal

import asyncpg
import pytest
from tests.crash.cluster import Cluster
from tests.crash.processes import Child
from tests.crash.summary import Row

pytestmark = [pytest.mark.crash, pytest.mark.slow]

QUICK, LONG = 2, 25
_BACKENDS = """SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"""
rounds_of = pytest.mark.parametrize("rounds", [QUICK, pytest.param(LONG, marks=pytest.mark.soak)])


async def _kill_in_turns(
    cluster: Cluster, rows: list[Row], name: str, victims: list[Child], rounds: int, seed: int
) -> None:
    chance = random.Random(seed)
    async with cluster.scenario(name, seed, rows, clients=6) as scenario:
        for number in range(rounds):
            await asyncio.sleep(chance.uniform(0.2, 1.0))
            victim = victims[number % len(victims)]
            await scenario.kill(victim)
            await asyncio.sleep(chance.uniform(0, 0.7))
            with scenario.load.light():
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


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.soak)])
async def test_a_killed_backend_takes_all_down_and_loses_and_repeats_nothing(
    cluster: Cluster, rows: list[Row], rounds: int
) -> None:
    """kill -9 of one of PostgreSQL's processes: it ends all others, and recovers."""
    chance = random.Random(5)
    async with cluster.scenario("kill -9 backend", 5, rows, clients=6) as scenario:
        for _ in range(rounds):
            await asyncio.sleep(chance.uniform(0.2, 1.0))
            connection = await asyncpg.connect(cluster.url)
            try:
                pids = [row["pid"] for row in await connection.fetch(_BACKENDS)]
            finally:
                await connection.close()
            scenario.note("kill -9 backend")
            os.kill(chance.choice(pids), signal.SIGKILL)
            await cluster.postgres.wait_ready()
            await scenario.load.acknowledged(20)


@rounds_of
async def test_a_rolling_restart_loses_and_repeats_nothing(cluster: Cluster, rows: list[Row], rounds: int) -> None:
    """SIGTERM to one server after the other, as an upgrade does."""
    async with cluster.scenario("SIGTERM server", 6, rows, clients=6) as scenario:
        for number in range(rounds):
            server = cluster.servers[number % 2]
            server.signal(signal.SIGTERM)
            scenario.note(f"SIGTERM {server.name}")
            assert await server.ended(30) == 0
            with scenario.load.light():
                await server.start()
            await scenario.load.acknowledged(5)
    # Whoever comes at the wrong moment is told to come again (or waits too long for a busy machine), nothing else.
    assert scenario.history.errors.keys() <= {"UNAVAILABLE", "TIMEOUT", "ReadTimeout"}


@pytest.mark.parametrize("faults", [5, pytest.param(80, marks=pytest.mark.soak)])
async def test_any_faults_in_any_order_lose_and_repeat_nothing(cluster: Cluster, rows: list[Row], faults: int) -> None:
    """Several things dead or stopped at once, started again one by one."""
    assert cluster.envoy is not None
    chance = random.Random(7)
    victims: list[Child] = [*cluster.servers, *cluster.workers, cluster.envoy, cluster.postgres]
    starting: set[asyncio.Task[None]] = set()
    async with cluster.scenario("any of them", 7, rows, clients=6) as scenario:
        for _ in range(faults):
            await asyncio.sleep(chance.uniform(0.1, 0.8))
            victim = chance.choice(victims)
            if not victim.alive:
                continue
            if chance.random() < 0.3 and victim in cluster.servers:
                scenario.note(f"SIGSTOP {victim.name}")
                starting.add(asyncio.create_task(_go_on(victim, chance.uniform(0.5, 4.0))))
            else:
                await scenario.kill(victim)
                starting.add(asyncio.create_task(_start(victim, chance.uniform(0, 1.5))))
        await asyncio.gather(*starting)
        await scenario.load.acknowledged(20)


async def _go_on(victim: Child, after_s: float) -> None:
    pid = victim.pid
    victim.signal(signal.SIGSTOP)
    await asyncio.sleep(after_s)
    if victim.alive and victim.pid == pid:
        victim.signal(signal.SIGCONT)


async def _start(victim: Child, after_s: float) -> None:
    await asyncio.sleep(after_s)
    await victim.revive()
