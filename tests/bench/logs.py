"""Rows of logs: how many lines are stored, and what a flood of them costs the tasks beside it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from tests.bench import rpc
from tests.bench.load import ensure
from tests.bench.meters import resident_bytes
from tests.bench.report import Load, Outcome, Row, at_least, percentile_ms, value_under
from tests.bench.stand import Stand

from millstream.sdk import Client
from millstream.v1.task_log_service_pb2 import WatchTaskLogsRequest
from millstream.v1.task_service_pb2 import CreateTaskRequest

_LINES = 10_000
_QUEUE = "bench-logs"
_STORED = "SELECT coalesce(max(last), 0), coalesce(max(cut), 0) FROM task_log_end WHERE task_id = $1"


async def _stored(connection: Any, task_id: str, count: int = 0) -> tuple[int, int]:
    """How many lines of a task were taken, once there are so many; and how many of them were cut."""
    async with asyncio.timeout(60):
        while True:
            last, cut = await connection.fetchrow(_STORED, task_id)
            if last >= count:
                return int(last), int(cut)
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def _logger(stand: Stand) -> AsyncIterator[tuple[Client, Any]]:
    """A client, and a connection to the database, beside a worker that logs."""
    target = f"127.0.0.1:{stand.grpc_port}"
    connection = await stand.connect()
    try:
        async with stand.module("logger", "--target", target, kind="worker"), Client(target) as client:
            yield client, connection
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def _ingest(stand: Stand) -> AsyncIterator[Load]:
    async with _logger(stand) as (client, connection):

        async def load(seconds: float) -> Outcome:
            start, lines = time.monotonic(), 0
            while time.monotonic() < start + seconds:
                task = await client.tasks.create("bench.log", _LINES, queue=_QUEUE)
                taken, cut = await _stored(connection, task.task_id, _LINES)
                ensure((taken, cut) == (_LINES, 0), "lines are missing", (taken, cut))
                lines += taken
            return Outcome(lines, time.monotonic() - start)

        yield load


async def _tasks(stand: Stand, create: Any, raw: bytes, seconds: float) -> list[float]:
    """Latencies of tasks, one at a time, from the call to the completion that the worker knows to be stored."""
    latencies: list[float] = []
    end = time.monotonic() + seconds
    while (began := time.monotonic()) < end:
        wanted = stand.near.total + 1
        rpc.task_created(await create(raw))
        latencies.append(await stand.near.until(wanted) - began)
    return latencies


@contextlib.asynccontextmanager
async def _flood(stand: Stand) -> AsyncIterator[Load]:
    wanted = CreateTaskRequest(kind="bench.near")
    wanted.input.struct_value.update({"number": 17})
    request = wanted.SerializeToString()
    async with _logger(stand) as (client, connection), rpc.method(stand.grpc_port, rpc.CREATE_TASK) as create:

        async def load(seconds: float) -> Outcome:
            start = time.monotonic()
            before = await _tasks(stand, create, request, seconds)
            await client.tasks.create("bench.mute", seconds, queue=_QUEUE)
            mute = await _tasks(stand, create, request, seconds)
            memory = sum(resident_bytes(pid) for pid in stand.pids()["server"])
            task = await client.tasks.create("bench.flood", seconds, queue=_QUEUE)
            # A reader that does not read: what it leaves waits in the database.
            reader: Any = client.logs._calls._channel.unary_stream(
                "/millstream.v1.TaskLogService/WatchTaskLogs", WatchTaskLogsRequest.SerializeToString
            )(WatchTaskLogsRequest(task_id=task.task_id))
            during = await _tasks(stand, create, request, seconds)
            more = sum(resident_bytes(pid) for pid in stand.pids()["server"]) - memory
            flooded = time.monotonic()
            while not (done := await client.tasks.get(task.task_id)).finished_at:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            said: Any = done.output
            taken, cut = await _stored(connection, task.task_id)
            reader.cancel()
            notes = {
                "p99 ms without": percentile_ms(before, 0.99) or 0.0,
                "p99 ms not sent": percentile_ms(mute, 0.99) or 0.0,
                "p99 ms": percentile_ms(during, 0.99) or 0.0,
                "lines/s": taken / seconds,
                "said/s": said["said"] / seconds,
                "cut": float(cut),
                "ended after s": time.monotonic() - flooded,
                "server MiB more": more / 1024 / 1024,
            }
            return Outcome(len(during), time.monotonic() - start, during, notes=notes)

        yield load


def rows() -> list[Row]:
    """How many lines are stored, and what a flood costs."""

    def slower(outcome: Outcome, _: dict[str, float]) -> float:
        return (outcome.notes["p99 ms"] / outcome.notes["p99 ms without"] - 1) * 100

    return [
        Row("log-ingest", "lines logged by a task of the SDK, until they are stored", _ingest, aim=at_least(20_000)),
        Row(
            "log-flood",
            "one task at a time beside one that logs as fast as it can and a reader that does not read, against none",
            _flood, unit="% more p99", value=slower, aim=value_under(10, "% more"),
        ),
    ]  # fmt: skip
