"""Tenants."""

import asyncpg

from millstream.domain.tenants import Tenant
from millstream.store.columns import texts, uuids
from millstream.store.connections import Database, Record

_COLUMNS = "slug, id::text, name, labels, created_us, created_by"
_TENANT = f"SELECT {_COLUMNS} FROM tenant WHERE slug = $1"  # noqa: S608  # our columns
_TENANTS = f"SELECT {_COLUMNS} FROM tenant WHERE slug > $1 ORDER BY slug OFFSET $2 LIMIT $3"  # noqa: S608
_COUNT = "SELECT count(*) FROM tenant"
_ADD = """INSERT INTO tenant (slug, id, name, labels, created_us, created_by)
VALUES ($1, $2::text::uuid, $3, $4, $5, $6) ON CONFLICT DO NOTHING"""
_KEEP = """INSERT INTO tenant (slug, id, name, created_us) SELECT slug, id, slug,
(extract(epoch FROM clock_timestamp()) * 1000000)::int8 FROM unnest($1::text::text[], $2::text::uuid[]) u(slug, id)
ON CONFLICT DO NOTHING"""


class TenantRows:
    """Tenants within a transaction that holds a registry; see store.registry."""

    def __init__(self, connection: "asyncpg.pool.PoolConnectionProxy[Record]") -> None:
        self._connection = connection

    async def find(self, slug: str) -> Tenant | None:
        """A tenant."""
        row = await self._connection.fetchrow(_TENANT, slug)
        return Tenant(**row) if row else None

    async def count(self) -> int:
        """How many there are."""
        return int(await self._connection.fetchval(_COUNT))

    async def add(self, made: Tenant) -> bool:
        """Add a tenant; False where there is one of its slug."""
        values = (made.slug, made.id, made.name, made.labels, made.created_us, made.created_by)
        return await self._connection.execute(_ADD, *values) != "INSERT 0 0"


class TenantStore:
    """Reads of tenants, and those that the configuration names."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def tenant(self, slug: str) -> Tenant | None:
        """A tenant."""
        row = await self._database.fetchrow(_TENANT, slug)
        return Tenant(**row) if row else None

    async def tenants(self, after: str, skip: int, limit: int) -> list[Tenant]:
        """Tenants by their slugs; one more than `limit` where there are more."""
        return [Tenant(**row) for row in await self._database.fetch(_TENANTS, after, skip, limit + 1)]

    async def count(self) -> int:
        """How many there are."""
        return int(await self._database.fetchval(_COUNT))

    async def keep(self, ids: dict[str, str]) -> None:
        """Store those of these, id by slug, that are not there."""
        await self._database.execute(_KEEP, texts(ids), uuids(ids.values()))
