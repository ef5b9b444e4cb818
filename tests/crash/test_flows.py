"""Runs of workflows, of definitions and of code, under the same faults as cascades: each acknowledged run ends as it
must, each step has its effect once, and nothing is left that somebody would have to look at (FV-19, WM-3, FV-18)."""

from __future__ import annotations

import asyncio
import random
import signal

import pytest
from tests.crash.cluster import LEASE_S, Cluster
from tests.crash.flows import DEFINITIONS
from tests.crash.processes import Child, until
from tests.crash.summary import Row
from tests.crash.test_points import POINTS, arm
from tests.crash.wire import Wire

from millstream.sdk import Client, NotFoundError

pytestmark = [pytest.mark.crash, pytest.mark.slow]

KINDS = {"flow": 45, "undone": 15, "code": 40}
PAUSE_S = 0.15
"""A run of these is ten of the usual operations."""


async def know(cluster: Cluster) -> None:
    """Have the workflows saved, and the code registered, and both known to each server."""
    await cluster.heal()
    for server in cluster.servers:
        async with Client(server.target) as client:
            for definition in DEFINITIONS:
                await client.workflows.apply(definition)

            async def served(client: Client = client) -> bool:
                try:
                    run = await client.runs.start("crash.code", {"key": "first"}, wait=20.0)
                except NotFoundError:
                    return False
                assert (run.status, run.error) == ("COMPLETED", None)
                return True

            await until("the code is registered", served)


@pytest.fixture(scope="module")
async def flows(cluster: Cluster) -> Cluster:
    """The usual cluster, which knows the workflows."""
    await know(cluster)
    return cluster


@pytest.fixture(scope="module")
async def armed_flows(armed: Cluster) -> Cluster:
    """The servers that can be told where to die, which know the workflows."""
    await know(armed)
    return armed


async def _kill_in_turns(flows: Cluster, rows: list[Row], name: str, victims: list[Child], rounds: int) -> None:
    chance = random.Random(name)
    async with flows.scenario(name, 11, rows, clients=4, kinds=KINDS, pause_s=PAUSE_S) as scenario:
        for number in range(rounds):
            await asyncio.sleep(chance.uniform(0.2, 1.0))
            victim = victims[number % len(victims)]
            await scenario.kill(victim)
            await asyncio.sleep(chance.uniform(0, 0.7))
            with scenario.load.light():
                await victim.start()
        await scenario.load.acknowledged(10)


rounds_of = pytest.mark.parametrize("rounds", [2, pytest.param(25, marks=pytest.mark.soak)])


@rounds_of
async def test_workflows_outlive_a_killed_server(flows: Cluster, rows: list[Row], rounds: int) -> None:
    await _kill_in_turns(flows, rows, "workflows, kill -9 server", [*flows.servers], rounds)


@rounds_of
async def test_workflows_outlive_a_killed_worker(flows: Cluster, rows: list[Row], rounds: int) -> None:
    await _kill_in_turns(flows, rows, "workflows, kill -9 worker", [*flows.workers], rounds)


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.soak)])
@pytest.mark.parametrize("what", ["server", "worker"])
async def test_workflows_go_on_when_one_is_stopped_for_longer_than_a_lease(
    flows: Cluster, rows: list[Row], what: str, rounds: int
) -> None:
    """What the stopped one still says, and is told again, has no second effect."""
    victims: list[Child] = [*flows.servers] if what == "server" else [*flows.workers]
    name = f"workflows, SIGSTOP {what}"
    async with flows.scenario(name, 12, rows, clients=4, kinds=KINDS, pause_s=PAUSE_S) as scenario:
        for number in range(rounds):
            victim = victims[number % 2]
            victim.signal(signal.SIGSTOP)
            scenario.note(f"SIGSTOP {victim.name}")
            try:
                await asyncio.sleep(LEASE_S + 1.0)
            finally:
                victim.signal(signal.SIGCONT)
            await scenario.load.acknowledged(10)


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.soak)])
async def test_workflows_outlive_a_server_that_dies_at_any_point_of_the_committer(
    armed_flows: Cluster, rows: list[Row], rounds: int
) -> None:
    chance = random.Random(13)
    cluster = armed_flows
    name = "workflows, crash at points"
    async with cluster.scenario(name, 13, rows, clients=4, kinds=KINDS, pause_s=PAUSE_S) as scenario:
        for number, (point, owner_path) in enumerate(POINTS * rounds):
            server = cluster.servers[number % 2]
            arm(server, point, owner_path, chance.randint(1, 30))
            assert await server.ended(30) == -signal.SIGKILL
            scenario.note(f"{point}, {'owner' if owner_path else 'locked'}")
            with scenario.load.light():
                await server.start()
        await scenario.load.acknowledged(10)


@pytest.mark.parametrize("cuts", [8, pytest.param(200, marks=pytest.mark.soak)])
async def test_what_is_written_again_after_a_cut_changes_no_workflow_twice(
    armed_flows: Cluster, wire: Wire, rows: list[Row], cuts: int
) -> None:
    """Duplicate delivery: of completions, of decisions that go with them, of activations' answers."""
    name = "workflows, cut at the commit"
    async with armed_flows.scenario(name, 14, rows, clients=4, kinds=KINDS, pause_s=PAUSE_S) as scenario:
        before = wire.cuts.total()
        wire.chance = 0.03
        try:
            async with asyncio.timeout(30 + cuts):
                while wire.cuts.total() - before < cuts:
                    await scenario.load.acknowledged(1)
        finally:
            wire.chance = 0.0
            scenario.faults += wire.cuts.total() - before
