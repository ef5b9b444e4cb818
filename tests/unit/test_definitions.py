"""Documents of workflows: read strictly, every fault by its field, and turned into what the engine runs."""

from typing import Any

import jsonschema_rs
import pytest

from millstream.application.definitions import json_schema
from millstream.application.reading_definitions import definition_of, read
from millstream.domain.retry import SECOND_US, RetryPolicy, Timeouts
from millstream.domain.workflows import Definition, OnFailure, Step, StepKind

FULL: dict[str, Any] = {
    "name": "order",
    "description": "Takes an order.",
    "input_schema": {"type": "object"},
    "output_schema": {"type": "array"},
    "output": ["${steps.pay.output}"],
    "timeout": 1.5,
    "labels": {"team": "sales"},
    "steps": [
        {
            "id": "pay", "kind": "task", "task": "billing:pay", "queue": "slow", "when": "${input.amount > 0}",
            "input": {"z": 1, "a": ["${input.amount}", None]}, "output": "${result.id}",
            "retry": {"max_attempts": 5, "initial": 0.5, "factor": 3.0, "maximum": 10, "jitter": 0,
                      "non_retryable": ["X"]},
            "timeouts": {"schedule_to_start": 1, "start_to_close": 2, "heartbeat": 1.5}, "priority": -3,
            "concurrency": {"key": "${input.customer}", "limit": 2}, "labels": {"b": "2", "a": "1"},
            "on_failure": {"compensate": "refund"},
        },
        {"id": "refund", "kind": "task", "task": "refund", "input": "${steps.pay.output}"},
        {"id": "ask", "kind": "agent", "agent": "judge", "needs": ["pay"], "on_failure": "continue"},
        {"id": "sub", "kind": "workflow", "workflow": "ship", "version": 3, "input": 1},
        {"id": "tell", "kind": "publish", "type": "Paid", "payload": {"id": "${steps.pay.output}"}, "needs": ["pay"],
         "wait": True},
        {"id": "wait", "kind": "wait_promise", "promise": "approval", "key": "${input.id}", "timeout": 60},
        {"id": "nap", "kind": "sleep", "seconds": "input.pause"},
        {"id": "each", "kind": "map", "over": "${input.items}", "concurrency": 7,
         "each": {"kind": "task", "task": "pack", "input": "${item}", "labels": {"x": "y"}}},
        {"id": "check", "kind": "branch", "branches": [{"name": "big", "when": "input.amount > 100"}]},
        {"id": "gift", "kind": "sleep", "seconds": 2, "needs": ["check.big", "ask"]},
    ],
}  # fmt: skip
ONCE = RetryPolicy(max_attempts=1)


def defined(document: dict[str, Any], version: int = 0) -> Definition:
    """What the engine runs of it."""
    draft = read(document)
    assert draft.document is not None, draft.faults
    return definition_of(draft.document, version)


def faults(*steps: Any, **fields: Any) -> list[tuple[str, str, str]]:
    """What is wrong with the fields of a document."""
    document = {"name": "w", "steps": [*steps]} | fields
    return [(each.field, each.code, each.message) for each in read(document).faults]


UNBOUND = Timeouts(0, 0, 0)


