"""Workflows and their versions."""

from collections.abc import Sequence
from typing import Any

import orjson

from millstream.application.views.workflows import WorkflowDetail, WorkflowHead, WorkflowQuery, WorkflowVersion
from millstream.domain.errors import FieldFault, ValidationFailed
from millstream.domain.struct_wire import Json, decode_struct, encode_struct
from millstream.transport.mapping.pages import known
from millstream.transport.mapping.times import put
from millstream.wire.v1 import error_pb2, workflow_pb2
from millstream.wire.v1 import workflow_service_pb2 as wire


def document_of(request: Any) -> dict[str, Json]:
    """The definition of a request. Raises ValidationFailed where there is none."""
    if not request.HasField("definition"):
        raise ValidationFailed.of("definition", "is required", "REQUIRED")
    return decode_struct(request.definition)


def query_of(request: wire.ListWorkflowsRequest) -> WorkflowQuery:
    """Which workflows to list. Raises ValidationFailed."""
    statuses = workflow_pb2.Workflow.Status
    status = known(request.status, statuses.DELETED, "status")
    sort = request.sort or "name"
    return WorkflowQuery(request.name, status == statuses.DELETED, sort.removeprefix("-"), sort.startswith("-"))


def put_head(out: Any, head: WorkflowHead) -> None:
    """Write a workflow, without its definition."""
    statuses = workflow_pb2.Workflow.Status
    out.id = head.id
    out.name = head.name
    out.description = head.description
    out.version = head.version
    out.status = statuses.DELETED if head.deleted_us else statuses.ACTIVE
    put(out.created_at, head.created_us)
    out.created_by = head.created_by
    put(out.updated_at, head.updated_us)
    put(out.deleted_at, head.deleted_us)


def put_detail(out: Any, detail: WorkflowDetail) -> Any:
    """Write a workflow with its definition, and the warnings where the message has them."""
    put_head(out, detail.head)
    out.definition = _struct(detail.version)
    if detail.warnings:
        put_faults(out.warnings, detail.warnings)
    return out


def put_listed(out: workflow_pb2.WorkflowVersion, version: WorkflowVersion) -> None:
    """Write a version, without its definition."""
    out.version = version.version
    out.workflow_id = version.workflow_id
    put(out.created_at, version.created_us)
    out.created_by = version.created_by


def put_version(out: wire.GetWorkflowVersionResponse, version: WorkflowVersion) -> wire.GetWorkflowVersionResponse:
    """Write a version with its definition."""
    out.workflow_id = version.workflow_id
    out.name = version.name
    out.version = version.version
    out.definition = _struct(version)
    put(out.created_at, version.created_us)
    out.created_by = version.created_by
    return out


def put_faults(out: Any, faults: Sequence[FieldFault]) -> None:
    """Write faults by their fields."""
    out.extend(error_pb2.FieldError(field=each.field, message=each.message, code=each.code) for each in faults)


def _struct(version: WorkflowVersion) -> bytes:
    return encode_struct(orjson.loads(version.document))
