"""The commands of dead letters."""

from dataclasses import dataclass

from millstream.application.engine.commands import Command, keep_for_replays, task_of
from millstream.domain.batch import Batch
from millstream.domain.retrying import drop_task, retry_task
from millstream.domain.runs import Task


@dataclass(slots=True)
class RetryTask(Command):
    """Try a finally failed task again; returns it."""

    tenant: str = ""
    by: str = ""
    note: str = ""

    def decide(self, batch: Batch) -> Task:
        """Make it ready, and its run go on."""
        run, task = task_of(batch, self.task_ids[0], self.tenant)
        retry_task(batch, run, task, self.by, self.note)
        keep_for_replays(batch, run, self.key)
        return task


@dataclass(slots=True)
class DropTask(Command):
    """Take a finally failed task out of the dead letters; returns it."""

    tenant: str = ""
    by: str = ""
    note: str = ""

    def decide(self, batch: Batch) -> Task:
        """Mark it."""
        run, task = task_of(batch, self.task_ids[0], self.tenant)
        drop_task(batch, run, task, self.by, self.note)
        keep_for_replays(batch, run, self.key)
        return task
