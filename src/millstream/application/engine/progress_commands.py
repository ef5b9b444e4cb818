"""The command that notes how far a task is among the events of its run."""

from dataclasses import dataclass

from millstream.application.engine.commands import Command
from millstream.domain.batch import Batch
from millstream.domain.lifecycle import details
from millstream.domain.runs import EventType, TaskStatus


@dataclass(slots=True)
class NoteProgress(Command):
    """Note what a worker said of its task. `fraction`: the share done, 0 to 1."""

    tenant: str = ""
    attempt: int = 0
    fraction: float = 0.0
    message: str = ""

    def decide(self, batch: Batch) -> None:
        """Record it, where the attempt still runs: what came too late is of interest to nobody."""
        task = batch.tasks.get(self.task_ids[0])
        run = batch.runs.get(task.run_id) if task is not None else None
        if task is None or run is None or task.tenant != self.tenant:
            return
        if task.status is not TaskStatus.RUNNING or task.attempt != self.attempt:
            return
        data = details(fraction=self.fraction, message=self.message)
        batch.record(run, EventType.TASK_PROGRESS, task_id=task.id, attempt=self.attempt, data=data)
        batch.touch(run)
