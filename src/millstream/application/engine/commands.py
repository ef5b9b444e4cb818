"""The commands of the engine: what is to be decided in a batch, and which rows that needs.

A command may be decided twice (the fast path failed, the locked one follows), so deciding changes the batch only,
never the command.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from millstream.application.views.tasks import NewTask
from millstream.domain.batch import Batch, KeyClaim
from millstream.domain.cancellation import cancel_run, cancel_task, force_run, limit_run
from millstream.domain.code_ahead import begin_ahead, end_ahead
from millstream.domain.code_runs import Answer
from millstream.domain.errors import LeaseLost, MillstreamError, NotFound
from millstream.domain.graph_runs import Advance, advance
from millstream.domain.lifecycle import (
    become_ready,
    check_fence,
    create,
    expire,
    fail,
    lose,
    release,
    start_too_late,
)
from millstream.domain.promises import time_out
from millstream.domain.publication import Produce, complete, publish
from millstream.domain.runs import CHILD_QUEUE, PROMISE_QUEUE, TIMER_QUEUE, Run, RunKind, RunStatus, Task, TaskStatus
from millstream.domain.settling import child_too_late, settle
from millstream.domain.tracing import below


@dataclass(slots=True)
class Command(ABC):
    """Base of all commands.

    Attributes:
        run_id: The run it touches, "" where only its tasks name one.
        new_run: The run is made by this command and its id was never used before.
        task_ids: Tasks it touches.
        run_ids: More runs that it touches.
        open_tasks: It needs all open tasks of the run, and all buffers.
        failed_tasks: It needs the tasks of the run that a retry begins again.
        cached_tasks: Its open_tasks may be those of kept state, where all of them are there.
        gated: It needs buffers.
        registry: Tenant and version of the registry its activations were found with, or None.
        key: The idempotency key it claims, or None.
        business_key: The key of what it makes, whoever asks for it; looked at after `key`.
        size_bytes: What it weighs in a batch.
        locked: Never decided from cached state.
        payloads: (tenant, SHA-256) of payloads kept outside that its artifacts refer to.
        promise_keys: (tenant, key) of promises that it may make. Such a command is always `locked`.
        trace: The context of the call that it is decided for, see domain.tracing, or "".
    """

    run_id: str = ""
    new_run: bool = False
    task_ids: Sequence[str] = ()
    run_ids: Sequence[str] = ()
    open_tasks: bool = False
    failed_tasks: bool = False
    cached_tasks: bool = False
    gated: bool = False
    registry: tuple[str, int] | None = None
    key: KeyClaim | None = None
    business_key: KeyClaim | None = None
    size_bytes: int = 200
    locked: bool = False
    payloads: Sequence[tuple[str, bytes]] = ()
    promise_keys: Sequence[tuple[str, str]] = ()
    trace: str = ""

    def buffers(self, batch: Batch) -> Sequence[str]:
        """Ids of the buffers it needs, of a gated one; its runs and tasks are in the batch."""
        return ()

    @abstractmethod
    def decide(self, batch: Batch) -> Any:
        """Decide the command in the batch and return its result. Raises MillstreamError where it is refused."""


def found_of(batch: Batch, task_id: str) -> tuple[Run, Task]:
    """A task with its run. Raises NotFound."""
    task = batch.tasks.get(task_id)
    if task is None or task.run_id not in batch.runs:
        raise NotFound(f"there is no task {task_id}")
    return batch.runs[task.run_id], task


def task_of(batch: Batch, task_id: str, tenant: str) -> tuple[Run, Task]:
    """A task of a tenant with its run. Raises NotFound."""
    run, task = found_of(batch, task_id)
    if task.tenant != tenant:
        raise NotFound(f"there is no task {task_id}")
    return run, task


def _leased(batch: Batch, tenant: str, task_id: str, attempt: int) -> tuple[Run, Task]:
    """A task in the hands of its worker, in this very attempt. Raises LeaseLost or NotFound."""
    run, task = task_of(batch, task_id, tenant)
    check_fence(task, attempt)
    return run, task


def keep_for_replays(batch: Batch, run: Run, key: KeyClaim | None) -> None:
    """Retention leaves the run alone while a key's duplicates are answered from it."""
    if key is not None and key.expires_us > run.keep_until_us:
        run.keep_until_us = key.expires_us
        batch.touch(run)


