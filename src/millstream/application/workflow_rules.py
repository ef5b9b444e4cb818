"""What is wrong with a workflow: every fault by its field, all of them at once, before anything is saved."""

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from millstream.application.catalog import Schemas
from millstream.application.definitions import EXPRESSION_CHARS_MOST
from millstream.application.ports import Sandbox
from millstream.application.reading_definitions import Draft, definition_of, read
from millstream.domain.errors import FieldFault
from millstream.domain.struct_wire import Json
from millstream.domain.templates import VARIABLES, expression_of, texts_in
from millstream.domain.workflow_rules import ancestors, places, rule_faults
from millstream.domain.workflows import Definition, Step, StepKind, Template, graph_faults

DOCUMENT_BYTES_MOST = 512 * 1024
SCHEMA_BYTES_MOST = 256 * 1024
EXPRESSIONS_MOST = 5000
"""Of a document; one takes about 40 us to compile."""
QUICK_BYTES = 16 * 1024
"""Of a document that is looked at without others taking their turn."""
FAULTS_MOST = 100
COUNTED_MOST = 2000
_TURN = 10
"""Expressions compiled before others take their turn."""

_EARLIER = frozenset({"input", "steps"})
_AFTER = _EARLIER | {"result"}
_ITEMS = _EARLIER | {"item", "index"}
_PLACES = {"result": "in `output` of a step", "item": "in `each` of a map", "index": "in `each` of a map"}
_undeclared = re.compile(r"undeclared reference to '([A-Za-z_]\w*)").search
_NUMBERS = frozenset({"INT", "UINT", "DOUBLE"})


class Compiled(Protocol):
    """A compiled expression; see adapters.values.Expression."""

    @property
    def steps(self) -> frozenset[str]: ...
    @property
    def type(self) -> str: ...
    @property
    def all_steps(self) -> bool: ...


class Expressions(Protocol):
    """Compiles the expressions of workflows; see adapters.values."""

    def compile(self, text: str, scope: frozenset[str]) -> Compiled:
        """Raises ValueError on an expression that does not compile over these variables."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Something registered that a document names.

    Attributes:
        what: "agent", "workflow", "type" or "task".
        version: Of a workflow, "" for the latest.
    """

    field: str
    what: str
    name: str
    version: str = ""


@dataclass(frozen=True, slots=True)
class Known:
    """What is registered, of the names that a document has.

    Attributes:
        workflows: Latest version of each workflow.
        served: Kinds of tasks that connected workers serve.
    """

    agents: Container[str]
    types: Container[str]
    workflows: Mapping[str, int]
    served: Container[str]


@dataclass(slots=True)
class Examined:
    """What was found out about a document, but for what it names.

    Attributes:
        definition: For the engine; None where the document is at fault.
        warnings: What may be meant so, and mostly is not.
    """

    definition: Definition | None = None
    description: str = ""
    references: list[Reference] = field(default_factory=list)
    faults: list[FieldFault] = field(default_factory=list)
    warnings: list[FieldFault] = field(default_factory=list)


async def examine(given: Mapping[str, Any], expressions: Expressions, schemas: Schemas, sandbox: Sandbox) -> Examined:
    """Find out what is wrong with a document by itself."""
    size = len(orjson.dumps(given))
    if size > DOCUMENT_BYTES_MOST:
        text = (
            f"has {size:,} bytes of JSON; the limit is {DOCUMENT_BYTES_MOST:,} bytes: move large constants to the input"
        )
        return Examined(faults=[FieldFault("", text, "TOO_LARGE")])
    # Within bounds anybody may send what takes a second to look at: others go on meanwhile.
    draft, found = _looked_at(given) if size < QUICK_BYTES else await asyncio.to_thread(_looked_at, given)
    async for fault in _expression_faults(draft, given, expressions):
        found.faults.append(fault)
    for name in ("input_schema", "output_schema"):
        async for fault in _schema_faults(given.get(name), name, schemas, sandbox):
            found.faults.append(fault)
    if draft.document is not None and not found.faults:
        found.definition, found.description = definition_of(draft.document), draft.document.description
    return found


def _looked_at(given: Mapping[str, Any]) -> tuple[Draft, Examined]:
    """What is wrong with a document, but for its expressions and schemas."""
    draft = read(given)
    faults = itertools.chain(draft.faults, graph_faults(draft.steps), rule_faults(draft.steps), _heartbeats(draft))
    found = Examined(references=[*_references(draft)], faults=[*itertools.islice(faults, COUNTED_MOST)])
    found.warnings += itertools.islice(_half_templates(given), COUNTED_MOST)
    return draft, found


