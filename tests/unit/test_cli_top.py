"""`millstream top`: what a look shows, and how it goes on where the service is away."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from rich.console import Console
from tests.unit.scripted import Abort, ScriptedService, start
from typer.testing import CliRunner, Result

from millstream.cli.app import app
from millstream.cli.top_frame import Frame, busy, draw
from millstream.sdk import Queue, Throughput, WorkerInfo
from millstream.sdk import calls as calls_module

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
ENDS = Throughput(60, 120, 3, 4, 5, 60, 0, 1)


def queue(name: str, ready: int = 0, running: int = 0, **fields: Any) -> Queue:
    return replace(Queue(name, ready, 0, 0, running, None, False, None, "", ""), **fields)


def worker(name: str, used: int = 0, **fields: Any) -> WorkerInfo:
    heard = NOW - timedelta(seconds=7)
    return replace(
        WorkerInfo("w-1", name, "ONLINE", "host/1", NOW, heard, None, 10, used, ("default",), (), ()), **fields
    )


def drawn(frame: Frame, limit: int = 20) -> list[str]:
    console = Console(width=200, no_color=True)
    with console.capture() as capture:
        console.print(draw(frame, "127.0.0.1:8080", limit))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_what_ended_is_shown_with_its_rates() -> None:
    lines = drawn(Frame(NOW, ENDS, (), ()))
    assert lines[0].startswith("millstream top  127.0.0.1:8080  ")
    assert " ".join(lines[2].split()) == "in 60 s completed a second failed a second retried cancelled"
    assert lines[3].split() == ["tasks", "120", "2.00", "3", "0.05", "4", "5"]
    assert lines[4].split() == ["runs", "60", "1.00", "0", "0.00", "1"]
    assert lines[5:] == ["", "no queues", "", "no workers"]


@pytest.mark.parametrize(
    ("seconds", "age"), [(-5, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (86_400, "24 h"), (259_200, "3 d")]
)
def test_a_queue_shows_what_waits_and_since_when(seconds: int, age: str) -> None:
    shown = queue(
        "slow", 10_001, 2, in_line=3, scheduled=4, oldest_ready_at=NOW - timedelta(seconds=seconds), paused=True,
        paused_by="root", pause_reason="a move",
    )  # fmt: skip
    lines = drawn(Frame(NOW, ENDS, [shown], ()))
    assert lines[6].split("  ")[0] == "queue"
    assert lines[7].split() == ["slow", "over", "10,000", "3", "4", "2", *age.split(), "by", "root:", "a", "move"]


def test_workers_show_their_slots() -> None:
    lines = drawn(Frame(NOW, ENDS, (), [worker("mill", 4), worker("", status="DRAINING", queues=("a", "b"))]))
    assert lines[9].split() == ["mill", "ONLINE", "4/10", "7", "s", "ago", "host/1", "default"]
    assert lines[10].split() == ["w-1", "DRAINING", "0/10", "7", "s", "ago", "host/1", "a,", "b"]
    assert lines[11] == "4 of 20 slots used"


def test_of_many_queues_the_busiest_are_shown() -> None:
    queues = sorted([queue("idle"), queue("busy", running=1), queue("full", ready=2), queue("also idle")], key=busy)
    lines = drawn(Frame(NOW, ENDS, queues, ()), 2)
    assert [line.split()[0] for line in lines[7:9]] == ["full", "busy"]
    assert lines[9] == "... 2 more: millstream queues list"
    assert (
        drawn(Frame(NOW, ENDS, queues, (), more_queues=True), 2)[9] == "... 2 more and others: millstream queues list"
    )
    assert drawn(Frame(NOW, ENDS, queues, (), more_queues=True), 4)[11] == "... more: millstream queues list"


Run = Callable[..., Result]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedService]:
    monkeypatch.setattr(calls_module, "FIRST_PAUSE_S", 0.0001)
    monkeypatch.setattr(calls_module, "LONGEST_PAUSE_S", 0.0001)
    service = ScriptedService()
    service.answer("QueueService/GetThroughput", {"window_s": 60, "tasks_completed": 30})
    service.answer("QueueService/ListQueues", {"items": [{"queue": "idle"}, {"queue": "slow", "ready": 1}]})
    service.answer("WorkerService/ListWorkers", workers)
    stop = start(service)
    yield service
    stop()


def workers(request: Any) -> Any:
    """One of each status."""
    return {"items": [{"worker_id": f"w-{request.status}", "status": request.status, "slots": 2, "slots_used": 1}]}


@pytest.fixture
def run(service: ScriptedService) -> Run:
    def invoke(*args: str) -> Result:
        return CliRunner().invoke(app, ["top", *args], env={"MILLSTREAM_TARGET": service.target})

    return invoke


def test_one_look_is_printed_and_is_json_for_machines(run: Run, service: ScriptedService) -> None:
    result = run("--once")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines() if line][:3] == ["millstream", "in", "tasks"]
    assert "2 of 4 slots used" in result.stdout
    assert len(service.calls) == 4
    shown = json.loads(run("--once", "--json", "-n", "1").stdout)
    assert shown["throughput"]["tasks_completed"] == 30
    assert [each["queue"] for each in shown["queues"]] == ["slow"]
    assert [each["status"] for each in shown["workers"]] == ["ONLINE"]


@pytest.mark.parametrize("as_json", [True, False])
def test_a_service_that_is_away_for_a_while_is_waited_for(run: Run, service: ScriptedService, as_json: bool) -> None:
    """And what was known stays. What is refused ends it."""
    answer = {"window_s": 60}
    away = [Abort(grpc.StatusCode.UNAVAILABLE, "draining", "UNAVAILABLE")] * 3
    service.answer(
        "QueueService/GetThroughput", answer, *away, answer,
        Abort(grpc.StatusCode.PERMISSION_DENIED, "not any more", "FORBIDDEN"),
    )  # fmt: skip
    result = run("--interval", "0.1", *(["--json"] if as_json else []))
    assert result.exit_code == 1
    assert "not any more" in result.stderr
    if as_json:
        looks = [json.loads(line) for line in result.stdout.splitlines()]
        assert [bool(each["fault"]) for each in looks] == [False, True, False]
        assert [len(each["queues"]) for each in looks] == [2, 2, 2]
        return
    heads = [line for line in result.stdout.splitlines() if line.startswith("millstream top")]
    assert ["trying again: " in line for line in heads] == [False, True, False]


def test_one_that_never_answered_is_an_error(run: Run, service: ScriptedService) -> None:
    service.answer("QueueService/GetThroughput", Abort(grpc.StatusCode.PERMISSION_DENIED, "no", "FORBIDDEN"))
    assert run().exit_code == 1
    assert run("--once").exit_code == 1
    assert run("--interval", "0").exit_code == 2
