"""WM-7: the release before serves beside this one, on the database that this one migrated."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.e2e.stack import LOOPBACK, ORDERS, TOKEN, Process

from millstream.sdk import Client
from millstream.store.embedded import EmbeddedPostgres

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PINNED = (Path(__file__).with_name("previous_release")).read_text().strip()


@pytest.fixture
def previous(tmp_path: Path) -> Path:
    """The code of the release before this one."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("there is no git history here to take the previous release from")
    archive = subprocess.run(["git", "-C", ROOT, "archive", PINNED], capture_output=True, check=False)
    if archive.returncode != 0:
        pytest.skip(f"this clone has no commit {PINNED} (a shallow one?): git fetch --unshallow")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as content:
        content.extractall(tmp_path / "previous", filter="data")
    return tmp_path / "previous"


async def serve(name: str, root: Path, url: str) -> tuple[Process, str]:
    """Start the server of the code below `root`; return it with its target."""
    process = Process(name)
    await process.start(
        sys.executable, "-m", "millstream.cli", "serve",
        PYTHONPATH=os.pathsep.join([str(root / "src"), str(root / "gen")]),
        MILLSTREAM_DATABASE_URL=url, MILLSTREAM_PORT="0", MILLSTREAM_PROXY_TOKEN=TOKEN,
        MILLSTREAM_AUTH_MODE="developer", MILLSTREAM_HOST=LOOPBACK,
    )  # fmt: skip
    address = json.loads(await process.line('"event":"ready"'))["address"]
    return process, f"{LOOPBACK}:{address.rpartition(':')[2]}"


@pytest.fixture
async def both(previous: Path) -> AsyncIterator[tuple[tuple[Process, str], tuple[Process, str]]]:
    """The new server, which migrated the database, and the old one beside it."""
    async with EmbeddedPostgres(ephemeral=True) as database:
        new = await serve("new", ROOT, database.url)
        old = await serve("old", previous, database.url)
        try:
            yield new, old
        finally:
            await old[0].kill()
            await new[0].kill()


async def work_for(target: str) -> Process:
    """The orders example's worker, welcome at one of the servers."""
    worker = Process("orders")
    await worker.start(sys.executable, str(ORDERS), MILLSTREAM_TARGET=target)
    await worker.line("kinds of tasks at")
    return worker


async def publish_through(target: str, order_id: str) -> str:
    """Publish an Order in both ways; return the correlation id of the cascade that was waited for."""
    async with Client(target) as client:
        order = ("Order", {"order_id": order_id, "amount": 1.0})
        await client.publish(order)
        result = await client.publish_sync(order, timeout=30, idempotency_key=order_id)
        assert result.completed
        assert [item.type for item in result.artifacts] == ["Order", "Payment", "Shipment", "Notification"]
        assert len(await client.runs.list().all()) >= 1
        return result.correlation_id


async def test_the_release_before_serves_beside_this_one(both: tuple[tuple[Process, str], tuple[Process, str]]) -> None:
    """WM-7: publishes, cascades through workers of either, keys and lists cross; then the old one goes away."""
    (new, new_target), (old, old_target) = both
    assert any("a newer release has migrated" in line for line in old.lines)
    for round_, worker_at in enumerate((old_target, new_target)):
        worker = await work_for(worker_at)
        try:
            for target, other in ((new_target, old_target), (old_target, new_target)):
                key = f"{round_}-{target}"
                correlation = await publish_through(target, key)
                async with Client(other) as client:
                    again = await client.publish_sync(
                        ("Order", {"order_id": key, "amount": 1.0}), timeout=30, idempotency_key=key
                    )
                assert (again.replayed, again.correlation_id) == (True, correlation)
        finally:
            await worker.stop()
    await old.stop()
    worker = await work_for(new_target)
    try:
        await publish_through(new_target, "alone")
    finally:
        await worker.stop()
    assert not [line for server in (new, old) for line in server.lines if '"level":"error"' in line]
