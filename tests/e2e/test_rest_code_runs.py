"""Code-first workflows with a worker process, through the proxy. (FV-17, FV-18)"""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.e2e.answers import check_error, check_ok
from tests.e2e.stack import READY_S, Process, Stack

from millstream.sdk import Client

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


async def tasks_of(rest: Rest, path: str, count: int, status: str = "") -> None:
    """Return once a run has so many tasks in a status."""
    async with asyncio.timeout(READY_S):
        while True:
            if (
                len(check_ok(await rest.get(f"{path}/tasks", params={"status": status} if status else {}))["items"])
                >= count
            ):
                return
            await asyncio.sleep(0.02)


async def remembers(rest: Rest, path: str, state: dict[str, Any]) -> None:
    """Return once a run remembers this."""
    async with asyncio.timeout(READY_S):
        while True:
            if check_ok(await rest.get(f"{path}/state"))["state"] == state:
                return
            await asyncio.sleep(0.02)


@pytest.mark.usefixtures("flows")
async def test_a_run_of_several_steps_answers_its_caller(rest: Rest) -> None:
    """FV-18: tasks one after the other and at once; the output comes back over REST."""
    run = await start(rest, "code-order", {"id": 7})
    assert (run["status"], run["completed"], run["started"]) == ("COMPLETED", True, True)
    assert run["output"] == {"paid": "paid 7", "shipped": "shipped 7", "told": "told 7"}
    events = check_ok(await rest.get(f"/api/v1/runs/{run['run_id']}/events"))["items"]
    assert events[-1]["type"] == "RUN_COMPLETED"
    tasks = check_ok(await rest.get(f"/api/v1/runs/{run['run_id']}/tasks"))["items"]
    assert [task["kind"] for task in tasks] == ["pay", "ship", "tell"]


@pytest.mark.usefixtures("flows")
async def test_a_run_of_code_is_triggered_once_and_has_its_time(rest: Rest, stack: Stack) -> None:
    """FV-2, FV-3: by the run's own key, whoever calls; what it is told to begin with is what it has."""
    run_key = str(uuid.uuid4())
    async with Client(stack.target) as client:
        first = await client.workflows.trigger("code-order", {"id": 9}, run_key=run_key, priority=3)
        again = await client.workflows.trigger("code-order", {"id": 9}, run_key=run_key, run_key_ttl=60)
        assert (again.run_id, first.existing, again.existing) == (first.run_id, False, True)
        late = await client.runs.start("careful", "hang", run_timeout=0.5, priority=-7)
        task = await client.tasks.get(late.run_id)
        assert task.priority == -7
        ended = await client.runs.result(late.run_id, 20)
        assert (ended.status, ended.error.code if ended.error else "") == ("FAILED", "RUN_TIMEOUT")
    result = check_ok(await rest.get(f"/api/v1/runs/{first.run_id}/result", params={"timeout": 20}))
    assert result["output"]["paid"] == "paid 9"


@pytest.mark.usefixtures("flows")
async def test_a_failure_comes_back_with_its_code(rest: Rest) -> None:
    """FV-18: what nobody catches is the run's error; what is caught is not."""
    run = await start(rest, "code-order", {"id": 7, "amount": -1})
    assert (run["status"], run["error"]["code"]) == ("FAILED", "DECLINED")
    run = await start(rest, "parent", {"id": 3})
    assert run["output"]["child"]["paid"] == "paid 3"


@pytest.mark.usefixtures("flows")
async def test_an_input_is_checked_against_the_workflows_schema(rest: Rest) -> None:
    """FV-18, replay-lessons: at the door, with the field."""
    response = await rest.post("/api/v1/runs", json={"workflow": "many", "input": "five"})
    check_error(response, 422, "VALIDATION_ERROR", "input")
    check_error(await rest.post("/api/v1/runs", json={"workflow": "nobody"}), 404, "NOT_FOUND")


@pytest.mark.usefixtures("flows")
async def test_a_run_is_signalled_and_tells_what_it_remembers(rest: Rest) -> None:
    """FV-17: the signal's key makes one of two calls; state is read meanwhile."""
    run = await start(rest, "code-order", {"id": 8, "amount": 200}, wait=0)
    path = f"/api/v1/runs/{run['run_id']}"
    await remembers(rest, path, {"paid": "paid 8", "waits for": "confirmed"})
    headers = {"x-idempotency-key": str(uuid.uuid4())}
    for _ in range(2):
        check_ok(await rest.post(f"{path}/signals/confirmed", json={"value": {"by": "ann"}}, headers=headers))
    result = check_ok(await rest.get(f"{path}/result", params={"timeout": 20}))
    assert (result["status"], result["output"]) == ("COMPLETED", {"confirmed": {"by": "ann"}, "paid": "paid 8"})
    check_error(await rest.post(f"{path}/signals/confirmed", json={}), 409, "CONFLICT")


