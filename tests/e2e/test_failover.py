"""Processes of an installation that die under an SDK client and a worker: both find their way back, and nothing is lost
(FV-19; the crash suite does the same at random moments, under load, with a checker)."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator

import pytest
from tests.e2e.test_dev import Dev, launch

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
