"""Graph runs: begun, advanced as their steps end, and ended with an output.

What a step's end means is looked at with the definition and decisions at hand; see domain.graph. Where a command has
not brought them, the end is only noted, and `due_us` makes somebody come who has.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from millstream.domain.batch import Batch
from millstream.domain.graph import Decision, FailStep, Graph, StartStep, StepState
from millstream.domain.lifecycle import create, details, end_run
from millstream.domain.runs import TIMER_QUEUE, EventType, PayloadKind, Run, RunStatus, Task
from millstream.domain.workflows import Definition, Step, StepKind

FAILED_CODE = "STEP_FAILED"


@dataclass(frozen=True, slots=True)
class Advance:
    """What a command brings along to go on with a graph run.

    Attributes:
        redone: The run's count, when the decisions were made.
        decisions: By the step's number; at the number of steps, that of the run's output.
        task_ids: Ids for the tasks that may be made, by step.
    """

    definition: Definition
    redone: int
    decisions: Mapping[int, Decision]
    task_ids: Mapping[int, str] = field(default_factory=dict)


def advance(batch: Batch, run: Run, with_: Advance) -> None:
    """Look at what has ended, and start, skip or fail what that makes due."""
    if run.status is not RunStatus.RUNNING or run.redone != with_.redone:
        return
    definition = with_.definition
    graph = Graph(definition, run.plan)
    graph.look()
    known = with_.decisions if not run.error_code else {}

    def start(number: int, decision: StartStep) -> None:
        _start(batch, run, definition.steps[number], number, decision, with_.task_ids[number])

    before = run.plan
    left: list[int] = []
    if not run.error_code:
        left, failed = graph.decide(known.get, start)
        if failed is not None:
            _fail(batch, run, definition.steps[failed[0]], failed[1])
    run.plan = graph.text
    _tell_skipped(batch, run, definition, before)
    batch.attended(run)
    _end_or_go_on(batch, run, graph, known.get(len(definition.steps)), bool(left))


def _start(batch: Batch, run: Run, step: Step, number: int, decision: StartStep, task_id: str) -> None:
    kind, queue, run_at_us = step.target, step.queue, batch.now_us
    if step.kind is StepKind.SLEEP:
        kind, queue, run_at_us = "sleep", TIMER_QUEUE, batch.now_us + decision.delay_us
    task = Task(
        task_id, run.id, run.tenant, kind, queue, batch.now_us, run.day, priority=step.priority, run_at_us=run_at_us,
        input=decision.input, retry=step.retry, timeouts=step.timeouts, step=number + 1,
        labels=details(**dict(step.labels)) if step.labels else "",
    )  # fmt: skip
    create(batch, run, task)


def _fail(batch: Batch, run: Run, step: Step, failure: FailStep) -> None:
    run.error_code, run.error_message = failure.code, f"step {step.id}: {failure.message}"
    batch.record(run, EventType.STEP_FAILED, data=details(step=step.id, code=failure.code, message=failure.message))


def _tell_skipped(batch: Batch, run: Run, definition: Definition, before: str) -> None:
    skipped = StepState.SKIPPED.value
    for number, (was, now) in enumerate(zip(before, run.plan, strict=True)):
        if now == skipped != was:
            batch.record(run, EventType.STEP_SKIPPED, data=details(step=definition.steps[number].id))


def _end_or_go_on(batch: Batch, run: Run, graph: Graph, end: Decision | None, left: bool) -> None:
    if run.error_code:
        # What runs already ends by itself; nothing new begins.
        if run.open_tasks == 0:
            end_run(batch, run, RunStatus.FAILED)
    elif left or (graph.over and end is None):
        batch.attend(run)
    elif graph.over and isinstance(end, FailStep):
        run.error_code, run.error_message = end.code, end.message
        end_run(batch, run, RunStatus.FAILED)
    elif graph.over and isinstance(end, StartStep):
        batch.keep(run, PayloadKind.OUTPUT, end.input)
        end_run(batch, run, RunStatus.COMPLETED)
