"""Agents: registered, read back, and activated as they subscribed, by a real worker process."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from datetime import datetime
from typing import Any

import grpc
import httpx
import pytest
from tests.e2e.answers import check_error, check_ok
from tests.e2e.conftest import AGENTS
from tests.e2e.simple_worker import SimpleWorker
from tests.e2e.stack import Process, Stack

SYNC = "/api/v1/artifacts/sync"
Client = httpx.AsyncClient


async def seen(rest: Client, **request: Any) -> list[str]:
    """Publish and wait; the names of the agents that were activated, in the order of what they made."""
    body = check_ok(await rest.post(SYNC, json=request))
    assert (body["completed"], body["failures"]) == (True, [])
    return [artifact["payload"]["agent"] for artifact in body["artifacts"] if artifact["type"] == "Seen"]


async def test_agents_are_listed_with_what_they_subscribe_to_and_publish(
    rest: Client, orders: Process, agents: Process
) -> None:
    """FL-13: name, description, subscriptions, outputs; by name; the same array under `agents` for older clients."""
    body = check_ok(await rest.get("/api/v1/agents", params={"page_size": 500}))
    assert body["agents"] == body["items"]
    names = [agent["name"] for agent in body["items"]]
    assert names == sorted(names)
    by_name = {agent["name"]: agent for agent in body["items"]}
    payments = by_name["payments"]
    assert (payments["description"], payments["outputs"]) == ("Charges the customer.", ["Payment"])
    assert payments["status"] == "ONLINE"
    (subscription,) = payments["subscriptions"]
    assert {name: subscription[name] for name in ("types", "mode", "delivery")} == {
        "types": ["Order"], "mode": "both", "delivery": "broadcast",
    }  # fmt: skip
    assert by_name["shipping"]["subscriptions"][0]["where"] == 'payload.status == "paid"'
    assert by_name["winner"]["subscriptions"][0]["delivery"] == "exclusive"


async def test_an_agent_is_found_by_its_id_and_by_its_name(rest: Client, orders: Process) -> None:
    """FL-13: the same resource."""
    by_name = check_ok(await rest.get("/api/v1/agents/payments"))
    assert uuid.UUID(by_name["id"]).version == 7
    for agent_id in (by_name["id"], by_name["id"].upper()):
        assert check_ok(await rest.get(f"/api/v1/agents/{agent_id}")) == by_name
    check_error(await rest.get("/api/v1/agents/Payments"), 404, "NOT_FOUND")


async def test_agents_are_filtered_by_name_and_status(rest: Client, orders: Process) -> None:
    """FL-13, WM-11: status in any case."""
    check_ok(await rest.post("/api/v1/agents", json={"name": "sleeper"}), 201)
    for status in ("ONLINE", "online"):
        items = check_ok(await rest.get("/api/v1/agents", params={"status": status, "page_size": 500}))["items"]
        assert {"payments", "shipping", "notifier"} <= {agent["name"] for agent in items}
        assert {agent["status"] for agent in items} == {"ONLINE"}
    (offline,) = check_ok(await rest.get("/api/v1/agents", params={"status": "offline", "name": "sleeper"}))["items"]
    assert offline["status"] == "OFFLINE"
    (found,) = check_ok(await rest.get("/api/v1/agents", params={"name": "payments"}))["items"]
    assert found["name"] == "payments"


async def test_an_agent_is_registered_with_all_it_may_say(own: Client) -> None:
    """FL-13: 201 with the agent; a get gives the same."""
    spec = {
        "name": "all.of-it_1",
        "description": "says everything",
        "subscriptions": [
            {
                "types": ["Note"], "where": "payload.n > 1", "from_agents": ["external"], "tags": ["red"],
                "priority": -100, "delivery": "exclusive", "mode": "both",
                "counts": {}, "scope": "",
            }
        ],
        "outputs": ["Note"],
        "labels": ["gdpr"],
        "max_concurrency": 3,
        "queue": "slow",
        "retry": {
            "initial_interval": "0.500s", "factor": 1.5, "maximum_interval": "10s", "jitter": 0, "max_attempts": 7,
            "non_retryable_codes": ["NO"],
        },
        "timeouts": {"schedule_to_start": "60s", "start_to_close": "30s", "heartbeat": "5s"},
    }  # fmt: skip
    made = check_ok(await own.post("/api/v1/agents", json=spec), 201)
    assert {name: made[name] for name in spec} == spec
    assert (made["version"], made["status"]) == (1, "OFFLINE")
    assert check_ok(await own.get("/api/v1/agents/all.of-it_1")) == made


async def test_an_agent_that_says_nothing_has_the_defaults(own: Client) -> None:
    """FL-13, FL-14: broadcast, mode both, three attempts, five minutes, the queue "default"."""
    made = check_ok(await own.post("/api/v1/agents", json={"name": "a", "subscriptions": [{"types": ["Note"]}]}), 201)
    (subscription,) = made["subscriptions"]
    assert (subscription["delivery"], subscription["mode"], subscription["priority"]) == ("broadcast", "both", 0)
    assert (made["queue"], made["max_concurrency"]) == ("default", 0)
    assert (made["retry"]["max_attempts"], made["timeouts"]) == (3, {"start_to_close": "300s"})


@pytest.mark.parametrize(
    ("payload", "more", "activated"),
    [
        ({"amount": 150, "items": ["x"]}, {}, ["big_sales"]),
        ({"amount": 100.5, "items": ["x"]}, {}, ["big_sales"]),
        ({"amount": 100, "items": ["x"]}, {}, []),
        ({"amount": 150, "items": []}, {}, []),
        ({"amount": 1}, {"partition_key": "north", "tags": ["vip"]}, ["northern"]),
        ({"amount": 1}, {"partition_key": "north"}, []),
        ({"amount": 1}, {"partition_key": "south", "tags": ["vip"]}, []),
        ({"amount": 500, "items": ["x"]}, {"partition_key": "north", "tags": ["vip"]}, ["big_sales", "northern"]),
    ],
)
async def test_where_decides_by_the_payload_and_what_stands_around_it(
    rest: Client, agents: Process, payload: dict[str, Any], more: dict[str, Any], activated: list[str]
) -> None:
    """FL-14: CEL over payload and artifact; one that asks for a key that is not there is false, not an error."""
    assert sorted(await seen(rest, type="Sale", payload=payload, **more)) == activated


async def test_from_agents_decides_by_who_made_it(rest: Client, agents: Process) -> None:
    """FL-14: an agent's name, or "external" for clients."""
    assert await seen(rest, type="Parcel", payload={"note": "p"}) == ["courier"]
    assert await seen(rest, type="Label", payload={"note": "l"}) == ["clerk"]


