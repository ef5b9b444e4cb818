"""Which migration the database has, as a running server asks; store.migrations changes it."""

import asyncpg

from millstream.store.connections import Database
from millstream.store.migrations import VERSION_TABLE

_REVISION = f"SELECT version_num FROM {VERSION_TABLE}"  # noqa: S608


class SchemaReads:
    """Reads the database's revision."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def schema_revision(self) -> str | None:
        """The migration that the database is at; None where it was never migrated."""
        try:
            revision: str | None = await self._database.fetchval(_REVISION)
        except asyncpg.UndefinedTableError:
            return None
        return revision
