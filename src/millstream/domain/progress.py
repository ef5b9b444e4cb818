"""How far a run is, by its counters and what the workers of its running tasks reported."""

from typing import Final

from millstream.domain.graph import share_of
from millstream.domain.runs import Run, RunKind, RunStatus

TASKS_MOST: Final = 1000
"""Of a run with more tasks those that run count when they have ended: each is less than a thousandth."""


def share_done(run: Run) -> float:
    """The share of the run's work that is done, 0 to 1.

    Of a workflow: steps that have ended, of a map the share of its items, and what is reported of tasks that run, over
    all steps but those that only undo. Else: tasks that have ended, and what is reported of those that run, over all
    tasks so far. 1 where the run has completed.
    """
    if run.status is RunStatus.COMPLETED:
        return 1.0
    if run.kind is RunKind.GRAPH:
        done, total = share_of(run.plan)
    else:
        # A code run's own task, which runs its code, is none that it made.
        own = int(run.kind is RunKind.CODE)
        total = run.task_count - own
        done = float(run.task_count - run.open_tasks - (own if run.finished_us else 0))
    return max(0.0, min(1.0, (done + run.running_share) / total)) if total > 0 else 0.0


def is_worth_asking(run: Run) -> bool:
    """Whether tasks of the run may run whose shares matter."""
    return run.open_tasks > 0 and run.finished_us == 0 and run.task_count <= TASKS_MOST
