"""Every error over REST: the code, the status, the one body, and the correlation id in both places."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import httpx
import pytest
from tests.e2e.answers import check_error, check_ok
from tests.e2e.stack import Stack

MISSING = str(uuid.uuid4())
Client = httpx.AsyncClient


async def ended_run(own: Client) -> str:
    """A run that has ended."""
    run_id: str = check_ok(await own.post("/api/v1/artifacts/sync", json={"type": "Note"}))["correlation_id"]
    return run_id


async def cancelled_task(own: Client) -> str:
    """A task that has ended."""
    task_id: str = check_ok(await own.post("/api/v1/tasks", json={"kind": "k"}), 201)["task_id"]
    check_ok(await own.post(f"/api/v1/tasks/{task_id}/cancel", json={}))
    return task_id


async def test_not_found_names_what_there_is_not(own: Client) -> None:
    """FL-10: 404 for an unknown resource of every kind, and for a well-formed type that is not registered."""
    for path in (
        f"artifacts/{MISSING}", f"runs/{MISSING}", f"runs/{MISSING}/events", f"runs/{MISSING}/tasks",
        f"tasks/{MISSING}", f"tasks/{MISSING}/attempts", "agents/nobody", f"agents/{MISSING}", "artifact-types/Nope",
        "artifact-types/Nope/versions", "artifact-types/Note?version=9",
    ):  # fmt: skip
        error = check_error(await own.get(f"/api/v1/{path}"), 404, "NOT_FOUND")
        assert error["message"].startswith("there is no ")
    for path in (f"runs/{MISSING}/cancel", f"tasks/{MISSING}/cancel"):
        check_error(await own.post(f"/api/v1/{path}", json={}), 404, "NOT_FOUND")
    for path in ("artifacts", "artifacts/sync"):
        error = check_error(await own.post(f"/api/v1/{path}", json={"type": "Nope"}), 404, "NOT_FOUND")
        assert "'Nope'" in error["message"]
    agent = {"name": "a", "subscriptions": [{"types": ["Nope"]}]}
    check_error(await own.post("/api/v1/agents", json=agent), 404, "NOT_FOUND", "subscriptions[0].types")


async def test_an_unknown_path_is_not_found_and_a_wrong_method_is_told_the_right_ones(own: Client) -> None:
    """FL-10: 404 NOT_FOUND and 405 METHOD_NOT_ALLOWED, from the proxy, in the same shape."""
    check_error(await own.get("/api/v1/nonsense"), 404, "NOT_FOUND")
    response = await own.delete("/api/v1/artifacts")
    check_error(response, 405, "METHOD_NOT_ALLOWED")
    assert response.headers["allow"] == "GET, HEAD, OPTIONS, POST"


async def test_what_the_state_forbids_is_a_conflict(own: Client) -> None:
    """FL-10: 409 CONFLICT for an ended run, an ended task, a taken name, a cancelled cascade."""
    check_error(await own.post(f"/api/v1/runs/{await ended_run(own)}/cancel", json={}), 409, "CONFLICT")
    check_error(await own.post(f"/api/v1/tasks/{await cancelled_task(own)}/cancel", json={}), 409, "CONFLICT")
    for status in (201, 409):
        assert (await own.post("/api/v1/agents", json={"name": "a"})).status_code == status
    check_error(await own.post("/api/v1/agents", json={"name": "a"}), 409, "CONFLICT")
    waiting = {"name": "w", "subscriptions": [{"types": ["Note"]}]}
    check_ok(await own.post("/api/v1/agents", json=waiting), 201)
    run_id = check_ok(await own.post("/api/v1/artifacts", json={"type": "Note"}))["correlation_id"]
    check_ok(await own.post(f"/api/v1/runs/{run_id}/cancel", json={}))
    check_error(await own.post("/api/v1/artifacts", json={"type": "Note", "correlation_id": run_id}), 409, "CONFLICT")


async def test_too_large_names_the_limit(own: Client) -> None:
    """FL-10: 413 for a payload over 1 MiB, a schema over 256 KiB and a body over 4 MiB."""
    for size, limit in ((1_100_000, "1,048,576"), (5_000_000, "4194304"), (10_000_000, "4194304")):
        response = await own.post("/api/v1/artifacts", json={"type": "Note", "payload": {"a": "x" * size}})
        assert limit in check_error(response, 413, "PAYLOAD_TOO_LARGE")["message"]
    response = await own.post("/api/v1/tasks", json={"kind": "k", "input": "x" * 1_100_000})
    check_error(response, 413, "PAYLOAD_TOO_LARGE")
    response = await own.post("/api/v1/artifact-types", json={"name": "Big", "schema": {"title": "x" * 300_000}})
    check_error(response, 413, "PAYLOAD_TOO_LARGE")
    fits = await own.post("/api/v1/artifacts", json={"type": "Note", "payload": {"a": "x" * 1_048_000}})
    check_ok(fits)


async def test_a_full_queue_says_when_to_come_again(locked: Stack) -> None:
    """FL-10: 429 RATE_LIMITED with Retry-After while nothing can be stored and the queue of one is taken; later all is
    well, and what waited was stored."""
    client = await locked.rest(x_api_key="operator-key")
    assert (await client.post("/api/v1/artifact-types", json={"name": "Flood"})).status_code == 201
    database = await asyncpg.connect(locked.database.url)
    async with database.transaction():
        await database.execute("LOCK TABLE commit_batch IN ACCESS EXCLUSIVE MODE")
        calls = {asyncio.create_task(client.post("/api/v1/artifacts", json={"type": "Flood"})) for _ in range(10)}
        refused, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        for call in refused:
            check_error(call.result(), 429, "RATE_LIMITED")
            assert int(call.result().headers["retry-after"]) >= 1
    await database.close()
    answers = await asyncio.gather(*waiting)
    assert {answer.status_code for answer in answers} <= {200, 429}
    assert any(answer.status_code == 200 for answer in answers)
    check_ok(await client.post("/api/v1/artifacts", json={"type": "Flood"}))


async def test_every_error_has_the_one_shape(own: Client) -> None:
    """FL-10, FL-15: a hundred calls that all go wrong in their own way, at once, over both servers."""
    post: Callable[..., Awaitable[httpx.Response]] = own.post
    calls: list[tuple[Awaitable[httpx.Response], int, str, tuple[str, ...]]] = []
    for number in range(10):
        label = {"x-correlation-id": f"call-{number}"}
        bad: list[tuple[str, Any, int, str, tuple[str, ...]]] = [
            ("artifacts", {"type": "Nope"}, 404, "NOT_FOUND", ()),
            ("artifacts", {}, 422, "VALIDATION_ERROR", ("type",)),
            ("artifacts", {"type": 5}, 422, "VALIDATION_ERROR", ("type",)),
            ("artifacts/sync", {"type": "Note", "timeout": 0}, 422, "VALIDATION_ERROR", ("timeout",)),
            ("artifacts/batch", {"artifacts": []}, 422, "VALIDATION_ERROR", ("artifacts",)),
            ("tasks", {"kind": "agent:x"}, 422, "VALIDATION_ERROR", ("kind",)),
            (f"tasks/{MISSING}/cancel", {}, 404, "NOT_FOUND", ()),
            (f"runs/{number}/cancel", {}, 422, "VALIDATION_ERROR", ("run_id",)),
            ("agents", {"name": "a b"}, 422, "VALIDATION_ERROR", ("name",)),
            ("nonsense", {}, 404, "NOT_FOUND", ()),
        ]
        calls += [
            (post(f"/api/v1/{path}", json=body, headers=label), status, code, fields)
            for path, body, status, code, fields in bad
        ]
    answers = await asyncio.gather(*(call for call, *_ in calls))
    for number, (response, (_, status, code, fields)) in enumerate(zip(answers, calls, strict=True)):
        error = check_error(response, status, code, *fields)
        assert error["correlation_id"] == f"call-{number // 10}"


async def test_a_label_that_is_unfit_for_logs_is_replaced(own: Client) -> None:
    """FL-10: by one that body and header share."""
    for label in ("a b", "x" * 129, '"; drop', "é"):
        headers = [(b"x-correlation-id", label.encode())]
        error = check_error(await own.get("/api/v1/agents/nobody", headers=headers), 404, "NOT_FOUND")
        assert error["correlation_id"] != label


@pytest.mark.parametrize(
    ("schema", "payload", "fields"),
    [
        ({"required": ["a", "b"]}, {}, ["payload", "payload"]),
        ({"properties": {"a": {"type": "integer"}}}, {"a": "x"}, ["payload.a"]),
        ({"properties": {"a": {"items": {"minimum": 5}}}}, {"a": [9, 1, 9, 2]}, ["payload.a[1]", "payload.a[3]"]),
        ({"additionalProperties": False}, {"x": 1}, ["payload"]),
        ({"properties": {"a": {"properties": {"b": {"enum": [1]}}}}}, {"a": {"b": 2}}, ["payload.a.b"]),
    ],
)
async def test_a_payload_that_breaks_its_schema_is_told_each_field(
    own: Client, schema: dict[str, Any], payload: dict[str, Any], fields: list[str]
) -> None:
    """FL-10: with the path of each, in a publish, a sync publish and a batch."""
    check_ok(await own.post("/api/v1/artifact-types", json={"name": "Strict", "schema": schema}), 201)
    request = {"type": "Strict", "payload": payload}
    for path in ("/api/v1/artifacts", "/api/v1/artifacts/sync"):
        check_error(await own.post(path, json=request), 422, "VALIDATION_ERROR", *fields)
    (result,) = check_ok(await own.post("/api/v1/artifacts/batch", json={"artifacts": [request]}))["results"]
    assert [detail["field"] for detail in result["error"]["details"]] == [f"artifacts[0].{name}" for name in fields]


async def test_a_large_value_at_fault_does_not_drown_the_answer(own: Client) -> None:
    """FL-10: the field is named, whatever stands in it, and the answer stays small."""
    schema = {"properties": {"a": {"type": "string"}}}
    check_ok(await own.post("/api/v1/artifact-types", json={"name": "Strict", "schema": schema}), 201)
    request = {"type": "Strict", "payload": {"a": {"b": "é" * 200_000}}}
    response = await own.post("/api/v1/artifacts", json=request)
    check_error(response, 422, "VALIDATION_ERROR", "payload.a")
    assert len(response.content) < 8192
    answer = await own.post("/api/v1/artifacts/batch", json={"artifacts": [request]})
    assert check_ok(answer)["results"][0]["error"]["details"][0]["field"] == "artifacts[0].payload.a"
    assert len(answer.content) < 8192


async def test_a_thousand_faults_are_told_as_twenty(own: Client) -> None:
    """FL-10: of an unknown field in every item as of a wrong value in every element."""
    items = [{"type": "Note", f"odd_{number}": 1} for number in range(1000)]
    response = await own.post("/api/v1/artifacts/batch", json={"artifacts": items})
    assert len(response.json()["details"]) == 20
    schema = {"properties": {"a": {"items": {"type": "string"}}}}
    check_ok(await own.post("/api/v1/artifact-types", json={"name": "Strict", "schema": schema}), 201)
    request = {"type": "Strict", "payload": {"a": [None] * 50_000}}
    async with asyncio.timeout(5):
        response = await own.post("/api/v1/artifacts", json=request)
    check_error(response, 422, "VALIDATION_ERROR", *(f"payload.a[{number}]" for number in range(20)))


async def test_malformed_json_is_a_bad_request_that_says_where(own: Client) -> None:
    """FL-10: 400 BAD_REQUEST with the byte."""
    response = await own.post(
        "/api/v1/artifacts", content=b'{"type":"Note",}', headers={"content-type": "application/json"}
    )
    assert "byte 15" in check_error(response, 400, "BAD_REQUEST")["message"]
    assert json.loads(response.content)["details"] == []
