"""Ending runs and tasks early: nothing new starts, workers are told, and a timer forces the end."""

from millstream.domain.batch import Batch
from millstream.domain.code_lead import note_cancelling
from millstream.domain.errors import Conflict
from millstream.domain.gating import abandon
from millstream.domain.lifecycle import CANCELLED, cancel, details, end_if_idle, wake
from millstream.domain.planners import RUN_TIMEOUT
from millstream.domain.runs import EventType, Run, RunKind, RunStatus, Task, TaskStatus


def cancel_run(batch: Batch, run: Run, open_tasks: list[Task], reason: str, by: str) -> None:
    """Begin to cancel a run. Raises Conflict where it has ended; a second call changes nothing."""
    if run.status is RunStatus.CANCELLING:
        return
    if run.status is not RunStatus.RUNNING:
        raise Conflict(f"run {run.id} has ended as {run.status.name}")
    run.error_code, run.error_message = CANCELLED, reason or "cancelled"
    seq = batch.record(run, EventType.RUN_CANCELLING, data=details(reason=reason, by=by))
    note_cancelling(batch, run, seq, reason)
    _wind_up(batch, run, open_tasks, reason, by)


def cancel_task(batch: Batch, run: Run, task: Task, reason: str = "", by: str = "") -> None:
    """Begin to cancel a task: one that waits ends at once. Raises Conflict where it has ended."""
    if not task.open:
        raise Conflict(f"task {task.id} has ended as {task.status.name}")
    if task.leads:
        raise Conflict(f"task {task.id} is the run's own; cancel the run")
    task.error_code, task.error_message = CANCELLED, reason or "cancelled"
    if task.status is not TaskStatus.RUNNING:
        cancel(batch, run, task, data=details(reason=reason, by=by))
    elif not task.cancelling:
        _ask_to_stop(batch, run, task, reason, by)


def limit_run(batch: Batch, run: Run, timeout_us: int) -> None:
    """Give a run its time, from now on; 0: as much as it wants."""
    run.timeout_us = timeout_us
    if timeout_us:
        run.deadline_us = batch.now_us + timeout_us
        batch.schedule(run.deadline_us)


def time_out_run(batch: Batch, run: Run, open_tasks: list[Task]) -> None:
    """Begin to end a run whose time is over: it fails. What it has open is cancelled, and says why, so that a retry by
    hand finds it."""
    if run.status is not RunStatus.RUNNING or not 0 < run.deadline_us <= batch.now_us:
        return
    text = f"the run took longer than {run.timeout_us / 1e6:g} s"
    run.error_code, run.error_message = RUN_TIMEOUT, text
    seq = batch.record(run, EventType.RUN_TIMED_OUT, data=details(timeout_s=run.timeout_us / 1e6))
    note_cancelling(batch, run, seq, "")
    for task in open_tasks:
        if task.open and not task.cancelling and run.kind is not RunKind.CODE:
            task.error_code, task.error_message = RUN_TIMEOUT, text
    _wind_up(batch, run, open_tasks, text, "")


def force_run(batch: Batch, run: Run, open_tasks: list[Task]) -> None:
    """End a run whose grace has passed."""
    if run.status is not RunStatus.CANCELLING or run.cancel_by_us > batch.now_us:
        return
    # A code run's own task first: what ends after it wakes it no more.
    for task in sorted(open_tasks, key=lambda each: not each.leads):
        if task.open:
            cancel(batch, run, task)
    end_if_idle(batch, run)


def _wind_up(batch: Batch, run: Run, open_tasks: list[Task], reason: str, by: str) -> None:
    """Let nothing new start; what waits ends at once, what runs is told and has the grace."""
    run.status = RunStatus.CANCELLING
    run.cancel_by_us = batch.now_us + batch.limits.cancel_grace_us
    run.deadline_us = 0
    batch.touch(run)
    if run.kind is RunKind.CODE:
        # What is open is the code's to cancel, and what that takes is its to begin; the timer ends what it does not.
        wake(batch, run)
        return
    abandon(batch, run)
    for task in open_tasks:
        if task.status is TaskStatus.RUNNING:
            if not task.cancelling:
                _ask_to_stop(batch, run, task, reason, by)
        elif task.open:
            cancel(batch, run, task)
    end_if_idle(batch, run)


def _ask_to_stop(batch: Batch, run: Run, task: Task, reason: str, by: str) -> None:
    """Tell the worker, and let the lease end after the grace, when the reaper forces the end."""
    task.cancelling = True
    task.deadline_us = batch.now_us + batch.limits.cancel_grace_us
    task.lease_until_us = min(task.lease_until_us, task.deadline_us)
    batch.touch(run, task)
    data = details(reason=reason, by=by)
    batch.record(run, EventType.TASK_CANCELLING, task_id=task.id, attempt=task.attempt, data=data)
    batch.cancelled.append((task.id, task.attempt, task.owner))
