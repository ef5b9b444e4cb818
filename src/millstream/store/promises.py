"""Reading promises."""

from typing import Any

from sqlalchemy import Select, select, text

from millstream.application.views.promises import PromiseQuery
from millstream.domain.promises import STATUSES, PromiseState
from millstream.domain.runs import Task
from millstream.store.connections import Database
from millstream.store.query import count, fetch, text_id, uid
from millstream.store.rows import TASK_COLUMNS, task_of
from millstream.store.tables.tasks import task

_PROMISE = f"SELECT {TASK_COLUMNS} FROM task WHERE id = $1::text::uuid AND tenant = $2 AND queue = '~promise'"  # noqa: S608
_OF_KEY = f"""(SELECT {TASK_COLUMNS} FROM task WHERE tenant = $1 AND promise_key = $2 AND promise_key <> ''
AND finished_us = 0) UNION ALL (SELECT {TASK_COLUMNS} FROM task WHERE tenant = $1 AND promise_key = $2
AND promise_key <> '' AND finished_us > 0 ORDER BY finished_us DESC LIMIT 1) LIMIT 1"""  # noqa: S608  # our columns
# As the indexes have it: what is passed as a parameter no plan made for all of them may use.
_IS_PROMISE = text("queue = '~promise'")
_HAS_KEY = text("promise_key <> ''")
_IS_OPEN = text("status = 2")
_LIST = tuple(
    text_id(column) if column.key in ("id", "run_id") else column for column in task.c if column.key != "input"
)


class PromiseReads:
    """Reads of promises."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def promise(self, tenant: str, promise_id: str) -> Task | None:
        """A promise of a tenant, with its input."""
        row = await self._database.fetchrow(_PROMISE, promise_id, tenant)
        return task_of(row) if row else None

    async def promise_of_key(self, tenant: str, key: str) -> Task | None:
        """The open promise of a key, or else the latest."""
        row = await self._database.fetchrow(_OF_KEY, tenant, key)
        return task_of(row) if row else None

    async def promises(self, tenant: str, query: PromiseQuery, after_id: str, skip: int, limit: int) -> list[Task]:
        """Promises without input, newest first; one more than `limit` where there are more."""
        statement = _promises(tenant, query).order_by(task.c.id.desc())
        if after_id:
            statement = statement.where(task.c.id < uid(after_id))
        rows = await fetch(self._database, statement.offset(skip).limit(limit + 1))
        return [task_of({**row, "input": b""}) for row in rows]

    async def count_promises(self, tenant: str, query: PromiseQuery) -> tuple[int, bool]:
        """How many match, and whether that is an estimate."""
        return await count(self._database, _promises(tenant, query))


def _promises(tenant: str, query: PromiseQuery) -> Select[Any]:
    found = select(*_LIST).where(task.c.tenant == tenant, _IS_PROMISE)
    if query.state is PromiseState.PENDING:
        found = found.where(_IS_OPEN)
    elif query.state is not None:
        found = found.where(task.c.status == int(STATUSES[query.state]))
    if query.key:
        found = found.where(task.c.promise_key == query.key, _HAS_KEY)
    if query.name:
        found = found.where(task.c.kind == query.name)
    if query.run_id:
        found = found.where(task.c.run_id == uid(query.run_id))
    return found
