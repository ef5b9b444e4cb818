"""Batches over REST: each item with an outcome of its own."""

from __future__ import annotations

import uuid
from typing import Any

import httpx
from tests.e2e.answers import check_error, check_ok
from tests.e2e.stored import Stored

BATCH = "/api/v1/artifacts/batch"
TASKS = "/api/v1/tasks/batch"
Client = httpx.AsyncClient

# An item that is wrong, with the code and the fields of its error.
BAD_ARTIFACTS: list[tuple[dict[str, Any], str, list[str]]] = [
    ({}, "VALIDATION_ERROR", ["type"]),
    ({"type": "no such name!"}, "VALIDATION_ERROR", ["type"]),
    ({"type": "Nope"}, "NOT_FOUND", []),
    ({"type": "Note", "tags": ["a", "a"]}, "VALIDATION_ERROR", ["tags"]),
    ({"type": "Note", "tags": [f"t{number}" for number in range(33)]}, "VALIDATION_ERROR", ["tags"]),
    ({"type": "Note", "partition_key": "x" * 256}, "VALIDATION_ERROR", ["partition_key"]),
    ({"type": "Note", "correlation_id": "abc"}, "VALIDATION_ERROR", ["correlation_id"]),
    ({"type": "Note", "idempotency_key": "x" * 256}, "VALIDATION_ERROR", ["idempotency_key"]),
    ({"type": "Note", "idempotency_key": "é"}, "VALIDATION_ERROR", ["idempotency_key"]),
    ({"type": "Note", "visibility": {"kind": "Secret"}}, "VALIDATION_ERROR", ["visibility.kind"]),
    ({"type": "Note", "visibility": {"kind": "Private"}}, "VALIDATION_ERROR", ["visibility.agents"]),
    ({"type": "Note", "visibility": {"agents": ["hr"]}}, "VALIDATION_ERROR", ["visibility.agents"]),
    ({"type": "Note", "visibility": {"kind": "After"}}, "VALIDATION_ERROR", ["visibility.ttl"]),
    ({"type": "Note", "payload": {"a": "x" * 1_100_000}}, "PAYLOAD_TOO_LARGE", []),
    ({"type": "Strict", "payload": {}}, "VALIDATION_ERROR", ["payload"]),
]


async def test_good_bad_and_duplicate_items_each_have_their_outcome(own: Client, stored: Stored) -> None:
    """FL-11: results in request order, with index, status, ids and error; one bad item does not fail the rest."""
    cascade = str(uuid.uuid4())
    items = [
        {"type": "Note", "payload": {"n": 0}, "idempotency_key": "k"},
        {"type": "Nope"},
        {"type": "Note", "payload": {"n": 0}, "idempotency_key": "k"},
        {"type": "Note", "payload": {"n": 3}, "idempotency_key": "k"},
        {"type": "Note", "correlation_id": cascade},
    ]
    body = check_ok(await own.post(BATCH, json={"artifacts": items}))
    assert set(body) == {"results", "accepted", "failed"}
    assert (body["accepted"], body["failed"]) == (3, 2)
    results = body["results"]
    assert [result["index"] for result in results] == [0, 1, 2, 3, 4]
    assert [result["status"] for result in results] == ["accepted", "failed", "duplicate", "failed", "accepted"]
    for result in results:
        assert set(result) - {"error"} == {"index", "status", "artifact_id", "correlation_id"}
        assert ("error" in result) is (result["status"] == "failed")
    assert results[2]["artifact_id"] == results[0]["artifact_id"]
    assert results[1]["error"]["code"] == "NOT_FOUND"
    assert results[3]["error"]["code"] == "IDEMPOTENCY_CONFLICT"
    assert results[4]["correlation_id"] == cascade
    assert await stored.count("artifact") == 2


async def test_each_way_to_be_wrong_is_told_with_its_field(own: Client, stored: Stored) -> None:
    """FL-10, FL-11: the error of an item is the one error body, its fields named by the item's place."""
    strict = {"name": "Strict", "schema": {"required": ["a"]}}
    check_ok(await own.post("/api/v1/artifact-types", json=strict), 201)
    # A good one before, between and behind.
    items: list[dict[str, Any]] = [{"type": "Note"}]
    for item, _, _ in BAD_ARTIFACTS:
        items += [item, {"type": "Note"}]
    response = await own.post(BATCH, json={"artifacts": items})
    results = check_ok(response)["results"]
    assert [result["status"] for result in results[::2]] == ["accepted"] * (len(BAD_ARTIFACTS) + 1)
    for place, (result, (item, code, fields)) in enumerate(zip(results[1::2], BAD_ARTIFACTS, strict=True)):
        error = result["error"]
        assert set(error) == {"code", "message", "correlation_id", "retryable", "details"}
        assert error["code"] == code, (item, error)
        found = [detail["field"] for detail in error["details"]]
        assert found == [f"artifacts[{2 * place + 1}].{field}" for field in fields], item
        assert error["correlation_id"] == response.headers["x-correlation-id"]
        assert (result["artifact_id"], result["correlation_id"]) == ("", "")
    assert await stored.count("artifact") == len(BAD_ARTIFACTS) + 1


