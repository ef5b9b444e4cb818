"""Gates through Envoy, over two servers, with a real worker process: every option, and what a crash leaves."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from tests.e2e.answers import check_error, check_ok
from tests.e2e.conftest import AGENTS
from tests.e2e.stack import READY_S, Process, Stack

SYNC = "/api/v1/artifacts/sync"
Client = httpx.AsyncClient


@pytest.fixture(scope="session")
async def gates(stack: Stack) -> Process:
    """The agents that wait, in one process."""
    return await stack.worker(AGENTS, "gates", AGENTS="gates")


async def put(rest: Client, type_name: str, correlation_id: str = "", **payload: Any) -> str:
    """Publish an artifact, by itself or into a cascade; returns its correlation."""
    request = {"type": type_name, "payload": payload}
    body = check_ok(await rest.post("/api/v1/artifacts", json=request | _into(correlation_id)))
    return str(body["correlation_id"])


def _into(correlation_id: str) -> dict[str, str]:
    return {"correlation_id": correlation_id} if correlation_id else {}


async def until(look: Callable[[], Awaitable[Any]]) -> Any:
    """What is seen, once there is something to see: runs tell nobody yet that a task of theirs has ended."""
    async with asyncio.timeout(READY_S):
        while True:
            if found := await look():
                return found
            await asyncio.sleep(0.02)


async def wholes(rest: Client, agent: str, **filters: str) -> list[list[str]]:
    """What an agent was given together, the latest first."""
    params = {"type": "Whole", "produced_by": agent, "limit": "500"} | filters
    items = check_ok(await rest.get("/api/v1/artifacts", params=params))["items"]
    return [item["payload"]["ids"] for item in items]


async def whole_of(rest: Client, agent: str, part: str) -> list[str]:
    """What an agent was given together with this part, once it was."""

    async def look() -> list[list[str]]:
        return [ids for ids in await wholes(rest, agent) if part in ids]

    return list((await until(look))[0])


async def whole_in(rest: Client, agent: str, run_id: str) -> list[list[str]]:
    """What an agent was given together in a cascade, once it was."""
    return list(await until(lambda: wholes(rest, agent, correlation_id=run_id)))


async def types_of(rest: Client, run_id: str) -> list[str]:
    """Types of a run's events, in order."""
    events = check_ok(await rest.get(f"/api/v1/runs/{run_id}/events", params={"limit": 500}))["items"]
    return [event["type"] for event in events]


async def test_counts_wait_for_so_many_of_each_in_the_cascade(rest: Client, gates: Process) -> None:
    """FL-14: an AND gate; visible while it waits, and in the events."""
    name = uuid.uuid4().hex
    run_id = await put(rest, "Left", id=name)
    agent = check_ok(await rest.get("/api/v1/agents/pairer"))
    (gate,) = [each for each in agent["gates"] if each["correlation_id"] == run_id]
    assert (gate["have"], gate["need"], gate["subscription"]) == ({"Left": 1}, {"Left": 2, "Right": 1}, 0)
    assert len(gate["artifact_ids"]) == 1
    run = check_ok(await rest.get(f"/api/v1/runs/{run_id}"))
    assert (run["status"], run["open_tasks"]) == ("RUNNING", 0)
    assert run["open_gates"] >= 1
    await put(rest, "Left", run_id, id=f"{name} too")
    await put(rest, "Right", run_id, id="other")
    assert await whole_in(rest, "pairer", run_id) == [[f"Left {name}", f"Left {name} too", "Right other"]]
    kinds = await types_of(rest, run_id)
    assert {"GATE_WAITING", "GATE_FIRED"} <= {*kinds}


async def test_counts_of_the_tenant_bring_two_cascades_together(rest: Client, gates: Process) -> None:
    """FL-14: scope tenant with counts: what it makes is a cascade of its own, which names those that it came from."""
    first, second = uuid.uuid4().hex, uuid.uuid4().hex
    runs = {await put(rest, "Nut", id=first), await put(rest, "Bolt", id=second)}
    assert await whole_of(rest, "assembler", first) == [first, second]
    made = check_ok(await rest.get("/api/v1/artifacts", params={"type": "Whole", "produced_by": "assembler"}))["items"]
    begun = check_ok(await rest.get(f"/api/v1/runs/{made[0]['correlation_id']}"))
    assert {*begun["parent_run_ids"]} == runs


async def test_a_gate_gives_up_after_its_time_out(rest: Client, gates: Process) -> None:
    """FL-14: gate_timeout: the cascade is told, and ends."""
    run_id = await put(rest, "Lock", id="l")

    async def ended() -> bool:
        return bool(check_ok(await rest.get(f"/api/v1/runs/{run_id}"))["status"] == "COMPLETED")

    await until(ended)
    assert await types_of(rest, run_id) == [
        "RUN_CREATED", "ARTIFACT_PUBLISHED", "GATE_WAITING", "GATE_EXPIRED", "RUN_COMPLETED",
    ]  # fmt: skip
    assert await wholes(rest, "opener") == []


async def test_a_join_of_the_tenant_brings_two_cascades_together(rest: Client, gates: Process) -> None:
    """FL-14: what it makes is a cascade of its own, with both as its parents."""
    name = uuid.uuid4().hex
    first, second = await put(rest, "Left", id=name), await put(rest, "Right", id=name)
    assert await whole_of(rest, "joiner", name) == [name, name]
    params = {"type": "Whole", "produced_by": "joiner", "limit": "500"}
    items = check_ok(await rest.get("/api/v1/artifacts", params=params))["items"]
    (made,) = [item for item in items if item["payload"]["ids"] == [name, name]]
    run = check_ok(await rest.get(f"/api/v1/runs/{made['correlation_id']}"))
    assert run["parent_run_ids"] == [first, second]
    assert run["created_by"] == "gate:joiner"


