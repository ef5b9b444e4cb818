"""What the data commands can ask for and show: filters, options of a publish, settings of types and agents."""

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.scripted import ScriptedService, start
from typer.testing import CliRunner, Result

from millstream.cli.app import app
from millstream.sdk.payload import from_struct
from millstream.v1 import agent_pb2, agent_service_pb2

Run = Callable[..., Result]


@pytest.fixture
def service() -> Iterator[ScriptedService]:
    service = ScriptedService()
    stop = start(service)
    yield service
    stop()


@pytest.fixture
def run(service: ScriptedService) -> Run:
    def invoke(*args: str) -> Result:
        return CliRunner().invoke(app, args, env={"MILLSTREAM_TARGET": service.target})

    return invoke


def told(result: Result) -> str:
    """What it says on stderr, without the frame around it."""
    return " ".join(result.stderr.replace("\u2502", " ").split())


# -- publish --------------------------------------------------------------------------------------------------


def test_a_publish_says_who_may_see_it(run: Run, service: ScriptedService) -> None:
    """FL-6: as REST takes it, nested too."""
    service.answer("ArtifactService/Publish", {"artifact_id": "a"})
    after = {"kind": "After", "ttl": "30s", "then": {"kind": "Private", "agents": ["audit"]}}
    assert run("publish", "Order", "--visibility", json.dumps(after)).exit_code == 0
    found = service.calls[0].request.visibility
    assert (found.kind, found.ttl.seconds, found.then.kind, list(found.then.agents)) == (
        "After", 30, "Private", ["audit"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("visibility", "named"),
    [
        ('{"kind": "Hidden"}', "visibility.kind must be one of"),
        ('{"kynd": "Public"}', "'kynd'"),
        ('{"kind": "Private", "agents": "a"}', "visibility.agents must be a list"),
        ('{"kind": "After", "ttl": "soon"}', "visibility.ttl must be a time"),
        ('{"kind": "After", "ttl": true, "then": []}', "visibility.then must be a JSON object"),
        ('{"kind": "After", "ttl": "31536000s"}', "visibility.ttl must be a time of 0 s to"),
        ("[]", "must be a JSON object"),
    ],
)
def test_a_visibility_that_is_none_names_the_field(
    run: Run, service: ScriptedService, visibility: str, named: str
) -> None:
    """FL-10: nothing is sent."""
    result = run("publish", "Order", "--visibility", visibility)
    assert result.exit_code == 2
    assert named in told(result)
    assert not service.calls


def test_a_sync_publish_may_show_a_part_of_its_cascade(run: Run, service: ScriptedService) -> None:
    """FL-2: by type and by who made it."""
    service.answer("ArtifactService/PublishSync", {"completed": True})
    arguments = ("--only-type", "Payment", "--only-type", "Shipment", "--only-from", "payments")
    assert run("publish", "Order", "--sync", *arguments).exit_code == 0
    filters = service.calls[0].request.filters
    assert (list(filters.type_names), list(filters.produced_by)) == (["Payment", "Shipment"], ["payments"])
    assert run("publish", "Order", "--only-type", "Payment").exit_code == 2


def test_the_id_of_a_cascade_is_one_by_time(run: Run, service: ScriptedService) -> None:
    """UUIDv7, as all ids are."""
    service.answer("ArtifactService/PublishSync", {"completed": True})
    run("publish", "Order", "--sync")
    assert uuid.UUID(service.calls[0].request.correlation_id).version == 7


@pytest.mark.parametrize("arguments", [(), ("--json",), ("--sync",), ("--sync", "--json")])
def test_a_deprecated_type_is_told_on_stderr(run: Run, service: ScriptedService, arguments: tuple[str, ...]) -> None:
    """For people and machines alike: the output is no other."""
    service.answer("ArtifactService/Publish", {"artifact_id": "a", "deprecation": "use Purchase"})
    service.answer("ArtifactService/PublishSync", {"completed": True, "deprecation": "use Purchase"})
    result = run("publish", "Order", *arguments)
    assert (result.exit_code, result.stderr) == (0, "Order is deprecated: use Purchase\n")


@pytest.mark.parametrize("option", [("--restart",), ("--retry-failed",), ("--progress", "x"), ("--results", "x")])
def test_an_option_of_files_without_one_is_usage(run: Run, service: ScriptedService, option: tuple[str, ...]) -> None:
    """FL-10: an option without effect is told."""
    assert run("publish", "Order", *option).exit_code == 2
    assert not service.calls


# -- artifacts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["--correlation", "--correlation-id"])
def test_artifacts_are_listed_by_visibility_and_with_who_took_them_up(
    run: Run, service: ScriptedService, name: str
) -> None:
    """FL-6, FL-9."""
    artifact = {
        "id": "a",
        "consumed_by": {"values": [{"string_value": "payments"}]},
        "consumptions": {"values": [{"struct_value": {"consumer": "payments"}}]},
    }
    service.answer("ArtifactService/ListArtifacts", {"items": [artifact]})
    cascade = str(uuid.uuid4())
    arguments = ("artifacts", "list", "--visibility", "Private", "--consumptions", name, cascade)
    assert "payments" in run(*arguments).stdout
    request = service.calls[0].request
    assert (request.visibility, request.embed_meta, request.correlation_id) == ("Private", True, cascade)
    assert json.loads(run(*arguments, "--json").stdout)["consumptions"] == [{"consumer": "payments"}]


def test_artifacts_are_counted(run: Run, service: ScriptedService) -> None:
    """FL-9: with the filters of the list."""
    counts = {"total": 1200, "by_type": {"Order": 1200}, "by_visibility": {"Public": 1200}, "tag_counts": {"red": 3}}
    service.answer("ArtifactService/SummarizeArtifacts", {"summary": counts})
    result = run("artifacts", "summary", "--type", "Order", "--visibility", "Public", "--tag", "red")
    assert result.exit_code == 0
    assert "1,200" in result.stdout
    assert '"red": 3' in result.stdout
    request = service.calls[0].request
    assert (request.type, request.visibility, request.tag) == ("Order", "Public", "red")
    assert json.loads(run("artifacts", "summary", "--json").stdout)["by_type"] == {"Order": 1200}


# -- types ----------------------------------------------------------------------------------------------------


def test_what_a_type_says_is_changed_and_the_rest_left(run: Run, service: ScriptedService) -> None:
    """Only what is given is sent."""
    service.answer("ArtifactService/UpdateArtifactType", {"name": "Note", "version": 1, "retention_days": 7})
    assert "7 days" in run("types", "update", "Note", "--retention-days", "7").stdout
    first = service.calls[0].request
    assert (first.retention_days, first.HasField("deprecated"), first.HasField("description")) == (7, False, False)
    run("types", "update", "Note", "--undeprecate", "--version", "2")
    second = service.calls[1].request
    assert (second.HasField("deprecated"), second.deprecated, second.version) == (True, False, 2)
    run("types", "update", "Note", "--compatibility", "rules", "--allow", "bound", "--description", "a note")
    third = service.calls[2].request
    assert (third.compatibility, list(third.allowed_changes), third.description) == ("rules", ["BOUND"], "a note")
    run("types", "update", "Note", "--example", '{"n": 1}')
    assert from_struct(service.calls[3].request.examples[0]) == {"n": 1}
    assert run("types", "update", "Note").exit_code == 2
    assert len(service.calls) == 4


def test_a_type_is_registered_with_examples(run: Run, service: ScriptedService, tmp_path: Path) -> None:
    """From the command line and from files; they are shown."""
    file = tmp_path / "example.json"
    file.write_text('{"n": 2}')
    service.answer("ArtifactService/CreateArtifactType", lambda request: {"name": "N", "examples": request.examples})
    result = run("types", "create", "N", "--example", '{"n": 1}', "--example", f"@{file}")
    assert [from_struct(each) for each in service.calls[0].request.examples] == [{"n": 1}, {"n": 2}]
    assert '"n": 2' in result.stdout


# -- agents and runs ------------------------------------------------------------------------------------------


def test_agents_are_listed_by_name_and_status(run: Run, service: ScriptedService) -> None:
    """WM-1: a status that is none is answered with those there are."""
    service.answer("AgentService/ListAgents", agent_service_pb2.ListAgentsResponse())
    assert run("agents", "list", "--name", "payments", "--status", "paused").exit_code == 0
    request = service.calls[0].request
    assert (request.name, request.status) == ("payments", agent_pb2.Agent.PAUSED)
    result = run("agents", "list", "--status", "asleep")
    assert (result.exit_code, "ONLINE, OFFLINE, PAUSED, DELETED" in told(result)) == (2, True)


def test_all_that_an_agent_is_registered_with_is_shown(run: Run, service: ScriptedService) -> None:
    """FL-14: bounds of joins, batches and gates, and how its tasks are tried; lengths of time in seconds."""
    subscriptions = [
        {"types": ["A", "B"], "join": {"by": "payload.k", "within": {"seconds": 60, "nanos": 500_000_000}}},
        {"types": ["A", "B"], "join": {"by": "payload.k", "within_count": 9}, "gate_timeout": {"seconds": 70}},
        {"types": ["A"], "batch": {"size": 5, "timeout": {"seconds": 2}}},
    ]
    agent = {
        "name": "packer",
        "subscriptions": subscriptions,
        "retry": {"max_attempts": 4, "initial_interval": {"seconds": 3}},
        "timeouts": {"heartbeat": {"seconds": 8}},
    }
    service.answer("AgentService/GetAgent", agent)
    shown = "".join(run("agents", "get", "packer").stdout.split())
    for text in (
        '"join":{"by":"payload.k","within":60.5}',
        '"join":{"by":"payload.k","within_count":9},"gate_timeout":70.0',
        '"batch":{"size":5,"timeout":2.0}',
        '{"initial_interval":3.0,"max_attempts":4}',
        '{"heartbeat":8.0}',
    ):
        assert text in shown
    found = json.loads(run("agents", "get", "packer", "--json").stdout)
    first, second, third = found["subscriptions"]
    assert (first["join_within"], second["join_within_count"], second["gate_timeout"]) == (60.5, 9, 70)
    assert (third["batch_size"], third["batch_timeout"], third["gate_timeout"]) == (5, 2, None)
    assert (found["retry"]["max_attempts"], found["timeouts"]["heartbeat"]) == (4, 8)


def test_a_run_shows_its_gates_and_parents(run: Run, service: ScriptedService) -> None:
    """FL-14: what keeps it open, and what it came from."""
    service.answer("RunService/GetRun", {"run_id": "r", "open_gates": 2, "parent_run_ids": ["p-1", "p-2"]})
    shown = run("runs", "get", "r").stdout
    assert [line.split() for line in shown.splitlines() if "gates" in line] == [["open", "gates", "2"]]
    assert "p-1, p-2" in shown
    assert json.loads(run("runs", "get", "r", "--json").stdout)["open_gates"] == 2


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({"nmae": "x"}, "nmae: there is no such field; did you mean name?"),
        ({"xyzzy": 1}, "xyzzy: there is no such field; there may be"),
        ({"max_concurrency": "many"}, "max_concurrency: must be a number"),
        ({"max_concurrency": -1}, "max_concurrency: must be a whole number, 0 to"),
        ({"max_concurrency": 1.5}, "max_concurrency: must be a whole number"),
        ({"labels": "fast"}, "labels: must be a list"),
        ({"labels": [1]}, "labels[0]: must be a text"),
        ({"subscriptions": [{"types": ["A"], "wher": "x"}]}, "subscriptions[0].wher: there is no such field; did you"),
        (
            {"subscriptions": [{"gate_timeout": 5}]},
            'subscriptions[0].gate_timeout: must be a time in seconds, such as "30s',
        ),
        ({"subscriptions": [{"join": "k"}]}, "subscriptions[0].join: must be a JSON object"),
        ({"subscriptions": [{"counts": {"A": "two"}}]}, "subscriptions[0].counts.A: must be a number"),
        ({"subscriptions": [{"join": {"within_count": True}}]}, "subscriptions[0].join.within_count: must be a number"),
        ({"retry": {"factor": "x"}}, "retry.factor: must be a number"),
    ],
)
def test_a_field_at_fault_is_named_as_the_contract_names_it(
    run: Run, service: ScriptedService, tmp_path: Path, spec: dict[str, Any], named: str
) -> None:
    """FL-10: where, and what may be there; nothing is sent."""
    file = tmp_path / "agent.json"
    file.write_text(json.dumps(spec))
    for command in (("create",), ("update", "x")):
        result = run("agents", *command, "-f", str(file))
        assert result.exit_code == 2
        assert named in told(result)
        assert "maxConcurrency" not in result.stderr
    assert not service.calls


def test_all_that_the_contract_takes_is_taken(run: Run, service: ScriptedService, tmp_path: Path) -> None:
    """FL-14: every kind of field, null for what is not said."""
    file = tmp_path / "agent.json"
    subscription = {
        "types": ["A", "B"], "counts": {"A": 2}, "gate_timeout": "1.5s", "join": {"by": "payload.k", "within_count": 5},
        "batch": None, "priority": -3,
    }  # fmt: skip
    spec = {"name": "x", "subscriptions": [subscription], "retry": {"factor": 2, "max_attempts": 3}, "labels": []}
    file.write_text(json.dumps(spec))
    service.answer("AgentService/CreateAgent", {"name": "x"})
    assert run("agents", "create", "-f", str(file)).exit_code == 0
    found = service.calls[0].request
    assert (found.subscriptions[0].counts["A"], found.subscriptions[0].gate_timeout.nanos) == (2, 500_000_000)
    assert (found.subscriptions[0].priority, found.retry.factor) == (-3, 2)
