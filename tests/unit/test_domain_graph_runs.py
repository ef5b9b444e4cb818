"""Runs of workflows as the domain decides them, command by command, against what must become of them: in whatever order
steps end, fail, are tried again, are followed at once or looked at later, or the run is cancelled or retried."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.domain import graph_runs
from millstream.domain.batch import Batch, Claim, Limits
from millstream.domain.cancellation import cancel_run
from millstream.domain.graph import Decision, FailStep, SkipStep, StartStep, StepState
from millstream.domain.graph_runs import Advance
from millstream.domain.lifecycle import fail, lease
from millstream.domain.publication import complete
from millstream.domain.retrying import retry_run
from millstream.domain.runs import EventType, Run, RunKind, RunStatus, Task, TaskStatus
from millstream.domain.workflows import Definition, OnFailure, Step, StepKind

STEPS_MOST = 6
OUTCOMES = ("done", "stumbles", "broken", "left out", "no value")
BROKEN = frozenset({"broken", "no value"})
CHANCES = st.integers(0, 2**32).map(random.Random)
WHO = Claim("session", "worker", "Worker")


@dataclass(frozen=True)
class Case:
    """A definition, and what becomes of each step that is begun."""

    definition: Definition
    outcomes: tuple[str, ...]

    @property
    def undoing(self) -> frozenset[int]:
        """Steps that undo others."""
        return frozenset(self.definition.undo.values())

    def counts(self, number: int) -> bool:
        """Whether the failure of a step is its run's."""
        return self.definition.steps[number].on_failure is not OnFailure.CONTINUE

    def expected(self) -> list[StepState]:
        """What becomes of each step where no failure ends the run, in the order of their numbers, which is one of
        their needs."""
        found: list[StepState] = []
        for number, outcome in enumerate(self.outcomes):
            needs = self.definition.needs[number]
            runs = not needs or any(
                found[need] is StepState.COMPLETED or (found[need] is StepState.FAILED and not self.counts(need))
                for need in needs
            )
            if number in self.undoing:
                found.append(StepState.RESERVED)
            elif not runs or outcome == "left out":
                found.append(StepState.SKIPPED)
            else:
                found.append(StepState.FAILED if outcome in BROKEN else StepState.COMPLETED)
        return found

    def fails(self) -> set[int]:
        """Steps whose failure may end the run."""
        return {n for n, state in enumerate(self.expected()) if state is StepState.FAILED and self.counts(n)}

    def mended(self) -> Case:
        """The same, where no failure ends the run any more."""
        outcomes = ("done" if self.counts(n) and each in BROKEN else each for n, each in enumerate(self.outcomes))
        return replace(self, outcomes=tuple(outcomes))


@st.composite
def cases(draw: st.DrawFn, compensate: bool = True) -> Case:
    """Any graph of up to six steps, some of them with another that undoes them."""
    count = draw(st.integers(1, STEPS_MOST))
    policies = [OnFailure.FAIL, OnFailure.CONTINUE] + ([OnFailure.COMPENSATE] if compensate else [])
    steps = []
    for number in range(count):
        needs = tuple(map(str, sorted(draw(st.sets(st.integers(0, number - 1)))) if number else ()))
        policy = draw(st.sampled_from(policies))
        undo = f"un{number}" if policy is OnFailure.COMPENSATE else ""
        steps.append(Step(str(number), StepKind.TASK, "work", needs, on_failure=policy, compensation=undo))
    steps += [Step(step.compensation, StepKind.TASK, "undo") for step in steps if step.compensation]
    outcomes = draw(st.lists(st.sampled_from(OUTCOMES), min_size=len(steps), max_size=len(steps)))
    return Case(Definition("w", tuple(steps), version=1), tuple(outcomes))


