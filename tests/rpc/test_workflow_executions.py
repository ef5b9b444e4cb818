"""WorkflowExecutionService: each RPC maps its request to one use case, and its result to the documented answer."""

from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from tests.rpc.answers import status_of
from tests.rpc.conftest import Service
from tests.rpc.fakes import ID, OTHER, graph_run, run
from tests.rpc.test_services import _call, _class, _refused

from millstream.application.paging import PageRequest
from millstream.application.views.runs import RunQuery, RunResult
from millstream.application.views.tasks import CreatedTask, TaskQuery
from millstream.domain.promises import Rejection, Resolution
from millstream.domain.runs import RunStatus, Task, TaskStatus
from millstream.domain.struct_wire import decode_value
from millstream.domain.workers import TASK_KIND, KindQuery, WorkerQuery
from millstream.transport import contract
from millstream.transport.mapping.workflow_executions import put_execution
from millstream.wire.v1 import execution_pb2

AT = "2023-11-14T22:13:20.123456Z"
SERVICE = "WorkflowExecutionService"


async def ask(service: Service, rpc: str, **request: Any) -> Any:
    """Call in the caller's own tenant; the answer with the names that REST shows."""
    method, answer = await _call(service, rpc, {"tenant": "default", **request})
    assert answer.error is None, answer.error
    return json_format.MessageToDict(_class(method.output_type).FromString(answer.body))


async def triggered(service: Service, *, status: str, key: str = "", **request: Any) -> Any:
    """Trigger over REST, which is to answer with this status."""
    more = {"x_idempotency_key": key} if key else {}
    given: dict[str, Any] = {"tenant": "default", "kind": "order", **request}
    method, answer = await _call(
        service, "WorkflowExecutionService/TriggerWorkflow", given, x_envoy_original_path="/", **more
    )
    assert answer.error is None, answer.error
    assert answer.metadata["x-http-status"] == status
    return json_format.MessageToDict(_class(method.output_type).FromString(answer.body))


async def test_a_workflow_is_triggered(service: Service) -> None:
    """FV-3: what is given goes to the use case; 201 with where to read on."""
    request: dict[str, Any] = {
        "input": {"id": 7}, "taskQueue": "fast", "prioritySeconds": -20, "version": "2", "idempotencyKey": "k",
        "idempotencyKeyTTL": "2h", "labels": {"a": "b"},
    }  # fmt: skip
    out = await triggered(service, status="201", **request)
    made = graph_run()
    path = f"/api/tenants/default/workflow-executions/{made.id}"
    assert out == {
        "workflowExecutionId": made.id, "status": "PENDING", "kind": made.workflow, "createdAt": AT,
        "links": {"self": path, "events": f"{path}/events"}, "idempotencyKeyUsed": True, "idempotencyKeyNew": True,
    }  # fmt: skip
    _, principal, new, key = service.fakes.executions.calls[0]
    assert (principal.tenant, new.workflow, new.version, new.queue, new.priority) == (
        "default",
        "order",
        "2",
        "fast",
        20,
    )
    assert (new.business_key, new.business_ttl_us, new.labels) == ("k", 7_200_000_000, '{"a":"b"}')
    assert decode_value(new.input) == {"id": 7.0}
    assert key is None


async def test_a_key_that_is_used_answers_the_run_that_has_it(service: Service) -> None:
    """FV-3: 200, how that one stands, and that the key was not new; a call's own key goes on answering 201."""
    service.fakes.executions.answer = RunResult(graph_run(RunStatus.COMPLETED), existing=True)
    out = await triggered(service, status="200", idempotencyKey="k")
    assert (out["status"], out["idempotencyKeyUsed"], "idempotencyKeyNew" in out) == ("COMPLETED", True, False)
    service.fakes.executions.answer = RunResult(graph_run(RunStatus.COMPLETED), replayed=True)
    out = await triggered(service, status="201", key="call", idempotencyKey="k")
    assert (out["status"], out["idempotencyKeyNew"]) == ("PENDING", True)
    assert service.fakes.executions.calls[-1][3].rpc == "TriggerWorkflow"


@pytest.mark.parametrize(
    ("ttl", "us"), [("30s", 30), ("5m", 300), ("2h", 7200), ("7d", 604_800), ("30d", 2_592_000), ("", 0)]
)
async def test_a_key_holds_as_long_as_it_says(service: Service, ttl: str, us: int) -> None:
    """FV-3"""
    await ask(
        service, "WorkflowExecutionService/TriggerWorkflow", kind="order", idempotencyKey="k", idempotencyKeyTTL=ttl
    )
    assert service.fakes.executions.calls[0][2].business_ttl_us == us * 1_000_000


