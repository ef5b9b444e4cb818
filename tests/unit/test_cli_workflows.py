"""`millstream workflows` against a scripted service: files of definitions, what is printed, and how it ends."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.api.httpbody_pb2 import HttpBody
from tests.unit.scripted import Abort, ScriptedService, start
from typer import BadParameter
from typer.testing import CliRunner, Result

from millstream.cli.app import app
from millstream.cli.definitions import definitions_of, differences, shown, yaml_of
from millstream.sdk.payload import fill_struct, from_struct
from millstream.v1 import workflow_pb2
from millstream.v1 import workflow_service_pb2 as wire

Run = Callable[..., Result]
STEP = {"id": "pay", "kind": "task", "task": "pay"}
ORDER: dict[str, Any] = {"name": "order", "steps": [STEP]}
NOT_FOUND = Abort(grpc.StatusCode.NOT_FOUND, "there is no workflow 'order'", "NOT_FOUND")


@pytest.fixture
def service() -> Iterator[ScriptedService]:
    service = ScriptedService()
    stop = start(service)
    yield service
    stop()


@pytest.fixture
def run(service: ScriptedService) -> Run:
    def invoke(*args: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, ["workflows", *args], input=stdin, env={"MILLSTREAM_TARGET": service.target})

    return invoke


def found(kind: Any, version: int = 1, definition: dict[str, Any] = ORDER, **fields: Any) -> Any:
    """A workflow as the service answers with it."""
    answer = kind(id="w-1", name="order", version=version, status="ACTIVE", **fields)
    fill_struct(answer.definition, definition)
    return answer


def faults(field: str, message: str) -> list[dict[str, str]]:
    return [{"field": field, "message": message, "code": "INVALID"}]


# -- apply -----------------------------------------------------------------------------------------------------


def test_a_new_definition_is_created(run: Run, service: ScriptedService, tmp_path: Path) -> None:
    """FV-14: warnings stand on stderr, by the fields of the file."""
    file = tmp_path / "order.yaml"
    file.write_text("name: order\nsteps:\n- {id: pay, kind: task, task: pay}\n")
    service.answer("WorkflowService/GetWorkflow", NOT_FOUND)
    warnings = faults("definition.steps[0].task", "nobody serves it")
    service.answer("WorkflowService/CreateWorkflow", found(wire.CreateWorkflowResponse, warnings=warnings))
    result = run("apply", "-f", str(file))
    assert (result.exit_code, result.stdout) == (0, "order is created as version 1\n")
    assert result.stderr == "warning: steps[0].task: nobody serves it\n"
    assert from_struct(service.calls[1].request.definition) == ORDER
    assert service.calls[1].metadata["x-idempotency-key"]


def test_a_deleted_workflow_is_created_again(run: Run, service: ScriptedService) -> None:
    deleted = found(wire.GetWorkflowResponse)
    deleted.status = workflow_pb2.Workflow.Status.DELETED
    service.answer("WorkflowService/GetWorkflow", deleted)
    service.answer("WorkflowService/CreateWorkflow", found(wire.CreateWorkflowResponse, 2))
    assert run("apply", "-f", "-", stdin=json.dumps(ORDER)).stdout == "order is created as version 2\n"


@pytest.mark.parametrize(
    ("version", "text"), [(4, "order is changed to version 4"), (3, "order is unchanged at version 3")]
)
def test_a_known_definition_makes_a_version_where_it_differs(
    run: Run, service: ScriptedService, version: int, text: str
) -> None:
    """FV-14: of the version that was read, so that nobody else's change is lost."""
    service.answer("WorkflowService/GetWorkflow", found(wire.GetWorkflowResponse, 3))
    service.answer("WorkflowService/UpdateWorkflow", found(wire.UpdateWorkflowResponse, version))
    result = run("apply", "-f", "-", stdin=json.dumps(ORDER))
    assert (result.exit_code, result.stdout) == (0, f"{text}\n")
    request = service.calls[1].request
    assert (request.workflow_id, request.expected_version, from_struct(request.definition)) == ("w-1", 3, ORDER)


def test_what_became_of_it_is_json_for_machines(run: Run, service: ScriptedService) -> None:
    service.answer("WorkflowService/GetWorkflow", NOT_FOUND)
    service.answer("WorkflowService/CreateWorkflow", found(wire.CreateWorkflowResponse))
    answer = json.loads(run("apply", "-f", "-", "--json", stdin=json.dumps(ORDER)).stdout)
    assert (answer["outcome"], answer["workflow"]["version"]) == ("created", 1)


def test_faults_are_told_by_the_fields_of_the_file(run: Run, service: ScriptedService) -> None:
    """WM-2: without the name of the request's field, and all of them: the error itself has not room for many."""
    refused = Abort(
        grpc.StatusCode.INVALID_ARGUMENT, "definition.steps: is required", "VALIDATION_ERROR",
        (("definition.steps", "is required", "REQUIRED"),),
    )  # fmt: skip
    every = [
        {"field": "definition.steps", "message": "is required", "code": "REQUIRED"},
        {"field": "definition.timeout", "message": "must be a number", "code": "WRONG_TYPE"},
    ]
    service.answer("WorkflowService/CreateWorkflow", refused)
    service.answer("WorkflowService/ValidateWorkflow", {"faults": every})
    result = run("apply", "-f", "-", stdin='{"nam": "order"}')
    assert result.exit_code == 1
    assert "  steps: is required [REQUIRED]" in result.stderr
    assert "  timeout: must be a number [WRONG_TYPE]" in result.stderr


