"""Messages that must agree with each other, and with the domain."""

from enum import IntEnum
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor

from millstream.domain import promises, runs, task_logs, workers
from millstream.transport.contract import PACKAGE, TWIN_PACKAGE, descriptor_of
from millstream.v1 import (
    agent_pb2,
    agent_service_pb2,
    artifact_pb2,
    artifact_service_pb2,
    error_pb2,
    pagination_pb2,
    payload_service_pb2,
    promise_pb2,
    promise_service_pb2,
    queue_service_pb2,
    retry_pb2,
    run_pb2,
    run_service_pb2,
    system_service_pb2,
    task_log_pb2,
    task_log_service_pb2,
    task_service_pb2,
    tenant_pb2,
    tenant_service_pb2,
    worker_pb2,
    worker_service_pb2,
    workflow_pb2,
    workflow_service_pb2,
)
from millstream.wire.v1 import agent_pb2 as wire_agent
from millstream.wire.v1 import agent_service_pb2 as wire_agent_service
from millstream.wire.v1 import artifact_pb2 as wire_artifact
from millstream.wire.v1 import artifact_service_pb2 as wire_artifact_service
from millstream.wire.v1 import error_pb2 as wire_error
from millstream.wire.v1 import pagination_pb2 as wire_pagination
from millstream.wire.v1 import payload_service_pb2 as wire_payload_service
from millstream.wire.v1 import promise_pb2 as wire_promise
from millstream.wire.v1 import promise_service_pb2 as wire_promise_service
from millstream.wire.v1 import queue_service_pb2 as wire_queue_service
from millstream.wire.v1 import retry_pb2 as wire_retry
from millstream.wire.v1 import run_pb2 as wire_run
from millstream.wire.v1 import run_service_pb2 as wire_run_service
from millstream.wire.v1 import system_service_pb2 as wire_system
from millstream.wire.v1 import task_log_pb2 as wire_task_log
from millstream.wire.v1 import task_log_service_pb2 as wire_task_log_service
from millstream.wire.v1 import task_service_pb2 as wire_task_service
from millstream.wire.v1 import tenant_pb2 as wire_tenant
from millstream.wire.v1 import tenant_service_pb2 as wire_tenant_service
from millstream.wire.v1 import worker_pb2 as wire_worker
from millstream.wire.v1 import worker_service_pb2 as wire_worker_service
from millstream.wire.v1 import workflow_pb2 as wire_workflow
from millstream.wire.v1 import workflow_service_pb2 as wire_workflow_service

_TWINS: list[tuple[Any, Any]] = [
    (agent_pb2, wire_agent),
    (agent_service_pb2, wire_agent_service),
    (artifact_pb2, wire_artifact),
    (artifact_service_pb2, wire_artifact_service),
    (error_pb2, wire_error),
    (pagination_pb2, wire_pagination),
    (payload_service_pb2, wire_payload_service),
    (promise_pb2, wire_promise),
    (promise_service_pb2, wire_promise_service),
    (queue_service_pb2, wire_queue_service),
    (retry_pb2, wire_retry),
    (run_pb2, wire_run),
    (run_service_pb2, wire_run_service),
    (system_service_pb2, wire_system),
    (task_log_pb2, wire_task_log),
    (task_log_service_pb2, wire_task_log_service),
    (task_service_pb2, wire_task_service),
    (tenant_pb2, wire_tenant),
    (tenant_service_pb2, wire_tenant_service),
    (worker_pb2, wire_worker),
    (worker_service_pb2, wire_worker_service),
    (workflow_pb2, wire_workflow),
    (workflow_service_pb2, wire_workflow_service),
]
_PAYLOADS = {"google.protobuf.Struct", "google.protobuf.Value", "millstream.v1.LogBatch"}


@pytest.mark.parametrize(("public", "twin"), _TWINS, ids=lambda module: module.__name__.rpartition(".")[2])
def test_the_bytes_twin_is_the_contract_but_for_payloads(public: Any, twin: Any) -> None:
    """A server of the twin is one of the contract (architecture.md, payloads)."""
    ours, theirs = _messages(twin.DESCRIPTOR), _messages(public.DESCRIPTOR)
    assert set(ours) == set(theirs)
    for name, message in theirs.items():
        assert [_shape(field) for field in ours[name].fields] == [_shape(field) for field in message.fields], name
        assert [_rules(field) for field in ours[name].fields] == [_rules(field) for field in message.fields], name


def _messages(file: FileDescriptor) -> dict[str, Descriptor]:
    out: dict[str, Descriptor] = {}
    waiting = list(file.message_types_by_name.values())
    while waiting:
        message = waiting.pop()
        out[_plain(message.full_name)] = message
        waiting += message.nested_types
    return out


def _shape(field: FieldDescriptor) -> tuple[Any, ...]:
    """What a field is on the wire and in code; a payload is bytes with presence in both."""
    kind = field.message_type
    if kind is not None and kind.full_name in _PAYLOADS:
        return (
            field.name,
            field.number,
            FieldDescriptor.TYPE_BYTES,
            field.is_repeated,
            not field.is_repeated,
            "",
            field.json_name,
        )
    of = kind or field.enum_type
    return (
        field.name,
        field.number,
        field.type,
        field.is_repeated,
        field.has_presence,
        _plain(of.full_name) if of is not None else "",
        field.json_name,
    )


def _rules(field: FieldDescriptor) -> bytes:
    options: bytes = field.GetOptions().SerializeToString(deterministic=True)
    return options


def _plain(name: str) -> str:
    return name.replace(TWIN_PACKAGE, PACKAGE)


