"""Each RPC maps its request to one use case and its result to the answer of the contract."""

import base64
import dataclasses
import json
from typing import Any

import grpc
from google.api.httpbody_pb2 import HttpBody
from google.protobuf import json_format
from google.protobuf.message import Message
from tests.rpc.answers import status_of
from tests.rpc.conftest import Service
from tests.rpc.fakes import ID, OTHER, artifact

from millstream.application.paging import PageRequest
from millstream.application.views.artifacts import CorrelationStatus, Published, SyncResult
from millstream.application.views.leases import LeaseRef
from millstream.application.views.runs import ManyRuns, RunQuery, StuckQuery
from millstream.application.views.tasks import TaskQuery
from millstream.application.views.types import TypeChange, TypeSpec
from millstream.domain.agents import TypeOptions
from millstream.domain.artifacts import Visibility
from millstream.domain.errors import ValidationFailed
from millstream.domain.runs import RunKind, RunStatus, TaskStatus
from millstream.domain.struct_wire import decode_struct, decode_value, encode_struct, encode_value
from millstream.domain.workers import KindQuery, WorkerQuery
from millstream.transport import contract
from millstream.v1 import (
    agent_service_pb2,
    artifact_service_pb2,
    correlation_service_pb2,
    documentation_service_pb2,
    execution_service_pb2,
    promise_service_pb2,
    queue_service_pb2,
    run_service_pb2,
    system_service_pb2,
    task_log_service_pb2,
    task_service_pb2,
    tenant_service_pb2,
    worker_service_pb2,
    workflow_service_pb2,
)
from millstream.v1.agent_service_pb2 import RunAgentRequest

_MODULES = (
    artifact_service_pb2,
    correlation_service_pb2,
    agent_service_pb2,
    run_service_pb2,
    task_log_service_pb2,
    task_service_pb2,
    promise_service_pb2,
    queue_service_pb2,
    worker_service_pb2,
    tenant_service_pb2,
    workflow_service_pb2,
    execution_service_pb2,
    system_service_pb2,
)
_ARTIFACT = {
    "id": ID,
    "type": "Order",
    "payload": {"z": 1.0, "a": [True, None]},
    "produced_by": "external",
    "visibility": {"kind": "After", "ttl": "1.500s", "then": {"kind": "Private", "agents": ["a"]}},
    "visibility_kind": "After",
    "created_at": "2023-11-14T22:13:20.123456Z",
    "correlation_id": OTHER,
    "partition_key": "k",
    "tags": ["x"],
    "version": 3,
}


async def _ask(service: Service, path: str, request: dict[str, Any] | None = None, **more: str) -> Any:
    """Call with a request of the contract given as JSON, and return the answer as JSON."""
    method, answer = await _call(service, path, request, **more)
    assert answer.error is None, answer.error
    out = _class(method.output_type).FromString(answer.body)
    return json_format.MessageToDict(out, preserving_proto_field_name=True)


async def _refused(service: Service, path: str, request: dict[str, Any]) -> str:
    """The first field of what a request is refused for."""
    _, answer = await _call(service, path, request)
    reason, _, fields, _ = status_of(answer)
    assert reason == "VALIDATION_ERROR"
    return fields[0][0]


async def _call(service: Service, path: str, request: dict[str, Any] | None = None, **more: str) -> tuple[Any, Any]:
    area, rpc = path.split("/")
    method = next(
        m
        for module in _MODULES
        for s in module.DESCRIPTOR.services_by_name.values()
        if s.name == area
        for m in s.methods
        if m.name == rpc
    )
    message = json_format.ParseDict(request or {}, _class(method.input_type)())
    return method, await service.call(path, message.SerializeToString(), **more)


def _class(descriptor: Any) -> type[Message]:
    from google.protobuf import message_factory

    return message_factory.GetMessageClass(descriptor)


async def test_publish(service: Service) -> None:
    """FL-1"""
    request = {
        "type": "Order",
        "payload": {"amount": 12.5},
        "visibility": {"kind": "Labelled", "required_labels": ["eu"]},
        "tags": ["a", "b"],
        "partition_key": "p",
        "correlation_id": ID.upper(),
    }
    out = await _ask(service, "ArtifactService/Publish", request)
    assert out == {"status": "accepted", "artifact_id": ID, "correlation_id": OTHER}
    _, principal, new, key = service.fakes.artifacts.calls[0]
    assert principal.name == "root"
    assert key is None
    assert (new.type, new.tags, new.partition_key, new.correlation_id) == ("Order", ("a", "b"), "p", ID)
    assert new.visibility == Visibility(kind="Labelled", required_labels=("eu",))
    assert decode_struct(new.payload) == {"amount": 12.5}


async def test_publish_sync_returns_artifacts_and_failures(service: Service) -> None:
    """FL-2, FL-17"""
    out = await _ask(service, "ArtifactService/PublishSync", {"type": "Order", "timeout": 2.5})
    assert out["completed"] is True
    assert out["duration_ms"] == 1.5
    assert out["artifacts"][0] == _ARTIFACT
    assert [each["type"] for each in out["artifacts"]] == ["Order", "Payment"]
    assert out["failures"] == [
        {"agent": "a", "task_id": ID, "code": "C", "message": "m", "attempts": 2, "artifact_ids": [ID]}
    ]
    assert service.fakes.artifacts.calls[0][4] == 2.5


async def test_publish_sync_filters_what_it_returns(service: Service) -> None:
    """FL-4"""
    by_type = {"type": "Order", "filters": {"type_names": ["Payment"]}}
    by_maker = {"type": "Order", "filters": {"produced_by": ["external"]}}
    out = await _ask(service, "ArtifactService/PublishSync", by_type)
    assert [each["type"] for each in out["artifacts"]] == ["Payment"]
    out = await _ask(service, "ArtifactService/PublishSync", by_maker)
    assert [each["type"] for each in out["artifacts"]] == ["Order"]