@dataclass(slots=True)
class Publish(Command):
    """Publish an artifact; returns the run's id. `waiter`: the lane where a caller waits for the cascade."""

    tenant: str = ""
    by: str = ""
    produce: Produce = None  # type: ignore[assignment]  # always given; dataclass order wants a default
    waiter: str = ""
    rerun_of: str = ""

    def buffers(self, batch: Batch) -> Sequence[str]:
        """Those of the gates that it enters."""
        return self.produce.buffers(self.tenant, self.run_id)

    def decide(self, batch: Batch) -> str:
        """Store the artifact in its cascade, which is made where it does not exist."""
        run = batch.runs.get(self.run_id)
        if run is None:
            run = Run(self.run_id, self.tenant, RunKind.CASCADE, batch.now_us, self.by, updated_us=batch.now_us)
            run.rerun_of = self.rerun_of
            batch.add_run(run)
        elif run.tenant != self.tenant:
            # Another tenant's id must look like any that cannot be used, and tell nothing of what it is.
            raise NotFound(f"there is no cascade {self.run_id}; leave correlation_id out to begin one")
        publish(batch, run, self.produce, self.by)
        if self.waiter and self.waiter not in run.waiters:
            run.waiters = (*run.waiters, self.waiter)
        keep_for_replays(batch, run, self.key)
        return run.id


@dataclass(slots=True)
class ClaimKey(Command):
    """Claim the key of a call that stores many things: it stands for this request, whatever becomes of its items."""

    def decide(self, batch: Batch) -> None:
        """The key is not known, so it is claimed."""


@dataclass(slots=True)
class Refuse(Command):
    """Refuse what broke a rule, unless its key's first call succeeded: that answer stands, whatever the rules now."""

    error: MillstreamError = None  # type: ignore[assignment]  # always given; dataclass order wants a default

    def decide(self, batch: Batch) -> None:
        """The key is not known, so it is refused."""
        raise self.error


@dataclass(slots=True)
class CreateTask(Command):
    """Create a standalone task in a run of its own; returns the task."""

    tenant: str = ""
    by: str = ""
    new: NewTask = None  # type: ignore[assignment]  # always given; dataclass order wants a default
    task_id: str = ""
    rerun_of: str = ""

    def decide(self, batch: Batch) -> Task:
        """Make the run and its task."""
        run = Run(self.run_id, self.tenant, RunKind.SINGLE, batch.now_us, self.by, updated_us=batch.now_us)
        new = self.new
        run.labels, run.rerun_of = new.labels, self.rerun_of
        batch.add_run(run)
        limit_run(batch, run, new.run_timeout_us)
        keep_for_replays(batch, run, self.key)
        keep_for_replays(batch, run, self.business_key)
        task = Task(
            self.task_id,
            run.id,
            run.tenant,
            new.kind,
            new.queue or "default",
            batch.now_us,
            run.day,
            priority=new.priority,
            run_at_us=max(new.run_at_us, batch.now_us + new.delay_us),
            input=new.input,
            retry=new.retry,
            timeouts=new.timeouts,
            labels=new.labels,
            bounds=new.bounds,
        )
        create(batch, run, task)
        return task


@dataclass(slots=True)
class Complete(Command):
    """Complete a task with its output and artifacts.

    Attributes:
        follow: What a step's end is followed by, as far as known.
        ahead: What the code of its run, `run_id`, says to that before it is told.
    """

    tenant: str = ""
    attempt: int = 0
    output: bytes = b""
    produced: Sequence[Produce] = ()
    follow: Advance | None = None
    ahead: Answer | None = None

    def buffers(self, batch: Batch) -> Sequence[str]:
        """Those of the gates that its artifacts enter."""
        task = batch.tasks.get(self.task_ids[0])
        return [each for item in self.produced for each in item.buffers(self.tenant, task.run_id)] if task else ()

    def decide(self, batch: Batch) -> bool:
        """Whether this changed anything: a completion may come twice."""
        run, task = task_of(batch, self.task_ids[0], self.tenant)
        owed = run.due_us
        ahead = self.ahead
        if ahead is not None and not (run.id == self.run_id and begin_ahead(batch, run, task, self.attempt, ahead)):
            ahead = None
        batch.trace = below(task.trace, task.id, self.attempt)
        changed = complete(batch, run, task, self.attempt, self.output, self.produced)
        # A step may follow from several: it goes on from its run.
        batch.trace = ""
        if self.follow is not None:
            advance(batch, run, self.follow, owed)
        if ahead is not None:
            end_ahead(batch, run, ahead)
        return changed


@dataclass(slots=True)
class Fail(Command):
    """Fail the running attempt of a task."""

    tenant: str = ""
    attempt: int = 0
    code: str = "ERROR"
    message: str = ""
    retryable: bool | None = None
    retry_after_us: int = 0

    def decide(self, batch: Batch) -> None:
        """Retry or finally fail the task."""
        run, task = _leased(batch, self.tenant, self.task_ids[0], self.attempt)
        fail(batch, run, task, self.code, self.message, retryable=self.retryable, retry_after_us=self.retry_after_us)


@dataclass(slots=True)
class Release(Command):
    """Give a lease back unstarted."""

    tenant: str = ""
    attempt: int = 0

    def decide(self, batch: Batch) -> None:
        """Make the task ready for another worker."""
        release(batch, *_leased(batch, self.tenant, self.task_ids[0], self.attempt))


