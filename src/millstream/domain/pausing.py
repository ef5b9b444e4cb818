"""Pausing runs: nothing new of a paused run starts, what runs ends. Its clocks go on: a timer fires, a promise may be
resolved, its own time runs out; what follows from that waits, too."""

from millstream.domain.batch import Batch
from millstream.domain.errors import Conflict
from millstream.domain.lifecycle import details, hold, make_ready
from millstream.domain.runs import UNLEASED, EventType, Run, RunStatus, Task, TaskStatus


def pause_run(batch: Batch, run: Run, open_tasks: list[Task], reason: str, by: str) -> None:
    """Pause a run. Raises Conflict where it is not RUNNING; a second call changes nothing."""
    _check(run)
    if run.paused_us:
        return
    run.paused_us = batch.now_us
    batch.touch(run)
    batch.record(run, EventType.RUN_PAUSED, data=details(reason=reason, by=by))
    for task in open_tasks:
        if task.open and task.status is not TaskStatus.RUNNING and not task.queue.startswith(UNLEASED):
            hold(batch, run, task)


def resume_run(batch: Batch, run: Run, open_tasks: list[Task], by: str) -> None:
    """Let a paused run go on, the most urgent of its tasks first. Raises Conflict where it is not RUNNING; of one that
    is not paused nothing changes."""
    _check(run)
    if not run.paused_us:
        return
    run.paused_us = 0
    batch.touch(run)
    batch.record(run, EventType.RUN_RESUMED, data=details(by=by))
    held = [task for task in open_tasks if task.open and task.held_us]
    for task in sorted(held, key=lambda each: (-each.priority, each.held_us, each.id)):
        task.run_at_us, task.held_us = task.held_us, 0
        make_ready(batch, run, task)


def _check(run: Run) -> None:
    if run.status is not RunStatus.RUNNING:
        raise Conflict(f"run {run.id} is {run.status.name}; only a running one can be paused or resumed")
