"""Cascades by their correlation id over REST; and who sees what of them, by API key."""

from __future__ import annotations

import json
import uuid
from typing import Any

import httpx
import pytest
from tests.e2e.answers import ARTIFACT, check_error, check_ok
from tests.e2e.stack import Stack

Client = httpx.AsyncClient
STATUS = {
    "correlation_id", "state", "has_pending_work", "artifact_count", "error_count", "started_at", "last_activity_at",
}  # fmt: skip


async def status(client: Client, correlation_id: str) -> dict[str, Any]:
    """Where a cascade stands."""
    body: dict[str, Any] = check_ok(await client.get(f"/api/v1/correlations/{correlation_id}/status"))
    return body


@pytest.mark.usefixtures("orders")
async def test_the_status_of_a_cascade(rest: Client) -> None:
    """FL-18: {correlation_id, state, has_pending_work, artifact_count, error_count, started_at, last_activity_at}."""
    order = {"order_id": "o-18", "amount": 12.5, "items": ["tea"]}
    done = check_ok(await rest.post("/api/v1/artifacts/sync", json={"type": "Order", "payload": order}))
    body = await status(rest, done["correlation_id"].upper())
    assert set(body) == STATUS
    assert body["correlation_id"] == done["correlation_id"]
    assert (body["state"], body["has_pending_work"], body["error_count"]) == ("completed", False, 0)
    assert body["artifact_count"] == len(done["artifacts"]) == 4
    assert body["started_at"] < body["last_activity_at"]
    bad = check_ok(
        await rest.post("/api/v1/artifacts/sync", json={"type": "Order", "payload": {**order, "amount": -1}})
    )
    body = await status(rest, bad["correlation_id"])
    assert (body["state"], body["error_count"]) == ("failed", len(bad["failures"]))


async def test_an_unknown_cascade_is_a_state_and_no_error(rest: Client) -> None:
    """FL-18: not_found in a 200; an id that is no UUID is a field error."""
    unknown = str(uuid.uuid4())
    assert await status(rest, unknown) == {
        "correlation_id": unknown, "state": "not_found", "has_pending_work": False, "artifact_count": 0,
        "error_count": 0,
    }  # fmt: skip
    check_error(await rest.get("/api/v1/correlations/nonsense/status"), 422, "VALIDATION_ERROR", "correlation_id")


async def exported(client: Client, correlation_id: str, cursor: str = "") -> list[dict[str, Any]]:
    """The lines of an export."""
    response = await client.get(
        f"/api/v1/correlations/{correlation_id}/export", params={"cursor": cursor} if cursor else {}
    )
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.headers["x-correlation-id"].count(",") == 0
    return [json.loads(line) for line in response.text.splitlines()]


@pytest.mark.usefixtures("orders")
async def test_a_cascade_is_exported_as_lines(rest: Client) -> None:
    """FL-17, FL-18: each artifact as elsewhere, with the cursor that goes on behind it; the last line says the end."""
    order = {"order_id": "o-19", "amount": 12.5, "items": ["tea", "\u00e9\n"]}
    done = check_ok(await rest.post("/api/v1/artifacts/sync", json={"type": "Order", "payload": order}))
    *lines, end = await exported(rest, done["correlation_id"])
    assert [{name: value for name, value in line.items() if name != "cursor"} for line in lines] == done["artifacts"]
    assert all(set(line) == {*ARTIFACT, "cursor"} for line in lines)
    assert end == {"end": True, "count": 4, "cursor": lines[-1]["cursor"]}
    assert await exported(rest, done["correlation_id"].upper(), lines[1]["cursor"]) == [*lines[2:], {**end, "count": 2}]
    assert await exported(rest, done["correlation_id"], end["cursor"]) == [{**end, "count": 0}]


async def test_what_cannot_be_exported_is_an_error_of_its_own(rest: Client) -> None:
    """FL-10: before the first line a status, and no 200 with an error in it."""
    path = f"/api/v1/correlations/{uuid.uuid4()}/export"
    check_error(await rest.get(path), 404, "NOT_FOUND")
    check_error(await rest.get(path, params={"cursor": "odd"}), 422, "VALIDATION_ERROR", "cursor")
    check_error(await rest.get("/api/v1/correlations/nonsense/export"), 422, "VALIDATION_ERROR", "correlation_id")
    check_error(await rest.post(path), 405, "METHOD_NOT_ALLOWED")


KINDS: dict[str, dict[str, Any]] = {
    "public": {"kind": "Public"},
    "private": {"kind": "Private", "agents": ["named"]},
    "labelled": {"kind": "Labelled", "required_labels": ["eu", "secret"]},
    "tenant": {"kind": "Tenant"},
    "acme": {"kind": "Tenant", "tenant_id": "acme"},
    "after": {"kind": "After", "ttl": "3600s", "then": {"kind": "Public"}},
    "after-private": {"kind": "After", "ttl": "3600s", "then": {"kind": "Private", "agents": ["named"]}},
    "after-now": {"kind": "After", "ttl": "0s", "then": {"kind": "After", "ttl": "0s",
                  "then": {"kind": "Private", "agents": ["named"]}}},
}  # fmt: skip
ANYONE = {"public", "tenant", "acme"}
VISIBLE = {
    "publisher": set(KINDS),
    "named": ANYONE | {"private", "after-now"},
    "labelled": ANYONE | {"labelled"},
    "stranger": ANYONE,
    "viewer": set(KINDS),
    "admin": set(KINDS),
    "other": set(),
}


