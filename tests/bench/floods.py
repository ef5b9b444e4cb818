"""The row of a long flood of logs: what becomes of its lines, of who follows them, and of the server."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import asyncpg
from tests.bench.meters import resident_bytes
from tests.bench.report import Aim, Load, Outcome, Row, percentile_ms
from tests.bench.stand import Stand, extra_server

from millstream.sdk import Client
from millstream.v1.task_log_service_pb2 import WatchTaskLogsRequest, WatchTaskLogsResponse

_NAME = "flood"
_QUEUE = "bench-logs"
_METHOD = "/millstream.v1.TaskLogService/WatchTaskLogs"
_LOOK_S = 0.25
_LATE_S = 300.0
"""What a reader may need to come to the end."""
_BOUNDS = {"MILLSTREAM_MAX_LOG_LINES_PER_TASK": "10000000", "MILLSTREAM_MAX_LOG_BYTES_PER_TASK": str(1 << 30)}
"""All is kept: a flood that is cut is soon none any more."""
_KEPT = """SELECT count(*) FILTER (WHERE cut = 0) AS lines, coalesce(sum(cut), 0)::int8 AS cut, count(*) AS rows
FROM task_log WHERE task_id = $1"""


@dataclass
class _Reader:
    """One who follows the log of a task, and notes how late each line came."""

    delays_s: list[float] = field(default_factory=list)
    lines: int = 0
    cut: int = 0
    doubled: int = 0
    during: int = 0
    """Lines that it had when the flood ended."""

    async def read(self, calls: Any) -> None:
        """To the end of the log."""
        last = 0
        async for raw in calls:
            message = WatchTaskLogsResponse.FromString(raw)
            if message.ended:
                return
            if not message.HasField("entry"):
                continue
            entry = message.entry
            at = entry.timestamp
            self.delays_s.append(time.time() - at.seconds - at.nanos / 1e9)
            self.lines += not entry.cut
            self.cut += entry.cut
            self.doubled += entry.sequence <= last
            last = entry.sequence


async def _peak(pid: int, most: list[int]) -> None:
    """Watch the memory of a process, until cancelled."""
    while True:
        most[0] = max(most[0], resident_bytes(pid))
        await asyncio.sleep(_LOOK_S)


async def _done(client: Client, task_id: str) -> int:
    """The lines that a task said it would log, once it has ended."""
    while not (done := await client.tasks.get(task_id)).finished_at:  # noqa: ASYNC110  # to watch it would be a load
        await asyncio.sleep(_LOOK_S)
    said: Any = done.output
    return int(said["said"])


async def _flooded(client: Client, database: asyncpg.Connection[Any], pid: int, seconds: float) -> Outcome:
    before, start = resident_bytes(pid), time.monotonic()
    most = [before]
    task = await client.tasks.create("bench.flood", seconds, queue=_QUEUE)
    follow: Any = client.logs._calls._channel.unary_stream(_METHOD, WatchTaskLogsRequest.SerializeToString)
    request = WatchTaskLogsRequest(task_id=task.task_id)
    stopped, live, reader = follow(request), follow(request), _Reader()
    reading, looking = asyncio.create_task(reader.read(live)), asyncio.create_task(_peak(pid, most))
    said = await _done(client, task.task_id)
    flooded, reader.during = time.monotonic(), reader.lines + reader.cut
    async with asyncio.timeout(_LATE_S):
        await reading
    ended = time.monotonic()
    looking.cancel()
    stopped.cancel()
    (kept,) = await database.fetch(_KEPT, task.task_id)
    notes = {
        "said/s": said / seconds,
        "lines lost": float(said - kept["lines"] - kept["cut"]),
        "not shown to the reader": float(said - reader.lines - reader.cut),
        "shown twice": float(reader.doubled),
        "% cut by the worker": 100 * kept["cut"] / max(said, 1),
        "stored/s": kept["rows"] / seconds,
        "% shown when the flood ended": 100 * reader.during / max(said, 1),
        "reader's end after s": ended - flooded,
        "server MiB more at most": (most[0] - before) / 1024 / 1024,
        "server MiB more after": (resident_bytes(pid) - before) / 1024 / 1024,
    }
    return Outcome(kept["rows"], ended - start, reader.delays_s, notes)


@contextlib.asynccontextmanager
async def _flood(stand: Stand) -> AsyncIterator[Load]:
    """A server of its own, whose memory nothing else uses."""
    database = await stand.connect()
    servers = set(stand.pids()["server"])
    try:
        async with extra_server(stand, _NAME, _BOUNDS) as port:
            target = f"127.0.0.1:{port}"
            (pid,) = set(stand.pids()["server"]) - servers
            async with stand.module("logger", "--target", target, kind="worker"), Client(target) as client:
                yield lambda seconds: _flooded(client, database, pid, seconds)
    finally:
        await database.close()


def rows() -> list[Row]:
    """The flood, a minute long with windows of the usual length."""

    def late(outcome: Outcome, _: dict[str, float]) -> float:
        return percentile_ms(outcome.latencies_s, 0.99) or 0.0

    kept = ("lines lost", "not shown to the reader", "shown twice")
    none_lost = Aim("all there", lambda result, _: not any(result.median.notes[name] for name in kept))
    title = "one task logs for a minute as fast as it can, one reader does not read: how late each line reaches another"
    return [Row("log-flood-60", title, _flood, unit="ms p99", value=late, aim=none_lost, stretch=20, rounds=1)]