async def test_a_batch_of_1000_is_taken_in_order(own: Client, stored: Stored) -> None:
    """FL-11: the most there may be; the order of the results is the order of the request."""
    items = [{"type": "Note", "partition_key": str(number)} for number in range(1000)]
    body = check_ok(await own.post(BATCH, json={"artifacts": items}))
    assert (body["accepted"], body["failed"]) == (1000, 0)
    assert [result["index"] for result in body["results"]] == list(range(1000))
    last = check_ok(await own.get(f"/api/v1/artifacts/{body['results'][999]['artifact_id']}"))
    assert last["partition_key"] == "999"
    assert await stored.count("artifact") == 1000


async def test_a_batch_of_none_or_too_many_is_refused_whole(own: Client, stored: Stored) -> None:
    """FL-11: 1 to 1,000 items."""
    for items in ([], [{"type": "Note"}] * 1001):
        check_error(await own.post(BATCH, json={"artifacts": items}), 422, "VALIDATION_ERROR", "artifacts")
    check_error(await own.post(BATCH, json={}), 422, "VALIDATION_ERROR", "artifacts")
    assert await stored.count("artifact") == 0


async def test_what_the_scanner_refuses_fails_the_whole_batch(own: Client, stored: Stored) -> None:
    """FL-11: an unknown field is no item's fault but the request's: it names where."""
    items = [{"type": "Note"}, {"type": "Note", "colour": "red"}]
    response = await own.post(BATCH, json={"artifacts": items})
    check_error(response, 422, "VALIDATION_ERROR", "artifacts[1].colour")
    assert await stored.count("artifact") == 0


async def test_items_of_one_batch_may_share_a_cascade(own: Client) -> None:
    """FL-5, FL-11: they join it in order."""
    cascade = str(uuid.uuid4())
    items = [{"type": "Note", "payload": {"n": number}, "correlation_id": cascade} for number in range(5)]
    check_ok(await own.post(BATCH, json={"artifacts": items}))
    listed = check_ok(await own.get("/api/v1/artifacts", params={"correlation_id": cascade}))["items"]
    assert [artifact["payload"]["n"] for artifact in listed] == [4, 3, 2, 1, 0]


async def test_a_failed_item_may_be_tried_again_under_the_batch_s_key(own: Client, stored: Stored) -> None:
    """FL-8, FL-11: the same batch with the same key: what was stored is a duplicate, what failed is tried again."""
    request = {"artifacts": [{"type": "Note"}, {"type": "Later"}]}
    headers = {"x-idempotency-key": "batch"}
    first = check_ok(await own.post(BATCH, json=request, headers=headers))["results"]
    assert [result["status"] for result in first] == ["accepted", "failed"]
    check_ok(await own.post("/api/v1/artifact-types", json={"name": "Later"}), 201)
    again = check_ok(await own.post(BATCH, json=request, headers=headers))["results"]
    assert [result["status"] for result in again] == ["duplicate", "accepted"]
    assert again[0]["artifact_id"] == first[0]["artifact_id"]
    assert await stored.count("artifact") == 2


async def test_a_batch_of_tasks_does_likewise(own: Client, stored: Stored) -> None:
    """FL-11 for tasks: good, bad and duplicate items, in order, with the ids of task and run."""
    items = [
        {"kind": "k", "input": [1], "idempotency_key": "t"},
        {"kind": "agent:x"},
        {"kind": "k", "input": [1], "idempotency_key": "t"},
        {"kind": "k", "priority": 101},
        {"kind": "k", "run_at": "2030-01-01T00:00:00Z", "delay": "5s"},
        {"kind": "k", "retry": {"max_attempts": 0}},
        {"kind": "k", "delay": "3600s"},
    ]
    body = check_ok(await own.post(TASKS, json={"tasks": items}))
    results = body["results"]
    assert (body["accepted"], body["failed"]) == (3, 4)
    assert [result["status"] for result in results] == [
        "accepted", "failed", "duplicate", "failed", "failed", "failed", "accepted",
    ]  # fmt: skip
    fields = [detail["field"] for result in results if "error" in result for detail in result["error"]["details"]]
    assert fields == ["tasks[1].kind", "tasks[3].priority", "tasks[4].delay", "tasks[5].retry.max_attempts"]
    assert results[2]["task_id"] == results[0]["task_id"]
    for result, status in ((results[0], "PENDING"), (results[6], "SCHEDULED")):
        task = check_ok(await own.get(f"/api/v1/tasks/{result['task_id']}"))
        assert (task["status"], task["run_id"]) == (status, result["run_id"])
    assert await stored.count("task") == 2
