"""What the SDK and the command line send for bounds, dead letters and queues, and what they make of the answers."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf import json_format
from tests.unit.scripted import ScriptedService, start
from typer.testing import CliRunner, Result

from millstream.cli.app import app
from millstream.sdk import Client, Concurrency, ConflictError, DeadLetters, NewTask, RateLimit
from millstream.sdk.payload import from_value

ID = "0190f5e2-0000-7000-8000-000000000001"
Run = Callable[..., Result]


@pytest.fixture
def service() -> Iterator[ScriptedService]:
    service = ScriptedService()
    stop = start(service)
    yield service
    stop()


@pytest.fixture
def run(service: ScriptedService) -> Run:
    def invoke(*args: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, args, input=stdin, env={"MILLSTREAM_TARGET": service.target})

    return invoke


def asked(service: ScriptedService, call: int = -1) -> dict[str, Any]:
    """What was sent."""
    return json_format.MessageToDict(service.calls[call].request, preserving_proto_field_name=True)


BOUNDS = {
    "concurrency": {"key": "smtp", "limit": 4},
    "rate_limit": {"key": "ada", "limit": 10, "period": "60s"},
    "deduplication_key": "order-7",
}


async def test_tasks_carry_their_bounds_and_their_own_key(service: ScriptedService) -> None:
    """FV-5: alone and in batches; the call's own key stays one of its own."""
    service.answer("TaskService/CreateTask", {"task_id": "t", "waiting_for": "rate:ada"})
    service.answer("TaskService/CreateTaskBatch", {})
    bounds: dict[str, Any] = {
        "concurrency": Concurrency("smtp", 4),
        "rate_limit": RateLimit("ada", 10, 60),
        "deduplication_key": "order-7",
        "deduplication_ttl": 3600,
    }
    async with Client(service.target) as client:
        made = await client.tasks.create("mail", idempotency_key="call", **bounds)
        assert made.waiting_for == "rate:ada"
        sent = asked(service)
        assert {name: sent[name] for name in BOUNDS} == BOUNDS
        assert sent["deduplication_ttl"] == "3600s"
        assert service.calls[-1].metadata["x-idempotency-key"] == "call"
        await client.tasks.create_batch([NewTask("mail", idempotency_key="item", **bounds)])
        [item] = asked(service)["tasks"]
        assert {name: item[name] for name in BOUNDS} == BOUNDS
        assert item["idempotency_key"] == "item"


async def test_tasks_are_listed_by_what_was_asked_for(service: ScriptedService) -> None:
    service.answer("TaskService/ListTasks", {})
    async with Client(service.target) as client:
        listing = client.tasks.list(run_id=ID, agent="a", worker="w", labels={"k": "v=w"}, oldest_first=True)
        assert await listing.all() == []
    sent = asked(service)
    assert {name: sent[name] for name in ("run_id", "agent", "worker", "labels", "sort_order")} == {
        "run_id": ID, "agent": "a", "worker": "w", "labels": ["k=v=w"], "sort_order": "asc",
    }  # fmt: skip


async def test_dead_letters_are_listed_retried_and_dropped(service: ScriptedService) -> None:
    service.answer("TaskService/ListDeadLetters", {"items": [{"task_id": "t"}]})
    outcome = {
        "matched": 2, "done": 1, "failed": 1,
        "results": [{"task_id": "t"}, {"task_id": "u", "error": {"code": "CONFLICT", "message": "it runs"}}],
    }  # fmt: skip
    service.answer("TaskService/RetryDeadLetters", outcome)
    service.answer("TaskService/DropDeadLetters", outcome)
    wanted = DeadLetters("mail", "slow", "BOOM", datetime(2030, 1, 2, tzinfo=UTC))
    chosen = {"kind": "mail", "queue": "slow", "error_code": "BOOM", "since": "2030-01-02T00:00:00Z"}
    async with Client(service.target) as client:
        assert [task.task_id for task in await client.tasks.dead.list(wanted).all()] == ["t"]
        assert asked(service) == chosen | {"page_size": 100, "page_token": ""}
        for call in (client.tasks.dead.retry, client.tasks.dead.drop):
            found = await call(wanted, note="mended")
            assert asked(service) == {"filter": chosen, "note": "mended"}
            assert (found.matched, found.done, found.failed, found.more) == (2, 1, 1, False)
            assert isinstance(found.errors["u"], ConflictError)
            await call(["t", "u"], dry_run=True)
            assert asked(service) == {"task_ids": ["t", "u"], "dry_run": True}
            await call(DeadLetters())
            assert service.calls[-1].request.HasField("filter")


