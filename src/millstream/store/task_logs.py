"""Reading what tasks log."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Select, func, select

from millstream.application.paging import EXACT_TOTAL
from millstream.application.views.task_logs import LogEntry, LogQuery
from millstream.domain.task_logs import LogLine
from millstream.store.columns import uuids
from millstream.store.connections import Database, Record
from millstream.store.query import compiled, count, estimated, text_id, uid
from millstream.store.tables.task_logs import task_log

SEARCH_S: Final = 5.0
"""How long a text may be looked for."""
_COLUMNS: Final = tuple(text_id(column) if column.key in ("run_id", "task_id") else column for column in task_log.c)
_RUN_ENDS: Final = "SELECT run_id::text, last_seq FROM run_log_end WHERE run_id = ANY($1::text::uuid[])"
_END: Final = "SELECT attempt, last, final FROM task_log_end WHERE task_id = $1::text::uuid"


class TaskLogReads:
    """Reads of lines. `from_day`: the day on which their run began, before which there are none."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def lines(
        self, query: LogQuery, from_day: int, beyond_seq: int | None, skip: int, limit: int
    ) -> list[LogEntry]:
        """Lines in order, behind a number where one is given; one more than `limit` where there are more. Raises
        TooSlow where a text is not found in time."""
        backwards = query.newest_first
        statement = _wanted(query, from_day).order_by(task_log.c.seq.desc() if backwards else task_log.c.seq)
        if beyond_seq is not None:
            statement = statement.where(task_log.c.seq < beyond_seq if backwards else task_log.c.seq > beyond_seq)
        text, arguments = compiled(statement.offset(skip).limit(limit + 1))
        if query.text:
            rows = await self._database.fetch_within(SEARCH_S, text, *arguments)
        else:
            rows = await self._database.fetch(text, *arguments)
        return [_entry(row) for row in rows]

    async def count_lines(self, query: LogQuery, from_day: int) -> tuple[int, bool]:
        """How many match, and whether that is an estimate. Raises TooSlow."""
        statement = _wanted(query, from_day)
        if not query.text:
            return await count(self._database, statement)
        inner = statement.limit(EXACT_TOTAL + 1).subquery()
        text, arguments = compiled(select(func.count().label("found")).select_from(inner))
        found = int((await self._database.fetch_within(SEARCH_S, text, *arguments))[0]["found"])
        if found <= EXACT_TOTAL:
            return found, False
        return max(await estimated(self._database, statement), found), True

    async def log_end(self, task_id: str) -> tuple[int, bool]:
        """The attempt of a task that logged last (0: none did), and whether nothing more of it comes."""
        row = await self._database.fetchrow(_END, task_id)
        return (row["attempt"], 0 <= row["final"] <= row["last"]) if row else (0, False)

    async def run_log_ends(self, run_ids: Sequence[str]) -> dict[str, int]:
        """The number of the last line of each run that has one."""
        rows = await self._database.fetch(_RUN_ENDS, uuids(run_ids))
        return {row["run_id"]: row["last_seq"] for row in rows}


def _wanted(query: LogQuery, from_day: int) -> Select[Any]:
    lines = task_log.c
    # One day more: servers read the time a moment apart.
    found = select(*_COLUMNS).where(lines.day >= from_day - 1, lines.run_id == uid(query.run_id))
    if query.task_id:
        found = found.where(lines.task_id == uid(query.task_id))
    if query.attempt:
        found = found.where(lines.attempt == query.attempt)
    if query.levels:
        found = found.where(lines.level.in_(query.levels))
    if query.text:
        found = found.where(lines.message.icontains(query.text, autoescape=True))
    if query.since_us:
        found = found.where(lines.at_us >= query.since_us)
    if query.until_us:
        found = found.where(lines.at_us < query.until_us)
    return found


def _entry(row: Record) -> LogEntry:
    line = LogLine(row["level"], row["message"], row["at_us"], row["logger"], bytes(row["fields"]), row["cut"])
    return LogEntry(row["run_id"], row["seq"], row["task_id"], row["attempt"], row["n"], line)
