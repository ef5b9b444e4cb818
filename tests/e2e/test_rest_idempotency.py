"""Idempotency keys over REST, on every write that takes one, with two servers behind the proxy."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from tests.e2e.answers import check_error, check_ok
from tests.e2e.stack import Process
from tests.e2e.stored import Stored

KEY = "x-idempotency-key"
REPLAYED = "idempotency-replayed"
Post = Callable[[str, Any], Awaitable[httpx.Response]]


@dataclass(frozen=True)
class Write:
    """A keyed write: where it goes, two different requests, and the table where its effect stands."""

    path: str
    body: dict[str, Any]
    other: dict[str, Any]
    status: int = 200
    table: str = "run"
    before: str = ""
    """The path that makes the resource which `{id}` in `path` stands for, its id under the name after the colon."""

    async def at(self, client: httpx.AsyncClient) -> str:
        """Where it goes, once what it needs is made."""
        if not self.before:
            return self.path
        path, name = self.before.split(":")
        made = await client.post(path, json={"kind": "k"})
        return self.path.replace("{id}", check_ok(made, 201)[name])


WORKFLOW = {"name": "nap", "steps": [{"id": "rest", "kind": "sleep", "seconds": 0}]}
WRITES = {
    "publish": Write("/api/v1/artifacts", {"type": "Note", "payload": {"n": 1}}, {"type": "Note", "payload": {"n": 2}}),
    "publish_sync": Write(
        "/api/v1/artifacts/sync", {"type": "Note", "payload": {"n": 1}}, {"type": "Note", "payload": {"n": 2}}
    ),
    "publish_batch": Write(
        "/api/v1/artifacts/batch",
        {"artifacts": [{"type": "Note"}, {"type": "Note"}]},
        {"artifacts": [{"type": "Note", "tags": ["x"]}, {"type": "Note"}]},
    ),
    "task": Write("/api/v1/tasks", {"kind": "k"}, {"kind": "l"}, status=201, table="task"),
    "task_batch": Write("/api/v1/tasks/batch", {"tasks": [{"kind": "k"}]}, {"tasks": [{"kind": "l"}]}, table="task"),
    "type": Write("/api/v1/artifact-types", {"name": "A"}, {"name": "B"}, status=201, table="artifact_type"),
    "agent": Write("/api/v1/agents", {"name": "a"}, {"name": "b"}, status=201, table="agent"),
    "workflow": Write(
        "/api/v1/workflows",
        {"definition": WORKFLOW},
        {"definition": WORKFLOW | {"timeout": 1}},
        status=201,
        table="workflow_version",
    ),
    "cancel_task": Write("/api/v1/tasks/{id}/cancel", {"reason": "a"}, {"reason": "b"}, before="/api/v1/tasks:task_id"),
    "cancel_run": Write("/api/v1/runs/{id}/cancel", {"reason": "a"}, {"reason": "b"}, before="/api/v1/tasks:run_id"),
}


def told(body: dict[str, Any]) -> dict[str, Any]:
    """What an answer says that must be the same again: all but what tells of the call itself."""
    results = [{**each, "status": ""} for each in body.get("results", [])]
    return {**body, "results": results, "duration_ms": 0}


@pytest.fixture(params=list(WRITES.values()), ids=list(WRITES))
def write(request: pytest.FixtureRequest) -> Write:
    """Each keyed write."""
    found: Write = request.param
    return found


async def test_the_same_key_gets_the_first_answer_and_nothing_runs_again(
    own: httpx.AsyncClient, write: Write, stored: Stored
) -> None:
    """FL-8: the same body and status, and the header that says so; the first answer has no such header."""
    path = await write.at(own)
    first = await own.post(path, json=write.body, headers={KEY: "once"})
    body = check_ok(first, write.status)
    assert REPLAYED not in first.headers
    before = await stored.counts()
    for _ in range(3):
        again = await own.post(path, json=write.body, headers={KEY: "once"})
        assert told(check_ok(again, write.status)) == told(body)
        assert again.headers[REPLAYED] == "true"
    assert await stored.counts() == before


async def test_the_same_key_with_another_body_is_a_conflict(
    own: httpx.AsyncClient, write: Write, stored: Stored
) -> None:
    """FL-8, FL-10: 409 IDEMPOTENCY_CONFLICT, and nothing is stored."""
    path = await write.at(own)
    check_ok(await own.post(path, json=write.body, headers={KEY: "once"}), write.status)
    before = await stored.counts()
    check_error(await own.post(path, json=write.other, headers={KEY: "once"}), 409, "IDEMPOTENCY_CONFLICT")
    assert await stored.counts() == before


async def test_other_keys_and_no_key_are_untouched(own: httpx.AsyncClient, stored: Stored) -> None:
    """FL-8: three calls with other keys or none store three artifacts more."""
    write = WRITES["publish"]
    check_ok(await own.post(write.path, json=write.body, headers={KEY: "one"}))
    for headers in ({KEY: "two"}, {}, {KEY: "One"}):
        response = await own.post(write.path, json=write.body, headers=headers)
        check_ok(response)
        assert REPLAYED not in response.headers
    assert await stored.count("artifact") == 4


async def test_publish_and_publish_sync_have_keys_of_their_own(own: httpx.AsyncClient, stored: Stored) -> None:
    """FL-8: a key belongs to the operation that it was sent to."""
    body = {"type": "Note"}
    for path in ("/api/v1/artifacts", "/api/v1/artifacts/sync"):
        response = await own.post(path, json=body, headers={KEY: "shared"})
        check_ok(response)
        assert REPLAYED not in response.headers
    assert await stored.count("artifact") == 2


async def test_the_order_of_members_and_the_spelling_of_numbers_make_no_other_request(own: httpx.AsyncClient) -> None:
    """FL-8: the fingerprint is of what is said, not of its bytes."""
    headers = {KEY: "same", "content-type": "application/json"}
    one = b'{"type": "Note", "payload": {"a": 1, "b": {"c": 2, "d": [1, 2]}}}'
    two = b'{"payload":{"b":{"d":[1.0,2e0],"c":2.0},"a":1},"type":"Note"}'
    first = check_ok(await own.post("/api/v1/artifacts", content=one, headers=headers))
    again = await own.post("/api/v1/artifacts", content=two, headers=headers)
    assert check_ok(again) == first
    assert again.headers[REPLAYED] == "true"


async def test_either_header_carries_the_key(own: httpx.AsyncClient) -> None:
    """FL-8: X-Idempotency-Key and Idempotency-Key are one; both with one value are fine."""
    first = check_ok(await own.post("/api/v1/artifacts", json={"type": "Note"}, headers={"Idempotency-Key": "k"}))
    for headers in ({KEY: "k"}, {KEY: "k", "Idempotency-Key": "k"}):
        assert check_ok(await own.post("/api/v1/artifacts", json={"type": "Note"}, headers=headers)) == first


async def test_both_headers_with_different_keys_are_a_bad_request(own: httpx.AsyncClient, write: Write) -> None:
    """FL-8: 400, on every keyed write."""
    path = await write.at(own)
    headers = {KEY: "a", "Idempotency-Key": "b"}
    check_error(await own.post(path, json=write.body, headers=headers), 400, "BAD_REQUEST")


BAD_KEYS = [b"", b"x" * 256, b"x" * 5000, "é".encode(), "é".encode("latin-1"), b"\xff", b"a\tb"]


@pytest.mark.parametrize("key", BAD_KEYS, ids=["empty", "256", "5000", "utf-8", "latin-1", "0xff", "tab"])
async def test_a_key_that_is_none_is_a_field_error(
    own: httpx.AsyncClient, write: Write, stored: Stored, key: bytes
) -> None:
    """FL-8: 1 to 255 printable ASCII characters, or a 422 that names the header; nothing is stored."""
    path = await write.at(own)
    before = await stored.counts()
    response = await own.post(path, json=write.body, headers=[(KEY.encode(), key)])
    check_error(response, 422, "VALIDATION_ERROR", KEY)
    assert await stored.counts() == before


async def test_a_key_of_255_characters_is_taken(own: httpx.AsyncClient, write: Write) -> None:
    """FL-8: the longest, with every kind of printable character."""
    key = ("".join(map(chr, range(33, 127))) * 3)[:255]
    path = await write.at(own)
    check_ok(await own.post(path, json=write.body, headers={KEY: key}), write.status)
    again = await own.post(path, json=write.body, headers={KEY: key})
    assert again.headers[REPLAYED] == "true"


async def test_an_error_is_not_kept(own: httpx.AsyncClient, stored: Stored) -> None:
    """FL-8: once its cause is mended, the same key succeeds."""
    request = {"type": "Later", "payload": {"n": 1}}
    for _ in range(2):
        check_error(await own.post("/api/v1/artifacts", json=request, headers={KEY: "k"}), 404, "NOT_FOUND")
    assert await stored.count("idempotency") == 0
    check_ok(await own.post("/api/v1/artifact-types", json={"name": "Later"}), 201)
    response = await own.post("/api/v1/artifacts", json=request, headers={KEY: "k"})
    check_ok(response)
    assert REPLAYED not in response.headers


async def test_a_replay_outlives_a_change_of_the_type(own: httpx.AsyncClient) -> None:
    """FL-8: a duplicate gets the original answer, whatever the type's schema has become since."""
    request = {"type": "Note", "payload": {"n": 1}}
    first = check_ok(await own.post("/api/v1/artifacts", json=request, headers={KEY: "k"}))
    strict = {"name": "Note", "schema": {"type": "object", "required": ["text"]}, "compatibility": "none"}
    assert check_ok(await own.post("/api/v1/artifact-types", json=strict), 201)["version"] == 2
    check_error(await own.post("/api/v1/artifacts", json=request), 422, "VALIDATION_ERROR", "payload")
    again = await own.post("/api/v1/artifacts", json=request, headers={KEY: "k"})
    assert check_ok(again) == first
    assert again.headers[REPLAYED] == "true"
    other = {"type": "Note", "payload": {"n": 2}}
    check_error(await own.post("/api/v1/artifacts", json=other, headers={KEY: "k"}), 409, "IDEMPOTENCY_CONFLICT")


