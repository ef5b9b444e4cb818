"""Agents and artifact types: what publishing is matched against."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping

import asyncpg

from millstream.application.views.idempotency import Key
from millstream.application.views.log_levels import LogLevel
from millstream.domain.agents import Agent, AgentSpec, ArtifactType, Pause
from millstream.domain.batch import KeyClaim
from millstream.domain.workers import ServingWorker
from millstream.store.connections import Database, Record
from millstream.store.policies import options_text, spec_text
from millstream.store.rows import agent_of, type_of
from millstream.store.tenants import TenantRows
from millstream.store.workflows import WorkflowRows

_NOW = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8"
_VERSION = "SELECT version FROM registry WHERE tenant = $1"
_AGENTS = "SELECT * FROM agent WHERE tenant = $1 ORDER BY name"
_AGENTS_NAMED = "SELECT * FROM agent WHERE tenant = $1 AND name = ANY($2::text[])"
_AGENT = "SELECT * FROM agent WHERE tenant = $1 AND (name = $2 OR id::text = lower($2)) ORDER BY name = $2 DESC LIMIT 1"
_AGENT_EVER = """SELECT id, tenant, name, spec, version, created_us, updated_us, 0::int8 AS deleted_us,
protocol, url FROM agent
WHERE tenant = $1 AND id = $2::text::uuid
UNION ALL SELECT id, tenant, name, spec, version, created_us, updated_us, deleted_us, protocol, url FROM agent_deleted
WHERE tenant = $1 AND id = $2::text::uuid"""
_COUNT_AGENTS = "SELECT count(*) FROM agent WHERE tenant = $1"
_TYPES_NAMED = """SELECT DISTINCT ON (name) * FROM artifact_type WHERE tenant = $1 AND name = ANY($2::text[])
ORDER BY name, version DESC"""
_COUNT_TYPES = "SELECT count(DISTINCT name) FROM artifact_type WHERE tenant = $1"
_TYPES = "SELECT DISTINCT ON (name) * FROM artifact_type WHERE tenant = $1 ORDER BY name, version DESC"
_VERSIONS = """SELECT * FROM artifact_type WHERE tenant = $1 AND name = $2 AND version < $3
ORDER BY version DESC OFFSET $4 LIMIT $5"""
_COUNT_VERSIONS = "SELECT count(*) FROM artifact_type WHERE tenant = $1 AND name = $2"
_TYPE = "SELECT * FROM artifact_type WHERE tenant = $1 AND name = $2 AND version = $3::int8"
_LOCK = """INSERT INTO registry (tenant, version) VALUES ($1, 1)
ON CONFLICT (tenant) DO UPDATE SET version = registry.version RETURNING version"""
_MOVE = "UPDATE registry SET version = version + 1 WHERE tenant = $1"
_ADD_TYPE = """INSERT INTO artifact_type (tenant, name, version, schema, description, created_us, options)
VALUES ($1, $2, $3, $4, $5, $6, $7)"""
_CHANGE_TYPE = """UPDATE artifact_type SET description = $4, options = $5
WHERE tenant = $1 AND name = $2 AND version = $3::int8"""
_PUT_AGENT = """INSERT INTO agent (tenant, name, id, spec, version, created_us, updated_us, protocol, url)
VALUES ($1, $2, $3::text::uuid, $4, $5, $6, $6, $7, $8)
ON CONFLICT (tenant, name) DO UPDATE SET spec = excluded.spec, version = excluded.version,
updated_us = excluded.updated_us, protocol = excluded.protocol, url = excluded.url"""
_DROP_AGENT = """WITH gone AS (DELETE FROM agent WHERE tenant = $1 AND name = $2 RETURNING *)
INSERT INTO agent_deleted (tenant, id, name, spec, version, created_us, updated_us, deleted_us, protocol, url)
SELECT tenant, id, name, spec, version, created_us, updated_us, $3, protocol, url FROM gone"""
_CALLED = "SELECT * FROM agent WHERE protocol <> '' AND ($1 = '' OR tenant = $1)"
_CALLED_DELETED = """SELECT * FROM agent_deleted WHERE protocol <> '' AND deleted_us > $2 AND ($1 = '' OR tenant = $1)
ORDER BY deleted_us DESC LIMIT $3"""
_CALLED_STAMP = """SELECT count(*), coalesce(max(updated_us), 0), coalesce(sum(version), 0) FROM agent
WHERE protocol <> ''"""
_DELETED = "SELECT * FROM agent_deleted WHERE tenant = $1 ORDER BY name, deleted_us DESC LIMIT $2"
_PAUSE = """INSERT INTO pause (tenant, queue, kind, paused_us, paused_by, reason) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (tenant, queue, kind) DO NOTHING"""
_RESUME = "DELETE FROM pause WHERE tenant = $1 AND queue = $2 AND kind = $3"
_PAUSES = "SELECT tenant, queue, kind, paused_us, paused_by, reason FROM pause"
_ENDED_LEVELS = "DELETE FROM log_level WHERE logger = $1 OR (until_us > 0 AND until_us <= $2)"
_SET_LEVEL = """INSERT INTO log_level (logger, level, until_us) SELECT $1, $2, $3
WHERE (SELECT count(*) FROM log_level) < $4 ON CONFLICT (logger) DO UPDATE SET level = excluded.level,
until_us = excluded.until_us"""
_LEVELS = "SELECT logger, level, until_us FROM log_level WHERE until_us = 0 OR until_us > $1 ORDER BY logger"
# A worker that connects again may be listed of its old connection too, until the server notices that it broke off.
_WORKERS = """SELECT *, count(*) OVER () AS total FROM (SELECT DISTINCT ON (worker_id) worker_id, name, connected_us,
server, greatest(seen_us, connected_us) AS seen_us FROM worker JOIN lane ON lane.id = worker.lane
WHERE tenant = $1 AND $2 = ANY(kinds) AND seen_us > $3 ORDER BY worker_id, connected_us DESC, session DESC) one
ORDER BY connected_us, worker_id LIMIT $4"""
_KEY = """SELECT tenant, principal, rpc, key, fingerprint, response, expires_us FROM idempotency
WHERE tenant = $1 AND principal = $2 AND rpc = $3 AND key = $4"""
_CLAIM = """INSERT INTO idempotency (tenant, principal, rpc, key, fingerprint, response, created_us, expires_us)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (tenant, principal, rpc, key) DO UPDATE SET
fingerprint = excluded.fingerprint, response = excluded.response, created_us = excluded.created_us,
expires_us = excluded.expires_us"""
_ONLINE = "SELECT DISTINCT kind FROM interest JOIN lane ON lane.id = interest.lane WHERE tenant = $1 AND seen_us > $2"


_READ_AT_ONCE = 100
"""Specifications decoded before others take their turn: a tenant may have thousands."""


def _as_known(row: Record, known: Agent | None) -> Agent:
    same = known is not None and (known.id, known.version) == (str(row["id"]), row["version"])
    return known if same and known is not None else agent_of(row)


class RegistryTransaction:
    """A transaction that holds the tenant's registry, so that its changes come one after another."""

    def __init__(self, connection: "asyncpg.pool.PoolConnectionProxy[Record]", tenant: str, now_us: int) -> None:
        self._connection = connection
        self._tenant = tenant
        self._moved = False
        self.now_us = now_us
        self.workflows = WorkflowRows(connection, tenant)
        self.tenants = TenantRows(connection)

    async def key(self, principal: str, key: Key) -> KeyClaim | None:
        """The live claim of an idempotency key."""
        row = await self._connection.fetchrow(_KEY, self._tenant, principal, key.rpc, key.value)
        return KeyClaim(**row) if row and row["expires_us"] > self.now_us else None

    async def claim(self, claim: KeyClaim) -> None:
        """Claim a key with this transaction's effect."""
        values = (*claim.id, claim.fingerprint, claim.response, self.now_us, claim.expires_us)
        await self._connection.execute(_CLAIM, *values)

    async def types(self, names: Iterable[str]) -> dict[str, ArtifactType]:
        """Latest versions of the types of these names that there are."""
        rows = await self._connection.fetch(_TYPES_NAMED, self._tenant, list(names))
        return {row["name"]: type_of(row) for row in rows}

    async def agents(self, names: Iterable[str]) -> dict[str, Agent]:
        """The agents of these names that there are."""
        rows = await self._connection.fetch(_AGENTS_NAMED, self._tenant, list(names))
        return {row["name"]: agent_of(row) for row in rows}

    async def agent(self, id_or_name: str) -> Agent | None:
        """The agent of a name, or else of an id."""
        row = await self._connection.fetchrow(_AGENT, self._tenant, id_or_name)
        return agent_of(row) if row else None

    async def agent_ever(self, agent_id: str) -> Agent | None:
        """The agent of an id, deleted or not."""
        row = await self._connection.fetchrow(_AGENT_EVER, self._tenant, agent_id)
        return agent_of(row) if row else None

    async def count_types(self) -> int:
        """How many types there are, versions not counted."""
        return int(await self._connection.fetchval(_COUNT_TYPES, self._tenant))

    async def count_agents(self) -> int:
        """How many agents there are."""
        return int(await self._connection.fetchval(_COUNT_AGENTS, self._tenant))

    async def add_type(self, found: ArtifactType) -> None:
        """Add a version of a type."""
        self._moved = True
        values = (found.name, found.version, found.schema, found.description, found.created_us)
        await self._connection.execute(_ADD_TYPE, self._tenant, *values, options_text(found.options))

    async def type_version(self, name: str, version: int) -> ArtifactType | None:
        """One version of a type."""
        row = await self._connection.fetchrow(_TYPE, self._tenant, name, version)
        return type_of(row) if row else None

    async def change_type(self, found: ArtifactType) -> None:
        """Change what a version says beside its schema."""
        self._moved = True
        values = (found.name, found.version, found.description, options_text(found.options))
        await self._connection.execute(_CHANGE_TYPE, self._tenant, *values)

    async def put_agent(self, agent_id: str, spec: AgentSpec, version: int) -> None:
        """Make an agent, or its next version."""
        self._moved = True
        called = (spec.protocol, spec.url) if spec.remote else ("", "")
        values = (spec.name, agent_id, spec_text(spec), version, self.now_us)
        await self._connection.execute(_PUT_AGENT, self._tenant, *values, *called)

    async def drop_agent(self, name: str) -> None:
        """Put an agent among the deleted."""
        self._moved = True
        await self._connection.execute(_DROP_AGENT, self._tenant, name, self.now_us)

    async def pause(self, queue: str, kind: str, by: str, reason: str) -> None:
        """Let tasks wait; nothing changes where they do already."""
        await self._connection.execute(_PAUSE, self._tenant, queue, kind, self.now_us, by, reason)

    async def resume(self, queue: str, kind: str) -> None:
        """Let tasks go on."""
        await self._connection.execute(_RESUME, self._tenant, queue, kind)

    async def set_log_level(self, found: LogLevel, most: int) -> bool:
        """Put a level in the place of the logger's last, level "" for none; False where there are too many."""
        await self._connection.execute(_ENDED_LEVELS, found.logger, self.now_us)
        if not found.level:
            return True
        values = (found.logger, found.level, found.until_us)
        return await self._connection.execute(_SET_LEVEL, *values, most) != "INSERT 0 0"

    async def finish(self) -> None:
        """Count the change, once, if there was one."""
        if self._moved or self.workflows.moved:
            await self._connection.execute(_MOVE, self._tenant)


