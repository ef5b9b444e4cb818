"""WorkflowExecutionService: runs, tasks, workers, workflows and promises below the path of a tenant.

That the path names the caller's own tenant is seen to before a method is called; see transport.pipeline.
"""

from dataclasses import dataclass
from typing import Final

from google.protobuf.message import Message

from millstream.application.paging import PageRequest
from millstream.application.views.task_logs import LogQuery
from millstream.application.workflow_kinds import alone
from millstream.domain.promises import Rejection, Resolution
from millstream.domain.workers import TASK_KIND, KindQuery
from millstream.transport.context import Context
from millstream.transport.mapping import task_executions as tasks
from millstream.transport.mapping import task_logs as logs
from millstream.transport.mapping import tenant_discovery as discovery
from millstream.transport.mapping import workflow_executions as mapping
from millstream.transport.mapping.promises import ref_of
from millstream.transport.mapping.workflow_executions import page_of, put_page
from millstream.transport.use_cases import (
    Discovery,
    Executions,
    Promises,
    RunOperations,
    Runs,
    TaskLogs,
    Tasks,
    WorkflowKinds,
)
from millstream.wire.v1 import execution_service_pb2 as wire

DEFAULT_EVENTS: Final = 100
DEFAULT_ATTEMPTS: Final = 100
_OK: Final = 200


@dataclass(frozen=True, slots=True)
class Behind:
    """The use cases that this is another face of."""

    executions: Executions
    runs: Runs
    operations: RunOperations
    tasks: Tasks
    promises: Promises
    discovery: Discovery
    kinds: WorkflowKinds
    logs: TaskLogs


