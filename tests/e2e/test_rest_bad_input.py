"""Bad input over REST: each gets a clear error that names the field, and nothing of it is stored."""

from __future__ import annotations

import asyncio
import json
import uuid
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from tests.e2e.answers import check_error, check_ok
from tests.e2e.stored import Stored

Client = httpx.AsyncClient
ARTIFACTS, SYNC, BATCH = "artifacts", "artifacts/sync", "artifacts/batch"
TASKS, TYPES, AGENTS = "tasks", "artifact-types", "agents"
LONG = "x" * 256


@dataclass(frozen=True)
class Bad:
    """A request and what it must get."""

    path: str
    body: Any
    """JSON as a value, or as bytes."""
    field: str = ""
    """The one field at fault."""
    status: int = 422
    code: str = "VALIDATION_ERROR"
    fields: tuple[str, ...] = ()
    """Where there are several."""

    @property
    def content(self) -> bytes:
        """The body as it is sent."""
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()

    @property
    def faulty(self) -> tuple[str, ...]:
        """The fields that the answer must name."""
        return self.fields or ((self.field,) if self.field else ())


def malformed(body: bytes) -> Bad:
    """What is no JSON at all."""
    return Bad(ARTIFACTS, body, status=400, code="BAD_REQUEST")


def nested(depth: int, opening: str = '{"a":', closing: str = "}", core: str = "1") -> bytes:
    """A payload so many levels deep."""
    return b'{"type":"Note","payload":{"a":' + (opening * (depth - 1) + core + closing * (depth - 1)).encode() + b"}}"


def note(**more: Any) -> dict[str, Any]:
    """A publish of a Note."""
    return {"type": "Note", **more}


def agent(where: str) -> dict[str, Any]:
    """An agent with a condition."""
    return {"name": "a", "subscriptions": [{"types": ["Note"], "where": where}]}


def schema(value: Any) -> dict[str, Any]:
    """A type with a schema."""
    return {"name": "Typed", "schema": value}


def task(**more: Any) -> dict[str, Any]:
    """A task."""
    return {"kind": "k", **more}


WHERE = "subscriptions[0].where"
DEEP_A = "payload" + ".a" * 30

