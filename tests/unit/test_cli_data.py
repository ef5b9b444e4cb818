"""The data commands against a scripted service: what they print, and how they end."""

import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from tests.unit.scripted import Abort, ScriptedService, start
from typer import BadParameter
from typer.testing import CliRunner, Result

from millstream.cli import export as export_module
from millstream.cli import publish as publish_module
from millstream.cli.app import app
from millstream.sdk.payload import fill_struct, from_struct
from millstream.v1 import (
    agent_pb2,
    agent_service_pb2,
    artifact_service_pb2,
    run_pb2,
    run_service_pb2,
    task_log_pb2,
    worker_pb2,
    worker_service_pb2,
)

Run = Callable[..., Result]
PATIENCE_S = 10.0


@pytest.fixture
def service() -> Iterator[ScriptedService]:
    service = ScriptedService()
    stop = start(service)
    yield service
    stop()


@pytest.fixture
def run(service: ScriptedService) -> Run:
    def invoke(*args: str, stdin: str | None = None) -> Result:
        env = {"MILLSTREAM_TARGET": service.target, "MILLSTREAM_API_KEY": "secret"}
        return CliRunner().invoke(app, args, input=stdin, env=env)

    return invoke


@pytest.fixture
def published(service: ScriptedService) -> None:
    response = artifact_service_pb2.PublishResponse(artifact_id="a-1", correlation_id="c-1")
    service.answer("ArtifactService/Publish", response)


def cascade(*, completed: bool = True, failed: bool = False) -> artifact_service_pb2.PublishSyncResponse:
    response = artifact_service_pb2.PublishSyncResponse(correlation_id="c-1", completed=completed, duration_ms=12.34)
    artifact = response.artifacts.add(id="a-1", type="Order", produced_by="external", tags=["[red]vip"])
    fill_struct(artifact.payload, {"order_id": "o", "amount": 3})
    if failed:
        response.failures.add(agent="payments", code="PAYMENT_DECLINED", message="cannot charge", attempts=1)
    return response


