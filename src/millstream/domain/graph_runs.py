"""Graph runs: begun, advanced as their steps end, and ended with an output.

What a step's end means is looked at with the definition and decisions at hand; see domain.graph. Where a command has
not brought them, the end is only noted, and `due_us` makes somebody come who has.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from millstream.domain.batch import Batch
from millstream.domain.bounds import UNBOUND, Bounds
from millstream.domain.errors import ValidationFailed
from millstream.domain.graph import Decision, FailStep, Graph, PassStep, SkipStep, StartStep, StepState
from millstream.domain.lifecycle import cancel, create, details, end_run
from millstream.domain.promises import DEFAULT_TIMEOUT_US, NewPromise, create_promise, promise_task
from millstream.domain.retry import DEFAULT_RETRY
from millstream.domain.runs import (
    CHILD_QUEUE,
    TIMER_QUEUE,
    EventType,
    PayloadKind,
    Run,
    RunStatus,
    Task,
    TaskStatus,
)
from millstream.domain.workflows import DEFAULT_QUEUE, Definition, Step, StepKind

STEP_FAILED = "STEP_FAILED"
ONCE = replace(DEFAULT_RETRY, max_attempts=1)
_QUEUES = {
    StepKind.SLEEP: TIMER_QUEUE,
    StepKind.AGENT: CHILD_QUEUE,
    StepKind.WORKFLOW: CHILD_QUEUE,
    StepKind.PUBLISH: CHILD_QUEUE,
}
"""Of steps whose tasks no worker is given."""


@dataclass(frozen=True, slots=True)
class Advance:
    """What a command brings along to go on with a graph run.

    Attributes:
        redone: The run's count, when the decisions were made.
        decisions: By the step's number; at the number of steps, that of the run's output.
        new_id: Makes ids of tasks.
        errors: Code and message of steps that had failed by then, where the batch has not their tasks.
        whole: The batch has all open tasks of the run.
    """

    definition: Definition
    redone: int
    decisions: Mapping[int, Decision]
    new_id: Callable[[], str]
    errors: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    whole: bool = False

    @property
    def keys(self) -> list[str]:
        """Keys of the promises that may be made."""
        return [each.key for each in self.decisions.values() if isinstance(each, StartStep) and each.key]


def begin(batch: Batch, run: Run, with_: Advance) -> None:
    """Begin a run that was just made."""
    run.plan = Graph(with_.definition).text
    advance(batch, run, with_)


def advance(batch: Batch, run: Run, with_: Advance, owed_us: int = 0) -> None:
    """Look at what has ended, and start, skip or fail what that makes due. `owed_us`: a mark that this does not answer;
    somebody comes for that."""
    _advance(batch, run, with_)
    if owed_us and run.status is RunStatus.RUNNING:
        batch.attend(run)


def retry(batch: Batch, run: Run, definition: Definition, from_step: str = "") -> None:
    """Let a failed run, which was just reopened, go on: with what did not come to be, or from a step on. Raises
    ValidationFailed where there is no such step."""
    check_step(run, definition, from_step)
    graph = Graph(definition, run.plan)
    graph.again(definition.place[from_step] if from_step else None)
    run.plan = graph.text
    batch.attend(run)


def check_step(run: Run, definition: Definition, from_step: str) -> None:
    """Raise ValidationFailed where a run has no such step to begin again with."""
    if from_step and from_step not in definition.place:
        raise ValidationFailed.of("from_step", f"workflow {run.workflow} has no step {from_step!r}", "NOT_FOUND")


def _advance(batch: Batch, run: Run, with_: Advance) -> None:
    if run.status is not RunStatus.RUNNING or run.redone != with_.redone or not run.plan:
        return
    batch.attended(run)
    definition, undoing = with_.definition, {*with_.definition.undo.values()}
    if run.error_code and with_.whole:
        for task in [*batch.tasks.values()]:
            if task.run_id == run.id and task.open and task.step - 1 not in undoing:
                # What runs ends by itself; what waits would only hold up the end.
                _give_up(batch, run, task)
    graph = Graph(definition, run.plan)
    if not run.error_code and any(_error_of(batch, run, with_, step) is None for step in graph.failing):
        # It failed after this was decided: who looks next can say why.
        batch.attend(run)
        return
    graph.look()
    before = run.plan
    left: list[int] = []
    if not run.error_code:
        left, failed = graph.decide(lambda step: _decision(batch, run, with_, step), _begin_with(batch, run, with_))
        if failed is not None:
            _fail(batch, run, with_, *failed)
    _tell_skipped(batch, run, graph, definition, before)
    _tell_broken(batch, run, graph, with_, before)
    if run.error_code:
        _wind_up(batch, run, graph, with_)
    else:
        run.plan = graph.text
        _end_or_go_on(batch, run, graph, with_.decisions.get(len(definition.steps)), bool(left))


def _decision(batch: Batch, run: Run, with_: Advance, step: int) -> Decision | None:
    """What was decided of a step, unless somebody else has its promise's key by now."""
    decision = with_.decisions.get(step)
    if isinstance(decision, StartStep) and decision.key:
        holder = batch.open_promises.get((run.tenant, decision.key))
        if holder:
            return FailStep("CONFLICT", f"the key {decision.key!r} is that of promise {holder}, which is open")
    return decision


def _begin_with(batch: Batch, run: Run, with_: Advance) -> Callable[[int, StartStep, int], None]:
    def begin_step(number: int, decision: StartStep, item: int) -> None:
        step = with_.definition.steps[number]
        doing = step.each if item and step.each is not None else step
        given = decision.items[item - 1] if item else decision.input
        task = _task(batch, run, doing, (number + 1, item), given, decision, with_.new_id())
        create_promise(batch, run, task) if step.kind is StepKind.WAIT_PROMISE else create(batch, run, task)

    return begin_step


