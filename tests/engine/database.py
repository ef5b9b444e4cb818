"""The databases of the engine's tests: copies of one migrated template, with a clock that a test can move on.

The engine reads the time from the database alone (engine-rules 10). So a `clock_timestamp()` of our own, found before
PostgreSQL's, lets hours pass at once: no test waits for a time-out, a retention or a lease.
"""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import asyncpg

from millstream.application.engine.clock import Clock
from millstream.store import migrations
from millstream.store.embedded import EmbeddedPostgres

_CLOCK = """
CREATE SCHEMA warp;
CREATE TABLE warp.shift (seconds float8 NOT NULL);
INSERT INTO warp.shift VALUES (0);
CREATE FUNCTION warp.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
$$ SELECT pg_catalog.clock_timestamp() + make_interval(secs => (SELECT seconds FROM warp.shift)) $$;
"""
_SEARCH = "ALTER DATABASE {} SET search_path = warp, pg_catalog, public"
TEMPLATE = "engine_template"


class Database:
    """A test's own database, with a connection beside the servers'."""

    def __init__(self, url: str, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        self.url = url
        self.connection = connection
        self.clocks: list[Clock] = []
        """The clocks of the servers that run on it."""

    async def rows(self, sql: str, *arguments: object) -> list[dict[str, Any]]:
        """All rows of a query."""
        return [dict(row) for row in await self.connection.fetch(sql, *arguments)]

    async def value(self, sql: str, *arguments: object) -> Any:
        """The first value of a query."""
        return await self.connection.fetchval(sql, *arguments)

    async def execute(self, sql: str, *arguments: object) -> None:
        """Run a statement."""
        await self.connection.execute(sql, *arguments)

    async def now_us(self) -> int:
        """The database's time as the engine reads it."""
        return int(await self.value("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8"))

    async def pass_time(self, seconds: float) -> None:
        """Let time pass. Servers would notice with their next write or poll, at most a second later; here they are
        told, and are seen to live."""
        await self.execute("UPDATE warp.shift SET seconds = seconds + $1", seconds)
        await self.execute("UPDATE lane SET seen_us = seen_us + $1 WHERE seen_us > 0", int(seconds * 1e6))
        now_us = await self.now_us()
        for clock in self.clocks:
            clock.set(now_us)

    @contextlib.asynccontextmanager
    async def other(self) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
        """One more connection, such as one that holds a lock."""
        connection = await asyncpg.connect(self.url)
        try:
            yield connection
        finally:
            await connection.close(timeout=2)


class Postgres:
    """A running server with the template of all test databases."""

    def __init__(self, server: EmbeddedPostgres, admin: "asyncpg.Connection[asyncpg.Record]") -> None:
        self._server = server
        self._admin = admin

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls) -> AsyncIterator["Postgres"]:
        """An ephemeral server for the length of the block."""
        async with EmbeddedPostgres(ephemeral=True) as server:
            admin = await asyncpg.connect(server.url)
            found = cls(server, admin)
            await admin.execute(f"CREATE DATABASE {TEMPLATE}")
            await migrations.upgrade(found._url(TEMPLATE))
            template = await asyncpg.connect(found._url(TEMPLATE))
            await template.execute(_CLOCK)
            await template.close()
            yield found
            await admin.close()

    def _url(self, name: str) -> str:
        return self._server.url.replace("/millstream?", f"/{name}?")

    @contextlib.asynccontextmanager
    async def database(self, name: str) -> AsyncIterator[Database]:
        """A copy of the template for the length of the block."""
        await self._admin.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY file_copy")
        await self._admin.execute(_SEARCH.format(name))
        connection = await asyncpg.connect(self._url(name))
        try:
            yield Database(self._url(name), connection)
        finally:
            await connection.close(timeout=2)
            await self._admin.execute(f"DROP DATABASE {name} (FORCE)")