class World:
    """A run, and all that was stored of it. Each command has a batch of its own, and its rows are kept."""

    def __init__(self, case: Case, chance: random.Random) -> None:
        self.case = case
        self.chance = chance
        self.ids = map(str, itertools.count(1))
        self.tasks: dict[str, Task] = {}
        self.events: list[tuple[int, EventType, str]] = []
        self.now_us = 1_000_000
        self.outputs = 0
        self.run = Run("r", "acme", RunKind.GRAPH, self.now_us, workflow="w", workflow_version="1")
        batch = self.batch()
        batch.add_run(self.run)
        graph_runs.begin(batch, self.run, self.decided())
        self.store(batch)

    def batch(self) -> Batch:
        """A transaction, with all of the run's tasks."""
        self.now_us += 10_000_000
        batch = Batch(self.now_us, "lane", Limits(), lambda task: None, lambda task: None, lambda: 0.5)
        batch.runs[self.run.id] = self.run
        batch.tasks.update(self.tasks)
        return batch

    def store(self, batch: Batch) -> None:
        """Keep what a command made, and check what always holds."""
        self.tasks.update(batch.tasks)
        self.events += [(event[2], EventType(event[3]), event[5]) for event in batch.events]
        self.outputs += len(batch.payloads)
        run = self.run
        assert [seq for seq, *_ in self.events] == [*range(1, run.last_seq + 1)]
        assert run.open_tasks == len(self.open)
        assert run.failed_tasks == sum(task.status is TaskStatus.FAILED for task in self.tasks.values())
        assert run.task_count == len(self.tasks)
        if run.finished_us:
            assert not self.open
        else:
            # Somebody works on it, or will look at it: nothing hangs.
            assert self.open or run.due_us

    @property
    def open(self) -> list[Task]:
        """Tasks that have not ended."""
        return [task for task in self.tasks.values() if task.open]

    def decided(self, share: float = 1.0, **fields: object) -> Advance:
        """What is decided of the steps; of some of them where `share` is less."""
        made: dict[int, Decision] = {}
        for number, outcome in enumerate((*self.case.outcomes, "done")):
            if self.chance.random() <= share:
                other: dict[str, Decision] = {"left out": SkipStep(), "no value": FailStep("EXPRESSION_ERROR", "none")}
                made[number] = other.get(outcome, StartStep(b"in"))
        given: dict[str, object] = {"redone": self.run.redone} | fields
        return Advance(self.case.definition, decisions=made, new_id=lambda: next(self.ids), **given)  # type: ignore[arg-type]

    def end(self, task: Task, follow: bool) -> None:
        """A worker takes a task and ends it; what that is followed by comes with it, or does not."""
        batch, run = self.batch(), self.run
        owed = run.due_us
        if task.status is not TaskStatus.RUNNING:
            task.status = TaskStatus.PENDING
            lease(batch, run, task, WHO)
        outcome = self.case.outcomes[task.step - 1]
        if outcome == "broken" or (outcome == "stumbles" and task.attempt == 1):
            fail(batch, run, task, "BROKEN", "it is", retryable=outcome == "stumbles")
        else:
            assert complete(batch, run, task, task.attempt, b"out", ())
            if follow and not run.error_code:
                graph_runs.advance(batch, run, self.decided(self.chance.choice((1.0, 0.5))), owed)
        self.store(batch)

    def told_again(self, task: Task) -> None:
        """The same completion comes once more."""
        before = (len(self.events), self.run.plan, len(self.tasks))
        batch = self.batch()
        assert not complete(batch, self.run, task, task.attempt, b"out", ())
        self.store(batch)
        assert (len(self.events), self.run.plan, len(self.tasks)) == before

    def look(self, share: float = 1.0) -> None:
        """Somebody looks at the run, who mostly has read of all that has ended, and has no tasks but the open ones."""
        batch = self.batch()
        failed = [task for task in self.tasks.values() if task.status is TaskStatus.FAILED]
        errors = {task.step - 1: (task.error_code, task.error_message) for task in failed}
        for task_id in self.tasks.keys() - {task.id for task in self.open}:
            del batch.tasks[task_id]
        known = errors if self.chance.random() < 0.7 else {}
        graph_runs.advance(batch, self.run, self.decided(share, whole=bool(self.run.error_code), errors=known))
        self.store(batch)

    def step(self) -> None:
        """Anything that may happen next."""
        done = [task for task in self.tasks.values() if task.status is TaskStatus.COMPLETED]
        kind = self.chance.random()
        if done and kind < 0.1:
            self.told_again(self.chance.choice(done))
        elif self.run.due_us and kind < 0.2:
            self.look(0.5)
        elif self.run.due_us and (kind < 0.6 or not self.open):
            self.look()
        elif self.open and kind < 0.7:
            self.begin(self.chance.choice(self.open))
        elif self.open:
            self.end(self.chance.choice(self.open), self.chance.random() < 0.5)

    def begin(self, task: Task) -> None:
        """A worker takes a task, and ends it later."""
        if task.status is not TaskStatus.RUNNING:
            batch = self.batch()
            task.status = TaskStatus.PENDING
            lease(batch, self.run, task, WHO)
            self.store(batch)

    def play(self, most: int = 1000) -> None:
        """Let things happen until the run has ended."""
        for _ in range(most):
            if self.run.finished_us:
                return
            self.step()
        raise AssertionError(f"it does not end: {self.run.plan} {self.run} {self.case.outcomes}")

    def cancel(self) -> None:
        """Somebody cancels the run."""
        batch = self.batch()
        cancel_run(batch, self.run, self.open, "enough", "somebody")
        self.store(batch)

    def retry(self) -> None:
        """Somebody retries it, and what ended it goes well now."""
        self.case = self.case.mended()
        batch = self.batch()
        retry_run(batch, self.run, [*self.tasks.values()], "somebody", "", "", self.case.definition)
        self.store(batch)

    def states(self) -> list[StepState]:
        """Where the steps stand."""
        return [StepState(each.lower()) for each in self.run.plan]

    def made(self) -> Counter[int]:
        """How many tasks each step had."""
        return Counter(task.step - 1 for task in self.tasks.values())