async def test_publish_sync_says_where_more_is(service: Service) -> None:
    """FL-2"""
    service.fakes.artifacts.answer = SyncResult(OTHER, [artifact()], True, 1.0, [], next_page_token="more")
    out = await _ask(service, "ArtifactService/PublishSync", {"type": "Order"})
    assert (out["truncated"], out["next_page_token"]) == (True, "more")
    assert service.fakes.artifacts.calls[0][4] == 30.0


async def test_a_sync_publish_that_times_out_answers_or_fails_as_asked(service: Service) -> None:
    """FL-3"""
    service.fakes.artifacts.answer = SyncResult(OTHER, [artifact()], False, 1000.0, [])
    out = await _ask(service, "ArtifactService/PublishSync", {"type": "Order", "timeout": 1})
    assert "completed" not in out
    assert len(out["artifacts"]) == 1
    wire = artifact_service_pb2.PublishSyncRequest(type="Order", timeout=1, fail_on_timeout=True)
    answer = await service.call("ArtifactService/PublishSync", wire.SerializeToString(), x_envoy_original_path="/")
    assert answer.metadata["x-http-status"] == "504"
    assert '"code":"TIMEOUT"' in answer.metadata["x-error-body"]
    assert '"retryable":true' in answer.metadata["x-error-body"]


async def test_a_bad_item_of_a_batch_fails_alone(service: Service) -> None:
    """FL-11"""
    items: list[dict[str, Any]] = [
        {"type": "Order", "payload": {"n": 1}},
        {"type": "no spaces please"},
        {"type": "Order", "idempotency_key": "k1"},
        {"type": "Order", "visibility": {"kind": "After"}},
        {"type": "Order", "idempotency_key": "ümlaut"},
    ]
    out = await _ask(service, "ArtifactService/PublishBatch", {"artifacts": items})
    assert [each["status"] for each in out["results"]] == ["accepted", "failed", "duplicate", "failed", "failed"]
    assert [each.get("index", 0) for each in out["results"]] == [0, 1, 2, 3, 4]
    assert (out["accepted"], out["failed"]) == (2, 3)
    fields = [each["error"]["details"][0]["field"] for each in out["results"] if "error" in each]
    assert fields == ["artifacts[1].type", "artifacts[3].visibility.ttl", "artifacts[4].idempotency_key"]
    _, _, given, keys, key = service.fakes.artifacts.calls[0]
    assert [isinstance(each, ValidationFailed) for each in given] == [False, True, False, True, True]
    assert key is None
    assert (keys[2].value, keys[2].rpc) == ("k1", "Publish")


async def test_a_batch_item_and_a_single_publish_have_the_same_fingerprint(service: Service) -> None:
    item = {"type": "Order", "payload": {"b": 1, "a": {"d": 1, "c": 2}}, "idempotency_key": "k"}
    await _ask(service, "ArtifactService/PublishBatch", {"artifacts": [item]})
    single = {"type": "Order", "payload": {"a": {"c": 2, "d": 1}, "b": 1}}
    await _ask(service, "ArtifactService/Publish", single, x_idempotency_key="k")
    assert service.fakes.artifacts.calls[0][3][0] == service.fakes.artifacts.calls[1][3]


async def test_list_artifacts(service: Service) -> None:
    """FL-12"""
    out = await _ask(
        service,
        "ArtifactService/ListArtifacts",
        {"type": "Order", "from": "2023-01-01T00:00:00Z", "limit": 50, "offset": 0, "embed_meta": True},
    )
    consumption = {
        "artifact_id": ID,
        "consumer": "payments",
        "run_id": OTHER,
        "correlation_id": OTHER,
        "consumed_at": "2023-11-14T22:13:20.123456Z",
    }
    assert out["items"] == [_ARTIFACT | {"consumptions": [consumption], "consumed_by": ["payments"]}]
    assert out["pagination"] == {"total": 1, "limit": 50, "offset": 0}
    _, _, query, page, embed = service.fakes.artifacts.calls[0]
    assert (query.type, query.from_us, query.to_us) == ("Order", 1672531200000000, 0)
    assert (page, embed) == (PageRequest(limit=50, offset=0), True)


async def test_summarize_and_get_artifacts(service: Service) -> None:
    """FL-12, FL-17"""
    out = await _ask(service, "ArtifactService/SummarizeArtifacts")
    assert out["summary"]["by_type"] == {"Order": 2}
    assert out["summary"]["earliest_created_at"] == "2023-11-14T22:13:20.123456Z"
    assert await _ask(service, "ArtifactService/GetArtifact", {"artifact_id": ID.upper()}) == _ARTIFACT
    assert service.fakes.artifacts.calls[1][2] == ID


