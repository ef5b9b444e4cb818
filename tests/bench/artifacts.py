"""Rows of publishing: cascades that are waited for, artifacts that nobody subscribes to."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from tests.bench import rest, rpc
from tests.bench.load import closed_loop
from tests.bench.meters import main_thread_cpu_s
from tests.bench.report import Aim, Floor, Load, Outcome, Result, Results, Row, at_least, p50_under
from tests.bench.stand import ORDER, Stand

_COMMITS = 4
"""A cascade of three agents is four commits, one after the other."""
_PEERS = "peers on like work: Restate 186/s at 5.2 ms (1 client), 590/s (64); DBOS 144/s, 125/s; Flock 34/s"
_DOCUMENT_BYTES = 1_000_000


def latency_floor(echo: str, commits: int) -> Floor:
    """The time of a bare call and of the syncs that follow each other."""

    def value(results: Results) -> float | None:
        if echo not in results or "fsync" not in results:
            return None
        return results[echo].p50_ms + commits * results["fsync"].p50_ms

    return Floor(f"{echo}+{commits} fsync", value, "p50")


def rate_floor(row: str) -> Floor:
    """Another row's figure."""
    return Floor(row, lambda results: results[row].median.value if row in results else None)


def rest_load(
    path: str, body: Any, callers: int, check: rest.Check, *, artifacts: int = 1, keyed: bool = False
) -> Callable[[Stand], contextlib.AbstractAsyncContextManager[Load]]:
    """Callers that send one request over and over, each on a connection of its own."""
    raw = rest.post(path, body)

    @contextlib.asynccontextmanager
    async def prepare(stand: Stand) -> AsyncIterator[Load]:
        async with rest.connections(stand.layout.port, callers) as connections:

            def caller(connection: rest.Connection) -> Callable[[], Awaitable[None]]:
                async def once() -> None:
                    check(*await connection.request(rest.with_key(raw) if keyed else raw))
                    stand.published += artifacts

                return once

            callables = [caller(connection) for connection in connections]
            yield lambda seconds: closed_loop(callables, seconds, artifacts)

    return prepare


def grpc_load(
    path: str, raw: bytes, callers: int, check: Callable[[bytes], None], artifacts: int = 1
) -> Callable[[Stand], contextlib.AbstractAsyncContextManager[Load]]:
    """The same over gRPC, on one connection."""

    @contextlib.asynccontextmanager
    async def prepare(stand: Stand) -> AsyncIterator[Load]:
        async with rpc.method(stand.grpc_port, path) as call:

            async def once() -> None:
                check(await call(raw))
                stand.published += artifacts

            yield lambda seconds: closed_loop([once] * callers, seconds, artifacts)

    return prepare


def _sync_rows() -> list[Row]:
    body = {"type": "Order", "payload": ORDER, "timeout": 30}
    raw = rpc.sync_request("Order", ORDER)

    def by_rest(callers: int, aim: Aim, floor: Floor) -> Row:
        load = rest_load("/api/v1/artifacts/sync", body, callers, rest.cascaded)
        title = f"sync publish of a 3-agent cascade through REST, {callers} clients"
        return Row(f"sync-rest-c{callers}", title, load, aim=aim, floor=floor, remark=_PEERS)

    def by_grpc(callers: int, aim: Aim, floor: Floor) -> Row:
        load = grpc_load(rpc.SYNC, raw, callers, rpc.cascaded)
        return Row(f"sync-grpc-c{callers}", f"the same over gRPC, {callers} clients", load, aim=aim, floor=floor)

    one, many = p50_under(5, " (3.2)"), at_least(1500, " (2,860)")
    return [
        by_rest(1, one, latency_floor("echo-rest-c1", _COMMITS)),
        by_rest(64, many, rate_floor("echo-rest-c64")),
        by_grpc(1, one, latency_floor("echo-grpc-c1", _COMMITS)),
        by_grpc(64, many, rate_floor("echo-grpc-c64")),
    ]


