"""Everything that `ctx` offers goes the same way in `millstream.testing` as in the service."""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.e2e.answers import check_ok

from millstream.sdk import Client, Worker
from millstream.testing import Environment, History, RunFailed, replay

if TYPE_CHECKING:
    import httpx
    from tests.e2e.stack import Process, Stack

PROGRAM = Path(__file__).with_name("parity_worker.py")
WAIT_S = 30
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Case:
    """A run, and what is done to it from outside.

    Attributes:
        does: What is done, in order: ("signal", name, value), ("resolve", key, value), ("reject", key, code),
            ("cancel", reason), or ("stands", n): wait until the run has given so many commands, ("ready",): until its
            code says so, ("anew",): until it has continued as new.
        first: A signal to start it with.
    """

    workflow: str
    input: Any = None
    does: Sequence[tuple[Any, ...]] = ()
    first: tuple[str, Any] | None = None
    version: str = ""
    timeout: float = 0

    def __str__(self) -> str:
        return f"{self.workflow} {self.input}" if self.input is not None else self.workflow


CASES = [
    Case("kit.policies"),
    Case("kit.timeouts"),
    *(Case("kit.gather", how) for how in ("all", "each", "first")),
    Case("kit.sleep"),
    *(Case("kit.children", how) for how in ("all", "fails", "ends first", "gives up")),
    Case("kit.promises", "kit", (("ready",), ("resolve", "kit-1", {"by": "Ann"}), ("stands", 8), ("reject", "kit-2"))),
    Case(
        "kit.signals", None, [("signal", "two", 2), ("ready",), ("signal", "four", [4]), ("signal", "one", 11)],
        first=("one", 1),
    ),
    Case("kit.publish"),
    Case("kit.recorded"),
    Case("kit.anew", 1, [("signal", "other", "o"), ("signal", "next", 1), ("anew",), ("signal", "next", 2)]),
    *(
        Case("kit.careful", how, [("stands", 4), ("cancel", "enough")])
        for how in ("cleans up", "goes on", "never ends", "fails")
    ),
    *(Case("kit.raises", how) for how in ("cancels itself", "error", "NO")),
    Case("kit.careful", "times out", timeout=0.3),
    Case("kit.pinned"),
    Case("kit.pinned", version="1"),
]  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """What became of a run."""

    status: str
    output: Any
    code: str
    state: dict[str, Any]
    history: list[Any]
    events: list[str]


def shown(value: Any) -> str:
    """A value on the wire, where null may be said or left out."""
    return "" if value.WhichOneof("kind") == "null_value" else str(value)


def plain(value: Any) -> Any:
    """Without ids, which are not the same."""
    return json.loads(_UUID.sub("ID", json.dumps(value)))


def shape(history: History) -> list[Any]:
    """A history without times and numbers of events, which the service gives to other things too."""
    found: list[Any] = []
    for item in history.items:
        if item.HasField("event"):
            event = item.event
            found.append((int(event.type), event.step, event.name, event.error.code, shown(event.value)))
        else:
            given = item.command
            found.append((given.number, int(given.type), given.name, given.error.code, shown(given.value), given.step))
    return [plain(each) for each in found]


def order(events: Sequence[str]) -> list[str]:
    """Events in order, but for the starts of tasks: a server may hand a task to a worker of the other's a bit later."""
    return [each for each in events if each != "TASK_STARTED"] + ["TASK_STARTED"] * events.count("TASK_STARTED")


@pytest.fixture(scope="module")
async def kit(stack: Stack) -> Process:
    """The workflows of parity_worker.py, in one process."""
    return await stack.worker(PROGRAM, "kit-parity")


@pytest.fixture(scope="module")
async def client(stack: Stack) -> AsyncIterator[Client]:
    """To the service."""
    async with Client(stack.target) as made:
        yield made


async def reached(client: Client, run_id: str, what: tuple[Any, ...]) -> None:
    """Wait until the run has come so far."""
    async with asyncio.timeout(WAIT_S):
        while True:
            if await _is_at(client, run_id, *what):
                return
            await asyncio.sleep(0.02)


async def _is_at(client: Client, run_id: str, what: str, count: int = 0) -> bool:
    match what:
        case "stands":
            history = await client.runs.history(run_id)
            return sum(item.HasField("command") for item in history.items) >= count
        case "anew":
            return "CONTINUED_AS_NEW" in [each.type async for each in client.runs.events(run_id)]
        case _:
            return bool((await client.runs.state(run_id)).get("ready"))


async def there(client: Client, rest: httpx.AsyncClient, case: Case, run_id: str, worker: Worker) -> Seen:
    """The run in the service."""
    if case.timeout:
        body = {"input": case.input, "run_timeout": f"{case.timeout}s"}
        run_id = check_ok(await rest.post(f"/api/v1/workflows/{case.workflow}/execute", json=body))["run_id"]
    else:
        await client.runs.start(case.workflow, case.input, version=case.version, run_id=run_id, signal=case.first)
    for kind, *told in case.does:
        match kind:
            case "signal":
                await client.runs.signal(run_id, *told)
            case "resolve" | "reject":
                await getattr(client.promises, kind)(f"key:{told[0]}", *told[1:])
            case "cancel":
                await client.runs.cancel(run_id, *told)
            case _:
                await reached(client, run_id, (kind, *told))
    end = await client.runs.result(run_id, WAIT_S)
    history = await client.runs.history(run_id)
    await replay(history, worker)
    code = end.error.code if end.error is not None else ""
    return Seen(
        end.status, plain(end.output), code, plain(await client.runs.state(run_id)),
        shape(history), order([each.type async for each in client.runs.events(run_id)]),
    )  # fmt: skip


async def here(env: Environment, case: Case, run_id: str) -> Seen:
    """The run in the environment."""
    run = await env.start(
        case.workflow, case.input, version=case.version, run_id=run_id, signal=case.first, timeout=case.timeout
    )  # fmt: skip
    for kind, *told in case.does:
        match kind:
            case "signal":
                await run.signal(*told)
            case "resolve":
                await env.resolve(*told)
            case "reject":
                await env.reject(*told)
            case "cancel":
                await run.cancel(*told)
            case "ready":
                while not run.state.get("ready"):
                    await env.sleep(0.01)
    output, code = None, ""
    try:
        output = await run.result()
    except RunFailed as failed:
        code = failed.code
    return Seen(run.status, plain(output), code, plain(run.state), shape(run.history), order(run.events))


@pytest.mark.usefixtures("kit")
@pytest.mark.parametrize("case", CASES, ids=str)
async def test_whatever_a_run_asks_for_goes_the_same_way(
    case: Case, client: Client, rest: httpx.AsyncClient, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FV-18: end, output, error, memory, history and events are equal; and the service's history is replayed."""
    monkeypatch.setenv("MILLSTREAM_TARGET", stack.target)
    program = importlib.import_module("tests.e2e.parity_worker")
    run_id = str(uuid.uuid4())
    async with Environment(program.worker) as env:
        env.fake_task("kit.hang", None, takes=None)
        seen = await here(env, case, run_id)
    assert seen == await there(client, rest, case, run_id, program.worker)
