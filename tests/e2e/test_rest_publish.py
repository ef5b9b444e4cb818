"""Publishing over REST, at once and waiting for the cascade, through Envoy with two servers and real workers."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from tests.e2e.answers import ARTIFACT, check_error, check_ok
from tests.e2e.stack import Process

PUBLISH = "/api/v1/artifacts"
SYNC = "/api/v1/artifacts/sync"
ORDER = {"type": "Order", "payload": {"order_id": "o-1", "amount": 12.5, "items": ["tea"]}}
CASCADE = ["Order", "Payment", "Shipment", "Notification"]


def waits_forever(name: str) -> dict[str, Any]:
    """An agent that no worker serves: what it consumes is never done."""
    return {"name": name, "subscriptions": [{"types": ["Note"]}]}


async def test_publishing_answers_at_once_with_three_fields(own: httpx.AsyncClient) -> None:
    """FL-1, FL-5: 200 with `accepted`, the artifact's id and the cascade's, which the header repeats."""
    response = await own.post(PUBLISH, json={"type": "Note"})
    body = check_ok(response)
    assert set(body) == {"status", "artifact_id", "correlation_id"}
    assert body["status"] == "accepted"
    assert uuid.UUID(body["artifact_id"]).version == 7
    assert uuid.UUID(body["correlation_id"]).version == 7
    assert response.headers["x-correlation-id"] == body["correlation_id"]


async def test_what_is_left_out_of_a_publish_has_its_default(own: httpx.AsyncClient) -> None:
    """FL-1, FL-17: payload {}, Public, no tags, no partition key; made by "external", now."""
    published = check_ok(await own.post(PUBLISH, json={"type": "Note"}))
    artifact = check_ok(await own.get(f"{PUBLISH}/{published['artifact_id']}"))
    created_at = datetime.fromisoformat(artifact.pop("created_at"))
    assert abs((datetime.now(UTC) - created_at).total_seconds()) < 60
    assert artifact == {
        "id": published["artifact_id"],
        "type": "Note",
        "payload": {},
        "produced_by": "external",
        "visibility": {"kind": "Public", "agents": [], "required_labels": [], "tenant_id": ""},
        "visibility_kind": "Public",
        "correlation_id": published["correlation_id"],
        "partition_key": "",
        "tags": [],
        "version": 1,
    }


async def test_all_of_a_publish_is_kept(own: httpx.AsyncClient) -> None:
    """FL-1: payload, visibility, tags, partition key and correlation id come back as they were given."""
    cascade = str(uuid.uuid4())
    given = {
        "type": "Note",
        "payload": {"text": "hello", "n": 1.5},
        "visibility": {"kind": "After", "ttl": "60s", "then": {"kind": "Private", "agents": ["a", "b"]}},
        "tags": ["red", "blue"],
        "partition_key": "north",
        "correlation_id": cascade,
    }
    published = check_ok(await own.post(PUBLISH, json=given))
    artifact = check_ok(await own.get(f"{PUBLISH}/{published['artifact_id']}"))
    assert {name: artifact[name] for name in ("payload", "tags", "partition_key", "correlation_id")} == {
        name: given[name] for name in ("payload", "tags", "partition_key", "correlation_id")
    }
    visibility = artifact["visibility"]
    assert (visibility["kind"], visibility["ttl"], visibility["then"]["agents"]) == ("After", "60s", ["a", "b"])
    assert artifact["visibility_kind"] == "After"


async def test_a_sync_publish_returns_the_whole_cascade_in_order(rest: httpx.AsyncClient, orders: Process) -> None:
    """FL-2, FL-5, FL-15, FL-17: all artifacts as they were stored, the input first, each with the cascade's id."""
    response = await rest.post(SYNC, json=ORDER)
    body = check_ok(response)
    assert set(body) == {"correlation_id", "artifacts", "completed", "duration_ms", "failures"}
    assert (body["completed"], body["failures"]) == (True, [])
    assert 0 < body["duration_ms"] < 5000
    assert [artifact["type"] for artifact in body["artifacts"]] == CASCADE
    assert [artifact["produced_by"] for artifact in body["artifacts"]] == [
        "external", "payments", "shipping", "notifier",
    ]  # fmt: skip
    for artifact in body["artifacts"]:
        assert set(artifact) == ARTIFACT
        assert artifact["correlation_id"] == body["correlation_id"] == response.headers["x-correlation-id"]
    assert body["artifacts"][0]["payload"] == ORDER["payload"]
    assert body["artifacts"][3]["payload"]["message"] == "Order o-1 is on its way: TRACK-o-1"


