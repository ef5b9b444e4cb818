"""Runs of workflows as the paths of tenants show them."""

from typing import Any, Final, TypeVar

from millstream.application.paging import PageInfo, PageRequest
from millstream.application.views.runs import RunQuery, RunResult, RunView
from millstream.application.workflow_runs import NewRun
from millstream.domain.errors import ValidationFailed
from millstream.domain.progress import share_done
from millstream.domain.runs import Event, Run, RunKind, RunStatus
from millstream.transport.mapping.json import labels_of, labels_text, struct_of
from millstream.transport.mapping.pages import known
from millstream.transport.mapping.times import SECOND_US, put
from millstream.wire.v1 import execution_pb2
from millstream.wire.v1 import execution_service_pb2 as wire

Status = execution_pb2.WorkflowExecutionStatus
STATUSES: Final = {
    RunStatus.RUNNING: Status.RUNNING,
    RunStatus.CANCELLING: Status.CANCELLING,
    RunStatus.COMPLETED: Status.COMPLETED,
    RunStatus.FAILED: Status.FAILED,
    RunStatus.CANCELLED: Status.CANCELLED,
}
_ASKED: Final = {int(theirs): ours for ours, theirs in STATUSES.items()} | {
    int(Status.PENDING): RunStatus.RUNNING,
    int(Status.WAITING): RunStatus.RUNNING,
}
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
TTL_MOST_S: Final = 30 * 86_400
DEFAULT_LIMIT: Final = 50
Answer = TypeVar("Answer")


def ttl_us(text: str) -> int:
    """How long a key holds: "30s", "5m", "2h", "7d"; 0 for "". Raises ValidationFailed."""
    if not text:
        return 0
    seconds = int(text[:-1]) * _SECONDS[text[-1]]
    if not 1 <= seconds <= TTL_MOST_S:
        raise ValidationFailed.of("idempotencyKeyTTL", "must be of 1 s to 30 days, such as 30s, 5m, 2h or 7d")
    return seconds * SECOND_US


def new_run(message: wire.TriggerWorkflowRequest) -> NewRun:
    """The run to begin."""
    return NewRun(
        workflow=message.kind,
        version=message.version,
        input=message.input,
        labels=labels_text(dict(message.labels)) if message.labels else "",
        queue=message.task_queue,
        priority=-message.priority_seconds,
        business_key=message.idempotency_key,
        business_ttl_us=ttl_us(message.idempotency_key_ttl),
    )


def page_of(request: Any) -> PageRequest:
    """The page that a list request asks for. Raises ValidationFailed."""
    limit = request.limit if request.HasField("limit") else DEFAULT_LIMIT
    if request.HasField("page_token"):
        if request.HasField("offset"):
            raise ValidationFailed.of("page_token", "give page_token or offset, not both")
        page = PageRequest(page_size=limit, page_token=request.page_token)
    else:
        page = PageRequest(limit=limit, offset=request.offset)
    page.check()
    return page


def put_page(out: Any, info: PageInfo, page: PageRequest) -> None:
    """Write where a page stands."""
    out.total = info.total or 0
    out.limit, out.offset = page.size, page.skip
    if info.next_page_token:
        out.next_page_token = info.next_page_token


def run_query(request: wire.ListWorkflowExecutionsRequest) -> RunQuery:
    """Which runs a request asks for."""
    number = known(request.status, Status.CANCELLED, "status")
    statuses = (_ASKED[number],) if number else ()
    return RunQuery(statuses=statuses, workflow=request.kind, of_workflows=True)


def put_triggered(request: wire.TriggerWorkflowRequest, result: RunResult) -> wire.TriggerWorkflowResponse:
    """Write a run that was begun, or that has the key."""
    run = result.run
    out = wire.TriggerWorkflowResponse(
        workflow_execution_id=run.id,
        # What became of it since, its path tells.
        status=status_of(run) if result.existing else Status.PENDING,
        kind=run.workflow,
        idempotency_key_used=bool(request.idempotency_key),
        idempotency_key_new=bool(request.idempotency_key) and not result.existing,
    )
    put(out.created_at, run.created_us)
    path = f"/api/tenants/{request.tenant}/workflow-executions/{run.id}"
    setattr(out.links, "self", path)  # noqa: B010  # the stubs have no such name: it would be the method's first argument
    out.links.events = f"{path}/events"
    return out


def status_of(run: Run) -> "execution_pb2.WorkflowExecutionStatus.Value.ValueType":
    """Where a run stands."""
    return Status.WAITING if run.paused_us and run.status is RunStatus.RUNNING else STATUSES[run.status]


def name_of(run: Run) -> str:
    """The workflow of a run; of one that follows none what it is instead."""
    return run.workflow or RunKind(run.kind).name.lower()


def put_execution(out: Any, run: Run) -> Any:
    """Write a run."""
    out.id, out.tenant_id = run.id, run.tenant
    out.kind, out.version = name_of(run), run.workflow_version
    out.status = status_of(run)
    put_error(out, run.error_code, run.error_message)
    if run.labels:
        out.labels.update(labels_of(run.labels))
    out.retry_attempt = run.redone
    if run.parent_id:
        out.parent_workflow_execution_id = run.parent_id
    # A code run's own task, which runs its code, is none that it made.
    own = int(run.kind is RunKind.CODE)
    out.task_count = run.task_count - own
    out.open_tasks = run.open_tasks - (own if not run.finished_us else 0)
    out.failed_tasks = run.failed_tasks
    out.last_sequence = run.last_seq
    out.created_by = run.created_by
    put(out.created_at, run.created_us)
    put(out.updated_at, run.updated_us or run.created_us)
    put(out.completed_at, run.finished_us)
    if run.running_share:
        out.progress = share_done(run)
        if run.running_words:
            out.progress_details = run.running_words
    return out


def put_error(out: Any, code: str, message: str) -> None:
    """Write why something failed; nothing where it did not."""
    if code or message:
        out.error_code = code
        out.error = message or code


def put_view(out: Any, view: RunView) -> Any:
    """Write a run with what it was given and answers."""
    put_execution(out, view.run)
    if view.input:
        out.input = view.input
    if view.output:
        out.output = view.output
    return out


def put_child(out: execution_pb2.ChildWorkflowExecution, run: Run) -> None:
    """Write a run that another began."""
    out.child_workflow_execution_id, out.child_execution_name = run.id, name_of(run)
    out.status = status_of(run)
    put(out.created_at, run.created_us)


def put_event(out: execution_pb2.WorkflowExecutionEvent, event: Event) -> None:
    """Write an event."""
    out.sequence = event.seq
    out.type = int(event.type)  # type: ignore[assignment]
    put(out.timestamp, event.at_us)
    if event.task_id:
        out.task_execution_id = event.task_id
    if event.artifact_id:
        out.artifact_id = event.artifact_id
    out.attempt = event.attempt
    out.data = struct_of(event.data)
