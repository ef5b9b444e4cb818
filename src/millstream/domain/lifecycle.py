"""The life of tasks: made, leased, completed, failed, retried, released, cancelled.

Every function checks before it changes anything, so that a command which is refused leaves no trace in the batch.
"""

import functools
import json

from millstream.domain.batch import Batch, Claim, Handoff
from millstream.domain.code_lead import activation, note_end, sleeping
from millstream.domain.errors import LeaseLost
from millstream.domain.graph import StepState, note
from millstream.domain.planners import LIMIT_CODE, RUN_TIMEOUT, plan_idle
from millstream.domain.runs import (
    CHILD_QUEUE,
    NEVER_US,
    PROMISE_QUEUE,
    TIMER_QUEUE,
    UNLEASED,
    Attempt,
    AttemptStatus,
    EventType,
    Run,
    RunKind,
    RunStatus,
    Task,
    TaskStatus,
)
from millstream.domain.tracing import with_trace, within

_ENDING = {
    RunStatus.COMPLETED: EventType.RUN_COMPLETED,
    RunStatus.FAILED: EventType.RUN_FAILED,
    RunStatus.CANCELLED: EventType.RUN_CANCELLED,
}
_STEP_STATES = {
    TaskStatus.COMPLETED: StepState.COMPLETED,
    TaskStatus.FAILED: StepState.FAILED,
    TaskStatus.CANCELLED: StepState.CANCELLED,
}
ERROR_MESSAGE_CHARS = 4000
CANCELLED = "CANCELLED"
"""Error code of what somebody cancelled."""


def details(**fields: object) -> str:
    """Event data as JSON text."""
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False)


@functools.lru_cache(10_000)
def recurring(**fields: str | int) -> str:
    """Event data that is the same for many events."""
    return details(**fields)


def create(batch: Batch, run: Run, task: Task) -> None:
    """Add a task to a running run and make it ready, or schedule it for its time."""
    run.open_tasks += 1
    run.task_count += 1
    batch.tasks[task.id] = task
    batch.new_tasks.add(task.id)
    data = recurring(kind=task.kind, queue=task.queue)
    if task.step:
        # The steps of a definition recur with its runs; the items of a map, and what code asks for, are too many.
        told = recurring if run.kind is RunKind.GRAPH and not task.item else details
        data = told(kind=task.kind, queue=task.queue, step=task.step, item=task.item)
    if run.trace:
        task.trace = within(run.trace, run.id, batch.trace)
        data = with_trace(data, task.trace)
    batch.record(run, EventType.TASK_CREATED, task_id=task.id, data=data)
    make_ready(batch, run, task)


def make_ready(batch: Batch, run: Run, task: Task) -> None:
    """Hand the task to a connected worker in this transaction, or leave it pending, or scheduled for its time; or hold
    it, where its run is paused."""
    batch.touch(run, task)
    if run.paused_us and task.queue not in (TIMER_QUEUE, PROMISE_QUEUE):
        hold(batch, run, task)
        return
    if task.run_at_us > batch.now_us:
        task.status = TaskStatus.SCHEDULED
        batch.schedule(task.run_at_us)
        return
    task.status = TaskStatus.PENDING
    wait = task.timeouts.schedule_to_start_us
    task.start_by_us = batch.now_us + wait if wait else 0
    if task.queue.startswith(UNLEASED):
        # It is settled, not worked on. A child's run is begun by whoever looks at its parent.
        if task.queue == CHILD_QUEUE:
            batch.attend(run)
        if task.start_by_us:
            batch.schedule(task.start_by_us)
        return
    if task.bounds.lines:
        line_up(batch, run, task, task.bounds.lines[0])
        return
    claim = batch.offer(task)
    if claim is None:
        key = (task.tenant, task.queue, task.kind)
        if task.limited:
            batch.freed.add(key)
        else:
            batch.ready.add(key)
            batch.waiting.append(task)
        if task.start_by_us:
            batch.schedule(task.start_by_us)
    else:
        lease(batch, run, task, claim)


