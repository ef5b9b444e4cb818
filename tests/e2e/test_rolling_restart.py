"""Servers restarted one after the other under load, as a new release is rolled out: no caller sees anything of it."""

from __future__ import annotations

import asyncio
import collections
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import asyncpg
import httpx
import pytest
from tests.e2e.conftest import SHORT
from tests.e2e.stack import ORDERS, Stack, running_stack

from millstream.v1.artifact_service_pb2 import PublishBatchRequest, PublishRequest, PublishSyncRequest
from millstream.v1.artifact_service_pb2_grpc import ArtifactServiceStub

if TYPE_CHECKING:
    from millstream.v1.artifact_service_pb2_grpc import ArtifactServiceAsyncStub

pytestmark = pytest.mark.slow

CASCADE = ["Notification", "Order", "Payment", "Shipment"]


@dataclass
class Load:
    """Callers that go on until they are stopped, each call once: nobody tries again."""

    stack: Stack
    acknowledged: dict[str, str] = field(default_factory=dict)
    """Artifact ids, with the cascade of each."""
    made: list[str] = field(default_factory=list)
    """Ids of all artifacts that sync publishes returned."""
    calls: collections.Counter[str] = field(default_factory=collections.Counter)
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    passed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def run(self) -> None:
        """Call through the proxy by every door, until stopped. Raises what any call raises."""
        stub = ArtifactServiceStub(await self.stack.channel())
        rest = await self.stack.rest()
        callers: dict[str, Callable[[], Awaitable[None]]] = {
            "gRPC": lambda: self.grpc(stub),
            "gRPC sync": lambda: self.grpc_sync(stub),
            "gRPC batch": lambda: self.grpc_batch(stub),
            "REST": lambda: self.rest(rest),
            "REST sync": lambda: self.rest_sync(rest),
            "health": lambda: self.health(rest),
        }
        async with asyncio.TaskGroup() as group:
            for name, call in callers.items():
                self.calls[name] = 0
                for _ in range(2):
                    group.create_task(self._again_and_again(name, call))

    async def _again_and_again(self, name: str, call: Callable[[], Awaitable[None]]) -> None:
        while not self.stopped.is_set():
            try:
                await call()
            except Exception as error:
                error.add_note(f"after {self.calls[name]} calls of {name}")
                raise
            async with self.passed:
                self.calls[name] += 1
                self.passed.notify_all()

    async def more(self, count: int) -> None:
        """Return when so many more calls were answered by every door."""
        async with self.passed:
            await self.passed.wait_for(lambda: len(self.calls) > 0)
            wanted = {name: done + count for name, done in self.calls.items()}
            await self.passed.wait_for(lambda: all(self.calls[name] >= least for name, least in wanted.items()))

    async def grpc(self, stub: ArtifactServiceAsyncStub) -> None:
        request = PublishRequest(type="Order")
        request.payload.update(order())
        answer = await stub.Publish(request, timeout=30)
        self.acknowledged[answer.artifact_id] = answer.correlation_id

    async def grpc_batch(self, stub: ArtifactServiceAsyncStub) -> None:
        request = PublishBatchRequest()
        for _ in range(3):
            request.artifacts.add(type="Order").payload.update(order())
        for item in (await stub.PublishBatch(request, timeout=30)).results:
            assert not item.HasField("error"), item
            self.acknowledged[item.artifact_id] = item.correlation_id

    async def grpc_sync(self, stub: ArtifactServiceAsyncStub) -> None:
        request = PublishSyncRequest(type="Order", timeout=20)
        request.payload.update(order())
        answer = await stub.PublishSync(request, timeout=30)
        assert answer.completed
        assert not answer.failures
        self.cascade(answer.correlation_id, {each.id: each.type for each in answer.artifacts})

    async def rest(self, client: httpx.AsyncClient) -> None:
        response = await client.post("/api/v1/artifacts", json={"type": "Order", "payload": order()})
        assert response.status_code == 200, response.text
        self.acknowledged[response.json()["artifact_id"]] = response.json()["correlation_id"]

    async def rest_sync(self, client: httpx.AsyncClient) -> None:
        asked = {"type": "Order", "payload": order(), "timeout": 20}
        response = await client.post("/api/v1/artifacts/sync", json=asked)
        assert response.status_code == 200, response.text
        body = response.json()
        assert (body["completed"], body["failures"]) == (True, []), body
        self.cascade(body["correlation_id"], {each["id"]: each["type"] for each in body["artifacts"]})

    async def health(self, client: httpx.AsyncClient) -> None:
        """Has a cluster of its own in the proxy."""
        response = await client.get("/health")
        assert response.status_code == 200, response.text

    def cascade(self, correlation_id: str, types: dict[str, str]) -> None:
        """What a sync publish returned is the whole cascade."""
        assert sorted(types.values()) == CASCADE
        self.acknowledged[next(each for each, name in types.items() if name == "Order")] = correlation_id
        self.made += types


def order() -> dict[str, Any]:
    """An order of its own."""
    return {"order_id": str(uuid.uuid4()), "amount": 1.5, "items": ["tea"]}


@pytest.fixture
async def rolling() -> AsyncIterator[Stack]:
    """Two servers with the settings that servers have, and the orders worker in a process of its own."""
    async with running_stack({"auth_mode": "developer", **SHORT}, servers=2) as running:
        await running.worker(ORDERS, "orders")
        yield running


async def test_no_call_fails_and_nothing_is_lost_or_doubled_while_every_server_is_restarted(rolling: Stack) -> None:
    """WM-12: one after the other, each as soon as the one before is back, twice round."""
    load = Load(rolling)
    async with asyncio.timeout(120), asyncio.TaskGroup() as group:
        group.create_task(load.run())
        await load.more(3)
        for server in (0, 1, 0, 1):
            ended = await rolling.restart(server)
            assert ended.code == 0
            assert not [line for line in ended.lines if '"level":"error"' in line]
            await load.more(3)
        load.stopped.set()
    assert not rolling.faults()
    assert len(load.acknowledged) == sum(load.calls.values()) + 2 * load.calls["gRPC batch"] - load.calls["health"]
    await check_stored(rolling, load)


async def check_stored(stack: Stack, load: Load) -> None:
    """Every acknowledged order is there once, in its cascade, with one artifact of each type that follows from it; and
    there is nothing else."""
    connection = await asyncpg.connect(stack.database.url)
    try:
        async with asyncio.timeout(60):
            while await connection.fetchval("SELECT count(*) FROM run WHERE finished_us = 0"):
                pass  # cascades under way
        rows = await connection.fetch("SELECT id::text, run_id::text AS run, type FROM artifact")
    finally:
        await connection.close()
    orders = {row["id"]: row["run"] for row in rows if row["type"] == "Order"}
    assert orders == load.acknowledged
    cascades: dict[str, list[str]] = {}
    for row in rows:
        cascades.setdefault(row["run"], []).append(row["type"])
    assert {run: types for run, types in cascades.items() if sorted(types) != CASCADE} == {}
    assert set(load.made) <= {row["id"] for row in rows}
    assert len(load.made) == len(set(load.made))
