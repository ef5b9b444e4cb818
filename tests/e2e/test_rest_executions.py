"""Workflows executed through the proxy, on two servers, with the example's worker."""

from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.e2e.answers import check_error, check_ok
from tests.e2e.stack import Process, Stack
from tests.e2e.test_commands import run

from millstream.sdk import Client, NewRun

Http = httpx.AsyncClient
ORDERS = Path(__file__).parents[2] / "examples" / "order_workflow.py"
PATH = "/api/v1/workflows/order/execute"
GOOD = {"customer": "ann", "items": ["ink", "pens", "paper"], "amount": 12.5}
BAD = {"customer": "bob", "items": ["ink", "lava"], "amount": 3}


@pytest.fixture(scope="module")
async def orders(stack: Stack) -> Process:
    """examples/order_workflow.py, through the proxy."""
    worker = await stack.worker(ORDERS, "orders")
    await worker.line("as version")
    return worker


async def test_a_workflow_answers(rest: Http, orders: Process) -> None:
    """WM-3, WM-5: executed and waited for; its steps and events read back."""
    done = check_ok(await rest.post(f"{PATH}/sync", json={"input": GOOD, "labels": {"shop": "east"}}))
    assert (done["status"], done["completed"], done["workflow"], done["version"]) == ("COMPLETED", True, "order", "1")
    assert done["output"]["tracking"] == "track-3"
    assert done["duration_ms"] > 0
    found = check_ok(await rest.get(f"/api/v1/runs/{done['run_id']}"))
    assert (found["kind"], found["workflow"], found["labels"]) == ("GRAPH", "order", {"shop": "east"})
    assert json.dumps(found["input"]) == json.dumps(GOOD)
    steps = {each["id"]: each for each in check_ok(await rest.get(f"/api/v1/runs/{done['run_id']}/steps"))["items"]}
    assert {name: each["status"] for name, each in steps.items()} == {
        "pay": "COMPLETED", "refund": "SKIPPED", "pack": "COMPLETED", "ship": "COMPLETED",
    }  # fmt: skip
    assert steps["pack"]["items"] == {"begun": 3, "ended": 3, "failed": 0}
    assert steps["pack"]["output"] == ["parcel of ink", "parcel of pens", "parcel of paper"]
    assert steps["ship"]["input"]["parcels"] == steps["pack"]["output"]
    kinds = [each["type"] for each in check_ok(await rest.get(f"/api/v1/runs/{done['run_id']}/events"))["items"]]
    assert (kinds[0], kinds[-1], kinds.count("TASK_COMPLETED")) == ("RUN_CREATED", "RUN_COMPLETED", 5)


async def test_what_was_done_is_undone_when_a_step_fails(rest: Http, orders: Process) -> None:
    """A saga: the payment is given back, and the run says why it failed; a retry goes through it again."""
    done = check_ok(await rest.post(f"{PATH}/sync", json={"input": BAD}))
    assert (done["status"], done["error"]["code"]) == ("FAILED", "REFUSED_BY_CARRIER")
    assert done["error"]["message"].startswith("step ship: ")
    steps = {each["id"]: each for each in check_ok(await rest.get(f"/api/v1/runs/{done['run_id']}/steps"))["items"]}
    assert steps["refund"]["output"]["refunded"] == steps["pay"]["output"]["payment"]
    again = check_ok(await rest.post(f"/api/v1/runs/{done['run_id']}/retry", json={"note": "once more"}))
    assert (again["status"], again["retry_attempt"]) == ("RUNNING", 1)
    end = check_ok(await rest.get(f"/api/v1/runs/{done['run_id']}/result", params={"timeout": 30}))
    assert (end["status"], end["error"]["code"]) == ("FAILED", "REFUSED_BY_CARRIER")
    paid = {each["id"]: each for each in check_ok(await rest.get(f"/api/v1/runs/{done['run_id']}/steps"))["items"]}
    assert paid["pay"]["task_id"] != steps["pay"]["task_id"]


async def test_an_execution_answers_at_once(rest: Http, orders: Process) -> None:
    """WM-3: the run id; a key's duplicate begins nothing; an unknown workflow, version or a bad input is refused."""
    headers = {"x-idempotency-key": uuid.uuid4().hex}
    first = await rest.post(PATH, json={"input": GOOD}, headers=headers)
    begun = check_ok(first)
    assert {*begun} == {"run_id", "workflow", "version", "status", "created_at"}
    second = await rest.post(PATH, json={"input": GOOD}, headers=headers)
    assert (check_ok(second)["run_id"], second.headers["idempotency-replayed"]) == (begun["run_id"], "true")
    end = check_ok(await rest.get(f"/api/v1/runs/{begun['run_id']}/result"))
    assert end["completed"] is True
    check_error(await rest.post("/api/v1/workflows/none/execute", json={}), 404, "NOT_FOUND")
    check_error(await rest.post(PATH, json={"version": "99"}), 404, "NOT_FOUND")
    refused = await rest.post(PATH, json={"input": {"customer": "x"}})
    check_error(refused, 422, "VALIDATION_ERROR", "input", "input")
    assert {each["message"] for each in refused.json()["details"]} == {
        '"items" is a required property', '"amount" is a required property',
    }  # fmt: skip