@pytest.mark.parametrize("ttl", ["2x", "0s", "31d", "1", "s", "-1s", "1.5h", "999999999d"])
async def test_an_odd_time_of_a_key_is_refused(service: Service, ttl: str) -> None:
    """FV-3, FL-10"""
    request = {"tenant": "default", "kind": "order", "idempotencyKeyTTL": ttl}
    assert await _refused(service, "WorkflowExecutionService/TriggerWorkflow", request) == "idempotencyKeyTTL"


def _bare(message: Any, tenant: str) -> Any:
    """A request that breaks no rule, in a tenant."""
    for field in message.DESCRIPTOR.fields:
        if field.name.endswith(("execution_id", "task_id", "worker_id")) or field.name == "promise_id":
            setattr(message, field.name, ID)
        elif field.name in {"kind", "task_type"}:
            setattr(message, field.name, "order")
    message.tenant = tenant
    return message


METHODS = [m for m in contract.methods() if m.path.startswith(f"/millstream.v1.{SERVICE}/")]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_the_path_names_the_tenant_of_its_caller(service: Service, method: contract.Method) -> None:
    """Invariant: in another tenant nothing is there, and no use case is asked."""
    own = _bare(method.public_request(), "default")
    assert (await service.call(f"{SERVICE}/{method.name}", own.SerializeToString())).error is None
    for fake in vars(service.fakes).values():
        getattr(fake, "calls", []).clear()
    other = _bare(method.public_request(), "acme")
    answer = await service.call(f"{SERVICE}/{method.name}", other.SerializeToString())
    assert answer.error is not None
    assert answer.error.code() is grpc.StatusCode.NOT_FOUND
    assert status_of(answer)[0] == "NOT_FOUND"
    assert not any(getattr(fake, "calls", []) for fake in vars(service.fakes).values())


async def test_executions_are_listed_and_read(service: Service) -> None:
    """FV-4: flat, with filters and limit and offset."""
    out = await ask(
        service, "WorkflowExecutionService/ListWorkflowExecutions", status="RUNNING", kind="order", limit=2, offset=4
    )
    assert (out["limit"], out["offset"]) == (2, 4)
    assert out["workflowExecutions"][0] == {
        "id": OTHER, "tenantId": "default", "kind": "billing", "version": "3", "status": "FAILED", "error": "it broke",
        "errorCode": "BOOM", "labels": {"a": "b"}, "retryAttempt": 2, "parentWorkflowExecutionId": ID,
        "createdAt": AT, "updatedAt": AT,
    }  # fmt: skip
    _, _, query, page = service.fakes.runs.calls[0]
    assert query == RunQuery(statuses=(RunStatus.RUNNING,), workflow="order", of_workflows=True)
    assert page == PageRequest(limit=2, offset=4)
    for open_ in ("PENDING", "WAITING"):
        await ask(service, "WorkflowExecutionService/ListWorkflowExecutions", status=open_, pageToken="t")
        assert service.fakes.runs.calls[-1][2].statuses == (RunStatus.RUNNING,)
    assert service.fakes.runs.calls[-1][3] == PageRequest(page_size=50, page_token="t")
    both = {"tenant": "default", "offset": 1, "pageToken": "t"}
    assert await _refused(service, "WorkflowExecutionService/ListWorkflowExecutions", both) == "page_token"
    out = await ask(service, "WorkflowExecutionService/GetWorkflowExecution", workflowExecutionId=OTHER.upper())
    assert (out["id"], out["input"], out["output"]) == (OTHER, {"n": 1.0}, "done")
    assert not {"progress", "progressDetails"} & out.keys()


def test_an_execution_has_the_progress_that_is_reported_and_no_other() -> None:
    """FV-4: its documented shape has none."""
    known = replace(run(), status=RunStatus.RUNNING, task_count=4, open_tasks=2)
    out = put_execution(execution_pb2.WorkflowExecution(), replace(known, running_share=0.5, running_words="half"))
    assert (out.progress, out.progress_details) == (2.5 / 4, "half")
    out = put_execution(execution_pb2.WorkflowExecution(), replace(known, running_share=0.5))
    assert (out.HasField("progress"), out.HasField("progress_details")) == (True, False)
    out = put_execution(execution_pb2.WorkflowExecution(), known)
    assert (out.HasField("progress"), out.HasField("progress_details")) == (False, False)


