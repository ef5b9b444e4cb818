"""How far a run is."""

import pytest

from millstream.domain.progress import TASKS_MOST, is_worth_asking, share_done
from millstream.domain.runs import Run, RunKind, RunStatus


def run(kind: RunKind = RunKind.CASCADE, **fields: object) -> Run:
    return Run("r", "t", kind, 1, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "share"),
    [
        (run(), 0.0),
        (run(status=RunStatus.COMPLETED, finished_us=2), 1.0),
        (run(task_count=4, open_tasks=2, running_share=0.5), 2.5 / 4),
        (run(task_count=4, open_tasks=0, finished_us=2, status=RunStatus.FAILED), 1.0),
        # A code run's own task counts neither as one that is to be done nor as one that is.
        (run(RunKind.CODE, task_count=3, open_tasks=2), 0.5),
        (run(RunKind.CODE, task_count=3, open_tasks=0, finished_us=2, status=RunStatus.FAILED), 1.0),
        (run(RunKind.CODE, task_count=1, open_tasks=1), 0.0),
        # Steps: done, skipped, noted as failed, open with a half, waiting; and one that only undoes.
        (run(RunKind.GRAPH, plan="csFo-r", running_share=0.5), 3.5 / 5),
        # A map is as far as its items.
        (run(RunKind.GRAPH, plan="co|1,10,6,4,1"), 1.4 / 2),
        (run(RunKind.GRAPH, plan="o", running_share=2.0), 1.0),
    ],
)
def test_the_share_is_that_of_tasks_or_of_steps(given: Run, share: float) -> None:
    assert share_done(given) == pytest.approx(share)


def test_shares_of_tasks_are_asked_for_where_they_matter() -> None:
    assert is_worth_asking(run(task_count=1, open_tasks=1))
    assert not is_worth_asking(run(task_count=1, open_tasks=0))
    assert not is_worth_asking(run(task_count=TASKS_MOST + 1, open_tasks=1))
