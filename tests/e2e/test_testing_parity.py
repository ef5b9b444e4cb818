"""What `millstream.testing` says of workflows is what the service does; histories of the service are replayed."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.e2e.answers import check_ok

from millstream.sdk import Client, ConflictError, WorkflowContext
from millstream.testing import Environment, History, NonDeterminism, RunFailed, replay

if TYPE_CHECKING:
    import httpx
    from tests.e2e.stack import Process, Stack

PROGRAM = Path(__file__).with_name("flow_worker.py")
RUNS: list[tuple[str, Any]] = [
    ("code-order", {"id": 7}),
    ("code-order", {"id": 7, "amount": -1}),
    ("many", 4),
    ("parent", {"id": 3}),
    ("parent", {"id": 3, "amount": -1}),
    ("careful", "pay"),
]


@pytest.fixture(scope="module")
async def flows(stack: Stack) -> Process:
    """The workflows of flow_worker.py, in one process."""
    return await stack.worker(PROGRAM, "parity")


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, stack: Stack) -> Any:
    """The same, here."""
    monkeypatch.setenv("MILLSTREAM_TARGET", stack.target)
    return importlib.import_module("tests.e2e.flow_worker")


def shape(history: History) -> list[Any]:
    """A history without times and numbers of events, which the service gives to other things too."""
    found = []
    for item in history.items:
        if item.HasField("event"):
            event = item.event
            found.append((int(event.type), event.step, event.name, event.error.code, str(event.value)))
        else:
            given = item.command
            found.append((given.number, int(given.type), given.name, given.error.code, str(given.value)))
    return found


@pytest.mark.usefixtures("flows")
@pytest.mark.parametrize(("workflow", "given"), RUNS, ids=str)
async def test_a_run_goes_the_same_way(
    workflow: str, given: Any, rest: httpx.AsyncClient, stack: Stack, program: Any
) -> None:
    """FV-18: end, output, error and history of a run are equal, and each replays its history."""
    body = {"workflow": workflow, "input": given, "wait": 30}
    there = check_ok(await rest.post("/api/v1/runs", json=body, timeout=60))
    output, code = None, ""
    async with Environment(program.worker) as env:
        here = await env.start(workflow, given)
        try:
            output = await here.result()
        except RunFailed as failed:
            code = failed.code
    assert (here.status, output) == (there["status"], there.get("output"))
    assert code == there.get("error", {}).get("code", "")
    async with Client(stack.target) as client:
        history = await client.runs.history(there["run_id"])
    assert shape(history) == shape(here.history)
    await replay(history, program.worker)


@pytest.mark.usefixtures("flows")
async def test_changed_code_is_refused_by_a_stored_history(rest: httpx.AsyncClient, stack: Stack) -> None:
    """FV-18: exported by the command line; only runs of code have one."""
    made = check_ok(await rest.post("/api/v1/runs", json={"workflow": "many", "input": 2, "wait": 30}, timeout=60))
    process = await stack.command("runs", "history", made["run_id"], "--json")
    assert await process.ended() == 0
    stored = json.loads("\n".join(process.lines))

    async def changed(ctx: WorkflowContext, count: int) -> int:
        return int(await ctx.task("add", 0)) + int(await ctx.task("ship", count))

    with pytest.raises(NonDeterminism, match=r"history: 1\. TASK 'add', 2\. TASK 'add'"):
        await replay(stored, changed)
    task = check_ok(await rest.post("/api/v1/tasks", json={"kind": "add", "input": 1}), 201)
    async with Client(stack.target) as client:
        with pytest.raises(ConflictError):
            await client.runs.history(task["run_id"])