@dataclass(slots=True)
class Expire(Command):
    """Reclaim leases that ran out."""

    def decide(self, batch: Batch) -> None:
        """Judge each again, under its lock."""
        for task_id in self.task_ids:
            if task_id in batch.tasks:
                expire(batch, *found_of(batch, task_id))


_TOO_LATE = {PROMISE_QUEUE: time_out, CHILD_QUEUE: child_too_late}
"""What it means that a task has waited too long, for those that no worker is given."""


@dataclass(slots=True)
class StartTooLate(Command):
    """Fail pending tasks whose schedule_to_start has passed, promises among them."""

    def decide(self, batch: Batch) -> None:
        """Judge each again, under its lock."""
        for task_id in self.task_ids:
            task = batch.tasks.get(task_id)
            if task is not None:
                too_late = _TOO_LATE.get(task.queue, start_too_late)
                too_late(batch, *found_of(batch, task_id))


@dataclass(slots=True)
class Due(Command):
    """Make scheduled tasks ready whose time has come."""

    def decide(self, batch: Batch) -> None:
        """Judge each again, under its lock."""
        for task_id in self.task_ids:
            task = batch.tasks.get(task_id)
            if task is not None and task.status is TaskStatus.SCHEDULED and task.run_at_us <= batch.now_us:
                run = batch.runs[task.run_id]
                settle(batch, run, task) if task.queue == TIMER_QUEUE else become_ready(batch, run, task)
            else:
                batch.unsure = True


@dataclass(slots=True)
class CancelRun(Command):
    """Begin to cancel a run; returns it."""

    tenant: str = ""
    reason: str = ""
    by: str = ""

    def decide(self, batch: Batch) -> Run:
        """Cancel what waits, tell what runs."""
        run = batch.runs.get(self.run_id)
        if run is None or run.tenant != self.tenant:
            raise NotFound(f"there is no run {self.run_id}")
        tasks = [task for task in batch.tasks.values() if task.run_id == run.id]
        cancel_run(batch, run, tasks, self.reason, self.by)
        keep_for_replays(batch, run, self.key)
        return run


@dataclass(slots=True)
class ForceRun(Command):
    """End a run whose cancellation has waited long enough."""

    def decide(self, batch: Batch) -> None:
        """Cancel all that is open."""
        run = batch.runs.get(self.run_id)
        if run is not None:
            force_run(batch, run, [task for task in batch.tasks.values() if task.run_id == run.id])


@dataclass(slots=True)
class CancelTask(Command):
    """Begin to cancel a task; returns it."""

    tenant: str = ""
    reason: str = ""
    by: str = ""

    def decide(self, batch: Batch) -> Task:
        """Cancel it if it waits, tell its worker if it runs."""
        run, task = task_of(batch, self.task_ids[0], self.tenant)
        cancel_task(batch, run, task, self.reason, self.by)
        keep_for_replays(batch, run, self.key)
        return task


@dataclass(slots=True)
class AttachWaiter(Command):
    """Wait for the end of a run made elsewhere; returns it, ended or not, as it stands here."""

    tenant: str = ""
    waiter: str = ""

    def decide(self, batch: Batch) -> Run:
        """Note the lane, so that the run's end wakes it."""
        run = batch.runs.get(self.run_id)
        if run is None or run.tenant != self.tenant:
            raise NotFound(f"there is no run {self.run_id}")
        if run.status in (RunStatus.RUNNING, RunStatus.CANCELLING) and self.waiter not in run.waiters:
            run.waiters = (*run.waiters, self.waiter)
            batch.touch(run)
        # A copy: what later batches do to the run is not known to be stored.
        return copy(run)


@dataclass(slots=True)
class Adopt(Command):
    """Take over what a worker still holds after a reconnect; returns the tasks that are still its own."""

    tenant: str = ""
    worker_id: str = ""
    held: dict[str, int] = field(default_factory=dict)

    def decide(self, batch: Batch) -> dict[str, Task]:
        """Own what it holds; the rest of its leases goes to others."""
        kept: dict[str, Task] = {}
        for task_id in self.task_ids:
            try:
                run, task = found_of(batch, task_id)
                if task.worker_id != self.worker_id or task.tenant != self.tenant:
                    continue
                check_fence(task, self.held.get(task_id, task.attempt))
            except (NotFound, LeaseLost):
                continue
            if task_id in self.held:
                task.owner, task.delivered = batch.lane, True
                task.lease_until_us = min(
                    batch.now_us + batch.limits.lease_us, task.deadline_us or 1 << 62, task.beat_by_us or 1 << 62
                )
                batch.touch(run, task)
                kept[task_id] = task
            else:
                lose(batch, run, task)
        return kept