async def test_a_join_by_count_looks_at_so_many(rest: Client, gates: Process) -> None:
    """FL-14: among four artifacts; the first of five is left behind."""
    run_id = await put(rest, "Left", id="a")
    for name in "bcd":
        await put(rest, "Left", run_id, id=name)
    await put(rest, "Right", run_id, id="a")
    await put(rest, "Right", run_id, id="d")
    assert await whole_in(rest, "windower", run_id) == [["d", "d"]]


async def test_a_join_within_a_time_gives_up(rest: Client, gates: Process) -> None:
    """FL-14: by the server's own timer, without anybody asking."""
    run_id = await put(rest, "Left", id=uuid.uuid4().hex)

    async def given_up() -> bool:
        return "GATE_EXPIRED" in await types_of(rest, run_id)

    await until(given_up)
    assert await wholes(rest, "hurried", correlation_id=run_id) == []


async def test_a_batch_takes_five_of_all_cascades(rest: Client, gates: Process) -> None:
    """FL-14: by size; each brick is in one batch, and none is lost."""
    numbers = [str(uuid.uuid4().int % 10**12) for _ in range(20)]
    await asyncio.gather(*(put(rest, "Brick", number=int(number)) for number in numbers))

    async def all_placed() -> list[list[str]]:
        await put(rest, "Brick", number=0)  # what other tests left makes the last batch uneven
        found = [ids for ids in await wholes(rest, "mason") if set(ids) & set(numbers)]
        return found if {*numbers} <= {number for ids in found for number in ids} else []

    batches = await until(all_placed)
    assert all(len(ids) == 5 for ids in batches)
    together = [number for ids in batches for number in ids if number in numbers]
    assert sorted(together) == sorted(numbers)


async def test_a_batch_of_the_cascade_ends_by_its_time_out(rest: Client, gates: Process) -> None:
    """FL-14: by time; a sync publish waits for it."""
    body = check_ok(await rest.post(SYNC, json={"type": "Brick", "payload": {"number": 7}}))
    assert body["completed"]
    made = [item["payload"] for item in body["artifacts"] if item["type"] == "Whole"]
    assert made == [{"agent": "sweeper", "ids": ["7"]}]


async def test_direct_is_not_activated_by_what_is_published(rest: Client, gates: Process) -> None:
    """FL-14: mode."""
    body = check_ok(await rest.post(SYNC, json={"type": "Brick", "payload": {"number": 8}}))
    assert "summoned" not in {item["produced_by"] for item in body["artifacts"]}


async def test_a_worker_killed_while_a_gate_waits_is_replaced(stack: Stack, rest: Client, gates: Process) -> None:
    """FL-14: what waits is the service's, not the worker's."""
    name = uuid.uuid4().hex
    other = await stack.worker(AGENTS, "gates too", AGENTS="gates")
    run_id = await put(rest, "Left", id=name)
    await other.kill()
    await put(rest, "Left", run_id, id="x")
    await put(rest, "Right", run_id, id="y")
    assert await whole_in(rest, "pairer", run_id) == [[f"Left {name}", "Left x", "Right y"]]


async def test_a_cancelled_run_leaves_no_gate(rest: Client, gates: Process) -> None:
    """FL-14: the agent shows it no more."""
    run_id = await put(rest, "Left", id=uuid.uuid4().hex)
    check_ok(await rest.post(f"/api/v1/runs/{run_id}/cancel", json={}))
    agent = check_ok(await rest.get("/api/v1/agents/pairer"))
    assert run_id not in {gate["correlation_id"] for gate in agent["gates"]}
    assert (await types_of(rest, run_id))[-1] == "RUN_CANCELLED"


async def test_a_gate_that_cannot_be_is_refused_by_field(own: Client) -> None:
    """FL-14: an option without effect is no option."""
    spec = {"name": "odd", "subscriptions": [{"types": ["Note"], "batch": {"size": 2}, "counts": {"Note": 2}}]}
    check_error(await own.post("/api/v1/agents", json=spec), 422, "VALIDATION_ERROR", "subscriptions[0].batch")
    spec = {"name": "odd", "subscriptions": [{"types": ["Note"], "gate_timeout": "5s"}]}
    check_error(await own.post("/api/v1/agents", json=spec), 422, "VALIDATION_ERROR", "subscriptions[0].gate_timeout")


async def test_a_gate_is_read_back_as_it_was_given(own: Client) -> None:
    """FL-14: with its defaults spelled out."""
    spec = {
        "name": "reader",
        "subscriptions": [
            {"types": ["Note"], "counts": {"Note": 2}, "gate_timeout": "90s"},
            {"types": ["Note"], "counts": {"Note": 2}, "join": {"by": "payload.id", "within": "60s"}},
            {"types": ["Note"], "batch": {"size": 10}},
        ],
    }
    made = check_ok(await own.post("/api/v1/agents", json=spec), 201)
    counts, join, batch = made["subscriptions"]
    assert (counts["counts"], counts["scope"], counts["gate_timeout"]) == ({"Note": 2}, "correlation", "90s")
    assert (join["join"], join["scope"]) == ({"by": "payload.id", "within": "60s"}, "correlation")
    assert (batch["batch"], batch["scope"]) == ({"size": 10, "timeout": "3600s"}, "tenant")
