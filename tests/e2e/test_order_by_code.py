"""The example's order as code, executed as its users do: through the proxy, by the shell."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import httpx
import pytest
from tests.e2e.answers import check_ok
from tests.e2e.stack import Process, Stack
from tests.e2e.test_commands import run
from tests.e2e.test_rest_gates import until

Http = httpx.AsyncClient
EXAMPLE = Path(__file__).parents[2] / "examples" / "order_by_code.py"
ORDER = {"customer": "ann", "items": ["ink", "pens"], "amount": 12}


@pytest.fixture(scope="module")
async def orders(stack: Stack) -> Process:
    """examples/order_by_code.py, through the proxy."""
    return await stack.worker(EXAMPLE, "orders by code")


async def test_it_is_executed_like_a_definition(rest: Http, orders: Process) -> None:
    """FV-18: the same answer as that of the steps, and the same undoing."""
    path = "/api/v1/workflows/order-by-code/execute/sync"
    done = check_ok(await rest.post(path, json={"input": ORDER}))
    assert (done["status"], done["workflow"], done["version"]) == ("COMPLETED", "order-by-code", "1")
    assert done["output"] == {"payment": "pay-ann", "tracking": "track-2", "approved_by": ""}
    failed = check_ok(await rest.post(path, json={"input": {**ORDER, "items": ["lava"]}}))
    assert (failed["status"], failed["error"]["code"]) == ("FAILED", "REFUSED_BY_CARRIER")
    tasks = check_ok(await rest.get(f"/api/v1/runs/{failed['run_id']}/tasks"))["items"]
    assert [each["kind"] for each in tasks if each["kind"] == "code-refund"] == ["code-refund"]


async def test_the_commands_start_and_signal(stack: Stack, rest: Http, orders: Process) -> None:
    """FV-17, FV-14: what it waits for is shown, a signal lets it go on, and a start with a signal finds it."""
    to = ("--target", stack.target)
    large = json.dumps({**ORDER, "amount": 5000})
    code, output, _ = await run("runs", "start", "order-by-code", large, "--json", *to)
    run_id = json.loads(output)["run_id"]
    assert code == 0

    async def waits() -> bool:
        _, shown, _ = await run("runs", "state", run_id, *to)
        return bool(json.loads(shown).get("waits for") == "approval")

    await until(waits)
    code, output, _ = await run("runs", "signal", run_id, "approved", '{"by": "carol"}', *to)
    assert (code, output.strip()) == (0, f"run {run_id} is told approved")
    code, output, _ = await run("runs", "result", run_id, "--json", *to)
    assert (code, json.loads(output)["output"]["approved_by"]) == (0, "carol")
    own = str(uuid.uuid4())
    told = ("--run-id", own, "--signal", "approved", "--value", '{"by": "dan"}', "--wait", "30", "--json", *to)
    code, output, _ = await run("runs", "start", "order-by-code", large, *told)
    assert (code, json.loads(output)["output"]["approved_by"], json.loads(output)["run_id"]) == (0, "dan", own)
