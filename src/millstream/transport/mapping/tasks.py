"""Tasks and attempts."""

from collections.abc import Iterable
from typing import Any

from millstream.application.views.runs import StuckQuery, StuckTask
from millstream.application.views.tasks import NewTask, TaskQuery, TaskView
from millstream.domain.bounds import CONCURRENCY, PLANNERS, UNBOUND, Bounds
from millstream.domain.errors import ValidationFailed
from millstream.domain.runs import Attempt, Task, TaskStatus
from millstream.domain.tracing import trace_id
from millstream.transport.mapping.json import labels_of, labels_text
from millstream.transport.mapping.pages import known
from millstream.transport.mapping.policies import put_retry, put_timeouts, retry_of, timeouts_of
from millstream.transport.mapping.runs import put_error
from millstream.transport.mapping.times import duration_us, put, put_duration, us
from millstream.wire.v1 import run_pb2
from millstream.wire.v1.task_service_pb2 import CreateTaskRequest, ListStuckTasksRequest

_DEFAULTS = NewTask(kind="")


def new_task(message: CreateTaskRequest) -> NewTask:
    """The task to create. Raises ValidationFailed."""
    if message.kind.startswith("agent:"):
        raise ValidationFailed.of("kind", 'kinds that begin with "agent:" are the server\'s')
    given = message.HasField
    if given("run_at") and given("delay"):
        raise ValidationFailed.of("delay", "give run_at or delay, not both")
    return NewTask(
        kind=message.kind,
        input=message.input,
        queue=message.queue or "default",
        priority=message.priority,
        run_at_us=us(message.run_at, "run_at") if given("run_at") else 0,
        delay_us=duration_us(message.delay) if given("delay") else 0,
        retry=retry_of(message.retry) if given("retry") else _DEFAULTS.retry,
        timeouts=timeouts_of(message.timeouts) if given("timeouts") else _DEFAULTS.timeouts,
        labels=labels_text(dict(message.labels)) if message.labels else "",
        run_timeout_us=duration_us(message.run_timeout) if given("run_timeout") else 0,
        bounds=_bounds(message) if given("concurrency") or given("rate_limit") else UNBOUND,
        business_key=message.deduplication_key,
        business_ttl_us=duration_us(message.deduplication_ttl) if given("deduplication_ttl") else 0,
    )


def _bounds(message: CreateTaskRequest) -> Bounds:
    """What bounds a task by key."""
    concurrency, rate = message.concurrency, message.rate_limit
    return Bounds(concurrency.key, concurrency.limit, rate.key, rate.limit, duration_us(rate.period))


def task_query(request: Any, run_id: str = "") -> TaskQuery:
    """Which tasks a request asks for; those of a run where `run_id` is given."""
    number = known(request.status, max(TaskStatus), "status")
    status = TaskStatus(number) if number else None
    if run_id:
        return TaskQuery(status=status, run_id=run_id.lower())
    oldest_first = None
    if request.sort_order or request.run_id:
        oldest_first = request.sort_order == "asc"
    return TaskQuery(
        status=status,
        kind=request.kind,
        queue=request.queue,
        created_after_us=us(request.created_after, "created_after") if request.HasField("created_after") else 0,
        created_before_us=us(request.created_before, "created_before") if request.HasField("created_before") else 0,
        run_id=request.run_id.lower(),
        agent=request.agent,
        worker=request.worker,
        labels=_wanted_labels(request.labels),
        oldest_first=oldest_first,
    )


def stuck_query(request: ListStuckTasksRequest) -> StuckQuery:
    """Which stuck tasks a request asks for."""
    why = known(request.why, ListStuckTasksRequest.WAITING, "why")
    return StuckQuery(
        waiting=why == ListStuckTasksRequest.WAITING,
        kind=request.kind,
        queue=request.queue,
        for_us=duration_us(request.for_at_least) if request.HasField("for_at_least") else 0,
        unserved=request.unserved,
    )


def put_stuck(out: Any, stuck: StuckTask) -> None:
    """Write a task that does not get on."""
    put_task(out.task, stuck.task)
    put(out.since, stuck.since_us)
    if stuck.task.status is TaskStatus.SCHEDULED and not stuck.task.held_us:
        put(out.next_attempt_at, stuck.task.run_at_us)
    out.waiting = stuck.waiting
    out.served = stuck.served


def _wanted_labels(given: Iterable[str]) -> str:
    """Labels that tasks are to have, each given as key=value. Raises ValidationFailed."""
    found: dict[str, str] = {}
    for label in given:
        name, _, value = label.partition("=")
        if found.setdefault(name, value) != value:
            raise ValidationFailed.of("labels", f"{name!r} has one value; name it once")
    return labels_text(found)


def put_task(out: run_pb2.Task, task: Task) -> run_pb2.Task:
    """Write a task without its input and output."""
    out.task_id = task.id
    out.run_id = task.run_id
    out.kind = task.kind
    out.queue = task.queue
    out.status = int(task.shown_status)  # type: ignore[assignment]
    out.priority = task.priority
    out.attempt = task.attempt
    out.max_attempts = task.retry.max_attempts
    put(out.created_at, task.created_us)
    put(out.run_at, task.held_us or task.run_at_us)
    out.held = task.held_us > 0
    put(out.started_at, task.started_us)
    put(out.finished_at, task.finished_us)
    put_error(out.error, task.error_code, task.error_message)
    out.worker = task.worker_name
    out.agent = task.agent
    out.artifact_ids.extend(task.artifact_ids)
    # Kept as a float of four bytes: 0.7 comes back as 0.7, not as 0.699999988.
    out.progress = round(task.progress, 6)
    out.progress_message = task.progress_message
    put_retry(out.retry, task.retry)
    put_timeouts(out.timeouts, task.timeouts)
    if task.labels:
        out.labels.update(labels_of(task.labels))
    if task.bounds.lines:
        _put_bounds(out, task)
    out.dropped = task.dropped
    if task.trace:
        out.trace_id = trace_id(task.trace)
    return out


def _put_bounds(out: run_pb2.Task, task: Task) -> None:
    """Write what bounds a task by key. A planner's own keys are nobody else's business."""
    bounds = task.bounds
    if bounds.concurrency_key and not bounds.concurrency_key.startswith(PLANNERS):
        out.concurrency.key, out.concurrency.limit = bounds.concurrency_key, bounds.concurrency_limit
    if bounds.rate_key:
        out.rate_limit.key, out.rate_limit.limit = bounds.rate_key, bounds.rate_limit
        put_duration(out.rate_limit.period, bounds.rate_period_us)
    if task.status is TaskStatus.IN_LINE:
        kind = "concurrency" if task.waits_for.startswith(CONCURRENCY) else "rate"
        out.waiting_for = f"{kind}:{task.waits_for[len(CONCURRENCY) :]}"


def task_view(view: TaskView) -> run_pb2.Task:
    """A task with its input and output."""
    out = put_task(run_pb2.Task(), view.task)
    if view.task.input:
        out.input = view.task.input
    if view.output:
        out.output = view.output
    return out


def put_attempt(out: run_pb2.Attempt, attempt: Attempt) -> None:
    """Write an attempt."""
    out.attempt = attempt.number
    out.status = int(attempt.status)  # type: ignore[assignment]
    put(out.started_at, attempt.started_us)
    put(out.finished_at, attempt.finished_us)
    if attempt.finished_us and attempt.started_us:
        out.duration_ms = (attempt.finished_us - attempt.started_us) / 1000
    out.worker = attempt.worker_name
    put_error(out.error, attempt.error_code, attempt.error_message)
    if attempt.output:
        out.output = attempt.output
