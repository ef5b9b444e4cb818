"""Rows of tasks: the engine alone, standalone tasks done by a worker, and workers that have nothing to do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from tests.bench import rpc
from tests.bench.acks import Acks
from tests.bench.artifacts import latency_floor, rate_floor
from tests.bench.load import closed_loop, ensure
from tests.bench.report import Aim, Load, Outcome, Result, Results, Row, at_least, p50_under, value_under
from tests.bench.stand import Stand

from millstream.v1.task_service_pb2 import CreateTaskRequest

_INPUT: dict[str, Any] = {"number": 17, "text": "what the task is given"}
_PER_CALL = 100
_IDLE_WORKERS = 100
_Prepare = Callable[[Stand], contextlib.AbstractAsyncContextManager[Load]]


def _engine(callers: int) -> _Prepare:
    @contextlib.asynccontextmanager
    async def prepare(stand: Stand) -> AsyncIterator[Load]:
        connection = await stand.connect()
        exists = await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = 'bench_engine'")
        if not exists:
            await connection.execute("CREATE DATABASE bench_engine")
        await connection.close()
        async with stand.module("engine_only", stand.url("bench_engine"), kind="server") as child:
            stdin = child.process.stdin
            assert stdin is not None

            async def load(seconds: float) -> Outcome:
                stdin.write(f"{callers} {seconds}\n".encode())
                answer = json.loads(await child.line())
                notes = {"p50 ms": answer["p50_ms"], "p99 ms": answer["p99_ms"]}
                return Outcome(answer["ops"], answer["seconds"], notes=notes)

            yield load

    return prepare


def _engine_rows() -> list[Row]:
    title = "engine only: tasks created, leased and completed in process, one by one"
    floor = rate_floor("pgbench")
    return [
        Row("engine-c64", f"{title}, 64 callers", _engine(64), floor=floor),
        Row("engine-c256", f"{title}, 256 callers", _engine(256), floor=floor, aim=at_least(20_000, " (26,000)")),
    ]


def _tasks(calls: int) -> _Prepare:
    raw = rpc.tasks_request("bench.near", _INPUT, _PER_CALL)

    @contextlib.asynccontextmanager
    async def prepare(stand: Stand) -> AsyncIterator[Load]:
        async with rpc.method(stand.grpc_port, rpc.CREATE_TASKS) as create:

            async def once() -> None:
                rpc.tasks_created(await create(raw), _PER_CALL)

            async def load(seconds: float) -> Outcome:
                first, start = stand.near.total, time.monotonic()
                created = await closed_loop([once] * calls, seconds, _PER_CALL)
                created_at = time.monotonic()
                # From the first call to the moment when the worker knew the last completion to be stored.
                end = await stand.near.until(first + created.ops)
                latencies = sorted(created.latencies_s)
                notes = {
                    "create call p50 ms": latencies[len(latencies) // 2] * 1000,
                    "drained after s": max(0.0, end - created_at),
                }
                return Outcome(created.ops, end - start, notes=notes)

            yield load

    return prepare


def _task_rows() -> list[Row]:
    title = f"standalone tasks over gRPC, created {_PER_CALL} per call, done by one SDK worker, created to completed"
    aim, floor = at_least(12_000, " (24,000)"), rate_floor("engine-c256")
    return [
        Row(f"tasks-c{calls}", f"{title}, {calls} calls in flight", _tasks(calls), aim=aim, floor=floor)
        for calls in (1, 4, 8)
    ]


@contextlib.asynccontextmanager
async def _one_by_one(stand: Stand, kind: str, acks: Acks) -> AsyncIterator[Load]:
    request = CreateTaskRequest(kind=kind)
    request.input.struct_value.update(_INPUT)
    raw = request.SerializeToString()
    async with rpc.method(stand.grpc_port, rpc.CREATE_TASK) as create:

        async def load(seconds: float) -> Outcome:
            latencies: list[float] = []
            start = time.monotonic()
            while (began := time.monotonic()) < start + seconds:
                wanted = acks.total + 1
                rpc.task_created(await create(raw))
                latencies.append(await acks.until(wanted) - began)
            return Outcome(len(latencies), time.monotonic() - start, latencies)

        yield load


@contextlib.asynccontextmanager
async def _near(stand: Stand) -> AsyncIterator[Load]:
    async with _one_by_one(stand, "bench.near", stand.near) as load:
        yield load


@contextlib.asynccontextmanager
async def _far(stand: Stand) -> AsyncIterator[Load]:
    acks = Acks()
    async with (
        stand.second_server() as port,
        stand.worker(port, "bench.far", acks),
        _one_by_one(stand, "bench.far", acks) as load,
    ):
        # The first server has to hear of the other's worker, or what it creates waits for a poll.
        await load(1.5)
        yield load


def _single_rows() -> list[Row]:
    def close(result: Result, results: Results) -> bool | None:
        near = results.get("task-one")
        return None if near is None else result.p50_ms <= near.p50_ms + 1

    title = "one task at a time over gRPC, from the call to the completion that the worker knows to be stored"
    floor = latency_floor("echo-grpc-c1", 2)
    return [
        Row("task-one", title, _near, aim=p50_under(2.5, " (1.6)"), floor=floor),
        Row("task-far", "the same, the worker on another server process", _far, floor=floor,
            aim=Aim("p50 <= near + 1 ms (0.5)", close)),
    ]  # fmt: skip


@contextlib.asynccontextmanager
async def _idle(stand: Stand) -> AsyncIterator[Load]:
    options = ["--target", f"127.0.0.1:{stand.grpc_port}", "--count", str(_IDLE_WORKERS)]
    async with stand.module("idlers", *options, kind="worker"):

        async def load(seconds: float) -> Outcome:
            start = time.monotonic()
            await asyncio.sleep(seconds)
            ensure(len(stand.pids()["worker"]) == 2, "a worker's process ended", stand.pids())
            return Outcome(1, time.monotonic() - start)

        yield load


def _idle_row() -> Row:
    def value(outcome: Outcome, cpu_s: dict[str, float]) -> float:
        return cpu_s["server"] / outcome.seconds * 100

    title = f"an idle server with {_IDLE_WORKERS} connected idle workers in one process (and the busy rows' one)"
    aim = value_under(2, "% of a core")
    return Row("idle-w100", title, _idle, unit="% of a core", value=value, aim=aim, stretch=10 / 3)


def rows() -> list[Row]:
    """The engine, tasks, and idleness."""
    return [*_engine_rows(), *_task_rows(), *_single_rows(), _idle_row()]
