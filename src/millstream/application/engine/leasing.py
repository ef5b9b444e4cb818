"""The command that leases waiting tasks: those that wait for a worker, and those that wait in a line."""

from dataclasses import dataclass

from millstream.application.engine.commands import Command
from millstream.domain.batch import Batch, Claim
from millstream.domain.bounds import LineKey
from millstream.domain.lifecycle import hold, lacking, lease, line_up, promote
from millstream.domain.runs import Run, RunKind, RunStatus, Task, TaskStatus


def _takes_leases(run: Run) -> bool:
    """A code run cleans up while it is being cancelled, and finishes what it began where its code cannot go on."""
    return run.status is RunStatus.RUNNING or run.kind is RunKind.CODE


_WAITING = (TaskStatus.PENDING, TaskStatus.IN_LINE)


@dataclass(slots=True)
class LeaseReady(Command):
    """Offer pending tasks to connected workers; returns those that still wait, and the gates held by another server.

    Attributes:
        gates: (tenant, kind) of limited agents among the tasks: their rows are locked and their running tasks
            counted first, so that no two servers start one too many.
        lines: Those of the tasks, likewise.
    """

    gates: tuple[tuple[str, str], ...] = ()
    lines: tuple[LineKey, ...] = ()

    def decide(self, batch: Batch) -> tuple[list[str], set[tuple[str, str]]]:
        """Offer each task that is still pending, in the order given."""
        left: list[str] = []
        held = set(self.gates) - batch.room.keys()
        for task_id in self.task_ids:
            task = batch.tasks.get(task_id)
            run = batch.runs.get(task.run_id) if task else None
            if task is None or task.status not in _WAITING or (run and not _takes_leases(run)):
                batch.unsure = True
                continue
            if run is not None and run.paused_us:
                # A server of the version before made it ready.
                hold(batch, run, task)
                continue
            if run is None or not self._place(batch, run, task):
                # Another server holds it just now, or nobody here can take it.
                left.append(task_id)
        return left, held

    def _place(self, batch: Batch, run: Run, task: Task) -> bool:
        """Put the task where it belongs: into a worker's hands, or its line; False where it stays where it is."""
        line = lacking(batch, task)
        if line is None:
            return False
        if line:
            line_up(batch, run, task, line)
            return True
        gate = (task.tenant, task.kind)
        claim: Claim | None = None
        if not task.limited or batch.room.get(gate, 0) > 0:
            claim = batch.assign(task)
        if claim is not None:
            if task.limited:
                batch.room[gate] -= 1
            lease(batch, run, task, claim)
        elif task.status is TaskStatus.IN_LINE:
            promote(batch, run, task)
        else:
            return False
        return True
