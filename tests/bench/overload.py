"""Rows of an open loop: requests that come whether or not the service keeps up, and a tenant that floods it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import orjson
from tests.bench import rest, rpc
from tests.bench.acks import Acks
from tests.bench.artifacts import rest_load
from tests.bench.load import closed_loop, ensure
from tests.bench.meters import resident_bytes
from tests.bench.report import Aim, Load, Outcome, Result, Results, Row, percentile_ms
from tests.bench.stand import ORDER, Stand, register

_BODY = {"type": "Order", "payload": ORDER, "timeout": 30}
_CALLERS = 64
_FLOOD_CALLS = 8
_CALIBRATION_S = 4.0
_sustainable: dict[int, float] = {}


@dataclass
class _Tally:
    """What became of requests."""

    good: list[float] = field(default_factory=list)
    refused: int = 0


class _Arrivals:
    """Sends a request at its time, on a connection that is free or on a new one."""

    def __init__(self, port: int, raw: bytes) -> None:
        self._port = port
        self._raw = raw
        self._free: list[rest.Connection] = []
        self._opened: list[rest.Connection] = []

    async def send(self, due: float, tally: _Tally) -> None:
        """One request, timed from when it was due: a client that is late itself hides nothing."""
        if not self._free:
            self._free.append(await rest.connect(self._port))
            self._opened.append(self._free[-1])
        connection = self._free.pop()
        status, body = await connection.request(self._raw)
        if status == 200:
            rest.cascaded(status, body)
            tally.good.append(time.perf_counter() - due)
        else:
            clean = (
                status == 429 and orjson.loads(body)["code"] == "RATE_LIMITED" and b"retry-after: " in connection.head
            )
            ensure(clean, "an unclean refusal", (status, connection.head, body))
            tally.refused += 1
        self._free.append(connection)

    def close(self) -> None:
        """Close what was opened."""
        for connection in self._opened:
            connection.close()


async def _at_rate(arrivals: _Arrivals, rate: float, seconds: float) -> tuple[_Tally, float]:
    """Requests at a fixed rate; the time from the first one due to the last one answered."""
    tally, start = _Tally(), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(int(rate * seconds)):
            due = start + number / rate
            if (pause := due - time.perf_counter()) > 0:
                await asyncio.sleep(pause)
            group.create_task(arrivals.send(due, tally))
    return tally, time.perf_counter() - start


async def _sustainable_rate(stand: Stand) -> float:
    """Sync publishes a second that 64 callers get, each waiting for its answer."""
    if id(stand) not in _sustainable:
        async with rest_load("/api/v1/artifacts/sync", _BODY, _CALLERS, rest.cascaded)(stand) as load:
            await load(1.0)
            outcome = await load(_CALIBRATION_S)
        _sustainable[id(stand)] = outcome.ops / outcome.seconds
    return _sustainable[id(stand)]


def _open_loop(share: float) -> Callable[[Stand], contextlib.AbstractAsyncContextManager[Load]]:
    @contextlib.asynccontextmanager
    async def prepare(stand: Stand) -> AsyncIterator[Load]:
        rate = share * await _sustainable_rate(stand)
        arrivals = _Arrivals(stand.layout.port, rest.post("/api/v1/artifacts/sync", _BODY))
        pid = stand.pids()["server"][0]

        async def load(seconds: float) -> Outcome:
            tally, took = await _at_rate(arrivals, rate, seconds)
            stand.published += len(tally.good)
            notes = {
                "offered/s": rate,
                "refused of all %": tally.refused / max(1, tally.refused + len(tally.good)) * 100,
                "server MB": resident_bytes(pid) / 1e6,
            }
            return Outcome(len(tally.good), took, tally.good, notes)

        try:
            yield load
        finally:
            arrivals.close()

    return prepare


def _stays() -> Aim:
    def judge(result: Result, results: Results) -> bool | None:
        full = results.get("open-full")
        return None if full is None else result.median.value >= 0.85 * full.median.value

    return Aim("goodput >= 85 % of open-full", judge)


def _served() -> Aim:
    return Aim("all served", lambda result, _: result.median.notes["refused of all %"] == 0)


@contextlib.asynccontextmanager
async def _quiet(stand: Stand) -> AsyncIterator[Load]:
    """One caller's cascades in a tenant of its own, with a worker of its own."""
    tenant = "quiet"
    connection = await stand.connect()
    known = await connection.fetchval("SELECT count(*) FROM artifact_type WHERE tenant = $1", tenant)
    await connection.close()
    if not known:
        await register(stand.layout.port, tenant)
    raw = rest.post("/api/v1/artifacts/sync", _BODY, f"x-tenant: {tenant}\r\n")
    async with (
        stand.worker(stand.grpc_port, "bench.quiet", Acks(), suite="orders", tenant=tenant),
        rest.connections(stand.layout.port, 1) as (own,),
    ):

        async def once() -> None:
            rest.cascaded(*await own.request(raw))
            stand.published += 1

        yield lambda seconds: closed_loop([once], seconds)


@contextlib.asynccontextmanager
async def _flooded(stand: Stand) -> AsyncIterator[Load]:
    """The same while another tenant creates tasks and publishes as fast as it is let."""
    raw = rpc.batch_request("Receipt", ORDER, 100)
    async with _quiet(stand) as load, rpc.method(stand.grpc_port, rpc.BATCH) as publish:

        async def flood(enough: asyncio.Event) -> None:
            while not enough.is_set():
                rpc.batched(await publish(raw), 100)
                stand.published += 100

        async def measured(seconds: float) -> Outcome:
            before, enough = stand.published, asyncio.Event()
            async with asyncio.TaskGroup() as floods:
                for _ in range(_FLOOD_CALLS):
                    floods.create_task(flood(enough))
                outcome = await load(seconds)
                # What is under way ends, so that all that was acknowledged is counted.
                enough.set()
            outcome.notes["the other's artifacts/s"] = (stand.published - before - outcome.ops) / outcome.seconds
            return outcome

        yield measured


def rows() -> list[Row]:
    """Three rates, and two tenants."""
    title = "sync publishes of a 3-agent cascade through REST, coming at"
    said = "of what 64 waiting callers get"

    def p99(outcome: Outcome, _: dict[str, float]) -> float:
        return percentile_ms(outcome.latencies_s, 0.99) or 0.0

    return [
        Row("open-half", f"{title} half {said}", _open_loop(0.5), stretch=3, aim=_served()),
        Row("open-full", f"{title} the rate {said}", _open_loop(1.0), stretch=3),
        Row("open-twice", f"{title} twice the rate {said}", _open_loop(2.0), stretch=3, aim=_stays()),
        Row("tenant-quiet", "p99 of one caller's cascades in a tenant of its own", _quiet, unit="ms p99", value=p99),
        Row("tenant-flooded", f"the same while another tenant publishes batches of 100 with {_FLOOD_CALLS} calls",
            _flooded, unit="ms p99", value=p99),
    ]  # fmt: skip
