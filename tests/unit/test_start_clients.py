"""What the SDK and the command line send to begin runs: every field of the contract can be given. (FV-2, FV-14)"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf import json_format
from tests.unit.scripted import ScriptedService, start
from typer.testing import CliRunner, Result

from millstream.cli.app import app
from millstream.sdk import Client, NewRun

ID = "0190f5e2-0000-7000-8000-000000000001"
Run = Callable[..., Result]
EXECUTED = {
    "workflow_id": "order", "input": {"id": 7}, "version": "2", "labels": {"env": "prod"}, "run_timeout": "1.5s",
}  # fmt: skip
STARTED = {
    "workflow": "order", "input": {"id": 7}, "version": "2", "run_id": ID, "labels": {"env": "prod"}, "queue": "shop",
    "signal": "go", "signal_value": True, "wait": 3.0, "run_timeout": "1.500s", "priority": 5,
}  # fmt: skip
TRIGGERED = {
    "tenant": "acme", "kind": "order", "input": {"id": 7}, "task_queue": "shop", "priority_seconds": -5, "version": "2",
    "idempotency_key": "order-7", "idempotency_key_ttl": "90s", "labels": {"env": "prod"},
}  # fmt: skip
CREATED = {
    "kind": "mail", "input": {"id": 7}, "queue": "shop", "priority": 5, "run_at": "2030-01-01T00:00:00Z",
    "labels": {"env": "prod"}, "run_timeout": "60s", "deduplication_key": "mail-7", "deduplication_ttl": "90s",
    "retry": {
        "initial_interval": "1s", "factor": 3.0, "maximum_interval": "9s", "jitter": 0.5, "max_attempts": 5,
        "non_retryable_codes": ["DECLINED", "GONE"],
    },
    "timeouts": {"schedule_to_start": "4s", "start_to_close": "5s", "heartbeat": "6s"},
    "concurrency": {"key": "smtp", "limit": 4}, "rate_limit": {"key": "ada", "limit": 10, "period": "60s"},
}  # fmt: skip


@pytest.fixture
def service() -> Iterator[ScriptedService]:
    service = ScriptedService()
    stop = start(service)
    yield service
    stop()


@pytest.fixture
def run(service: ScriptedService) -> Run:
    def invoke(*args: str) -> Result:
        found = CliRunner().invoke(app, args, env={"MILLSTREAM_TARGET": service.target})
        assert found.exit_code in (0, 1), found.output
        return found

    return invoke


def asked(service: ScriptedService) -> Any:
    """The last request."""
    return service.calls[-1].request


def is_whole(request: Any, expected: dict[str, Any], *but: str) -> None:
    """Check what was sent, and that it has every field of the message; `but` names those that say the same another
    way."""
    sent = type(request)()
    json_format.ParseDict(expected, sent)
    assert request == sent
    assert {field.name for field in request.DESCRIPTOR.fields} == {*expected, *but}


async def test_an_execution_can_be_told_everything(service: ScriptedService) -> None:
    """Alone, waited for, and in batches."""
    given: dict[str, Any] = {"version": "2", "labels": {"env": "prod"}, "run_timeout": 1.5}
    service.answer("WorkflowService/ExecuteWorkflow", {"run_id": ID})
    service.answer("WorkflowService/ExecuteWorkflowSync", {"run_id": ID})
    service.answer("WorkflowService/ExecuteWorkflowBatch", {})
    async with Client(service.target) as client:
        await client.workflows.execute("order", {"id": 7}, **given)
        is_whole(asked(service), EXECUTED)
        await client.workflows.execute_sync("order", {"id": 7}, timeout=3, fail_on_timeout=True, **given)
        is_whole(asked(service), EXECUTED | {"timeout": 3, "fail_on_timeout": True})
        await client.workflows.execute_batch([NewRun("order", {"id": 7}, idempotency_key="k", **given)])
        is_whole(asked(service).runs[0], EXECUTED | {"idempotency_key": "k"})


async def test_a_start_of_code_can_be_told_everything(service: ScriptedService) -> None:
    service.answer("RunService/StartRun", {"run_id": ID})
    async with Client(service.target) as client:
        await client.runs.start(
            "order", {"id": 7}, version="2", run_id=ID, labels={"env": "prod"}, queue="shop", signal=("go", True),
            wait=3, run_timeout=1.5, priority=5,
        )  # fmt: skip
    is_whole(asked(service), STARTED)


@pytest.mark.parametrize("existing", [False, True])
async def test_a_trigger_can_be_told_everything(service: ScriptedService, existing: bool) -> None:
    """FV-2, FV-3: the run's own key, beside that of the call."""
    answer = {"workflow_execution_id": ID, "idempotency_key_used": True, "idempotency_key_new": not existing}
    service.answer("WorkflowExecutionService/TriggerWorkflow", answer)
    async with Client(service.target) as client:
        found = await client.workflows.trigger(
            "order", {"id": 7}, tenant="acme", version="2", queue="shop", priority=5, labels={"env": "prod"},
            run_key="order-7", run_key_ttl=89.5, idempotency_key="call",
        )  # fmt: skip
    is_whole(asked(service), TRIGGERED)
    assert service.calls[-1].metadata["x-idempotency-key"] == "call"
    assert (found.run_id, found.existing) == (ID, existing)