async def test_tags_are_channels(rest: Client, agents: Process) -> None:
    """FL-14: any one of them; a subscription without tags takes all."""
    assert sorted(await seen(rest, type="Signal", tags=["red"])) == ["alarm", "archive"]
    assert sorted(await seen(rest, type="Signal", tags=["green", "amber"])) == ["alarm", "archive"]
    assert await seen(rest, type="Signal", tags=["green"]) == ["archive"]
    assert await seen(rest, type="Signal") == ["archive"]


async def test_exclusive_goes_to_the_most_urgent_alone_and_broadcast_to_all(rest: Client, agents: Process) -> None:
    """FL-14: of the exclusive subscriptions that match only one is activated; the next, where it does not match."""
    assert sorted(await seen(rest, type="Prize", payload={"note": "wanted"})) == ["archive", "winner"]
    assert sorted(await seen(rest, type="Prize", payload={"note": "refused"})) == ["archive", "second"]


async def test_types_are_alternatives(rest: Client, agents: Process) -> None:
    """FL-14: one artifact of any of them activates."""
    for kind in ("Signal", "Prize"):
        body = check_ok(await rest.post(SYNC, json={"type": kind}))
        assert kind in [artifact["payload"].get("what") for artifact in body["artifacts"]]


async def test_the_most_urgent_comes_first(stack: Stack, rest: Client) -> None:
    """FL-14: a worker that takes one task at a time gets them by priority."""
    worker = await stack.worker(AGENTS, "ranked", AGENTS="ranked", WORKER_SLOTS="1")
    try:
        for _ in range(3):
            assert await seen(rest, type="Ranked") == ["first", "middle", "last"]
    finally:
        await worker.stop()