async def test_fifty_callers_with_one_key_make_one_cascade(own: httpx.AsyncClient, stored: Stored) -> None:
    """FL-8: at once, over both servers; all get the same answer and one of them is the first."""
    body = {"type": "Note", "payload": {"n": 1}}
    sent = [own.post("/api/v1/artifacts/sync", json=body, headers={KEY: "crowd"}) for _ in range(50)]
    answers = await asyncio.gather(*sent)
    bodies = [told(check_ok(answer)) for answer in answers]
    assert all(body == bodies[0] for body in bodies)
    assert sum(REPLAYED not in answer.headers for answer in answers) == 1
    assert (await stored.count("artifact"), await stored.count("run")) == (1, 1)


async def test_a_sync_replay_returns_the_whole_first_answer(rest: httpx.AsyncClient, orders: Process) -> None:
    """FL-8, FL-2: the cascade's artifacts again, and nothing that came into it later."""
    request = {"type": "Order", "payload": {"order_id": "replay", "amount": 3, "items": []}}
    headers = {KEY: "a-sync-replay"}
    first = check_ok(await rest.post("/api/v1/artifacts/sync", json=request, headers=headers))
    later = {**request, "correlation_id": first["correlation_id"]}
    assert len(check_ok(await rest.post("/api/v1/artifacts/sync", json=later))["artifacts"]) == 8
    again = await rest.post("/api/v1/artifacts/sync", json=request, headers=headers)
    assert told(check_ok(again)) == told(first)
    assert again.headers[REPLAYED] == "true"


