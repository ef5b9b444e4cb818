"""A backup of an installation at work, and the installation that is made of it: nothing that was acknowledged before is
lost, and what was under way goes on."""

import asyncio
import collections
import contextlib
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.e2e.conftest import AGENTS
from tests.e2e.stack import Process
from tests.e2e.test_commands import run
from tests.e2e.test_dev import Dev, launch

from millstream.sdk import Client

pytestmark = pytest.mark.slow

CASCADE = ["Notification", "Order", "Payment", "Shipment"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that the unprivileged user of a database can pass through; leases are short, since nobody gives back
    those that were held in the moment of the copy."""
    monkeypatch.setenv("MILLSTREAM_LEASE_S", "2")
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(parent.stat().st_mode | 0o011)
    return tmp_path


@contextlib.asynccontextmanager
async def installation(data_dir: Path) -> AsyncIterator[Dev]:
    """`millstream dev` on a directory of its own, with the orders example."""
    dev = await launch("--data-dir", str(data_dir), "--example", "orders")
    try:
        await dev.line("stdout", "millstream is ready")
        yield dev
    finally:
        if dev.process.returncode is None:
            dev.process.send_signal(signal.SIGINT)
        await dev.process.communicate()


@contextlib.asynccontextmanager
async def holder(dev: Dev, name: str) -> AsyncIterator[Process]:
    """A worker whose task "hold" never ends the first time."""
    process = Process(name)
    environment = {"MILLSTREAM_TARGET": f"127.0.0.1:{dev.port}", "WORKER_NAME": name, "AGENTS": "holds"}
    await process.start(sys.executable, str(AGENTS), **environment)
    try:
        await process.line("kinds of tasks at")
        yield process
    finally:
        await process.kill()


@dataclass
class Orders:
    """Publishes orders until it is stopped."""

    client: Client
    acknowledged: dict[str, str] = field(default_factory=dict)
    """Artifact ids, with the cascade of each."""
    passed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def publish(self) -> None:
        """One after the other, until cancelled."""
        while True:
            order = ("Order", {"order_id": str(uuid.uuid4()), "amount": 1.0, "items": ["tea"]})
            published = await self.client.publish(order)
            async with self.passed:
                self.acknowledged[published.artifact_id] = published.correlation_id
                self.passed.notify_all()

    async def more(self, count: int) -> None:
        """Return when so many more were acknowledged."""
        async with self.passed, asyncio.timeout(30):
            wanted = len(self.acknowledged) + count
            await self.passed.wait_for(lambda: len(self.acknowledged) >= wanted)


async def types_by_cascade(client: Client) -> dict[str, list[str]]:
    """All artifacts' types."""
    found: dict[str, list[str]] = collections.defaultdict(list)
    async for artifact in client.artifacts.list(page_size=500):
        found[artifact.correlation_id].append(artifact.type)
    return {cascade: sorted(types) for cascade, types in found.items()}


async def test_a_backup_of_an_installation_at_work_becomes_one_that_goes_on(place: Path) -> None:
    """Publishes come all the while; cascades wait halfway, a worker holds a task: in the copy they end."""
    async with (
        installation(place / "live") as dev,
        holder(dev, "first") as worker,
        Client(f"127.0.0.1:{dev.port}") as client,
    ):
        done = await client.publish_sync(("Order", {"order_id": "done", "amount": 1.0}))
        assert done.completed
        task = await client.tasks.create("hold", "kept")
        await worker.line("holding")
        # From now on every cascade waits between its payment and its shipment.
        await client.agents.pause("shipping")
        orders = Orders(client)
        publishing = [asyncio.create_task(orders.publish()) for _ in range(2)]
        await orders.more(100)
        before = dict(orders.acknowledged)
        copying = asyncio.create_task(run("backup", str(place / "copy"), "--data-dir", str(place / "live")))
        await orders.more(10)
        code, output, errors = await copying
        assert (code, errors) == (0, ""), errors
        assert "files, PostgreSQL" in output
        await orders.more(10)
        for each in publishing:
            assert not each.done(), "no publish failed because of the copy"
            each.cancel()
        ended = await asyncio.gather(*publishing, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in ended)
    code, _, errors = await run("restore", str(place / "copy"), "--data-dir", str(place / "other"))
    assert (code, errors) == (0, "")
    async with installation(place / "other") as dev, Client(f"127.0.0.1:{dev.port}") as client:
        found = await types_by_cascade(client)
        assert set(before.values()) <= set(found)
        assert found[done.correlation_id] == CASCADE
        assert not any("Shipment" in types for cascade, types in found.items() if cascade != done.correlation_id)
        for artifact_id, cascade in list(before.items())[:: len(before) // 5]:
            assert (await client.artifacts.get(artifact_id)).correlation_id == cascade
        await client.agents.resume("shipping")
        async with asyncio.timeout(60):
            while any(types != CASCADE for types in found.values()):
                assert not any(len(types) > len(CASCADE) for types in found.values()), "nothing is done twice"
                found = await types_by_cascade(client)
            async with holder(dev, "second"):
                while (ended_task := await client.tasks.get(task.task_id)).status != "COMPLETED":  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        assert ended_task.output == "kept by second"
        attempts = await client.tasks.attempts(task.task_id).all()
        assert [(each.attempt, each.status, each.worker) for each in attempts] == [
            (1, "LOST", "first"),
            (2, "COMPLETED", "second"),
        ]