async def test_types(service: Service) -> None:
    kind = {
        "name": "Order",
        "version": 1,
        "schema": {"type": "object"},
        "description": "an order",
        "created_at": "2023-11-14T22:13:20.123456Z",
        "compatibility": "backward",
    }
    created = {"name": "Order", "schema": {"type": "object", "minProperties": 1}}
    assert await _ask(service, "ArtifactService/CreateArtifactType", created) == kind
    spec = service.fakes.types.calls[0][2]
    # In the order of this process's map, which the server keeps.
    assert (spec, json.loads(spec.schema)) == (TypeSpec("Order", spec.schema), created["schema"])
    assert await _ask(service, "ArtifactService/GetArtifactType", {"name": "Order", "version": 1}) == kind
    assert service.fakes.types.calls[1][2:] == ("Order", 1)
    assert (await _ask(service, "ArtifactService/ListArtifactTypes"))["items"] == [kind]
    assert (await _ask(service, "ArtifactService/ListArtifactTypeVersions", {"name": "Order"}))["items"] == [kind]
    change = {"name": "Order", "deprecated": True, "deprecation_message": "use B", "retention_days": 0}
    assert await _ask(service, "ArtifactService/UpdateArtifactType", change) == kind
    assert service.fakes.types.calls[-1][2] == TypeChange(
        "Order", deprecated=True, deprecation="use B", retention_days=0
    )
    await _ask(service, "ArtifactService/UpdateArtifactType", {"name": "Order", "examples": [{"a": 1}, {}]})
    assert service.fakes.types.calls[-1][2] == TypeChange("Order", examples=('{"a":1}', "{}"))
    rules = {"name": "Order", "compatibility": "rules"}
    assert await _refused(service, "ArtifactService/UpdateArtifactType", rules) == "allowed_changes"
    body = await _ask(service, "ArtifactService/GetArtifactTypeSchema", {"name": "Order"})
    assert body["content_type"] == "application/schema+json"
    assert json.loads(base64.b64decode(body["data"])) == {"type": "object"}


async def test_a_type_with_all_that_it_says(service: Service) -> None:
    """Examples come back as they went in; allowed changes belong to the rules alone."""
    options = TypeOptions("rules", ("TYPE",), 7, True, "use B", ('{"a":1}',))
    service.fakes.types.kind = dataclasses.replace(service.fakes.types.kind, options=options)
    asked = {
        "name": "Order", "schema": {"type": "object"}, "compatibility": "rules", "allowed_changes": ["TYPE"],
        "retention_days": 7, "examples": [{"a": 1}],
    }  # fmt: skip
    out = await _ask(service, "ArtifactService/CreateArtifactType", asked)
    assert {name: out[name] for name in ("compatibility", "allowed_changes", "retention_days", "examples")} == {
        "compatibility": "rules", "allowed_changes": ["TYPE"], "retention_days": 7, "examples": [{"a": 1}],
    }  # fmt: skip
    assert (out["deprecated"], out["deprecation_message"]) == (True, "use B")
    spec = service.fakes.types.calls[-1][2]
    assert (spec.compatibility, spec.allowed_changes, spec.retention_days, spec.examples) == (
        "rules", ("TYPE",), 7, ('{"a":1}',),
    )  # fmt: skip
    refused: tuple[dict[str, Any], ...] = (
        {"allowed_changes": ["TYPE"]},
        {"compatibility": "forward"},
        {"compatibility": "rules"},
        {"examples": [{}] * 11},
    )
    for bad in refused:
        path = "/millstream.v1.ArtifactService/CreateArtifactType"
        request = artifact_service_pb2.CreateArtifactTypeRequest(name="Order")
        json_format.ParseDict(bad, request)
        answer = await service.call(path, request.SerializeToString())
        assert answer.error is not None, bad


async def test_who_publishes_a_deprecated_type_is_told(service: Service) -> None:
    """In the answer, and in its header."""
    service.fakes.artifacts.answer = Published(ID, OTHER, notice="use B")
    out = await _ask(service, "ArtifactService/Publish", {"type": "Order"})
    assert out["deprecation"] == "use B"
    batch = await _ask(service, "ArtifactService/PublishBatch", {"artifacts": [{"type": "Order"}]})
    assert batch["results"][0]["deprecation"] == "use B"


async def test_agents(service: Service) -> None:
    """FL-13"""
    wanted = {"name": "payments", "subscriptions": [{"types": ["Order"], "priority": 3}], "queue": ""}
    out = await _ask(service, "AgentService/CreateAgent", wanted)
    assert out["status"] == "ONLINE"
    assert out["retry"]["max_attempts"] == 3
    assert out["timeouts"] == {"start_to_close": "300s"}
    spec = service.fakes.agents.calls[0][2]
    assert (spec.queue, spec.subscriptions[0].delivery, spec.subscriptions[0].priority) == ("default", "broadcast", 3)
    listed = await _ask(service, "AgentService/ListAgents", {"status": "OFFLINE", "name": "payments"})
    assert listed["items"] == listed["agents"]
    assert listed["items"][0]["subscriptions"] == [{"types": ["Order"], "delivery": "broadcast", "mode": "both"}]
    assert service.fakes.agents.calls[-1][3:] == ("payments", "OFFLINE")
    assert (await _ask(service, "AgentService/GetAgent", {"agent_id": "payments"}))["id"] == ID


