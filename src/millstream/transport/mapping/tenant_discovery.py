"""Workers, definitions and promises as the paths of tenants show them."""

from typing import Any

from millstream.application.views.promises import PromiseView
from millstream.application.workflow_kinds import KeptWorkflow, ServedKind
from millstream.domain.promises import Rejection, state_of
from millstream.domain.workers import WORKFLOW_KIND, KindSpec, KnownWorker, WorkerQuery
from millstream.transport.mapping.json import struct_of
from millstream.transport.mapping.pages import known
from millstream.transport.mapping.times import put
from millstream.transport.mapping.workflow_executions import put_error
from millstream.wire.v1 import execution_pb2, worker_pb2
from millstream.wire.v1 import execution_service_pb2 as wire


def worker_query(request: wire.ListTenantWorkersRequest) -> WorkerQuery:
    """Which workers a request asks for."""
    status = known(request.status, worker_pb2.Worker.OFFLINE, "status")
    return WorkerQuery(status=worker_pb2.Worker.Status.Name(status) if status else "")  # type: ignore[arg-type]


def put_worker(out: Any, worker: KnownWorker, tenant: str) -> Any:
    """Write a worker."""
    types = execution_pb2.WorkerInfoType
    out.id, out.tenant_id, out.worker_name = worker.worker_id, tenant, worker.name
    workflows = [each for each in worker.kinds if each.category == WORKFLOW_KIND]
    tasks = [each for each in worker.kinds if each.category != WORKFLOW_KIND]
    does_tasks = bool(tasks or worker.agents)
    out.worker_type = types.UNIFIED if workflows and does_tasks else types.WORKFLOW if workflows else types.TASK
    out.status = worker_pb2.Worker.Status.Value(worker.status)
    out.host_name = worker.server
    put(out.registered_at, worker.connected_us)
    put(out.last_heartbeat_at, worker.heard_us)
    out.slots, out.slots_used = worker.slots, worker.used
    out.queues.extend(worker.queues)
    for spec in workflows:
        _put_capability(out.workflow_capabilities.add(), spec)
    for spec in tasks:
        _put_capability(out.task_capabilities.add(), spec)
    return out


def _put_capability(out: execution_pb2.WorkerCapability, spec: KindSpec) -> None:
    out.kind, out.version = spec.name, spec.version
    _put_said(out, spec.description, spec.input_schema, spec.output_schema)


def _put_said(out: Any, description: str, input_schema: str, output_schema: str) -> None:
    out.description = description
    if input_schema:
        out.input_schema = struct_of(input_schema)
    if output_schema:
        out.output_schema = struct_of(output_schema)


def put_workflow(out: Any, found: KeptWorkflow | ServedKind) -> Any:
    """Write a workflow that can be begun."""
    types = execution_pb2.WorkflowDefinitionType
    if isinstance(found, ServedKind):
        out.workflow_type = types.CODE
        return put_kind(out, found)
    head = found.head
    out.workflow_type = types.DEFINITION
    out.kind, out.version = head.name, str(head.version)
    out.versions.extend(found.versions)
    _put_said(out, head.description, found.input_schema, found.output_schema)
    out.availability_status = execution_pb2.DefinitionAvailability.AVAILABLE
    put(out.last_registered_at, head.updated_us)
    return out


def put_kind(out: Any, found: ServedKind) -> Any:
    """Write a kind that workers serve."""
    kind, availability = found.kind, execution_pb2.DefinitionAvailability
    out.kind, out.version = kind.spec.name, kind.spec.version
    out.versions.extend(found.versions)
    _put_said(out, kind.spec.description, kind.spec.input_schema, kind.spec.output_schema)
    out.queues.extend(kind.queues)
    out.availability_status = availability.AVAILABLE if kind.count else availability.UNAVAILABLE
    out.worker_count = kind.count
    for worker in kind.workers:
        one = out.workers.add(id=worker.worker_id, name=worker.name, status=worker_pb2.Worker.ONLINE)
        put(one.last_heartbeat_at, worker.seen_us)
    put(out.last_registered_at, kind.registered_us)
    return out


def rejection_of(message: wire.RejectTenantPromiseRequest) -> Rejection:
    """Why to reject a promise."""
    return Rejection(message.error_code, message.error)


def put_promise(out: Any, view: PromiseView) -> Any:
    """Write a promise."""
    task = view.task
    out.id, out.workflow_execution_id = task.id, task.run_id
    out.name, out.key = task.kind, task.promise_key
    out.status = int(state_of(task))
    if view.value:
        out.value = view.value
    put_error(out, task.error_code, task.error_message)
    put(out.created_at, task.created_us)
    put(out.settled_at, task.finished_us)
    out.settled_by = task.worker_name
    return out
