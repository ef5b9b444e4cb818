"""What the steps of a run were given and have made, and what that means for those that are due.

Expressions are evaluated here, before any transaction; one that may take long is left to the sandbox.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

from millstream.application.ports import Costly, NoValue
from millstream.domain.graph import ENDED, Decision, FailStep, Graph, PassStep, SkipStep, StartStep, StepState
from millstream.domain.struct_wire import Json, decode_value, encode_value
from millstream.domain.templates import expressions_in
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
    output: Json = None
    error: dict[str, Json] | None = None
    fault: str = ""

    def seen(self) -> dict[str, Json]:
        """As expressions see it."""
        shown: dict[str, Json] = {"status": self.status, "output": self.output}
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
    input: Json
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    items: dict[int, dict[int, bytes]] = field(default_factory=dict)
    started: dict[int, StartStep] = field(default_factory=dict)
    errors: dict[int, tuple[str, str]] = field(default_factory=dict)
    size_bytes: int = 0

    def with_outcome(self, step: int, outcome: Outcome, size_bytes: int) -> "RunValues":
        """These, and one outcome more: a copy, because what it is decided by may be refused."""
        return RunValues(
            self.redone, self.input, {**self.outcomes, step: outcome}, self.items, {**self.started},
            self.errors, self.size_bytes + size_bytes,
        )  # fmt: skip


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
        while True:
            graph = Graph(definition, plan)
            graph.look()
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
                    return Outcome("COMPLETED", None, fault=str(error))
                return await self.outcome(definition, values, step, encode_value({"case": case}))
            case StepState.COMPLETED, StepKind.MAP:
                return await self.outcome(definition, values, step, encode_value([]))
            case StepState.FAILED, kind:
                # What it fails by is still so: what it refers to has ended.
                fault = decided or await self._decide(definition, values, step, graph)
                known = fault if isinstance(fault, FailStep) else FailStep("FAILED", "")
                if kind is StepKind.WAIT_PROMISE and known is not fault:
                    known = FailStep("CONFLICT", "its key was that of another open promise")
                return Outcome("FAILED", None, {"code": known.code, "message": known.message})
        return None

    async def outcome(self, definition: Definition, values: RunValues, step: int, output: bytes) -> Outcome:
        """What a step that returned this looks like to others."""
        spec = definition.steps[step]
        result = decode_value(output)
        if spec.output is None:
            return Outcome("COMPLETED", result)
        try:
            size = values.size_bytes + len(output)
            mapped = await self._filled(spec.output, {**_variables(definition, values), "result": result}, size)
            return Outcome("COMPLETED", mapped)
        except NoValue as error:
            return Outcome("COMPLETED", None, fault=str(error))

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
                    variables = _variables(definition, values)
                    key = await self._key("key", spec.key, variables, values)
                    bound = await self._key("concurrency.key", spec.concurrency_key, variables, values)
                    given = await self._input(spec, variables, values)
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
        found = await self._value(text, _variables(definition, values), values.size_bytes)
        if not isinstance(found, bool):
            raise NoValue(f"{text}: is {_kind(found)}, not true or false")
        return found

    async def _delay(self, spec: Step, definition: Definition, values: RunValues) -> int:
        found: Json = spec.sleep
        if isinstance(spec.sleep, str):
            found = await self._value(spec.sleep, _variables(definition, values), values.size_bytes)
        if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found <= DELAY_MOST_S:
            raise NoValue(f"seconds: {found!r} is no number from 0 to {DELAY_MOST_S}")
        return round(found * 1_000_000)

    async def _key(self, path: str, template: Template, variables: Mapping[str, Json], values: RunValues) -> str:
        if template is None:
            return ""
        found = await self._filled(template, variables, values.size_bytes)
        if isinstance(found, bool) or not isinstance(found, int | float | str) or not 0 < len(str(found)) <= KEY_MOST:
            raise NoValue(f"{path}: {found!r} is no text of 1 to {KEY_MOST} characters")
        return str(found)

    async def _input(self, spec: Step, variables: Mapping[str, Json], values: RunValues) -> bytes:
        """What a step's task is given; the run's input where it says nothing."""
        found = variables["input"] if spec.input is None else None
        if spec.input is not None:
            found = await self._filled(spec.input, variables, values.size_bytes)
        if spec.kind is StepKind.PUBLISH:
            found = {"payload": found, "wait": spec.wait}
        return _encoded(found)

    async def _map(self, spec: Step, definition: Definition, values: RunValues, step: int) -> Decision:
        variables = _variables(definition, values)
        items = await self._value(spec.over, variables, values.size_bytes)
        if not isinstance(items, list):
            raise NoValue(f"over: is {_kind(items)}, not a list")
        if len(items) > ITEMS_MOST:
            return FailStep("MAP_TOO_LARGE", f"over: has {len(items):,} items; {ITEMS_MOST:,} are the most")
        if not items:
            return PassStep()
        given, bounds = [], []
        for index, item in enumerate(items):
            each = {**variables, "item": item, "index": index}
            if spec.each is None or spec.each.input is None:
                given.append(_encoded(item))
            else:
                given.append(await self._input(spec.each, each, values))
            if spec.each is not None and spec.each.concurrency_key is not None:
                bounds.append(await self._key("each.concurrency.key", spec.each.concurrency_key, each, values))
        return StartStep(items=tuple(given), bounds=tuple(bounds))

    async def _end(self, definition: Definition, values: RunValues, graph: Graph) -> Decision:
        """What the run answers."""
        try:
            if definition.output is not None:
                return StartStep(_encoded(await self._filled(
                    definition.output, _variables(definition, values), values.size_bytes
                )))  # fmt: skip
            last = [
                step for step, each in enumerate(definition.dependents)
                if not each and graph.state(step) is StepState.COMPLETED
            ]  # fmt: skip
            _check(definition, values, last)
            made = {definition.steps[step].id: values.outcomes[step].output for step in last if step in values.outcomes}
            return StartStep(_encoded(next(iter(made.values())) if len(made) == 1 else made))
        except NoValue as error:
            return FailStep(EXPRESSION_ERROR, f"output: {error}")

    async def _filled(self, template: Template, variables: Mapping[str, Json], size_bytes: int) -> Json:
        found: dict[str, Json] = {}
        for path, text in expressions_in(template):
            try:
                found[text] = await self._value(text, variables, size_bytes)
            except NoValue as error:
                raise NoValue(f"{path or 'value'}: {error}") from error
        return self._templates.fill(template, found.__getitem__) if found else self._templates.fill(template, str)

    async def _value(self, text: str, variables: Mapping[str, Json], size_bytes: int) -> Json:
        try:
            return self._compile(text)(variables, size_bytes)
        except Costly:
            return await self._sandbox.value(text, variables)


def _variables(definition: Definition, values: RunValues) -> dict[str, Json]:
    steps: dict[str, Json] = {definition.steps[step].id: each.seen() for step, each in values.outcomes.items()}
    return {"input": values.input, "steps": steps}


def _check(definition: Definition, values: RunValues, steps: Sequence[int]) -> None:
    """Raise NoValue where the output of one of these steps has none."""
    for step in steps:
        outcome = values.outcomes.get(step)
        if outcome is not None and outcome.fault:
            raise NoValue(f"the output of step {definition.steps[step].id}: {outcome.fault}")


def _encoded(value: Json) -> bytes:
    try:
        found = encode_value(value)
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
