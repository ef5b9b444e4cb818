"""Reading dead letters: tasks that failed finally, and that nobody dropped."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, literal_column, select, tuple_

from millstream.application.views.dead_letters import DeadLetterQuery
from millstream.domain.runs import Task
from millstream.store.columns import uuids
from millstream.store.connections import Database
from millstream.store.query import count, fetch, text_id, uid
from millstream.store.rows import task_of
from millstream.store.tables.tasks import task

_DEAD: ColumnElement[bool] = literal_column("task.status = 5 AND NOT task.dropped")
"""The predicate of their index, to the letter."""
_LISTED = tuple(
    text_id(column) if column.key in ("id", "run_id") else column for column in task.c if column.key != "input"
)


_BEREFT = """SELECT task.id::text FROM task WHERE id = ANY($1::text::uuid[]) AND tenant = $2 AND artifact_ids <> ''
AND EXISTS (SELECT 1 FROM unnest(string_to_array(artifact_ids, ',')) given(id) WHERE NOT EXISTS
(SELECT 1 FROM artifact WHERE artifact.tenant = task.tenant AND artifact.id = given.id::uuid))"""


class DeadLetterReads:
    """Reads of dead letters, of all kinds of runs; those that no worker was given are their run's own matter."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def dead_letters(
        self, tenant: str, query: DeadLetterQuery, after: tuple[int, str] | None, skip: int, limit: int
    ) -> list[Task]:
        """Dead letters without input, the latest first; one more than `limit` where there are more."""
        statement = _dead(tenant, query).order_by(task.c.finished_us.desc(), task.c.id.desc())
        if after is not None:
            statement = statement.where(tuple_(task.c.finished_us, task.c.id) < tuple_(after[0], uid(after[1])))
        rows = await fetch(self._database, statement.offset(skip).limit(limit + 1))
        return [task_of({**row, "input": b""}) for row in rows]

    async def dead_ids(self, tenant: str, query: DeadLetterQuery, limit: int) -> list[str]:
        """Ids of dead letters, the oldest first."""
        found = _dead(tenant, query).with_only_columns(text_id(task.c.id)).order_by(task.c.finished_us, task.c.id)
        return [row["id"] for row in await fetch(self._database, found.limit(limit))]

    async def bereft(self, tenant: str, task_ids: Sequence[str]) -> set[str]:
        """Those of the tasks of which an artifact that they were given is gone."""
        return {row["id"] for row in await self._database.fetch(_BEREFT, uuids(task_ids), tenant)}

    async def count_dead(self, tenant: str, query: DeadLetterQuery) -> tuple[int, bool]:
        """How many match, and whether that is an estimate."""
        return await count(self._database, _dead(tenant, query))


def _dead(tenant: str, query: DeadLetterQuery) -> Select[Any]:
    found = select(*_LISTED).where(task.c.tenant == tenant, _DEAD, literal_column("task.queue NOT LIKE '~%'"))
    if query.kind:
        found = found.where(task.c.kind == query.kind)
    if query.queue:
        found = found.where(task.c.queue == query.queue)
    if query.error_code:
        found = found.where(task.c.error_code == query.error_code)
    if query.since_us:
        found = found.where(task.c.finished_us >= query.since_us)
    if query.until_us:
        found = found.where(task.c.finished_us < query.until_us)
    return found