class WorkflowExecutionService:
    """The paths of tenants over the wire."""

    def __init__(self, behind: Behind) -> None:
        self._behind = behind

    async def trigger_workflow(self, request: wire.TriggerWorkflowRequest, context: Context) -> Message:
        """Begin a run."""
        result = await self._behind.executions.execute(context.principal, mapping.new_run(request), context.key)
        context.replayed(result.replayed)
        if result.existing:
            context.status(_OK)
        return mapping.put_triggered(request, result)

    async def list_workflow_executions(self, request: wire.ListWorkflowExecutionsRequest, context: Context) -> Message:
        """List runs."""
        page = page_of(request)
        found = await self._behind.runs.list(context.principal, mapping.run_query(request), page)
        out = wire.ListWorkflowExecutionsResponse()
        put_page(out, found.info, page)
        for run in found.items:
            mapping.put_execution(out.workflow_executions.add(), run)
        return out

    async def get_workflow_execution(self, request: wire.GetWorkflowExecutionRequest, context: Context) -> Message:
        """Get a run."""
        view = await self._behind.runs.view(context.principal, request.workflow_execution_id.lower())
        answer: Message = mapping.put_view(wire.GetWorkflowExecutionResponse(), view)
        return answer

    async def list_workflow_execution_events(
        self, request: wire.ListWorkflowExecutionEventsRequest, context: Context
    ) -> Message:
        """List the events of a run."""
        limit = request.limit if request.HasField("limit") else DEFAULT_EVENTS
        run_id = request.workflow_execution_id.lower()
        events, following = await self._behind.runs.events(context.principal, run_id, request.since_sequence, limit)
        out = wire.ListWorkflowExecutionEventsResponse(next_since_sequence=following)
        for event in events:
            mapping.put_event(out.events.add(), event)
        return out

    async def cancel_workflow_execution(
        self, request: wire.CancelWorkflowExecutionRequest, context: Context
    ) -> Message:
        """Cancel a run."""
        run_id = request.workflow_execution_id.lower()
        run, replayed = await self._behind.runs.cancel(context.principal, run_id, request.reason, context.key)
        context.replayed(replayed)
        out = wire.CancelWorkflowExecutionResponse(workflow_execution_id=run.id, success=True)
        out.status = mapping.STATUSES[run.status]
        out.message = "The workflow is cancelled." if run.finished_us else "The workflow is being cancelled."
        return out

    async def retry_workflow_execution(self, request: wire.RetryWorkflowExecutionRequest, context: Context) -> Message:
        """Retry a failed run."""
        run_id = request.workflow_execution_id.lower()
        run, replayed = await self._behind.operations.retry(context.principal, run_id, request.note, "", context.key)
        context.replayed(replayed)
        out = wire.RetryWorkflowExecutionResponse(workflow_execution_id=run.id, success=True)
        out.status = mapping.Status.PENDING
        out.retry_attempt = run.redone
        out.message = "The workflow goes on: workers pick up what failed in it."
        return out

    async def list_workflow_execution_tasks(
        self, request: wire.ListWorkflowExecutionTasksRequest, context: Context
    ) -> Message:
        """List the tasks of a run."""
        page = page_of(request)
        found = await self._behind.runs.tasks(context.principal, tasks.run_task_query(request), page)
        out = wire.ListWorkflowExecutionTasksResponse()
        put_page(out, found.info, page)
        for task in found.items:
            tasks.put_task(out.tasks.add(), task)
        return out

    async def list_workflow_execution_children(
        self, request: wire.ListWorkflowExecutionChildrenRequest, context: Context
    ) -> Message:
        """List the children of a run."""
        page = page_of(request)
        found = await self._behind.runs.children(context.principal, request.workflow_execution_id.lower(), page)
        out = wire.ListWorkflowExecutionChildrenResponse()
        put_page(out, found.info, page)
        for run in found.items:
            mapping.put_child(out.children.add(), run)
        return out

    async def list_workflow_task_attempts(
        self, request: wire.ListWorkflowTaskAttemptsRequest, context: Context
    ) -> Message:
        """List the attempts at a task of a run."""
        limit = request.limit if request.HasField("limit") else DEFAULT_ATTEMPTS
        task_id, run_id = request.task_id.lower(), request.workflow_execution_id.lower()
        found, following = await self._behind.tasks.attempts(
            context.principal, task_id, request.after_attempt, limit, run_id
        )
        answer: Message = tasks.put_attempts(wire.ListWorkflowTaskAttemptsResponse(), found, following)
        return answer

    async def list_workflow_task_logs(self, request: wire.ListWorkflowTaskLogsRequest, context: Context) -> Message:
        """List the lines of a task of a run."""
        limit = request.limit if request.HasField("limit") else logs.DEFAULT_LINES
        page = PageRequest(limit=limit, offset=request.offset)
        query = LogQuery(task_id=request.task_id.lower(), levels=logs.levels_of(request.level))
        found = await self._behind.logs.of_task(context.principal, query, page, request.workflow_execution_id.lower())
        out = wire.ListWorkflowTaskLogsResponse(task_execution_id=query.task_id, limit=limit, offset=request.offset)
        out.total = found.info.total or 0
        for entry in found.items:
            logs.put_line(out.logs.add(), entry)
        return out

    async def create_task_execution(self, request: wire.CreateTaskExecutionRequest, context: Context) -> Message:
        """Create a task."""
        created = await self._behind.tasks.create(context.principal, tasks.new_task(request), context.key)
        context.replayed(created.replayed)
        if created.replayed and context.key is None:
            context.status(_OK)
        out = tasks.put_task(wire.CreateTaskExecutionResponse(), created.task)
        if created.task.input:
            out.input = created.task.input
        answer: Message = out
        return answer

    async def list_task_executions(self, request: wire.ListTaskExecutionsRequest, context: Context) -> Message:
        """List standalone tasks."""
        page = page_of(request)
        found = await self._behind.tasks.list(context.principal, tasks.task_query(request), page)
        out = wire.ListTaskExecutionsResponse()
        put_page(out, found.info, page)
        for task in found.items:
            tasks.put_task(out.tasks.add(), task)
        return out

    async def get_task_execution(self, request: wire.GetTaskExecutionRequest, context: Context) -> Message:
        """Get a task."""
        view = await self._behind.tasks.get(context.principal, request.task_id.lower())
        answer: Message = tasks.put_view(wire.GetTaskExecutionResponse(), view)
        return answer

    async def cancel_task_execution(self, request: wire.CancelTaskExecutionRequest, context: Context) -> Message:
        """Cancel a task."""
        view = await self._behind.tasks.cancel(context.principal, request.task_id.lower(), "", context.key)
        context.replayed(view.replayed)
        answer: Message = tasks.put_view(wire.CancelTaskExecutionResponse(), view)
        return answer

    async def list_task_execution_attempts(
        self, request: wire.ListTaskExecutionAttemptsRequest, context: Context
    ) -> Message:
        """List the attempts at a task."""
        limit = request.limit if request.HasField("limit") else DEFAULT_ATTEMPTS
        found, following = await self._behind.tasks.attempts(
            context.principal, request.task_id.lower(), request.after_attempt, limit
        )
        answer: Message = tasks.put_attempts(wire.ListTaskExecutionAttemptsResponse(), found, following)
        return answer

    async def list_tenant_workers(self, request: wire.ListTenantWorkersRequest, context: Context) -> Message:
        """List workers."""
        page = page_of(request)
        found = await self._behind.discovery.workers(context.principal, discovery.worker_query(request), page)
        out = wire.ListTenantWorkersResponse()
        put_page(out, found.info, page)
        for worker in found.items:
            discovery.put_worker(out.workers.add(), worker, context.principal.tenant)
        return out

    async def get_tenant_worker(self, request: wire.GetTenantWorkerRequest, context: Context) -> Message:
        """Get a worker."""
        found = await self._behind.discovery.worker(context.principal, request.worker_id.lower())
        answer: Message = discovery.put_worker(wire.GetTenantWorkerResponse(), found, context.principal.tenant)
        return answer

    async def list_workflow_definitions(
        self, request: wire.ListWorkflowDefinitionsRequest, context: Context
    ) -> Message:
        """List workflows that can be begun."""
        page = page_of(request)
        found = await self._behind.kinds.list(context.principal, page)
        out = wire.ListWorkflowDefinitionsResponse()
        put_page(out, found.info, page)
        for each in found.items:
            discovery.put_workflow(out.workflow_definitions.add(), each)
        return out

    async def get_workflow_definition(self, request: wire.GetWorkflowDefinitionRequest, context: Context) -> Message:
        """Get a workflow that can be begun."""
        found = await self._behind.kinds.get(context.principal, request.kind)
        answer: Message = discovery.put_workflow(wire.GetWorkflowDefinitionResponse(), found)
        return answer

    async def list_task_definitions(self, request: wire.ListTaskDefinitionsRequest, context: Context) -> Message:
        """List kinds of tasks."""
        page = page_of(request)
        found = await self._behind.discovery.kinds(context.principal, KindQuery(category=TASK_KIND), page)
        out = wire.ListTaskDefinitionsResponse()
        put_page(out, found.info, page)
        for kind in found.items:
            discovery.put_kind(out.task_definitions.add(), alone(kind))
        return out

    async def get_task_definition(self, request: wire.GetTaskDefinitionRequest, context: Context) -> Message:
        """Get a kind of tasks."""
        found = await self._behind.kinds.task_kind(context.principal, request.kind)
        answer: Message = discovery.put_kind(wire.GetTaskDefinitionResponse(), found)
        return answer

    async def resolve_tenant_promise(self, request: wire.ResolveTenantPromiseRequest, context: Context) -> Message:
        """Give a promise its value."""
        return await self._settle(
            request.promise_id, Resolution(request.value), context, wire.ResolveTenantPromiseResponse()
        )

    async def reject_tenant_promise(self, request: wire.RejectTenantPromiseRequest, context: Context) -> Message:
        """Reject a promise."""
        return await self._settle(
            request.promise_id, discovery.rejection_of(request), context, wire.RejectTenantPromiseResponse()
        )

    async def _settle(self, promise: str, outcome: Resolution | Rejection, context: Context, out: Message) -> Message:
        view = await self._behind.promises.settle(context.principal, ref_of(promise), outcome, context.key)
        context.replayed(view.replayed)
        answer: Message = discovery.put_promise(out, view)
        return answer
