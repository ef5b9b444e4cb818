"""A worker that is not Python: built from its lock file, tried by the kit, and at work behind the proxy. (FV-19)"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.e2e.answers import check_ok
from tests.e2e.node_project import built, check_locks
from tests.e2e.stack import READY_S, Process, Stack

from millstream.conformance import SCENARIOS, play

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "examples" / "typescript-worker"
CONTRACT = ROOT / "envoy" / "millstream.binpb"


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command of the worker that the kit tries, built in a folder of its own."""
    home = tmp_path_factory.mktemp("typescript-worker")
    return [built(SOURCES, home), str(home / "dist" / "conformance.js"), str(CONTRACT)]


@pytest.mark.parametrize("scenario", [name for name, each in SCENARIOS.items() if each.transport == "stream"])
async def test_a_worker_in_typescript_keeps_the_rules(program: list[str], scenario: str) -> None:
    """WM-10: written from the protocol alone."""
    (found,) = [each async for each in play(program, [SCENARIOS[scenario]], 20.0)]
    assert found.passed, (found.rule, found.message, found.output)


@pytest.fixture
async def worker(stack: Stack, program: list[str]) -> AsyncIterator[Process]:
    """The worker, connected to the servers through the proxy."""
    process = Process("typescript")
    await process.start(*program, MILLSTREAM_TARGET=stack.target)
    yield process
    await process.stop()
    assert process.code == 0, process.lines


async def test_a_worker_in_typescript_works(rest: httpx.AsyncClient, worker: Process) -> None:
    """WM-10, FV-6: tasks and agents, at the servers themselves."""
    order: Any = {"list": [1, None, {"deep": True}], "text": "ä€"}
    created = check_ok(await rest.post("/api/v1/tasks", json={"kind": "conformance.echo", "input": order}), 201)
    async with asyncio.timeout(READY_S):
        while True:
            task = check_ok(await rest.get(f"/api/v1/tasks/{created['task_id']}"))
            if task["status"] == "COMPLETED":
                break
            await asyncio.sleep(0.02)
    assert task["output"] == order
    told = {"kind": "conformance.progress", "input": {"fraction": 0.5, "message": "half"}}
    logging = check_ok(await rest.post("/api/v1/tasks", json=told), 201)
    async with asyncio.timeout(READY_S):
        while True:
            lines = check_ok(await rest.get(f"/api/v1/tasks/{logging['task_id']}/logs"))["items"]
            if lines:
                break
            await asyncio.sleep(0.02)
    assert [(line["level"], line["message"], line["offset"]) for line in lines] == [("INFO", "50 % done", 1)]
    marks = [str(uuid.uuid4()), 2]
    made = check_ok(
        await rest.post("/api/v1/artifacts/sync", json={"type": "ConformanceInput", "payload": {"items": marks}})
    )
    assert (made["completed"], made["failures"]) == (True, [])
    assert [each["payload"] for each in made["artifacts"][1:]] == [{"item": mark} for mark in marks]
    (known,) = check_ok(await rest.get("/api/v1/workers", params={"name": "conformance", "status": "ONLINE"}))["items"]
    assert known["agents"] == ["conformance-publisher"]


def test_the_locks_name_versions_and_no_place() -> None:
    """Pinned, with hashes; where packages come from is the installer's business."""
    check_locks(SOURCES)
