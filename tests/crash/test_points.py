"""A server that dies, or is stopped, at each point of the committer, on either path (architecture.md, "The life of a
write"): before the write, inside the transaction, before the commit, after it, before and after the push."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path

import psutil
import pytest
from tests.crash.cluster import Cluster
from tests.crash.processes import Server, until
from tests.crash.summary import Row

pytestmark = [pytest.mark.crash, pytest.mark.slow]

OWNER = ("before write", "after write", "before push", "after push")
LOCKED = ("inside transaction", "before commit", "after write", "before push", "after push")
POINTS = [*((point, True) for point in OWNER), *((point, False) for point in LOCKED)]
NAMES = [f"{point} on the {'owner' if owner else 'locked'} path" for point, owner in POINTS]


def arm(server: Server, point: str, owner_path: bool, nth: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Tell a server where its end is."""
    orders = {"point": point, "nth": nth, "signal": int(number), "owner_path": owner_path}
    Path(server.env["CRASH_ARM"]).write_text(json.dumps(orders))
    server.signal(signal.SIGUSR1)


async def stopped(server: Server, timeout_s: float = 30.0) -> None:
    """Wait until a server has stopped itself."""
    process = psutil.Process(server.pid)

    async def done() -> bool:
        return bool(process.status() == psutil.STATUS_STOPPED)

    await until(f"{server.name} has stopped itself", done, timeout_s)


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.soak)])
@pytest.mark.parametrize(("point", "owner_path"), POINTS, ids=NAMES)
async def test_a_server_that_dies_there_loses_and_repeats_nothing(
    armed: Cluster, rows: list[Row], point: str, owner_path: bool, rounds: int
) -> None:
    chance = random.Random(f"{point}/{owner_path}")
    name = f"crash {point}, {'owner' if owner_path else 'locked'}"
    async with armed.scenario(name, 5, rows, clients=5) as scenario:
        for number in range(rounds):
            server = armed.servers[(number + POINTS.index((point, owner_path))) % 2]
            arm(server, point, owner_path, chance.randint(1, 60))
            assert await server.ended(30) == -signal.SIGKILL
            scenario.note(name)
            await scenario.load.acknowledged(10)
            await server.launch()
            if number < rounds - 1:
                await server.wait_ready()


@pytest.mark.parametrize("stop_s", [3.0, pytest.param(10.0, marks=pytest.mark.soak)])
@pytest.mark.parametrize("point", ["inside transaction", "before commit"])
async def test_a_server_that_stops_with_its_locks_held_stops_nobody_else(
    armed: Cluster, rows: list[Row], point: str, stop_s: float
) -> None:
    """Engine-rules 2: the other passes the locked runs over, and gets them when the database takes the locks away."""
    victim, other = armed.servers
    kinds = {"order": 60, "batch": 10, "task": 30}
    async with armed.scenario(f"stop {point}", 6, rows, clients=12, kinds=kinds, joiners=4) as scenario:
        await scenario.steady()
        arm(victim, point, False, random.Random(point).randint(20, 60), signal.SIGSTOP)
        await stopped(victim)
        scenario.note(f"stop {point}")
        try:
            await scenario.goes_on(other.name, stop_s)
        finally:
            victim.signal(signal.SIGCONT)