async def test_an_artifact_looks_the_same_wherever_it_is_read(rest: httpx.AsyncClient, orders: Process) -> None:
    """FL-17: the same keys and values in a sync answer, a list and a get."""
    body = check_ok(await rest.post(SYNC, json=ORDER))
    listed = check_ok(await rest.get(PUBLISH, params={"correlation_id": body["correlation_id"]}))
    assert listed["items"] == body["artifacts"][::-1]
    for artifact in body["artifacts"]:
        assert check_ok(await rest.get(f"{PUBLISH}/{artifact['id']}")) == artifact


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ({"type_names": ["Payment", "Order"]}, ["Order", "Payment"]),
        ({"produced_by": ["shipping", "nobody"]}, ["Shipment"]),
        ({"type_names": ["Payment"], "produced_by": ["notifier"]}, []),
        ({}, CASCADE),
    ],
)
async def test_filters_choose_what_is_returned_and_not_what_runs(
    rest: httpx.AsyncClient, orders: Process, filters: dict[str, list[str]], kept: list[str]
) -> None:
    """FL-4: by type, by producer, by both; the cascade itself is whole."""
    body = check_ok(await rest.post(SYNC, json={**ORDER, "filters": filters}))
    assert [artifact["type"] for artifact in body["artifacts"]] == kept
    run = check_ok(await rest.get(f"/api/v1/runs/{body['correlation_id']}"))
    assert (run["artifact_count"], run["status"]) == (4, "COMPLETED")


@pytest.mark.parametrize("seconds", [0, 0.99, -1, 300.01, 1e9, 1e308])
async def test_a_timeout_out_of_range_is_a_field_error(own: httpx.AsyncClient, seconds: float) -> None:
    """FL-3: 1 to 300 seconds."""
    check_error(await own.post(SYNC, json={"type": "Note", "timeout": seconds}), 422, "VALIDATION_ERROR", "timeout")


@pytest.mark.parametrize("seconds", [1, 1.5, 300])
async def test_a_timeout_at_its_bounds_is_taken(own: httpx.AsyncClient, seconds: float) -> None:
    """FL-3: both ends of the range are in it."""
    assert check_ok(await own.post(SYNC, json={"type": "Note", "timeout": seconds}))["completed"] is True


async def test_when_the_time_passes_the_answer_says_so_with_what_there_is(own: httpx.AsyncClient) -> None:
    """FL-3: 200 with completed:false and the artifacts so far; the cascade goes on."""
    check_ok(await own.post("/api/v1/agents", json=waits_forever("nobody")), 201)
    body = check_ok(await own.post(SYNC, json={"type": "Note", "timeout": 1}))
    assert (body["completed"], len(body["artifacts"]), body["failures"]) == (False, 1, [])
    assert 900 < body["duration_ms"] < 5000
    run = check_ok(await own.get(f"/api/v1/runs/{body['correlation_id']}"))
    assert (run["status"], run["open_tasks"]) == ("RUNNING", 1)


async def test_when_the_time_passes_it_may_be_an_error_instead(own: httpx.AsyncClient) -> None:
    """FL-3, FL-10: fail_on_timeout makes it TIMEOUT, 504 and retryable; the artifact is stored all the same."""
    check_ok(await own.post("/api/v1/agents", json=waits_forever("nobody")), 201)
    response = await own.post(SYNC, json={"type": "Note", "timeout": 1, "fail_on_timeout": True})
    check_error(response, 504, "TIMEOUT")
    assert check_ok(await own.get(PUBLISH))["pagination"]["total"] == 1


async def test_the_time_that_passes_is_the_callers_alone(own: httpx.AsyncClient) -> None:
    """FL-16: two sync publishes do not wait for each other: one with nobody to serve it, one at once."""
    check_ok(await own.post("/api/v1/artifact-types", json={"name": "Quick"}), 201)
    check_ok(await own.post("/api/v1/agents", json=waits_forever("nobody")), 201)
    slow = asyncio.create_task(own.post(SYNC, json={"type": "Note", "timeout": 2}))
    quick = [own.post(SYNC, json={"type": "Quick", "timeout": 30}) for _ in range(20)]
    for response in await asyncio.gather(*quick):
        assert check_ok(response)["completed"] is True
    assert not slow.done()
    assert check_ok(await slow)["completed"] is False