async def test_a_replay_of_an_unfinished_cascade_goes_on_waiting(own: httpx.AsyncClient) -> None:
    """FL-8, FL-3: an answer with completed:false is not final; the duplicate waits for the same run."""
    subscription = {"subscriptions": [{"types": ["Note"]}]}
    check_ok(await own.post("/api/v1/agents", json={"name": "nobody", **subscription}), 201)
    request = {"type": "Note", "timeout": 1}
    first = check_ok(await own.post("/api/v1/artifacts/sync", json=request, headers={KEY: "k"}))
    assert first["completed"] is False
    run = f"/api/v1/runs/{first['correlation_id']}"
    waiting = asyncio.create_task(own.post("/api/v1/artifacts/sync", json=request, headers={KEY: "k"}))
    tasks = check_ok(await own.get(f"{run}/tasks"))["items"]
    check_ok(await own.post(f"/api/v1/tasks/{tasks[0]['task_id']}/cancel", json={}))
    again = check_ok(await waiting)
    assert (again["correlation_id"], again["completed"]) == (first["correlation_id"], True)
    assert len(again["artifacts"]) == 1


async def test_a_batch_and_a_publish_know_each_other_s_keys(own: httpx.AsyncClient, stored: Stored) -> None:
    """FL-8, FL-11: an item's key is of the single publish's scope."""
    first = check_ok(await own.post("/api/v1/artifacts", json={"type": "Note"}, headers={KEY: "k"}))
    item = {"type": "Note", "idempotency_key": "k"}
    (result,) = check_ok(await own.post("/api/v1/artifacts/batch", json={"artifacts": [item]}))["results"]
    assert (result["status"], result["artifact_id"]) == ("duplicate", first["artifact_id"])
    assert await stored.count("artifact") == 1


async def test_tenants_have_keys_of_their_own(own: httpx.AsyncClient, rest: httpx.AsyncClient) -> None:
    """FL-8: the same key and body of another tenant is another call."""
    other = {"x-tenant": f"{own.headers['x-tenant']}-2"}
    check_ok(await rest.post("/api/v1/artifact-types", json={"name": "Note"}, headers=other), 201)
    for headers in ({}, other):
        response = await own.post("/api/v1/artifacts", json={"type": "Note"}, headers={KEY: "k", **headers})
        check_ok(response)
        assert REPLAYED not in response.headers


async def test_reads_take_no_notice_of_a_key(own: httpx.AsyncClient) -> None:
    """FL-8: even one that would be an error on a write."""
    assert check_ok(await own.get("/api/v1/artifacts", headers={KEY: "x" * 300}))["items"] == []