@pytest.mark.usefixtures("flows")
async def test_a_cancelled_run_cleans_up(rest: Rest) -> None:
    """FV-18: clean-up tasks run within the grace, and the run ends in CANCELLED."""
    run = await start(rest, "careful", "hang", wait=0)
    path = f"/api/v1/runs/{run['run_id']}"
    await tasks_of(rest, path, 1, "RUNNING")
    check_ok(await rest.post(f"{path}/cancel", json={"reason": "enough"}))
    result = check_ok(await rest.get(f"{path}/result", params={"timeout": 20}))
    assert (result["status"], result["error"]["code"]) == ("CANCELLED", "CANCELLED")
    tasks = check_ok(await rest.get(f"{path}/tasks"))["items"]
    assert [(task["kind"], task["status"]) for task in tasks] == [("hang", "CANCELLED"), ("tell", "COMPLETED")]


async def test_a_run_outlives_its_worker(rest: Rest, stack: Stack) -> None:
    """FV-18, FV-19: kill -9 of the worker that has the run, cold replay on another; side effects are recorded once."""
    first = await stack.worker(PROGRAM, "first", QUEUE="killed")
    run = await start(rest, "slow", 20, wait=0, queue="killed")
    path = f"/api/v1/runs/{run['run_id']}"
    await tasks_of(rest, path, 10)
    await first.kill()
    second = await stack.worker(PROGRAM, "second", QUEUE="killed")
    check_ok(await rest.post(f"{path}/signals/go", json={"value": "gone on"}))
    result = check_ok(await rest.get(f"{path}/result", params={"timeout": 60}, timeout=90))
    assert result["status"] == "COMPLETED", result.get("error")
    pid, *steps = result["output"]
    assert steps == [*range(20), "gone on", pid]
    await second.stop()


async def test_runs_of_two_versions_go_on_side_by_side(rest: Rest, stack: Stack) -> None:
    """FV-18, FV-9: each at the workers that have its version, whatever is the latest; which a rerun gets."""
    old = await stack.worker(PROGRAM, "old", VERSIONS="7", QUEUE="versions")
    before = await start(rest, "flow", "a", wait=0, version="7", queue="versions")
    new = await stack.worker(PROGRAM, "new", VERSIONS="8", QUEUE="versions")
    after = await start(rest, "flow", "b", wait=0, version="8", queue="versions")
    outputs = []
    for run in (before, after):
        path = f"/api/v1/runs/{run['run_id']}"
        check_ok(await rest.post(f"{path}/signals/go", json={}))
        outputs.append(check_ok(await rest.get(f"{path}/result", params={"timeout": 20}))["output"])
    assert outputs == ["7: told a", "8: told b"]
    for asked, expected in (({}, "8: told a"), ({"version": "same"}, "7: told a")):
        again = check_ok(await rest.post(f"/api/v1/runs/{before['run_id']}/rerun", json=asked), 201)
        assert (again["rerun_of"], again["kind"], again["workflow"]) == (before["run_id"], "CODE", "flow")
        path = f"/api/v1/runs/{again['run_id']}"
        check_ok(await rest.post(f"{path}/signals/go", json={}))
        assert check_ok(await rest.get(f"{path}/result", params={"timeout": 20}))["output"] == expected
    await old.stop()
    await new.stop()


async def test_changed_code_is_reported_and_mended_code_goes_on(rest: Rest, stack: Stack) -> None:
    """FV-18: NON_DETERMINISM shows both histories; after the change is undone, a retry finishes the run."""
    worker = await stack.worker(PROGRAM, "unchanged", QUEUE="changes")
    run = await start(rest, "changing", None, wait=0, queue="changes")
    path = f"/api/v1/runs/{run['run_id']}"
    await tasks_of(rest, path, 1, "COMPLETED")
    await worker.stop()
    changed = await stack.worker(PROGRAM, "changed", QUEUE="changes", CHANGED="1")
    check_ok(await rest.post(f"{path}/signals/go", json={}))
    result = check_ok(await rest.get(f"{path}/result", params={"timeout": 30}, timeout=60))
    assert (result["status"], result["error"]["code"]) == ("FAILED", "NON_DETERMINISM")
    assert "history: 1. TASK 'tell'" in result["error"]["message"]
    assert "code:    1. TASK 'ship'" in result["error"]["message"]
    await changed.stop()
    mended = await stack.worker(PROGRAM, "mended", QUEUE="changes")
    check_ok(await rest.post(f"{path}/retry", json={"note": "undone"}))
    result = check_ok(await rest.get(f"{path}/result", params={"timeout": 30}, timeout=60))
    assert (result["status"], result["output"]) == ("COMPLETED", "told 1, told 2")
    await mended.stop()