@pytest.fixture
async def cascade(locked: Stack) -> tuple[str, dict[str, str]]:
    """An artifact of each kind in one cascade of the tenant acme: its id, and their ids."""
    publisher = await locked.rest(authorization="Bearer publisher-key")
    check_ok(await publisher.post("/api/v1/artifact-types", json={"name": "Note"}), 201)
    correlation_id, ids = str(uuid.uuid4()), {}
    for name, visibility in KINDS.items():
        item = {"type": "Note", "visibility": visibility, "partition_key": name, "correlation_id": correlation_id}
        ids[name] = check_ok(await publisher.post("/api/v1/artifacts", json=item))["artifact_id"]
    return correlation_id, ids


@pytest.mark.parametrize("who", VISIBLE)
async def test_a_key_reads_what_it_may_see_and_no_more(
    locked: Stack, cascade: tuple[str, dict[str, str]], who: str
) -> None:
    """FL-6, WM-9: list, total, summary, get, status, run events and export, for each kind of artifact and of reader."""
    correlation_id, ids = cascade
    client, visible = await locked.rest(authorization=f"Bearer {who}-key"), VISIBLE[who]
    asked = {"correlation_id": correlation_id}
    page = check_ok(await client.get("/api/v1/artifacts", params={**asked, "embed_meta": "true"}))
    assert {item["partition_key"] for item in page["items"]} == visible
    assert page["pagination"]["total"] == len(visible)
    summary = check_ok(await client.get("/api/v1/artifacts/summary", params=asked))["summary"]
    assert summary["total"] == sum(summary["by_visibility"].values()) == len(visible)
    for name, artifact_id in ids.items():
        response = await client.get(f"/api/v1/artifacts/{artifact_id}")
        if name in visible:
            assert check_ok(response)["partition_key"] == name
        else:
            check_error(response, 404, "NOT_FOUND")
    assert (await status(client, correlation_id))["artifact_count"] == len(visible)
    if who == "other":
        check_error(await client.get(f"/api/v1/runs/{correlation_id}"), 404, "NOT_FOUND")
        check_error(await client.get(f"/api/v1/correlations/{correlation_id}/export"), 404, "NOT_FOUND")
        return
    assert check_ok(await client.get(f"/api/v1/runs/{correlation_id}"))["artifact_count"] == len(visible)
    *lines, end = await exported(client, correlation_id)
    assert {line["partition_key"] for line in lines} == visible
    assert end["count"] == len(visible)
    events = check_ok(await client.get(f"/api/v1/runs/{correlation_id}/events"))["items"]
    shown = {event["artifact_id"] for event in events if event["artifact_id"]}
    assert shown == {ids[name] for name in visible}


PARTS = {name: KINDS[name] for name in ("public", "private", "labelled", "acme")}


@pytest.mark.parametrize("who", [who for who in VISIBLE if who != "other"])
async def test_a_key_is_told_of_the_parts_of_a_gate_that_it_may_see(locked: Stack, who: str) -> None:
    """FL-6, FL-14: the agent's gate, and the events of waiting and of opening, for each kind of reader."""
    publisher, admin = [await locked.rest(authorization=f"Bearer {name}-key") for name in ("publisher", "admin")]
    kind, name = f"Part-{uuid.uuid4().hex}", f"collector-{uuid.uuid4().hex[:8]}"
    check_ok(await admin.post("/api/v1/artifact-types", json={"name": kind}), 201)
    parts = PARTS | {"private": {"kind": "Private", "agents": ["named", name]}}
    gate = {"types": [kind], "counts": {kind: len(parts) + 1}}
    spec = {"name": name, "labels": ["eu", "secret"], "subscriptions": [gate]}
    check_ok(await admin.post("/api/v1/agents", json=spec), 201)
    run_id, ids = str(uuid.uuid4()), {}
    item = {"type": kind, "correlation_id": run_id}
    for part, visibility in parts.items():
        ids[part] = check_ok(await publisher.post("/api/v1/artifacts", json={**item, "visibility": visibility}))
    client, visible = await locked.rest(authorization=f"Bearer {who}-key"), VISIBLE[who] & set(parts)
    shown = check_ok(await client.get(f"/api/v1/agents/{name}"))
    (waiting,) = shown["gates"]
    assert (shown["waiting_gates"], waiting["have"]) == (1, {kind: len(visible)})
    assert set(waiting["artifact_ids"]) == {ids[part]["artifact_id"] for part in visible}
    check_ok(await publisher.post("/api/v1/artifacts", json=item))
    events = check_ok(await client.get(f"/api/v1/runs/{run_id}/events"))["items"]
    told = [event["data"] for event in events if event["type"] == "GATE_WAITING" and event["artifact_id"]]
    assert len(told) == len(visible)
    assert all(("have" in data) == (who in ("admin", "viewer")) for data in told)
    (fired,) = [event for event in events if event["type"] == "GATE_FIRED"]
    assert ("parts" in (fired.get("data") or {})) == (visible == set(parts))