class Terminal(io.StringIO):
    """Tells when a text is shown."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen = threading.Event()
        self._text = text

    def write(self, text: str) -> int:
        if self._text in text:
            self.seen.set()
        return super().write(text)


# -- publish --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("published")
def test_publish_prints_the_ids(run: Run, service: ScriptedService) -> None:
    result = run("publish", "Order", '{"n": 1}', "--tag", "x", "--tag", "y", "--partition-key", "p", "--key", "k")
    assert result.exit_code == 0
    assert "a-1" in result.stdout
    assert "c-1" in result.stdout
    call = service.calls[0]
    assert (from_struct(call.request.payload), list(call.request.tags), call.request.partition_key) == (
        {"n": 1},
        ["x", "y"],
        "p",
    )
    assert call.metadata["x-idempotency-key"] == "k"
    assert call.metadata["authorization"] == "Bearer secret"


@pytest.mark.usefixtures("published")
def test_publish_prints_json_for_machines(run: Run) -> None:
    result = run("publish", "Order", "--json")
    shown = {"artifact_id": "a-1", "correlation_id": "c-1", "replayed": False, "deprecation": ""}
    assert json.loads(result.stdout) == shown


@pytest.mark.usefixtures("published")
def test_the_payload_comes_from_a_file_or_from_stdin(run: Run, service: ScriptedService, tmp_path: Path) -> None:
    file = tmp_path / "order.json"
    file.write_text('{"from": "file"}')
    run("publish", "Order", f"@{file}")
    run("publish", "Order", "-", stdin='{"from": "stdin"}')
    assert [from_struct(call.request.payload)["from"] for call in service.calls] == ["file", "stdin"]


@pytest.mark.parametrize("payload", ["{", "[1]", "@/no/such/file"])
def test_a_payload_that_is_none_is_a_usage_error(run: Run, service: ScriptedService, payload: str) -> None:
    result = run("publish", "Order", payload)
    assert result.exit_code == 2
    assert not service.calls


def test_a_completed_cascade_is_shown_and_ends_well(run: Run, service: ScriptedService) -> None:
    service.answer("ArtifactService/PublishSync", cascade())
    result = run("publish", "Order", "--sync", "--timeout", "7")
    assert result.exit_code == 0
    assert '{"order_id":"o","amount":3}' in result.stdout or '{"amount":3,"order_id":"o"}' in result.stdout
    assert "[red]vip" in result.stdout
    assert "completed after 12.3 ms, cascade c-1" in result.stdout
    assert service.calls[0].request.timeout == 7


@pytest.mark.parametrize("answer", [cascade(completed=False), cascade(failed=True)])
def test_an_incomplete_or_failed_cascade_ends_with_4(run: Run, service: ScriptedService, answer: Any) -> None:
    service.answer("ArtifactService/PublishSync", answer)
    result = run("publish", "Order", "--sync")
    assert result.exit_code == 4
    assert ("PAYMENT_DECLINED" in result.stdout) == bool(answer.failures)
    as_json = run("publish", "Order", "--sync", "--json")
    assert as_json.exit_code == 4
    assert json.loads(as_json.stdout)["completed"] == answer.completed


def test_with_a_key_the_request_is_the_same_each_time(run: Run, service: ScriptedService) -> None:
    service.answer("ArtifactService/PublishSync", cascade())
    for _ in range(2):
        run("publish", "Order", "--sync", "--key", "k")
    assert service.calls[0].request == service.calls[1].request


def test_on_a_terminal_the_wait_shows_what_is_there(
    run: Run, service: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal, over = Terminal("2 Payment"), threading.Event()

    def console(*, stderr: bool = False) -> Console:
        return Console(file=terminal if stderr else sys.stdout, force_terminal=stderr, width=100)

    def watch(request: Any) -> Iterator[Any]:
        yield {"cursor": "0"}
        for n in range(2):
            yield {"cursor": f"{n}", "artifact": {"id": f"a-{n}", "type": "Payment"}}
        over.wait(PATIENCE_S)

    def wait(request: Any) -> Any:
        # Answers only when it is on the screen what the cascade has made.
        seen = terminal.seen.wait(PATIENCE_S)
        over.set()
        return cascade(completed=seen)

    monkeypatch.setattr(publish_module, "console", console)
    service.answer("ArtifactService/WatchArtifacts", watch)
    service.answer("ArtifactService/PublishSync", wait)
    assert run("publish", "Order", "--sync").exit_code == 0
    asked = {call.rpc: call.request for call in service.calls}
    assert asked["ArtifactService/WatchArtifacts"].correlation_id == asked["ArtifactService/PublishSync"].correlation_id
    assert "waiting for the cascade, " in terminal.getvalue()


# -- lists and single things ----------------------------------------------------------------------------------


def pages(request: Any) -> Any:
    number = int(request.page_token or 0)
    response = run_service_pb2.ListRunsResponse()
    for item in range(2):
        response.items.add(run_id=f"run-{number}{item}", status=run_pb2.Run.FAILED, created_at={"seconds": 60})
    response.pagination.next_page_token = str(number + 1)
    return response


def test_events_of_a_run_are_followed_by_its_stream(run: Run, service: ScriptedService) -> None:
    """And nothing is asked again and again."""
    run_id = "0190f5e2-0000-7000-8000-000000000001"
    events = [
        {"run_id": run_id, "cursor": f"{n}", "event": {"sequence": n, "type": type_, "created_at": {"seconds": 60}}}
        for n, type_ in [(2, "TASK_STARTED"), (3, "RUN_COMPLETED")]
    ]
    service.answer("RunService/WatchRun", [{"cursor": "1"}, *events, {"cursor": "3", "ended": True}])
    result = run("runs", "tail", run_id, "--after", "1")
    assert result.exit_code == 0
    assert [line.split()[::2] for line in result.stdout.splitlines()] == [["2", "TASK_STARTED"], ["3", "RUN_COMPLETED"]]
    assert [(call.rpc, call.request.after_sequence) for call in service.calls] == [("RunService/WatchRun", 1)]
    shown = [json.loads(line) for line in run("runs", "tail", run_id, "--json").stdout.splitlines()]
    assert [each["sequence"] for each in shown] == [2, 3]


def test_lists_are_tables_up_to_the_limit(run: Run, service: ScriptedService) -> None:
    service.answer("RunService/ListRuns", pages)
    result = run("runs", "list", "--limit", "3", "--status", "failed")
    lines = result.stdout.splitlines()
    assert lines[0].split()[:3] == ["id", "kind", "status"]
    assert [line.split()[0] for line in lines[1:]] == ["run-00", "run-01", "run-10"]
    assert len(service.calls) == 2
    assert service.calls[0].request.status == run_pb2.Run.FAILED


def test_lists_for_machines_are_a_document_a_line(run: Run, service: ScriptedService) -> None:
    service.answer("RunService/ListRuns", pages)
    result = run("runs", "list", "-n", "3", "--json")
    documents = [json.loads(line) for line in result.stdout.splitlines()]
    assert [d["run_id"] for d in documents] == ["run-00", "run-01", "run-10"]
    assert documents[0]["created_at"] == "1970-01-01T00:01:00Z"


def test_an_empty_list_says_so(run: Run, service: ScriptedService) -> None:
    service.answer("AgentService/ListAgents", agent_service_pb2.ListAgentsResponse())
    assert run("agents", "list").stdout == "no agents\n"


@pytest.mark.parametrize(
    ("args", "rpc", "fields", "shows"),
    [
        (
            ("artifacts", "get", "a"),
            "ArtifactService/GetArtifact",
            {"id": "a", "type": "Order", "version": 2},
            "Order (version 2)",
        ),
        (
            ("artifacts", "list", "--type", "Order", "--since", "2026-01-01"),
            "ArtifactService/ListArtifacts",
            {"items": [{"id": "a", "type": "Order"}]},
            "Order",
        ),
        (
            ("types", "list"),
            "ArtifactService/ListArtifactTypes",
            {"items": [{"name": "Order", "version": 2}]},
            "Order",
        ),
        (
            ("types",),
            "ArtifactService/ListArtifactTypes",
            {"items": [{"name": "Order", "version": 2}]},
            "Order",
        ),
        (
            ("types", "get", "Order"),
            "ArtifactService/GetArtifactType",
            {"name": "Order", "schema": {"type": "object"}},
            '"type": "object"',
        ),
        (
            ("agents", "list"),
            "AgentService/ListAgents",
            {"items": [{"name": "payments", "status": agent_pb2.Agent.ONLINE}]},
            "ONLINE",
        ),
        (
            ("agents", "get", "payments"),
            "AgentService/GetAgent",
            {"name": "payments", "subscriptions": [{"types": ["Order"], "where": "true"}]},
            '"where": "true"',
        ),
        (
            ("agents", "pause", "payments", "--reason", "upkeep"),
            "AgentService/PauseAgent",
            {"name": "payments", "status": agent_pb2.Agent.PAUSED, "pause": {"paused_by": "me", "reason": "upkeep"}},
            "PAUSED by me: upkeep",
        ),
        (
            ("agents", "resume", "payments"),
            "AgentService/ResumeAgent",
            {"name": "payments", "status": agent_pb2.Agent.ONLINE, "version": 3},
            "payments version 3: ONLINE",
        ),
        (
            ("agents", "history", "payments"),
            "AgentService/GetAgentHistorySummary",
            {"summary": {"produced": {"total": 2, "by_type": {"Payment": 2}}}},
            '"Payment": 2',
        ),
        (
            ("agents", "run", "payments", "-i", 'Order={"n": 1}'),
            "AgentService/RunAgent",
            {"completed": True, "artifacts": [{"type": "Payment", "id": "p"}]},
            "Payment p {}",
        ),
        (
            ("runs", "get", "r", "--no-tree"),
            "RunService/GetRun",
            {"run_id": "r", "task_count": 3, "open_tasks": 1},
            "3 (1 open, 0 failed)",
        ),
        (
            ("runs", "cancel", "r", "--reason", "why"),
            "RunService/CancelRun",
            {"run_id": "r", "status": run_pb2.Run.CANCELLING},
            "CANCELLING",
        ),
        (
            ("runs", "retry", "r", "--note", "why"),
            "RunService/RetryRun",
            {"run_id": "r", "retry_attempt": 2},
            "retried    2",
        ),
        (("runs", "rerun", "r", "--latest"), "RunService/RerunRun", {"run_id": "n", "rerun_of": "r"}, "rerun of   r"),
        (("runs", "rerun", "r", "--same"), "RunService/RerunRun", {"run_id": "n", "rerun_of": "r"}, "rerun of   r"),
        (
            ("runs", "pause", "r"),
            "RunService/PauseRun",
            {"run_id": "r", "paused_at": {"seconds": 1}},
            "paused     1970",
        ),
        (("runs", "resume", "r"), "RunService/ResumeRun", {"run_id": "r"}, "id         r"),
        (
            ("runs", "children", "r"),
            "RunService/ListRunChildren",
            {"items": [{"run_id": "c", "workflow": "billing"}]},
            "billing",
        ),
        (
            ("runs", "tasks", "r"),
            "RunService/ListRunTasks",
            {"items": [{"task_id": "t", "attempt": 1, "max_attempts": 3}]},
            "1/3",
        ),
        (
            ("tasks", "stuck"),
            "TaskService/ListStuckTasks",
            {"items": [{"task": {"task_id": "t", "error": {"code": "X", "message": "y"}}}]},
            "X: y",
        ),
        (
            ("tasks", "stuck", "--unserved"),
            "TaskService/ListStuckTasks",
            {"items": [{"task": {"task_id": "t", "queue": "slow"}, "waiting": 7}]},
            "no worker",
        ),
        (
            ("runs", "events", "r"),
            "RunService/ListRunEvents",
            {"items": [{"sequence": 1, "type": run_pb2.RunEvent.RUN_CREATED}]},
            "RUN_CREATED",
        ),
        (
            ("tasks", "list", "--kind", "k"),
            "TaskService/ListTasks",
            {"items": [{"task_id": "t", "error": {"code": "X", "message": "y"}}]},
            "X: y",
        ),
        (
            ("tasks", "list", "--run", "r"),
            "RunService/ListRunTasks",
            {"items": [{"task_id": "t", "attempt": 1, "max_attempts": 3}]},
            "1/3",
        ),
        (
            ("correlations", "status", "c"),
            "CorrelationService/GetCorrelationStatus",
            {"correlation_id": "c", "state": "active", "has_pending_work": True, "artifact_count": 3},
            "active",
        ),
        (
            ("types", "create", "Note", '{"type": "object"}', "--compatibility", "none"),
            "ArtifactService/CreateArtifactType",
            {"name": "Note", "version": 2, "compatibility": "none"},
            "none",
        ),
        (
            ("types", "versions", "Note"),
            "ArtifactService/ListArtifactTypeVersions",
            {"items": [{"name": "Note", "version": 7}]},
            "7",
        ),
        (
            ("types", "deprecate", "Note", "use Memo"),
            "ArtifactService/UpdateArtifactType",
            {"name": "Note", "deprecated": True, "deprecation_message": "use Memo"},
            "use Memo",
        ),
        (
            ("tasks", "get", "t"),
            "TaskService/GetTask",
            {"task_id": "t", "progress": 0.5, "progress_message": "half"},
            "50% half",
        ),
        (
            ("tasks", "cancel", "t"),
            "TaskService/CancelTask",
            {"task_id": "t", "status": run_pb2.Task.CANCELLED},
            "CANCELLED",
        ),
        (
            ("tasks", "attempts", "t"),
            "TaskService/ListTaskAttempts",
            {"items": [{"attempt": 1, "status": run_pb2.Attempt.LOST}]},
            "LOST",
        ),
    ],
)
def test_each_command_shows_what_it_asks_for(
    run: Run, service: ScriptedService, args: tuple[str, ...], rpc: str, fields: dict[str, Any], shows: str
) -> None:
    service.answer(rpc, fields)
    result = run(*args)
    assert result.exit_code == 0, result.output
    assert shows in result.stdout
    as_json = run(*args, "--json")
    assert as_json.exit_code == 0
    assert json.loads(as_json.stdout)


# -- how commands end -----------------------------------------------------------------------------------------


def test_an_error_of_the_service_is_told_whole_on_stderr(run: Run, service: ScriptedService) -> None:
    fields = (("run_id", "must be a UUID", "INVALID"),)
    refused = Abort(grpc.StatusCode.INVALID_ARGUMENT, "run_id: no", "VALIDATION_ERROR", fields, None, "corr-1")
    service.answer("RunService/GetRun", refused)
    result = run("runs", "get", "x")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "error: VALIDATION_ERROR: run_id: no\n  run_id: must be a UUID [INVALID]\n  correlation id: corr-1\n"
    )


def test_an_unreachable_service_ends_with_3() -> None:
    result = CliRunner().invoke(app, ["runs", "list", "--target", "127.0.0.1:1"])
    assert result.exit_code == 3
    assert result.stderr == (
        "error: cannot reach the service at 127.0.0.1:1: "
        "nothing listens there; start it (millstream dev), or name it by --target\n"
    )


def test_a_host_that_does_not_exist_is_told_in_a_line() -> None:
    result = CliRunner().invoke(app, ["runs", "list", "--target", "nosuch.invalid:8080"])
    assert result.exit_code == 3
    assert result.stderr == (
        "error: cannot reach the service at nosuch.invalid:8080: there is no such host; name the service by --target\n"
    )


@pytest.mark.parametrize("target", ["garbage", "http://127.0.0.1:8080", "127.0.0.1:port", ""])
def test_a_target_that_is_none_ends_with_2_and_a_line(target: str) -> None:
    result = CliRunner().invoke(app, ["runs", "list", "--target", target])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: --target: ")
    assert len(result.stderr.splitlines()) == 1


def test_the_schema_of_a_type_is_printed_as_it_is(run: Run, service: ScriptedService) -> None:
    """A whole document for a file or another program; of the version asked for."""
    schema = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 3}}, "required": ["a"]}
    answer = artifact_service_pb2.GetArtifactTypeResponse(name="Note", version=2)
    fill_struct(answer.schema, schema)
    service.answer("ArtifactService/GetArtifactType", answer)
    for arguments in ((), ("--version", "2")):
        result = run("types", "schema", "Note", *arguments)
        assert (result.exit_code, result.stderr) == (0, "")
        assert json.loads(result.stdout) == schema
    assert [call.request.version for call in service.calls] == [0, 2]


@pytest.mark.parametrize(
    "args",
    [
        ("runs", "list", "--status", "nowhere"),
        ("tasks", "list", "--status", "nowhere"),
        ("runs", "list", "--limit", "-1"),
        ("publish",),
        ("publish", "Order", '{"n": 9007199254740992}'),
    ],
)
def test_a_wrong_command_line_ends_with_2(run: Run, service: ScriptedService, args: tuple[str, ...]) -> None:
    assert run(*args).exit_code == 2
    assert not service.calls


def test_a_status_that_is_none_is_answered_with_those_there_are(run: Run) -> None:
    result = run("runs", "list", "--status", "nowhere")
    told = " ".join(result.stderr.replace("\u2502", " ").split())
    assert "'nowhere' is none of RUNNING, CANCELLING, COMPLETED, FAILED, CANCELLED" in told


def test_agents_are_registered_from_a_file(run: Run, service: ScriptedService, tmp_path: Path) -> None:
    """WM-1: as REST takes them; a file that is no agent is told, and nothing is sent."""
    file = tmp_path / "agent.json"
    file.write_text('{"name": "packer", "subscriptions": [{"types": ["Order"], "batch": {"size": 5}}]}')
    service.answer("AgentService/CreateAgent", {"name": "packer", "version": 1})
    assert "packer version 1" in run("agents", "create", "-f", str(file)).stdout
    assert service.calls[-1].request.subscriptions[0].batch.size == 5
    service.answer("AgentService/UpdateAgent", {"name": "packer", "version": 2})
    assert "packer version 2" in run("agents", "update", "packer", "-f", str(file), "--expected-version", "1").stdout
    assert service.calls[-1].request.expected_version == 1
    service.answer("AgentService/DeleteAgent", {})
    assert run("agents", "delete", "packer").stdout == "packer is deleted\n"
    sent = len(service.calls)
    for text in ("[]", "{", '{"nmae": "x"}'):
        file.write_text(text)
        assert run("agents", "create", "-f", str(file)).exit_code == 2
    assert run("agents", "run", "packer", "-i", "Order={").exit_code == 2
    assert len(service.calls) == sent


def test_a_run_by_name_that_fails_is_an_exit_code(run: Run, service: ScriptedService) -> None:
    """FL-13: 4, as of a sync publish."""
    failure = {"agent": "packer", "code": "BROKEN", "message": "it broke"}
    service.answer("AgentService/RunAgent", {"completed": True, "failures": [failure]})
    result = run("agents", "run", "packer", "-i", "Order")
    assert (result.exit_code, "packer failed: BROKEN: it broke" in result.stdout) == (4, True)


# -- export ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "cursor", "kept"),
    [
        (b"", "", b""),
        (b'{"id', "", b""),
        (b'{"id":"0190', "", b""),
        (b'{"correlation_id":"c","cursor":"x"}\n', "x", b'{"correlation_id":"c","cursor":"x"}\n'),
        (
            b'{"a":1}\n{"correlation_id":"c","cursor":"y"}\n{"cor',
            "y",
            b'{"a":1}\n{"correlation_id":"c","cursor":"y"}\n',
        ),
    ],
)
def test_an_export_goes_on_behind_the_last_whole_line(content: bytes, cursor: str, kept: bytes, tmp_path: Path) -> None:
    path = tmp_path / "export.ndjson"
    path.write_bytes(content)
    with path.open("r+b") as file:
        assert export_module._rewound(file, "C", path) == cursor
        assert file.tell() == len(kept)
    assert path.read_bytes() == kept


@pytest.mark.parametrize(
    "content", [b"text\n", b"text", b"{}\n", b"[1]\n", b'{"correlation_id":"other","cursor":"x"}\n']
)
def test_what_is_no_export_of_the_cascade_is_left_alone(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "export.ndjson"
    path.write_bytes(content)
    with path.open("r+b") as file, pytest.raises(BadParameter):
        export_module._rewound(file, "c", path)
    assert path.read_bytes() == content


def test_the_last_line_is_found_however_long_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(export_module, "_BLOCK_BYTES", 7)
    path = tmp_path / "export.ndjson"
    path.write_bytes(b'{"a":1}\n{"correlation_id":"c","cursor":"long"}\n' + b"x" * 50)
    with path.open("r+b") as file:
        assert export_module._rewound(file, "c", path) == "long"


def test_workers_and_kinds_are_shown(run: Run, service: ScriptedService) -> None:
    """FV-6"""
    spec = worker_pb2.KindSpec(kind="resize", category=worker_pb2.KindSpec.TASK, version="1.2")
    fill_struct(spec.input_schema, {"type": "object"})
    known: dict[str, Any] = {
        "worker_id": "w-1", "name": "mill", "status": "ONLINE", "slots": 10, "slots_used": 3, "kinds": [spec],
        "queues": ["default"], "agents": ["payments"],
    }  # fmt: skip
    listed = worker_service_pb2.ListWorkersResponse(items=[worker_pb2.Worker(**known)])
    service.answer("WorkerService/ListWorkers", listed)
    shown = run("workers", "list", "--status", "online", "--kind", "resize", "--queue", "default", "--name", "mill")
    asked = service.calls[-1].request
    assert (asked.status, asked.kind, asked.queue, asked.name) == (1, "resize", "default", "mill")
    assert all(word in shown.stdout for word in ("w-1", "mill", "ONLINE", "3/10", "resize 1.2", "payments"))
    service.answer("WorkerService/GetWorker", worker_service_pb2.GetWorkerResponse(**known))
    assert '"input_schema"' in run("workers", "get", "w-1").stdout
    assert json.loads(run("workers", "get", "w-1", "--json").stdout)["kinds"][0]["input_schema"] == {"type": "object"}
    kind = worker_pb2.Kind(
        kind="resize", category=worker_pb2.KindSpec.TASK, version="1.2", status=worker_pb2.Kind.ONLINE, worker_count=2
    )
    service.answer("WorkerService/ListKinds", worker_service_pb2.ListKindsResponse(items=[kind]))
    shown = run("kinds", "--category", "task", "--status", "online")
    assert (service.calls[-1].request.category, service.calls[-1].request.status) == (1, 1)
    assert all(word in shown.stdout for word in ("resize", "1.2", "TASK", "ONLINE"))
    for wrong in (["workers", "list", "--status", "here"], ["kinds", "--category", "here"]):
        assert run(*wrong).exit_code == 2


def test_a_run_is_shown_with_a_tree_of_its_tasks_and_children(run: Run, service: ScriptedService) -> None:
    """FV-14"""
    service.answer(
        "RunService/GetRun",
        {
            "run_id": "r",
            "workflow": "billing",
            "kind": run_pb2.RunKind.CODE,
            "status": run_pb2.Run.RUNNING,
            "task_count": 60,
        },
    )
    of_parent = {"items": [{"run_id": "c", "workflow": "mail", "kind": run_pb2.RunKind.CODE, "parent_task_id": "t2"}]}
    service.answer("RunService/ListRunChildren", of_parent, {})
    first = {
        "items": [
            {"task_id": "t1", "kind": "pay", "status": run_pb2.Task.COMPLETED, "attempt": 2},
            {"task_id": "t2", "kind": "mail", "status": run_pb2.Task.PENDING},
        ]
    }
    held = {"task_id": "t3", "kind": "send", "status": run_pb2.Task.SCHEDULED, "held": True}
    service.answer("RunService/ListRunTasks", first, {"items": [held]})
    lines = [line.strip() for line in run("runs", "get", "r").stdout.splitlines()][-6:]
    assert lines == [
        "billing r RUNNING",
        "├── pay t1 COMPLETED, attempt 2",
        "├── mail t2 PENDING",
        "│   └── mail c UNSPECIFIED",
        "│       └── send t3 SCHEDULED, held",
        "└── ... 58 more: millstream runs tasks r",
    ]


def test_a_run_of_a_definition_is_shown_with_a_tree_of_its_steps(run: Run, service: ScriptedService) -> None:
    """FV-14, WM-5: by their ids, also those that have no task; children of a map's items stand behind them."""
    kind = {"kind": run_pb2.RunKind.GRAPH}
    service.answer("RunService/GetRun", {"run_id": "r", "workflow": "trip", "status": run_pb2.Run.RUNNING} | kind)
    service.answer(
        "RunService/ListRunChildren",
        {
            "items": [
                {"run_id": "c1", "workflow": "mail", "parent_task_id": "t2"} | kind,
                {"run_id": "c2", "workflow": "leg", "parent_task_id": "item"} | kind,
            ]
        },
        {},
    )
    error = {"code": "EXPRESSION_ERROR", "message": "none"}
    steps: list[dict[str, Any]] = [
        {"id": "fly", "kind": "task", "status": "COMPLETED", "task_id": "t1", "attempt": 2},
        {"id": "mail", "kind": "workflow", "status": "PENDING", "task_id": "t2"},
        {"id": "legs", "kind": "map", "status": "RUNNING", "items": {"begun": 3, "ended": 2, "failed": 1}},
        {"id": "left", "kind": "task", "status": "SKIPPED"},
        {"id": "odd", "kind": "task", "status": "FAILED", "error": error},
    ]
    for step in steps:
        step["status"] = run_pb2.Step.Status.Value(step["status"])
    service.answer("RunService/ListRunSteps", {"items": steps}, {})
    lines = [line.strip() for line in run("runs", "get", "r").stdout.splitlines()][-8:]
    assert lines == [
        "trip r RUNNING",
        "├── fly (task) t1 COMPLETED, attempt 2",
        "├── mail (workflow) t2 PENDING",
        "│   └── mail c1 UNSPECIFIED",
        "├── legs (map) RUNNING (2 of 3 items, 1 failed)",
        "├── left (task) SKIPPED",
        "├── odd (task) FAILED EXPRESSION_ERROR: none",
        "└── leg c2 UNSPECIFIED",
    ]


