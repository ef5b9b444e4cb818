"""Code-first runs: begun, told of signals, answered by their code, ended, begun anew, retried.

Every function checks before it changes anything, so that a command which is refused leaves no trace in the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, assert_never

from millstream.domain.batch import Batch
from millstream.domain.cancellation import cancel_task, limit_run
from millstream.domain.code import (
    ABANDONED,
    CLOSED,
    DISOWNED,
    LEAD,
    LEAD_RETRY,
    LEAD_TIMEOUTS,
    CancelStep,
    CommandType,
    End,
    EndType,
    Entry,
    EntryType,
    Given,
    Note,
    OpenPromise,
    PublishItem,
    Standing,
    StartChild,
    StartTask,
    StartTimer,
    lead_kind,
)
from millstream.domain.code_lead import note
from millstream.domain.errors import Conflict, Unavailable, ValidationFailed
from millstream.domain.lifecycle import cancel, check_fence, create, details, end_if_idle, end_run, make_ready, wake
from millstream.domain.promises import DEFAULT_TIMEOUT_US, NewPromise, create_promise, promise_task
from millstream.domain.publication import Produce, cascade_of
from millstream.domain.retry import RetryPolicy, Timeouts
from millstream.domain.runs import (
    CHILD_QUEUE,
    NEVER_US,
    PROMISE_QUEUE,
    TIMER_QUEUE,
    EventType,
    PayloadKind,
    Run,
    RunKind,
    RunStatus,
    Task,
    TaskStatus,
)
from millstream.domain.settling import settle_failed
from millstream.domain.tracing import below

_NO_RETRY = RetryPolicy(max_attempts=1)
_NO_TIMEOUTS = Timeouts(start_to_close_us=0)


@dataclass(frozen=True, slots=True)
class NewRun:
    """A code-first run to begin.

    Attributes:
        input: google.protobuf.Value in wire form.
        labels: JSON object as text.
        timeout_us: How long it may take; 0: as long as it wants.
        rerun_of: The run that it repeats, or "".
    """

    workflow: str
    version: str
    input: bytes = b""
    queue: str = "default"
    labels: str = ""
    parent_id: str = ""
    parent_task: str = ""
    priority: int = 0
    timeout_us: int = 0
    rerun_of: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a run's code says to an activation.

    Attributes:
        base: The last event that it has looked at.
        produced: What PublishItem commands refer to.
        cascades: Ids of the runs in which that is published.
    """

    attempt: int
    base: int
    commands: Sequence[Given] = ()
    end: End | None = None
    produced: Sequence[Produce] = ()
    cascades: Sequence[str] = ()


def begin(batch: Batch, run_id: str, tenant: str, by: str, new: NewRun) -> Run:
    """Begin a run; a worker with its version may have it in this very transaction."""
    run = Run(run_id, tenant, RunKind.CODE, batch.now_us, by, updated_us=batch.now_us, labels=new.labels)
    run.workflow, run.workflow_version = new.workflow, new.version
    run.parent_id, run.parent_task = new.parent_id, new.parent_task
    run.priority, run.rerun_of = new.priority, new.rerun_of
    run.plan = Standing().plan
    batch.add_run(run)
    limit_run(batch, run, new.timeout_us)
    batch.keep(run, PayloadKind.INPUT, new.input)
    note(batch, run, Entry(run.last_seq, EntryType.STARTED, batch.now_us, value=new.input))
    lead = Task(
        run.id, run.id, tenant, lead_kind(new.workflow, new.version), new.queue or "default", batch.now_us, run.day,
        priority=new.priority, retry=LEAD_RETRY, timeouts=LEAD_TIMEOUTS,
    )  # fmt: skip
    lead.trace = below(run.trace, run.id)
    run.open_tasks += 1
    run.task_count += 1
    batch.tasks[lead.id] = lead
    batch.new_tasks.add(lead.id)
    make_ready(batch, run, lead)
    return run


def signal(batch: Batch, run: Run, name: str, value: bytes) -> int:
    """Have the code told of a signal; the number of its event. Raises Conflict where nobody would take it."""
    if run.kind is not RunKind.CODE:
        raise Conflict(f"run {run.id} takes no signals: it is no code-first run")
    if run.status not in (RunStatus.RUNNING, RunStatus.CANCELLING):
        raise Conflict(f"run {run.id} has ended as {run.status.name}")
    seq = _signalled(batch, run, name, value)
    wake(batch, run)
    return seq


def _signalled(batch: Batch, run: Run, name: str, value: bytes) -> int:
    seq = batch.record(run, EventType.SIGNALLED, data=details(name=name))
    _keep(batch, run, seq, name, value)
    note(batch, run, Entry(seq, EntryType.SIGNALLED, batch.now_us, name=name, value=value))
    return seq


def _keep(batch: Batch, run: Run, seq: int, name: str, value: bytes) -> None:
    """Keep the value that goes with an event."""
    batch.journal.append((run.day, run.id, -seq, seq, int(CommandType.KEPT), name, value, "", ""))


