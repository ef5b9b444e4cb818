"""Workers and the kinds that they serve, found through the proxy. (FV-6)"""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import Any

import httpx
from tests.e2e.answers import check_error, check_ok
from tests.e2e.stack import READY_S, Stack

from millstream.sdk import Client

PROGRAM = Path(__file__).with_name("typed_worker.py")
Rest = httpx.AsyncClient


async def found(rest: Rest, name: str, status: str) -> dict[str, Any]:
    """The worker of a name, once it stands so."""
    async with asyncio.timeout(READY_S):
        while True:
            items = check_ok(await rest.get("/api/v1/workers", params={"name": name, "status": status}))["items"]
            if items:
                (worker,) = items
                return dict(worker)
            await asyncio.sleep(0.02)


async def test_a_worker_is_found_with_its_kinds_until_well_after_it_went(rest: Rest, own: Rest, stack: Stack) -> None:
    """FV-6: kinds, versions, schemas, queues, slots, last heartbeat, ONLINE and OFFLINE; at whichever server."""
    process = await stack.worker(PROGRAM, "typed")
    listed = await found(rest, "typed", "online")
    assert (listed["status"], listed["slots"], listed["queues"]) == ("ONLINE", 7, ["default", "measures"])
    assert listed["connected_at"] <= listed["last_heartbeat_at"]
    path = f"/api/v1/workers/{listed['worker_id']}"
    (told,) = check_ok(await rest.get(path))["kinds"]
    assert (told["kind"], told["category"], told["version"]) == ("measure", "TASK", "1.2.0")
    assert told["description"] == "The area of a box."
    assert told["input_schema"]["required"] == ["width", "height"]
    assert told["output_schema"] == {"type": "number"}
    (kind,) = check_ok(await rest.get("/api/v1/kinds", params={"kind": "measure"}))["items"]
    assert {name: kind[name] for name in told} == told
    assert (kind["status"], kind["queues"], kind["worker_count"]) == ("ONLINE", ["default", "measures"], 1)
    assert [each["worker_id"] for each in kind["served_by"]] == [listed["worker_id"]]
    assert check_ok(await own.get("/api/v1/kinds"))["items"] == [], "another tenant's"
    check_error(await own.get(path), 404, "NOT_FOUND")

    await process.stop()
    gone = await found(rest, "typed", "OFFLINE")
    assert gone["disconnected_at"] >= listed["connected_at"]
    assert gone["slots_used"] == 0
    (kind,) = check_ok(await rest.get("/api/v1/kinds", params={"kind": "measure", "status": "OFFLINE"}))["items"]
    assert (kind["worker_count"], kind["served_by"]) == (0, [])
    async with Client(stack.target) as client:
        assert [each.name for each in await client.workers.list(status="offline", name="typed").all()] == ["typed"]
        assert (await client.workers.get(gone["worker_id"])).kinds[0].input_schema == told["input_schema"]
        (known,) = await client.kinds.list(kind="measure", category="task").all()
        assert (known.status, known.output_schema) == ("OFFLINE", {"type": "number"})


async def test_questions_about_workers_are_refused_by_their_fields(rest: Rest) -> None:
    """FL-10"""
    check_error(await rest.get("/api/v1/workers/me"), 422, "VALIDATION_ERROR", "worker_id")
    check_error(await rest.get(f"/api/v1/workers/{uuid.uuid4()}"), 404, "NOT_FOUND")
    check_error(await rest.get("/api/v1/workers", params={"page_size": 501}), 422, "VALIDATION_ERROR", "page_size")
    check_error(await rest.get("/api/v1/kinds", params={"page_token": "x"}), 422, "VALIDATION_ERROR", "page_token")
