"""Runs of code go on at another worker process, cold and then warm: the one that had the run is killed between an
activation and its answer, an event comes meanwhile, the code is changed; histories are compared with a stored one.
(FV-18, FV-19)"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.e2e.answers import check_ok
from tests.e2e.test_testing_parity import shape

from millstream.sdk import Client
from millstream.testing import History, replay

if TYPE_CHECKING:
    import httpx
    from tests.e2e.stack import Process, Stack

    Rest = httpx.AsyncClient

PROGRAM = Path(__file__).with_name("replay_worker.py")
STORED = Path(__file__).with_name("replayed_history.json")
"""What a run of it has seen and done whose first worker was killed; of the release that first ran such."""


async def worker_of(stack: Stack, queue: str, who: str, **environment: str) -> Process:
    """A worker process of this queue."""
    return await stack.worker(PROGRAM, f"{who} of {queue}", WHO=who, QUEUE=queue, **environment)


async def stalled(rest: Rest, queue: str, first: Process) -> str:
    """Begin a run, and return its path once the worker is in the midst of an activation, told of a signal meanwhile."""
    body = {"workflow": "replayed", "input": 1, "queue": queue}
    path = f"/api/v1/runs/{check_ok(await rest.post('/api/v1/runs', json=body))['run_id']}"
    await first.line("stalls")
    check_ok(await rest.post(f"{path}/signals/go", json={"value": "meanwhile"}))
    return path


async def completed(rest: Rest, path: str, passed: str) -> None:
    """Once the run has ended: with what the first worker has noted, and what another has passed."""
    result = check_ok(await rest.get(f"{path}/result", params={"timeout": 60}, timeout=90))
    state = check_ok(await rest.get(f"{path}/state"))["state"]
    assert result["status"] == "COMPLETED", result
    assert result["output"] == {
        "drawn": state["drawn"], "noted": "first", "passed": passed, "word": "meanwhile", "last": 5,
    }  # fmt: skip
    tasks = check_ok(await rest.get(f"{path}/tasks"))["items"]
    kinds = [(task["kind"], task["attempt"]) for task in tasks if task["kind"] != "sleep"]
    assert kinds == [("replayed-echo", 1)] * 4


async def history_of(stack: Stack, path: str) -> History:
    """What its code has seen and done."""
    async with Client(stack.target) as client:
        return await client.runs.history(path.rpartition("/")[2])


@pytest.mark.parametrize("there", [True, False], ids=["is there", "comes later"])
async def test_a_worker_is_killed_between_activation_and_answer(
    rest: Rest, stack: Stack, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code is led from its beginning once, and not again at each step that follows; the history is the stored
    one, and the code of today fits both."""
    queue = f"replays-{there}"
    first = await worker_of(stack, queue, "first", STALLS="1")
    path = await stalled(rest, queue, first)
    second = await worker_of(stack, queue, "second") if there else None
    await first.kill()
    second = second or await worker_of(stack, queue, "second")
    await completed(rest, path, "second")
    assert [line for line in second.lines if line in ("begins", "stalls")] == ["begins", "stalls"]
    await second.stop()
    found, stored = await history_of(stack, path), History.from_dict(json.loads(STORED.read_text()))
    # What ran at once may have ended in another order.
    assert sorted(map(str, shape(without_chance(found)))) == sorted(map(str, shape(without_chance(stored))))
    monkeypatch.setenv("MILLSTREAM_TARGET", stack.target)
    program: Any = importlib.import_module("tests.e2e.replay_worker")
    for each in (found, stored):
        await replay(each, program.worker)


def without_chance(history: History) -> History:
    """The history but for what another run draws otherwise."""
    for item in history.items:
        if item.command.name == "drawn":
            item.command.ClearField("value")
    return history


async def test_changed_code_that_takes_over_is_told_and_mended_code_goes_on(rest: Rest, stack: Stack) -> None:
    """NON_DETERMINISM names both histories; what was done and what came meanwhile stands; the retry ends the run."""
    queue = "replays-changed"
    first = await worker_of(stack, queue, "first", STALLS="1")
    path = await stalled(rest, queue, first)
    await first.kill()
    changed = await worker_of(stack, queue, "changed", CHANGED="1")
    result = check_ok(await rest.get(f"{path}/result", params={"timeout": 60}, timeout=90))
    assert (result["status"], result["error"]["code"]) == ("FAILED", "NON_DETERMINISM")
    before, code = result["error"]["message"].split("code:")
    assert "TASK 'replayed-echo'" in before
    assert "TASK 'replayed-other'" in code
    seen = shape(await history_of(stack, path))
    await changed.stop()
    mended = await worker_of(stack, queue, "mended")
    check_ok(await rest.post(f"{path}/retry", json={"note": "undone"}))
    await completed(rest, path, "mended")
    assert [each for each in shape(await history_of(stack, path)) if each in seen] == seen
    await mended.stop()