def unknown(name: str, references: Sequence[Reference], known: Known) -> tuple[list[FieldFault], list[FieldFault]]:
    """Faults, and warnings, of what the workflow of this name refers to."""
    faults, warnings = [], []
    for each in references:
        match each.what:
            case "agent" if each.name not in known.agents:
                faults.append(
                    FieldFault(each.field, f"there is no agent {each.name!r}; register it first", "NOT_FOUND")
                )
            case "type" if each.name not in known.types:
                text = f"there is no artifact type {each.name!r}; register it first"
                faults.append(FieldFault(each.field, text, "NOT_FOUND"))
            case "task" if each.name not in known.served:
                text = f"no connected worker serves tasks of kind {each.name!r}: they wait until one does"
                warnings.append(FieldFault(each.field, text, "NOT_SERVED"))
            case "workflow":
                faults += _unknown_workflow(name, each, known.workflows)
    return faults, warnings


def _unknown_workflow(name: str, given: Reference, workflows: Mapping[str, int]) -> Iterator[FieldFault]:
    latest = workflows.get(given.name)
    if latest is None and given.name != name:
        yield FieldFault(given.field, f"there is no workflow {given.name!r}; create it first", "NOT_FOUND")
    elif given.version and int(given.version) > (latest or 0):
        field_ = given.field.rpartition(".")[0] + ".version"
        text = f"workflow {given.name!r} has no version {given.version}; its latest is {latest or 0}"
        yield FieldFault(field_, text, "NOT_FOUND")


def bounded(faults: list[FieldFault]) -> list[FieldFault]:
    """The first faults, and how many there are besides."""
    if len(faults) <= FAULTS_MOST:
        return faults
    return [*faults[:FAULTS_MOST], FieldFault("", f"and {len(faults) - FAULTS_MOST} more, at least", "MORE")]


_TARGETS = {
    StepKind.TASK: ("task", "task"), StepKind.AGENT: ("agent", "agent"), StepKind.WORKFLOW: ("workflow", "workflow"),
    StepKind.PUBLISH: ("type", "type"),
}  # fmt: skip


def _references(draft: Draft) -> Iterator[Reference]:
    for number in sorted(draft.whole):
        step, path = draft.steps[number], f"steps[{number}]"
        if step.each is not None:
            step, path = step.each, f"{path}.each"
        if step.kind in _TARGETS:
            name, what = _TARGETS[step.kind]
            yield Reference(f"{path}.{name}", what, step.target, step.version)


def _heartbeats(draft: Draft) -> Iterator[FieldFault]:
    for number in sorted(draft.whole):
        step, path = draft.steps[number], f"steps[{number}]"
        if step.each is not None:
            step, path = step.each, f"{path}.each"
        if step.timeouts.fault:
            yield FieldFault(f"{path}.timeouts.heartbeat", step.timeouts.fault)
        if step.kind is StepKind.TASK and step.target.startswith("agent:"):
            yield FieldFault(
                f"{path}.task", 'kinds beginning with "agent:" are the server\'s; use a step of kind agent'
            )


def _half_templates(given: Mapping[str, Any]) -> Iterator[FieldFault]:
    """Texts with an expression in the middle, which stand for themselves."""
    looked = {name: given.get(name) for name in ("steps", "output")}
    for path, text in texts_in(_template(looked)):
        if "${" in text and expression_of(text) is None:
            hint = 'stands as it is: only a text that is "${CEL}" as a whole is evaluated; join texts within it, with +'
            yield FieldFault(path, hint, "NOT_EVALUATED")


def _template(value: Any) -> Template:
    if isinstance(value, dict):
        return {key: _template(each) for key, each in value.items()}
    return tuple(map(_template, value)) if isinstance(value, list) else value


@dataclass(frozen=True, slots=True)
class _Place:
    """An expression of a document.

    Attributes:
        step: Number of its step; -1 in the output of runs.
        wanted: What it must give: "bool", "list", "number" or "" for anything.
    """

    field: str
    text: str
    step: int
    scope: frozenset[str]
    wanted: str = ""


