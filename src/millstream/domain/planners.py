"""The planners: what follows from what happened, by the kind of run.

A planner sees counters and the thing that happened, never the whole run, so that deciding costs the same in a run
of ten tasks and of ten thousand.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from millstream.domain.agents import Activation
from millstream.domain.batch import Limits
from millstream.domain.runs import Run, RunKind, RunStatus


@dataclass(frozen=True, slots=True)
class StartTask:
    """Make a task for an activated agent."""

    activation: Activation
    artifact_id: str
    depth: int


@dataclass(frozen=True, slots=True)
class EnterGate:
    """Let the artifact wait for others."""

    activation: Activation
    artifact_id: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """A bound was reached: say so instead of making the task."""

    agent: str
    artifact_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class EndRun:
    """The run is over."""

    status: RunStatus


LIMIT_CODE = "CASCADE_LIMIT"
RUN_TIMEOUT = "RUN_TIMEOUT"
"""Error code of a run that took too long, and of its tasks that were open then."""


def plan_published(
    run: Run, artifact_id: str, depth: int, activations: Sequence[Activation], limits: Limits
) -> list[StartTask | EnterGate | Refuse]:
    """What an artifact at this depth (1 for a client's) sets off."""
    actions: list[StartTask | EnterGate | Refuse] = []
    made = run.task_count
    for activation in activations:
        if depth > limits.max_depth:
            reason = f"the cascade is deeper than {limits.max_depth} steps"
            actions.append(Refuse(activation.agent, artifact_id, reason))
        elif activation.gate is not None:
            actions.append(EnterGate(activation, artifact_id))
        elif made >= limits.max_tasks:
            reason = too_many_tasks(limits)
            actions.append(Refuse(activation.agent, artifact_id, reason))
        else:
            made += 1
            actions.append(StartTask(activation, artifact_id, depth))
    return actions


def too_many_tasks(limits: Limits) -> str:
    """What is said where a run may have no more tasks."""
    return f"the cascade has more than {limits.max_tasks} tasks"


def plan_idle(run: Run) -> EndRun | None:
    """What follows when something ended in the run: its end, once nothing is open, and nothing waits in it."""
    if run.open_tasks > 0 or run.open_gates > 0 or run.status not in (RunStatus.RUNNING, RunStatus.CANCELLING):
        return None
    if run.status is RunStatus.CANCELLING:
        return EndRun(RunStatus.FAILED if run.error_code == RUN_TIMEOUT else RunStatus.CANCELLED)
    match run.kind:
        case RunKind.CASCADE:
            failed = run.failed_tasks > 0 or run.error_code == LIMIT_CODE
            return EndRun(RunStatus.FAILED if failed else RunStatus.COMPLETED)
        case RunKind.SINGLE:
            if run.failed_tasks > 0:
                return EndRun(RunStatus.FAILED)
            return EndRun(RunStatus.CANCELLED if run.error_code == "CANCELLED" else RunStatus.COMPLETED)
        case RunKind.GRAPH | RunKind.CODE:
            # It ends by what its steps come to.
            return None
        case _:
            assert_never(run.kind)