class RegistryStore:
    """Reads and changes of the registry."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def version(self, tenant: str) -> int:
        """The registry's version; 0 where nothing was ever registered."""
        return int(await self._database.fetchval(_VERSION, tenant) or 0)

    async def load(self, tenant: str, known: Mapping[str, Agent]) -> tuple[int, list[Agent], list[ArtifactType]]:
        """Version, agents and types of one moment. Agents that are as known, by name, are those very objects."""
        async with self._database.transaction("repeatable_read") as connection:
            version = int(await connection.fetchval(_VERSION, tenant) or 0)
            agent_rows = await connection.fetch(_AGENTS, tenant)
            types = [type_of(row) for row in await connection.fetch(_TYPES, tenant)]
        agents: list[Agent] = []
        for read, row in enumerate(agent_rows):
            agents.append(_as_known(row, known.get(row["name"])))
            if read % _READ_AT_ONCE == 0:
                await asyncio.sleep(0)
        return version, agents, types

    async def type_version(self, tenant: str, name: str, version: int) -> ArtifactType | None:
        """One version of a type."""
        row = await self._database.fetchrow(_TYPE, tenant, name, version)
        return type_of(row) if row else None

    async def type_versions(
        self, tenant: str, name: str, before: int, skip: int, limit: int
    ) -> tuple[list[ArtifactType], int]:
        """Versions newest first, one more than `limit` where there are more, and how many there are in all."""
        rows = await self._database.fetch(_VERSIONS, tenant, name, before, skip, limit + 1)
        total = await self._database.fetchval(_COUNT_VERSIONS, tenant, name)
        return [type_of(row) for row in rows], int(total)

    async def online(self, tenant: str, since_us: int) -> set[str]:
        """Kinds that a worker serves at some server seen since then."""
        return {row["kind"] for row in await self._database.fetch(_ONLINE, tenant, since_us)}

    async def called(self, tenant: str, deleted_since_us: int, limit: int, known: Mapping[str, Agent]) -> list[Agent]:
        """Agents that the servers call themselves, of a tenant or ("") of all; and those deleted since then, up to a
        limit, the latest first. Those that are as known, by id, are those very objects."""
        rows = await self._database.fetch(_CALLED, tenant)
        rows += await self._database.fetch(_CALLED_DELETED, tenant, deleted_since_us, limit)
        agents: list[Agent] = []
        for read, row in enumerate(rows):
            before = known.get(str(row["id"]))
            gone = "deleted_us" in row
            agents.append(_as_known(row, before if before is not None and bool(before.deleted_us) == gone else None))
            if read % _READ_AT_ONCE == 0:
                await asyncio.sleep(0)
        return agents

    async def called_stamp(self) -> tuple[int, int, int]:
        """What differs when the agents that servers call are others than before."""
        row = await self._database.fetchrow(_CALLED_STAMP)
        return (int(row[0]), int(row[1]), int(row[2])) if row else (0, 0, 0)

    async def deleted(self, tenant: str, limit: int) -> list[Agent]:
        """Deleted agents by name, the latest of each first."""
        return [agent_of(row) for row in await self._database.fetch(_DELETED, tenant, limit)]

    async def pauses(self, tenant: str = "") -> list[Pause]:
        """What is paused, of a tenant or of all."""
        where = " WHERE tenant = $1" if tenant else ""
        rows = await self._database.fetch(_PAUSES + where, *([tenant] if tenant else []))
        return [Pause(**row) for row in rows]

    async def log_levels(self) -> tuple[list[LogLevel], int]:
        """The levels that hold, by logger, and the database's time."""
        now_us = int(await self._database.fetchval(_NOW))
        return [LogLevel(**row) for row in await self._database.fetch(_LEVELS, now_us)], now_us

    async def workers(self, tenant: str, kind: str, since_us: int, limit: int) -> tuple[list[ServingWorker], int]:
        """Connected workers that serve a kind, the longest connected first, and how many there are."""
        rows = await self._database.fetch(_WORKERS, tenant, kind, since_us, limit)
        found = [
            ServingWorker(row["worker_id"], row["name"], row["server"], row["connected_us"], row["seen_us"])
            for row in rows
        ]
        return found, rows[0]["total"] if rows else 0

    @contextlib.asynccontextmanager
    async def transaction(self, tenant: str) -> AsyncIterator[RegistryTransaction]:
        """A transaction that changes the registry, committed at the end of the block."""
        async with self._database.transaction() as connection:
            await connection.execute("SET LOCAL lock_timeout = 5000")
            await connection.fetchval(_LOCK, tenant)
            change = RegistryTransaction(connection, tenant, int(await connection.fetchval(_NOW)))
            yield change
            await change.finish()
