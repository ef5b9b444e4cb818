"""The commands of promises."""

from dataclasses import dataclass

from millstream.application.engine.commands import Command, found_of, keep_for_replays
from millstream.domain.batch import Batch
from millstream.domain.errors import NotFound
from millstream.domain.promises import (
    NewPromise,
    Rejection,
    Resolution,
    check_key,
    create_promise,
    promise_task,
    settle_promise,
)
from millstream.domain.runs import PROMISE_QUEUE, Run, RunKind, Task

WAITERS_MOST = 64
"""Servers that are woken when a promise is settled. One that many more were started since finds it by its poll."""


@dataclass(slots=True)
class CreatePromise(Command):
    """Create a promise in a run of its own; returns its task."""

    tenant: str = ""
    by: str = ""
    new: NewPromise = None  # type: ignore[assignment]  # always given; dataclass order wants a default
    task_id: str = ""

    def decide(self, batch: Batch) -> Task:
        """Make the run and its promise."""
        check_key(batch, self.tenant, self.new.key)
        run = Run(self.run_id, self.tenant, RunKind.SINGLE, batch.now_us, self.by, updated_us=batch.now_us)
        run.labels = self.new.labels
        batch.add_run(run)
        keep_for_replays(batch, run, self.key)
        task = promise_task(run, self.task_id, self.new, batch.now_us)
        create_promise(batch, run, task)
        return task


@dataclass(slots=True)
class SettlePromise(Command):
    """Resolve or reject a promise; returns its task."""

    tenant: str = ""
    by: str = ""
    outcome: Resolution | Rejection = None  # type: ignore[assignment]  # always given; dataclass order wants a default

    def decide(self, batch: Batch) -> Task:
        """Settle it, unless it was."""
        run, task = _promise(batch, self.tenant, self.task_ids[0])
        settle_promise(batch, run, task, self.outcome, self.by)
        keep_for_replays(batch, run, self.key)
        return task


@dataclass(slots=True)
class AwaitPromise(Command):
    """Wait for the end of a promise; returns its task, ended or not."""

    tenant: str = ""
    waiter: str = ""

    def decide(self, batch: Batch) -> Task:
        """Note the lane on the run, so that the promise's end wakes it."""
        run, task = _promise(batch, self.tenant, self.task_ids[0])
        if task.open and self.waiter not in run.waiters:
            run.waiters = (*run.waiters, self.waiter)[-WAITERS_MOST:]
            batch.touch(run)
        return task


def _promise(batch: Batch, tenant: str, task_id: str) -> tuple[Run, Task]:
    """A promise with its run. Raises NotFound."""
    run, task = found_of(batch, task_id)
    if task.tenant != tenant or task.queue != PROMISE_QUEUE:
        raise NotFound(f"there is no promise {task_id}")
    return run, task