@pytest.mark.parametrize("group", ["runs", "workflow"])
def test_a_run_is_looked_into_and_retried_by_the_names_of_its_paths(
    run: Run, service: ScriptedService, group: str
) -> None:
    """FV-9 to FV-11, FV-14: `workflow retry ID --note`, `workflow children ID`, `workflow task-attempts ID TASK`."""
    service.answer("RunService/RetryRun", {"run_id": "r", "status": run_pb2.Run.RUNNING, "retry_attempt": 1})
    assert run(group, "retry", "r", "--note", "mended").exit_code == 0
    assert (service.calls[-1].request.run_id, service.calls[-1].request.note) == ("r", "mended")
    service.answer("RunService/ListRunChildren", {"items": [{"run_id": "c", "workflow": "mail"}]})
    assert "mail" in run(group, "children", "r").stdout
    service.answer("TaskService/GetTask", {"task_id": "t", "run_id": "r"})
    attempt = {"attempt": 2, "status": run_pb2.Attempt.FAILED, "worker": "w-1", "error": {"code": "BROKEN"}}
    service.answer("TaskService/ListTaskAttempts", {"items": [attempt]})
    result = run(group, "task-attempts", "r", "t")
    assert (result.exit_code, "BROKEN" in result.stdout) == (0, True)
    other = run(group, "task-attempts", "another", "t")
    assert (other.exit_code, other.stderr) == (1, "error: NOT_FOUND: run another has no task t\n")


