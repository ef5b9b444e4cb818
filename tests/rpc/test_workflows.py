"""WorkflowService: each RPC maps its request to one use case, and its result to the answer of the contract."""

import base64
import json
from typing import Any

import grpc
from tests.rpc.conftest import Service
from tests.rpc.fakes import ID
from tests.rpc.test_services import _ask, _call, _refused

from millstream.application.paging import PageRequest
from millstream.application.views.workflows import Validation, WorkflowQuery

AT = "2023-11-14T22:13:20.123456Z"
DEFINITION = {"name": "order", "steps": [{"id": "pay", "kind": "task", "task": "pay"}]}
HEAD = {
    "id": ID, "name": "order", "description": "takes an order", "version": 3, "status": "ACTIVE", "created_at": AT,
    "created_by": "ada", "updated_at": "2023-11-14T22:13:20.123457Z",
}  # fmt: skip
DETAIL = HEAD | {"definition": DEFINITION}
WARNINGS = [{"field": "definition.steps[0].task", "message": "nobody serves it", "code": "NOT_SERVED"}]


async def test_a_workflow_is_created(service: Service) -> None:
    """WM-2: the definition goes to the use case as JSON, and comes back with what may be wrong."""
    made = await _ask(service, "WorkflowService/CreateWorkflow", {"definition": DEFINITION})
    assert made == DETAIL | {"warnings": WARNINGS}
    name, principal, given, key = service.fakes.workflows.calls[0]
    assert (name, principal.tenant, given, key) == ("create", "default", DEFINITION, None)


async def test_a_key_is_handed_on_and_its_replay_told(service: Service) -> None:
    """FL-8"""
    for rpc, named in (("CreateWorkflow", {}), ("UpdateWorkflow", {"workflow_id": "order"})):
        request = named | {"definition": DEFINITION}
        _, answer = await _call(service, f"WorkflowService/{rpc}", request, x_idempotency_key="k")
        assert answer.metadata["idempotency-replayed"] == "true"
    assert service.fakes.workflows.calls[0][3].value == "k"
    _, answer = await _call(service, "WorkflowService/DeleteWorkflow", {"workflow_id": "order"}, x_idempotency_key="k")
    assert answer.metadata["idempotency-replayed"] == "true"


async def test_a_request_without_a_definition_is_refused(service: Service) -> None:
    """An empty one is given, and the use case says what it lacks."""
    for rpc, more in (("CreateWorkflow", {}), ("ValidateWorkflow", {}), ("UpdateWorkflow", {"workflow_id": "order"})):
        assert await _refused(service, f"WorkflowService/{rpc}", more) == "definition"
    await _ask(service, "WorkflowService/CreateWorkflow", {"definition": {}})
    assert service.fakes.workflows.calls[-1][2] == {}


async def test_a_definition_is_checked(service: Service) -> None:
    found = await _ask(service, "WorkflowService/ValidateWorkflow", {"definition": DEFINITION})
    assert found == {"faults": [{"field": "definition.steps", "message": "is required", "code": "REQUIRED"}]}
    service.fakes.workflows.answer = Validation((), ())
    assert await _ask(service, "WorkflowService/ValidateWorkflow", {"definition": DEFINITION}) == {"valid": True}


async def test_workflows_are_listed(service: Service) -> None:
    """WM-11: without their definitions; filters, order and page go to the use case."""
    listed = await _ask(service, "WorkflowService/ListWorkflows")
    assert listed["items"] == [HEAD]
    assert service.fakes.workflows.calls[-1][1:] == (WorkflowQuery(), PageRequest())
    wanted = {"name": "order", "status": "DELETED", "sort": "-created_at", "page": 2, "page_size": 5}
    await _ask(service, "WorkflowService/ListWorkflows", wanted)
    query = WorkflowQuery("order", True, "created_at", True)
    assert service.fakes.workflows.calls[-1][1:] == (query, PageRequest(page=2, page_size=5))
    for field, value in (("sort", "version"), ("sort", "--name"), ("status", 7), ("page_size", 501), ("page", 0)):
        assert await _refused(service, "WorkflowService/ListWorkflows", {field: value}) == field


async def test_a_workflow_is_read_changed_and_deleted(service: Service) -> None:
    calls: list[Any] = service.fakes.workflows.calls
    assert await _ask(service, "WorkflowService/GetWorkflow", {"workflow_id": "order"}) == DETAIL
    assert calls[-1] == ("get", "order")
    request: dict[str, Any] = {"workflow_id": ID, "definition": DEFINITION, "expected_version": 2}
    changed = await _ask(service, "WorkflowService/UpdateWorkflow", request)
    assert changed == DETAIL | {"warnings": WARNINGS}
    assert calls[-1] == ("update", ID, DEFINITION, 2)
    del request["expected_version"]
    await _ask(service, "WorkflowService/UpdateWorkflow", request)
    assert calls[-1][3] is None
    assert await _refused(service, "WorkflowService/UpdateWorkflow", request | {"expected_version": 0}) == (
        "expected_version"
    )
    assert await _ask(service, "WorkflowService/DeleteWorkflow", {"workflow_id": "order"}) == {}
    assert calls[-1] == ("delete", "order")


async def test_versions_are_listed_and_read(service: Service) -> None:
    calls: list[Any] = service.fakes.workflows.calls
    listed = await _ask(service, "WorkflowService/ListWorkflowVersions", {"workflow_id": "order", "page_size": 7})
    shown = {"version": 3, "workflow_id": ID, "created_at": AT, "created_by": "ada"}
    assert listed["items"] == [shown]
    assert calls[-1] == ("versions", "order", PageRequest(page_size=7))
    found = await _ask(service, "WorkflowService/GetWorkflowVersion", {"workflow_id": "order", "version": 3})
    assert found == shown | {"name": "order", "definition": DEFINITION}
    assert calls[-1] == ("version", "order", 3)
    request = {"workflow_id": "order", "version": 0}
    assert await _refused(service, "WorkflowService/GetWorkflowVersion", request) == "version"


async def test_the_schema_is_a_document_of_its_own(service: Service) -> None:
    found = await _ask(service, "WorkflowService/GetWorkflowSchema")
    assert found["content_type"] == "application/schema+json"
    assert json.loads(base64.b64decode(found["data"])) == {"type": "object"}


async def test_who_may_define_workflows(service: Service) -> None:
    """WM-9: a viewer reads, and checks definitions; an operator defines."""
    for rpc in ("CreateWorkflow", "UpdateWorkflow", "DeleteWorkflow"):
        refused = (await service.call(f"WorkflowService/{rpc}", b"", key="reader")).error
        assert refused is not None
        assert refused.code() is grpc.StatusCode.PERMISSION_DENIED
    _, answer = await _call(service, "WorkflowService/ValidateWorkflow", {"definition": DEFINITION}, key="reader")
    assert answer.error is None