async def test_concurrent_cascades_do_not_mix(rest: httpx.AsyncClient, orders: Process) -> None:
    """FL-16: each answer holds its own four artifacts."""
    payloads = [{"order_id": f"many-{number}", "amount": 1, "items": []} for number in range(30)]
    answers = await asyncio.gather(*(rest.post(SYNC, json={"type": "Order", "payload": each}) for each in payloads))
    for payload, response in zip(payloads, answers, strict=True):
        artifacts = check_ok(response)["artifacts"]
        assert {artifact["payload"]["order_id"] for artifact in artifacts} == {payload["order_id"]}
        assert len(artifacts) == 4


async def test_without_a_subscriber_the_input_comes_back_alone(own: httpx.AsyncClient) -> None:
    """FL-7: at once, as completed."""
    body = check_ok(await own.post(SYNC, json={"type": "Note", "payload": {"a": 1}}))
    assert (body["completed"], body["failures"]) == (True, [])
    assert [artifact["payload"] for artifact in body["artifacts"]] == [{"a": 1}]


async def test_a_given_correlation_id_is_the_cascades(own: httpx.AsyncClient) -> None:
    """FL-5: in the body, in the header, on every artifact and as the run's id; upper case is the same UUID."""
    given = str(uuid.uuid4())
    response = await own.post(SYNC, json={"type": "Note", "correlation_id": given.upper()})
    body = check_ok(response)
    assert body["correlation_id"] == response.headers["x-correlation-id"] == given
    assert body["artifacts"][0]["correlation_id"] == given
    assert check_ok(await own.get(f"/api/v1/runs/{given}"))["run_id"] == given


async def test_a_second_artifact_joins_the_cascade_of_its_correlation_id(own: httpx.AsyncClient) -> None:
    """FL-5: a sync publish into an ended cascade reopens it and returns all of it."""
    first = check_ok(await own.post(PUBLISH, json={"type": "Note", "payload": {"n": 1}}))
    body = check_ok(
        await own.post(SYNC, json={"type": "Note", "payload": {"n": 2}, "correlation_id": first["correlation_id"]})
    )
    assert [artifact["payload"]["n"] for artifact in body["artifacts"]] == [1, 2]
    events = check_ok(await own.get(f"/api/v1/runs/{first['correlation_id']}/events"))["items"]
    assert [event["type"] for event in events] == [
        "RUN_CREATED", "ARTIFACT_PUBLISHED", "RUN_COMPLETED", "RUN_REOPENED", "ARTIFACT_PUBLISHED", "RUN_COMPLETED",
    ]  # fmt: skip


async def test_the_correlation_header_labels_the_request_only(own: httpx.AsyncClient) -> None:
    """FL-5: the answer to a publish carries the cascade's id, an error the caller's label."""
    label = {"x-correlation-id": "my-label.1"}
    published = await own.post(PUBLISH, json={"type": "Note"}, headers=label)
    assert published.headers["x-correlation-id"] == check_ok(published)["correlation_id"] != "my-label.1"
    error = check_error(await own.post(PUBLISH, json={"type": "Nope"}, headers=label), 404, "NOT_FOUND")
    assert error["correlation_id"] == "my-label.1"


async def test_a_task_s_run_is_no_cascade_to_join(own: httpx.AsyncClient) -> None:
    """FL-10: CONFLICT where the correlation id is another kind of run's."""
    task = check_ok(await own.post("/api/v1/tasks", json={"kind": "k"}), 201)
    check_error(await own.post(PUBLISH, json={"type": "Note", "correlation_id": task["run_id"]}), 409, "CONFLICT")


async def test_a_cascade_of_over_1000_artifacts_is_truncated_with_a_token_for_the_rest(
    rest: httpx.AsyncClient, agents: Process
) -> None:
    """FL-2: the first 1,000, truncated, and the rest by the token, in order, with nothing twice and nothing lost."""
    body = check_ok(await rest.post(SYNC, json={"type": "Many"}))
    assert (body["completed"], body["truncated"], len(body["artifacts"])) == (True, True, 1000)
    listed = list(body["artifacts"])
    token: str | None = body["next_page_token"]
    while token:
        page = check_ok(await rest.get(PUBLISH, params={"page_token": token, "page_size": 150}))
        listed += page["items"]
        token = page["pagination"].get("next_page_token")
    assert len(listed) == len({artifact["id"] for artifact in listed}) == 1201
    assert {artifact["correlation_id"] for artifact in listed} == {body["correlation_id"]}
    numbers = [int(artifact["payload"]["what"]) for artifact in listed if artifact["produced_by"] == "hundreds"]
    assert numbers == list(range(600))
    assert [set(artifact) for artifact in listed] == [ARTIFACT] * 1201


