"""The example of approvals by hand, as its users run it: an agent that asks, and a person who answers."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.e2e.answers import check_ok
from tests.e2e.stack import Process, Stack
from tests.e2e.test_rest_gates import until

Client = httpx.AsyncClient
APPROVALS = Path(__file__).parents[2] / "examples" / "approvals.py"


@pytest.fixture(scope="module")
async def approvals(stack: Stack) -> Process:
    """examples/approvals.py as a worker of the default tenant, through the proxy."""
    return await stack.worker(APPROVALS, "approvals")


async def asked(rest: Client, expense_id: str) -> str:
    """The path of the promise that an expense waits for, once there is one."""
    path = f"/api/v1/promises/key:expense-{expense_id}"

    async def is_there() -> bool:
        return (await rest.get(path)).status_code == 200

    await until(is_there)
    return path


def expense(amount: float) -> dict[str, Any]:
    """A new expense to publish."""
    return {"type": "Expense", "payload": {"expense_id": uuid.uuid4().hex, "amount": amount, "reason": "a desk"}}


async def outcome(rest: Client, new: dict[str, Any]) -> dict[str, Any]:
    """What came of an expense in the end: the last artifact of its cascade."""
    result = check_ok(await rest.post("/api/v1/artifacts/sync", json={**new, "timeout": 60}))
    last: dict[str, Any] = result["artifacts"][-1]
    return {"type": last["type"], **last["payload"]}


async def test_a_small_expense_needs_nobody(rest: Client, approvals: Process) -> None:
    """The example's limit."""
    found = await outcome(rest, expense(12.5))
    assert (found["type"], found["amount"], found["approved_by"]) == ("Reimbursement", 12.5, "")


@pytest.mark.parametrize(
    ("verb", "answer", "expected"),
    [
        (
            "resolve",
            {"value": {"approved": True}},
            {"type": "Reimbursement", "amount": 950, "approved_by": "developer"},
        ),
        ("resolve", {"value": {"approved": False}}, {"type": "Refusal", "why": "DECLINED"}),
        ("reject", {"code": "OVER_BUDGET"}, {"type": "Refusal", "why": "OVER_BUDGET"}),
        ("cancel", {}, {"type": "Refusal", "why": "CANCELLED"}),
    ],
)
async def test_a_large_expense_waits_for_its_answer(
    rest: Client, approvals: Process, verb: str, answer: dict[str, Any], expected: dict[str, Any]
) -> None:
    """FV-17: whoever approves sees what is asked, and what follows depends on the answer."""
    new = expense(950)
    waiting = asyncio.create_task(outcome(rest, new))
    path = await asked(rest, new["payload"]["expense_id"])
    assert check_ok(await rest.get(path))["input"] == new["payload"]
    check_ok(await rest.post(f"{path}/{verb}", json=answer))
    assert await waiting == {"expense_id": new["payload"]["expense_id"], **expected}


async def test_who_approves_may_use_the_command_line(stack: Stack, rest: Client, approvals: Process) -> None:
    """FV-14, FV-17: listed, awaited and resolved by `millstream promises`."""
    new = expense(950)
    waiting = asyncio.create_task(outcome(rest, new))
    path = await asked(rest, new["payload"]["expense_id"])
    named = path.rpartition("/")[2]
    listed = await stack.command("promises", "list", "--state", "pending", "--name", "approval")
    await listed.line(named.removeprefix("key:"))
    awaiting = await stack.command("promises", "await", named, "--json")
    resolved = await stack.command("promises", "resolve", named, '{"approved": true}')
    assert (await resolved.ended(), await listed.ended(), await awaiting.ended()) == (0, 0, 0)
    assert (await waiting)["type"] == "Reimbursement"


async def test_another_worker_goes_on_waiting_for_the_same_answer(
    stack: Stack, rest: Client, approvals: Process
) -> None:
    """FV-17, FV-19: kill -9 of the worker that asked; the next attempt finds the promise that the first one made."""
    new = expense(950)
    waiting = asyncio.create_task(outcome(rest, new))
    path = await asked(rest, new["payload"]["expense_id"])
    promise = check_ok(await rest.get(path))
    await approvals.kill()
    await stack.worker(APPROVALS, "approvals-2")

    async def tried_again() -> bool:
        tasks = check_ok(await rest.get("/api/v1/tasks", params={"kind": "agent:expenses", "status": "RUNNING"}))
        return any(task["attempt"] == 2 and task["progress"] for task in tasks["items"])

    await until(tried_again)
    check_ok(await rest.post(f"{path}/resolve", json={"value": {"approved": True}}))
    assert (await waiting)["type"] == "Reimbursement"
    listed = check_ok(await rest.get("/api/v1/promises", params={"key": promise["key"]}))
    assert [each["promise_id"] for each in listed["items"]] == [promise["promise_id"]]