def check_completed(world: World) -> None:
    """What a run must be that has ended well."""
    assert (world.run.status, world.run.error_code) == (RunStatus.COMPLETED, "")
    assert world.states() == world.case.expected()
    assert world.outputs == 1
    assert world.events[-1][1] is EventType.RUN_COMPLETED


def check_failed(world: World) -> None:
    """What a run must be that a step's failure has ended."""
    case, run = world.case, world.run
    assert (run.status, run.error_code in ("BROKEN", "EXPRESSION_ERROR")) == (RunStatus.FAILED, True)
    assert run.error_message.split(":")[0] in {f"step {case.definition.steps[n].id}" for n in case.fails()}
    assert world.outputs == 0
    states, expected = world.states(), case.expected()
    for number, state in enumerate(states):
        if number not in case.undoing and state in (StepState.COMPLETED, StepState.FAILED):
            assert state is expected[number]
    undone = {number for number, undo in case.definition.undo.items() if states[undo] is not StepState.RESERVED}
    assert undone == {
        number for number in case.definition.undo if states[number] in (StepState.COMPLETED, StepState.FAILED)
    }


@settings(max_examples=300, deadline=None)
@given(cases(), CHANCES)
def test_a_run_comes_to_the_same_end_in_any_order(case: Case, chance: random.Random) -> None:
    """WM-3, FL-8: whatever comes with an end or later, early or twice; each step has one task, and nothing hangs."""
    world = World(case, chance)
    world.play()
    check_failed(world) if case.fails() else check_completed(world)
    assert set(world.made().values()) <= {1}


@pytest.mark.parametrize("follow", [True, False], ids=["followed at once", "looked at later"])
@pytest.mark.parametrize("count", range(1, 7))
def test_parallel_steps_may_end_in_every_order(count: int, follow: bool) -> None:
    """WM-3: up to six, with a step behind each and one that needs all; the last of them is broken or not."""
    first = [Step(str(n), StepKind.TASK, "work", on_failure=OnFailure.CONTINUE) for n in range(count)]
    behind = [Step(f"b{n}", StepKind.TASK, "work", (str(n),)) for n in range(count)]
    last = Step("last", StepKind.TASK, "work", tuple(each.id for each in behind))
    definition = Definition("w", (*first, *behind, last), version=1)
    for order in itertools.permutations(range(count)):
        outcomes = ["done"] * len(definition.steps)
        outcomes[order[0]] = "broken"
        world = World(Case(definition, tuple(outcomes)), random.Random(0))
        for number in order:
            world.end(next(task for task in world.open if task.step == number + 1), follow)
        while not world.run.finished_us:
            if world.run.due_us:
                world.look()
            else:
                world.end(world.open[-1], follow)
        check_completed(world)
        assert set(world.made().values()) == {1}


@settings(max_examples=300, deadline=None)
@given(cases(), CHANCES)
def test_a_retried_run_makes_again_what_did_not_come_to_be(case: Case, chance: random.Random) -> None:
    """WM-4, FV-9: steps that were completed, and not undone, are not begun again; what was decided before the retry
    does not count after it."""
    world = World(case, chance)
    world.play()
    if not case.fails():
        return
    stale = world.decided()
    before = world.made()
    kept = {
        number
        for number, state in enumerate(world.states())
        if state is StepState.COMPLETED and number not in case.undoing
        and world.states()[case.definition.undo.get(number, number)] in (StepState.COMPLETED, StepState.RESERVED)
        and number not in case.definition.undo
    }  # fmt: skip
    world.retry()
    batch = world.batch()
    plan = world.run.plan
    graph_runs.advance(batch, world.run, stale)
    assert (world.run.plan, batch.events) == (plan, [])
    world.play()
    check_completed(world)
    after = world.made()
    assert all(after[number] == before[number] for number in kept)


@settings(max_examples=300, deadline=None)
@given(cases(), CHANCES, st.integers(0, 15))
def test_nothing_follows_a_cancellation(case: Case, chance: random.Random, after: int) -> None:
    """WM-4: what waits ends, what runs may end; no step begins, whatever comes with an end."""
    world = World(case, chance)
    for _ in range(after):
        if not world.run.finished_us:
            world.step()
    if world.run.finished_us:
        return
    made = len(world.tasks)
    world.cancel()
    world.play()
    assert world.run.status is RunStatus.CANCELLED
    assert (len(world.tasks), world.outputs) == (made, 0)
    kinds = [kind for _, kind, _ in world.events]
    assert EventType.TASK_CREATED not in kinds[kinds.index(EventType.RUN_CANCELLING) :]
    assert kinds[-1] is EventType.RUN_CANCELLED
