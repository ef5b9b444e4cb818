"""The own task of a code-first run: what happens is noted for the code, and wakes it."""

from millstream.domain.batch import Batch
from millstream.domain.code import CLOSED, DISOWNED, Activation, Entry, EntryType, Standing
from millstream.domain.runs import NEVER_US, Run, RunKind, Task, TaskStatus


def note(batch: Batch, run: Run, entry: Entry) -> None:
    """Have the code told of an event that was just recorded."""
    standing = Standing.of(run.plan)
    standing.last = entry.seq
    run.plan = standing.plan
    batch.entries.setdefault(run.id, []).append(entry)
    batch.touch(run)


def note_cancelling(batch: Batch, run: Run, seq: int, reason: str) -> None:
    """Have the code of a code run told that the run is being cancelled, or that its time is over."""
    if run.kind is RunKind.CODE:
        note(batch, run, Entry(seq, EntryType.CANCELLING, batch.now_us, message=reason))


def sleeping(batch: Batch, run: Run) -> Task | None:
    """The run's own task, where it sleeps and has to be woken. Where it runs, its answer finds what it has not seen."""
    lead = batch.tasks.get(run.id)
    if lead is None:
        # Not among what was loaded: another way loads it, or it has ended and was dropped.
        batch.unsure = True
        return None
    if lead.status is not TaskStatus.SCHEDULED or lead.run_at_us != NEVER_US:
        return None
    if run.paused_us:
        # It is woken when the run is resumed.
        lead.held_us = batch.now_us
        batch.touch(run, lead)
        return None
    lead.run_at_us = batch.now_us
    return lead


def note_end(batch: Batch, run: Run, task: Task, seq: int) -> bool:
    """Have the code told of the end of something that it began; False where it gave that up itself."""
    if task.status is TaskStatus.COMPLETED:
        latest = batch.attempts[-1] if batch.attempts else None
        output = latest.output if latest is not None and latest.task_id == task.id else b""
        note(batch, run, Entry(seq, EntryType.COMPLETED, batch.now_us, task.step, value=output))
    elif task.error_message not in (DISOWNED, CLOSED):
        code = task.error_code or task.status.name
        note(batch, run, Entry(seq, EntryType.FAILED, batch.now_us, task.step, code=code, message=task.error_message))
    else:
        return False
    return True


def activation(run: Run, lead: Task, worker_id: str) -> Activation:
    """What a worker is told that takes the run's own task, as it stands before the lease."""
    standing = Standing.of(run.plan)
    warm = 0 < standing.answered == lead.attempt and worker_id == lead.worker_id
    return Activation(
        run.id, run.day, run.workflow, run.workflow_version, standing.since, standing.first, standing.seen,
        standing.last, standing.seen if warm else standing.since - 1, standing.count, standing.answered if warm else 0,
    )  # fmt: skip
