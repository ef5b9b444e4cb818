"""Writes what tasks log, on a connection of its own: neither the committer nor the readers wait for it.

Whoever writes lines of a run holds the row that says where its log ends. So its lines are numbered without gaps in the
order of commits, lines that come twice are known by the numbers that their worker gave them, and a write whose outcome
was lost may simply be made again.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import asyncpg

from millstream.domain.errors import LeaseLost, MillstreamError, NotFound
from millstream.domain.runs import DAY_US
from millstream.domain.task_logs import LineLevel, LogAck, LogBatch, LogBounds, LogEnd, LogLine, cut_message, take
from millstream.store.columns import blobs, names, numbers, texts, uuids
from millstream.store.connections import LOST, Record, connect, translated
from millstream.store.log_partitions import make_partition

LATE_US: Final = 600_000_000
"""Lines of an attempt are taken for so long after its task has ended."""
SUPERSEDED_US: Final = 10_000_000
"""And for so long after another attempt has begun, as long as that has not logged: the last lines of one, and the first
report that another answers at once, go different ways."""
ROWS_AT_ONCE: Final = 100
"""Encoded at once: a millisecond or two, after which others have their turn."""
_SETTINGS: Final = {
    "jit": "off",
    "application_name": "millstream logs",
    "lock_timeout": "5000",
    "idle_in_transaction_session_timeout": "2000",
    "tcp_user_timeout": "5000",
}
_TASKS = """SELECT id::text, tenant, run_id::text, attempt, started_us, finished_us FROM task
WHERE id = ANY($1::text::uuid[])"""
_LOCK_RUNS = """SELECT run_id::text, last_seq FROM run_log_end WHERE run_id = ANY($1::text::uuid[])
ORDER BY run_log_end.run_id FOR UPDATE"""
_MAKE_RUNS = (
    """INSERT INTO run_log_end (run_id, day) SELECT *, $2 FROM unnest($1::text::uuid[]) ON CONFLICT DO NOTHING"""
)
_ENDS = """SELECT task_id::text, run_id::text, attempt, last, final, lines, size_bytes, cut, mark_day, mark_seq
FROM task_log_end WHERE task_id = ANY($1::text::uuid[])"""
_INSERT = """INSERT INTO task_log (day, run_id, seq, task_id, attempt, n, level, at_us, logger, message, fields, cut)
SELECT $1, u.run_id, u.seq, u.task_id, u.attempt, u.n, u.level, u.at_us, u.logger, u.message,
substr($10::bytea, u.start, u.size), u.cut
FROM unnest($2::text::uuid[], $3::text::int8[], $4::text::uuid[], $5::text::int4[], $6::text::int4[],
$7::text::int2[], $8::text::int8[], $9::text::text[], $13::text::text[], $11::text::int4[], $12::text::int4[],
$14::text::int4[]) u(run_id, seq, task_id, attempt, n, level, at_us, logger, message, start, size, cut)"""
_UPDATE_RUNS = """UPDATE run_log_end SET last_seq = u.last_seq, day = $3
FROM unnest($1::text::uuid[], $2::text::int8[]) u(run_id, last_seq) WHERE run_log_end.run_id = u.run_id"""
_UPDATE_TASKS = """INSERT INTO task_log_end (task_id, run_id, day, attempt, last, final, lines, size_bytes, cut,
mark_day, mark_seq) SELECT u.task_id, u.run_id, $1, u.attempt, u.last, u.final, u.lines, u.size_bytes, u.cut,
u.mark_day, u.mark_seq
FROM unnest($2::text::uuid[], $3::text::uuid[], $4::text::int4[], $5::text::int4[], $6::text::int4[], $7::text::int4[],
$8::text::int8[], $9::text::int4[], $10::text::int4[], $11::text::int8[])
u(task_id, run_id, attempt, last, final, lines, size_bytes, cut, mark_day, mark_seq)
ON CONFLICT (task_id) DO UPDATE SET day = excluded.day, attempt = excluded.attempt, last = excluded.last,
final = excluded.final, lines = excluded.lines, size_bytes = excluded.size_bytes, cut = excluded.cut,
mark_day = excluded.mark_day, mark_seq = excluded.mark_seq"""
_MARKS = """UPDATE task_log SET cut = u.cut, message = u.message
FROM unnest($1::text::int4[], $2::text::uuid[], $3::text::int8[], $4::text::int4[], $5::text::text[])
u(day, run_id, seq, cut, message)
WHERE task_log.day = u.day AND task_log.run_id = u.run_id AND task_log.seq = u.seq"""


OfTenant = tuple[str, LogBatch]
"""A batch, behind the tenant that its sender acts in."""


@dataclass(slots=True)
class Written:
    """What became of batches, in their order; the runs, by tenant, that have new lines; how many lines these are, and
    how many were cut."""

    acks: list[LogAck] = field(default_factory=list)
    runs: set[tuple[str, str]] = field(default_factory=set)
    lines: int = 0
    cut: int = 0


@dataclass(slots=True)
class _Log:
    """The log of a run while it is written."""

    tenant: str
    seq: int
    ends: dict[str, LogEnd] = field(default_factory=dict)
    rows: list[tuple[int, str, int, int, LogLine]] = field(default_factory=list)
    marks: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Marks of cut lines, to be brought up to date: (day, how many) by number."""


