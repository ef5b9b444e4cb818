"""WM-7: what was before serves beside this release, on the database that this one migrated."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.stack import LOOPBACK, ORDERS, TOKEN, Process
from tests.e2e.test_rest_gates import until

from millstream.sdk import Client, NotFoundError
from millstream.store.embedded import EmbeddedPostgres

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STEPS = Path(__file__).with_name("steps_worker.py")
FLOW: dict[str, Any] = {
    "name": "side.flow",
    "steps": [
        {"id": "a", "kind": "task", "task": "side.double", "input": {"n": "${input.n}"}},
        {"id": "b", "kind": "task", "task": "side.double", "needs": ["a"], "input": "${steps.a.output}"},
        {"id": "nap", "kind": "sleep", "needs": ["a"], "seconds": 0.01},
        {
            "id": "each", "kind": "map", "needs": ["nap"], "over": "[1, 2, 3]", "concurrency": 2,
            "each": {"kind": "task", "task": "side.double", "input": {"n": "${item}"}},
        },
        {"id": "end", "kind": "task", "task": "side.double", "needs": ["b", "each"], "input": "${steps.b.output}"},
    ],
    "output": {"n": "${steps.end.output.n}"},
}  # fmt: skip
"""Answers eight times its number, with seven tasks of workers and a pause."""
Served = tuple[Process, str]


def taken_from(name: str, into: Path) -> Path:
    """The code of the commit that a file here names."""
    commit = Path(__file__).with_name(name).read_text().strip()
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("there is no git history here to take the code before from")
    archive = subprocess.run(["git", "-C", ROOT, "archive", commit], capture_output=True, check=False)
    if archive.returncode != 0:
        pytest.skip(f"this clone has no commit {commit} (a shallow one?): git fetch --unshallow")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as content:
        content.extractall(into / name, filter="data")
    return into / name


@pytest.fixture
def previous(tmp_path: Path) -> Path:
    """The code of the release before this one."""
    return taken_from("previous_release", tmp_path)


@pytest.fixture
def workflows(tmp_path: Path) -> Path:
    """The code that was the first to run workflows."""
    return taken_from("previous_workflows", tmp_path)


def paths_of(root: Path) -> str:
    """Where Python finds the code below `root`."""
    return os.pathsep.join([str(root / "src"), str(root / "gen")])


async def serve(name: str, root: Path, url: str) -> Served:
    """Start the server of the code below `root`; return it with its target."""
    process = Process(name)
    await process.start(
        sys.executable, "-m", "millstream.cli", "serve", PYTHONPATH=paths_of(root),
        MILLSTREAM_DATABASE_URL=url, MILLSTREAM_PORT="0", MILLSTREAM_PROXY_TOKEN=TOKEN,
        MILLSTREAM_AUTH_MODE="developer", MILLSTREAM_HOST=LOOPBACK,
    )  # fmt: skip
    address = json.loads(await process.line('"event":"ready"'))["address"]
    return process, f"{LOOPBACK}:{address.rpartition(':')[2]}"


@contextlib.asynccontextmanager
async def beside(before: Path) -> AsyncIterator[tuple[Served, Served]]:
    """The new server, which migrated the database, and an old one beside it."""
    async with EmbeddedPostgres(ephemeral=True) as database:
        new = await serve("new", ROOT, database.url)
        old = await serve("old", before, database.url)
        try:
            yield new, old
        finally:
            await old[0].kill()
            await new[0].kill()


@pytest.fixture
async def both(previous: Path) -> AsyncIterator[tuple[Served, Served]]:
    """This release, and that before it."""
    async with beside(previous) as servers:
        yield servers


@pytest.fixture
async def flowing(workflows: Path) -> AsyncIterator[tuple[Served, Served]]:
    """This release, and the first that ran workflows."""
    async with beside(workflows) as servers:
        yield servers


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


async def test_the_release_before_serves_beside_this_one(both: tuple[Served, Served]) -> None:
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


async def step_for(who: str, root: Path, target: str) -> Process:
    """A worker of steps and of workflows as code, by the SDK below `root`, at one of the servers."""
    worker = Process(who)
    await worker.start(sys.executable, str(STEPS), PYTHONPATH=paths_of(root), MILLSTREAM_TARGET=target, WHO=who)
    await worker.line("kinds of tasks at")
    return worker


async def know(target: str) -> None:
    """Have the workflow known to a server."""
    async with Client(target) as client:
        await client.workflows.apply(FLOW)


async def until_signalled(target: str, by: str) -> tuple[str, str]:
    """Begin a run as code, and return its id and what it has drawn, once it waits for its signal."""
    async with Client(target) as client:
        runs: list[str] = []

        async def begun() -> bool:
            """Once the server is told by the other what the worker serves."""
            with contextlib.suppress(NotFoundError):
                runs.append((await client.runs.start("side.code", {"n": 1}, labels={"by": by})).run_id)
            return bool(runs)

        async def waits() -> bool:
            return "drawn" in await client.runs.state(runs[0])

        await until(begun)
        await until(waits)
        return runs[0], str((await client.runs.state(runs[0]))["drawn"])


async def test_workflows_go_on_beside_the_release_before(flowing: tuple[Served, Served], workflows: Path) -> None:
    """WM-3, WM-7, FV-18: each server begins runs, each worker of either release does their steps at either server."""
    (new, new_target), (old, old_target) = flowing
    await know(new_target)
    await know(old_target)
    for who, root in (("old", workflows), ("new", ROOT)):
        for at in (old_target, new_target):
            worker = await step_for(who, root, at)
            for target in (old_target, new_target):
                async with Client(target) as client:
                    run = await client.workflows.execute_sync("side.flow", {"n": 3}, timeout=30)
                    assert (run.status, run.output) == ("COMPLETED", {"n": 24})
                    tasks = await client.tasks.list(run_id=run.run_id).all()
                    assert [task.attempt for task in tasks if task.kind == "side.double"] == [1] * 6
                run_id, drawn = await until_signalled(target, who)
                async with Client(new_target if target == old_target else old_target) as other:
                    await other.runs.signal(run_id, "go", "on")
                    result = await other.runs.result(run_id, wait=30)
                assert (result.status, result.output) == (
                    "COMPLETED", {"n": 44, "drawn": drawn, "noted": who, "word": "on"},
                )  # fmt: skip
            await worker.stop()
    assert not [line for server in (new, old) for line in server.lines if '"level":"error"' in line]


@pytest.mark.parametrize("first", ["old", "new"])
async def test_a_run_goes_on_where_the_other_release_has_left_it(
    flowing: tuple[Served, Served], workflows: Path, first: str
) -> None:
    """WM-7, FV-18, FV-19: server and worker of one release are killed in its midst; those of the other lead the code
    through the history that these have written, and end it, with the same chance and the same side effect."""
    (new, new_target), (old, old_target) = flowing
    await know(new_target)
    root, here, other_root, there = (
        (workflows, (old, old_target), ROOT, new_target)
        if first == "old"
        else (ROOT, (new, new_target), workflows, old_target)
    )
    worker = await step_for("first", root, here[1])
    run_id, drawn = await until_signalled(here[1], first)
    await worker.kill()
    await here[0].kill()
    second = await step_for("second", other_root, there)
    async with Client(there) as client:
        await client.runs.signal(run_id, "go", "on")
        result = await client.runs.result(run_id, wait=60)
    assert (result.status, result.output) == (
        "COMPLETED", {"n": 44, "drawn": drawn, "noted": "first", "word": "on"},
    )  # fmt: skip
    await second.stop()