def _publish_rows() -> list[Row]:
    body = {"type": "Receipt", "payload": ORDER}

    def no_worse(result: Result, results: Results) -> bool | None:
        plain = results.get("publish-rest-c32")
        return None if plain is None else result.median.value >= 0.9 * plain.median.value

    def publish(callers: int, name: str, title: str, *, keyed: bool = False, group: str = "", **rest_of: Any) -> Row:
        load = rest_load("/api/v1/artifacts", body, callers, rest.published, keyed=keyed)
        return Row(name, title, load, group=group, **rest_of)

    key_aim = Aim(">= 90 % of without", no_worse)
    title = "publish without subscriber through REST (the type has a schema)"
    floor = rate_floor("echo-rest-c32")
    return [
        publish(1, "publish-rest-c1", f"{title}, 1 client", floor=latency_floor("echo-rest-c1", 1)),
        publish(32, "publish-rest-c32", f"{title}, 32 clients", group="key", floor=floor,
                aim=at_least(3000, " (4,700)")),
        publish(32, "publish-key-c32", "the same, each with an idempotency key", keyed=True, group="key", aim=key_aim,
                floor=rate_floor("publish-rest-c32")),
    ]  # fmt: skip


def _batch_rows() -> list[Row]:
    body = {"artifacts": [{"type": "Receipt", "payload": ORDER}] * 100}
    raw = rpc.batch_request("Receipt", ORDER, 100)
    aim, floor = at_least(30_000, " (44-57,000)"), rate_floor("pgbench")

    def check(answer: bytes) -> None:
        rpc.batched(answer, 100)

    rows = []
    for callers in (1, 4):
        load = rest_load("/api/v1/artifacts/batch", body, callers, rest.batched(100), artifacts=100)
        title = f"artifacts published 100 per call through REST, {callers} callers"
        rows.append(Row(f"batch-rest-c{callers}", title, load, aim=aim, floor=floor))
    for callers in (1, 4):
        load = grpc_load(rpc.BATCH, raw, callers, check, 100)
        rows.append(Row(f"batch-grpc-c{callers}", f"the same over gRPC, {callers} callers", load, aim=aim, floor=floor))
    return rows


def large_body() -> dict[str, Any]:
    """A publish of a megabyte on the wire, of many small fields, which is what parsing is slow at."""
    item = {"id": 1, "name": "a name", "text": "some words of no meaning", "flags": [True, False]}
    size = len(rpc.sync_request("", {"items": [item] * 1000})) / 1000
    return {"type": "Document", "payload": {"items": [item] * int(_DOCUMENT_BYTES / size)}}


def cpu_ms_per_request(outcome: Outcome, cpu_s: dict[str, float]) -> float:
    """CPU that the server spent on a request."""
    return cpu_s["server"] / outcome.ops * 1000


@contextlib.asynccontextmanager
async def _large(stand: Stand) -> AsyncIterator[Load]:
    """Publish a document; notes what the server's main thread, where Python runs, took of it."""
    pid = stand.pids()["server"][0]
    async with rest_load("/api/v1/artifacts", large_body(), 1, rest.published)(stand) as run:

        async def measured(seconds: float) -> Outcome:
            before = main_thread_cpu_s(pid)
            outcome = await run(seconds)
            after = main_thread_cpu_s(pid)
            if before is not None and after is not None:
                outcome.notes["main thread ms/request"] = (after - before) / outcome.ops * 1000
            outcome.notes["requests/s"] = outcome.ops / outcome.seconds
            return outcome

        yield measured


def _large_row() -> Row:
    """What is ours of it is what the bare echo of the same request does not need."""

    def cheap(result: Result, results: Results) -> bool | None:
        echo = results.get("echo-1mb")
        return None if echo is None else result.median.value - echo.median.value < 1

    title = "server CPU (all threads, less the idle server's) of a publish with a 1 MB payload through REST, no schema"
    floor, aim = rate_floor("echo-1mb"), Aim("< 1 ms over echo-1mb", cheap)
    return Row("publish-1mb", title, _large, unit="ms CPU/request", value=cpu_ms_per_request, aim=aim, floor=floor)


def rows() -> list[Row]:
    """Sync publishes, publishes, batches, and the large payload."""
    return [*_sync_rows(), *_publish_rows(), *_batch_rows(), _large_row()]