async def test_agents_are_changed_and_run(service: Service) -> None:
    """WM-1, FL-13"""
    calls = service.fakes.agents.calls
    await _ask(service, "AgentService/UpdateAgent", {"agent_id": ID.upper(), "expected_version": 3})
    assert (calls[-1][2], calls[-1][4]) == (ID, 3)
    paused = await _ask(service, "AgentService/PauseAgent", {"agent_id": "payments", "reason": "why"})
    assert (paused["status"], paused["pause"]["reason"], paused["pause"]["paused_by"]) == ("PAUSED", "why", "root")
    assert (await _ask(service, "AgentService/ResumeAgent", {"agent_id": "payments"}))["status"] == "ONLINE"
    assert await _ask(service, "AgentService/DeleteAgent", {"agent_id": "payments"}) == {}
    wanted = {"agent_id": "payments", "inputs": [{"type": "Order", "payload": {"n": 1}}], "timeout": 5}
    made = await _ask(service, "AgentService/RunAgent", wanted)
    assert (made["correlation_id"], made["completed"], len(made["artifacts"])) == (ID, True, 1)
    (given,) = calls[-1][3]
    assert (given.type, given.payload, calls[-1][5]) == ("Order", encode_struct({"n": 1}), 5)
    assert (made["truncated"], made["next_page_token"], made["deprecation"]) == (True, "next", "Order: " + "x" * 2000)
    raw = json_format.ParseDict(wanted, RunAgentRequest()).SerializeToString()
    answer = await service.call("AgentService/RunAgent", raw)
    assert answer.metadata["x-deprecated"] == "Order: " + "x" * 990 + "..."
    history = await _ask(service, "AgentService/GetAgentHistorySummary", {"agent_id": "payments"})
    assert history["agent_id"] == ID
    assert history["summary"]["produced"] == {"total": 2, "by_type": {"Payment": 2}}
    shown = await _ask(service, "AgentService/GetAgent", {"agent_id": "payments"})
    assert (shown["worker_count"], shown["served_by"][0]["name"]) == (1, "worker")
    (gate,) = shown["gates"]
    assert (gate["within_count"], gate["have"], gate["artifact_ids"]) == (7, {"Order": 2}, [ID])
    assert gate["artifact_ids_truncated"]
    for rpc, fields in (
        ("CreateAgent", {"name": "payments"}), ("UpdateAgent", {"agent_id": "payments"}),
        ("PauseAgent", {"agent_id": "payments"}), ("ResumeAgent", {"agent_id": "payments"}),
    ):  # fmt: skip
        answer = await _ask(service, f"AgentService/{rpc}", fields)
        assert {name: answer[name] for name in ("worker_count", "served_by", "waiting_gates", "gates")} == {
            name: shown[name] for name in ("worker_count", "served_by", "waiting_gates", "gates")
        }


async def test_an_agent_is_put_back_as_it_was_read(service: Service) -> None:
    """WM-1: what GetAgent answers is taken; its version guards, and all else that it shows beside is ignored."""
    shown = await _ask(service, "AgentService/GetAgent", {"agent_id": "payments"})
    await _ask(service, "AgentService/UpdateAgent", {**shown, "agent_id": "payments"})
    _, _, name, spec, expected, _, read_id = service.fakes.agents.calls[-1]
    assert (name, spec, expected, read_id) == ("payments", service.fakes.agents.agent.spec, 1, ID)
    same = {"agent_id": "payments", "version": 2, "expected_version": 2}
    await _ask(service, "AgentService/UpdateAgent", same)
    assert service.fakes.agents.calls[-1][4] == 2
    error = await _refused(service, "AgentService/UpdateAgent", same | {"version": 3})
    assert error == "expected_version"


async def test_what_an_agent_says_twice_or_can_never_make_is_refused(service: Service) -> None:
    """FL-10, FL-14: outputs are names of types; tags and producers are told once."""
    for rpc in ("CreateAgent", "UpdateAgent"):
        for bad, field in (
            ({"outputs": ["a b"]}, "outputs[0]"),
            ({"subscriptions": [{"types": ["Order"], "tags": ["a", "a"]}]}, "subscriptions[0].tags"),
            ({"subscriptions": [{"types": ["Order"], "from_agents": ["a", "a"]}]}, "subscriptions[0].from_agents"),
        ):
            wanted = bad | ({"name": "a"} if rpc == "CreateAgent" else {"agent_id": "a"})
            assert await _refused(service, f"AgentService/{rpc}", wanted) == field
    assert not service.fakes.agents.calls


async def test_runs(service: Service) -> None:
    """WM-5"""
    out = await _ask(service, "RunService/ListRuns", {"status": "FAILED", "kind": "CASCADE"})
    assert out["items"][0]["status"] == "FAILED"
    assert out["items"][0]["error"] == {"code": "BOOM", "message": "it broke"}
    assert out["items"][0]["labels"] == {"a": "b"}
    assert service.fakes.runs.calls[0][2] == RunQuery((RunStatus.FAILED,), RunKind.CASCADE)
    assert (await _ask(service, "RunService/GetRun", {"run_id": OTHER}))["kind"] == "CASCADE"
    events = await _ask(service, "RunService/ListRunEvents", {"run_id": OTHER, "limit": 1})
    assert events["items"][0]["type"] == "RUN_CREATED"
    assert events["items"][0]["data"] == {"n": 1.0}
    assert events["next_after_sequence"] == 1
    tasks = await _ask(service, "RunService/ListRunTasks", {"run_id": OTHER.upper(), "status": "RUNNING"})
    assert "input" not in tasks["items"][0]
    assert service.fakes.runs.calls[-1][2] == TaskQuery(status=TaskStatus.RUNNING, run_id=OTHER)
    steps = (await _ask(service, "RunService/ListRunSteps", {"run_id": OTHER.upper()}))["items"]
    assert (steps[0]["id"], steps[0]["status"], steps[0]["input"], steps[0]["output"]) == (
        "pay", "COMPLETED", True, False,
    )  # fmt: skip
    assert steps[0]["task_id"]
    assert steps[1]["items"] == {"begun": 3, "ended": 2, "failed": 1}
    assert (steps[1]["needs"], steps[1]["child_run_id"]) == (["pay"], "r2")
    await _ask(service, "RunService/CancelRun", {"run_id": OTHER, "reason": "enough"})
    assert service.fakes.runs.calls[-1][2:4] == (OTHER, "enough")


