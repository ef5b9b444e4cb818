"""Workflows as documents go the same way in `millstream.testing` as in the service, by all kinds of steps."""

from __future__ import annotations

import asyncio
import importlib
import json
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from examples import order_workflow
from tests.e2e.answers import check_ok

from millstream.sdk import Client
from millstream.sdk.documents import read_documents
from millstream.testing import Environment, RunFailed

if TYPE_CHECKING:
    import httpx
    from tests.e2e.stack import Process, Stack

PROGRAM = Path(__file__).with_name("parity_worker.py")
DOCUMENTS = Path(__file__).with_name("parity_documents.yaml")
EXAMPLE = Path(order_workflow.__file__)
WAIT_S = 30
_IDS = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|pay-[0-9a-f]{6}")


@dataclass(frozen=True)
class Case:
    """A run, and what is done to it from outside, once it has had so many events.

    Attributes:
        does: ("resolve", key, value), ("reject", key, code, message), ("cancel", reason).
        at_once: Steps of it run at the same time, so the order of their events is not the same each time.
    """

    workflow: str
    input: Any = None
    does: Sequence[Any] = ()
    events: int = 0
    at_once: bool = False

    def __str__(self) -> str:
        return f"{self.workflow} {self.input}" if self.input is not None else self.workflow


CASES = [
    Case("kit-small", {"n": 1}),
    Case("kit-all", {"n": 1}),
    Case("kit-all", {"n": 20}),
    Case("kit-saga"),
    Case("kit-tolerant"),
    Case("kit-map-fails"),
    Case("kit-wide", at_once=True),
    Case("kit-slow"),
    Case("kit-hangs"),
    Case("kit-late-child"),
    Case("kit-nobody"),
    Case("kit-no-value", {}),
    Case("kit-bad-answer"),
    Case("kit-approved", {"id": "a"}, ["resolve", "kit-a", {"n": 4}], 2),
    Case("kit-approved", {"id": "b"}, ["reject", "kit-b", "NO", "not today"], 2),
    Case("kit-waits", None, ["cancel", "enough"], 5, at_once=True),
    Case("kit.documents", 5),
    Case("order", {"customer": "ann", "items": ["ink"], "amount": 12.5}),
    Case("order", {"customer": "bob", "items": ["lava"], "amount": 3}),
    Case("order", {"customer": "eve", "items": ["ink", "pens", "paper"], "amount": 3}, at_once=True),
]


@dataclass(frozen=True)
class Seen:
    """What became of a run."""

    status: str
    output: Any
    error: tuple[str, str]
    steps: Any
    events: list[str]


def plain(value: Any) -> Any:
    """Without ids, which are not the same."""
    return json.loads(_IDS.sub("ID", json.dumps(value)))


def order(events: Sequence[str]) -> list[str]:
    """Events in order, but for the starts of tasks: a server may hand a task to a worker of the other's a bit later."""
    return [each for each in events if each != "TASK_STARTED"] + ["TASK_STARTED"] * events.count("TASK_STARTED")


@pytest.fixture(scope="module")
async def client(stack: Stack) -> AsyncIterator[Client]:
    """To the service."""
    async with Client(stack.target) as made:
        yield made


@pytest.fixture(scope="module")
async def kit(stack: Stack, client: Client) -> list[Process]:
    """The workers of parity_worker.py and of the example, and the documents."""
    workers = [await stack.worker(PROGRAM, "kit-documents"), await stack.worker(EXAMPLE, "kit-orders")]
    await workers[1].line("as version")
    for each in read_documents(DOCUMENTS):
        await client.workflows.apply(each)
    return workers


async def there(client: Client, rest: httpx.AsyncClient, case: Case) -> Seen:
    """The run in the service."""
    body = {"input": case.input}
    run_id = check_ok(await rest.post(f"/api/v1/workflows/{case.workflow}/execute", json=body))["run_id"]
    if case.does:
        async with asyncio.timeout(WAIT_S):
            while True:
                if len([each async for each in client.runs.events(run_id)]) >= case.events:
                    break
                await asyncio.sleep(0.02)
    match case.does:
        case ["cancel", reason]:
            await client.runs.cancel(run_id, reason)
        case [("resolve" | "reject") as kind, key, *told]:
            await getattr(client.promises, kind)(f"key:{key}", *told)
    end = await client.runs.result(run_id, WAIT_S)
    error = (end.error.code, end.error.message) if end.error is not None else ("", "")
    steps = {each.id: (each.status, each.output) async for each in client.runs.steps(run_id)}
    events = [each.type async for each in client.runs.events(run_id)]
    return Seen(end.status, plain(end.output), plain(error), plain(steps), order(events))


async def here(env: Environment, case: Case) -> Seen:
    """The run in the environment."""
    run = await env.start(case.workflow, case.input)
    match case.does:
        case ["cancel", reason]:
            await run.cancel(reason)
        case [("resolve" | "reject") as kind, *told]:
            await getattr(env, kind)(*told)
    output, error = None, ("", "")
    try:
        output = await run.result()
    except RunFailed as failed:
        error = (failed.code, failed.message)
    steps = {name: (each.status, each.output) for name, each in (await run.steps()).items()}
    return Seen(run.status, plain(output), plain(error), plain(steps), order(run.events))


@pytest.mark.usefixtures("kit")
@pytest.mark.parametrize("case", CASES, ids=str)
async def test_a_document_goes_the_same_way(
    case: Case, client: Client, rest: httpx.AsyncClient, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FV-18: end, output, error, steps and events of a run are equal."""
    monkeypatch.setenv("MILLSTREAM_TARGET", stack.target)
    program = importlib.import_module("tests.e2e.parity_worker")
    async with Environment(program.worker, order_workflow.worker) as env:
        await env.define(DOCUMENTS, order_workflow.ORDER)
        env.fake_task("kit.hang", None, takes=None)
        seen = await here(env, case)
    found = await there(client, rest, case)
    if case.at_once:
        seen, found = (replace(each, events=sorted(each.events)) for each in (seen, found))
    assert seen == found