CASES: dict[str, Bad] = {
    # -- malformed JSON
    "empty": Bad(ARTIFACTS, b"", "type"),
    "blank": malformed(b"   "),
    "half": malformed(b'{"type":"Note"'),
    "two values": malformed(b'{"type":"Note"}{}'),
    "bare word": malformed(b"Note"),
    "single quotes": malformed(b"{'type':'Note'}"),
    "unquoted name": malformed(b'{type:"Note"}'),
    "trailing comma": malformed(b'{"type":"Note",}'),
    "comment": malformed(b'{"type":"Note"/* x */}'),
    "leading zero": malformed(b'{"type":"Note","payload":{"a":01}}'),
    "plus sign": malformed(b'{"type":"Note","payload":{"a":+1}}'),
    "hexadecimal": malformed(b'{"type":"Note","payload":{"a":0x1}}'),
    "NaN": malformed(b'{"type":"Note","payload":{"a":NaN}}'),
    "Infinity": malformed(b'{"type":"Note","payload":{"a":Infinity}}'),
    "minus Infinity": malformed(b'{"type":"Note","payload":{"a":-Infinity}}'),
    "NaN timeout": Bad(SYNC, b'{"type":"Note","timeout":NaN}', status=400, code="BAD_REQUEST"),
    "lone surrogate": malformed(b'{"type":"Note","payload":{"a":"\\ud800"}}'),
    "surrogates swapped": malformed(b'{"type":"Note","payload":{"a":"\\udc00\\ud800"}}'),
    "surrogate in a name": malformed(b'{"type":"Note","payload":{"\\udfff":1}}'),
    "surrogate in UTF-8": malformed(b'{"type":"Note","payload":{"a":"\xed\xa0\x80"}}'),
    "not UTF-8": malformed(b'{"type":"Note","payload":{"a":"\xff"}}'),
    "overlong UTF-8": malformed(b'{"type":"Note","payload":{"a":"\xc0\xaf"}}'),
    "bare NUL": malformed(b'{"type":"Note","payload":{"a":"\x00"}}'),
    "control character": malformed(b'{"type":"Note","payload":{"a":"\x1f"}}'),
    "byte order mark": malformed(b'\xef\xbb\xbf{"type":"Note"}'),
    "UTF-16": malformed('{"type":"Note"}'.encode("utf-16")),
    # -- the wrong JSON type
    "list": Bad(ARTIFACTS, [], "", fields=("",)),
    "string body": Bad(ARTIFACTS, "Note", "", fields=("",)),
    "null body": Bad(ARTIFACTS, None, "", fields=("",)),
    "number type": Bad(ARTIFACTS, {"type": 5}, "type"),
    "null type": Bad(ARTIFACTS, {"type": None}, "type"),
    "list payload": Bad(ARTIFACTS, note(payload=[1]), "payload"),
    "string payload": Bad(ARTIFACTS, note(payload="x"), "payload"),
    "string tags": Bad(ARTIFACTS, note(tags="red"), "tags"),
    "number in tags": Bad(ARTIFACTS, note(tags=["a", 1]), "tags[1]"),
    "null in tags": Bad(ARTIFACTS, note(tags=[None]), "tags[0]"),
    "string visibility": Bad(ARTIFACTS, note(visibility="Public"), "visibility"),
    "string timeout": Bad(SYNC, note(timeout="5"), "timeout"),
    "string boolean": Bad(SYNC, note(fail_on_timeout="yes"), "fail_on_timeout"),
    "number boolean": Bad(SYNC, note(fail_on_timeout=1), "fail_on_timeout"),
    "list filters": Bad(SYNC, note(filters=[]), "filters"),
    "fraction": Bad(TASKS, task(priority=1.5), "priority"),
    "number labels": Bad(TASKS, task(labels={"a": 1}), "labels.a"),
    "number duration": Bad(TASKS, task(delay=5), "delay"),
    "number time": Bad(TASKS, task(run_at=5), "run_at"),
    "two faults": Bad(SYNC, {"type": 1, "timeout": "x"}, fields=("type", "timeout")),
    # -- unknown and duplicate fields
    "unknown field": Bad(ARTIFACTS, note(colour="red"), "colour"),
    "unknown nested": Bad(ARTIFACTS, note(visibility={"kind": "Public", "who": 1}), "visibility.who"),
    "unknown in a batch": Bad(BATCH, {"artifacts": [note(), note(x=1)]}, "artifacts[1].x"),
    "another field's name": Bad(ARTIFACTS, note(timeout=5), "timeout"),
    "camelCase duplicate": Bad(ARTIFACTS, b'{"type":"Note","partition_key":"a","partitionKey":"b"}', "partitionKey"),
    "duplicate field": Bad(ARTIFACTS, b'{"type":"Note","type":"Note"}', "type"),
    "duplicate by escape": Bad(ARTIFACTS, b'{"type":"Note","t\\u0079pe":"Note"}', "type"),
    "duplicate in a payload": Bad(ARTIFACTS, b'{"type":"Note","payload":{"a":{"b":1,"b":1}}}', "payload.a.b"),
    # -- names, ids, lengths
    "no type": Bad(ARTIFACTS, {}, "type"),
    "empty type": Bad(ARTIFACTS, {"type": ""}, "type"),
    "odd type": Bad(ARTIFACTS, {"type": "1 Note"}, "type"),
    "type of 256": Bad(ARTIFACTS, {"type": LONG}, fields=("type",)),
    "partition key of 256": Bad(ARTIFACTS, note(partition_key=LONG), "partition_key"),
    "33 tags": Bad(ARTIFACTS, note(tags=[str(n) for n in range(33)]), "tags"),
    "empty tag": Bad(ARTIFACTS, note(tags=["a", ""]), "tags[1]"),
    "tag of 129": Bad(ARTIFACTS, note(tags=["x" * 129]), "tags[0]"),
    "tag twice": Bad(ARTIFACTS, note(tags=["a", "a"]), "tags"),
    "bad UUID": Bad(ARTIFACTS, note(correlation_id="123"), "correlation_id"),
    "UUID with braces": Bad(ARTIFACTS, note(correlation_id=f"{{{uuid.uuid4()}}}"), "correlation_id"),
    "UUID without dashes": Bad(ARTIFACTS, note(correlation_id=uuid.uuid4().hex), "correlation_id"),
    "101 filters": Bad(SYNC, note(filters={"type_names": ["A"] * 101}), "filters.type_names"),
    "empty kind": Bad(TASKS, {"kind": ""}, "kind"),
    "kind of 129": Bad(TASKS, {"kind": "k" * 129}, "kind"),
    "the server's kind": Bad(TASKS, {"kind": "agent:a"}, "kind"),
    "queue with a space": Bad(TASKS, task(queue="a b"), "queue"),
    "priority 101": Bad(TASKS, task(priority=101), "priority"),
    "priority beyond int32": Bad(TASKS, task(priority=2**31), "priority"),
    "33 labels": Bad(TASKS, task(labels={str(n): "" for n in range(33)}), "labels"),
    "label of 257": Bad(TASKS, task(labels={"a": "x" * 257}), 'labels["a"]'),
    "empty label": Bad(TASKS, task(labels={"": "x"}), 'labels[""]'),
    # -- visibility
    "unknown visibility": Bad(ARTIFACTS, note(visibility={"kind": "Secret"}), "visibility.kind"),
    "Private without agents": Bad(ARTIFACTS, note(visibility={"kind": "Private"}), "visibility.agents"),
    "Labelled without labels": Bad(ARTIFACTS, note(visibility={"kind": "Labelled"}), "visibility.required_labels"),
    "After without ttl": Bad(ARTIFACTS, note(visibility={"kind": "After"}), "visibility.ttl"),
    "then without After": Bad(ARTIFACTS, note(visibility={"kind": "Public", "then": {}}), "visibility.then"),
    "agents without a kind": Bad(ARTIFACTS, note(visibility={"agents": ["hr"]}), "visibility.agents"),
    "labels for Private": Bad(
        ARTIFACTS,
        note(visibility={"kind": "Private", "agents": ["hr"], "required_labels": ["eu"]}),
        "visibility.required_labels",
    ),
    "agents without a kind in then": Bad(
        ARTIFACTS, note(visibility={"kind": "After", "ttl": "1s", "then": {"agents": ["hr"]}}), "visibility.then.agents"
    ),
    "tenant without a kind": Bad(ARTIFACTS, note(visibility={"tenant_id": "default"}), "visibility.tenant_id"),
    "Tenant of others": Bad(ARTIFACTS, note(visibility={"kind": "Tenant", "tenant_id": "x"}), "visibility.tenant_id"),
    "After of 31 days": Bad(ARTIFACTS, note(visibility={"kind": "After", "ttl": "2678400s"}), "visibility.ttl"),
    # -- numbers and times
    "2^53": Bad(ARTIFACTS, note(payload={"a": 2**53}), "payload.a"),
    "minus 2^53": Bad(ARTIFACTS, note(payload={"a": [-(2**53)]}), "payload.a[0]"),
    "2^64": Bad(ARTIFACTS, note(payload={"a": {"b": 2**64}}), "payload.a.b"),
    "an integer of 400 digits": Bad(ARTIFACTS, b'{"type":"Note","payload":{"a":' + b"9" * 400 + b"}}", "payload.a"),
    "1e400": Bad(ARTIFACTS, b'{"type":"Note","payload":{"a":1e400}}', "payload.a"),
    "minus 1e400": Bad(ARTIFACTS, b'{"type":"Note","payload":{"a":-1e400}}', "payload.a"),
    "timeout 0": Bad(SYNC, note(timeout=0), "timeout"),
    "negative timeout": Bad(SYNC, note(timeout=-5), "timeout"),
    "huge timeout": Bad(SYNC, note(timeout=1e300), "timeout"),
    "infinite timeout": Bad(SYNC, b'{"type":"Note","timeout":1e999}', "timeout"),
    "negative delay": Bad(TASKS, task(delay="-1s"), "delay"),
    "huge delay": Bad(TASKS, task(delay="315576000000s"), "delay"),
    "delay beyond a duration": Bad(TASKS, task(delay="315576000001s"), "delay"),
    "delay in minutes": Bad(TASKS, task(delay="5m"), "delay"),
    "delay and run_at": Bad(TASKS, task(delay="5s", run_at="2030-01-01T00:00:00Z"), "delay"),
    "no time": Bad(TASKS, task(run_at="tomorrow"), "run_at"),
    "30 February": Bad(TASKS, task(run_at="2030-02-30T00:00:00Z"), "run_at"),
    "year 10000": Bad(TASKS, task(run_at="10000-01-01T00:00:00Z"), "run_at"),
    "no attempts": Bad(TASKS, task(retry={"max_attempts": 0}), "retry.max_attempts"),
    "shrinking factor": Bad(TASKS, task(retry={"factor": 0.5}), "retry.factor"),
    "jitter 2": Bad(TASKS, task(retry={"jitter": 2}), "retry.jitter"),
    "timeout of nothing": Bad(TASKS, task(timeouts={"start_to_close": "0s"}), "timeouts.start_to_close"),
    # -- depth
    "depth 31": Bad(ARTIFACTS, nested(31), DEEP_A),
    "depth 40": Bad(ARTIFACTS, nested(40), DEEP_A),
    "depth 100": Bad(ARTIFACTS, nested(100), DEEP_A),
    "depth 10000": Bad(ARTIFACTS, nested(10_000), DEEP_A),
    "depth 31 of lists": Bad(ARTIFACTS, nested(31, "[", "]"), "payload.a" + "[0]" * 29),
    "depth 10000 of lists": Bad(ARTIFACTS, nested(10_000, "[", "]"), "payload.a" + "[0]" * 29),
    "deep input": Bad(TASKS, b'{"kind":"k","input":' + b"[" * 31 + b"]" * 31 + b"}", "input" + "[0]" * 30),
    # -- NUL
    "NUL in a tag": Bad(ARTIFACTS, note(tags=["a\0b"]), "tags[0]"),
    "NUL in a partition key": Bad(ARTIFACTS, note(partition_key="\0"), "partition_key"),
    "NUL in a label": Bad(TASKS, task(labels={"a": "\0"}), "labels.a"),
    "NUL in a label's name": Bad(TASKS, task(labels={"\0": "a"}), "labels.\0"),
    "NUL in a description": Bad(TYPES, {"name": "A", "description": "a\0"}, "description"),
    # -- sizes
    "payload of 1.1 MB": Bad(ARTIFACTS, note(payload={"a": "x" * 1_100_000}), "", 413, "PAYLOAD_TOO_LARGE"),
    "payload of 10 MB": Bad(ARTIFACTS, note(payload={"a": "x" * 10_000_000}), "", 413, "PAYLOAD_TOO_LARGE"),
    "numbers that grow": Bad(ARTIFACTS, note(payload={"a": [0] * 200_000}), "", 413, "PAYLOAD_TOO_LARGE"),
    "nulls that grow": Bad(
        BATCH, {"artifacts": [note(payload={"a": [0] * 90_000})] * 10}, "", 413, "PAYLOAD_TOO_LARGE"
    ),
    "schema of 300 KB": Bad(TYPES, schema({"title": "x" * 300_000}), "", 413, "PAYLOAD_TOO_LARGE"),
    "batch of none": Bad(BATCH, {"artifacts": []}, "artifacts"),
    "batch of 1001": Bad(BATCH, {"artifacts": [note()] * 1001}, "artifacts"),
    "tasks of none": Bad("tasks/batch", {"tasks": []}, "tasks"),
    "tasks of 1001": Bad("tasks/batch", {"tasks": [task()] * 1001}, "tasks"),
    # -- CEL
    "CEL that is none": Bad(AGENTS, agent("payload.n >"), WHERE),
    "CEL of another name": Bad(AGENTS, agent("paylod.n > 1"), WHERE),
    "CEL of another function": Bad(AGENTS, agent("system('ls')"), WHERE),
    "CEL that is no condition": Bad(AGENTS, agent("1 + 1"), WHERE),
    "CEL of a string": Bad(AGENTS, agent("'true'"), WHERE),
    "CEL with types that do not fit": Bad(AGENTS, agent("1 + 'a' == 'b'"), WHERE),
    "CEL of 2001 characters": Bad(AGENTS, agent("true" + " " * 1997), WHERE),
    "CEL of parentheses": Bad(AGENTS, agent("(" * 900 + "true" + ")" * 900), WHERE),
    "CEL of lists": Bad(AGENTS, agent("[" * 900 + "1" + "]" * 900 + " == 1"), WHERE),
    "CEL with a NUL": Bad(AGENTS, agent("true\0"), WHERE),
    "CEL with a lone surrogate": Bad(AGENTS, agent("payload.a == '\\\\ud800'".replace("\\\\", "\\")), WHERE),
    # -- JSON Schema
    "schema of no type": Bad(TYPES, schema({"type": "objekt"}), "schema"),
    "schema of numbers": Bad(TYPES, schema({"minimum": "five"}), "schema"),
    "schema that is a list": Bad(TYPES, schema([]), "schema"),
    "schema with another pattern": Bad(TYPES, schema({"pattern": "("}), "schema"),
    "schema with look-ahead": Bad(TYPES, schema({"pattern": "(?=a)b"}), "schema"),
    "schema with a backreference": Bad(TYPES, schema({"pattern": "(a)\\1"}), "schema"),
    "schema with a huge pattern": Bad(TYPES, schema({"pattern": "((a{1000}){1000}){1000}"}), "schema"),
    "schema with wide classes": Bad(TYPES, schema({"pattern": "(\\p{L}{500}){500}"}), "schema"),
    "schema of another draft": Bad(TYPES, schema({"$schema": "https://example.com/mine"}), "schema"),
    "schema with a missing $ref": Bad(TYPES, schema({"$ref": "#/$defs/missing"}), "schema"),
    "schema of a file": Bad(TYPES, schema({"$ref": "file:///etc/passwd"}), "schema"),
    "schema too deep": Bad(
        TYPES, b'{"name":"A","schema":' + b'{"not":' * 31 + b"{}" + b"}" * 32, "schema" + ".not" * 30
    ),
}