async def test_max_concurrency_bounds_an_agent_over_all_workers(stack: Stack, rest: Client, agents: Process) -> None:
    """FL-14: twenty guests, two worker processes, and never two of the host's tasks at once."""
    other = await stack.worker(AGENTS, "other-agents", MILLSTREAM_TARGET=stack.native(1))
    try:
        body = check_ok(await rest.post(SYNC, json={"type": "Crowd"}))
    finally:
        await other.stop()
    hosted = [artifact for artifact in body["artifacts"] if artifact["type"] == "Seen"]
    assert len(hosted) == 20
    listed = check_ok(await rest.get(f"/api/v1/runs/{body['correlation_id']}/tasks", params={"page_size": 100}))
    tasks = [task for task in listed["items"] if task["agent"] == "host"]
    tasks.sort(key=lambda task: str(task["started_at"]))
    assert len(tasks) == 20
    for earlier, later in itertools.pairwise(tasks):
        # Each takes 20 ms; two servers' clocks are the database's within a few.
        overlap = datetime.fromisoformat(earlier["finished_at"]) - datetime.fromisoformat(later["started_at"])
        assert overlap.total_seconds() < 0.01


async def test_an_agent_may_publish_what_it_registered_only(rest: Client, agents: Process) -> None:
    """FL-13: its outputs; the worker's own check comes first, so its task fails with the reason."""
    outputs = {agent["name"]: agent["outputs"] for agent in check_ok(await rest.get("/api/v1/agents"))["items"]}
    assert outputs["doorman"] == ["Guest"]


async def test_a_private_artifact_reaches_its_agents_only(rest: Client, agents: Process) -> None:
    """FL-6, FL-14: visibility holds in delivery."""
    private = {"visibility": {"kind": "Private", "agents": ["archive"]}, "tags": ["red"]}
    assert await seen(rest, type="Signal", **private) == ["archive"]
    labelled = {"visibility": {"kind": "Labelled", "required_labels": ["nobody has"]}, "tags": ["red"]}
    assert await seen(rest, type="Signal", **labelled) == []


BAD_AGENTS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["name"]),
    ({"name": ""}, ["name"]),
    ({"name": "1a"}, ["name"]),
    ({"name": "x" * 129}, ["name"]),
    ({"name": "a", "queue": "a b"}, ["queue"]),
    ({"name": "a", "max_concurrency": 10001}, ["max_concurrency"]),
    ({"name": "a", "description": "x" * 2001}, ["description"]),
    ({"name": "a", "subscriptions": [{"types": ["Note"]}] * 21}, ["subscriptions"]),
    ({"name": "a", "subscriptions": [{}]}, ["subscriptions[0].types"]),
    ({"name": "a", "subscriptions": [{"types": ["Note", "Note"]}]}, ["subscriptions[0].types"]),
    ({"name": "a", "subscriptions": [{"types": ["Note"], "priority": 101}]}, ["subscriptions[0].priority"]),
    ({"name": "a", "subscriptions": [{"types": ["Note"], "delivery": "both"}]}, ["subscriptions[0].delivery"]),
    ({"name": "a", "subscriptions": [{"types": ["Note"], "mode": "indirect"}]}, ["subscriptions[0].mode"]),
    ({"name": "a", "retry": {"factor": 0.5}}, ["retry.factor"]),
    ({"name": "a", "retry": {"max_attempts": 10001}}, ["retry.max_attempts"]),
    ({"name": "a", "retry": {"initial_interval": "-1s"}}, ["retry.initial_interval"]),
    ({"name": "a", "timeouts": {"heartbeat": "0s"}}, ["timeouts.heartbeat"]),
    ({"name": "a", "timeouts": {"start_to_close": "2592001s"}}, ["timeouts.start_to_close"]),
    ({"name": "a", "timeouts": {"start_to_close": "5s", "heartbeat": "6s"}}, ["timeouts.heartbeat"]),
    ({"name": "a", "outputs": ["a b"]}, ["outputs[0]"]),
    ({"name": "a", "subscriptions": [{"types": ["Note"], "tags": ["x", "x"]}]}, ["subscriptions[0].tags"]),
    (
        {
            "name": "a",
            "subscriptions": [{"types": ["Note"], "mode": "direct", "where": "true", "delivery": "exclusive"}],
        },
        ["subscriptions[0].where", "subscriptions[0].delivery"],
    ),
    (
        {
            "name": "a",
            "subscriptions": [{"types": ["Note"], "counts": {"Note": 3}, "join": {"by": "1", "within_count": 2}}],
        },
        ["subscriptions[0].join.within_count"],
    ),
]