def test_several_documents_of_a_file_are_applied_in_order(run: Run, service: ScriptedService) -> None:
    service.answer("WorkflowService/GetWorkflow", NOT_FOUND)
    service.answer("WorkflowService/CreateWorkflow", lambda request: found(wire.CreateWorkflowResponse))
    run("apply", "-f", "-", stdin="name: a\n---\nname: b\n---\n")
    names = [from_struct(call.request.definition)["name"] for call in service.calls if call.rpc.endswith("Create")]
    names = [from_struct(c.request.definition)["name"] for c in service.calls if hasattr(c.request, "definition")]
    assert names == ["a", "b"]


# -- files -----------------------------------------------------------------------------------------------------


def read(tmp_path: Path, text: str, name: str = "w.yaml") -> Any:
    file = tmp_path / name
    file.write_text(text)
    return definitions_of(str(file))[0]


def test_plain_words_of_yaml_are_texts(tmp_path: Path) -> None:
    """What YAML 1.1 makes of `no`, `1:30`, `0777` and dates surprises; numbers, true, false and null are JSON's."""
    text = """
on: no
off: [yes, y, n, On]
time: 1:30
old: 0777
hex: 0x1F
date: 2026-01-02
1: one
numbers: [1, -2, 1.5, 1e3, 2.5e-1, .5]
flags: [true, false, null, ~, ]
text: ["1", 'null']
when: input.amount > 0 && input.ok
"""
    assert read(tmp_path, text) == {
        "on": "no", "off": ["yes", "y", "n", "On"], "time": "1:30", "old": "0777", "hex": "0x1F", "date": "2026-01-02",
        "1": "one", "numbers": [1, -2, 1.5, 1000.0, 0.25, 0.5], "flags": [True, False, None, None],
        "text": ["1", "null"], "when": "input.amount > 0 && input.ok",
    }  # fmt: skip


