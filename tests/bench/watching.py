"""Rows of watching: how long after its batch began an event reaches who watches, and how many a server hands out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from datetime import datetime

from tests.bench import rest
from tests.bench.load import ensure
from tests.bench.report import Load, Outcome, Row
from tests.bench.stand import Stand

EVENTS_S = 5.0
"""Events a second, where latencies are measured: that nothing waits for what was before."""
FEW = 100
MANY = 1000
_TENANT = "watching"
_HEADERS = f"x-tenant: {_TENANT}\r\n"
_CREATED = b'"created_at":"'
_LIMIT = 1024 * 1024
_Prepare = Callable[[Stand], contextlib.AbstractAsyncContextManager[Load]]


class Watchers:
    """Readers of server-sent events, and when each event came to each."""

    def __init__(self) -> None:
        self.latencies_s: list[float] = []
        self.events = 0
        self.grown = asyncio.Event()
        self.measuring = False

    async def read(self, port: int, run_id: str, began: asyncio.Event) -> None:
        """Watch a run until cancelled."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=_LIMIT)
        try:
            head = f"GET /api/v1/runs/{run_id}/stream HTTP/1.1\r\nhost: bench\r\n{_HEADERS}\r\n"
            writer.write(head.encode())
            while line := await reader.readline():
                if line.startswith(b"data: ") and _CREATED in line:
                    self._came(line)
                elif line.startswith(b"event: heartbeat"):
                    began.set()
        finally:
            writer.close()

    def _came(self, line: bytes) -> None:
        at = time.time()
        self.events += 1
        self.grown.set()
        if self.measuring:
            created = line.split(_CREATED, 1)[1].split(b'"', 1)[0].decode()
            self.latencies_s.append(at - datetime.fromisoformat(created).timestamp())

    async def until(self, count: int) -> None:
        """Return when so many events came in all."""
        async with asyncio.timeout(60):
            while self.events < count:
                self.grown.clear()
                await self.grown.wait()


async def _ready(stand: Stand) -> None:
    """The types, and an agent that nobody serves: its task keeps a cascade open."""
    async with rest.connections(stand.layout.port, 1) as (connection,):
        for path, body in (
            ("/api/v1/artifact-types", {"name": "Kept", "schema": {}}),
            ("/api/v1/artifact-types", {"name": "Tick", "schema": {}}),
            ("/api/v1/agents", {"name": "nobody", "subscriptions": [{"types": ["Kept"]}]}),
        ):
            status, answer = await connection.request(rest.post(path, body, _HEADERS))
            ensure(status in (200, 201, 409), path, (status, answer))


async def _published(stand: Stand, connection: rest.Connection, type_name: str, run_id: str = "") -> str:
    body = {"type": type_name, "payload": {"n": 1}, **({"correlation_id": run_id} if run_id else {})}
    status, answer = await connection.request(rest.post("/api/v1/artifacts", body, _HEADERS))
    rest.published(status, answer)
    stand.published += 1
    return str(json.loads(answer)["correlation_id"])


@contextlib.asynccontextmanager
async def _watched(stand: Stand, count: int, runs: int) -> AsyncIterator[tuple[Watchers, list[str], rest.Connection]]:
    """So many watchers of so many runs that stay open, and a connection to publish by."""
    await _ready(stand)
    watchers = Watchers()
    async with contextlib.AsyncExitStack() as stack:
        (connection,) = await stack.enter_async_context(rest.connections(stand.layout.port, 1))
        run_ids = [await _published(stand, connection, "Kept") for _ in range(runs)]
        began = [asyncio.Event() for _ in range(count)]
        reading = [
            asyncio.create_task(watchers.read(stand.layout.port, run_ids[n % runs], each))
            for n, each in enumerate(began)
        ]
        stack.callback(lambda: [each.cancel() for each in reading])
        async with asyncio.timeout(60):
            await asyncio.gather(*(each.wait() for each in began))
        # A cascade's beginning: that it was created, its artifact, its task.
        await watchers.until(3 * count)
        try:
            yield watchers, run_ids, connection
        finally:
            for run_id in run_ids:
                status, answer = await connection.request(rest.post(f"/api/v1/runs/{run_id}/cancel", {}, _HEADERS))
                ensure(status == 200, "cancel", (status, answer))


def _latency(count: int, runs: int = 1) -> _Prepare:
    """One event after the other, each to everybody who watches its run."""

    @contextlib.asynccontextmanager
    async def prepare(stand: Stand) -> AsyncIterator[Load]:
        async with _watched(stand, count, runs) as (watchers, run_ids, connection):

            async def load(seconds: float) -> Outcome:
                watchers.latencies_s, watchers.measuring = [], True
                first, start, sent = watchers.events, time.monotonic(), 0
                while time.monotonic() < start + seconds:
                    await _published(stand, connection, "Tick", run_ids[sent % runs])
                    sent += 1
                    await asyncio.sleep(max(0.0, start + sent / EVENTS_S - time.monotonic()))
                await watchers.until(first + sent * count // runs)
                watchers.measuring = False
                took = time.monotonic() - start
                return Outcome(sent * count // runs, took, watchers.latencies_s, {"watchers": count, "runs": runs})

            yield load

    return prepare


def _fan_out(count: int) -> _Prepare:
    """Events as fast as a caller makes them, until everybody has the last."""

    @contextlib.asynccontextmanager
    async def prepare(stand: Stand) -> AsyncIterator[Load]:
        async with _watched(stand, count, 1) as (watchers, run_ids, connection):

            async def load(seconds: float) -> Outcome:
                first, start, sent = watchers.events, time.monotonic(), 0
                while time.monotonic() < start + seconds:
                    await _published(stand, connection, "Tick", run_ids[0])
                    sent += 1
                    # No more under way than a reader may be behind.
                    await watchers.until(first + max(0, sent - 200) * count)
                await watchers.until(first + sent * count)
                took = time.monotonic() - start
                return Outcome(sent * count, took, [], {"watchers": count, "events/s": sent / took})

            yield load

    return prepare


def rows() -> list[Row]:
    """The rows of watching."""
    said = "an event of a run, over REST, from its batch's beginning to {} of it"
    return [
        Row("watch-1", said.format("the only watcher"), _latency(1)),
        Row(f"watch-{FEW}", said.format(f"each of {FEW} watchers"), _latency(FEW)),
        Row(f"watch-{MANY}", said.format(f"each of {MANY:,} watchers"), _latency(MANY)),
        Row(f"watch-{MANY}-runs", f"the same, each watcher of a run of its own among {MANY:,}", _latency(MANY, MANY)),
        Row("watch-fan-out", f"events handed to {MANY:,} watchers of a run", _fan_out(MANY)),
    ]