async def test_events_tasks_and_children_are_listed(service: Service) -> None:
    """FV-4, FV-10"""
    out = await ask(
        service,
        "WorkflowExecutionService/ListWorkflowExecutionEvents",
        workflowExecutionId=OTHER,
        sinceSequence=3,
        limit=7,
    )
    assert service.fakes.runs.calls[-1][2:] == (OTHER, 3, 7)
    assert {"sequence", "type", "timestamp"} <= set(out["events"][0])
    out = await ask(
        service, "WorkflowExecutionService/ListWorkflowExecutionTasks", workflowExecutionId=OTHER, status="PENDING"
    )
    query = service.fakes.runs.calls[-1][2]
    assert query.run_id == OTHER
    assert set(query.statuses) == {TaskStatus.PENDING, TaskStatus.SCHEDULED, TaskStatus.IN_LINE}
    assert out["tasks"][0]["taskType"] == "resize"
    out = await ask(service, "WorkflowExecutionService/ListWorkflowExecutionChildren", workflowExecutionId=OTHER)
    assert out["children"][0] == {
        "childWorkflowExecutionId": OTHER, "childExecutionName": "billing", "status": "FAILED", "createdAt": AT,
    }  # fmt: skip


async def test_an_execution_is_cancelled_and_retried(service: Service) -> None:
    """FV-4, FV-9"""
    out = await ask(
        service, "WorkflowExecutionService/CancelWorkflowExecution", workflowExecutionId=OTHER, reason="why"
    )
    assert service.fakes.runs.calls[-1][2:] == (OTHER, "why", None)
    assert set(out) == {"workflowExecutionId", "status", "message", "success"}
    out = await ask(
        service, "WorkflowExecutionService/RetryWorkflowExecution", workflowExecutionId=OTHER, note="mended"
    )
    assert service.fakes.run_operations.calls[-1][2:] == (OTHER, "mended", "", None)
    assert out.pop("message")
    assert out == {
        "workflowExecutionId": OTHER, "status": "PENDING", "retryAttempt": run().redone, "success": True,
    }  # fmt: skip


async def test_attempts_are_listed(service: Service) -> None:
    """FV-5, FV-11: of a task of an execution only where it is of that one."""
    out = await ask(
        service,
        "WorkflowExecutionService/ListWorkflowTaskAttempts",
        workflowExecutionId=OTHER,
        taskId=ID,
        afterAttempt=1,
        limit=2,
    )
    assert service.fakes.tasks.calls[-1][2:] == (ID, 1, 2, OTHER)
    assert out["attempts"] == [{
        "attempt": 1, "startedAt": AT, "finishedAt": "2023-11-14T22:13:20.125956Z", "durationMs": 2, "status": "FAILED",
        "error": "it broke", "errorCode": "BOOM", "workerId": "w",
    }]  # fmt: skip
    assert (await ask(service, "WorkflowExecutionService/ListTaskExecutionAttempts", taskId=ID))["attempts"] == out[
        "attempts"
    ]
    assert service.fakes.tasks.calls[-1][2:] == (ID, 0, 100)


async def test_standalone_tasks(service: Service) -> None:
    """FV-5"""
    request: dict[str, Any] = {
        "taskType": "resize", "input": {"n": 1}, "queue": "q", "maxRetries": 0, "scheduledAt": AT,
        "prioritySeconds": 5, "idempotencyKey": "k", "idempotencyKeyTTL": "5m",
    }  # fmt: skip
    out = await ask(service, "WorkflowExecutionService/CreateTaskExecution", **request)
    new = service.fakes.tasks.calls[0][2]
    assert (new.kind, new.queue, new.retry.max_attempts, new.priority) == ("resize", "q", 1, -5)
    assert (new.run_at_us, new.business_key, new.business_ttl_us) == (1_700_000_000_123_456, "k", 300_000_000)
    assert (out["id"], out["status"], out["input"], out["executionCount"]) == (ID, "PENDING", {"n": 1.0}, 2)
    out = await ask(
        service, "WorkflowExecutionService/ListTaskExecutions", status="FAILED", queue="q", taskType="resize"
    )
    assert service.fakes.tasks.calls[-1][2] == TaskQuery(
        statuses=(TaskStatus.FAILED,), queue="q", kind="resize", standalone=True
    )
    assert out["tasks"][0]["id"] == ID
    out = await ask(service, "WorkflowExecutionService/GetTaskExecution", taskId=ID.upper())
    assert (out["status"], out["output"], out["labels"]) == ("COMPLETED", "done", {"a": "b"})
    out = await ask(service, "WorkflowExecutionService/CancelTaskExecution", taskId=ID)
    assert service.fakes.tasks.calls[-1][2:] == (ID, "", None)
    assert out["workflowExecutionId"] == OTHER
    agent = {"tenant": "default", "taskType": "agent:a"}
    assert await _refused(service, "WorkflowExecutionService/CreateTaskExecution", agent) == "task_type"


