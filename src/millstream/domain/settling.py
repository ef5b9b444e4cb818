"""Tasks that no worker is given: a pause, a promise, a child run.

They wait, are cancelled, retried and read as all others are, and are settled instead of worked on: that makes an
attempt of its own, so that their output is where every task's is.
"""

from millstream.domain.batch import Batch
from millstream.domain.lifecycle import close_attempt, end_if_idle, fail, finish
from millstream.domain.runs import AttemptStatus, EventType, Run, Task, TaskStatus


def settle(batch: Batch, run: Run, task: Task, output: bytes = b"") -> None:
    """Complete an open task. `output`: google.protobuf.Value in wire form."""
    _begin(batch, task)
    task.tries += 1
    close_attempt(batch, task, AttemptStatus.COMPLETED, output=output)
    task.error_code = task.error_message = ""
    finish(batch, run, task, TaskStatus.COMPLETED, EventType.TASK_COMPLETED)
    end_if_idle(batch, run)


def settle_failed(
    batch: Batch, run: Run, task: Task, code: str, message: str, *, retryable: bool | None = False
) -> None:
    """Fail an open task: finally, unless `retryable` leaves that to its policy."""
    _begin(batch, task)
    fail(batch, run, task, code, message, retryable=retryable)


def child_too_late(batch: Batch, run: Run, task: Task) -> None:
    """Fail a task whose run has taken longer than it may; that run is cancelled then."""
    if task.status is TaskStatus.PENDING and 0 < task.start_by_us <= batch.now_us:
        text = f"its run took longer than {task.timeouts.schedule_to_start_us / 1e6:g} s"
        settle_failed(batch, run, task, "CHILD_TIMEOUT", text, retryable=None)
        batch.attend(run)


def _begin(batch: Batch, task: Task) -> None:
    task.attempt += 1
    task.started_us = batch.now_us
