"""What is wrong with a workflow as a whole: every fault by its field, all of them at once."""

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.test_definitions import FULL

from millstream.adapters.schemas import JsonSchemas
from millstream.adapters.values import CelExpressions
from millstream.application.workflow_rules import Examined, Known, bounded, examine, unknown
from millstream.domain.errors import FieldFault
from millstream.domain.struct_wire import Json
from millstream.domain.workflow_rules import ancestors
from millstream.domain.workflows import Step, StepKind


class Sandbox:
    """A process of its own that finds every schema too slow to read."""

    async def read(self, schema: str) -> None:
        raise ValueError("takes too long to read")

    async def faults(self, schema: str, value: Json, prefix: str) -> list[FieldFault]:
        raise AssertionError(schema)

    async def condition(self, text: str, variables: Any) -> bool:
        raise AssertionError(text)

    async def key(self, text: str, variables: Any) -> str | None:
        raise AssertionError(text)


def examined(*steps: Any, **fields: Any) -> Examined:
    """What is found out about a document."""
    document = {"name": "w", "steps": [*steps]} | fields
    return asyncio.run(examine(document, CelExpressions(), JsonSchemas(), Sandbox()))


def faults(*steps: Any, **fields: Any) -> list[tuple[str, str]]:
    """Fields at fault, and how."""
    return [(each.field, each.code) for each in examined(*steps, **fields).faults]


def messages(*steps: Any, **fields: Any) -> list[str]:
    """What is told of the faults."""
    return [f"{each.field}: {each.message}" for each in examined(*steps, **fields).faults]


def task(name: str, *needs: str, **fields: Any) -> dict[str, Any]:
    """A step that is a task of its own name."""
    return {"id": name, "kind": "task", "task": name, "needs": [*needs]} | fields


def branch(name: str, **cases: str) -> dict[str, Any]:
    """A step that chooses."""
    return {"id": name, "kind": "branch", "branches": [{"name": case, "when": when} for case, when in cases.items()]}


def test_a_fine_document_has_a_definition() -> None:
    found = examined(task("a"), task("b", "a", input="${steps.a.output}"), description="does it")
    assert (found.faults, found.warnings) == ([], [])
    assert found.definition is not None
    assert (found.description, found.definition.needs) == ("does it", ((), (0,)))


def test_doubled_ids_unknown_needs_and_cycles() -> None:
    """WM-2: all in one answer, beside faults of fields; a cycle is shown."""
    steps = (task("a"), task("a", "x"), task("b", "c"), task("c", "b"), {"id": "d", "kind": "sleep", "needs": ["a"]})
    assert messages(*steps) == [
        "steps[4].seconds: is required",
        "steps[1].id: 'a' is steps[0] already",
        "steps[1].needs[0]: there is no step 'x'",
        "steps[2].needs: is a cycle: b -> c -> b",
    ]


def test_a_step_that_needs_itself() -> None:
    assert faults(task("a", "a")) == [("steps[0].needs", "CYCLE")]


def test_needs_of_branches() -> None:
    """A case must be one of the branch's, or "default"; a join needs one case of it."""
    check = branch("check", big="input.x > 1")
    assert faults(check, task("a", "check.big"), task("b", "check.default"), task("c", "check")) == []
    assert messages(check, task("a", "check.small")) == [
        "steps[1].needs[0]: the branch 'check' has no case 'small'; there are big, default"
    ]
    assert faults(check, task("a", "check.big", "check.default")) == [("steps[1].needs[1]", "DUPLICATE")]
    assert faults(task("a"), task("b", "a.big")) == [("steps[1].needs[0]", "NOT_FOUND")]
    assert faults(task("a"), task("b", "a", "a")) == [("steps[1].needs[1]", "DUPLICATE")]
    assert faults(task("b", "x.big")) == [("steps[0].needs[0]", "NOT_FOUND")]
    twice = {"id": "c", "kind": "branch", "branches": [{"name": "x", "when": "true"}] * 2}
    assert faults(twice) == [("steps[0].branches[1].name", "DUPLICATE")]
    assert faults(branch("c", default="true")) == [("steps[0].branches[0].name", "INVALID")]