def _task(
    batch: Batch, run: Run, step: Step, place: tuple[int, int], given: bytes, decision: StartStep, task_id: str
) -> Task:
    if step.kind is StepKind.WAIT_PROMISE:
        timeout_us = step.timeouts.schedule_to_start_us or DEFAULT_TIMEOUT_US
        promise = promise_task(run, task_id, NewPromise(step.target, decision.key, given, timeout_us), batch.now_us)
        promise.step = place[0]
        return promise
    queue = _QUEUES.get(step.kind, step.queue)
    if queue == DEFAULT_QUEUE:
        queue = run.queue or queue
    kind = step.target if step.kind is StepKind.TASK else f"{step.kind}:{step.target}" if step.target else step.kind
    # A pause that is over at once is, too, when its time is looked at.
    retry = step.retry
    if queue == CHILD_QUEUE:
        # Its own steps are retried; to begin all of it again has to be asked for.
        retry = ONCE if retry == DEFAULT_RETRY else retry
        kind = f"{kind}@{step.version}" if step.version else kind
    bounds = UNBOUND
    if decision.bounds:
        bounds = Bounds(decision.bounds[max(place[1] - 1, 0)], step.concurrency_limit)
    at_us = batch.now_us + max(decision.delay_us, 1) if step.kind is StepKind.SLEEP else batch.now_us
    return Task(
        task_id, run.id, run.tenant, kind, queue, batch.now_us, run.day,
        priority=step.priority or run.priority, run_at_us=at_us, input=given, retry=retry, timeouts=step.timeouts,
        step=place[0], item=place[1], bounds=bounds, labels=details(**dict(step.labels)) if step.labels else "",
    )  # fmt: skip


def _give_up(batch: Batch, run: Run, task: Task) -> None:
    begun = task.queue == CHILD_QUEUE and task.status is TaskStatus.PENDING
    if task.status is not TaskStatus.RUNNING and not begun:
        task.error_code, task.error_message = run.error_code, "the run has failed"
        cancel(batch, run, task)


def _fail(batch: Batch, run: Run, with_: Advance, number: int, fault: FailStep | None) -> None:
    step = with_.definition.steps[number]
    known = (fault.code, fault.message) if fault is not None else _error_of(batch, run, with_, number)
    code, message = known or (STEP_FAILED, "failed")
    run.error_code, run.error_message = code, f"step {step.id}: {message}"
    batch.record(run, EventType.STEP_FAILED, data=details(step=step.id, code=code, message=message))


def _error_of(batch: Batch, run: Run, with_: Advance, number: int) -> tuple[str, str] | None:
    """Why a step's task failed, as far as it is known."""
    for task in batch.tasks.values():
        if task.run_id == run.id and task.step == number + 1 and task.error_code and not task.open:
            return task.error_code, task.error_message
    return with_.errors.get(number)


def _tell_skipped(batch: Batch, run: Run, graph: Graph, definition: Definition, before: str) -> None:
    skipped, after = StepState.SKIPPED.value, graph.text
    if skipped not in after:
        return
    for number, (was, now) in enumerate(zip(before.partition("|")[0], after, strict=False)):
        if now == skipped != was:
            batch.record(run, EventType.STEP_SKIPPED, data=details(step=definition.steps[number].id))


def _tell_broken(batch: Batch, run: Run, graph: Graph, with_: Advance, before: str) -> None:
    """Of steps that failed for want of a value, and are gone on from: no task tells of them."""
    if run.error_code:
        return
    failed = StepState.FAILED.value
    for number, fault in with_.decisions.items():
        if not isinstance(fault, FailStep) or number == len(with_.definition.steps):
            continue
        if before[number].lower() != failed == graph.state(number).value:
            data = details(step=with_.definition.steps[number].id, code=fault.code, message=fault.message)
            batch.record(run, EventType.STEP_FAILED, data=data)


def _wind_up(batch: Batch, run: Run, graph: Graph, with_: Advance) -> None:
    """Of a run that has failed: undo what was done once nothing runs any more, one step after the other, and end."""
    if run.open_tasks:
        run.plan = graph.text
        if not with_.whole:
            batch.attend(run)
        return
    for number, undo in with_.definition.undo.items():
        if graph.state(number) not in (StepState.COMPLETED, StepState.FAILED) or (
            graph.state(undo) is not StepState.RESERVED
        ):
            continue
        match decision := with_.decisions.get(undo):
            case StartStep():
                graph.begin(undo, decision, _begin_with(batch, run, with_))
                run.plan = graph.text
                return
            case None:
                run.plan = graph.text
                batch.attend(run)
                return
            case PassStep() | SkipStep():
                graph.put(undo, StepState.SKIPPED)
                batch.record(run, EventType.STEP_SKIPPED, data=details(step=with_.definition.steps[undo].id))
            case FailStep():
                graph.put(undo, StepState.FAILED)
                data = details(step=with_.definition.steps[undo].id, code=decision.code, message=decision.message)
                batch.record(run, EventType.STEP_FAILED, data=data)
    run.plan = graph.text
    end_run(batch, run, RunStatus.FAILED)


def _end_or_go_on(batch: Batch, run: Run, graph: Graph, end: Decision | None, left: bool) -> None:
    if left or (graph.over and end is None):
        batch.attend(run)
    elif graph.over and isinstance(end, FailStep):
        run.error_code, run.error_message = end.code, end.message
        end_run(batch, run, RunStatus.FAILED)
    elif graph.over and isinstance(end, StartStep):
        batch.keep(run, PayloadKind.OUTPUT, end.input)
        end_run(batch, run, RunStatus.COMPLETED)
