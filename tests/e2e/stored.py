"""What the database holds: the last word on whether something was stored."""

from __future__ import annotations

import asyncpg

_TABLES = (
    "run",
    "task",
    "artifact",
    "artifact_type",
    "agent",
    "idempotency",
    "payload",
    "workflow",
    "workflow_version",
)


class Stored:
    """Rows of one tenant."""

    def __init__(self, connection: asyncpg.Connection[asyncpg.Record], tenant: str) -> None:
        self._connection = connection
        self._tenant = tenant

    async def counts(self) -> dict[str, int]:
        """How many rows each table has of the tenant."""
        parts = [f"(SELECT count(*) FROM {table} WHERE tenant = $1) AS {table}" for table in _TABLES]
        row = await self._connection.fetchrow(f"SELECT {', '.join(parts)}", self._tenant)
        assert row is not None
        return dict(row)

    async def count(self, table: str) -> int:
        """How many rows one table has of the tenant."""
        return (await self.counts())[table]