def hold(batch: Batch, run: Run, task: Task) -> None:
    """Let a task that waits not start until its run is resumed. Its time is never until then, so whoever looks for
    work, or for what is due, does not even find it, be it a server of the version before."""
    if not task.held_us:
        task.held_us = max(task.run_at_us, 1)
    _leave_line(batch, task)
    task.run_at_us = NEVER_US
    task.start_by_us = 0
    task.status = TaskStatus.SCHEDULED
    batch.touch(run, task)


def become_ready(batch: Batch, run: Run, task: Task) -> None:
    """Make a scheduled task ready whose time has come."""
    batch.record(run, EventType.TASK_READY, task_id=task.id)
    make_ready(batch, run, task)


def line_up(batch: Batch, run: Run, task: Task, line: str) -> None:
    """Let a task wait in a line. Whoever left room in it meanwhile did not see the task, so it is looked at again."""
    if task.status is TaskStatus.IN_LINE and task.waits_for == line:
        return
    _leave_line(batch, task)
    task.status, task.waits_for = TaskStatus.IN_LINE, line
    batch.touch(run, task)
    batch.looks.add((task.tenant, line))


def promote(batch: Batch, run: Run, task: Task) -> None:
    """Let any worker take a task that there is room for."""
    task.status = TaskStatus.PENDING
    batch.touch(run, task)
    batch.freed.add((task.tenant, task.queue, task.kind))


def lacking(batch: Batch, task: Task) -> str | None:
    """The line that has no room for the task, "" where all have; None where another server holds one of them."""
    for name in task.bounds.lines:
        line = batch.lines.get((task.tenant, name))
        if line is None:
            return None
        if not line.room(task.bounds, batch.now_us):
            return name
    return ""


def _leave_line(batch: Batch, task: Task) -> None:
    """A task that had room, and did not start, leaves it to the next."""
    if task.waits_for and task.status is TaskStatus.PENDING:
        batch.looks.add((task.tenant, task.waits_for))
    task.waits_for = ""


def lease(batch: Batch, run: Run, task: Task, claim: Claim) -> None:
    """Give a pending task to a worker. The attempt number grows, and never shrinks again."""
    told = activation(run, task, claim.worker_id) if task.leads else None
    for name in task.bounds.lines:
        line = batch.lines[task.tenant, name]
        line.start(task.bounds, batch.now_us)
        if line.is_rate:
            # When the next may start is known from now on.
            batch.looks.add((task.tenant, name))
    task.status, task.waits_for = TaskStatus.RUNNING, ""
    task.attempt += 1
    task.owner = batch.lane
    task.worker_id, task.worker_name = claim.worker_id, claim.worker_name
    task.started_us = now = batch.now_us
    task.delivered = claim.arrived
    task.progress, task.progress_message = 0.0, ""
    limits = task.timeouts
    task.deadline_us = now + limits.start_to_close_us if limits.start_to_close_us else 0
    task.beat_by_us = now + limits.heartbeat_us if limits.heartbeat_us else 0
    task.lease_until_us = min(now + batch.limits.lease_us, task.deadline_us or 1 << 62, task.beat_by_us or 1 << 62)
    batch.touch(run, task)
    if told is None:
        batch.record(run, EventType.TASK_STARTED, task_id=task.id, attempt=task.attempt)
    batch.handoffs.append(Handoff(claim.session_id, task, task.attempt, told))


def check_fence(task: Task, attempt: int) -> None:
    """Raise LeaseLost unless this attempt is the running one."""
    if task.status is not TaskStatus.RUNNING:
        raise LeaseLost(f"task {task.id} is {task.status.name}; attempt {attempt} is over")
    if task.attempt != attempt:
        raise LeaseLost(f"task {task.id} is in attempt {task.attempt}; attempt {attempt} is over")