def test_every_kind_of_step_becomes_what_the_engine_runs() -> None:
    """WM-2: nothing that a document says is lost."""
    found = defined(FULL, 4)
    assert (found.name, found.version, found.timeout_us) == ("order", 4, 1_500_000)
    assert (found.labels, found.output) == ((("team", "sales"),), ("${steps.pay.output}",))
    assert (found.input_schema, found.output_schema) == ('{"type":"object"}', '{"type":"array"}')
    pay, refund, ask, sub, tell, wait, nap, each, check, gift = found.steps
    assert pay == Step(
        "pay", StepKind.TASK, "billing:pay", when="input.amount > 0",
        input={"z": 1, "a": ("${input.amount}", None)}, output="${result.id}", queue="slow", priority=-3,
        retry=RetryPolicy(SECOND_US // 2, 3.0, 10 * SECOND_US, 0, 5, ("X",)),
        timeouts=Timeouts(SECOND_US, 2 * SECOND_US, 3 * SECOND_US // 2), on_failure=OnFailure.COMPENSATE,
        compensation="refund", labels=(("a", "1"), ("b", "2")), concurrency_key="${input.customer}",
        concurrency_limit=2,
    )  # fmt: skip
    assert list(pay.input) == ["z", "a"]  # type: ignore[arg-type]  # it is a mapping: its keys keep their order
    assert refund == Step("refund", StepKind.TASK, "refund", input="${steps.pay.output}")
    assert ask == Step(
        "ask", StepKind.AGENT, "judge", ("pay",), retry=ONCE, timeouts=UNBOUND, on_failure=OnFailure.CONTINUE
    )  # fmt: skip
    assert sub == Step("sub", StepKind.WORKFLOW, "ship", version="3", input=1, retry=ONCE, timeouts=UNBOUND)
    payload = {"id": "${steps.pay.output}"}
    assert tell == Step("tell", StepKind.PUBLISH, "Paid", ("pay",), input=payload, wait=True, retry=ONCE)
    limits = Timeouts(60 * SECOND_US, 0, 0)
    assert wait == Step("wait", StepKind.WAIT_PROMISE, "approval", key="${input.id}", timeouts=limits, retry=ONCE)
    assert nap == Step("nap", StepKind.SLEEP, sleep="input.pause", retry=ONCE)
    item = Step("each", StepKind.TASK, "pack", input="${item}", labels=(("x", "y"),))
    assert each == Step("each", StepKind.MAP, over="input.items", each=item, width=7, retry=ONCE)
    assert check == Step("check", StepKind.BRANCH, branches=(("big", "input.amount > 100"),), retry=ONCE)
    assert gift == Step(
        "gift", StepKind.SLEEP, sleep=2, needs=("check", "ask"), cases=(("check", "big"),), retry=ONCE
    )  # fmt: skip
    assert found.undo == {0: 1}


def test_the_published_schema_takes_what_the_server_takes() -> None:
    """WM-2: editors and the server agree."""
    schema = json_schema()
    check = jsonschema_rs.validator_for(schema)
    assert check.is_valid(FULL)
    for wrong in ({"name": "w"}, {**FULL, "x": 1}, {"name": "w", "steps": [{"id": "a", "kind": "nap"}]}):
        assert not check.is_valid(wrong)
        assert read(wrong).faults
    assert schema["$id"].endswith("workflow.json")


@pytest.mark.parametrize(
    ("step", "field", "code"),
    [
        ({"id": "a"}, "kind", "REQUIRED"),
        ({"id": "a", "kind": "nap"}, "kind", "INVALID"),
        ({"id": "a", "kind": 3}, "kind", "INVALID"),
        ({"id": "a", "kind": "task"}, "task", "REQUIRED"),
        ({"kind": "task", "task": "t"}, "id", "REQUIRED"),
        ({"id": "a-b", "kind": "task", "task": "t"}, "id", "INVALID"),
        ({"id": "a" * 65, "kind": "task", "task": "t"}, "id", "OUT_OF_RANGE"),
        ({"id": "a", "kind": "task", "task": "t", "quue": "x"}, "quue", "UNKNOWN_FIELD"),
        ({"id": "a", "kind": "task", "task": 3}, "task", "WRONG_TYPE"),
        ({"id": "a", "kind": "task", "task": "t", "task_": 1}, "task_", "UNKNOWN_FIELD"),
        ({"id": "a", "kind": "task", "task": "t", "queue": "~timer"}, "queue", "INVALID"),
        ({"id": "a", "kind": "task", "task": "t", "priority": 101}, "priority", "OUT_OF_RANGE"),
        ({"id": "a", "kind": "task", "task": "t", "priority": True}, "priority", "WRONG_TYPE"),
        ({"id": "a", "kind": "task", "task": "t", "needs": "b"}, "needs", "WRONG_TYPE"),
        ({"id": "a", "kind": "task", "task": "t", "needs": ["b.c.d"]}, "needs[0]", "INVALID"),
        ({"id": "a", "kind": "task", "task": "t", "retry": {"max_attempts": 0}}, "retry.max_attempts", "OUT_OF_RANGE"),
        ({"id": "a", "kind": "task", "task": "t", "timeouts": {"heartbeat": -1}}, "timeouts.heartbeat", "OUT_OF_RANGE"),
        ({"id": "a", "kind": "task", "task": "t", "concurrency": {"key": "k"}}, "concurrency.limit", "REQUIRED"),
        ({"id": "a", "kind": "task", "task": "t", "on_failure": "retry"}, "on_failure", "INVALID"),
        ({"id": "a", "kind": "task", "task": "t", "on_failure": {"compensate": "x y"}}, "on_failure", "INVALID"),
        ({"id": "a", "kind": "task", "task": "t", "labels": {"": "x"}}, "labels.", "OUT_OF_RANGE"),
        ({"id": "a", "kind": "task", "task": "t", "labels": {"x": 1}}, "labels.x", "WRONG_TYPE"),
        ({"id": "a", "kind": "workflow", "workflow": "w", "version": 0}, "version", "OUT_OF_RANGE"),
        ({"id": "a", "kind": "workflow", "workflow": "w", "version": "1"}, "version", "WRONG_TYPE"),
        ({"id": "a", "kind": "publish", "type": "T", "payload": [1]}, "payload", "INVALID"),
        ({"id": "a", "kind": "sleep", "seconds": -1}, "seconds", "INVALID"),
        ({"id": "a", "kind": "sleep"}, "seconds", "REQUIRED"),
        ({"id": "a", "kind": "map", "over": "input", "each": {"kind": "sleep"}}, "each.kind", "INVALID"),
        ({"id": "a", "kind": "map", "over": "input", "each": {"kind": "task"}}, "each.task", "REQUIRED"),
        ({"id": "a", "kind": "map", "over": "", "each": {"kind": "task", "task": "t"}}, "over", "OUT_OF_RANGE"),
        ({"id": "a", "kind": "map", "each": {"kind": "task", "task": "t"}}, "over", "REQUIRED"),
        ({"id": "a", "kind": "branch", "branches": []}, "branches", "OUT_OF_RANGE"),
        ({"id": "a", "kind": "branch", "branches": [{"name": "x"}]}, "branches[0].when", "REQUIRED"),
    ],
)  # fmt: skip
def test_a_fault_is_named_by_its_field(step: dict[str, Any], field: str, code: str) -> None:
    """WM-2: once, whatever else is fine."""
    fine = {"id": "fine", "kind": "task", "task": "t"}
    assert [each[:2] for each in faults(fine, step)] == [(f"steps[1].{field}", code)]


def test_faults_of_the_document_itself() -> None:
    """WM-2: all of them at once, and those of its steps besides."""
    document = {"descripton": "", "timeout": "1 h", "input_schema": True, "steps": [3, {"id": 1}]}
    assert [(each.field, each.code) for each in read(document).faults] == [
        ("name", "REQUIRED"), ("input_schema", "WRONG_TYPE"), ("timeout", "WRONG_TYPE"), ("steps[0]", "WRONG_TYPE"),
        ("steps[1].kind", "REQUIRED"), ("descripton", "UNKNOWN_FIELD"),
    ]  # fmt: skip
    assert [each[:2] for each in faults()] == [("steps", "OUT_OF_RANGE")]
    many = [{"id": f"s{number}", "kind": "sleep", "seconds": 0} for number in range(1001)]
    assert faults(*many) == [("steps", "OUT_OF_RANGE", "must have at most 1000 items")]
    assert read({"name": "w", "steps": "x"}).faults[0].field == "steps"


def test_what_can_be_read_of_a_step_at_fault_is() -> None:
    """So that others may name it, and are not at fault for that."""
    draft = read({"name": "w", "steps": [
        {"id": "a", "kind": "branch", "branches": [{"name": "x"}], "needs": ["b.c", 3]}, 7,
        {"id": "b", "kind": "sleep", "seconds": 1},
    ]})  # fmt: skip
    first, second, third = draft.steps
    assert (first.id, first.kind, first.needs, first.cases) == ("a", StepKind.BRANCH, ("b", "3"), (("b", "c"),))
    assert first.branches == (("x", ""),)
    assert second.id == "steps[1]"
    assert (third.id, [*draft.whole]) == ("b", [2])