async def test_lists_of_runs_are_narrowed_and_sorted(service: Service) -> None:
    """WM-5"""
    wanted = {
        "status": "FAILED",
        "statuses": ["RUNNING", "FAILED"],
        "workflow_id": "billing",
        "labels": ["env=prod", "note=a=b"],
        "text": " Declined ",
        "parent_run_id": ID.upper(),
        "sort_by": "updated_at",
        "sort_order": "asc",
    }
    await _ask(service, "RunService/ListRuns", wanted)
    assert service.fakes.runs.calls[0][2] == RunQuery(
        (RunStatus.FAILED, RunStatus.RUNNING),
        workflow="billing",
        labels=(("env", "prod"), ("note", "a=b")),
        text="declined",
        parent_id=ID,
        by_updated=True,
        ascending=True,
    )
    for bad, field in (
        ({"labels": ["env"]}, "labels[0]"),
        ({"labels": ["=v"]}, "labels[0]"),
        ({"sort_by": "name"}, "sort_by"),
        ({"sort_order": "up"}, "sort_order"),
        ({"parent_run_id": "x"}, "parent_run_id"),
        ({"statuses": [99]}, "statuses[0]"),
    ):
        assert await _refused(service, "RunService/ListRuns", bad) == field
    children = await _ask(service, "RunService/ListRunChildren", {"run_id": OTHER.upper()})
    assert children["items"][0]["run_id"] == OTHER
    assert service.fakes.runs.calls[-1][:3:2] == ("children", OTHER)


async def test_a_run_shows_what_was_done_to_it(service: Service) -> None:
    """WM-5: what it repeats, who began it, its time and its pause; what it was given and answers stand in it alone."""
    out = await _ask(service, "RunService/GetRun", {"run_id": OTHER})
    assert out["retry_attempt"] == 2
    assert (out["paused_at"], out["timeout"]) == ("2023-11-14T22:13:20.123456Z", "90s")
    assert out["deadline"] == "2023-11-14T22:14:50.123456Z"
    assert (out["workflow"], out["workflow_version"], out["rerun_of"]) == ("billing", "3", ID)
    assert (out["parent_run_id"], out["parent_task_id"]) == (ID, ID)
    assert (out["input"], out["output"]) == ({"n": 1.0}, "done")
    listed = (await _ask(service, "RunService/ListRuns"))["items"][0]
    assert {name: out[name] for name in out if name not in ("input", "output")} == listed


async def test_operations_on_a_run(service: Service) -> None:
    """FV-9, WM-4"""
    calls = service.fakes.run_operations.calls
    out = await _ask(service, "RunService/RetryRun", {"run_id": OTHER.upper(), "note": "mended", "from_step": "pay"})
    assert out["retry_attempt"] == 2
    assert (calls[-1][0], *calls[-1][2:]) == ("retry", OTHER, "mended", "pay", None)
    assert (await _ask(service, "RunService/RerunRun", {"run_id": OTHER, "version": "latest"}))["rerun_of"] == ID
    assert (calls[-1][0], *calls[-1][2:]) == ("rerun", OTHER, "latest", None)
    await _ask(service, "RunService/PauseRun", {"run_id": OTHER, "reason": "look"})
    assert (calls[-1][0], *calls[-1][2:]) == ("pause", OTHER, "look", None)
    await _ask(service, "RunService/ResumeRun", {"run_id": OTHER})
    assert (calls[-1][0], *calls[-1][2:]) == ("resume", OTHER, None)
    for rpc in ("RetryRun", "RerunRun", "PauseRun", "ResumeRun"):
        _, answer = await _call(service, f"RunService/{rpc}", {"run_id": OTHER}, x_idempotency_key="again")
        assert answer.metadata["idempotency-replayed"] == "true"
    assert await _refused(service, "RunService/RerunRun", {"run_id": OTHER, "version": "2"}) == "version"


async def test_operations_on_many_runs(service: Service) -> None:
    """FL-10: each run has an outcome of its own."""
    calls = service.fakes.run_operations.calls
    out = await _ask(service, "RunService/RetryRuns", {"run_ids": [ID.upper(), OTHER], "note": "mended"})
    assert calls[-1][2] == ManyRuns(ids=(ID, OTHER), why="mended")
    assert [(each["run_id"], each["status"]) for each in out["results"]] == [(ID, "accepted"), (OTHER, "failed")]
    assert out["results"][1]["error"]["code"] == "CONFLICT"
    assert {name: out[name] for name in ("accepted", "failed", "matched", "left", "next_page_token")} == {
        "accepted": 1, "failed": 1, "matched": 5, "left": 3, "next_page_token": "more",
    }  # fmt: skip
    by_filter = {"filter": {"labels": ["a=b"], "kind": "SINGLE"}, "dry_run": True, "limit": 5, "reason": "too many"}
    await _ask(service, "RunService/CancelRuns", by_filter | {"page_token": "t"})
    query = RunQuery(kind=RunKind.SINGLE, labels=(("a", "b"),))
    assert calls[-1][2] == ManyRuns((), query, "too many", True, 5, "t")
    for bad, field in (
        ({"run_ids": ["x"]}, "run_ids[0]"),
        ({"run_ids": [ID, ID]}, "run_ids"),
        ({"limit": 1001}, "limit"),
        ({"filter": {"labels": ["x"]}}, "filter.labels[0]"),
        ({"filter": {"labels": ["long"]}}, "filter.labels[0]"),
    ):
        assert await _refused(service, "RunService/RetryRuns", bad) == field


async def test_what_is_stuck(service: Service) -> None:
    """FV-19"""
    out = await _ask(service, "TaskService/ListStuckTasks", {"why": "WAITING", "unserved": True, "for_at_least": "60s"})
    _, _, query, size, token = service.fakes.tasks.calls[-1]
    assert (query, size, token) == (StuckQuery(waiting=True, for_us=60_000_000, unserved=True), 50, "")
    item = out["items"][0]
    assert (item["task"]["task_id"], item["since"]) == (ID, "2023-11-14T22:13:20.123456Z")
    assert (item["waiting"], item["served"], out["next_page_token"]) == (7, True, "more")
    assert item["next_attempt_at"] == "2023-11-14T22:13:25.123456Z"
    await _ask(service, "TaskService/ListStuckTasks", {"kind": "resize", "queue": "slow", "page_size": 3})
    assert service.fakes.tasks.calls[-1][2:4] == (StuckQuery(kind="resize", queue="slow"), 3)