def test_many_runs_are_retried_call_after_call(run: Run, service: ScriptedService) -> None:
    """FV-14: by what they have in common, until nothing is left; one that is refused makes the command fail."""
    refused = {"run_id": "b", "status": "failed", "error": {"code": "CONFLICT", "message": "it runs"}}
    service.answer(
        "RunService/RetryRuns",
        {
            "results": [{"run_id": "a", "status": "accepted"}],
            "accepted": 1,
            "matched": 2,
            "left": 1,
            "next_page_token": "n",
        },
        {"results": [refused], "failed": 1, "matched": 1},
    )
    result = run("runs", "retry", "--label", "env=prod", "--text", "declined", "--note", "mended")
    assert result.exit_code == 1
    assert "it runs" in result.stdout
    assert result.stdout.splitlines()[-1] == "1 accepted, 1 failed"
    first, second = (call.request for call in service.calls)
    assert (list(first.filter.labels), first.filter.text, first.note) == (["env=prod"], "declined", "mended")
    assert (first.page_token, second.page_token) == ("", "n")


def test_many_runs_are_cancelled_by_id_or_shown_beforehand(run: Run, service: ScriptedService) -> None:
    """FV-14"""
    matched = {"results": [{"run_id": "a", "status": "matched"}], "matched": 9, "left": 8, "next_page_token": "n"}
    service.answer("RunService/CancelRuns", matched)
    assert (
        run("runs", "cancel", "--workflow", "w", "--dry-run").stdout.splitlines()[-1] == "9 matched, 0 failed, 8 left"
    )
    assert service.calls[-1].request.dry_run
    service.answer("RunService/CancelRuns", {"results": [{"run_id": "a", "status": "accepted"}], "accepted": 2})
    assert run("runs", "cancel", "a", "b").exit_code == 0
    assert list(service.calls[-1].request.run_ids) == ["a", "b"]
    for bad in (
        ("cancel",),
        ("retry", "a", "--text", "x"),
        ("retry", "--label", "x"),
        ("retry", "a", "b", "--from-step", "s"),
    ):
        assert run("runs", *bad).exit_code == 2
    assert len(service.calls) == 2


