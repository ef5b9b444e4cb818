"""Cancelling a run, with tasks in every state among what the batch has loaded."""

from millstream.domain.batch import Batch, Limits
from millstream.domain.cancellation import cancel_run
from millstream.domain.runs import Run, RunKind, RunStatus, Task, TaskStatus

NOW_US = 1_000_000


def test_tasks_that_have_ended_stay_as_they_are() -> None:
    """Rule 14: a batch may hold one that just completed, for another command's sake."""
    batch = Batch(NOW_US, "lane", Limits(), lambda task: None, lambda task: None, lambda: 0.5)
    run = Run("r", "acme", RunKind.CASCADE, 0, open_tasks=2, task_count=3)
    ended, waits, runs = (
        Task(name, "r", "acme", "agent:a", "default", 0, 0, status=status, attempt=1)
        for name, status in (("e", TaskStatus.COMPLETED), ("w", TaskStatus.PENDING), ("r", TaskStatus.RUNNING))
    )
    cancel_run(batch, run, [ended, waits, runs], "enough", "root")
    assert [task.status.name for task in (ended, waits, runs)] == ["COMPLETED", "CANCELLED", "RUNNING"]
    assert (run.status, run.open_tasks, runs.cancelling) == (RunStatus.CANCELLING, 1, True)