async def test_executions(service: Service) -> None:
    """WM-3"""
    begun = await _ask(
        service, "WorkflowService/ExecuteWorkflow",
        {"workflow_id": "order", "input": {"n": 1}, "version": "3", "labels": {"a": "b"}, "run_timeout": "90s"},
    )  # fmt: skip
    assert (begun["run_id"], begun["workflow"], begun["version"], begun["status"]) == ("r1", "order", "3", "RUNNING")
    new = service.fakes.executions.calls[-1][2]
    assert (new.workflow, new.version, decode_value(new.input), new.labels) == ("order", "3", {"n": 1}, '{"a":"b"}')
    assert new.timeout_us == 90_000_000
    done = await _ask(service, "WorkflowService/ExecuteWorkflowSync", {"workflow_id": "order", "timeout": 5})
    assert (done["completed"], done["output"], done["duration_ms"]) == (True, True, 2000)
    assert service.fakes.executions.calls[-1][4] == 5
    slow = await _ask(service, "WorkflowService/ExecuteWorkflowSync", {"workflow_id": "slow"})
    assert "completed" not in slow
    assert slow["duration_ms"] == 1500
    late = {"workflow_id": "slow", "fail_on_timeout": True}
    _, answer = await _call(service, "WorkflowService/ExecuteWorkflowSync", late)
    assert status_of(answer)[0] == "TIMEOUT"
    batch = await _ask(
        service, "WorkflowService/ExecuteWorkflowBatch",
        {"runs": [{"workflow_id": "order", "idempotency_key": "k"}, {"workflow_id": ""}]},
    )  # fmt: skip
    assert [each["status"] for each in batch["results"]] == ["accepted", "failed"]
    assert batch["results"][1]["error"]["details"][0]["field"] == "runs[1].workflow_id"
    result = await _ask(service, "RunService/GetRunResult", {"run_id": OTHER.upper(), "timeout": 0})
    assert result["status"] == "RUNNING"
    assert service.fakes.executions.calls[-1][2:4] == (OTHER, 0)


async def test_held_workflows(service: Service) -> None:
    """A workflow is paused and resumed."""
    held = await _ask(service, "WorkflowService/PauseWorkflow", {"workflow_id": "order", "reason": "look"})
    assert held == {
        "workflow": "order", "paused_by": "ann", "reason": "look", "paused_at": "2023-11-14T22:13:20.123456Z",
    }  # fmt: skip
    assert (await _ask(service, "WorkflowService/ListWorkflowPauses"))["items"] == [held]
    assert await _ask(service, "WorkflowService/ResumeWorkflow", {"workflow_id": "order"}) == {"workflow": "order"}
    for rpc in ("PauseWorkflow", "ResumeWorkflow"):
        _, answer = await _call(service, f"WorkflowService/{rpc}", {"workflow_id": "order"}, x_idempotency_key="again")
        assert answer.metadata["idempotency-replayed"] == "true"


async def test_tasks(service: Service) -> None:
    wanted = {
        "kind": "resize",
        "input": {"n": 1},
        "delay": "1.5s",
        "retry": {"max_attempts": 5},
        "labels": {"b": "1", "a": "2"},
    }
    out = await _ask(service, "TaskService/CreateTask", wanted)
    assert (out["task_id"], out["status"], out["input"]) == (ID, "PENDING", {"n": 1.0})
    new = service.fakes.tasks.calls[0][2]
    assert (new.queue, new.delay_us, new.retry.max_attempts, new.retry.factor) == ("default", 1_500_000, 5, 2.0)
    assert new.labels == '{"a":"2","b":"1"}'
    assert decode_value(new.input) == {"n": 1}
    assert (await _ask(service, "TaskService/GetTask", {"task_id": ID}))["output"] == "done"
    assert (await _ask(service, "TaskService/ListTasks", {"queue": "q"}))["items"][0]["task_id"] == ID
    await _ask(service, "TaskService/CancelTask", {"task_id": ID})
    attempts = await _ask(service, "TaskService/ListTaskAttempts", {"task_id": ID})
    assert attempts["items"][0]["duration_ms"] == 2.5
    assert attempts["items"][0]["error"] == {"code": "BOOM", "message": "it broke"}


async def test_a_bad_task_of_a_batch_fails_alone(service: Service) -> None:
    tasks: list[dict[str, Any]] = [
        {"kind": "ok"},
        {"kind": "agent:payments"},
        {"kind": "ok", "run_at": "2030-01-01T00:00:00Z", "delay": "1s"},
    ]
    out = await _ask(service, "TaskService/CreateTaskBatch", {"tasks": tasks})
    assert [each["status"] for each in out["results"]] == ["accepted", "failed", "failed"]
    assert out["results"][0]["task_id"] == ID
    assert out["results"][1]["error"]["details"][0]["field"] == "tasks[1].kind"


async def test_the_unary_twins_of_workers(service: Service) -> None:
    polled = await _ask(service, "WorkerService/Poll", {"worker_id": ID, "kinds": ["resize"], "wait": 0})
    assert polled["leases"][0]["artifacts"][0]["type"] == "Order"
    assert polled["leases"][0]["idempotency_token"] == ID
    assert service.fakes.workers.calls[0][4:] == (("resize",), ("default",), 1, 0.0)
    ref = {"task_id": ID, "attempt": 2}
    done = await _ask(
        service,
        "WorkerService/Complete",
        {
            "completions": [
                ref | {"output": 1},
                {"task_id": OTHER, "attempt": 1, "artifacts": [{"type": "Order", "tags": ["a\0b"]}]},
                ref,
            ]
        },
    )
    assert ["error" in each for each in done["results"]] == [False, True, False]
    assert done["results"][1]["error"]["details"][0]["field"] == "artifacts[0].tags[0]"
    failed = await _ask(service, "WorkerService/Fail", {"failures": [ref | {"message": "x" * 5000 + "\0"}]})
    assert failed["results"] == [ref]
    assert len(service.fakes.workers.calls[-1][2].failures[0].message) == 4000
    assert service.fakes.workers.calls[-1][2].failures[0].code == "ERROR"
    await _ask(service, "WorkerService/Heartbeat", {"leases": [ref]})
    assert service.fakes.workers.calls[-1][2].heartbeats == (LeaseRef(ID, 2),)
    await _ask(service, "WorkerService/ReportProgress", {"progress": [ref | {"fraction": 0.5}]})
    assert service.fakes.workers.calls[-1][2].progress[0].fraction == 0.5


