"""Rows of many: subscriptions that must not be looked at, and parts that wait in a join."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from tests.bench import rest, rpc
from tests.bench.acks import Acks
from tests.bench.load import closed_loop, ensure
from tests.bench.meters import resident_bytes
from tests.bench.report import Aim, Load, Outcome, Result, Results, Row
from tests.bench.stand import Stand

SUBSCRIPTIONS = 10_000
MATCHING = 100
FEW = 10
PARTS = 100_000
_OTHER_TYPES = 100
_PER_CALL = 500
_Prepare = Callable[[Stand], contextlib.AbstractAsyncContextManager[Load]]


async def _post(port: int, requests: Iterator[tuple[str, Any]], tenant: str, what: str) -> None:
    """Send requests of a tenant, 32 at a time; every one must create something."""
    headers = f"x-tenant: {tenant}\r\n"
    async with rest.connections(port, 32) as connections:

        async def send(connection: rest.Connection) -> None:
            for path, body in requests:
                status, answer = await connection.request(rest.post(path, body, headers))
                ensure(status == 201, what, (status, answer))

        async with asyncio.TaskGroup() as group:
            for connection in connections:
                group.create_task(send(connection))


def _types(names: list[str]) -> Iterator[tuple[str, Any]]:
    return (("/api/v1/artifact-types", {"name": name, "schema": {}}) for name in names)


def _others(count: int) -> Iterator[tuple[str, Any]]:
    """Agents that subscribe to other types."""
    for number in range(count):
        subscription = {"types": [f"Other{number % _OTHER_TYPES}"]}
        yield "/api/v1/agents", {"name": f"other-{number}", "subscriptions": [subscription]}


@contextlib.asynccontextmanager
async def _crowd(stand: Stand, tenant: str, matching: int, others: int) -> AsyncIterator[Acks]:
    """A tenant with so many agents, whose matching ones a worker serves."""
    port, acks = stand.layout.port, Acks()
    names = ["Crowd", "Single", *(f"Other{number}" for number in range(_OTHER_TYPES))]
    connection = await stand.connect()
    known = await connection.fetchval("SELECT count(*) FROM agent WHERE tenant = $1", tenant)
    await connection.close()
    if not known:
        await _post(port, _types(names), tenant, "type")
        await _post(port, _others(others), tenant, "agent")
    async with stand.worker(stand.grpc_port, f"bench.{tenant}", acks, suite=str(matching), tenant=tenant):
        yield acks


def _publishing(tenant: str, type_name: str, matching: int, others: int, callers: int) -> _Prepare:
    """Publishes of a type, counted by what was delivered, until the last one is done."""
    each = matching if type_name == "Crowd" else 1
    raw = rest.post("/api/v1/artifacts", {"type": type_name, "payload": {"n": 1}}, f"x-tenant: {tenant}\r\n")

    @contextlib.asynccontextmanager
    async def prepare(stand: Stand) -> AsyncIterator[Load]:
        async with (
            _crowd(stand, tenant, matching, others) as acks,
            rest.connections(stand.layout.port, callers) as connections,
        ):

            def caller(connection: rest.Connection) -> Callable[[], Any]:
                async def once() -> None:
                    rest.published(*await connection.request(raw))
                    stand.published += 1

                return once

            async def load(seconds: float) -> Outcome:
                first, start = acks.total, time.monotonic()
                sent = await closed_loop([caller(connection) for connection in connections], seconds)
                end = await acks.until(first + sent.ops * each)
                notes = {"publishes/s": sent.ops / sent.seconds}
                return Outcome(sent.ops * each, max(end - start, sent.seconds), sent.latencies_s, notes)

            yield load

    return prepare


def _server_us(outcome: Outcome, cpu_s: dict[str, float]) -> float:
    return cpu_s["server"] / outcome.ops * 1e6


def _within(factor: float, of: str) -> Aim:
    def judge(result: Result, results: Results) -> bool | None:
        base = results.get(of)
        return None if base is None else result.median.value <= factor * base.median.value

    return Aim(f"<= {factor:g} x {of}", judge)


def _crowd_rows() -> list[Row]:
    few, many = ("few", FEW, 0), ("many", MATCHING, SUBSCRIPTIONS - MATCHING)
    unit = "us server CPU/delivery"

    def row(name: str, title: str, prepare: _Prepare, aim: Aim | None = None) -> Row:
        return Row(name, title, prepare, unit=unit, value=_server_us, aim=aim, group=name.rpartition("-")[0])

    said = f"of {SUBSCRIPTIONS:,} subscriptions {MATCHING} match"
    return [
        row("crowd-all-few", f"publish where {FEW} subscriptions match",
            _publishing(few[0], "Crowd", few[1], few[2], 8)),
        row("crowd-all-many", f"publish where {said}, each a task", _publishing(many[0], "Crowd", many[1], many[2], 2),
            _within(1.5, "crowd-all-few")),
        row("crowd-one-few", f"publish where one of {FEW} subscriptions matches",
            _publishing(few[0], "Single", few[1], few[2], 8)),
        row("crowd-one-many", f"publish where one of {SUBSCRIPTIONS:,} subscriptions matches",
            _publishing(many[0], "Single", many[1], many[2], 8), _within(1.5, "crowd-one-few")),
    ]  # fmt: skip


def _batch(type_name: str, ids: range) -> bytes:
    return rpc.each_request(type_name, [{"id": number, "side": type_name} for number in ids])


@contextlib.asynccontextmanager
async def _join(stand: Stand) -> AsyncIterator[Load]:
    tenant, acks = "pairs", Acks()
    await _post(stand.layout.port, _types(["Left", "Right"]), tenant, "type")
    database = await stand.connect()
    first_id = 0
    metadata = (("x-tenant", tenant),)
    async with (
        stand.worker(stand.grpc_port, "bench.pairs", acks, suite="joiner", tenant=tenant),
        rpc.method(stand.grpc_port, rpc.BATCH, metadata) as publish,
    ):

        async def half(type_name: str, ids: range) -> float:
            start, chunks = time.monotonic(), (ids[at : at + _PER_CALL] for at in range(0, len(ids), _PER_CALL))

            async def send() -> None:
                for chunk in chunks:
                    rpc.batched(await publish(_batch(type_name, chunk)), len(chunk))
                    stand.published += len(chunk)

            async with asyncio.TaskGroup() as group:
                for _ in range(4):
                    group.create_task(send())
            return time.monotonic() - start

        async def load(seconds: float) -> Outcome:
            nonlocal first_id
            count = PARTS if seconds > 1 else PARTS // 100
            ids, done = range(first_id, first_id + count), acks.total
            first_id += count
            pid, before = stand.pids()["server"][0], resident_bytes(stand.pids()["server"][0])
            start = time.monotonic()
            put_s = await half("Left", ids)
            ensure(await database.fetchval(_WAITING, tenant) == count, "parts that wait", count)
            held = resident_bytes(pid) - before
            stored = await database.fetchval("SELECT pg_total_relation_size('buffer')")
            fire_s = await half("Right", ids)
            end = await acks.until(done + count, 600.0)
            notes = {
                "parts put in/s": count / put_s, "fired/s": count / max(fire_s, 1e-9),
                "server MB more for all parts": held / 1e6, "bytes stored a part": stored / count,
            }  # fmt: skip
            return Outcome(2 * count, end - start, notes=notes)

        yield load
    await database.close()


_WAITING = "SELECT count(*) FROM buffer WHERE tenant = $1"


def rows() -> list[Row]:
    """Subscriptions, and the join."""
    title = f"join over runs: {PARTS:,} parts that wait for their other half, which comes once all of them do"
    return [*_crowd_rows(), Row("join-100k", title, _join, rounds=1)]