def _entry(sequence: int, **more: object) -> dict[str, object]:
    return {
        "sequence": sequence, "task_id": "t", "attempt": 1, "offset": sequence, "level": task_log_pb2.LogLine.WARN,
        "message": f"line {sequence}", "timestamp": Timestamp(seconds=1), **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("command", "rpc", "asked"),
    [
        (("runs", "logs", "r", "--task", "t"), "ListRunLogs", {"run_id": "r", "task_id": "t"}),
        (("tasks", "logs", "t", "--attempt", "2"), "ListTaskLogs", {"task_id": "t", "attempt": 2}),
        (("workflow", "task-logs", "r", "t"), "ListTaskLogs", {"task_id": "t"}),
    ],
)
def test_the_last_lines_that_tasks_logged_are_shown_in_their_order(
    run: Run, service: ScriptedService, command: tuple[str, ...], rpc: str, asked: dict[str, object]
) -> None:
    """FV-14, WM-5"""
    service.answer("TaskService/GetTask", {"task_id": "t", "run_id": "r"})
    service.answer(f"TaskLogService/{rpc}", {"items": [_entry(2), _entry(1)]})
    result = run(*command, "--level", "WARN,ERROR", "--limit", "2")
    assert result.exit_code == 0, result.stderr
    assert [line.split()[2:] for line in result.stdout.splitlines()] == [
        ["t/1", "WARN", "line", "1"], ["t/1", "WARN", "line", "2"],
    ]  # fmt: skip
    request = service.calls[-1].request
    assert {name: getattr(request, name) for name in asked} == asked
    assert (request.level, request.newest_first) == ("WARN,ERROR", True)
    whole = run(*command, "--limit", "0", "--json")
    assert [json.loads(line)["sequence"] for line in whole.stdout.splitlines()] == [2, 1]
    assert not service.calls[-1].request.newest_first