@pytest.mark.parametrize("bad", CASES.values(), ids=list(CASES))
async def test_bad_input_is_told_and_not_stored(own: Client, stored: Stored, bad: Bad) -> None:
    """Issue 2, FL-10: status, code and the field in details; nothing is stored, and it is never a 500."""
    before = await stored.counts()
    response = await own.post(f"/api/v1/{bad.path}", content=bad.content, headers={"content-type": "application/json"})
    if bad.faulty == ("",):
        # The body itself is at fault: there is no field to name.
        assert response.json()["details"] == [
            {"field": "", "message": "the body must be an object", "code": "WRONG_TYPE"}
        ]
        assert response.status_code == bad.status
    else:
        check_error(response, bad.status, bad.code, *bad.faulty)
    assert len(response.content) < 8192
    assert await stored.counts() == before


QUERIES: dict[str, str] = {
    "runs?status=ASLEEP": "status",
    "runs?status=7": "status",
    "runs?status=-1": "status",
    "runs?kind=NONE": "kind",
    "tasks?status=DONE": "status",
    "agents?status=AWAY": "status",
    "artifacts?visibility=public": "visibility",
    "artifacts?limit=-1": "limit",
    "artifacts?limit=1.5": "limit",
    "artifacts?limit=1e2": "limit",
    "artifacts?limit=99999999999999999999": "limit",
    "artifacts?offset=-1": "offset",
    "artifacts?page_size=0": "page_size",
    "artifacts?page_size=501": "page_size",
    "artifacts?from=yesterday": "from",
    "artifacts?to=2026-13-01T00:00:00Z": "to",
    "artifacts?correlation_id=abc": "correlation_id",
    "artifacts?embed_meta=perhaps": "embed_meta",
    "artifacts?type=a&type=b": "type",
    "artifacts?unknown=1": "unknown",
    "artifacts?tag=%ff": "tag",
    "artifacts?tag=%00": "tag",
    f"artifacts?type={'x' * 256}": "type",
    "tasks?created_after=now": "created_after",
    "artifact-types/Note?version=0": "version",
    "artifacts/summary?limit=5": "limit",
}


