"""Reading what tasks log."""

from typing import Any, Final

from sqlalchemy import ColumnElement, Select, func, select

from millstream.application.paging import EXACT_TOTAL
from millstream.application.views.task_logs import LogEntry, LogQuery
from millstream.domain.task_logs import LogLine
from millstream.store.connections import Database, Record
from millstream.store.query import compiled, count, estimated, text_id, uid
from millstream.store.tables.task_logs import task_log

SEARCH_S: Final = 5.0
"""How long a text may be looked for."""
_COLUMNS: Final = tuple(text_id(column) if column.key in ("run_id", "task_id") else column for column in task_log.c)
LINE_COLUMNS: Final = "run_id::text, seq, task_id::text, attempt, n, level, at_us, logger, message, fields, cut"


class TaskLogReads:
    """Reads of lines. `from_day`: the day on which their run began, before which there are none."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def lines(
        self,
        query: LogQuery,
        from_day: int,
        beyond_seq: int | None,
        skip: int,
        limit: int,
        look_at: int | None = None,
    ) -> list[LogEntry]:
        """Lines in order, behind a number where one is given; one more than `limit` where there are more. `look_at`:
        among so many, whatever is asked for of them. Raises TooSlow where they are not found in time."""
        text, arguments = compiled(page_of(query, from_day, beyond_seq, skip, limit, look_at))
        if query.sifts:
            rows = await self._database.fetch_within(SEARCH_S, text, *arguments)
        else:
            rows = await self._database.fetch(text, *arguments)
        return [entry_of(row) for row in rows]

    async def count_lines(self, query: LogQuery, from_day: int) -> tuple[int, bool]:
        """How many match, and whether that is an estimate. Raises TooSlow."""
        statement = _wanted(query, from_day)
        if not query.sifts:
            return await count(self._database, statement)
        inner = statement.limit(EXACT_TOTAL + 1).subquery()
        text, arguments = compiled(select(func.count().label("found")).select_from(inner))
        found = int((await self._database.fetch_within(SEARCH_S, text, *arguments))[0]["found"])
        if found <= EXACT_TOTAL:
            return found, False
        return max(await estimated(self._database, statement), found), True


def page_of(
    query: LogQuery, from_day: int, beyond_seq: int | None, skip: int, limit: int, look_at: int | None = None
) -> Select[Any]:
    """The lines of a page, and one more."""
    statement = _ordered(_indexed(query, from_day), task_log.c.seq, query, beyond_seq)
    if look_at is None:
        statement = _sifted(statement, task_log.c, query)
    else:
        # Limited before it is sifted, so that no estimate of what is rare can have more read.
        some = statement.limit(look_at).subquery()
        statement = _ordered(_sifted(select(some), some.c, query), some.c.seq, query, None)
    return statement.offset(skip).limit(limit + 1)


def _wanted(query: LogQuery, from_day: int) -> Select[Any]:
    return _sifted(_indexed(query, from_day), task_log.c, query)


def _ordered(statement: Select[Any], seq: ColumnElement[int], query: LogQuery, beyond: int | None) -> Select[Any]:
    if beyond is not None:
        statement = statement.where(seq < beyond if query.newest_first else seq > beyond)
    return statement.order_by(seq.desc() if query.newest_first else seq)


def _indexed(query: LogQuery, from_day: int) -> Select[Any]:
    """Lines that an index leads to."""
    lines = task_log.c
    # One day more: servers read the time a moment apart.
    found = select(*_COLUMNS).where(lines.day >= from_day - 1, lines.run_id == uid(query.run_id))
    return found.where(lines.task_id == uid(query.task_id)) if query.task_id else found


def _sifted(found: Select[Any], lines: Any, query: LogQuery) -> Select[Any]:
    """Those of them that were asked for."""
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


def entry_of(row: Record) -> LogEntry:
    """A line of a row."""
    line = LogLine(row["level"], row["message"], row["at_us"], row["logger"], bytes(row["fields"]), row["cut"])
    return LogEntry(row["run_id"], row["seq"], row["task_id"], row["attempt"], row["n"], line)
