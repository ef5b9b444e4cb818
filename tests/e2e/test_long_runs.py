"""Long runs of code: ten thousand steps, and the worker that has the run killed near the end. (FV-18)"""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from pathlib import Path

import httpx
import pytest
from tests.e2e.answers import check_ok
from tests.e2e.stack import Stack

PROGRAM = Path(__file__).with_name("flow_worker.py")
STEPS = 10_000
LEFT = 100
"""Steps that are left when the worker is killed."""
SIXTHS = 6
PATIENCE_S = 600.0


async def made(rest: httpx.AsyncClient, path: str, steps: int) -> None:
    """Return once a run has made so many tasks."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if check_ok(await rest.get(path))["task_count"] >= steps:
                return
            await asyncio.sleep(0.25)


async def begun_at(rest: httpx.AsyncClient, path: str) -> list[datetime]:
    """When each of a run's tasks was made, in their order."""
    found: list[datetime] = []
    token = ""
    while True:
        page = check_ok(await rest.get(f"{path}/tasks", params={"page_size": 500, "page_token": token}))
        found += [datetime.fromisoformat(each["created_at"]) for each in page["items"]]
        token = page["pagination"].get("next_page_token", "")
        if not token:
            return found


@pytest.mark.soak
async def test_a_run_of_ten_thousand_steps_outlives_its_worker(rest: httpx.AsyncClient, stack: Stack) -> None:
    """FV-18: each step once, in order, warm for nearly all of them, then replayed cold from its whole history."""
    first = await stack.worker(PROGRAM, "first of many", QUEUE="many")
    body = {"workflow": "many", "input": STEPS, "queue": "many"}
    path = f"/api/v1/runs/{check_ok(await rest.post('/api/v1/runs', json=body))['run_id']}"
    await made(rest, path, STEPS - LEFT)
    await first.kill()
    second = await stack.worker(PROGRAM, "second of many", QUEUE="many")
    killed = time.monotonic()
    await made(rest, path, STEPS - LEFT // 2)
    print(f"\nhalf of the last {LEFT} steps stood {time.monotonic() - killed:.1f} s after a cold worker was ready")
    result = check_ok(await rest.get(f"{path}/result", params={"timeout": 60}, timeout=90))
    assert (result["status"], result["output"]) == ("COMPLETED", STEPS * (STEPS - 1) // 2)
    at = await begun_at(rest, path)
    assert len(at) == STEPS, "each step is one task"
    size = (STEPS - LEFT) // SIXTHS
    cost = [(at[(n + 1) * size - 1] - at[n * size]).total_seconds() / size * 1000 for n in range(SIXTHS)]
    print("ms a step, by sixths:", ", ".join(f"{each:.2f}" for each in cost))
    await second.stop()
