"""Workflows: their definitions in versions."""

from collections.abc import Iterable
from uuid import UUID

import asyncpg
from sqlalchemy import ColumnElement, Select, select, tuple_

from millstream.application.views.workflows import WorkflowHead, WorkflowQuery, WorkflowVersion
from millstream.store.connections import Database, Record
from millstream.store.query import count, fetch, text_id
from millstream.store.tables.workflows import workflow

_HEAD = "tenant, name, id::text AS id, version, description, created_us, created_by, updated_us, deleted_us"
_VERSION = "name, version, workflow_id::text AS workflow_id, document, created_us, created_by"
_NAMED = f"SELECT {_HEAD} FROM workflow WHERE tenant = $1 AND name = ANY($2::text[])"  # noqa: S608
# The name first: it may look like an id.
_FOUND = f"""SELECT {_HEAD} FROM workflow WHERE tenant = $1 AND (name = $2 OR id = $3::text::uuid)
ORDER BY name = $2 DESC LIMIT 1"""  # noqa: S608
_DOCUMENT = f"SELECT {_VERSION} FROM workflow_version WHERE tenant = $1 AND name = $2 AND version = $3::int8"  # noqa: S608
_VERSIONS = """SELECT name, version, workflow_id::text AS workflow_id, '' AS document, created_us, created_by
FROM workflow_version WHERE tenant = $1 AND name = $2 AND version < $3::int8 ORDER BY version DESC OFFSET $4 LIMIT $5"""
_COUNT_VERSIONS = "SELECT count(*) FROM workflow_version WHERE tenant = $1 AND name = $2"
_COUNT = "SELECT count(*) FROM workflow WHERE tenant = $1 AND deleted_us = 0"
_PUT = """INSERT INTO workflow (tenant, name, id, version, description, created_us, created_by, updated_us, deleted_us)
VALUES ($1, $2, $3::text::uuid, $4, $5, $6, $7, $8, $9) ON CONFLICT (tenant, name) DO UPDATE SET id = excluded.id,
version = excluded.version, description = excluded.description, created_us = excluded.created_us,
created_by = excluded.created_by, updated_us = excluded.updated_us, deleted_us = excluded.deleted_us"""
_ADD = """INSERT INTO workflow_version (tenant, name, version, workflow_id, document, created_us, created_by)
VALUES ($1, $2, $3, $4::text::uuid, $5, $6, $7)"""

_LIST = tuple(text_id(each) if each.key == "id" else each for each in workflow.c)


def _uuid(text: str) -> str | None:
    try:
        return str(UUID(text))
    except ValueError:
        return None


def _version_of(row: Record) -> WorkflowVersion:
    return WorkflowVersion(**row)


class WorkflowRows:
    """Workflows within a transaction that holds the tenant's registry; see store.registry.

    Attributes:
        moved: Something was changed.
    """

    def __init__(self, connection: "asyncpg.pool.PoolConnectionProxy[Record]", tenant: str) -> None:
        self._connection = connection
        self._tenant = tenant
        self.moved = False

    async def named(self, names: Iterable[str]) -> dict[str, WorkflowHead]:
        """The workflows of these names, deleted or not."""
        rows = await self._connection.fetch(_NAMED, self._tenant, list(names))
        return {row["name"]: WorkflowHead(**row) for row in rows}

    async def find(self, id_or_name: str) -> WorkflowHead | None:
        """The workflow of a name, or else of an id, deleted or not."""
        row = await self._connection.fetchrow(_FOUND, self._tenant, id_or_name, _uuid(id_or_name))
        return WorkflowHead(**row) if row else None

    async def version(self, name: str, version: int) -> WorkflowVersion | None:
        """One version."""
        row = await self._connection.fetchrow(_DOCUMENT, self._tenant, name, version)
        return _version_of(row) if row else None

    async def count(self) -> int:
        """How many there are, the deleted not counted."""
        return int(await self._connection.fetchval(_COUNT, self._tenant))

    async def put(self, head: WorkflowHead) -> None:
        """Keep what a workflow is now."""
        self.moved = True
        values = (head.id, head.version, head.description, head.created_us, head.created_by)
        await self._connection.execute(_PUT, self._tenant, head.name, *values, head.updated_us, head.deleted_us)

    async def add(self, made: WorkflowVersion) -> None:
        """Add a version."""
        values = (made.name, made.version, made.workflow_id, made.document, made.created_us, made.created_by)
        await self._connection.execute(_ADD, self._tenant, *values)


class WorkflowReads:
    """Reads of workflows."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, tenant: str, id_or_name: str) -> WorkflowHead | None:
        """The workflow of a name, or else of an id, deleted or not."""
        row = await self._database.fetchrow(_FOUND, tenant, id_or_name, _uuid(id_or_name))
        return WorkflowHead(**row) if row else None

    async def named(self, tenant: str, names: Iterable[str]) -> dict[str, WorkflowHead]:
        """The workflows of these names, deleted or not."""
        rows = await self._database.fetch(_NAMED, tenant, list(names))
        return {row["name"]: WorkflowHead(**row) for row in rows}

    async def version(self, tenant: str, name: str, version: int) -> WorkflowVersion | None:
        """One version."""
        row = await self._database.fetchrow(_DOCUMENT, tenant, name, version)
        return _version_of(row) if row else None

    async def versions(
        self, tenant: str, name: str, before: int, skip: int, limit: int
    ) -> tuple[list[WorkflowVersion], int]:
        """Versions without their documents, newest first, one more than `limit` where there are more, and how many
        there are in all."""
        rows = await self._database.fetch(_VERSIONS, tenant, name, before, skip, limit + 1)
        return [_version_of(row) for row in rows], int(await self._database.fetchval(_COUNT_VERSIONS, tenant, name))

    async def page(
        self, tenant: str, query: WorkflowQuery, after: tuple[int, str] | None, skip: int, limit: int
    ) -> list[WorkflowHead]:
        """Workflows in the order asked for, after a place in it; one more than `limit` where there are more."""
        statement = _matching(tenant, query)
        at, name = _order(query), workflow.c.name
        if after is not None:
            here = tuple_(at, name) if at is not None else tuple_(name)
            there = tuple_(*after) if at is not None else tuple_(after[1])
            statement = statement.where(here < there if query.descending else here > there)
        columns: list[ColumnElement[object]] = [each for each in (at, name) if each is not None]
        statement = statement.order_by(*(each.desc() if query.descending else each for each in columns))
        rows = await fetch(self._database, statement.offset(skip).limit(limit + 1))
        return [WorkflowHead(**row) for row in rows]

    async def count(self, tenant: str, query: WorkflowQuery) -> tuple[int, bool]:
        """How many match, and whether that is an estimate."""
        return await count(self._database, _matching(tenant, query))


def _matching(tenant: str, query: WorkflowQuery) -> Select[tuple[object, ...]]:
    found = select(*_LIST).where(workflow.c.tenant == tenant)
    found = found.where(workflow.c.deleted_us > 0 if query.deleted else workflow.c.deleted_us == 0)
    return found.where(workflow.c.name == query.name) if query.name else found


def _order(query: WorkflowQuery) -> ColumnElement[object] | None:
    match query.sort:
        case "created_at":
            return workflow.c.created_us
        case "updated_at":
            return workflow.c.updated_us
    return None
