"""Every documented request and answer of FL, FV and WM, replayed through Envoy, two servers and a worker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.e2e.answers import check_ok
from tests.e2e.golden import differences, replay, scenarios
from tests.e2e.stack import READY_S, Process, Stack

WORKER = Path(__file__).with_name("golden_worker.py")
REQUIRED = {
    *(f"FL-{n}" for n in (1, 2, 3, 4, 5, 7, 8, 10, 11, 12, 13, 14, 17, 18)),
    *(f"FV-{n}" for n in (2, 3, 4, 5, 6, 9, 10, 11, 17)),
    *(f"WM-{n}" for n in (1, 2, 3, 4, 5, 10, 11)),
}


@pytest.fixture(scope="module")
async def golden(stack: Stack) -> Process:
    """The worker whose kinds the files name."""
    return await stack.worker(WORKER, "golden")


@pytest.mark.usefixtures("golden")
@pytest.mark.parametrize("path", scenarios(), ids=lambda path: path.stem)
async def test_the_service_answers_as_documented(path: Path, rest: httpx.AsyncClient) -> None:
    """Each file names its requirements."""
    await replay(path, rest)


async def until(rest: httpx.AsyncClient, path: str, met: Callable[[Any], bool]) -> Any:
    """What is found at a path, once it is as wanted."""
    async with asyncio.timeout(READY_S):
        while True:
            if met(found := check_ok(await rest.get(path))):
                return found
            await asyncio.sleep(0.02)


@pytest.mark.usefixtures("golden")
async def test_an_execution_shows_the_progress_that_is_reported_in_it(rest: httpx.AsyncClient) -> None:
    """FV-4: alone and in a list, while it is; else its shape is the documented one."""
    tenant = "/api/tenants/default"
    made = check_ok(await rest.post(f"{tenant}/tasks", json={"taskType": "golden.half"}), 201)
    path = f"{tenant}/workflow-executions/{made['workflowExecutionId']}"
    found = await until(rest, path, lambda execution: "progress" in execution)
    assert (found["progress"], found["progressDetails"]) == (0.5, "half of it")
    check_ok(await rest.post(f"{path}/cancel", json={}))
    found = await until(rest, path, lambda execution: execution["status"] == "CANCELLED")
    assert not {"progress", "progressDetails"} & found.keys()


def test_every_documented_row_has_a_file() -> None:
    told = " ".join(json.loads(path.read_text())["about"] for path in scenarios())
    assert {each for each in REQUIRED if each not in told.replace(",", " ").replace(":", " ").split()} == set()


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        ({"a": 1}, {"a": 1, "b": 2}),
        ({"a": 1}, {}),
        ({"a": "<integer>"}, {"a": "1"}),
        ({"a": "<integer>"}, {"a": True}),
        ({"a": True}, {"a": 1}),
        ({"a": None}, {"a": ""}),
        (["<each>", "<uuid>"], []),
        (["<each>", "<uuid>"], ["x"]),
        (["<some>", 1], [2, 3]),
        ([1], [1, 2]),
        ("<time>", "yesterday"),
        ("<text>", ""),
        ({"a": {"b": 1}}, {"a": []}),
    ],
)
def test_what_is_not_as_documented_is_told(expected: object, found: object) -> None:
    """The comparison itself."""
    assert differences(expected, found)