def test_the_command_line_can_tell_an_execution_everything(run: Run, service: ScriptedService) -> None:
    service.answer("WorkflowService/ExecuteWorkflow", {"run_id": ID})
    service.answer("WorkflowService/ExecuteWorkflowSync", {"run_id": ID, "completed": True})
    given = ("order", '{"id": 7}', "--version", "2", "--label", "env=prod", "--run-timeout", "1.5")
    run("workflows", "execute", *given)
    is_whole(asked(service), EXECUTED)
    run("workflows", "execute", *given, "--wait", "--timeout", "3")
    # A wait in vain has an exit code of its own, whatever this says.
    is_whole(asked(service), EXECUTED | {"timeout": 3}, "fail_on_timeout")


def test_the_command_line_can_tell_a_start_everything(run: Run, service: ScriptedService) -> None:
    service.answer("RunService/StartRun", {"run_id": ID})
    run(
        "runs", "start", "order", '{"id": 7}', "--version", "2", "--run-id", ID, "--label", "env=prod", "--queue",
        "shop", "--priority", "5", "--signal", "go", "--value", "true", "--wait", "3", "--run-timeout", "1.5",
    )  # fmt: skip
    is_whole(asked(service), STARTED)


def test_the_command_line_can_tell_a_trigger_everything(run: Run, service: ScriptedService) -> None:
    answer = {"workflow_execution_id": ID, "status": "RUNNING", "idempotency_key_used": True}
    service.answer("WorkflowExecutionService/TriggerWorkflow", answer)
    found = run(
        "workflows", "trigger", "order", '{"id": 7}', "--tenant", "acme", "--version", "2", "--queue", "shop",
        "--priority", "5", "--label", "env=prod", "--run-key", "order-7", "--run-key-ttl", "90", "--key", "call",
    )  # fmt: skip
    is_whole(asked(service), TRIGGERED)
    assert service.calls[-1].metadata["x-idempotency-key"] == "call"
    assert "RUNNING, which was there" in found.stdout


def test_the_command_line_can_tell_a_task_everything(run: Run, service: ScriptedService) -> None:
    service.answer("TaskService/CreateTask", {"task_id": ID})
    at = datetime(2030, 1, 1, tzinfo=UTC).astimezone().strftime("%Y-%m-%dT%H:%M:%S")
    given = (
        "tasks", "create", "mail", '{"id": 7}', "--queue", "shop", "--priority", "5", "--label", "env=prod",
        "--deduplication-key", "mail-7", "--deduplication-ttl", "90", "--concurrency", "smtp=4", "--rate", "ada=10/60",
        "--run-timeout", "60", "--max-attempts", "5", "--initial-interval", "1", "--factor", "3",
        "--maximum-interval", "9", "--jitter", "0.5", "--non-retryable", "DECLINED", "--non-retryable", "GONE",
        "--schedule-to-start", "4", "--start-to-close", "5", "--heartbeat", "6",
    )  # fmt: skip
    run(*given, "--run-at", at)
    is_whole(asked(service), CREATED, "delay")
    run(*given, "--delay", "2")
    later = {name: value for name, value in CREATED.items() if name != "run_at"} | {"delay": "2s"}
    is_whole(asked(service), later, "run_at")