def answer(batch: Batch, run: Run, lead: Task, said: Answer) -> bool:
    """Take what the code says: its commands whatever has happened meanwhile, its end only where nothing has. False
    where this very answer was taken before.

    Raises LeaseLost, ValidationFailed, and Unavailable where the run's open tasks are needed and not loaded.
    """
    standing = Standing.of(run.plan)
    if standing.answered == said.attempt and said.attempt:
        return False
    check_fence(lead, said.attempt)
    _check_numbers(standing, said)
    most, end = batch.limits.max_commands, said.end
    if standing.count + len(said.commands) - standing.first > most:
        text = f"are more than {most:,} since the run began; let it continue as new before (ctx.continue_as_new)"
        raise ValidationFailed.of("commands", text, "TOO_MANY")
    over = end is not None and standing.last <= said.base
    cancels = any(isinstance(each.what, CancelStep) for each in said.commands)
    if (over or cancels) and len(others(batch, run)) + 1 != run.open_tasks:
        raise Unavailable("the run's open tasks are not at hand; try again")
    standing.seen, standing.answered = said.base, said.attempt
    if said.commands:
        standing.count += len(said.commands)
        standing.acted_us, standing.acted = batch.now_us, said.commands[-1].after
    run.plan = standing.plan
    _put_to_sleep(batch, run, lead)
    for given in said.commands:
        _do(batch, run, lead, given, said)
    # A command may have failed at once.
    if Standing.of(run.plan).last > said.base:
        wake(batch, run)
    elif over and end is not None:
        _close(batch, run, lead, end)
    return True


def _check_numbers(standing: Standing, said: Answer) -> None:
    if said.base > standing.last or said.base < standing.seen:
        raise ValidationFailed.of("base_sequence", f"must be that of the activation, not {said.base}")
    for index, given in enumerate(said.commands):
        expected = standing.count + 1 + index
        if given.number != expected:
            raise ValidationFailed.of(f"commands[{index}].number", f"must be {expected}, not {given.number}")
        if not standing.seen < given.after <= said.base:
            text = f"must be an event of this activation, {standing.seen + 1} to {said.base}, not {given.after}"
            raise ValidationFailed.of(f"commands[{index}].after_sequence", text)


def others(batch: Batch, run: Run) -> list[Task]:
    """A run's open tasks that are loaded, but for its own."""
    return [task for task in batch.tasks.values() if task.run_id == run.id and task.open and not task.leads]


def _put_to_sleep(batch: Batch, run: Run, lead: Task) -> None:
    """Until something happens. It keeps its worker's id: that one has a copy of the run."""
    lead.status, lead.run_at_us, lead.held_us = TaskStatus.SCHEDULED, NEVER_US, 0
    lead.tries, lead.error_code, lead.error_message = 0, "", ""
    lead.owner, lead.delivered = "", False
    lead.lease_until_us = lead.deadline_us = lead.beat_by_us = lead.start_by_us = 0
    batch.touch(run, lead)


def _do(batch: Batch, run: Run, lead: Task, given: Given, said: Answer) -> None:
    """Carry out one command, and put it into the journal."""
    kind, name, value, code, message = CommandType.TASK, "", b"", "", ""
    match given.what:
        case StartTask() as wanted:
            name = wanted.kind
            create(
                batch, run, _step(
                    batch, run, given, wanted.kind, wanted.queue or lead.queue,
                    priority=wanted.priority or run.priority, run_at_us=batch.now_us + wanted.delay_us,
                    input=wanted.input, retry=wanted.retry, timeouts=wanted.timeouts, labels=wanted.labels,
                ),
            )  # fmt: skip
        case StartTimer() as wanted:
            kind = CommandType.TIMER
            due_us = batch.now_us + max(wanted.delay_us, 1)
            create(batch, run, _step(batch, run, given, "sleep", TIMER_QUEUE, run_at_us=due_us))
        case StartChild() as wanted:
            kind, name = CommandType.CHILD, wanted.workflow
            _start_child(batch, run, given, wanted)
        case OpenPromise() as wanted:
            kind, name = CommandType.PROMISE, wanted.name
            _open_promise(batch, run, given, wanted)
        case PublishItem() as wanted:
            kind, name = CommandType.PUBLISH, wanted.type
            cascade_of(batch, run, said.cascades[wanted.place], said.produced[wanted.place])
        case Note() as wanted:
            kind, name, value, code, message = wanted.type, wanted.name, wanted.value, wanted.code, wanted.message
        case CancelStep() as wanted:
            kind, name = CommandType.CANCEL, str(wanted.step)
            _cancel_step(batch, run, wanted.step)
        case _:
            assert_never(given.what)
    batch.journal.append((run.day, run.id, given.number, given.after, int(kind), name, value, code, message))


