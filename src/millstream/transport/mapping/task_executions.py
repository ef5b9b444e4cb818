"""Tasks and attempts as the paths of tenants show them."""

from dataclasses import replace
from typing import Any, Final

from millstream.application.views.tasks import NewTask, TaskQuery, TaskView
from millstream.domain.errors import ValidationFailed
from millstream.domain.runs import Attempt, AttemptStatus, Task, TaskStatus
from millstream.transport.mapping.json import labels_of, labels_text
from millstream.transport.mapping.pages import known
from millstream.transport.mapping.times import put, us
from millstream.transport.mapping.workflow_executions import put_error, ttl_us
from millstream.wire.v1 import execution_pb2
from millstream.wire.v1 import execution_service_pb2 as wire

Status = execution_pb2.TaskExecutionStatus
AttemptStatuses = execution_pb2.TaskAttemptStatus
STATUSES: Final = {
    TaskStatus.IN_LINE: Status.PENDING,
    TaskStatus.SCHEDULED: Status.PENDING,
    TaskStatus.PENDING: Status.PENDING,
    TaskStatus.RUNNING: Status.RUNNING,
    TaskStatus.COMPLETED: Status.COMPLETED,
    TaskStatus.FAILED: Status.FAILED,
    TaskStatus.CANCELLED: Status.CANCELLED,
}
ATTEMPT_STATUSES: Final = {
    AttemptStatus.RUNNING: AttemptStatuses.RUNNING,
    AttemptStatus.COMPLETED: AttemptStatuses.COMPLETED,
    AttemptStatus.FAILED: AttemptStatuses.FAILED,
    AttemptStatus.TIMED_OUT: AttemptStatuses.TIMEOUT,
    AttemptStatus.LOST: AttemptStatuses.LOST,
    AttemptStatus.CANCELLED: AttemptStatuses.CANCELLED,
}
_DURATION_MOST_MS: Final = (1 << 32) - 1
_DEFAULTS: Final = NewTask(kind="")


def new_task(message: wire.CreateTaskExecutionRequest) -> NewTask:
    """The task to create. Raises ValidationFailed."""
    if message.task_type.startswith("agent:"):
        raise ValidationFailed.of("task_type", 'kinds that begin with "agent:" are the server\'s')
    retry = _DEFAULTS.retry
    if message.HasField("max_retries"):
        retry = replace(retry, max_attempts=message.max_retries + 1)
    return NewTask(
        kind=message.task_type,
        input=message.input,
        queue=message.queue or _DEFAULTS.queue,
        priority=-message.priority_seconds,
        run_at_us=us(message.scheduled_at, "scheduled_at") if message.HasField("scheduled_at") else 0,
        retry=retry,
        labels=labels_text(dict(message.labels)) if message.labels else "",
        business_key=message.idempotency_key,
        business_ttl_us=ttl_us(message.idempotency_key_ttl),
    )


def task_query(request: wire.ListTaskExecutionsRequest) -> TaskQuery:
    """Which standalone tasks a request asks for."""
    return TaskQuery(statuses=_statuses(request.status), kind=request.task_type, queue=request.queue, standalone=True)


def run_task_query(request: wire.ListWorkflowExecutionTasksRequest) -> TaskQuery:
    """Which tasks of a run a request asks for."""
    return TaskQuery(statuses=_statuses(request.status), run_id=request.workflow_execution_id.lower())


def _statuses(asked: int) -> tuple[TaskStatus, ...]:
    number = known(asked, Status.CANCELLED, "status")
    return tuple(ours for ours, theirs in STATUSES.items() if theirs == number) if number else ()


def put_task(out: Any, task: Task) -> Any:
    """Write a task without its input and output."""
    out.id, out.tenant_id, out.workflow_execution_id = task.id, task.tenant, task.run_id
    out.task_type, out.queue = task.kind, task.queue
    out.status = STATUSES[task.status]
    out.execution_count = task.attempt
    out.max_retries = max(task.retry.max_attempts - 1, 0)
    # Kept as a float of four bytes: 0.7 comes back as 0.7, not as 0.699999988.
    out.progress = round(task.progress, 6)
    out.progress_details = task.progress_message
    put_error(out, task.error_code, task.error_message)
    if task.worker_name:
        out.worker_id = task.worker_name
    if task.labels:
        out.labels.update(labels_of(task.labels))
    out.priority_seconds = -task.priority
    if task.run_at_us > task.created_us:
        put(out.scheduled_at, task.held_us or task.run_at_us)
    put(out.created_at, task.created_us)
    put(out.started_at, task.started_us)
    put(out.completed_at, task.finished_us)
    return out


def put_view(out: Any, view: TaskView) -> Any:
    """Write a task with its input and output."""
    put_task(out, view.task)
    if view.task.input:
        out.input = view.task.input
    if view.output:
        out.output = view.output
    return out


def put_attempts(out: Any, attempts: list[Attempt], following: int | None) -> Any:
    """Write attempts, and where to go on."""
    for attempt in attempts:
        _put_attempt(out.attempts.add(), attempt)
    if following is not None:
        out.next_after_attempt = following
    return out


def _put_attempt(out: execution_pb2.TaskExecutionAttempt, attempt: Attempt) -> None:
    out.attempt = attempt.number
    put(out.started_at, attempt.started_us)
    put(out.finished_at, attempt.finished_us)
    if attempt.finished_us and attempt.started_us:
        out.duration_ms = min((attempt.finished_us - attempt.started_us) // 1000, _DURATION_MOST_MS)
    out.status = ATTEMPT_STATUSES[attempt.status]
    put_error(out, attempt.error_code, attempt.error_message)
    if attempt.output:
        out.output = attempt.output
    out.worker_id = attempt.worker_name