async def test_workers_and_what_they_serve(service: Service) -> None:
    """FV-6"""
    at = "2023-11-14T22:13:20.123456Z"
    spec = {
        "kind": "resize", "category": "TASK", "version": "1.2", "description": "makes it small",
        "input_schema": {"type": "object"}, "output_schema": {"type": "string"},
    }  # fmt: skip
    worker = {
        "worker_id": ID, "name": "w", "status": "DRAINING", "server": "host/1", "connected_at": at,
        "last_heartbeat_at": "2023-11-14T22:13:20.123457Z", "slots": 10, "slots_used": 3, "queues": ["default"],
        "kinds": [spec], "agents": ["payments"], "truncated": True,
    }  # fmt: skip
    calls = service.fakes.discovery.calls
    asked = {"status": "DRAINING", "kind": "resize", "queue": "q", "name": "w", "page_size": 7}
    assert (await _ask(service, "WorkerService/ListWorkers", asked))["items"] == [worker]
    assert calls[-1][2:] == (WorkerQuery("DRAINING", "resize", "q", "w"), PageRequest(page_size=7))
    assert await _ask(service, "WorkerService/GetWorker", {"worker_id": ID.upper()}) == worker
    assert calls[-1][2] == ID
    (kind,) = (await _ask(service, "WorkerService/ListKinds", {"kind": "resize", "category": "TASK"}))["items"]
    assert kind == spec | {
        "status": "ONLINE", "queues": ["default"], "worker_count": 1, "registered_at": at,
        "served_by": [
            {"worker_id": ID, "name": "w", "server": "host/1", "connected_at": at, "last_seen_at": at}
        ],
    }  # fmt: skip
    assert calls[-1][2:] == (KindQuery("resize", 1), PageRequest())
    await _ask(service, "WorkerService/ListKinds", {"status": "OFFLINE"})
    assert calls[-1][2] == KindQuery(status="OFFLINE")
    assert await _refused(service, "WorkerService/GetWorker", {"worker_id": "w"}) == "worker_id"


async def test_system(service: Service) -> None:
    """FV-1, WM-12"""
    assert await _ask(service, "SystemService/GetHealth") == {"status": "ok", "version": "1.2.3"}
    ready = await _ask(service, "SystemService/GetReadiness")
    assert ready == {
        "status": "ready",
        "checks": {"database": "ok", "server": "ok"},
        "results": [{"name": "database", "ok": True}, {"name": "server", "ok": True}],
    }
    out = await service.call("SystemService/GetMetrics", key=None)
    assert b'millstream_requests_total{code="OK",rpc="SystemService/GetHealth"} 1.0' in out.body
    service.fakes.system.faults["database"] = "no connection"
    answer = await service.call("SystemService/GetReadiness", key=None, x_envoy_original_path="/health/ready")
    assert answer.metadata["x-http-status"] == "503"
    details = json.loads(answer.metadata["x-error-body"])["details"]
    assert details == [{"field": "database", "message": "no connection", "code": "NOT_READY"}]