@pytest.mark.parametrize(("spec", "fields"), BAD_AGENTS, ids=[str(fields[0]) for _, fields in BAD_AGENTS])
async def test_an_agent_that_breaks_a_rule_is_told_the_field(
    own: Client, spec: dict[str, Any], fields: list[str]
) -> None:
    """FL-10, FL-13: and is not registered."""
    check_error(await own.post("/api/v1/agents", json=spec), 422, "VALIDATION_ERROR", *fields)
    assert check_ok(await own.get("/api/v1/agents"))["items"] == []


async def test_a_worker_s_agents_serve_two_callers_at_once(rest: Client, agents: Process) -> None:
    """FL-16: twenty callers, each with its own answer."""
    calls = [rest.post(SYNC, json={"type": "Parcel", "payload": {"note": str(number)}}) for number in range(20)]
    for number, response in enumerate(await asyncio.gather(*calls)):
        notes = [artifact["payload"].get("what") for artifact in check_ok(response)["artifacts"]]
        assert notes[-1] == str(number)


async def test_a_completion_is_judged_by_the_type_s_present_schema(
    own: Client, servers: list[grpc.aio.Channel], tenant: str
) -> None:
    """FL-14: a schema that one server has changed is the other's at once, for what agents publish too."""
    check_ok(await own.post("/api/v1/artifact-types", json={"name": "Result", "schema": {"required": ["old"]}}), 201)
    spec = {"name": "maker", "subscriptions": [{"types": ["Note"]}], "outputs": ["Result"]}
    check_ok(await own.post("/api/v1/agents", json=spec), 201)
    for member in ("old", "new"):
        schema = {"name": "Result", "schema": {"required": [member]}, "compatibility": "none"}
        check_ok(await own.post("/api/v1/artifact-types", json=schema), 201)
        for channel in servers:
            waiting = asyncio.create_task(own.post(SYNC, json={"type": "Note"}))
            worker = SimpleWorker(channel, tenant)
            (lease,) = await worker.poll("agent:maker")
            await worker.complete(lease, artifacts={"Result": {member: 1}})
            body = check_ok(await waiting)
            assert [artifact["payload"] for artifact in body["artifacts"]] == [{}, {member: 1}]


async def test_what_an_agent_may_not_publish_fails_its_task(
    own: Client, servers: list[grpc.aio.Channel], tenant: str
) -> None:
    """FL-13, FL-14: another type, an unknown one, or a payload that breaks the schema: INVALID_OUTPUT, told to both."""
    check_ok(await own.post("/api/v1/artifact-types", json={"name": "Result", "schema": {"required": ["a"]}}), 201)
    spec = {"name": "maker", "subscriptions": [{"types": ["Note"]}], "outputs": ["Result", "Nope"]}
    check_error(await own.post("/api/v1/agents", json={**spec, "subscriptions": [{"types": ["X"]}]}), 404, "NOT_FOUND",
                "subscriptions[0].types")  # fmt: skip
    check_ok(await own.post("/api/v1/agents", json=spec), 201)
    worker = SimpleWorker(servers[0], tenant)
    refused: list[tuple[dict[str, dict[str, Any]], str]] = [
        ({"Note": {}}, "FORBIDDEN"),
        ({"Nope": {}}, "NOT_FOUND"),
        ({"Result": {}}, "VALIDATION_ERROR"),
    ]
    for artifacts, code in refused:
        waiting = asyncio.create_task(own.post(SYNC, json={"type": "Note"}))
        (lease,) = await worker.poll("agent:maker")
        assert await worker.complete(lease, artifacts=artifacts, refused=True) == code
        (failure,) = check_ok(await waiting)["failures"]
        assert (failure["agent"], failure["code"], failure["attempts"]) == ("maker", "INVALID_OUTPUT", 1)