@pytest.mark.parametrize(
    ("answer", "resource"),
    [
        (artifact_service_pb2.GetArtifactResponse, artifact_pb2.Artifact),
        (artifact_service_pb2.CreateArtifactTypeResponse, artifact_pb2.ArtifactType),
        (artifact_service_pb2.GetArtifactTypeResponse, artifact_pb2.ArtifactType),
        (agent_service_pb2.CreateAgentResponse, agent_pb2.Agent),
        (agent_service_pb2.GetAgentResponse, agent_pb2.Agent),
        (run_service_pb2.GetRunResponse, run_pb2.Run),
        (run_service_pb2.CancelRunResponse, run_pb2.Run),
        (run_service_pb2.RetryRunResponse, run_pb2.Run),
        (run_service_pb2.RerunRunResponse, run_pb2.Run),
        (run_service_pb2.PauseRunResponse, run_pb2.Run),
        (run_service_pb2.ResumeRunResponse, run_pb2.Run),
        (task_service_pb2.CreateTaskResponse, run_pb2.Task),
        (task_service_pb2.GetTaskResponse, run_pb2.Task),
        (task_service_pb2.CancelTaskResponse, run_pb2.Task),
        (worker_service_pb2.GetWorkerResponse, worker_pb2.Worker),
        (tenant_service_pb2.CreateTenantResponse, tenant_pb2.Tenant),
        (tenant_service_pb2.GetTenantResponse, tenant_pb2.Tenant),
        (promise_service_pb2.CreatePromiseResponse, promise_pb2.Promise),
        (promise_service_pb2.GetPromiseResponse, promise_pb2.Promise),
        (promise_service_pb2.ResolvePromiseResponse, promise_pb2.Promise),
        (promise_service_pb2.RejectPromiseResponse, promise_pb2.Promise),
        (promise_service_pb2.CancelPromiseResponse, promise_pb2.Promise),
        (promise_service_pb2.AwaitPromiseResponse, promise_pb2.Promise),
        (queue_service_pb2.PauseQueueResponse, queue_service_pb2.Queue),
        (queue_service_pb2.ResumeQueueResponse, queue_service_pb2.Queue),
    ],
    ids=lambda message: message.DESCRIPTOR.name,
)
def test_an_answer_with_its_fields_at_the_top_is_its_resource(answer: Any, resource: Any) -> None:
    """The server sends the resource in its place."""
    # Who consumed an artifact stands in lists alone.
    own = [f for f in descriptor_of(resource).fields if f.name not in {"consumptions", "consumed_by"}]
    assert list(map(_bare, descriptor_of(answer).fields)) == list(map(_bare, own))


def test_a_worker_registers_agents_as_callers_do() -> None:
    """But for how the servers call one: a worker's agent is called by its worker."""
    called = {"protocol", "url"}
    callers = [f for f in descriptor_of(agent_service_pb2.CreateAgentRequest).fields if f.name not in called]
    assert list(map(_bare, callers)) == list(map(_bare, descriptor_of(agent_pb2.AgentSpec).fields))


@pytest.mark.parametrize(
    ("item", "request_"),
    [
        (artifact_service_pb2.PublishBatchRequest.Item, artifact_service_pb2.PublishRequest),
        (task_service_pb2.CreateTaskBatchRequest.Item, task_service_pb2.CreateTaskRequest),
    ],
    ids=lambda message: message.DESCRIPTOR.name,
)
def test_an_item_of_a_batch_is_the_single_request_and_a_key(item: Any, request_: Any) -> None:
    """The server reads items as single requests."""
    fields = [field for field in descriptor_of(item).fields if field.name != "idempotency_key"]
    assert list(map(_bare, fields)) == list(map(_bare, descriptor_of(request_).fields))


def test_a_sync_publish_begins_as_a_publish() -> None:
    publish = list(map(_bare, descriptor_of(artifact_service_pb2.PublishRequest).fields))
    sync = list(map(_bare, descriptor_of(artifact_service_pb2.PublishSyncRequest).fields))
    assert sync[: len(publish)] == publish


def _bare(field: FieldDescriptor) -> tuple[Any, ...]:
    """The shape of a field, map entries told apart by what they hold and not by where they are declared."""
    shape = _shape(field)
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        return (*shape[:5], [_shape(each) for each in kind.fields])
    return shape


def test_categories_of_kinds_have_the_numbers_of_the_contract() -> None:
    assert (workers.TASK_KIND, workers.WORKFLOW_KIND) == (worker_pb2.KindSpec.TASK, worker_pb2.KindSpec.WORKFLOW)


@pytest.mark.parametrize(
    ("enum", "ours"),
    [
        (run_pb2.Run.Status, runs.RunStatus),
        (run_pb2.RunKind.Kind, runs.RunKind),
        (run_pb2.Task.Status, runs.TaskStatus),
        (task_log_pb2.LogLine.Level, task_logs.LineLevel),
        (run_pb2.Attempt.Status, runs.AttemptStatus),
        (run_pb2.RunEvent.Type, runs.EventType),
        (promise_pb2.Promise.State, promises.PromiseState),
    ],
    ids=lambda enum: getattr(enum, "__name__", ""),
)
def test_enums_of_the_domain_have_the_numbers_of_the_contract(enum: Any, ours: type[IntEnum]) -> None:
    contract: EnumDescriptor = enum.DESCRIPTOR
    theirs = {value.name: value.number for value in contract.values if value.number}
    # A number of 0 is the engine's own, and never sent.
    assert {member.name: member.value for member in ours if member.value} == theirs