def test_what_is_shown_as_yaml_is_read_as_it_was(tmp_path: Path) -> None:
    """FV-14: `get --yaml` gives what `apply` takes."""
    definition = {
        "steps": [{"kind": "task", "id": "a", "when": "input.x == 'no'",
                   "input": {"on": "no", "n": 1.5, "e": "${[]}"}}],
        "name": "order", "description": "yes\nand: no # x", "labels": {"1": "2026-01-02", "z": "", "t": "1:30"},
    }  # fmt: skip
    text = yaml_of(definition)
    assert read(tmp_path, text) == definition
    assert text.startswith("name: order\ndescription:")
    assert "- id: a\n  kind: task\n" in text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("name: [", "line 1, column 8"),
        ("name: a\nname: b", "'name' stands here twice (line 2, column 1)"),
        ("? [a]\n: b", "a key must be a text"),
        ("[1, 2]", "must hold a definition"),
        ("", "must hold a definition"),
        ("x: !!python/object:os.system {}", "could not determine a constructor"),
        ("a: &a [1,1,1,1,1,1,1,1]\n" + "".join(
            f"{chr(98 + n)}: &{chr(98 + n)} [{','.join([f'*{chr(97 + n)}'] * 8)}]\n" for n in range(7)
        ), "stands for 200,000 values or more"),
        ("x: " + "[" * 5000, "nested too deep"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_definition_is_told(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(BadParameter, match=r"w\.yaml") as refused:
        read(tmp_path, text)
    assert why in str(refused.value)


def test_a_file_of_json_is_read_as_json(tmp_path: Path) -> None:
    assert read(tmp_path, '{"name": "x"}', "w.json") == {"name": "x"}
    with pytest.raises(BadParameter, match="is no JSON"):
        read(tmp_path, "name: x", "w.json")
    with pytest.raises(BadParameter, match="cannot read"):
        definitions_of(str(tmp_path / "none.yaml"))


# -- the rest --------------------------------------------------------------------------------------------------


def test_a_check_tells_all_and_fails_with_faults(run: Run, service: ScriptedService) -> None:
    """WM-2: the exit code is for scripts."""
    service.answer(
        "WorkflowService/ValidateWorkflow",
        {"valid": False, "faults": faults("definition.steps[0].needs[0]", "there is no step 'x'"),
         "warnings": faults("definition.output", "stands as it is")},
    )  # fmt: skip
    result = run("validate", "-f", "-", stdin=json.dumps(ORDER))
    assert (result.exit_code, result.stdout) == (1, "order has faults:\n  steps[0].needs[0]: there is no step 'x'\n")
    assert result.stderr == "warning: output: stands as it is\n"
    service.answer("WorkflowService/ValidateWorkflow", {"valid": True})
    result = run("validate", "-f", "-", stdin=json.dumps(ORDER))
    assert (result.exit_code, result.stdout) == (0, "order is fine\n")
    assert json.loads(run("validate", "-f", "-", "--json", stdin="{}").stdout)["valid"] is True


def test_workflows_are_listed(run: Run, service: ScriptedService) -> None:
    """WM-11: with their filters and order."""
    item = {"id": "w-1", "name": "order", "version": 3, "status": "DELETED", "description": "takes orders"}
    service.answer("WorkflowService/ListWorkflows", {"items": [item]})
    result = run("list", "--name", "order", "--status", "deleted", "--sort", "-updated_at")
    for text in ("order", "3", "DELETED", "takes orders"):
        assert text in result.stdout
    request = service.calls[0].request
    assert (request.name, request.status, request.sort) == ("order", 2, "-updated_at")
    assert run("list", "--status", "gone").exit_code == 2


def test_a_workflow_is_shown_with_its_definition(run: Run, service: ScriptedService) -> None:
    service.answer("WorkflowService/GetWorkflow", found(wire.GetWorkflowResponse, 3, created_by="ada"))
    result = run("get", "order")
    for text in ("w-1", "ACTIVE", "ada", "- id: pay\n  kind: task\n  task: pay\n"):
        assert text in result.stdout
    assert run("get", "order", "--yaml").stdout == yaml_of(ORDER)
    assert json.loads(run("get", "order", "--json").stdout)["definition"] == ORDER


def test_a_version_is_shown(run: Run, service: ScriptedService) -> None:
    answer = wire.GetWorkflowVersionResponse(workflow_id="w-1", name="order", version=2, created_by="ada")
    fill_struct(answer.definition, ORDER)
    service.answer("WorkflowService/GetWorkflowVersion", answer)
    assert run("get", "order", "--version", "2", "--yaml").stdout == yaml_of(ORDER)
    assert "w-1" in run("get", "order", "--version", "2").stdout
    assert service.calls[0].request.version == 2


def test_versions_are_listed(run: Run, service: ScriptedService) -> None:
    items = [{"version": 2, "workflow_id": "w-1", "created_by": "ada"}, {"version": 1, "workflow_id": "w-0"}]
    service.answer("WorkflowService/ListWorkflowVersions", {"items": items})
    result = run("versions", "order", "--json")
    assert [json.loads(line)["version"] for line in result.stdout.splitlines()] == [2, 1]
    assert service.calls[0].request.workflow_id == "order"


def test_versions_are_compared_step_by_step(run: Run, service: ScriptedService) -> None:
    """FV-14: what came, went and changed, wherever in the list a step stands."""
    gone, came = {"id": "gone", "kind": "sleep", "seconds": 1}, {"id": "came", "kind": "sleep", "seconds": 2}
    retried = STEP | {"retry": {"max_attempts": 5}, "needs": ["came"]}
    documents = {
        1: {"name": "order", "timeout": 10, "steps": [gone, STEP]},
        2: {"name": "order", "timeout": 20, "labels": {"b": "1"}, "steps": [came, retried]},
    }

    def version(request: Any) -> Any:
        answer = wire.GetWorkflowVersionResponse(version=request.version)
        fill_struct(answer.definition, documents[request.version])
        return answer

    service.answer("WorkflowService/GetWorkflowVersion", version)
    expected = """~ labels: nothing -> {"b":"1"}
~ timeout: 10 -> 20
- step gone
    id: gone
    kind: sleep
    seconds: 1
~ step pay
    needs: nothing -> ["came"]
    retry: nothing -> {"max_attempts":5}
+ step came
    id: came
    kind: sleep
    seconds: 2
"""
    assert run("diff", "order", "1", "2").stdout == expected
    assert run("diff", "order", "1", "1").stdout == "versions 1 and 1 are the same\n"
    lines = [json.loads(line) for line in run("diff", "order", "1", "2", "--json").stdout.splitlines()]
    assert lines[1] == {"step": "", "path": "timeout", "before": 10, "after": 20}


def test_steps_that_only_changed_places_are_told() -> None:
    steps: list[dict[str, Any]] = [{"id": name, "kind": "sleep", "seconds": 1} for name in "abc"]
    found = differences({"steps": steps}, {"steps": [steps[1], steps[0], steps[2]]})
    assert shown(found) == '~ steps: ["a","b","c"] -> ["b","a","c"]'
    nested = differences({"steps": [steps[0] | {"x": {"y": 1, "z": 2}}]}, {"steps": [steps[0] | {"x": {"y": 1}}]})
    assert shown(nested) == "~ step a\n    x.z: 2 -> nothing"


def test_a_workflow_is_deleted(run: Run, service: ScriptedService) -> None:
    service.answer("WorkflowService/DeleteWorkflow", {})
    assert run("delete", "order").stdout == "order is deleted\n"
    assert service.calls[0].request.workflow_id == "order"


def test_the_schema_is_printed(run: Run, service: ScriptedService) -> None:
    service.answer("WorkflowService/GetWorkflowSchema", HttpBody(data=b'{"type":"object"}'))
    assert json.loads(run("schema").stdout) == {"type": "object"}
