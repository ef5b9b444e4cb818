"""The planner of graph runs: which steps are due, and what the end of one means.

A run keeps one character for each of its steps, and for each map that is under way how far it is. What a step is given,
and whether it runs at all, is found by evaluating expressions over what the steps before it made, which is done before
a transaction and never in it (engine-rules 4). It can be done early, because what those steps made does not change any
more; so a completion mostly brings along what it is followed by, and where it does not (two steps that a third needs
end in one batch), the step is left DUE, and another command follows.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
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
    RESERVED = "r"
    """It undoes another step, and was not called for."""


ENDED = frozenset({StepState.COMPLETED, StepState.SKIPPED, StepState.FAILED, StepState.CANCELLED})
_OVER = ENDED | {StepState.RESERVED}
_STATES = {char: state for state in StepState for char in (state.value, state.value.upper())}
"""By the character of a plan: one in capitals is an end that was only noted."""
_BROKEN = frozenset({StepState.FAILED, StepState.CANCELLED})


@dataclass(frozen=True, slots=True)
class StartStep:
    """Its condition holds.

    Attributes:
        input: What its task is given: google.protobuf.Value in wire form.
        delay_us: Of a sleep, how long it takes.
        items: Of a map, what the task of each item is given; not empty.
        key: Of a promise, its key, or "".
        bounds: Of a task, the key of its concurrency, of a map that of each item; empty where there is no bound.
    """

    input: bytes = b""
    delay_us: int = 0
    items: Sequence[bytes] = ()
    key: str = ""
    bounds: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class PassStep:
    """There is nothing to do in it, and it is completed."""


@dataclass(frozen=True, slots=True)
class SkipStep:
    """Its condition does not hold."""


@dataclass(frozen=True, slots=True)
class FailStep:
    """An expression of it could not be evaluated."""

    code: str
    message: str


Decision: TypeAlias = StartStep | PassStep | SkipStep | FailStep
Decisions: TypeAlias = Mapping[int, Decision]
Begin: TypeAlias = Callable[[int, StartStep, int], None]
"""Begins a step, or the item of a map (from 1; else 0)."""


@dataclass(slots=True)
class Items:
    """How far a map is: items in all, begun, ended, and of those failed."""

    total: int
    made: int = 0
    done: int = 0
    failed: int = 0


def note(plan: str, step: int, item: int, state: StepState) -> str:
    """The plan with the end of a step, or of an item of it, noted to be looked at. `step`: from 1; `item`: from 1, or
    0 for the step itself."""
    if item == 0:
        return f"{plan[: step - 1]}{state.value.upper()}{plan[step:]}"
    chars, _, text = plan.partition("|")
    maps = _unpacked(text)
    found = maps[step - 1]
    found.done += 1
    found.failed += state in _BROKEN
    return f"{chars}|{_packed(maps)}"


def share_of(plan: str) -> tuple[float, int]:
    """Of a run's plan, how many of its steps are done (of a map the share of its items), and how many steps there are
    but for those that only undo."""
    chars, _, text = plan.partition("|")
    maps = _unpacked(text)
    done = sum(char.lower() in ENDED for char in chars)
    shares = sum(each.done / each.total for step, each in maps.items() if chars[step].lower() not in ENDED)
    return done + shares, sum(char.lower() != StepState.RESERVED for char in chars)


def _unpacked(text: str) -> dict[int, Items]:
    """Maps by the number of their step, from 0."""
    found = {}
    for each in text.split(";") if text else ():
        step, *counts = map(int, each.split(","))
        found[step] = Items(*counts)
    return found


def _packed(maps: Mapping[int, Items]) -> str:
    return ";".join(f"{step},{each.total},{each.made},{each.done},{each.failed}" for step, each in maps.items())


class Graph:
    """The steps of a run: a working copy, which `text` packs again.

    Args:
        text: What the run keeps; "" for a run that begins.
    """

    __slots__ = ("_definition", "_maps", "_states", "_unseen", "failed")

    def __init__(self, definition: Definition, text: str = "") -> None:
        self._definition = definition
        self._unseen: list[int] = []
        self.failed: tuple[int, FailStep | None] | None = None
        """The step whose failure ends the run, if one has just failed so."""
        chars, _, maps = text.partition("|")
        self._maps = _unpacked(maps)
        if chars:
            self._states = [_STATES[each] for each in chars]
            if chars != chars.lower():
                self._unseen = [step for step, each in enumerate(chars) if each.isupper()]
        else:
            self._states = [StepState.WAITING if needs else StepState.DUE for needs in definition.needs]
            for step in definition.undo.values():
                self._states[step] = StepState.RESERVED

    @property
    def text(self) -> str:
        """What the run keeps."""
        chars = "".join(self._states)
        return f"{chars}|{_packed(self._maps)}" if self._maps else chars

    def state(self, step: int) -> StepState:
        """Where a step stands."""
        return self._states[step]

    def items(self, step: int) -> Items | None:
        """How far a map that is under way is."""
        return self._maps.get(step)

    def due(self) -> list[int]:
        """Steps that wait for nothing but their decision."""
        found: list[int] = []
        # Of a thousand steps, mostly one is: to search for it takes a tenth of looking at each.
        for _ in range(self._states.count(StepState.DUE)):
            found.append(self._states.index(StepState.DUE, found[-1] + 1 if found else 0))
        return found

    @property
    def maps(self) -> list[int]:
        """Maps that are under way."""
        return [*self._maps]

    def fails(self, step: int) -> bool:
        """Whether the failure of a step, or of an item of it, is still to be looked at, and will end the run."""
        if self._definition.steps[step].on_failure is OnFailure.CONTINUE:
            return False
        items = self._maps.get(step)
        return items.failed > 0 if items is not None else step in self._unseen and self._states[step] in _BROKEN

    @property
    def failing(self) -> list[int]:
        """All such steps."""
        return [step for step in {*self._unseen, *self._maps} if self.fails(step)]

    @property
    def idle(self) -> bool:
        """Nothing is open or due."""
        return StepState.OPEN not in self._states and StepState.DUE not in self._states

    @property
    def over(self) -> bool:
        """Every step has ended that was called for."""
        return _OVER.issuperset(self._states)

    def look(self) -> None:
        """Look at the ends that were only noted."""
        unseen, self._unseen = self._unseen, []
        for step in unseen:
            self.ended(step, self._states[step])

    def put(self, step: int, state: StepState) -> None:
        """Put a step into a state from which nothing follows by itself."""
        self._states[step] = state

    def ended(self, step: int, state: StepState, fault: FailStep | None = None) -> list[int]:
        """A step has ended; the steps that are due by that. Those that none of their needs lets run are skipped."""
        self._states[step] = state
        self._maps.pop(step, None)
        tolerated = self._definition.steps[step].on_failure is OnFailure.CONTINUE
        if state in _BROKEN and not tolerated and self.failed is None:
            self.failed = (step, fault)
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
        return state is StepState.COMPLETED or (state in _BROKEN and tolerated)

    def decide(
        self, decisions: Callable[[int], Decision | None], begin: Begin
    ) -> tuple[list[int], tuple[int, FailStep | None] | None]:
        """Apply decisions to what is due, and to what becomes due by them, and go on with maps: steps still without a
        decision, and the step whose failure ends the run, if one does."""
        left: list[int] = []
        for step in self.maps if self.failed is None else ():
            decision = decisions(step)
            if isinstance(decision, StartStep):
                self._go_on(step, decision, begin)
            elif self._ready(step):
                left.append(step)
        look = deque(self.due())
        while look and self.failed is None:
            step = look.popleft()
            match decision := decisions(step):
                case None:
                    left.append(step)
                case StartStep():
                    self.begin(step, decision, begin)
                case PassStep():
                    look += self.ended(step, StepState.COMPLETED)
                case SkipStep():
                    look += self.ended(step, StepState.SKIPPED)
                case FailStep():
                    look += self.ended(step, StepState.FAILED, decision)
        return left, self.failed

    def again(self, from_step: int | None = None) -> None:
        """Let a run that has ended go on: what was completed stays, unless it was undone or needs `from_step`; all
        else is waited for, or due, once more."""
        undoing = {*self._definition.undo.values()}
        undone = {step for step, undo in self._definition.undo.items() if self._states[undo] is not StepState.RESERVED}
        anew = undone | (self._after(from_step) if from_step is not None else set())
        self._unseen, self._maps = [], {}
        for step, state in enumerate(self._states):
            tolerated = self._definition.steps[step].on_failure is OnFailure.CONTINUE
            if step in undoing:
                self._states[step] = StepState.RESERVED
            elif step in anew or not (state is StepState.COMPLETED or (state is StepState.FAILED and tolerated)):
                # One that was cancelled with the run was not done, nor tried in vain.
                self._states[step] = StepState.WAITING
        for step, state in enumerate(self._states):
            needs = self._definition.needs[step]
            if state is StepState.WAITING and all(self._states[need] in ENDED for need in needs):
                self._states[step] = StepState.DUE

    def _after(self, step: int) -> set[int]:
        """A step and all that need it, directly or not."""
        found: set[int] = set()
        look = [step]
        while look:
            each = look.pop()
            if each not in found:
                found.add(each)
                look += self._definition.dependents[each]
        return found

    def begin(self, step: int, decision: StartStep, begin: Begin) -> None:
        """Begin a step."""
        self._states[step] = StepState.OPEN
        if decision.items:
            self._maps[step] = Items(len(decision.items))
            self._go_on(step, decision, begin)
        else:
            begin(step, decision, 0)

    def _ready(self, step: int) -> bool:
        """Whether there is something to do in a map."""
        items = self._maps[step]
        return items.done == items.made or items.made - items.done < self._definition.steps[step].width

    def _go_on(self, step: int, decision: StartStep, begin: Begin) -> None:
        """Begin the next items of a map, or end it. Where an item's failure is the map's, no other begins."""
        items, spec = self._maps[step], self._definition.steps[step]
        stopped = items.failed > 0 and spec.on_failure is not OnFailure.CONTINUE
        while not stopped and items.made < items.total and items.made - items.done < spec.width:
            items.made += 1
            begin(step, decision, items.made)
        if items.done == items.made and (stopped or items.made == items.total):
            self.ended(step, StepState.FAILED if stopped else StepState.COMPLETED)