def undone(name: str, by: str, *needs: str) -> dict[str, Any]:
    """A step with a compensation."""
    return task(name, *needs, on_failure={"compensate": by})


def test_compensations() -> None:
    """They exist, undo one other step each, start by nothing else, and see what that one saw."""
    assert faults(task("z"), undone("a", "u", "z"), task("u", input=["${steps.a.output}", "${steps.z.output}"])) == []
    assert faults(task("z"), undone("a", "u", "z"), task("u", "a", "z")) == []
    assert faults(undone("a", "x")) == [("steps[0].on_failure.compensate", "NOT_FOUND")]
    assert faults(undone("a", "a")) == [("steps[0].on_failure.compensate", "INVALID")]
    assert faults(undone("a", "u"), undone("b", "u"), task("u")) == [("steps[1].on_failure.compensate", "DUPLICATE")]
    assert faults(undone("a", "u"), task("u"), task("b", "u")) == [("steps[2].needs[0]", "INVALID")]
    assert faults(undone("a", "u"), task("u", "later"), task("later", "a")) == [("steps[1].needs[0]", "INVALID")]
    assert faults(undone("a", "u"), undone("u", "v"), task("v")) == [("steps[1].on_failure", "INVALID")]
    assert faults(undone("a", "u"), {"id": "u", "kind": "sleep", "seconds": 1}) == [("steps[1].kind", "INVALID")]
    assert faults(undone("a", "u"), task("u"), task("b", input="${steps.u.output}")) == [
        ("steps[2].input", "NOT_BEFORE")
    ]
    assert faults(undone("a", "u"), task("u"), output="${steps.u.output}") == [("output", "INVALID")]
    assert faults(undone("a", "u"), task("u", input="${steps.b.output}"), task("b", "a")) == [
        ("steps[1].input", "NOT_BEFORE")
    ]


def test_expressions_that_do_not_compile() -> None:
    """Each by its path within a template, with line and column."""
    steps = (
        task("a", when="1 +", input={"x": ["${)}", "plain"], "y": {"z": "${nobody.x}"}}, output="${result..}"),
        branch("b", x="input ="),
        {"id": "c", "kind": "sleep", "seconds": "${((}"},
        {"id": "d", "kind": "map", "over": "[", "each": {"kind": "task", "task": "t", "input": "${%}"}},
        {"id": "e", "kind": "wait_promise", "promise": "p", "key": "${'}"},
        {"id": "f", "kind": "publish", "type": "T", "payload": "${=}"},
        task("g", concurrency={"key": "${?}", "limit": 1}),
    )
    found = faults(*steps, output={"o": "${.}"})
    assert [field for field, _ in found] == [
        "steps[0].when", "steps[0].input.x[0]", "steps[0].input.y.z", "steps[0].output", "steps[1].branches[0].when",
        "steps[2].seconds", "steps[3].over", "steps[3].each.input", "steps[4].key", "steps[5].payload",
        "steps[6].concurrency.key", "output.o",
    ]  # fmt: skip
    assert {code for _, code in found} == {"INVALID"}
    told = messages(task("a", when="1 +"))[0]
    assert "line 1:" in told
    assert "expecting" not in told


def test_variables_that_are_not_there() -> None:
    """`item` and `index` stand within `each`, `result` in `output`; macros may have variables of those names."""
    fine = (
        task("a", input="${input.xs.map(item, item.y)}", output="${result.filter(index, index > 1)}"),
        {"id": "m", "kind": "map", "over": "input", "output": "${result[0]}",
         "each": {"kind": "task", "task": "t", "input": "${[item, index]}",
                  "concurrency": {"key": "${item}", "limit": 1}}},
    )  # fmt: skip
    assert faults(*fine) == []
    assert messages(task("a", when="item.x")) == [
        "steps[0].when: uses `item`, which stands only in `each` of a map; here there are `input`, `steps`"
    ]
    assert messages(task("a", input="${result}"))[0].startswith("steps[0].input: uses `result`, which stands only in")
    assert messages(task("a", when="payload.x"))[0].startswith("steps[0].when: uses 'payload', which there is not")
    map_ = {"id": "m", "kind": "map", "over": "item", "each": {"kind": "task", "task": "t", "input": "${result}"}}
    assert [field for field, _ in faults(map_)] == ["steps[0].over", "steps[0].each.input"]
    assert faults(task("a"), output="${result}") == [("output", "INVALID")]


