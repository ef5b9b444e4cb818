"""The process that evaluates what may take long: its answers, and what becomes of those that come too late."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from millstream.adapters.expressions import CelPredicates
from millstream.adapters.sandbox import Sandbox
from millstream.adapters.schemas import JsonSchemas
from millstream.application.ports import Costly
from millstream.domain.errors import ValidationFailed
from millstream.domain.struct_wire import Json

LARGE: dict[str, Json] = {"m": {f"k{number}": number for number in range(9000)}, "l": list(range(9000))}
SLOW = "payload.l.all(a, payload.m == payload.m)"
DOUBLING = """{"$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}, {"$ref": "#/$defs/b"}]}, "b": {"type": "object"}},
"$ref": "#/$defs/a"}"""


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    made = Sandbox()
    yield made
    await made.close()


async def test_it_answers_as_the_server_would(sandbox: Sandbox) -> None:
    assert await sandbox.condition(
        "payload.n == 1.5 && artifact.type == 'A'", {"payload": {"n": 1.5}, "artifact": {"type": "A"}}
    )
    assert not await sandbox.condition("payload.missing", {"payload": {}, "artifact": {}})
    (fault,) = await sandbox.faults('{"properties": {"a": {"type": "string"}}}', {"a": 1}, "payload")
    assert (fault.field, fault.code) == ("payload.a", "WRONG_TYPE")
    await sandbox.read('{"pattern": "^a+$"}')
    with pytest.raises(ValueError, match="regex"):
        await sandbox.read('{"pattern": "("}')


async def test_what_takes_too_long_is_ended_and_the_next_is_answered(sandbox: Sandbox) -> None:
    assert not await sandbox.condition(SLOW, {"payload": LARGE, "artifact": {}})
    assert await sandbox.condition("true", {"payload": {}, "artifact": {}})
    chain = "".join(
        f'"a{n}": {{"allOf": [{{"$ref": "#/$defs/a{n + 1}"}}, {{"$ref": "#/$defs/a{n + 1}"}}]}}, ' for n in range(40)
    )
    with pytest.raises(ValidationFailed) as caught:
        await sandbox.faults(f'{{"$defs": {{{chain} "a40": {{}}}}, "$ref": "#/$defs/a0"}}', {}, "payload")
    assert [(fault.field, fault.code) for fault in caught.value.details] == [("payload", "TOO_COSTLY")]


async def test_an_answer_that_nobody_waits_for_is_not_the_next_one_s(sandbox: Sandbox) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await sandbox.condition(SLOW, {"payload": LARGE, "artifact": {}})
    assert await sandbox.condition("true", {"payload": {}, "artifact": {}})


async def test_many_ask_at_once(sandbox: Sandbox) -> None:
    asked = [sandbox.condition(f"payload.n == {n}", {"payload": {"n": n % 2}, "artifact": {}}) for n in range(20)]
    assert await asyncio.gather(*asked) == [True, True, *[False] * 18]


@pytest.mark.parametrize(
    ("text", "size_bytes", "costly"),
    [
        ("payload.n > 1", 100_000, False),
        ("payload.items.exists(i, i.price > 5.0)", 1_000, False),
        ("payload.items.exists(i, i.price > 5.0)", 100_000, True),
        ("payload.a.all(x, payload.b.all(y, x < y))", 100, False),
        ("payload.a.all(x, payload.b.all(y, x < y))", 10_000, True),
        ("['x'].map(a, a + a).map(a, a + a).map(a, a + a) == []", 0, True),
    ],
)
def test_a_condition_is_costly_by_its_loops_and_the_payload_s_size(text: str, size_bytes: int, costly: bool) -> None:
    predicate = CelPredicates().compile(text)
    try:
        predicate({"payload": {}, "artifact": {}}, size_bytes)
    except Costly:
        assert costly
    else:
        assert not costly


@pytest.mark.parametrize(
    ("schema", "size_bytes", "costly"),
    [
        ('{"properties": {"a": {"type": "string"}, "b": {"type": "string"}}}', 1_000_000, True),
        ('{"properties": {"a": {"type": "string"}, "b": {"type": "string"}}}', 200_000, False),
        (DOUBLING, 1_000, False),
        ('{"items": {"$ref": "#"}}', 1, True),
        ('{"$ref": "#/$defs/a", "$defs": {"a": {"not": {"$ref": "#/$defs/a"}}}}', 1, True),
        ('{"properties": {"a": {"pattern": "^[a-z]{1,64}$"}}}', 10_000, True),
        ('{"properties": {"a": {"pattern": "^[a-z]+$"}}}', 10_000, False),
    ],
)
def test_a_schema_is_costly_by_its_references_and_the_payload_s_size(
    schema: str, size_bytes: int, costly: bool
) -> None:
    check = JsonSchemas().compile(schema)
    try:
        assert check({}, "payload", size_bytes) == []
    except Costly:
        assert costly
    else:
        assert not costly


async def test_one_that_was_killed_between_questions_is_replaced(sandbox: Sandbox) -> None:
    """FL-10: the next answer says nothing of its end, and is no 500."""
    for pause_s in (0.0, 0.1):
        assert await sandbox.condition("payload.n > 1", {"payload": {"n": 2}})
        assert sandbox._process is not None
        sandbox._process.kill()
        await asyncio.sleep(pause_s)  # before and after the loop has heard of it
        assert await sandbox.condition("payload.n > 1", {"payload": {"n": 2}})
