"""The commands of what operators do to runs, and of a run's time."""

from abc import abstractmethod
from dataclasses import dataclass

from millstream.application.engine.commands import Command, keep_for_replays
from millstream.domain.batch import Batch
from millstream.domain.cancellation import time_out_run
from millstream.domain.errors import NotFound
from millstream.domain.pausing import pause_run, resume_run
from millstream.domain.retrying import retry_run
from millstream.domain.runs import Run, Task
from millstream.domain.workflows import Definition


@dataclass(slots=True)
class _OnRun(Command):
    """Something that somebody does to a run; returns it."""

    tenant: str = ""
    by: str = ""

    def decide(self, batch: Batch) -> Run:
        """Do it, if the run is the tenant's. Raises NotFound, Conflict."""
        run = batch.runs.get(self.run_id)
        if run is None or run.tenant != self.tenant:
            raise NotFound(f"there is no run {self.run_id}")
        self.act(batch, run, tasks_of(batch, run))
        keep_for_replays(batch, run, self.key)
        return run

    @abstractmethod
    def act(self, batch: Batch, run: Run, tasks: list[Task]) -> None:
        """What is done."""


@dataclass(slots=True)
class RetryRun(_OnRun):
    """Let a failed run go on with what failed in it. `definition`: what a graph run follows."""

    note: str = ""
    from_step: str = ""
    definition: Definition | None = None

    def act(self, batch: Batch, run: Run, tasks: list[Task]) -> None:
        """Begin its failed tasks again."""
        retry_run(batch, run, tasks, self.by, self.note, self.from_step, self.definition)


@dataclass(slots=True)
class PauseRun(_OnRun):
    """Let nothing new of a run start."""

    reason: str = ""

    def act(self, batch: Batch, run: Run, tasks: list[Task]) -> None:
        """Hold what waits."""
        pause_run(batch, run, tasks, self.reason, self.by)


@dataclass(slots=True)
class ResumeRun(_OnRun):
    """Let a paused run go on."""

    def act(self, batch: Batch, run: Run, tasks: list[Task]) -> None:
        """Make ready what was held."""
        resume_run(batch, run, tasks, self.by)


@dataclass(slots=True)
class TimeOutRun(Command):
    """End a run whose time is over."""

    def decide(self, batch: Batch) -> None:
        """Judge it again, under its lock."""
        run = batch.runs.get(self.run_id)
        if run is not None:
            time_out_run(batch, run, tasks_of(batch, run))


def tasks_of(batch: Batch, run: Run) -> list[Task]:
    """Tasks of the run that are loaded."""
    return [task for task in batch.tasks.values() if task.run_id == run.id]