@pytest.mark.parametrize(("query", "field"), QUERIES.items(), ids=[query[:60] for query in QUERIES])
async def test_a_bad_parameter_is_a_field_error(own: Client, query: str, field: str) -> None:
    """Issue 2, FL-10: of a query as of a body."""
    check_error(await own.get(f"/api/v1/{query}"), 422, "VALIDATION_ERROR", field)


async def test_what_is_just_within_the_bounds_is_taken(own: Client) -> None:
    """Issue 2: the other side of each bound."""
    good: list[tuple[str, bytes | dict[str, Any], int]] = [
        (ARTIFACTS, nested(30), 200),
        (ARTIFACTS, nested(30, "[", "]"), 200),
        (ARTIFACTS, note(payload={"a": 2**53 - 1, "b": -(2**53) + 1, "c": 1e308, "d": 9.5e15}), 200),
        (ARTIFACTS, note(payload={"a": "\0", "\0": 1}), 200),
        (ARTIFACTS, note(payload={"a": "x" * 1_048_000}), 200),
        (ARTIFACTS, note(partition_key="x" * 255, tags=[f"{n:0128}" for n in range(32)]), 200),
        (ARTIFACTS, b'{"type":"Note","payload":{"a":"\\ud83d\\ude00"}}', 200),
        (ARTIFACTS, {"type": "Note", "payload": None, "tags": None}, 200),
        (TASKS, task(kind="k" * 128, priority=-100, labels={"x" * 128: "y" * 256}), 201),
        (TASKS, task(run_at="0001-01-01T00:00:00Z"), 201),
        (TASKS, task(run_at="9999-12-31T23:59:59.999999Z"), 201),
        (TYPES, {"name": "x" * 255, "description": "y" * 2000}, 201),
        (AGENTS, agent("true" + " " * 1996), 201),
    ]
    for path, body, status in good:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        response = await own.post(f"/api/v1/{path}", content=content, headers={"content-type": "application/json"})
        check_ok(response, status)


async def test_nothing_is_fetched_for_a_schema(own: Client) -> None:
    """Issue 2: a remote $ref is refused, and the server it names hears nothing."""
    heard: list[bytes] = []

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(100))
        writer.close()

    async with await asyncio.start_server(hear, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        for value in (
            {"$ref": f"http://127.0.0.1:{port}/schema.json"},
            {"$schema": f"http://127.0.0.1:{port}/meta"},
            {"properties": {"a": {"$dynamicRef": f"http://127.0.0.1:{port}/x#y"}}},
            {"$id": f"http://127.0.0.1:{port}/", "$ref": "other.json"},
        ):
            response = await own.post("/api/v1/artifact-types", json={"name": "A", "schema": value})
            check_error(response, 422, "VALIDATION_ERROR", "schema")
    assert heard == []