async def test_the_rest_of_a_truncated_cascade_can_be_filtered(rest: httpx.AsyncClient, agents: Process) -> None:
    """FL-2, FL-12: the token's list takes the filters of every list."""
    body = check_ok(await rest.post(SYNC, json={"type": "Many"}))
    params = {"page_token": body["next_page_token"], "page_size": 500}
    every = check_ok(await rest.get(PUBLISH, params=params))["items"]
    for name in ("hundreds", "dozens"):
        some = check_ok(await rest.get(PUBLISH, params={**params, "produced_by": name}))["items"]
        assert some == [artifact for artifact in every if artifact["produced_by"] == name]


async def test_a_cascade_of_over_3_mib_is_truncated_too(rest: httpx.AsyncClient, agents: Process) -> None:
    """FL-2: 20 artifacts of 225 KB do not fit."""
    body = check_ok(await rest.post(SYNC, json={"type": "Bulky"}))
    assert (body["completed"], body["truncated"]) == (True, True)
    assert 10 <= len(body["artifacts"]) <= 15
    rest_of_it = check_ok(await rest.get(PUBLISH, params={"page_token": body["next_page_token"]}))["items"]
    found = [artifact["payload"].get("what", "")[:1] for artifact in [*body["artifacts"], *rest_of_it]]
    assert found == ["", *"abcdefghijklmnopqrst"]


async def test_a_failing_agent_shows_in_the_answer_and_the_rest_goes_on(
    rest: httpx.AsyncClient, agents: Process
) -> None:
    """FL-2: after its retries the failure is told with its code, message, attempts and artifacts; others succeed."""
    body = check_ok(await rest.post(SYNC, json={"type": "Fragile", "payload": {"note": "vase"}}))
    assert body["completed"] is True
    assert [artifact["payload"].get("agent") for artifact in body["artifacts"]] == [None, "learner"]
    (failure,) = body["failures"]
    task_id = failure.pop("task_id")
    assert failure == {
        "agent": "clumsy",
        "code": "BROKEN",
        "message": "dropped vase",
        "attempts": 3,
        "artifact_ids": [body["artifacts"][0]["id"]],
    }
    run = check_ok(await rest.get(f"/api/v1/runs/{body['correlation_id']}"))
    assert (run["status"], run["failed_tasks"], run["open_tasks"]) == ("FAILED", 1, 0)
    task = check_ok(await rest.get(f"/api/v1/tasks/{task_id}"))
    assert (task["status"], task["error"]) == ("FAILED", {"code": "BROKEN", "message": "dropped vase"})
    attempts = check_ok(await rest.get(f"/api/v1/tasks/{task_id}/attempts"))["items"]
    assert [attempt["status"] for attempt in attempts] == ["FAILED"] * 3


async def test_a_declined_order_is_final_at_once(rest: httpx.AsyncClient, orders: Process) -> None:
    """FL-2: the example's own refusal, with one attempt."""
    order = {"type": "Order", "payload": {"order_id": "o-2", "amount": -1, "items": []}}
    body = check_ok(await rest.post(SYNC, json=order))
    assert [artifact["type"] for artifact in body["artifacts"]] == ["Order"]
    (failure,) = body["failures"]
    assert (failure["agent"], failure["code"], failure["attempts"]) == ("payments", "PAYMENT_DECLINED", 1)


async def test_both_servers_refuse_a_payload_by_the_type_s_present_schema_only(own: httpx.AsyncClient) -> None:
    """FL-10: what one server has registered, the other knows at once: the proxy sends to either."""

    def schema(required: str) -> dict[str, Any]:
        return {"name": "Strict", "schema": {"type": "object", "required": [required]}, "compatibility": "none"}

    check_ok(await own.post("/api/v1/artifact-types", json=schema("x")), 201)
    for version in (1, 2):
        name, other = ("x", "y") if version == 1 else ("y", "x")
        if version == 2:
            assert check_ok(await own.post("/api/v1/artifact-types", json=schema("y")), 201)["version"] == 2
        good = [own.post(PUBLISH, json={"type": "Strict", "payload": {name: 1}}) for _ in range(12)]
        assert {response.status_code for response in await asyncio.gather(*good)} == {200}
        bad = [own.post(PUBLISH, json={"type": "Strict", "payload": {other: 1}}) for _ in range(12)]
        for response in await asyncio.gather(*bad):
            check_error(response, 422, "VALIDATION_ERROR", "payload")
