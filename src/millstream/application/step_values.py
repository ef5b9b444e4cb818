"""What the steps of a run were given and have made, and what that means for those that are due.

Expressions are evaluated here, before any transaction; one that may take long is left to the sandbox.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Protocol

from millstream.application.ports import Costly, NoValue
from millstream.application.wire_values import NOTHING, WireValue
from millstream.domain.graph import ENDED, Decision, FailStep, Graph, PassStep, SkipStep, StartStep, StepState
from millstream.domain.struct_wire import Json, encode_value
from millstream.domain.templates import expression_of, expressions_in
from millstream.domain.workflows import Definition, Step, StepKind, Template

EXPRESSION_ERROR = "EXPRESSION_ERROR"
ITEMS_MOST = 10_000
"""Of a map."""
DELAY_MOST_S = 366 * 86_400
KEY_MOST = 255
VALUE_BYTES_MOST = 1 << 20
"""What a step is given, at most."""


class Expression(Protocol):
    """A compiled expression; see adapters.values."""

    @property
    def path(self) -> tuple[str, ...]:
        """Where its value stands, where it only names a place, such as steps.a.output.id; else ()."""

    def __call__(self, variables: Mapping[str, Json], size_bytes: int, /) -> Json:
        """Its value for variables of so many bytes. Raises NoValue, and Costly."""


class Templates(Protocol):
    """Compiles and fills templates; see adapters.values."""

    def compile(self, text: str) -> Expression:
        """Raises ValueError."""

    def fill(self, template: Template, value_of: Callable[[str], Json]) -> Json:
        """The template with each expression replaced by its value."""


class ValueSandbox(Protocol):
    """Evaluates apart from the server; see adapters.sandbox."""

    async def value(self, text: str, variables: Mapping[str, Json]) -> Json:
        """The value of an expression. Raises NoValue, also where that takes too long."""


@dataclass(slots=True)
class Outcome:
    """What became of a step.

    Attributes:
        fault: Why its output mapping has no value, or "".
    """

    status: str
    output: WireValue = NOTHING
    error: dict[str, Json] | None = None
    fault: str = ""

    def seen(self) -> dict[str, Json]:
        """As expressions see it."""
        shown: dict[str, Json] = {"status": self.status, "output": self.output.json}
        if self.error is not None:
            shown["error"] = self.error
        return shown


@dataclass(slots=True)
class RunValues:
    """What a run was given, and what its steps have made so far.

    Attributes:
        redone: The run's count, to which they belong.
        items: Outputs of a map's items, by its step and the item's number, in wire form.
        started: What was decided of maps that are under way.
        errors: Code and message of steps that failed; of a map those of its first item that did.
        size_bytes: About what they take.
    """

    redone: int
    input: WireValue
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    items: dict[int, dict[int, bytes]] = field(default_factory=dict)
    started: dict[int, StartStep] = field(default_factory=dict)
    errors: dict[int, tuple[str, str]] = field(default_factory=dict)
    size_bytes: int = 0

    def with_size(self, more: int) -> "RunValues":
        """These, where so many bytes more are looked at."""
        return replace(self, size_bytes=self.size_bytes + more)

    def with_outcome(self, step: int, outcome: Outcome, size_bytes: int) -> "RunValues":
        """These, and one outcome more: a copy, because what it is decided by may be refused."""
        return RunValues(
            self.redone, self.input, {**self.outcomes, step: outcome}, self.items, {**self.started},
            self.errors, self.size_bytes + size_bytes,
        )  # fmt: skip


class Scope:
    """What expressions at one place may be about.

    Args:
        more: Variables besides the run's input and its steps.
    """

    __slots__ = ("_definition", "_made", "_more", "_values")

    def __init__(self, definition: Definition, values: RunValues, more: Mapping[str, Json] | None = None) -> None:
        self._definition = definition
        self._values = values
        self._more = more or {}
        self._made: dict[str, Json] | None = None

    @property
    def size_bytes(self) -> int:
        """About what all of it takes."""
        return self._values.size_bytes

    def variables(self) -> dict[str, Json]:
        """All of it."""
        if self._made is None:
            steps = self._definition.steps
            seen: dict[str, Json] = {steps[step].id: each.seen() for step, each in self._values.outcomes.items()}
            self._made = {"input": self._values.input.json, "steps": seen, **self._more}
        return self._made

    def with_more(self, **more: Json) -> "Scope":
        """This, and other variables."""
        found = Scope(self._definition, self._values, {**self._more, **more})
        found._made = {**self._made, **more} if self._made is not None else None
        return found

    def at(self, path: Sequence[str]) -> WireValue | None:
        """What stands at a place; None where that is not to be told without evaluating anything."""
        match path:
            case ("input", *rest):
                found = self._values.input
            case ("steps", name, "output", *rest) if name in self._definition.place:
                outcome = self._values.outcomes.get(self._definition.place[name])
                if outcome is None:
                    return None
                found = outcome.output
            case (name, *rest) if name in self._more:
                found = WireValue.of(self._more[name])
            case _:
                return None
        for name in rest:
            inside = found.json
            if not isinstance(inside, dict) or name not in inside:
                return None
            found = WireValue.of(inside[name])
        return found


class Evaluator:
    """Evaluates what a definition says over the values of a run."""

    def __init__(self, templates: Templates, sandbox: ValueSandbox) -> None:
        self._templates = templates
        self._sandbox = sandbox
        self._compile = lru_cache(10_000)(templates.compile)

    async def decisions(self, definition: Definition, values: RunValues, plan: str) -> dict[int, Decision]:
        """All that can be decided by what is known; see Advance.decisions. `values` know of each step that has ended
        what became of it."""
        found: dict[int, Decision] = dict(values.started)
        graph = Graph(definition, plan)
        graph.look()
        while True:
            left, failed = graph.decide(found.get, lambda *_: None)
            await self.note(definition, values, graph, found)
            if failed is not None:
                return found | await self._undoing(definition, values)
            if not left:
                break
            for step in left:
                found[step] = await self._decide(definition, values, step, graph)
        values.started |= {step: each for step, each in found.items() if isinstance(each, StartStep) and each.items}
        if graph.over:
            found[len(definition.steps)] = await self._end(definition, values, graph)
        return found

    async def winding_up(self, definition: Definition, values: RunValues, plan: str) -> dict[int, Decision]:
        """Of a run that has failed: how what it did is undone."""
        await self.note(definition, values, Graph(definition, plan))
        return await self._undoing(definition, values)

    async def _undoing(self, definition: Definition, values: RunValues) -> dict[int, Decision]:
        found: dict[int, Decision] = {}
        for undo in definition.undo.values():
            try:
                when = definition.steps[undo].when
                called_for = not when or await self._condition(when, definition, values)
                found[undo] = await self._start(definition, values, undo) if called_for else SkipStep()
            except NoValue as error:
                found[undo] = FailStep(EXPRESSION_ERROR, str(error))
        return found

    async def note(
        self, definition: Definition, values: RunValues, graph: Graph, decided: Mapping[int, Decision] | None = None
    ) -> None:
        """Have the values tell, too, what became of steps that ended without a task, of which nothing is stored:
        skipped ones, branches, maps of nothing, and those that failed because an expression has no value."""
        left = [
            step for step in range(len(definition.steps))
            if step not in values.outcomes and graph.state(step) in ENDED
        ]  # fmt: skip
        while left:
            # After those that they need, whose outcomes their expressions may name.
            ready = [step for step in left if not set(left).intersection(definition.needs[step])]
            for step in ready:
                outcome = await self._without_task(definition, values, step, graph, (decided or {}).get(step))
                if outcome is not None:
                    values.outcomes[step] = outcome
            left = [step for step in left if step not in ready]

    async def _without_task(
        self, definition: Definition, values: RunValues, step: int, graph: Graph, decided: Decision | None
    ) -> Outcome | None:
        match graph.state(step), definition.steps[step].kind:
            case StepState.SKIPPED, _:
                return Outcome("SKIPPED")
            case StepState.COMPLETED, StepKind.BRANCH:
                try:
                    case = await self._case(definition.steps[step], definition, values)
                except NoValue as error:
                    return Outcome("COMPLETED", fault=str(error))
                return await self.outcome(definition, values, step, encode_value({"case": case}))
            case StepState.COMPLETED, StepKind.MAP:
                return await self.outcome(definition, values, step, encode_value([]))
            case StepState.FAILED, kind:
                # What it fails by is still so: what it refers to has ended.
                fault = decided or await self._decide(definition, values, step, graph)
                known = fault if isinstance(fault, FailStep) else FailStep("FAILED", "")
                if kind is StepKind.WAIT_PROMISE and known is not fault:
                    known = FailStep("CONFLICT", "its key was that of another open promise")
                return Outcome("FAILED", error={"code": known.code, "message": known.message})
        return None

    async def outcome(self, definition: Definition, values: RunValues, step: int, output: bytes) -> Outcome:
        """What a step that returned this looks like to others."""
        spec, result = definition.steps[step], WireValue(output)
        if spec.output is None:
            return Outcome("COMPLETED", result)
        try:
            scope = Scope(definition, values.with_size(len(output)), {"result": result.json})
            return Outcome("COMPLETED", await self._filled(spec.output, scope))
        except NoValue as error:
            return Outcome("COMPLETED", fault=str(error))

    async def _decide(self, definition: Definition, values: RunValues, step: int, graph: Graph) -> Decision:
        spec = definition.steps[step]
        try:
            for branch, case in spec.cases:
                if not await self._taken(definition, values, definition.place[branch], case, graph):
                    return SkipStep()
            _check(definition, values, definition.needs[step])
            if spec.when and not await self._condition(spec.when, definition, values):
                return SkipStep()
        except NoValue as error:
            return FailStep(EXPRESSION_ERROR, str(error))
        return await self._start(definition, values, step)

    async def _start(self, definition: Definition, values: RunValues, step: int) -> Decision:
        spec = definition.steps[step]
        try:
            match spec.kind:
                case StepKind.BRANCH:
                    await self._case(spec, definition, values)
                    return PassStep()
                case StepKind.SLEEP:
                    return StartStep(delay_us=await self._delay(spec, definition, values))
                case StepKind.MAP:
                    return await self._map(spec, definition, values, step)
                case _:
                    scope = Scope(definition, values)
                    key = await self._key("key", spec.key, scope)
                    bound = await self._key("concurrency.key", spec.concurrency_key, scope)
                    given = await self._input(spec, values.input, scope)
                    return StartStep(given, key=key, bounds=(bound,) if bound else ())
        except NoValue as error:
            return FailStep(EXPRESSION_ERROR, str(error))

    async def _taken(self, definition: Definition, values: RunValues, branch: int, case: str, graph: Graph) -> bool:
        if graph.state(branch) is not StepState.COMPLETED:
            return False
        return await self._case(definition.steps[branch], definition, values) == case

    async def _case(self, spec: Step, definition: Definition, values: RunValues) -> str:
        for name, when in spec.branches:
            if await self._condition(when, definition, values):
                return name
        return "default"

    async def _condition(self, text: str, definition: Definition, values: RunValues) -> bool:
        found = (await self._value(text, Scope(definition, values))).json
        if not isinstance(found, bool):
            raise NoValue(f"{text}: is {_kind(found)}, not true or false")
        return found

    async def _delay(self, spec: Step, definition: Definition, values: RunValues) -> int:
        found: Json = spec.sleep
        if isinstance(spec.sleep, str):
            found = (await self._value(spec.sleep, Scope(definition, values))).json
        if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found <= DELAY_MOST_S:
            raise NoValue(f"seconds: {found!r} is no number from 0 to {DELAY_MOST_S}")
        return round(found * 1_000_000)

    async def _key(self, path: str, template: Template, scope: Scope) -> str:
        if template is None:
            return ""
        found = (await self._filled(template, scope)).json
        if isinstance(found, bool) or not isinstance(found, int | float | str) or not 0 < len(str(found)) <= KEY_MOST:
            raise NoValue(f"{path}: {found!r} is no text of 1 to {KEY_MOST} characters")
        return str(found)

    async def _input(self, spec: Step, usual: WireValue, scope: Scope) -> bytes:
        """What a step's task is given; what is usual where it says nothing."""
        found = usual if spec.input is None else await self._filled(spec.input, scope)
        if spec.kind is StepKind.PUBLISH:
            found = WireValue.of({"payload": found.json, "wait": spec.wait})
        return _encoded(found)

    async def _map(self, spec: Step, definition: Definition, values: RunValues, step: int) -> Decision:
        scope = Scope(definition, values)
        items = (await self._value(spec.over, scope)).json
        if not isinstance(items, list):
            raise NoValue(f"over: is {_kind(items)}, not a list")
        if len(items) > ITEMS_MOST:
            return FailStep("MAP_TOO_LARGE", f"over: has {len(items):,} items; {ITEMS_MOST:,} are the most")
        if not items:
            return PassStep()
        given, bounds = [], []
        for index, item in enumerate(items):
            usual = WireValue.of(item)
            if spec.each is None:
                given.append(_encoded(usual))
                continue
            each = scope.with_more(item=item, index=index)
            given.append(await self._input(spec.each, usual, each))
            if spec.each.concurrency_key is not None:
                bounds.append(await self._key("each.concurrency.key", spec.each.concurrency_key, each))
        return StartStep(items=tuple(given), bounds=tuple(bounds))

    async def _end(self, definition: Definition, values: RunValues, graph: Graph) -> Decision:
        """What the run answers."""
        try:
            if definition.output is not None:
                return StartStep(_encoded(await self._filled(definition.output, Scope(definition, values))))
            last = [
                step for step, each in enumerate(definition.dependents)
                if not each and graph.state(step) is StepState.COMPLETED
            ]  # fmt: skip
            _check(definition, values, last)
            made = {definition.steps[step].id: values.outcomes[step].output for step in last if step in values.outcomes}
            if len(made) == 1:
                return StartStep(_encoded(next(iter(made.values()))))
            return StartStep(_encoded(WireValue.of({name: each.json for name, each in made.items()})))
        except NoValue as error:
            return FailStep(EXPRESSION_ERROR, f"output: {error}")

    async def _filled(self, template: Template, scope: Scope) -> WireValue:
        if isinstance(template, str) and (whole := expression_of(template)) is not None:
            return await self._value(whole, scope, "value: ")
        found: dict[str, Json] = {}
        for path, text in expressions_in(template):
            found[text] = (await self._value(text, scope, f"{path}: ")).json
        return WireValue.of(self._templates.fill(template, found.__getitem__))

    async def _value(self, text: str, scope: Scope, where: str = "") -> WireValue:
        """The value of an expression. What only names a place is looked up: that is a tenth of the cost, and of what is
        handed on as it is, nothing is decoded."""
        compiled = self._compile(text)
        found = scope.at(compiled.path) if compiled.path else None
        if found is not None:
            return found
        try:
            try:
                return WireValue.of(compiled(scope.variables(), scope.size_bytes))
            except Costly:
                return WireValue.of(await self._sandbox.value(text, scope.variables()))
        except NoValue as error:
            raise (NoValue(f"{where}{error}") if where else error) from error


def _check(definition: Definition, values: RunValues, steps: Sequence[int]) -> None:
    """Raise NoValue where the output of one of these steps has none."""
    for step in steps:
        outcome = values.outcomes.get(step)
        if outcome is not None and outcome.fault:
            raise NoValue(f"the output of step {definition.steps[step].id}: {outcome.fault}")


def _encoded(value: WireValue) -> bytes:
    try:
        found = value.wire
    except ValueError as error:
        raise NoValue(str(error)) from error
    if len(found) > VALUE_BYTES_MOST:
        raise NoValue(f"takes {len(found):,} bytes; {VALUE_BYTES_MOST:,} are the most")
    return found


def _kind(value: Json) -> str:
    names: Sequence[tuple[type | tuple[type, ...], str]] = (
        (bool, "true or false"), ((int, float), "a number"), (str, "a text"), (list, "a list"), (dict, "an object"),
    )  # fmt: skip
    return next((name for kind, name in names if isinstance(value, kind)), "null")
