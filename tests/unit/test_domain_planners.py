"""The planners: what follows from what happened, by counters alone."""

import pytest

from millstream.domain.agents import Activation
from millstream.domain.batch import Limits
from millstream.domain.planners import EndRun, Refuse, StartTask, plan_idle, plan_published
from millstream.domain.retry import DEFAULT_RETRY, DEFAULT_TIMEOUTS
from millstream.domain.runs import Run, RunKind, RunStatus

LIMITS = Limits(max_depth=5, max_tasks=10)


def run(kind: RunKind = RunKind.CASCADE, **fields: object) -> Run:
    """A run with the counters that matter."""
    return Run("r", "t", kind, 0, **fields)  # type: ignore[arg-type]


def activations(*names: str) -> list[Activation]:
    """Activations of agents."""
    return [Activation(name, f"agent:{name}", "default", 0, DEFAULT_RETRY, DEFAULT_TIMEOUTS) for name in names]


def test_each_activated_agent_gets_a_task() -> None:
    """Architecture: one task an activated agent, at the artifact's depth."""
    plan = plan_published(run(), "a", 3, activations("x", "y"), LIMITS)
    assert plan == [StartTask(activation, "a", 3) for activation in activations("x", "y")]


def test_nothing_is_started_without_activations() -> None:
    """FL-7."""
    assert plan_published(run(), "a", 1, [], LIMITS) == []


@pytest.mark.parametrize(("depth", "refused"), [(5, False), (6, True), (1000, True)])
def test_depth_is_bounded(depth: int, refused: bool) -> None:
    """Rule 6: at the bound it goes on, beyond it does not, and says which bound."""
    (action,) = plan_published(run(), "a", depth, activations("x"), LIMITS)
    assert isinstance(action, Refuse) is refused
    if isinstance(action, Refuse):
        assert action == Refuse("x", "a", "the cascade is deeper than 5 steps")


@pytest.mark.parametrize(("made", "started"), [(0, 3), (8, 2), (9, 1), (10, 0), (500, 0)])
def test_the_number_of_tasks_is_bounded(made: int, started: int) -> None:
    """Rule 6: counting those that this very plan starts."""
    plan = plan_published(run(task_count=made), "a", 1, activations("x", "y", "z"), LIMITS)
    assert [isinstance(action, StartTask) for action in plan] == [True] * started + [False] * (3 - started)


@pytest.mark.parametrize("kind", RunKind)
@pytest.mark.parametrize("status", RunStatus)
@pytest.mark.parametrize("open_tasks", [0, 1])
@pytest.mark.parametrize("failed_tasks", [0, 2])
@pytest.mark.parametrize("error_code", ["", "CASCADE_LIMIT", "CANCELLED"])
def test_a_run_ends_once_nothing_in_it_is_open(
    kind: RunKind, status: RunStatus, open_tasks: int, failed_tasks: int, error_code: str
) -> None:
    """Requirements: a cascade with a finally failed task ends FAILED, a cancelled run CANCELLED, an ended one never."""
    end = plan_idle(run(kind, status=status, open_tasks=open_tasks, failed_tasks=failed_tasks, error_code=error_code))
    if open_tasks or status not in (RunStatus.RUNNING, RunStatus.CANCELLING):
        assert end is None
    elif status is RunStatus.CANCELLING:
        assert end == EndRun(RunStatus.CANCELLED)
    elif kind in (RunKind.GRAPH, RunKind.CODE):
        assert end is None  # its planner says when
    elif failed_tasks or (kind is RunKind.CASCADE and error_code == "CASCADE_LIMIT"):
        assert end == EndRun(RunStatus.FAILED)
    elif kind is RunKind.SINGLE and error_code == "CANCELLED":
        assert end == EndRun(RunStatus.CANCELLED)
    else:
        assert end == EndRun(RunStatus.COMPLETED)