class LogWriter:
    """Writes lines. To be used by one task at a time."""

    def __init__(self, url: str, bounds: LogBounds) -> None:
        self._url = url
        self._bounds = bounds
        self._connection: asyncpg.Connection[Record] | None = None

    async def write(self, batches: Sequence[OfTenant], now_us: int) -> Written:
        """Write what is new of the batches, all or nothing. Raises the ports' errors."""
        try:
            with translated():
                connection = await self._connected()
                try:
                    return await self._write(connection, batches, now_us)
                except asyncpg.CheckViolationError:
                    # Nobody has made the day's partition yet.
                    await make_partition(connection, now_us // DAY_US)
                    return await self._write(connection, batches, now_us)
        except BaseException:
            # Whatever came between: a connection in the middle of something is of no use.
            await self.close()
            raise

    async def close(self) -> None:
        """Disconnect."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(*LOST):
                connection.terminate()

    async def _connected(self) -> "asyncpg.Connection[Record]":
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(self._url, _SETTINGS)
        return self._connection

    async def _write(
        self, connection: "asyncpg.Connection[Record]", batches: Sequence[OfTenant], now_us: int
    ) -> Written:
        out, day = Written(), now_us // DAY_US
        async with connection.transaction():
            tasks = {
                row["id"]: row for row in await connection.fetch(_TASKS, uuids({batch.task_id for _, batch in batches}))
            }
            faults = [_fault(tenant, batch, tasks.get(batch.task_id), now_us) for tenant, batch in batches]
            fit = [batch for (_, batch), fault in zip(batches, faults, strict=True) if fault is None]
            await asyncio.sleep(0)
            logs = await self._lock(connection, [tasks[batch.task_id] for batch in fit], day)
            for (_, batch), fault in zip(batches, faults, strict=True):
                if fault is not None:
                    out.acks.append(LogAck(batch.task_id, batch.attempt, 0, error=fault))
                    continue
                out.acks.append(self._take(logs[tasks[batch.task_id]["run_id"]], batch, day, out))
                await asyncio.sleep(0)
            await self._store(connection, logs, day)
        told = {tasks[batch.task_id]["run_id"] for batch in fit if batch.final is not None}
        out.runs = {(log.tenant, run_id) for run_id, log in logs.items() if log.rows or run_id in told}
        return out

    async def _lock(self, connection: "asyncpg.Connection[Record]", tasks: Sequence[Any], day: int) -> dict[str, _Log]:
        """The logs of the tasks' runs, which nobody else writes until the end of the transaction."""
        runs = {row["run_id"]: row["tenant"] for row in tasks}
        if not runs:
            return {}
        ids = uuids(sorted(runs))
        rows = await connection.fetch(_LOCK_RUNS, ids)
        if len(rows) < len(runs):
            missing = sorted(runs.keys() - {row["run_id"] for row in rows})
            await connection.execute(_MAKE_RUNS, uuids(missing), day)
            rows = await connection.fetch(_LOCK_RUNS, ids)
        logs = {row["run_id"]: _Log(runs[row["run_id"]], row["last_seq"]) for row in rows}
        for row in await connection.fetch(_ENDS, uuids({row["id"] for row in tasks})):
            logs[row["run_id"]].ends[row["task_id"]] = LogEnd(**row)
        return logs

    def _take(self, log: _Log, batch: LogBatch, day: int, out: Written) -> LogAck:
        """Take a batch into the log of its run."""
        before = log.ends.get(batch.task_id) or LogEnd(batch.task_id, "")
        taken = take(before, batch, self._bounds)
        end = taken.end
        out.lines += len(taken.kept)
        out.cut += end.cut - (before.cut if before.attempt == end.attempt else 0)
        for n, line in taken.kept:
            log.seq += 1
            log.rows.append((log.seq, batch.task_id, batch.attempt, n, line))
        if end.cut and not end.mark_seq:
            log.seq += 1
            end = replace(end, mark_day=day, mark_seq=log.seq)
            at_us = batch.lines[-1].at_us
            mark = LogLine(LineLevel.WARN, cut_message(end.cut, self._bounds), at_us, cut=end.cut)
            log.rows.append((log.seq, batch.task_id, batch.attempt, taken.cut_from, mark))
        elif end.cut > before.cut:
            log.marks[end.mark_seq] = (end.mark_day, end.cut)
        log.ends[batch.task_id] = end
        return taken.ack

    async def _store(self, connection: "asyncpg.Connection[Record]", logs: dict[str, _Log], day: int) -> None:
        rows = [(run_id, *row) for run_id, log in logs.items() for row in log.rows]
        for start in range(0, len(rows), ROWS_AT_ONCE):
            await connection.execute(_INSERT, day, *_columns(rows[start : start + ROWS_AT_ONCE]))
            await asyncio.sleep(0)
        changed = {run_id: log for run_id, log in logs.items() if log.rows}
        if changed:
            await connection.execute(_UPDATE_RUNS, uuids(changed), numbers(log.seq for log in changed.values()), day)
        ends = [(run_id, end) for run_id, log in logs.items() for end in log.ends.values() if end.attempt]
        if ends:
            await connection.execute(_UPDATE_TASKS, day, *_end_columns(ends))
        marks = [(run_id, seq, *mark) for run_id, log in logs.items() for seq, mark in log.marks.items()]
        if marks:
            await connection.execute(
                _MARKS,
                numbers(mark_day for _, _, mark_day, _ in marks),
                uuids(run_id for run_id, *_ in marks),
                numbers(seq for _, seq, _, _ in marks),
                numbers(cut for *_, cut in marks),
                texts(cut_message(cut, self._bounds) for *_, cut in marks),
            )


def _fault(tenant: str, batch: LogBatch, task: Any, now_us: int) -> MillstreamError | None:
    """Why lines are not the sender's to log, if they are not."""
    if not batch.task_id and batch.fault is not None:
        return batch.fault
    if task is None or task["tenant"] != tenant:
        return NotFound(f"there is no task {batch.task_id}")
    if batch.attempt > task["attempt"]:
        return LeaseLost(f"attempt {batch.attempt} of task {batch.task_id} has not begun")
    if batch.attempt < task["attempt"] and now_us > task["started_us"] + SUPERSEDED_US:
        return LeaseLost(f"attempt {batch.attempt} of task {batch.task_id} is over: another runs")
    if task["finished_us"] and now_us > task["finished_us"] + LATE_US:
        return LeaseLost(f"task {batch.task_id} ended long ago: it logs no more")
    return None


def _columns(rows: Sequence[tuple[str, int, str, int, int, LogLine]]) -> list[object]:
    """Parameters of _INSERT behind the day."""
    run_ids, seqs, task_ids, attempts, ns, lines = zip(*rows, strict=True)
    data, starts, sizes = blobs([line.fields for line in lines])
    return [
        uuids(run_ids),
        numbers(seqs),
        uuids(task_ids),
        numbers(attempts),
        numbers(ns),
        numbers(line.level for line in lines),
        numbers(line.at_us for line in lines),
        names(line.logger for line in lines),
        data,
        starts,
        sizes,
        texts(line.message for line in lines),
        numbers(line.cut for line in lines),
    ]


def _end_columns(ends: Sequence[tuple[str, LogEnd]]) -> list[object]:
    """Parameters of _UPDATE_TASKS behind the day."""
    found = [end for _, end in ends]
    return [
        uuids(end.task_id for end in found),
        uuids(run_id for run_id, _ in ends),
        numbers(end.attempt for end in found),
        numbers(end.last for end in found),
        numbers(end.final for end in found),
        numbers(end.lines for end in found),
        numbers(end.size_bytes for end in found),
        numbers(end.cut for end in found),
        numbers(end.mark_day for end in found),
        numbers(end.mark_seq for end in found),
    ]
