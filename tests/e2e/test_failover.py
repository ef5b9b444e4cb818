"""Processes of an installation that die under an SDK client and a worker: both find their way back, and nothing is lost
(FV-19; the crash suite does the same at random moments, under load, with a checker)."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator

import httpx
import pytest
from tests.e2e.test_dev import Dev, launch
from tests.e2e.test_operations import values

from millstream.sdk import Client

pytestmark = [pytest.mark.slow, pytest.mark.crash]

SLOW = """
import asyncio, sys
from millstream.sdk import Context, Worker

worker = Worker(sys.argv[1], name=sys.argv[2])

@worker.task("slow")
async def slow(value: float, ctx: Context) -> None:
    print("began", ctx.attempt, flush=True)
    ctx.progress(0.5)
    await asyncio.sleep(value)
    print("ended", flush=True)

worker.run_forever()
"""


@pytest.fixture
async def dev() -> AsyncIterator[Dev]:
    """An installation with two servers and the orders example's worker, ready."""
    running = await launch("--ephemeral", "--example", "orders", processes=2)
    await running.line("stdout", "millstream is ready")
    yield running
    if running.process.returncode is None:
        running.process.send_signal(signal.SIGINT)
    await running.process.communicate()


async def start_worker(dev: Dev, name: str) -> asyncio.subprocess.Process:
    """A worker of the kind "slow"."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", SLOW, f"127.0.0.1:{dev.port}", name,
        stdout=asyncio.subprocess.PIPE, env={**os.environ, "no_proxy": "127.0.0.1"},
    )  # fmt: skip


async def test_a_worker_killed_in_the_middle_of_a_task_loses_nothing(dev: Dev) -> None:
    first = await start_worker(dev, "first")
    async with Client(f"127.0.0.1:{dev.port}") as client:
        task = await client.tasks.create("slow", 60.0)
        assert first.stdout is not None
        async with asyncio.timeout(20):
            assert await first.stdout.readline() == b"began 1\n"
            # Only what the service knows to have arrived counts as an attempt.
            while (await client.tasks.get(task.task_id)).progress < 0.5:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        first.kill()
        await first.wait()
        await client.tasks.create("slow", 0.0)
        second = await start_worker(dev, "second")
        try:
            assert second.stdout is not None
            # Its lease ends 5 s after its worker went, long before the 30 s of one that merely falls silent.
            async with asyncio.timeout(20):
                told = [await second.stdout.readline() for _ in range(3)]
            assert sorted(told) == [b"began 1\n", b"began 2\n", b"ended\n"]
            attempts = await client.tasks.attempts(task.task_id).all()
            assert [(each.attempt, each.status, each.worker) for each in attempts] == [
                (1, "LOST", "first"),
                (2, "RUNNING", "second"),
            ]
        finally:
            second.kill()
            await second.communicate()
            await first.communicate()


async def test_a_client_and_a_worker_outlast_the_death_of_every_server(dev: Dev) -> None:
    servers = [pid for pid, arguments in dev.children().items() if "millstream.cli serve" in arguments]
    assert len(servers) == 2
    async with Client(f"127.0.0.1:{dev.port}", timeout=60, retries=20) as client:
        order = ("Order", {"order_id": "o-1", "amount": 1.0})
        assert (await client.publish_sync(order)).completed
        for pid in servers:
            os.kill(pid, signal.SIGKILL)
        # One call: the SDK repeats it under one key until a server is back, and the example's worker with it.
        result = await client.publish_sync(order, timeout=30, idempotency_key="after the fall")
        assert result.completed
        assert [item.type for item in result.artifacts] == ["Order", "Payment", "Shipment", "Notification"]
        again = await client.publish_sync(order, timeout=30, idempotency_key="after the fall")
        assert again.correlation_id == result.correlation_id
        assert again.replayed


async def test_metrics_of_two_servers_are_merged_and_outlast_their_deaths(dev: Dev) -> None:
    """WM-12: whichever server answers; counts of killed ones stay, what they held is gone, each once."""
    orders = 'millstream_requests_total{code="OK",rpc="ArtifactService/PublishSync"}'
    runs = 'millstream_requests_total{code="OK",rpc="RunService/ListRuns"}'
    published = 0
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{dev.port}", timeout=30, trust_env=False) as client:

        async def shown() -> dict[str, float]:
            async with asyncio.timeout(30):
                while (response := await client.get("/metrics")).status_code != 200:
                    pass  # it was with the server that was killed
            return values(response.text)

        async def until(name: str, wanted: float) -> None:
            async with asyncio.timeout(30):
                while (now := (await shown()).get(name, 0.0)) != wanted:
                    assert now < wanted or name not in (orders, runs), "nothing counts twice"

        for killed in range(2):
            for _ in range(10):
                # The proxy may not have noticed yet which server is gone or back: what it refuses reaches none.
                while (await client.get("/api/v1/runs")).status_code != 200:
                    pass
                body = {"type": "Order", "payload": {"order_id": "o", "amount": 1, "items": []}}
                while (await client.post("/api/v1/artifacts/sync", json=body)).status_code != 200:
                    pass
                published += 1
            await until(runs, published)
            await until(orders, published)
            await until("millstream_workers_connected", 1)
            servers = sorted(pid for pid, arguments in dev.children().items() if "millstream.cli serve" in arguments)
            os.kill(servers[0], signal.SIGKILL)  # the oldest; its successor has a higher id
            await dev.line("stderr", "starting it again")
            async with asyncio.timeout(30):
                while len([1 for line in dev.children().values() if "millstream.cli serve" in line]) < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            # The worker has found its way to the one that is left, or stayed there, and counts once.
            await until("millstream_workers_connected", 1)
            assert (await shown())[runs] == (await shown())[orders] == published, killed
            async with asyncio.timeout(30):
                while '"ONLINE"' not in (await client.get("/api/v1/agents")).text:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
