"""A server that is stopped (SIGSTOP) and goes on later: the other goes on without it, and what the stopped one still
does has no second effect (engine-rules 2, 9; FV-19)."""

from __future__ import annotations

import asyncio
import signal
import uuid

import asyncpg
import pytest
from tests.crash.cluster import LEASE_S, Cluster
from tests.crash.processes import Worker, until
from tests.crash.summary import Row

from millstream.sdk import Client

pytestmark = [pytest.mark.crash, pytest.mark.slow]

stops = pytest.mark.parametrize("stop_s", [3.0, pytest.param(10.0, marks=pytest.mark.soak)])


@pytest.mark.parametrize(
    ("stop_s", "rounds"), [(3.0, 1), pytest.param(10.0, 6, marks=pytest.mark.soak)], ids=["quick", "long"]
)
async def test_the_other_server_goes_on(cluster: Cluster, rows: list[Row], stop_s: float, rounds: int) -> None:
    kinds = {"order": 60, "batch": 10, "task": 30}
    async with cluster.scenario("SIGSTOP server", 7, rows, clients=12, kinds=kinds, joiners=3) as scenario:
        for number in range(rounds):
            victim, other = cluster.servers[number % 2], cluster.servers[1 - number % 2]
            await scenario.steady()
            victim.signal(signal.SIGSTOP)
            scenario.note(f"SIGSTOP {victim.name}")
            try:
                await scenario.goes_on(other.name, stop_s)
            finally:
                victim.signal(signal.SIGCONT)
            await scenario.load.acknowledged(30)


@stops
async def test_a_stopped_server_s_tasks_go_to_others_and_its_late_results_are_refused(
    cluster: Cluster, rows: list[Row], stop_s: float
) -> None:
    await cluster.heal()
    victim, other = cluster.servers
    near = Worker("worker-near", victim.target, cluster.executions, cluster.folder)
    far = Worker("worker-far", other.target, cluster.executions, cluster.folder)
    usual, cluster.workers = cluster.workers, []
    for worker in usual:
        await worker.kill()
    try:
        await near.start()
        async with Client(victim.target) as client:
            tasks = [await client.tasks.create("crash.slow", {"key": "slow", "seconds": stop_s}) for _ in range(5)]
        await until("its worker has them", lambda: _running(cluster, len(tasks)))
        victim.signal(signal.SIGSTOP)
        try:
            await far.start()
            await asyncio.sleep(stop_s + LEASE_S)
        finally:
            victim.signal(signal.SIGCONT)
        async with Client(other.target) as client:
            await until("all are done", lambda: _all_done(client, [task.task_id for task in tasks]))
            for task in tasks:
                attempts = await client.tasks.attempts(task.task_id).all()
                assert [(each.attempt, each.status) for each in attempts] == [(1, "LOST"), (2, "COMPLETED")]
                assert attempts[1].worker != attempts[0].worker
        await until("the late results are refused", lambda: _refused(near, len(tasks)))
    finally:
        for worker in (near, far):
            await worker.kill()
        cluster.workers = usual
        await cluster.heal()


async def test_a_worker_leaves_a_server_that_hangs(cluster: Cluster) -> None:
    """Nothing closes its stream, which ends at the proxy: the proxy has to notice (15 s)."""
    await cluster.heal()
    assert cluster.envoy is not None
    usual, cluster.workers = cluster.workers, []
    for worker in usual:
        await worker.kill()
    lonely = Worker("worker-lonely", cluster.envoy.target, cluster.executions, cluster.folder)
    try:
        await lonely.start()
        for victim, other in (cluster.servers, reversed(cluster.servers)):
            victim.signal(signal.SIGSTOP)
            try:
                async with Client(other.target) as client:
                    # Of the two it is with one; that one must be stopped under it.
                    if not await _served(client, 2.0):
                        assert await _served(client, 25.0)
                        return
            finally:
                victim.signal(signal.SIGCONT)
        raise AssertionError("it was with neither")
    finally:
        await lonely.kill()
        cluster.workers = usual
        await cluster.heal()


async def _served(client: Client, timeout_s: float) -> bool:
    order = ("Order", {"order_id": str(uuid.uuid4())})
    return (await client.publish_sync(order, timeout=timeout_s)).completed


async def _running(cluster: Cluster, count: int) -> bool:
    connection = await asyncpg.connect(cluster.url)
    try:
        statement = "SELECT count(*) FROM task WHERE kind = 'crash.slow' AND status = 3 AND delivered"
        return bool(await connection.fetchval(statement) == count)
    finally:
        await connection.close()


async def _all_done(client: Client, task_ids: list[str]) -> bool:
    return all([(await client.tasks.get(task_id)).status == "COMPLETED" for task_id in task_ids])


async def _refused(worker: Worker, count: int) -> bool:
    return worker.log.read_text().count("was refused: LEASE_LOST") >= count
