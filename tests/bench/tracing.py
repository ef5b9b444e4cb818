"""Rows of tracing: what the same costs a server that exports no traces, one in a hundred, and all of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from tests.bench import rpc
from tests.bench.acks import Acks
from tests.bench.load import closed_loop, ensure
from tests.bench.report import Aim, Load, Outcome, Result, Results, Row
from tests.bench.stand import ORDER, Child, Stand, extra_server, register
from tests.proxy import free_port

_SHARES = {"off": None, "1pct": 0.01, "all": 1.0}
"""The share of traces that each row's server exports; None: it has no endpoint."""
_SOON = 2000
"""Of so many operations something was exported, whatever the exporter waits for."""
_PER_CALL = 100
_CALLS = 4
_CLIENTS = 8
_Prepare = Callable[[Stand], contextlib.AbstractAsyncContextManager[Load]]


async def _spans(collector: Child) -> int:
    """How many spans have come."""
    assert collector.process.stdin is not None
    collector.process.stdin.write(b"\n")
    return int(await collector.line())


@contextlib.asynccontextmanager
async def _traced(stand: Stand, name: str, share: float | None) -> AsyncIterator[tuple[int, Acks, Child | None]]:
    """A server of its own with a worker, and what its spans go to; its port."""
    acks = Acks()
    await register(stand.layout.port, name)
    async with contextlib.AsyncExitStack() as stack:
        collector, environment = None, {}
        if share is not None:
            port = free_port()
            collector = await stack.enter_async_context(stand.module("collector", "--port", str(port), kind="receiver"))
            environment = {
                "MILLSTREAM_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
                "MILLSTREAM_TRACE_RATIO": str(share),
            }
        grpc_port = await stack.enter_async_context(extra_server(stand, name, environment))
        # A tenant of its own: nobody else's worker takes its work.
        await stack.enter_async_context(stand.worker(grpc_port, f"bench.{name}", acks, suite="orders", tenant=name))
        yield grpc_port, acks, collector


def _counted(load: Load, collector: Child | None, share: float | None) -> Load:
    """The load, which notes how many spans came for each of its operations so far: they come seconds later."""
    ops = 0

    async def counted(seconds: float) -> Outcome:
        nonlocal ops
        outcome = await load(seconds)
        ops += outcome.ops
        outcome.notes["ops/s"] = outcome.ops / outcome.seconds
        if collector is not None:
            spans = await _spans(collector)
            ensure(share != 1 or ops < _SOON or spans > 0, "no spans were exported", spans)
            outcome.notes["spans an op"] = spans / ops
        return outcome

    return counted


def _tasks(name: str, share: float | None) -> _Prepare:
    raw = rpc.tasks_request(f"bench.{name}", {"number": 17}, _PER_CALL)

    @contextlib.asynccontextmanager
    async def prepare(stand: Stand) -> AsyncIterator[Load]:
        async with (
            _traced(stand, name, share) as (port, acks, collector),
            rpc.method(port, rpc.CREATE_TASKS, (("x-tenant", name),)) as create,
        ):

            async def once() -> None:
                rpc.tasks_created(await create(raw), _PER_CALL)

            async def load(seconds: float) -> Outcome:
                first, start = acks.total, time.monotonic()
                created = await closed_loop([once] * _CALLS, seconds, _PER_CALL)
                end = await acks.until(first + created.ops)
                return Outcome(created.ops, end - start)

            yield _counted(load, collector, share)

    return prepare


def _syncs(name: str, share: float | None) -> _Prepare:
    raw = rpc.sync_request("Order", ORDER)

    @contextlib.asynccontextmanager
    async def prepare(stand: Stand) -> AsyncIterator[Load]:
        async with (
            _traced(stand, name, share) as (port, _, collector),
            rpc.method(port, rpc.SYNC, (("x-tenant", name),)) as publish,
        ):

            async def once() -> None:
                rpc.cascaded(await publish(raw))
                stand.published += 1

            yield _counted(lambda seconds: closed_loop([once] * _CLIENTS, seconds), collector, share)

    return prepare


def _server_us(outcome: Outcome, cpu_s: dict[str, float]) -> float:
    return cpu_s["server"] / outcome.ops * 1e6


def _within(factor: float, of: str) -> Aim:
    """Nearly the cost of the row without."""

    def judge(result: Result, results: Results) -> bool | None:
        base = results.get(of)
        return None if base is None else result.median.value <= factor * base.median.value

    return Aim(f"<= {factor:g} x {of}", judge)


def rows() -> list[Row]:
    """What tracing costs, measured in turn: what else goes on hits all alike."""
    loads = {
        "tasks": (_tasks, f"standalone tasks, {_PER_CALL} per call, {_CALLS} calls in flight"),
        "sync": (_syncs, f"sync publish of a 3-agent cascade over gRPC, {_CLIENTS} clients"),
    }
    said = {"off": "no traces exported", "1pct": "one trace in a hundred", "all": "every trace"}
    found: list[Row] = []
    for what, (load, title) in loads.items():
        group = f"tracing-{what}"
        for name, share in _SHARES.items():
            aim = _within(1.1, f"{group}-off") if name == "1pct" else None
            prepare = load(f"{group}-{name}", share)
            row = Row(f"{group}-{name}", f"{title}; {said[name]}", prepare, "us server CPU/op", _server_us, aim)
            found.append(replace(row, group=group))
    return found