def fail(
    batch: Batch,
    run: Run,
    task: Task,
    code: str,
    message: str,
    *,
    status: AttemptStatus = AttemptStatus.FAILED,
    retryable: bool | None = None,
    retry_after_us: int = 0,
    counts: bool = True,
    at_once: bool = False,
) -> None:
    """End the running attempt as failed, then retry the task or fail it finally, as its policy says.

    Args:
        counts: The attempt uses up one of max_attempts.
        at_once: The next attempt needs no wait (the worker was lost, not the work at fault).
    """
    message = message[:ERROR_MESSAGE_CHARS]
    if counts:
        task.tries += 1
        close_attempt(batch, task, status, code, message)
    attempt = task.attempt
    if _winding_up(run, task):
        # Why it was cancelled says more than how its worker stopped, which its attempt tells.
        if task.error_code not in (CANCELLED, RUN_TIMEOUT):
            task.error_code, task.error_message = code, message
        cancel(batch, run, task, closed=counts)
        return
    task.error_code, task.error_message = code, message
    final = retryable is False or code in task.retry.non_retryable
    if final or task.tries >= task.retry.max_attempts:
        run.failed_tasks += 1
        if run.kind is RunKind.SINGLE:
            run.error_code, run.error_message = code, message
        data = details(code=code, message=message)
        finish(batch, run, task, TaskStatus.FAILED, EventType.TASK_FAILED, data)
        if task.leads:
            _park(batch, run, code, message)
        end_if_idle(batch, run)
        return
    wait = 0 if at_once else task.retry.delay_us(task.tries, batch.chance())
    wait = max(wait, retry_after_us)
    _give_back(batch, task)
    task.run_at_us = batch.now_us + wait
    data = details(code=code, message=message, next_attempt_in_ms=wait // 1000)
    batch.record(run, EventType.TASK_RETRY, task_id=task.id, attempt=attempt, data=data)
    make_ready(batch, run, task)


def release(batch: Batch, run: Run, task: Task) -> None:
    """Take back a lease whose work did not start; burns no attempt."""
    attempt = task.attempt
    _give_back(batch, task)
    if _winding_up(run, task):
        cancel(batch, run, task)
        return
    batch.record(run, EventType.TASK_RELEASED, task_id=task.id, attempt=attempt)
    make_ready(batch, run, task)


def expire(batch: Batch, run: Run, task: Task) -> None:
    """Reclaim a lease that ran out, by the reason that it did."""
    if task.status is not TaskStatus.RUNNING or task.lease_until_us > batch.now_us:
        return
    now, limits = batch.now_us, task.timeouts
    if _winding_up(run, task):
        cancel(batch, run, task)
        return
    batch.lost.append((task.id, task.attempt, task.owner))
    if task.deadline_us and now >= task.deadline_us:
        text = f"the attempt took longer than {limits.start_to_close_us / 1e6:g} s"
        fail(batch, run, task, "START_TO_CLOSE_TIMEOUT", text, status=AttemptStatus.TIMED_OUT)
    elif task.beat_by_us and now >= task.beat_by_us:
        text = f"no heartbeat for {limits.heartbeat_us / 1e6:g} s"
        fail(batch, run, task, "HEARTBEAT_TIMEOUT", text, status=AttemptStatus.TIMED_OUT)
    else:
        lose(batch, run, task)


def lose(batch: Batch, run: Run, task: Task) -> None:
    """Take a lease from a worker that is gone: that burns an attempt where the lease had arrived."""
    if task.delivered:
        text = f"worker {task.worker_name or task.worker_id} was lost"
        fail(batch, run, task, "WORKER_LOST", text, status=AttemptStatus.LOST, at_once=True)
    else:
        release(batch, run, task)


def start_too_late(batch: Batch, run: Run, task: Task) -> None:
    """Fail a pending task that no worker took within schedule_to_start."""
    if task.status not in (TaskStatus.PENDING, TaskStatus.IN_LINE) or not 0 < task.start_by_us <= batch.now_us:
        return
    text = f"no worker took it within {task.timeouts.schedule_to_start_us / 1e6:g} s"
    fail(batch, run, task, "SCHEDULE_TO_START_TIMEOUT", text, retryable=False, counts=False)


def cancel(batch: Batch, run: Run, task: Task, closed: bool = False, data: str = "") -> None:
    """End a task as cancelled, whatever its worker does from here on. `closed`: its attempt is recorded already;
    `data`: its event's."""
    if task.status is TaskStatus.RUNNING and not closed:
        batch.lost.append((task.id, task.attempt, task.owner))
        close_attempt(batch, task, AttemptStatus.CANCELLED)
    if run.kind is RunKind.SINGLE and run.status is RunStatus.RUNNING:
        run.error_code, run.error_message = CANCELLED, task.error_message or "the task was cancelled"
    finish(batch, run, task, TaskStatus.CANCELLED, EventType.TASK_CANCELLED, data)
    if task.queue == CHILD_QUEUE:
        # Its run is to be cancelled.
        batch.attend(run)
    end_if_idle(batch, run)


def refuse(batch: Batch, run: Run, agent: str, artifact_id: str, reason: str) -> None:
    """Say that a bound was reached, where an agent would have been activated."""
    run.error_code, run.error_message = LIMIT_CODE, reason
    data = details(agent=agent, message=reason)
    batch.record(run, EventType.CASCADE_LIMIT, artifact_id=artifact_id, data=data)
    batch.touch(run)


def end_if_idle(batch: Batch, run: Run) -> None:
    """End the run once nothing in it is open."""
    end = plan_idle(run)
    if end is not None:
        end_run(batch, run, end.status)


def end_run(batch: Batch, run: Run, status: RunStatus) -> None:
    """End the run, in which nothing is open."""
    run.status = status
    run.finished_us = batch.now_us
    run.cancel_by_us = run.paused_us = run.deadline_us = 0
    data = details(code=run.error_code, message=run.error_message) if run.error_code else ""
    batch.record(run, _ENDING[status], data=data)
    batch.touch(run)
    batch.ended[run.id] = run
    if run.parent_id:
        batch.attend(run)


def finish(batch: Batch, run: Run, task: Task, status: TaskStatus, event: EventType, data: str = "") -> None:
    """End a task."""
    attempt = task.attempt
    _give_back(batch, task)
    if task.held_us:
        task.run_at_us, task.held_us = task.held_us, 0
    task.status = status
    task.finished_us = batch.now_us
    run.open_tasks -= 1
    batch.touch(run, task)
    seq = batch.record(run, event, task_id=task.id, attempt=attempt, data=data)
    if run.kind is RunKind.CODE:
        if task.step and note_end(batch, run, task, seq):
            wake(batch, run)
    elif run.kind is RunKind.GRAPH:
        run.plan = note(run.plan, task.step, task.item, _STEP_STATES[status])
        if run.status is RunStatus.RUNNING:
            batch.attend(run)


def wake(batch: Batch, run: Run) -> None:
    """Have a code run's code look at what happened, unless it does already."""
    lead = sleeping(batch, run)
    if lead is not None:
        make_ready(batch, run, lead)


def _park(batch: Batch, run: Run, code: str, message: str) -> None:
    """End a run whose code no worker can run: what it had begun goes on, so that it can be retried from here."""
    if run.status is RunStatus.RUNNING:
        run.error_code, run.error_message = code, message
        end_run(batch, run, RunStatus.FAILED)


def _winding_up(run: Run, task: Task) -> bool:
    """What ends is not tried again. A code run that is being cancelled may still clean up."""
    return task.cancelling or (run.status is RunStatus.CANCELLING and run.kind is not RunKind.CODE)


def _give_back(batch: Batch, task: Task) -> None:
    if task.leads:
        # Its next worker is any.
        task.worker_id = ""
    if task.limited and task.status is TaskStatus.RUNNING:
        batch.freed.add((task.tenant, task.queue, task.kind))
    if task.bounds.concurrency_key and task.status is TaskStatus.RUNNING:
        batch.looks.add((task.tenant, task.bounds.lines[0]))
    _leave_line(batch, task)
    task.owner = ""
    task.lease_until_us = task.deadline_us = task.beat_by_us = task.start_by_us = 0


def close_attempt(
    batch: Batch, task: Task, status: AttemptStatus, code: str = "", message: str = "", output: bytes = b""
) -> None:
    """Record how the running attempt ended."""
    if task.attempt == 0:
        return
    batch.attempts.append(
        Attempt(
            task.id, task.attempt, task.day, status, task.started_us, batch.now_us, task.worker_name,
            code, message, output,
        )
    )  # fmt: skip
