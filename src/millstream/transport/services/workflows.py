"""WorkflowService: defining workflows and reading them back."""

from google.api.httpbody_pb2 import HttpBody
from google.protobuf.message import Message

from millstream.application.workflow_runs import NewRun
from millstream.transport.context import Context
from millstream.transport.mapping import workflows as mapping
from millstream.transport.mapping.batches import Items, put_outcomes
from millstream.transport.mapping.executions import DEFAULT_WAIT_S, check_in_time, new_run, put_begun, put_result
from millstream.transport.mapping.pages import page_of, pagination
from millstream.transport.mapping.times import put
from millstream.transport.reading import Reader
from millstream.transport.use_cases import Executions, WorkflowPauses, Workflows
from millstream.wire.v1 import workflow_service_pb2 as wire

SCHEMA_TYPE = "application/schema+json"


class WorkflowService:
    """Workflows over the wire."""

    def __init__(self, workflows: Workflows, executions: Executions, pauses: WorkflowPauses, item: Reader) -> None:
        self._workflows = workflows
        self._pauses = pauses
        self._executions = executions
        self._items: Items[wire.ExecuteWorkflowBatchRequest.Item, NewRun] = Items("ExecuteWorkflow", item, new_run)

    async def pause_workflow(self, request: wire.PauseWorkflowRequest, context: Context) -> Message:
        """Hold a workflow."""
        held, replayed = await self._pauses.pause(context.principal, request.workflow_id, request.reason, context.key)
        context.replayed(replayed)
        out = wire.PauseWorkflowResponse(workflow=held.workflow, paused_by=held.paused_by, reason=held.reason)
        put(out.paused_at, held.paused_us)
        return out

    async def resume_workflow(self, request: wire.ResumeWorkflowRequest, context: Context) -> Message:
        """Let a workflow go on."""
        name, replayed = await self._pauses.resume(context.principal, request.workflow_id, context.key)
        context.replayed(replayed)
        return wire.ResumeWorkflowResponse(workflow=name)

    async def list_workflow_pauses(self, request: wire.ListWorkflowPausesRequest, context: Context) -> Message:
        """List what is held."""
        out = wire.ListWorkflowPausesResponse()
        for held in await self._pauses.list(context.principal):
            item = out.items.add(workflow=held.workflow, paused_by=held.paused_by, reason=held.reason)
            put(item.paused_at, held.paused_us)
        return out

    async def execute_workflow(self, request: wire.ExecuteWorkflowRequest, context: Context) -> Message:
        """Begin a run."""
        result = await self._executions.execute(context.principal, new_run(request), context.key)
        context.replayed(result.replayed)
        answer: Message = put_begun(wire.ExecuteWorkflowResponse(), result)
        return answer

    async def execute_workflow_sync(self, request: wire.ExecuteWorkflowSyncRequest, context: Context) -> Message:
        """Begin a run and wait for its end."""
        timeout_s = request.timeout if request.HasField("timeout") else DEFAULT_WAIT_S
        result = await self._executions.execute_sync(context.principal, new_run(request), context.key, timeout_s)
        check_in_time(result, request.fail_on_timeout, timeout_s)
        context.replayed(result.replayed)
        answer: Message = put_result(wire.ExecuteWorkflowSyncResponse(), result, self._executions.now_us())
        return answer

    async def execute_workflow_batch(self, request: wire.ExecuteWorkflowBatchRequest, context: Context) -> Message:
        """Begin runs, each with an outcome of its own."""
        items, keys = self._items.read(request.runs, context.trusted)
        batch = await self._executions.execute_batch(context.principal, items, keys, context.key)
        context.replayed(batch.replayed)
        out = wire.ExecuteWorkflowBatchResponse()
        put_outcomes(out, batch.results, "runs", context.correlation_id)
        return out

    async def create_workflow(self, request: wire.CreateWorkflowRequest, context: Context) -> Message:
        """Create a workflow."""
        given = mapping.document_of(request)
        detail, replayed = await self._workflows.create(context.principal, given, context.key)
        context.replayed(replayed)
        answer: Message = mapping.put_detail(wire.CreateWorkflowResponse(), detail)
        return answer

    async def list_workflows(self, request: wire.ListWorkflowsRequest, context: Context) -> Message:
        """List workflows."""
        page = await self._workflows.list(context.principal, mapping.query_of(request), page_of(request))
        out = wire.ListWorkflowsResponse(pagination=pagination(page.info))
        for head in page.items:
            mapping.put_head(out.items.add(), head)
        return out

    async def validate_workflow(self, request: wire.ValidateWorkflowRequest, context: Context) -> Message:
        """Check a definition."""
        found = await self._workflows.validate(context.principal, mapping.document_of(request))
        out = wire.ValidateWorkflowResponse(valid=not found.faults)
        mapping.put_faults(out.faults, found.faults)
        mapping.put_faults(out.warnings, found.warnings)
        return out

    async def get_workflow_schema(self, request: wire.GetWorkflowSchemaRequest, context: Context) -> Message:
        """Get the schema of definitions."""
        body: Message = HttpBody(content_type=SCHEMA_TYPE, data=self._workflows.schema())
        return body

    async def get_workflow(self, request: wire.GetWorkflowRequest, context: Context) -> Message:
        """Get a workflow by its id or its name."""
        detail = await self._workflows.get(context.principal, request.workflow_id)
        answer: Message = mapping.put_detail(wire.GetWorkflowResponse(), detail)
        return answer

    async def update_workflow(self, request: wire.UpdateWorkflowRequest, context: Context) -> Message:
        """Make the next version."""
        given = mapping.document_of(request)
        expected = request.expected_version if request.HasField("expected_version") else None
        detail, replayed = await self._workflows.update(
            context.principal, request.workflow_id, given, expected, context.key
        )
        context.replayed(replayed)
        answer: Message = mapping.put_detail(wire.UpdateWorkflowResponse(), detail)
        return answer

    async def delete_workflow(self, request: wire.DeleteWorkflowRequest, context: Context) -> Message:
        """Delete a workflow."""
        context.replayed(await self._workflows.delete(context.principal, request.workflow_id, context.key))
        return wire.DeleteWorkflowResponse()

    async def list_workflow_versions(self, request: wire.ListWorkflowVersionsRequest, context: Context) -> Message:
        """List the versions of a workflow."""
        page = await self._workflows.versions(context.principal, request.workflow_id, page_of(request))
        out = wire.ListWorkflowVersionsResponse(pagination=pagination(page.info))
        for version in page.items:
            mapping.put_listed(out.items.add(), version)
        return out

    async def get_workflow_version(self, request: wire.GetWorkflowVersionRequest, context: Context) -> Message:
        """Get a version of a workflow."""
        version = await self._workflows.version(context.principal, request.workflow_id, request.version)
        return mapping.put_version(wire.GetWorkflowVersionResponse(), version)
