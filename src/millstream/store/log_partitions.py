"""Partitions of what tasks log, one a day: made ahead, and dropped whole when their time is over."""

import contextlib
from typing import Any, Final

import asyncpg

from millstream.application.ports import Conflicted
from millstream.store.connections import Database

AHEAD_DAYS: Final = 3
"""So many days have their partition before they come."""
LOCK_MS: Final = 500
"""How long to wait for readers, behind whom others would wait; the next sweep tries again."""
_PARTITIONS = """SELECT c.relname FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'task_log'::regclass"""
_OLD_TASKS = """DELETE FROM task_log_end WHERE ctid = ANY(ARRAY(SELECT e.ctid FROM task_log_end e WHERE e.day < $1
AND NOT EXISTS (SELECT 1 FROM task WHERE task.id = e.task_id AND task.finished_us = 0) ORDER BY e.day LIMIT $2))"""
# A run that goes on numbers its lines on, however long it was silent: who follows knows up to which it has them.
_OLD_RUNS = """DELETE FROM run_log_end WHERE ctid = ANY(ARRAY(SELECT e.ctid FROM run_log_end e WHERE e.day < $1
AND NOT EXISTS (SELECT 1 FROM run WHERE run.id = e.run_id AND run.finished_us = 0) ORDER BY e.day LIMIT $2))"""
_TAKEN = (asyncpg.DuplicateTableError, asyncpg.UniqueViolationError, asyncpg.DuplicateObjectError)


async def make_partition(connection: Any, day: int) -> None:
    """Make the partition of a day, unless another server is faster. It is made by itself and attached, which holds up
    nobody who reads or writes."""
    name = f"task_log_d{day}"
    with contextlib.suppress(*_TAKEN):
        async with connection.transaction():
            await connection.execute(f"CREATE TABLE {name} (LIKE task_log INCLUDING DEFAULTS INCLUDING CONSTRAINTS)")
            await connection.execute(
                f"ALTER TABLE task_log ATTACH PARTITION {name} FOR VALUES FROM ({day}) TO ({day + 1})"
            )


class LogPartitions:
    """Makes and drops partitions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def days(self) -> list[int]:
        """The days that have a partition."""
        rows = await self._database.fetch(_PARTITIONS)
        return sorted(int(row["relname"].removeprefix("task_log_d")) for row in rows)

    async def make(self, today: int) -> None:
        """Make the partitions of today and of the days ahead."""
        missing = {*range(today, today + AHEAD_DAYS + 1)}.difference(await self.days())
        for day in sorted(missing):
            async with self._database.transaction() as connection:
                await make_partition(connection, day)

    async def drop(self, before_day: int, limit: int) -> int:
        """Drop the lines of earlier days, and a step of what is known of where logs ended that have none any more;
        returns how many of that."""
        for day in await self.days():
            if day < before_day:
                with contextlib.suppress(Conflicted):
                    async with self._database.transaction() as connection:
                        await connection.execute(f"SET LOCAL lock_timeout = {LOCK_MS}")
                        await connection.execute(f"DROP TABLE IF EXISTS task_log_d{day}")
        dropped = 0
        for statement in (_OLD_TASKS, _OLD_RUNS):
            tag = await self._database.execute(statement, before_day, limit)
            dropped = max(dropped, int(tag.rsplit(" ", 1)[-1]))
        return dropped