def test_steps_that_have_not_ended() -> None:
    """Only what a step needs, directly or not, has ended when it starts."""
    assert faults(task("a"), task("b", "a"), task("c", "b", when="steps.a.output == steps.b.output")) == []
    assert faults(task("a"), task("b", when="steps.a.output == 1")) == [("steps[1].when", "NOT_BEFORE")]
    assert faults(task("a", output="${steps.a.output}")) == [("steps[0].output", "NOT_BEFORE")]
    assert faults(task("a", when="steps.x.output")) == [("steps[0].when", "NOT_FOUND")]
    assert faults(task("a"), output="${steps.x.output}") == [("output", "NOT_FOUND")]
    assert faults(task("a"), task("b", "a", input="${'steps.x' + \"steps.y\"}")) == []
    for whole in ("size(steps)", "steps['a'].output", "steps"):
        assert messages(task("a"), task("b", "a", input="${" + whole + "}")) == [
            "steps[1].input: uses `steps` as a whole; name the step, as in steps.pay.output"
        ]


def test_types_of_expressions() -> None:
    """What cannot be true or false, a list or a number is no condition, list or pause."""
    assert messages(task("a", when="'x'")) == ["steps[0].when: is of type string; it must be true or false"]
    assert messages(branch("b", x="1"))[0].endswith("is of type int; it must be true or false")
    assert messages({"id": "s", "kind": "sleep", "seconds": "'1'"})[0].endswith("it must be a number of seconds")
    over = {"id": "m", "kind": "map", "over": "{'a': 1}", "each": {"kind": "task", "task": "t"}}
    assert messages(over)[0].endswith("it must be a list")
    assert faults({**over, "over": "[1, 2]"}, {"id": "s", "kind": "sleep", "seconds": "1.5"}) == []


def test_schemas_that_are_not_schemas() -> None:
    found = messages(task("a"), input_schema={"type": "nix"}, output_schema={"$ref": "http://example.com/x"})
    assert [each.partition(":")[0] for each in found] == ["input_schema", "output_schema"]
    assert "is not a JSON Schema" in found[0]
    assert "outside of the schema" in found[1]


def test_a_schema_that_takes_long_is_read_elsewhere() -> None:
    found = messages(task("a"), input_schema={"pattern": "a*"})
    assert found == ["input_schema: is not a JSON Schema: takes too long to read"]


def test_sizes_are_bounded() -> None:
    """The limit is named, and the fix."""
    assert messages(task("a", input="x" * 600_000))[0].endswith("524,288 bytes: move large constants to the input")
    many = [task(f"s{number}", input=["${input.x}"] * 100) for number in range(51)]
    assert messages(*many) == ["steps: have more than 5000 expressions; make it several workflows"]
    assert faults(task("a", input="${" + "1+" * 1000 + "1}")) == [("steps[0].input", "INVALID")]
    assert faults(task("a"), input_schema={"description": "x" * 300_000}) == [("input_schema", "TOO_LARGE")]


def test_faults_are_bounded() -> None:
    found = bounded([FieldFault(f"f{number}", "is wrong") for number in range(150)])
    assert (len(found), found[-1].message) == (101, "and 50 more, at least")


def test_heartbeats_and_kinds_that_have_no_effect() -> None:
    limits = {"start_to_close": 1, "heartbeat": 2}
    assert faults(task("a", timeouts=limits)) == [("steps[0].timeouts.heartbeat", "INVALID")]
    map_ = {"id": "m", "kind": "map", "over": "input", "each": {"kind": "task", "task": "t", "timeouts": limits}}
    assert faults(map_) == [("steps[0].each.timeouts.heartbeat", "INVALID")]
    assert faults(task("a", task="agent:x")) == [("steps[0].task", "INVALID")]


