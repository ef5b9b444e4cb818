"""Code-first workflows with a worker process, through the proxy. (FV-17, FV-18)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.e2e.answers import check_ok
from tests.e2e.stack import Process, Stack

PROGRAM = Path(__file__).with_name("flow_worker.py")
Rest = httpx.AsyncClient


@pytest.fixture(scope="module")
async def flows(stack: Stack) -> Process:
    """The workflows of flow_worker.py, in one process."""
    return await stack.worker(PROGRAM, "flows")


async def start(rest: Rest, workflow: str, given: Any, wait: float = 20, **fields: Any) -> dict[str, Any]:
    """Start a run and wait for its end."""
    body = {"workflow": workflow, "input": given, "wait": wait, **fields}
    return dict(check_ok(await rest.post("/api/v1/runs", json=body, timeout=60)))


@pytest.mark.usefixtures("flows")
async def test_a_run_of_several_steps_answers_its_caller(rest: Rest) -> None:
    """FV-18: tasks one after the other and at once; the output comes back over REST."""
    run = await start(rest, "order", {"id": 7})
    assert (run["status"], run["completed"], run["started"]) == ("COMPLETED", True, True)
    assert run["output"] == {"paid": "paid 7", "shipped": "shipped 7", "told": "told 7"}
    events = check_ok(await rest.get(f"/api/v1/runs/{run['run_id']}/events"))["items"]
    assert events[-1]["type"] == "RUN_COMPLETED"
    tasks = check_ok(await rest.get(f"/api/v1/runs/{run['run_id']}/tasks"))["items"]
    assert [task["kind"] for task in tasks] == ["pay", "ship", "tell"]