def _expressions_of(step: Step, number: int) -> Iterator[_Place]:
    path = f"steps[{number}]"

    def template(name: str, value: Template, scope: frozenset[str] = _EARLIER) -> Iterator[_Place]:
        for where, text in texts_in(value, f"{path}.{name}"):
            found = expression_of(text)
            if found is not None:
                yield _Place(where, found, number, scope)

    if step.when:
        yield _Place(f"{path}.when", step.when, number, _EARLIER, "bool")
    if isinstance(step.sleep, str):
        yield _Place(f"{path}.seconds", step.sleep, number, _EARLIER, "number")
    if step.kind is StepKind.MAP:
        yield _Place(f"{path}.over", step.over, number, _EARLIER, "list")
    for index, (_, when) in enumerate(step.branches):
        yield _Place(f"{path}.branches[{index}].when", when, number, _EARLIER, "bool")
    yield from template("payload" if step.kind is StepKind.PUBLISH else "input", step.input)
    yield from template("key", step.key)
    yield from template("concurrency.key", step.concurrency_key)
    yield from template("output", step.output, _AFTER)
    if step.each is not None:
        yield from template("each.input", step.each.input, _ITEMS)
        yield from template("each.concurrency.key", step.each.concurrency_key, _ITEMS)


def _all_expressions(draft: Draft, given: Mapping[str, Any]) -> Iterator[_Place]:
    for number in sorted(draft.whole):
        yield from _expressions_of(draft.steps[number], number)
    for where, text in texts_in(_template(given.get("output")), "output"):
        found = expression_of(text)
        if found is not None:
            yield _Place(where, found, -1, _EARLIER)


async def _expression_faults(
    draft: Draft, given: Mapping[str, Any], expressions: Expressions
) -> AsyncIterator[FieldFault]:
    place, before = places(draft.steps), ancestors(draft.steps)
    undoing = {step.compensation for step in draft.steps if step.compensation}
    for count, each in enumerate(_all_expressions(draft, given)):
        if count == EXPRESSIONS_MOST:
            text = f"have more than {EXPRESSIONS_MOST} expressions; make it several workflows"
            yield FieldFault("steps", text, "OUT_OF_RANGE")
            return
        if count % _TURN == 0:
            await asyncio.sleep(0)
        try:
            compiled = _compiled(expressions, each)
        except ValueError as error:
            yield FieldFault(each.field, str(error))
            continue
        if compiled.all_steps:
            yield FieldFault(each.field, "uses `steps` as a whole; name the step, as in steps.pay.output")
        for name in sorted(compiled.steps):
            if name not in place:
                yield FieldFault(each.field, f"refers to step {name!r}, which there is not", "NOT_FOUND")
            elif name in undoing and each.step < 0:
                yield FieldFault(each.field, f"refers to step {name!r}, which runs only where the run fails")
            elif each.step in before and not before[each.step] >> place[name] & 1:
                text = f"refers to step {name!r}, which need not have ended when this one starts; add it to needs"
                yield FieldFault(each.field, text, "NOT_BEFORE")


def _compiled(expressions: Expressions, place: _Place) -> Compiled:
    """The compiled expression. Raises ValueError with what is wrong with it."""
    if len(place.text) > EXPRESSION_CHARS_MOST:
        raise ValueError(f"must have at most {EXPRESSION_CHARS_MOST} characters")
    try:
        compiled = expressions.compile(place.text, place.scope)
    except ValueError as error:
        found = _undeclared(str(error))
        if found is None:
            # What the parser would have taken instead is a list of all there is.
            raise ValueError(f"is no expression: {str(error).partition(' expecting {')[0]}") from error
        name = found[1]
        here = ", ".join(f"`{each}`" for each in sorted(place.scope))
        if name in VARIABLES:
            raise ValueError(f"uses `{name}`, which stands only {_PLACES[name]}; here there are {here}") from error
        raise ValueError(f"uses {name!r}, which there is not; here there are {here}") from error
    kind = compiled.type
    fits = {"bool": kind == "BOOL", "list": kind.startswith("LIST"), "number": kind in _NUMBERS}
    if kind != "DYN" and not fits.get(place.wanted, True):
        article = {"bool": "true or false", "list": "a list", "number": "a number of seconds"}[place.wanted]
        raise ValueError(f"is of type {kind.lower()}; it must be {article}")
    return compiled


async def _schema_faults(given: Json, name: str, schemas: Schemas, sandbox: Sandbox) -> AsyncIterator[FieldFault]:
    if not isinstance(given, dict):
        return
    text = orjson.dumps(given).decode()
    if len(text) > SCHEMA_BYTES_MOST:
        yield FieldFault(name, f"must be at most {SCHEMA_BYTES_MOST} bytes of JSON", "TOO_LARGE")
        return
    try:
        if not schemas.is_quick_to_read(text):
            await sandbox.read(text)
        schemas.compile(text)
    except ValueError as error:
        yield FieldFault(name, f"is not a JSON Schema: {error}")
