"""The planner of graph runs: which steps are due, and what the end of one means.

A run keeps one character for each of its steps. What a step is given, and whether it runs at all, is found by
evaluating expressions over what the steps before it made, which is done before a transaction and never in it
(engine-rules 4). It can be done early, because what those steps made does not change any more; so a completion mostly
brings along what it is followed by, and where it does not (two steps that a third needs end in one batch), the step
is left DUE, and another command follows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from millstream.domain.workflows import Definition, OnFailure


class StepState(StrEnum):
    """Where a step stands, as a run keeps it."""

    WAITING = "-"
    DUE = "d"
    OPEN = "o"
    COMPLETED = "c"
    SKIPPED = "s"
    FAILED = "f"
    CANCELLED = "x"


ENDED = frozenset({StepState.COMPLETED, StepState.SKIPPED, StepState.FAILED, StepState.CANCELLED})


@dataclass(frozen=True, slots=True)
class StartStep:
    """Its condition holds.

    Attributes:
        input: What its task is given: google.protobuf.Value in wire form.
        delay_us: Of a sleep, how long it takes.
    """

    input: bytes = b""
    delay_us: int = 0


@dataclass(frozen=True, slots=True)
class SkipStep:
    """Its condition does not hold."""


@dataclass(frozen=True, slots=True)
class FailStep:
    """An expression of it could not be evaluated."""

    code: str
    message: str


Decision: TypeAlias = StartStep | SkipStep | FailStep
Decisions: TypeAlias = Mapping[int, Decision]


def note(plan: str, step: int, state: StepState) -> str:
    """The plan with the end of a step, by its number from 1, noted to be looked at."""
    return f"{plan[: step - 1]}{state.value.upper()}{plan[step:]}"


class Graph:
    """The steps of a run: a working copy, which `text` packs again.

    Args:
        text: What the run keeps; "" for a run that begins.
    """

    __slots__ = ("_definition", "_states", "_unseen")

    def __init__(self, definition: Definition, text: str = "") -> None:
        self._definition = definition
        self._unseen: list[int] = []
        if text:
            self._states = [StepState(each.lower()) for each in text]
            self._unseen = [step for step, each in enumerate(text) if each.isupper()]
        else:
            roots = (StepState.WAITING if needs else StepState.DUE for needs in definition.needs)
            self._states = [*roots]

    @property
    def text(self) -> str:
        """What the run keeps."""
        return "".join(self._states)

    def state(self, step: int) -> StepState:
        """Where a step stands."""
        return self._states[step]

    def due(self) -> list[int]:
        """Steps that wait for nothing but their decision."""
        return [step for step, state in enumerate(self._states) if state is StepState.DUE]

    @property
    def idle(self) -> bool:
        """Nothing is open or due."""
        return StepState.OPEN not in self._states and StepState.DUE not in self._states

    @property
    def over(self) -> bool:
        """Every step has ended."""
        return ENDED.issuperset(self._states)

    def look(self) -> None:
        """Look at the ends that were only noted."""
        unseen, self._unseen = self._unseen, []
        for step in unseen:
            self.ended(step, self._states[step])

    def opened(self, step: int) -> None:
        """A due step has begun."""
        self._states[step] = StepState.OPEN

    def ended(self, step: int, state: StepState) -> list[int]:
        """A step has ended; the steps that are due by that. Those that none of their needs lets run are skipped."""
        self._states[step] = state
        due: list[int] = []
        look = [step]
        while look:
            for dependent in self._definition.dependents[look.pop()]:
                if self._states[dependent] is not StepState.WAITING:
                    continue
                needs = [self._states[need] for need in self._definition.needs[dependent]]
                if not ENDED.issuperset(needs):
                    continue
                if any(self._lets_go_on(need) for need in self._definition.needs[dependent]):
                    self._states[dependent] = StepState.DUE
                    due.append(dependent)
                else:
                    self._states[dependent] = StepState.SKIPPED
                    look.append(dependent)
        return due

    def _lets_go_on(self, step: int) -> bool:
        state = self._states[step]
        tolerated = self._definition.steps[step].on_failure is OnFailure.CONTINUE
        return state is StepState.COMPLETED or (state is StepState.FAILED and tolerated)

    def decide(
        self, decisions: Callable[[int], Decision | None], start: Callable[[int, StartStep], None]
    ) -> tuple[list[int], tuple[int, FailStep] | None]:
        """Apply decisions to what is due, and to what becomes due by them: steps still without one, and the step whose
        failure ends the run, if one does."""
        left: list[int] = []
        look = self.due()
        while look:
            step = look.pop(0)
            match decision := decisions(step):
                case None:
                    left.append(step)
                case StartStep():
                    self.opened(step)
                    start(step, decision)
                case SkipStep():
                    look += self.ended(step, StepState.SKIPPED)
                case FailStep():
                    look += self.ended(step, StepState.FAILED)
                    if self._definition.steps[step].on_failure is OnFailure.FAIL:
                        return left, (step, decision)
        return left, None