async def test_many_are_begun_at_once(rest: Http, orders: Process) -> None:
    """An outcome for each; one that cannot begin fails alone."""
    runs: list[dict[str, Any]] = [{"workflow_id": "order", "input": GOOD} for _ in range(5)]
    answer = check_ok(await rest.post("/api/v1/workflows:execute", json={"runs": [*runs, {"workflow_id": "none"}]}))
    assert (answer["accepted"], answer["failed"]) == (5, 1)
    assert answer["results"][5]["error"]["code"] == "NOT_FOUND"
    ends = [check_ok(await rest.get(f"/api/v1/runs/{each['run_id']}/result")) for each in answer["results"][:5]]
    assert {end["status"] for end in ends} == {"COMPLETED"}


async def test_the_client_executes(stack: Stack, orders: Process) -> None:
    """FV-14: a method for each."""
    async with Client(stack.target) as client:
        done = await client.workflows.execute_sync("order", GOOD, labels={"a": "b"})
        assert (done.status, done.completed, done.error) == ("COMPLETED", True, None)
        begun = await client.workflows.execute("order", BAD)
        end = await client.runs.result(begun.run_id, wait=30)
        assert (end.status, end.error.code if end.error else "") == ("FAILED", "REFUSED_BY_CARRIER")
        steps = [step async for step in client.runs.steps(begun.run_id)]
        assert [step.id for step in steps] == ["pay", "refund", "pack", "ship"]
        assert steps[2].items == (2, 2, 0)
        outcomes = await client.workflows.execute_batch([NewRun("order", GOOD), NewRun("none")])
        assert [each.status for each in outcomes] == ["accepted", "failed"]


async def test_the_commands_execute(stack: Stack, orders: Process) -> None:
    """FV-14: a command for each; the exit code tells how the run ended."""
    to = ("--target", stack.target)
    code, output, _ = await run("workflows", "execute", "order", json.dumps(GOOD), "--wait", "--json", *to)
    assert (code, json.loads(output)["output"]["tracking"]) == (0, "track-3")
    code, output, _ = await run("workflows", "execute", "order", json.dumps(BAD), "--label", "a=b", "--json", *to)
    run_id = json.loads(output)["run_id"]
    assert code == 0
    code, output, _ = await run("runs", "result", run_id, *to)
    assert code == 1
    assert "REFUSED_BY_CARRIER" in output
    code, output, _ = await run("runs", "steps", run_id, *to)
    assert code == 0
    assert all(name in output for name in ("pay", "refund", "pack", "ship", "2 of 2 items"))


async def test_the_command_follows_a_run(stack: Stack, orders: Process) -> None:
    """Every event once, in order, until the run ends."""
    async with Client(stack.target) as client:
        begun = await client.workflows.execute("order", GOOD)
        code, output, _ = await run("runs", "tail", begun.run_id, "--json", "--target", stack.target)
        events = [event async for event in client.runs.events(begun.run_id)]
    assert code == 0
    assert [json.loads(line)["sequence"] for line in output.splitlines()] == [event.sequence for event in events]
    assert json.loads(output.splitlines()[-1])["type"] == "RUN_COMPLETED"


async def test_a_killed_server_takes_no_run_with_it(stack: Stack, rest: Http, orders: Process) -> None:
    """FV-19: runs begun before go on at the other server, each step's effect once."""
    runs = [{"workflow_id": "order", "input": {**GOOD, "items": [*range(20)]}} for _ in range(20)]
    answer = check_ok(await rest.post("/api/v1/workflows:execute", json={"runs": runs}))
    await stack.servers[0].kill()
    await stack.restart(0)
    ends = await asyncio.gather(
        *(rest.get(f"/api/v1/runs/{each['run_id']}/result", params={"timeout": 60}) for each in answer["results"])
    )
    found = [check_ok(end) for end in ends]
    assert [(end["status"], end.get("error")) for end in found] == [("COMPLETED", None)] * 20
    assert {end.json()["output"]["tracking"] for end in ends} == {"track-20"}
