"""What steps are given of what steps before them have made: looked up where an expression only names a place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.adapters.values import CelExpressions, compile_expression
from millstream.application.step_values import Evaluator, Outcome, RunValues, Scope
from millstream.application.wire_values import WireValue
from millstream.domain.graph import FailStep, Graph, StartStep
from millstream.domain.struct_wire import Json, decode_value, encode_value
from millstream.domain.workflows import Definition, Step, StepKind, Template

NAMES = st.sampled_from(["n", "list", "a", "output", "input"])
VALUES: st.SearchStrategy[Json] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5),  # as what is stored
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


class NoSandbox:
    """Nothing here is costly."""

    async def value(self, text: str, variables: Mapping[str, Json]) -> Json:
        raise AssertionError(text)


def defined(input_: Template = None, **fields: Any) -> Definition:
    """A step that needs another."""
    return Definition("w", (Step("a", StepKind.TASK), Step("b", StepKind.TASK, needs=("a",), input=input_, **fields)))


def after(made: bytes, given_: bytes = b"") -> RunValues:
    """The first has made this."""
    return RunValues(0, WireValue(given_), {0: Outcome("COMPLETED", WireValue(made))})


async def decided(definition: Definition, values: RunValues) -> Any:
    """What is decided of the second."""
    plan = "C" + Graph(definition).text[1:]
    return (await Evaluator(CelExpressions(), NoSandbox()).decisions(definition, values, plan))[1]


def places(value: Json, path: str) -> list[str]:
    """All places within a value."""
    found = [path]
    if isinstance(value, dict):
        for name, each in value.items():
            found += places(each, f"{path}.{name}")
    return found


@settings(deadline=None)
@given(VALUES, VALUES)
def test_a_place_has_the_value_that_its_expression_has(made: Json, given_: Json) -> None:
    """Whether it is looked up or evaluated, but for the order of keys, which only the former keeps."""
    scope = Scope(defined(), after(encode_value(made), encode_value(given_)))
    for text in [*places(made, "steps.a.output"), *places(given_, "input"), "steps.a.status"]:
        compiled = compile_expression(text)
        looked_up = scope.at(compiled.path)
        evaluated = compiled(scope.variables(), 0)
        assert (looked_up is None) == (text == "steps.a.status")
        if looked_up is not None:
            found = (evaluated, looked_up.json, decode_value(looked_up.wire))
            assert len({json.dumps(each, sort_keys=True) for each in found}) == 1


async def test_what_is_only_handed_on_stays_as_it_is() -> None:
    """Byte for byte: nobody has to understand it."""
    odd = b"\x2a\x00\x2a\x00"
    for step in (defined("${steps.a.output}"), defined("${ steps.a.output }"), defined()):
        assert await decided(step, after(odd, odd)) == StartStep(odd)
    assert await decided(defined(), after(b"")) == StartStep(encode_value(None))


async def test_what_cannot_be_read_has_no_value() -> None:
    """It fails the step that looks into it, not who serves the run."""
    for text in ("${steps.a.output.n}", "${steps.a.output.n + 1}"):
        found = await decided(defined(text), after(b"\xff"))
        assert isinstance(found, FailStep)
        assert (found.code, "malformed" in found.message) == ("EXPRESSION_ERROR", True)


async def test_a_place_that_there_is_not_has_no_value() -> None:
    """The error names it."""
    made = encode_value({"n": 1})
    for text, named in (("${steps.a.output.m}", "m"), ("${steps.a.output.n.m}", ""), ("${input.x.y}", "")):
        found = await decided(defined(text), after(made))
        assert isinstance(found, FailStep)
        assert found.code == "EXPRESSION_ERROR"
        assert found.message.startswith("value: ")
        assert named in found.message