async def test_documentation(service: Service) -> None:
    """FV-8, WM-8: for anyone; the pages may load nothing from elsewhere."""
    for path, name, kind, body in (
        ("DocumentationService/GetOpenApi", "", "application/json", b'{"openapi": "3.0.3"}'),
        ("DocumentationService/GetSwaggerPage", "", "text/html", b"swagger.html"),
        ("DocumentationService/GetRedocPage", "", "text/html", b"redoc.html"),
        ("DocumentationService/GetPageFile", "a.css", "text/css", b"a.css"),
    ):
        asked = documentation_service_pb2.GetPageFileRequest(name=name).SerializeToString() if name else b""
        out = await service.call(path, asked, None, x_envoy_original_path="/docs")
        assert out.error is None
        answer = HttpBody.FromString(out.body)
        assert (answer.content_type, answer.data) == (kind, body)
        assert out.metadata["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
        assert out.metadata["x-content-type-options"] == "nosniff"
        assert out.metadata["cache-control"] == ("public, max-age=3600" if name else "no-cache")
    for name, code in (("none.js", "NOT_FOUND"), ("../x", "VALIDATION_ERROR"), ("", "VALIDATION_ERROR")):
        asked = documentation_service_pb2.GetPageFileRequest(name=name).SerializeToString()
        out = await service.call("DocumentationService/GetPageFile", asked, None, x_envoy_original_path="/docs")
        assert json.loads(out.metadata["x-error-body"])["code"] == code


async def test_log_levels(service: Service) -> None:
    """Operations: read and set by admins, with the allowed values in the error."""
    out = await _ask(service, "SystemService/GetLogLevel")
    assert (out["default_level"], out["level"]) == ("info", "debug")
    assert [each["logger"] for each in out["levels"][1:]] == ["millstream.rpc"]
    assert "until" in out["levels"][0]
    assert "until" not in out["levels"][1]
    asked = {"level": "debug", "logger": "millstream.rpc", "for_seconds": 60}
    assert (await _ask(service, "SystemService/SetLogLevel", asked))["level"] == "debug"
    assert service.fakes.system.was_set == ("root", "millstream.rpc", "debug", 60_000_000)
    await _ask(service, "SystemService/SetLogLevel", {"level": "default"})
    assert service.fakes.system.was_set == ("root", "", "", 0)
    wanted = system_service_pb2.SetLogLevelRequest
    for field, body in (
        ("level", wanted(level="loud")),
        ("level", wanted()),
        ("logger", wanted(level="info", logger="asyncpg")),
        ("for_seconds", wanted(level="info", for_seconds=2_592_001)),
    ):
        raw = body.SerializeToString()
        answer = await service.call("SystemService/SetLogLevel", raw, x_envoy_original_path="/x")
        details = json.loads(answer.metadata["x-error-body"])["details"]
        assert [each["field"] for each in details] == [field]
        if body.level == "loud":
            assert all(word in details[0]["message"] for word in ("debug", "info", "warning", "error", "default"))
    for key in ("reader", "maker"):
        for method in ("GetLogLevel", "SetLogLevel"):
            refused = (await service.call(f"SystemService/{method}", b"", key=key)).error
            assert refused is not None
            assert refused.code() is grpc.StatusCode.PERMISSION_DENIED


def test_every_method_of_the_contract_is_asked_for_here() -> None:
    here = __import__("pathlib").Path(__file__)
    beside = (
        "test_streams.py",
        "test_run_streams.py",
        "test_payloads.py",
        "test_promises.py",
        "test_tenants.py",
        "test_workflows.py",
        "test_task_logs.py",
        "test_task_services.py",
        "test_workflow_executions.py",
    )
    source = here.read_text() + "".join(here.with_name(name).read_text() for name in beside)
    missing = [m.name for m in contract.methods() if f"/{m.name}" not in source and not m.streaming]
    assert missing == []


async def test_the_status_of_a_cascade(service: Service) -> None:
    """FL-18: as its rows tell it; and of one that is not there, without times and without an error."""
    out = await _ask(service, "CorrelationService/GetCorrelationStatus", {"correlation_id": ID.upper()})
    assert {name: out[name] for name in ("correlation_id", "state", "has_pending_work", "artifact_count")} == {
        "correlation_id": ID, "state": "active", "has_pending_work": True, "artifact_count": 3,
    }  # fmt: skip
    assert {"error_count", "started_at", "last_activity_at"} <= set(out)
    assert "artifact_count_is_estimate" not in out
    service.fakes.correlations.answer = CorrelationStatus(ID)
    out = await _ask(service, "CorrelationService/GetCorrelationStatus", {"correlation_id": ID})
    assert out == {"correlation_id": ID, "state": "not_found"}


async def test_code_first_runs_are_started_signalled_and_read(service: Service) -> None:
    """FV-17, FV-18"""
    wanted = {"workflow": "order", "input": {"id": 7}, "run_id": OTHER.upper(), "signal": "go", "signal_value": 1}
    out = await _ask(service, "RunService/StartRun", wanted | {"wait": 5, "labels": {"a": "b"}})
    assert (out["run_id"], out["started"], out["output"]) == (OTHER, True, "done")
    _, _, new, _, wait_s = service.fakes.code_runs.calls[0]
    assert (new.workflow, new.version, new.run_id, new.queue, new.labels) == (
        "order", "", OTHER, "default", '{"a":"b"}',
    )  # fmt: skip
    assert (decode_value(new.input), new.signal[0], decode_value(new.signal[1])) == ({"id": 7}, "go", 1)
    assert wait_s == 5.0
    out = await _ask(service, "RunService/SignalRun", {"run_id": OTHER, "name": "go", "value": "x"})
    assert out == {"run_id": OTHER, "sequence": 7}
    assert (await _ask(service, "RunService/GetRunState", {"run_id": OTHER}))["state"] == {"paid": True}
    asked = {"run_id": OTHER.upper(), "after_sequence": 5, "after_number": 2}
    page = await _ask(service, "RunService/GetRunHistory", asked)
    assert (page["first_number"], page["seen_sequence"], page["more"]) == (3, 7, True)
    assert page["items"][0]["event"]["name"] == "go"
    assert service.fakes.code_runs.calls[-1][2:] == (OTHER, 5, 2)
    for bad, field in (({"workflow": "7up"}, "workflow"), ({"workflow": "a", "wait": 301}, "wait")):
        assert await _refused(service, "RunService/StartRun", bad) == field


async def test_a_run_s_code_is_answered_for_by_call_too(service: Service) -> None:
    """FV-18: the unary twins; what makes no sense fails alone, as the run's own fault."""
    good = {
        "task_id": ID, "attempt": 1, "base_sequence": 3,
        "commands": [
            {"number": 1, "after_sequence": 3, "task": {"kind": "pay", "input": {"n": 1}}},
            {"number": 2, "after_sequence": 3, "timer": "1.5s"},
            {"number": 3, "after_sequence": 3, "record": {"name": "ask", "error": {"code": "X", "message": "y"}}},
        ],
        "end": {"continued": {"input": 1, "signals": [{"name": "go", "value": 2}]}},
    }  # fmt: skip
    await _ask(service, "WorkerService/AnswerActivations", {"answers": [good]})
    (answer,) = service.fakes.workers.calls[-1][2].answers
    assert [type(each.what).__name__ for each in answer.commands] == ["StartTask", "StartTimer", "Note"]
    assert (answer.commands[1].what.delay_us, answer.end.signals) == (1_500_000, [("go", encode_value(2))])
    page = await _ask(service, "WorkerService/FetchHistory", {"task_id": ID, "attempt": 2, "after_sequence": 1})
    assert page["items"][0]["event"]["name"] == "go"
    assert page["more"] is True
    assert service.fakes.workers.calls[-1][2:] == (LeaseRef(ID, 2), 1, 0)
