"""What those who follow logs read: where logs end, and the lines of many runs at once."""

from collections.abc import Sequence
from typing import Final

from millstream.application.views.task_logs import LogEntry, LogSpan, LogState
from millstream.store.columns import numbers, uuids
from millstream.store.connections import Database
from millstream.store.task_logs import LINE_COLUMNS, entry_of

ENDS: Final = "SELECT run_id::text, last_seq FROM run_log_end WHERE run_id = ANY($1::text::uuid[])"
RUN_STATES: Final = "SELECT id::text, finished_us FROM run WHERE id = ANY($1::text::uuid[])"
TASK_STATES: Final = "SELECT id::text, attempt, finished_us FROM task WHERE id = ANY($1::text::uuid[])"
TASK_ENDS: Final = "SELECT task_id::text, attempt, last, final FROM task_log_end WHERE task_id = ANY($1::text::uuid[])"
RUNS_OWED: Final = """SELECT DISTINCT t.run_id::text FROM task t JOIN task_log_end e ON e.task_id = t.id
AND e.attempt = t.attempt WHERE t.run_id = ANY($1::text::uuid[]) AND e.final > e.last"""
# One day before the run's own: servers read the time a moment apart.
_SPANS: Final = """SELECT l.* FROM unnest($1::text::uuid[], $2::text::int4[], $3::text::int8[],
$4::text::uuid[]) k(run_id, day, after, task_id), LATERAL (SELECT {columns} FROM task_log t
WHERE t.day >= k.day - 1 AND t.run_id = k.run_id AND t.seq > k.after{of_task} ORDER BY t.seq LIMIT $5) l"""
SPANS: Final = _SPANS.format(columns=LINE_COLUMNS, of_task="")
TASK_SPANS: Final = _SPANS.format(columns=LINE_COLUMNS, of_task=" AND t.task_id = k.task_id")


class LogFeedReads:
    """Reads for those who follow logs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ends(self, run_ids: Sequence[str]) -> dict[str, int]:
        """The number of the last line of each run that has one."""
        rows = await self._database.fetch(ENDS, uuids(run_ids))
        return {row["run_id"]: row["last_seq"] for row in rows}

    async def states(self, run_ids: Sequence[str], task_ids: Sequence[str]) -> dict[str, LogState]:
        """Whether runs and tasks have ended, of those that there are. A run is never known to be complete: its
        workers do not tell which line is its last."""
        found: dict[str, LogState] = {}
        if run_ids:
            runs = await self._database.fetch(RUN_STATES, uuids(run_ids))
            over = [row["id"] for row in runs if row["finished_us"]]
            late = await self._database.fetch(RUNS_OWED, uuids(over)) if over else []
            owed = {row["run_id"] for row in late}
            found |= {row["id"]: LogState(row["finished_us"], False, row["id"] in owed) for row in runs}
        if task_ids:
            tasks = await self._database.fetch(TASK_STATES, uuids(task_ids))
            ended = [row["id"] for row in tasks if row["finished_us"]]
            ends = await self._database.fetch(TASK_ENDS, uuids(ended)) if ended else []
            lasts = {(row["task_id"], row["attempt"]): (row["final"], row["last"]) for row in ends}
            for row in tasks:
                final, last = lasts.get((row["id"], row["attempt"]), (-1, 0))
                found[row["id"]] = LogState(row["finished_us"], 0 <= final <= last, final > last)
        return found

    async def spans(self, wanted: Sequence[LogSpan], limit: int) -> dict[str, list[LogEntry]]:
        """Lines by run, in order; one more than `limit` of each where there are more."""
        found: dict[str, list[LogEntry]] = {}
        for statement, some in (
            (SPANS, [each for each in wanted if not each.task_id]),
            (TASK_SPANS, [each for each in wanted if each.task_id]),
        ):
            if some:
                for row in await self._database.fetch(statement, *columns_of(some), limit + 1):
                    found.setdefault(row["run_id"], []).append(entry_of(row))
        return found


def columns_of(spans: Sequence[LogSpan]) -> list[str]:
    """Parameters of SPANS and TASK_SPANS before the limit."""
    return [
        uuids(each.run_id for each in spans),
        numbers(each.day for each in spans),
        numbers(each.after for each in spans),
        uuids(each.task_id for each in spans),
    ]