def _step(batch: Batch, run: Run, given: Given, kind: str, queue: str, **fields: Any) -> Task:
    """A task that a command makes; its step is the command's number."""
    settled: dict[str, Any] = {"retry": _NO_RETRY, "timeouts": _NO_TIMEOUTS, "run_at_us": batch.now_us} | fields
    return Task(given.task_id, run.id, run.tenant, kind, queue, batch.now_us, run.day, step=given.number, **settled)


def _open_promise(batch: Batch, run: Run, given: Given, wanted: OpenPromise) -> None:
    """Open a promise; where another has its key, it fails at once, which the code is told."""
    taken = batch.open_promises.get((run.tenant, wanted.key)) if wanted.key else None
    new = NewPromise(wanted.name, "" if taken else wanted.key, timeout_us=wanted.timeout_us or DEFAULT_TIMEOUT_US)
    task = promise_task(run, given.task_id, new, batch.now_us)
    task.step = given.number
    create_promise(batch, run, task)
    if taken:
        settle_failed(batch, run, task, "CONFLICT", f"the key {wanted.key!r} is that of promise {taken}, which is open")


def _start_child(batch: Batch, run: Run, given: Given, wanted: StartChild) -> None:
    """Have a child run begun, by whoever looks at its parent."""
    kind = f"{LEAD}{wanted.workflow}" + (f"@{wanted.version}" if wanted.version else "")
    item = ABANDONED if wanted.abandon else 0
    create(
        batch, run, _step(batch, run, given, kind, CHILD_QUEUE, input=wanted.input, labels=wanted.labels, item=item)
    )  # fmt: skip


def _cancel_step(batch: Batch, run: Run, step: int) -> None:
    for task in others(batch, run):
        if task.step == step and not task.cancelling:
            cancel_task(batch, run, task, DISOWNED, "workflow")
            if task.queue == CHILD_QUEUE:
                # Whoever looks at the run cancels the child's.
                batch.attend(run)


def _close(batch: Batch, run: Run, lead: Task, end: End) -> None:
    """End the run as its code did, and what it left open with it; or begin it anew."""
    for task in others(batch, run):
        _end_now(batch, run, task)
    if end.type is EndType.CONTINUED and run.status is RunStatus.RUNNING:
        _begin_anew(batch, run, lead, end)
        return
    lead.status, lead.finished_us = TaskStatus.COMPLETED, batch.now_us
    run.open_tasks -= 1
    batch.touch(run, lead)
    if run.status is RunStatus.CANCELLING:
        end_if_idle(batch, run)
    elif end.type is EndType.FAILED:
        run.error_code, run.error_message = end.code, end.message
        end_run(batch, run, RunStatus.FAILED)
    elif end.type is EndType.CANCELLED:
        run.error_code, run.error_message = "CANCELLED", end.message or "cancelled by its code"
        end_run(batch, run, RunStatus.CANCELLED)
    else:
        batch.keep(run, PayloadKind.OUTPUT, end.value)
        end_run(batch, run, RunStatus.COMPLETED)


def _end_now(batch: Batch, run: Run, task: Task) -> None:
    """End what the code left open; a worker that has it is told that it lost it."""
    task.error_code, task.error_message = "CANCELLED", CLOSED
    cancel(batch, run, task)
    if task.queue == CHILD_QUEUE:
        batch.attend(run)


def _begin_anew(batch: Batch, run: Run, lead: Task, end: End) -> None:
    before = Standing.of(run.plan)
    count = before.count
    seq = batch.record(run, EventType.CONTINUED_AS_NEW)
    _keep(batch, run, seq, "", end.value)
    run.plan = Standing(seq, count, seq - 1, seq, count, before.answered).plan
    note(batch, run, Entry(seq, EntryType.STARTED, batch.now_us, value=end.value))
    for name, value in end.signals:
        _signalled(batch, run, name, value)
    lead.run_at_us, lead.worker_id = batch.now_us, ""
    make_ready(batch, run, lead)


def check_retry(from_step: str) -> None:
    """Raise ValidationFailed where a run cannot be retried like this."""
    if from_step:
        raise ValidationFailed.of("from_step", "a run of a workflow written as code has no named steps; leave it out")


def retry(run: Run, tasks: Sequence[Task]) -> list[Task]:
    """Run the code again, from its whole history; the tasks to begin again: its own, those that it left open when it
    failed, and those whose failure came after all that it did, so that it never acted upon them.

    Args:
        tasks: Those of the run that failed, or were ended with it, and its own.
    """
    standing = Standing.of(run.plan)
    # From the last that it did on, nothing holds it to what it did before: mended code may go another way there.
    standing.answered, standing.seen = 0, max(standing.acted, standing.since) - 1
    run.plan = standing.plan
    again = []
    for task in tasks:
        unheeded = task.status is TaskStatus.FAILED and task.step and task.finished_us > standing.acted_us
        closed = task.status is TaskStatus.CANCELLED and task.error_message == CLOSED
        if task.queue != PROMISE_QUEUE and (task.leads or closed or unheeded):
            again.append(task)
    # Its own comes last, so that it is told of nothing that is taken back.
    return sorted(again, key=lambda task: task.leads)