async def test_a_task_that_has_the_key_is_answered_with_200(service: Service) -> None:
    """FV-5: by its own key; the replay of a call is 201 again."""
    service.fakes.tasks.answer = CreatedTask(Task(ID, OTHER, "default", "resize", "default", 1, 0), replayed=True)
    request = {"tenant": "default", "taskType": "resize", "idempotencyKey": "k"}
    for more, status in (({}, "200"), ({"x_idempotency_key": "call"}, "201")):
        _, answer = await _call(
            service, "WorkflowExecutionService/CreateTaskExecution", request, x_envoy_original_path="/", **more
        )
        assert answer.metadata["x-http-status"] == status
        assert answer.metadata["idempotency-replayed"] == "true"


async def test_workers_and_definitions(service: Service) -> None:
    """FV-6"""
    out = await ask(service, "WorkflowExecutionService/ListTenantWorkers", status="DRAINING")
    assert service.fakes.discovery.calls[-1][2:] == (WorkerQuery(status="DRAINING"), PageRequest(limit=50, offset=0))
    worker = out["workers"][0]
    assert {each: worker[each] for each in ("id", "workerName", "workerType", "status", "slots", "slotsUsed")} == {
        "id": ID, "workerName": "w", "workerType": "TASK", "status": "DRAINING", "slots": 10, "slotsUsed": 3,
    }  # fmt: skip
    assert await ask(service, "WorkflowExecutionService/GetTenantWorker", workerId=ID) == worker
    capability = worker["taskCapabilities"][0]
    assert (capability["kind"], capability["inputSchema"]) == ("resize", {"type": "object"})
    out = await ask(service, "WorkflowExecutionService/ListWorkflowDefinitions", limit=7)
    assert service.fakes.workflow_kinds.calls[-1][2] == PageRequest(limit=7, offset=0)
    assert [each["workflowType"] for each in out["workflowDefinitions"]] == ["DEFINITION", "CODE"]
    out = await ask(service, "WorkflowExecutionService/GetWorkflowDefinition", kind="order")
    assert (out["kind"], out["version"], out["versions"]) == ("order", "3", ["3", "2", "1"])
    assert (out["inputSchema"], out["availabilityStatus"]) == ({"type": "object"}, "AVAILABLE")
    out = await ask(service, "WorkflowExecutionService/ListTaskDefinitions")
    assert service.fakes.discovery.calls[-1][2] == KindQuery(category=TASK_KIND)
    kind = await ask(service, "WorkflowExecutionService/GetTaskDefinition", kind="resize")
    assert out["taskDefinitions"][0] == kind
    assert (kind["versions"], kind["workerCount"], kind["queues"]) == (["1.2"], 1, ["default"])
    assert kind["workers"] == [{"id": ID, "name": "w", "status": "ONLINE", "lastHeartbeatAt": AT}]


async def test_promises_are_settled(service: Service) -> None:
    """FV-17: by id or key, with a value or an error."""
    out = await ask(service, "WorkflowExecutionService/ResolveTenantPromise", promiseId=f"id:{ID}", value={"ok": True})
    _, _, ref, outcome, _ = service.fakes.promises.calls[-1]
    assert ref.id == ID
    assert isinstance(outcome, Resolution)
    assert (out["status"], out["value"]) == ("RESOLVED", {"ok": True})
    out = await ask(
        service, "WorkflowExecutionService/RejectTenantPromise", promiseId="key:k", error="no", errorCode="DECLINED"
    )
    _, _, ref, outcome, _ = service.fakes.promises.calls[-1]
    assert (ref.key, outcome) == ("k", Rejection("DECLINED", "no"))
    assert (out["status"], out["error"], out["errorCode"]) == ("REJECTED", "no", "DECLINED")