def test_a_task_is_created_from_the_command_line(run: Run, service: ScriptedService) -> None:
    """FV-14"""
    service.answer("TaskService/CreateTask", {"task_id": ID, "kind": "mail", "waiting_for": "concurrency:smtp"})
    result = run(
        "tasks", "create", "mail", '{"to": "ada"}', "--queue", "q", "--priority", "5", "--delay", "1.5", "--label",
        "a=b=c", "--key", "call", "--deduplication-key", "order-7", "--concurrency", "smtp=4", "--rate", "ada=10/60",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert ID in result.stdout
    assert "concurrency:smtp" in result.stdout
    sent = asked(service)
    assert {name: sent[name] for name in BOUNDS} == BOUNDS
    assert (sent["queue"], sent["priority"], sent["delay"], sent["labels"]) == ("q", 5, "1.500s", {"a": "b=c"})
    assert from_value(service.calls[0].request.input) == {"to": "ada"}
    assert service.calls[0].metadata["x-idempotency-key"] == "call"
    assert run("tasks", "create", "mail", "-", stdin="[1]").exit_code == 0
    assert from_value(service.calls[-1].request.input) == [1]


@pytest.mark.parametrize(
    "args",
    [
        ("create", "mail", "{"),
        ("create", "mail", "--label", "a"),
        ("create", "mail", "--concurrency", "smtp"),
        ("create", "mail", "--concurrency", "smtp=x"),
        ("create", "mail", "--rate", "ada=10"),
        ("retry",),
        ("retry", ID, "--all"),
        ("drop", ID, "--kind", "mail"),
    ],
)
def test_a_wrong_command_line_sends_nothing(run: Run, service: ScriptedService, args: tuple[str, ...]) -> None:
    assert run("tasks", *args).exit_code == 2
    assert not service.calls


def test_dead_letters_from_the_command_line(run: Run, service: ScriptedService) -> None:
    """FV-14: listed; named by ids, or all that options match, call after call until all are done."""
    service.answer("TaskService/ListDeadLetters", {"items": [{"task_id": ID, "error": {"code": "X", "message": "y"}}]})
    result = run("tasks", "dead", "--error-code", "X", "--since", "2030-01-02")
    assert "X: y" in result.stdout
    assert asked(service)["error_code"] == "X"
    service.answer(
        "TaskService/RetryDeadLetters",
        {"matched": 1500, "done": 1000, "more": True},
        {"matched": 500, "done": 500},
    )
    result = run("tasks", "retry", "--all", "--kind", "mail", "--note", "mended")
    assert (result.exit_code, result.stdout) == (0, "1500 tried again\n")
    assert [asked(service, call) for call in (-2, -1)] == [{"filter": {"kind": "mail"}, "note": "mended"}] * 2
    service.answer("TaskService/DropDeadLetters", {"matched": 10_001, "more": True})
    result = run("tasks", "drop", "--all", "--dry-run")
    assert (result.exit_code, result.stdout) == (0, "more than 10000 would be dropped\n")
    refused = {"task_id": ID, "error": {"code": "CONFLICT", "message": "it is RUNNING"}}
    service.answer("TaskService/DropDeadLetters", {"matched": 1, "failed": 1, "results": [refused]})
    result = run("tasks", "drop", ID)
    assert result.exit_code == 4
    assert "0 dropped, 1 not" in result.stdout
    assert "it is RUNNING" in result.stderr
    shown = json.loads(run("tasks", "drop", ID, "--json").stdout)
    assert (shown["done"], shown["errors"][ID]["code"]) == (0, "CONFLICT")


def test_queues_from_the_command_line(run: Run, service: ScriptedService) -> None:
    """FV-14"""
    queue = {"queue": "slow", "ready": 10_001, "in_line": 3, "paused": True, "paused_by": "ada", "pause_reason": "move"}
    service.answer("QueueService/ListQueues", {"items": [queue]})
    service.answer("QueueService/PauseQueue", queue)
    service.answer("QueueService/ResumeQueue", {"queue": "slow"})
    listed = run("queues", "list").stdout
    assert "over 10,000" in listed
    assert "by ada: move" in listed
    assert json.loads(run("queues", "list", "--json").stdout)["in_line"] == 3
    assert run("queues", "pause", "slow", "--reason", "move").stdout == "slow: PAUSED by ada: move\n"
    assert asked(service) == {"queue": "slow", "reason": "move"}
    assert run("queues", "resume", "slow").stdout == "slow: goes on\n"