def test_half_templates_are_warned_of() -> None:
    """A text with an expression in its middle is sent as it is, which nobody wants."""
    found = examined(task("a", input={"greeting": "Hello ${input.name}!", "price": "$5"}), output="x ${steps.a.output}")
    assert (found.faults, [(each.field, each.code) for each in found.warnings]) == (
        [], [("steps[0].input.greeting", "NOT_EVALUATED"), ("output", "NOT_EVALUATED")],
    )  # fmt: skip


def test_what_is_named_must_be_known() -> None:
    """A workflow may run itself; a kind that nobody serves is a warning."""
    found = examined(
        task("a"), {"id": "b", "kind": "agent", "agent": "x"}, {"id": "c", "kind": "publish", "type": "T"},
        {"id": "d", "kind": "workflow", "workflow": "w"}, {"id": "e", "kind": "workflow", "workflow": "v"},
        {"id": "f", "kind": "workflow", "workflow": "v", "version": 2},
    )  # fmt: skip
    nothing = Known(frozenset(), frozenset(), {}, frozenset())
    faults, warnings = unknown("w", found.references, nothing)
    assert [each.field for each in faults] == [
        "steps[1].agent", "steps[2].type", "steps[4].workflow", "steps[5].workflow",
    ]  # fmt: skip
    assert [each.field for each in warnings] == ["steps[0].task"]
    known = Known({"x"}, {"T"}, {"v": 1, "w": 1}, {"a"})
    faults, warnings = unknown("w", found.references, known)
    assert ([each.field for each in faults], warnings) == (["steps[5].version"], [])


@given(
    st.integers(1, 12).flatmap(lambda n: st.lists(st.sets(st.integers(0, n - 1), max_size=3), min_size=n, max_size=n))
)
def test_any_graph_is_judged_as_by_its_closure(needs: list[set[int]]) -> None:
    """WM-2: a cycle is told exactly where there is one, and what comes before a step is what its needs lead to."""
    reach = [set(each) for each in needs]
    for _ in needs:
        for each in reach:
            each |= {further for need in [*each] for further in reach[need]}
    cyclic = {number for number, each in enumerate(reach) if number in each}
    document = [task(f"s{number}", *(f"s{need}" for need in sorted(each))) for number, each in enumerate(needs)]
    assert bool(faults(*document)) == bool(cyclic)
    told = ancestors([Step(f"s{n}", StepKind.TASK, needs=tuple(f"s{m}" for m in each)) for n, each in enumerate(needs)])
    blocked = cyclic | {number for number, each in enumerate(reach) if each & cyclic}
    assert {number: {bit for bit in range(len(needs)) if bits >> bit & 1} for number, bits in told.items()} == {
        number: each for number, each in enumerate(reach) if number not in blocked
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=5)
    | st.sampled_from(["${input}", "${", "a", "a.b", "task", "map", "branch", "compensate"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["id", "kind", "needs", "name", "when", "steps", "each", "branches", "compensate", "x"]), inner,
        max_size=4,
    ),
    max_leaves=8,
)  # fmt: skip


def places_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place within a document."""
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in below for place in places_of(each, (*path, key)))]


def with_value(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The document with another value in a place."""
    if not path:
        return value
    copy = document.copy()
    copy[path[0]] = with_value(document[path[0]], path[1:], value)
    return copy


@given(st.data())
def test_whatever_stands_somewhere_is_no_fault_of_the_server(data: st.DataObject) -> None:
    """WM-2, WM-10: a document with anything in any place is judged, and one without faults has a definition."""
    document: Any = FULL
    for _ in range(data.draw(st.integers(1, 3))):
        document = with_value(
            document, data.draw(st.sampled_from(places_of(document)[1:] or [("name",)])), data.draw(JSON)
        )
    found = asyncio.run(examine(document, CelExpressions(), JsonSchemas(), Sandbox()))
    assert bool(found.faults) == (found.definition is None)
    assert all(each.message for each in found.faults)
