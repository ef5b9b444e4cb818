"""Retrying by hand: what failed finally is tried again, what was done stays.

The numbers of attempts go on growing (engine-rules 9), and are not bounded by the policy, which counts anew.
"""

from collections.abc import Sequence
from typing import assert_never

from millstream.domain import code_runs, graph_runs
from millstream.domain.batch import Batch
from millstream.domain.cancellation import limit_run
from millstream.domain.errors import Conflict, ValidationFailed
from millstream.domain.graph import ENDED, Graph
from millstream.domain.graph_runs import check_step
from millstream.domain.lifecycle import details, make_ready
from millstream.domain.planners import LIMIT_CODE, RUN_TIMEOUT
from millstream.domain.runs import (
    CHILD_QUEUE,
    PROMISE_QUEUE,
    TIMER_QUEUE,
    EventType,
    Run,
    RunKind,
    RunStatus,
    Task,
    TaskStatus,
)
from millstream.domain.workflows import Definition


def is_to_redo(task: Task) -> bool:
    """A retry of its run begins it again: it failed finally, or its run took too long (also where its worker was done
    in the grace: nothing followed from that). A promise never is: it is settled once."""
    if task.queue == PROMISE_QUEUE:
        return False
    return task.status is TaskStatus.FAILED or (not task.open and task.error_code == RUN_TIMEOUT)


def retry_run(
    batch: Batch,
    run: Run,
    tasks: Sequence[Task],
    by: str,
    note: str,
    from_step: str = "",
    definition: Definition | None = None,
) -> None:
    """Let a failed run go on with what failed in it.

    Args:
        tasks: Those of the run that are to redo, at least.
        from_step: Of a run of a workflow, the step to begin again with, and all that needs it; "": what failed.
        definition: Of a graph run, what it follows.

    Raises Conflict where the run has not failed, or nothing of it can be tried again; ValidationFailed on `from_step`.
    """
    if run.status is not RunStatus.FAILED:
        raise Conflict(f"run {run.id} is {run.status.name}; only a FAILED run can be retried")
    told: dict[str, str | int] = {"note": note, "by": by, "retry_attempt": run.redone + 1}
    match run.kind:
        case RunKind.CASCADE | RunKind.SINGLE:
            if from_step:
                raise ValidationFailed.of("from_step", "only runs of a workflow have steps; leave it out")
            again = [task for task in tasks if is_to_redo(task)]
            if not again and any(task.queue == PROMISE_QUEUE for task in tasks):
                raise Conflict(f"run {run.id} is of a promise, which is settled once; make another")
            _retry_tasks(batch, run, again, by, note)
        case RunKind.GRAPH:
            _retry_steps(batch, run, tasks, definition, details(**told, from_step=from_step), from_step)
        case RunKind.CODE:
            code_runs.check_retry(from_step)
            reopen(batch, run, details(**told))
            for task in code_runs.retry(run, tasks):
                begin_again(batch, run, task)
                if task.queue == CHILD_QUEUE:
                    # Another run than the one that has ended.
                    task.tries = run.redone
        case _:
            assert_never(run.kind)


def _retry_tasks(batch: Batch, run: Run, again: Sequence[Task], by: str, note: str) -> None:
    if not again:
        code = run.error_code or "FAILED"
        raise Conflict(f"run {run.id} has no task that could be tried again ({code}); rerun it instead")
    reopen(batch, run, details(note=note, by=by, retry_attempt=run.redone + 1, tasks=len(again)))
    for task in again:
        batch.record(run, EventType.RETRY_REQUESTED, task_id=task.id, attempt=task.attempt)
        begin_again(batch, run, task)


def _retry_steps(
    batch: Batch, run: Run, tasks: Sequence[Task], definition: Definition | None, data: str, from_step: str
) -> None:
    """Steps begin again with tasks of their own: what they are given may differ."""
    if definition is None:
        raise Conflict(f"run {run.id} is of a workflow whose definition is gone; execute another")
    check_step(run, definition, from_step)
    reopen(batch, run, data)
    graph_runs.retry(batch, run, definition, from_step)
    graph = Graph(definition, run.plan)
    for task in tasks:
        if task.status is TaskStatus.FAILED and graph.state(task.step - 1) not in ENDED:
            # Another takes its place, so it is nobody's dead letter any more.
            task.dropped = True
            batch.touch(run, task)


def retry_task(batch: Batch, run: Run, task: Task, by: str, note: str) -> None:
    """Try one finally failed task again; its run goes on where it has ended. Raises Conflict where the task did not
    fail, or its run is being cancelled, or was."""
    if task.queue == PROMISE_QUEUE:
        raise Conflict(f"task {task.id} is a promise, which is settled once; make another")
    if not is_to_redo(task):
        raise Conflict(f"task {task.id} is {task.shown_status.name}; only a FAILED task can be retried")
    if run.kind in (RunKind.GRAPH, RunKind.CODE):
        raise Conflict(f"task {task.id} is a step of run {run.id}; retry the run")
    if run.status in (RunStatus.CANCELLING, RunStatus.CANCELLED):
        raise Conflict(f"run {run.id} of the task is {run.status.name}; nothing of it starts any more")
    data = details(note=note, by=by)
    if run.status is not RunStatus.RUNNING:
        reopen(batch, run, data)
    batch.record(run, EventType.RETRY_REQUESTED, task_id=task.id, attempt=task.attempt, data=data)
    begin_again(batch, run, task)


def drop_task(batch: Batch, run: Run, task: Task, by: str, note: str) -> None:
    """Take a finally failed task out of the dead letters. Raises Conflict where it did not fail, or was dropped."""
    if task.status is not TaskStatus.FAILED or task.dropped:
        stands = "dropped already" if task.dropped else task.shown_status.name
        raise Conflict(f"task {task.id} is {stands}; only a FAILED task can be dropped")
    task.dropped = True
    batch.touch(run, task)
    batch.record(run, EventType.TASK_DROPPED, task_id=task.id, attempt=task.attempt, data=details(note=note, by=by))


def reopen(batch: Batch, run: Run, data: str) -> None:
    """Let an ended run go on: another try of it, with its whole time."""
    run.status = RunStatus.RUNNING
    run.finished_us = 0
    run.redone += 1
    if run.error_code != LIMIT_CODE:
        # What a bound kept from being made is not made by a retry either.
        run.error_code = run.error_message = ""
    batch.reopened.add(run.id)
    batch.touch(run)
    batch.record(run, EventType.RETRY_REQUESTED, data=data)
    limit_run(batch, run, run.timeout_us)


def begin_again(batch: Batch, run: Run, task: Task) -> None:
    """Make an ended task of a running run ready once more."""
    if task.status is TaskStatus.FAILED:
        run.failed_tasks -= 1
    run.open_tasks += 1
    task.status = TaskStatus.PENDING
    task.tries = 0
    task.finished_us = 0
    task.cancelling = task.dropped = False
    task.error_code = task.error_message = ""
    batch.tasks[task.id] = task
    if task.queue == TIMER_QUEUE:
        # It is over at the time that it had.
        task.status = TaskStatus.SCHEDULED
        batch.touch(run, task)
        batch.schedule(max(task.run_at_us, batch.now_us))
        return
    task.run_at_us = batch.now_us
    make_ready(batch, run, task)
