"""The examples of a fan-out and of a saga, executed as their users do: through the proxy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.e2e.answers import check_ok
from tests.e2e.stack import Process, Stack

Http = httpx.AsyncClient
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
async def fan_out(stack: Stack) -> Process:
    """examples/fan_out.py, through the proxy."""
    return await stack.worker(EXAMPLES / "fan_out.py", "fan-out")


@pytest.fixture(scope="module")
async def saga(stack: Stack) -> Process:
    """examples/saga.py, through the proxy."""
    return await stack.worker(EXAMPLES / "saga.py", "saga")


async def execute(rest: Http, workflow: str, given: Any) -> dict[str, Any]:
    """Run it to its end."""
    answer = await rest.post(f"/api/v1/workflows/{workflow}/execute/sync", json={"input": given})
    return dict(check_ok(answer))


async def test_a_list_is_worked_on_item_by_item(rest: Http, fan_out: Process) -> None:
    """WM-3: a task for each page, the counts joined; of nothing, nothing."""
    done = await execute(rest, "word-counts", {"pages": ["a rose is a rose", "a tulip", ""]})
    assert done["output"] == {"pages": 3, "words": {"a": 3, "rose": 2, "is": 1, "tulip": 1}}
    tasks = check_ok(await rest.get(f"/api/v1/runs/{done['run_id']}/tasks"))["items"]
    assert [task["kind"] for task in tasks] == ["pages.count"] * 3 + ["pages.add"]
    many = await execute(rest, "word-counts", {"pages": ["word"] * 200})
    assert many["output"] == {"pages": 200, "words": {"word": 200}}
    assert (await execute(rest, "word-counts", {"pages": []}))["output"] == {"pages": 0, "words": {}}


async def test_what_was_booked_is_given_back(rest: Http, saga: Process) -> None:
    """WM-3: in reverse order, and nothing for what was never booked."""
    done = await execute(rest, "trip", {"traveller": "ann", "to": "Lisbon"})
    assert {*done["output"]} == {"flight", "room", "car"}
    failed = await execute(rest, "trip", {"traveller": "ann", "to": "Atlantis"})
    assert (failed["status"], failed["error"]["code"]) == ("FAILED", "NOT_TO_BE_HAD")
    steps = check_ok(await rest.get(f"/api/v1/runs/{failed['run_id']}/steps"))["items"]
    found = {step["id"]: step for step in steps}
    assert {name: step["status"] for name, step in found.items()} == {
        "flight": "COMPLETED", "no_flight": "COMPLETED", "room": "COMPLETED", "no_room": "COMPLETED",
        "car": "FAILED", "no_car": "SKIPPED",
    }  # fmt: skip
    for what in ("flight", "room"):
        assert found[f"no_{what}"]["output"] == {"cancelled": found[what]["output"]["booking"]}
    assert found["no_room"]["finished_at"] <= found["no_flight"]["created_at"]
