"""What an agent has made and taken up."""

from typing import Any

from sqlalchemy import Select, cast, func, select
from sqlalchemy.dialects.postgresql import ARRAY, UUID

from millstream.application.views.agents import AgentHistory
from millstream.domain.artifacts import Reader
from millstream.store.artifacts import visible_to
from millstream.store.connections import Database
from millstream.store.query import fetch
from millstream.store.tables.artifacts import artifact
from millstream.store.tables.tasks import task

_COUNTS: tuple[Any, ...] = (artifact.c.type.label("name"), func.count().label("n"))
LOOKED_AT_MOST = 100_000
"""Of a tenant's newest artifacts, and tasks: what the answer costs must not grow with what is stored."""


class HistoryReads:
    """Reads of histories."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def history(self, tenant: str, agent: str, reader: Reader | None, now_us: int) -> AgentHistory:
        """Artifacts by type, as far as the reader (None: all) may see them."""
        newest = (
            select(artifact).where(artifact.c.tenant == tenant).order_by(artifact.c.id.desc()).limit(LOOKED_AT_MOST)
        ).subquery()
        seen = visible_to(reader, now_us) if reader is not None else None
        made = select(newest.c.id).where(newest.c.produced_by == agent).subquery()
        tasks = select(task).where(task.c.tenant == tenant).order_by(task.c.id.desc()).limit(LOOKED_AT_MOST).subquery()
        ids = func.string_to_array(tasks.c.artifact_ids, ",")
        taken = (
            select(func.unnest(cast(ids, ARRAY(UUID))).label("id"))
            .where(tasks.c.agent == agent, tasks.c.started_us > 0)
            .subquery()
        )
        counts = []
        for found in (made, taken):
            statement: Select[Any] = (
                select(*_COUNTS)
                .join(found, artifact.c.id == found.c.id)
                .where(artifact.c.tenant == tenant)
                .group_by(artifact.c.type)
            )
            if seen is not None:
                statement = statement.where(seen)
            counts.append({row["name"]: row["n"] for row in await fetch(self._database, statement)})
        totals = [
            (await fetch(self._database, select(func.count().label("n")).select_from(each)))[0]["n"]
            for each in (newest, tasks)
        ]
        return AgentHistory(counts[0], counts[1], max(totals) >= LOOKED_AT_MOST)
