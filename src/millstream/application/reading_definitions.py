"""Documents read strictly, every fault by its field, and turned into what the engine runs."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, assert_never

import orjson
from pydantic import Field, TypeAdapter, ValidationError

from millstream.application.definitions import (
    LISTED_MOST,
    AgentStep,
    AnyStep,
    AnyWork,
    BranchStep,
    Document,
    EachAgent,
    EachTask,
    EachWorkflow,
    Limits,
    MapStep,
    PromiseStep,
    PublishStep,
    Retry,
    SleepStep,
    TaskStep,
    WorkflowStep,
)
from millstream.domain.errors import FieldFault
from millstream.domain.retry import SECOND_US, RetryPolicy, Timeouts
from millstream.domain.templates import expression_of
from millstream.domain.workflows import STEPS_MOST, Definition, OnFailure, Step, StepKind, Template

FAULTS_COUNTED: Final = 1000
"""Faults of fields that are told at most."""
ONCE: Final = RetryPolicy(max_attempts=1)
_ONE: Final[TypeAdapter[AnyStep]] = TypeAdapter(Annotated[AnyStep, Field(discriminator="kind")])


@dataclass(frozen=True, slots=True)
class Draft:
    """What could be read of a document.

    Attributes:
        document: All of it, or None where a field is at fault.
        steps: Its steps; of one that is at fault, what others may say of it.
        whole: Numbers of the steps that could be read.
        faults: What is wrong with fields by themselves.
    """

    document: Document | None
    steps: tuple[Step, ...]
    whole: frozenset[int]
    faults: tuple[FieldFault, ...]


def read(given: Mapping[str, Any]) -> Draft:
    """What can be read of a document."""
    given = _cut(given)
    try:
        document = Document.model_validate(given, strict=True)
    except ValidationError as error:
        listed = given.get("steps")
        found = [_tried(each, number) for number, each in enumerate(listed if isinstance(listed, list) else [])]
        whole = frozenset(number for number, (_, fine) in enumerate(found) if fine)
        faults = tuple(itertools.islice(_faults(error), FAULTS_COUNTED))
        return Draft(None, tuple(step for step, _ in found), whole, faults)
    return Draft(document, steps_of(document), frozenset(range(len(document.steps))), ())


def _cut(given: Mapping[str, Any]) -> dict[str, Any]:
    """The document without what is beyond the bounds of lists, but for one item that tells: pydantic looks at each."""
    found = dict(given)
    if isinstance(steps := given.get("steps"), list):
        found["steps"] = [_cut_step(step) if isinstance(step, dict) else step for step in steps[: STEPS_MOST + 1]]
    return found


def _cut_step(step: dict[str, Any]) -> dict[str, Any]:
    long = {
        name: step[name][: LISTED_MOST + 1]
        for name in ("needs", "branches")
        if isinstance(step.get(name), list) and len(step[name]) > LISTED_MOST
    }
    return step | long if long else step


def _tried(given: Any, number: int) -> tuple[Step, bool]:
    """A step of a document at fault, and whether the step is none of its faults."""
    try:
        return _step(_ONE.validate_python(given, strict=True)), True
    except ValidationError:
        given = given if isinstance(given, dict) else {}
        name, kind, needs = given.get("id"), given.get("kind"), given.get("needs")
        parts = [str(need).partition(".") for need in (needs if isinstance(needs, list) else [])]
        cases = given.get("branches") if kind == StepKind.BRANCH else None
        branches = (
            [str(case.get("name")) for case in cases if isinstance(case, dict)] if isinstance(cases, list) else []
        )
        step = Step(
            name if isinstance(name, str) else f"steps[{number}]",
            StepKind(kind) if isinstance(kind, str) and kind in _TAGS else StepKind.TASK,
            needs=tuple(need for need, _, _ in parts),
            cases=tuple((need, case) for need, _, case in parts if case),
            branches=tuple((case, "") for case in branches),
        )
        return step, False


def definition_of(document: Document, version: int = 0) -> Definition:
    """For the engine. The document must be free of faults."""
    return Definition(
        document.name, steps_of(document), _frozen(document.output), _us(document.timeout), version,
        _labels(document.labels), _text(document.input_schema), _text(document.output_schema),
    )  # fmt: skip


def steps_of(document: Document) -> tuple[Step, ...]:
    """The steps for the engine."""
    return tuple(map(_step, document.steps))


def _step(given: AnyStep) -> Step:
    failing = given.on_failure
    undo = "" if isinstance(failing, str) else failing.compensate
    needs = [need.partition(".") for need in given.needs]
    common: dict[str, Any] = {
        "id": given.id, "kind": StepKind(given.kind), "needs": tuple(need for need, _, _ in needs),
        "cases": tuple((need, case) for need, _, case in needs if case), "when": _cel(given.when),
        "output": _frozen(given.output), "labels": _labels(given.labels), "compensation": undo,
        "on_failure": OnFailure(failing) if isinstance(failing, str) else OnFailure.COMPENSATE,
    }  # fmt: skip
    match given:
        case TaskStep() | AgentStep() | WorkflowStep():
            return Step(**common, **_work(given))
        case PublishStep():
            return Step(**common, target=given.type, input=_frozen(given.payload), wait=given.wait, retry=ONCE)
        case PromiseStep():
            limits = Timeouts(_us(given.timeout), 0, 0)
            return Step(**common, target=given.promise, key=_frozen(given.key), timeouts=limits, retry=ONCE)
        case SleepStep():
            seconds = given.seconds if isinstance(given.seconds, int | float) else _cel(given.seconds)
            return Step(**common, sleep=seconds, retry=ONCE)
        case MapStep():
            each = given.each
            item = Step(given.id, StepKind(each.kind), labels=_labels(each.labels), **_work(each))
            return Step(**common, over=_cel(given.over), each=item, width=given.concurrency, retry=ONCE)
        case BranchStep():
            cases = tuple((case.name, _cel(case.when)) for case in given.branches)
            return Step(**common, branches=cases, retry=ONCE)
        case _:
            assert_never(given)


def _work(given: AnyWork | TaskStep | AgentStep | WorkflowStep) -> dict[str, Any]:
    common: dict[str, Any] = {"input": _frozen(given.input), "retry": _policy(given.retry)}
    if isinstance(given, AgentStep | EachAgent | WorkflowStep | EachWorkflow):
        # No worker is given its task: from when that is ready, its run has so long.
        common["timeouts"] = Timeouts(schedule_to_start_us=int(given.timeout * SECOND_US), start_to_close_us=0)
    match given:
        case TaskStep() | EachTask():
            common |= {"target": given.task, "queue": given.queue, "priority": given.priority}
            bound = given.concurrency
            if bound is not None:
                common |= {"concurrency_key": _frozen(bound.key), "concurrency_limit": bound.limit}
            return common | {"timeouts": _timeouts(given.timeouts)}
        case AgentStep() | EachAgent():
            return common | {"target": given.agent}
        case WorkflowStep() | EachWorkflow():
            version = "" if given.version is None else str(given.version)
            return common | {"target": given.workflow, "version": version}
        case _:
            assert_never(given)


def _policy(given: Retry) -> RetryPolicy:
    return RetryPolicy(
        _us(given.initial), given.factor, _us(given.maximum), given.jitter, given.max_attempts,
        tuple(given.non_retryable),
    )  # fmt: skip


def _timeouts(given: Limits) -> Timeouts:
    return Timeouts(_us(given.schedule_to_start), _us(given.start_to_close), _us(given.heartbeat))


def _us(seconds: float) -> int:
    return round(seconds * SECOND_US)


def _cel(text: str) -> str:
    """An expression, written as such or as a template."""
    found = expression_of(text)
    return text if found is None else found


def _labels(given: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(given.items()))


def _text(schema: Mapping[str, Any] | None) -> str:
    return "" if schema is None else orjson.dumps(schema).decode()


def _frozen(value: Any) -> Template:
    if isinstance(value, dict):
        return {key: _frozen(each) for key, each in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _faults(error: ValidationError) -> Iterator[FieldFault]:
    told: set[str] = set()
    for each in error.errors(include_url=False, include_context=True, include_input=False):
        places = each["loc"]
        text = _WORDS.get(each["type"], each["msg"][:1].lower() + each["msg"][1:]).format(**each.get("ctx", {}))
        code = _CODES.get(each["type"], "INVALID")
        for number, place in enumerate(places):
            # One of several forms: pydantic tells what each of them lacks.
            if place in _FORMS and number in (3, 4) and places[0] == "steps" and len(places) > number + 1:
                places, text, code = places[: number + 1], _FORMS[str(place)], "INVALID"
                break
        if each["type"].startswith("union_tag"):
            places = (*places, "kind")
        path = _path(places)
        if text not in _FORMS.values() or path not in told:
            yield FieldFault(path, text, code)
        told.add(path)


_FORMS = {
    "seconds": "must be seconds, from 0 to 2592000, or CEL of such",
    "on_failure": 'must be "fail", "continue" or {"compensate": "<id of a step>"}',
    "payload": 'must be an object, or "${CEL}" of one',
}
_CODES = {
    "missing": "REQUIRED", "extra_forbidden": "UNKNOWN_FIELD", "union_tag_not_found": "REQUIRED",
    "too_long": "OUT_OF_RANGE", "too_short": "OUT_OF_RANGE", "string_too_long": "OUT_OF_RANGE",
    "string_too_short": "OUT_OF_RANGE", "greater_than_equal": "OUT_OF_RANGE", "less_than_equal": "OUT_OF_RANGE",
    "string_type": "WRONG_TYPE", "int_type": "WRONG_TYPE", "float_type": "WRONG_TYPE", "bool_type": "WRONG_TYPE",
    "list_type": "WRONG_TYPE", "dict_type": "WRONG_TYPE", "model_type": "WRONG_TYPE",
    "model_attributes_type": "WRONG_TYPE",
}  # fmt: skip
_WORDS = {
    "missing": "is required",
    "extra_forbidden": "is not a field here",
    "union_tag_not_found": "is required: one of " + ", ".join(StepKind),
    "union_tag_invalid": "must be one of {expected_tags}",
    "string_pattern_mismatch": "must match {pattern}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must have at least {min_length} characters",
    "too_long": "must have at most {max_length} items",
    "too_short": "must have at least {min_length} items",
    "string_type": "must be a text",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
}
_TAGS = frozenset(StepKind)


def _path(places: Sequence[int | str]) -> str:
    out = ""
    for number, place in enumerate(places):
        if isinstance(place, int):
            out += f"[{place}]"
        elif place == "[key]":
            # The name of a label, which stands before it, is what is wrong.
            continue
        elif not (place in _TAGS and number and (isinstance(places[number - 1], int) or places[number - 1] == "each")):
            # The kind of a step, by which its rules were chosen, is no part of the path.
            out += f".{place}" if out else place
    return out
