"""Answers that come along with a task's completion, before the run's code was told of it: the worker that did the task
has the code, and the code waits for nothing else. Both are stored at once, as if an activation stood between them."""

from dataclasses import replace

from millstream.domain.batch import Batch
from millstream.domain.code import CancelStep, OpenPromise, PublishItem, Standing
from millstream.domain.code_runs import Answer, answer, others
from millstream.domain.runs import NEVER_US, Run, RunKind, RunStatus, Task, TaskStatus


def begin_ahead(batch: Batch, run: Run, task: Task, attempt: int, said: Answer) -> bool:
    """Take the run's own task for the answer, so that the completion wakes nobody. False where the code is to be told
    as ever: something else happened, or the answer is none that can be taken like this.

    Args:
        attempt: At the task that is completed.
        said: Its `attempt` is the one whose answer the worker's copy of the run is as of; its commands say nothing of
            the event that they are given at.
    """
    lead = batch.tasks.get(run.id)
    if run.kind is not RunKind.CODE or lead is None or not lead.leads or not _is_running(run, task, attempt):
        return False
    standing = Standing.of(run.plan)
    asleep = lead.status is TaskStatus.SCHEDULED and lead.run_at_us == NEVER_US and not lead.held_us
    if lead.worker_id != task.worker_id:
        # Another has the run by now, and what it is as of this token.
        return False
    if not asleep or not 0 < said.attempt == standing.answered == lead.attempt or standing.last > standing.seen:
        return False
    if not _is_sound(batch, run, standing, said):
        return False
    lead.status = TaskStatus.RUNNING
    lead.attempt += 1
    lead.started_us = batch.now_us
    return True


def end_ahead(batch: Batch, run: Run, said: Answer) -> None:
    """Take the answer, once the task is completed."""
    lead, seq = batch.tasks[run.id], Standing.of(run.plan).last
    commands = [replace(each, after=seq) for each in said.commands]
    answer(batch, run, lead, replace(said, attempt=lead.attempt, base=seq, commands=commands))


def _is_running(run: Run, task: Task, attempt: int) -> bool:
    """Whether the task's completion is news to a run that goes on."""
    is_its = task.run_id == run.id and task.step > 0 and not task.leads
    runs = task.status is TaskStatus.RUNNING and task.attempt == attempt and not task.cancelling
    return is_its and runs and run.status is RunStatus.RUNNING and not run.paused_us


def _is_sound(batch: Batch, run: Run, standing: Standing, said: Answer) -> bool:
    """Whether nothing will refuse the answer: the completion must not fail with it."""
    if standing.count + len(said.commands) - standing.first > batch.limits.max_commands:
        return False
    if any(each.number != standing.count + 1 + index for index, each in enumerate(said.commands)):
        return False
    if any(isinstance(each.what, OpenPromise | PublishItem) for each in said.commands):
        return False
    needs_open = said.end is not None or any(isinstance(each.what, CancelStep) for each in said.commands)
    return not needs_open or len(others(batch, run)) + 1 == run.open_tasks
