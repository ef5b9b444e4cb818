"""Conditions and schemas that would take very long: bounded, false or refused, and the server stays responsive."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest
from tests.e2e.answers import check_error, check_ok

Client = httpx.AsyncClient
SYNC = "/api/v1/artifacts/sync"
NUMBERS = {"l": list(range(9000))}
KEYS = {"m": {f"k{number}": number for number in range(9000)}, **NUMBERS}
TEXT = {"s": "x" * 400_000, "l": [0] * 9000}

CONDITIONS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "nested loops": ("payload.l.all(a, payload.l.all(b, payload.l.all(c, a + b + c >= 0)))", NUMBERS, False),
    "nested searches": ("payload.l.exists(a, payload.l.exists(b, a + b == -1))", NUMBERS, False),
    "large maps compared in a loop": ("payload.l.all(a, payload.m == payload.m)", KEYS, False),
    "large lists compared in a loop": ("payload.l.all(a, payload.l == payload.l)", NUMBERS, False),
    "text added in a loop": ("payload.l.all(a, (payload.s + payload.s + payload.s).size() > 0)", TEXT, False),
    "text that doubles": (
        "['x'].map(a, payload.s + payload.s)" + ".map(a, a + a)" * 12 + ".all(a, a.matches('y'))", TEXT, False,
    ),
    "a little that doubles": ("['0123456789']" + ".map(a, a + a)" * 29 + ".all(a, a.size() > 0)", {}, False),
    "a large list, searched once": ("payload.l.exists(a, a == 8999)", NUMBERS, True),
    "a large text, searched": ("payload.s.contains('y') || payload.s.matches('^x+$')", TEXT, True),
}  # fmt: skip


async def responsive(client: Client, busy: asyncio.Task[httpx.Response]) -> float:
    """The longest that a read took while something else went on, in seconds."""
    longest = 0.0
    while not busy.done():
        began = time.monotonic()
        check_ok(await client.get("/api/v1/artifact-types/Note"))
        longest = max(longest, time.monotonic() - began)
    return longest


@pytest.mark.parametrize(("where", "payload", "holds"), CONDITIONS.values(), ids=list(CONDITIONS))
async def test_a_condition_that_takes_long_is_false_and_holds_up_nobody(
    own: Client, where: str, payload: dict[str, Any], holds: bool
) -> None:
    """Issue 2, FL-14: bounded; what is only large is judged all the same."""
    agent = {"name": "a", "subscriptions": [{"types": ["Note"], "where": where}]}
    check_ok(await own.post("/api/v1/agents", json=agent), 201)
    request = {"type": "Note", "payload": payload, "timeout": 10}
    if holds:
        del request["timeout"]
        published = asyncio.create_task(own.post("/api/v1/artifacts", json=request))
    else:
        published = asyncio.create_task(own.post(SYNC, json=request))
    assert await responsive(own, published) < 1.5
    body = check_ok(await published)
    run = check_ok(await own.get(f"/api/v1/runs/{body['correlation_id']}"))
    assert run["task_count"] == int(holds)


def laughs(leaf: dict[str, Any]) -> dict[str, Any]:
    """References that double forty times."""
    levels = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}, {"$ref": f"#/$defs/a{n + 1}"}]} for n in range(40)}
    return {"$defs": {**levels, "a40": leaf}, "$ref": "#/$defs/a0"}


TWICE = {"$defs": {"t": {"type": "object", "properties": {"c": {"allOf": [{"$ref": "#/$defs/t"}] * 2}}}},
         "$ref": "#/$defs/t"}  # fmt: skip


def deep(levels: int, core: Any) -> dict[str, Any]:
    """A payload of so many levels."""
    for _ in range(levels):
        core = {"c": core}
    return {"c": core}


SCHEMAS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "references that double": (laughs({"type": "object"}), {"a": 1}, "payload"),
    "a tree checked twice at each level": (TWICE, deep(27, 5), "payload"),
    "a thousand alternatives of many values": (
        {"properties": {"l": {"items": {"anyOf": [{"const": n} for n in range(1000)]}}}}, {"l": [-1] * 9000}, "payload",
    ),
    "many wrong values": ({"properties": {"l": {"items": {"type": "string"}}}}, {"l": [0] * 90_000}, "payload.l[0]"),
}  # fmt: skip


@pytest.mark.parametrize(("schema", "payload", "field"), SCHEMAS.values(), ids=list(SCHEMAS))
async def test_a_schema_that_takes_long_refuses_and_holds_up_nobody(
    own: Client, schema: dict[str, Any], payload: dict[str, Any], field: str
) -> None:
    """Issue 2, FL-10: 422 that names the payload, or the first faults where they can be found in time."""
    check_ok(await own.post("/api/v1/artifact-types", json={"name": "Slow", "schema": schema}), 201)
    published = asyncio.create_task(own.post("/api/v1/artifacts", json={"type": "Slow", "payload": payload}))
    assert await responsive(own, published) < 1.5
    response = await published
    body = response.json()
    check_error(response, 422, "VALIDATION_ERROR", *(detail["field"] for detail in body["details"]))
    assert body["details"][0]["field"] == field


async def test_a_recursive_schema_is_checked_all_the_same(own: Client) -> None:
    """FL-10: a tree is a schema like any other, with the path of what is wrong in it."""
    tree = {"type": "object", "required": ["n"], "properties": {"n": {"type": "number"}, "kids": {
        "type": "array", "items": {"$ref": "#"}}}}  # fmt: skip
    check_ok(await own.post("/api/v1/artifact-types", json={"name": "Tree", "schema": tree}), 201)
    good = {"n": 1, "kids": [{"n": 2, "kids": [{"n": 3}]}, {"n": 4}]}
    check_ok(await own.post("/api/v1/artifacts", json={"type": "Tree", "payload": good}))
    good["kids"][0]["kids"][0]["n"] = "three"  # type: ignore[index]
    response = await own.post("/api/v1/artifacts", json={"type": "Tree", "payload": good})
    check_error(response, 422, "VALIDATION_ERROR", "payload.kids[0].kids[0].n")


async def test_a_schema_that_takes_long_to_read_is_refused(own: Client) -> None:
    """Issue 2: thousands of large patterns in 256 KB."""
    patterns = {str(number): {"pattern": f"\\p{{L}}{{90}}{number}"} for number in range(6000)}
    made = asyncio.create_task(
        own.post("/api/v1/artifact-types", json={"name": "Slow", "schema": {"properties": patterns}})
    )
    assert await responsive(own, made) < 1.5
    check_error(await made, 422, "VALIDATION_ERROR", "schema")


async def test_a_large_artifact_of_an_ordinary_type_is_ordinary(own: Client) -> None:
    """FL-1, FL-15: a megabyte with a schema and a condition passes."""
    row = {"type": "object", "required": ["id"], "properties": {"id": {"type": "integer"}, "name": {"type": "string"}}}
    schema = {"type": "object", "properties": {"rows": {"type": "array", "items": row}}}
    check_ok(await own.post("/api/v1/artifact-types", json={"name": "Table", "schema": schema}), 201)
    agent = {"name": "a", "subscriptions": [{"types": ["Table"], "where": "payload.rows.exists(r, r.id == 4999)"}]}
    check_ok(await own.post("/api/v1/agents", json=agent), 201)
    rows = [{"id": number, "name": f"row {number}"} for number in range(5000)]
    published = check_ok(await own.post("/api/v1/artifacts", json={"type": "Table", "payload": {"rows": rows}}))
    assert check_ok(await own.get(f"/api/v1/runs/{published['correlation_id']}"))["task_count"] == 1
    rows[4000]["id"] = "x"
    response = await own.post("/api/v1/artifacts", json={"type": "Table", "payload": {"rows": rows}})
    check_error(response, 422, "VALIDATION_ERROR", "payload.rows[4000].id")
