"""Workers as their servers note them, apart from those that went, and the kinds that they serve.

Those that went have a table of their own, so that nothing takes one for connected by mistake, servers of the version
before included.
"""

from collections.abc import Sequence

from millstream.application.ports import ConnectedWorker
from millstream.domain.workers import Horizon, KindQuery, KindSpec, KnownKind, KnownWorker, ServingWorker, WorkerQuery
from millstream.store.columns import flags, lists, names, numbers, texts, uuids
from millstream.store.connections import Database, Record

KINDS_MOST = 10_000
"""Kinds and versions that are listed of a tenant."""
LEFT_MOST = 1_000
"""Workers that went and are listed of a tenant."""
LISTED_MOST = 100
"""Kinds, and queues, of one worker in a list."""
SERVING_MOST = 10
"""Workers that are named of one kind."""

REMEMBER = """INSERT INTO worker_left (tenant, worker_id, name, host, kinds, served, queues, slots, connected_us,
heard_us, left_us) SELECT DISTINCT ON (tenant, worker_id) tenant, worker_id, name, host, kinds, served, queues, slots,
connected_us, heard_us, left_us FROM went ORDER BY tenant, worker_id, connected_us DESC
ON CONFLICT (tenant, worker_id) DO UPDATE SET name = excluded.name, host = excluded.host, kinds = excluded.kinds,
served = excluded.served, queues = excluded.queues, slots = excluded.slots, connected_us = excluded.connected_us,
heard_us = excluded.heard_us, left_us = excluded.left_us"""
"""Puts the workers of `went` among those that went."""
_WENT = """WITH went AS (DELETE FROM worker USING lane WHERE lane.id = worker.lane AND lane.id = $1::text::uuid{more}
RETURNING worker.*, lane.server AS host, $2::int8 AS left_us) """
_GONE = _WENT.format(more=" AND worker.session = ANY($3::text::uuid[])") + REMEMBER
_LEFT = _WENT.format(more="") + REMEMBER
_BACK = """DELETE FROM worker_left USING unnest($1::text::text[], $2::text::text[]) u(tenant, worker_id)
WHERE worker_left.tenant = u.tenant AND worker_left.worker_id = u.worker_id"""
_CONNECTED = """INSERT INTO worker (lane, session, tenant, worker_id, name, kinds, served, queues, slots, connected_us,
heard_us, draining) SELECT $1::text::uuid, session, tenant, worker_id, name, kinds::text[], served::text[],
queues::text[], slots, connected_us, heard_us, draining
FROM unnest($2::text::uuid[], $3::text::text[], $4::text::text[], $5::text::text[], $6::text::text[],
$7::text::text[], $8::text::text[], $9::text::int4[], $10::text::int8[], $11::text::int8[], $12::text::bool[])
u(session, tenant, worker_id, name, kinds, served, queues, slots, connected_us, heard_us, draining)
ON CONFLICT (lane, session) DO UPDATE SET draining = excluded.draining"""
# In the order of the key: two servers that note the same kinds wait for each other and never in a circle. What a
# worker does not say does not undo what another one said.
_KINDS = """WITH u AS (SELECT DISTINCT ON (tenant, name, category, version) * FROM unnest($1::text::text[],
$2::text::text[], $3::text::int4[], $4::text::text[], $5::text::text[], $6::text::text[], $7::text::text[])
u(tenant, name, category, version, description, input_schema, output_schema)
ORDER BY tenant, name, category, version, input_schema = '', output_schema = '', description = ''),
room AS (SELECT tenant, (SELECT count(*) FROM served_kind WHERE tenant = t.tenant) AS taken
FROM (SELECT DISTINCT tenant FROM u) t)
INSERT INTO served_kind (tenant, name, category, version, description, input_schema, output_schema, updated_us)
SELECT u.tenant, name, category, version, description, input_schema, output_schema, $8 FROM u JOIN room USING (tenant)
WHERE taken < $9 OR EXISTS (SELECT 1 FROM served_kind k WHERE k.tenant = u.tenant AND k.name = u.name
AND k.category = u.category AND k.version = u.version)
ORDER BY u.tenant, name, category, version
ON CONFLICT (tenant, name, category, version) DO UPDATE SET updated_us = excluded.updated_us,
description = coalesce(nullif(excluded.description, ''), served_kind.description),
input_schema = coalesce(nullif(excluded.input_schema, ''), served_kind.input_schema),
output_schema = coalesce(nullif(excluded.output_schema, ''), served_kind.output_schema)"""
_HEARD = """UPDATE worker SET heard_us = u.heard_us, used = u.used
FROM unnest($2::text::uuid[], $3::text::int8[], $4::text::int4[]) u(session, heard_us, used)
WHERE lane = $1::text::uuid AND worker.session = u.session"""
# The last to go stay, so that a worker that starts and dies in a circle fills nothing.
_FORGET = """DELETE FROM worker_left WHERE left_us < $1 OR ctid = ANY(ARRAY(SELECT ctid FROM (SELECT ctid,
row_number() OVER (PARTITION BY tenant ORDER BY left_us DESC, worker_id) AS n FROM worker_left) w WHERE n > $2))
RETURNING tenant"""
# `updated_us` is looked at again where a worker is just connecting.
_UNSERVED = """DELETE FROM served_kind WHERE tenant = ANY($1::text::text[]) AND updated_us < $2
AND (tenant, category || ':' || version || ':' || name) NOT IN
(SELECT tenant, unnest(served) FROM worker UNION ALL SELECT tenant, unnest(served) FROM worker_left)"""

# $1 tenant, $2 when a living server was seen at least, $3 when a living worker was heard of at least. A worker that
# connects again may be listed of its old connection too, until that server notices that it broke off. One that a server
# of the version before noted has no slots, and neither has one that is the server itself, which calls an agent: of it
# only the server is known to live.
_ALL = """live AS (SELECT DISTINCT ON (worker_id) worker_id, name, server AS host, kinds, served, queues, slots, used,
connected_us, greatest(CASE WHEN slots > 0 THEN heard_us ELSE seen_us END, connected_us) AS heard_us,
lane.seen_us AS left_us,
CASE WHEN seen_us <= $2 OR (slots > 0 AND greatest(heard_us, connected_us) <= $3) THEN 3 WHEN draining THEN 2 ELSE 1 END
AS status FROM worker JOIN lane ON lane.id = worker.lane WHERE tenant = $1
ORDER BY worker_id, connected_us DESC, session DESC)"""
_KNOWN = f"""WITH {_ALL}, known AS (SELECT * FROM live UNION ALL SELECT worker_id, name, host, kinds, served, queues,
slots, 0, connected_us, heard_us, left_us, 3 FROM worker_left WHERE tenant = $1
AND NOT EXISTS (SELECT 1 FROM live WHERE live.worker_id = worker_left.worker_id)) """  # noqa: S608
_STATUSES = {"ONLINE": 1, "DRAINING": 2, "OFFLINE": 3}
_STATUS_NAMES = {number: name for name, number in _STATUSES.items()}
_WANTED = """FROM known WHERE ($4::int4 = 0 OR status = $4) AND ($5 = '' OR $5 = ANY(kinds))
AND ($6 = '' OR $6 = ANY(queues)) AND ($7 = '' OR name = $7)"""
_FIELDS = """worker_id, name, host, slots, used, connected_us, heard_us, left_us, status, queues[1:{most}] AS queues,
served[1:{most}] AS served, ARRAY(SELECT substr(kind, 7) FROM unnest(kinds) WITH ORDINALITY u(kind, n)
WHERE kind LIKE 'agent:%' ORDER BY n LIMIT {most}) AS agents,
CASE WHEN slots = 0 THEN ARRAY(SELECT '1::' || kind FROM unnest(kinds) WITH ORDINALITY u(kind, n)
WHERE kind NOT LIKE 'agent:%' ORDER BY n LIMIT {most}) ELSE '{{}}' END AS bare,
cardinality(served) > {most} OR cardinality(queues) > {most} OR cardinality(kinds) > {most} AS longer"""
_PAGE = f"""{_KNOWN}SELECT {_FIELDS.format(most=LISTED_MOST)} {_WANTED}
AND ($8::int8 < 0 OR (connected_us, worker_id) < ($8, $9))
ORDER BY connected_us DESC, worker_id DESC OFFSET $10 LIMIT $11"""
_COUNT = f"{_KNOWN}SELECT count(*) {_WANTED}"
_WORKER = f"{_KNOWN}SELECT {_FIELDS.format(most=2000)} FROM known WHERE worker_id = $4"  # noqa: S608
_SPECS = """SELECT name, category, version, description, input_schema, output_schema, updated_us FROM served_kind
JOIN unnest($2::text::text[], $3::text::int4[], $4::text::text[]) u(name, category, version)
USING (name, category, version) WHERE tenant = $1"""

_SERVING = f"""WITH {_ALL}, serving AS (SELECT code, worker_id, name, host, connected_us, heard_us, queues FROM live,
unnest(served) code WHERE status < 3) """  # noqa: S608
_KINDS_WANTED = """FROM served_kind k LEFT JOIN (SELECT code, count(*) AS workers FROM serving GROUP BY code) s
ON s.code = k.category || ':' || k.version || ':' || k.name
WHERE tenant = $1 AND ($4 = '' OR name = $4) AND ($5::int4 = 0 OR category = $5)
AND ($6::int4 = 0 OR (workers IS NULL) = ($6 = 2))"""
_KINDS_PAGE = f"""{_SERVING}SELECT name, category, version, description, input_schema, output_schema, updated_us,
coalesce(workers, 0) AS workers {_KINDS_WANTED} AND (name, category, version) > ($7, $8::int4, $9)
ORDER BY name, category, version OFFSET $10 LIMIT $11"""
_KINDS_COUNT = f"{_SERVING}SELECT count(*) {_KINDS_WANTED}"
_SERVED_BY = f"""{_SERVING}SELECT code, worker_id, name, host, connected_us, heard_us FROM (SELECT *, row_number()
OVER (PARTITION BY code ORDER BY connected_us, worker_id) AS n FROM serving WHERE code = ANY($4::text[])) s
WHERE n <= {SERVING_MOST} ORDER BY code, n"""  # noqa: S608
_QUEUES = f"""{_SERVING}SELECT code, (array_agg(DISTINCT queue ORDER BY queue))[1:{LISTED_MOST}] AS queues
FROM serving, unnest(queues) queue WHERE code = ANY($4::text[]) GROUP BY code"""  # noqa: S608


class WorkerRows:
    """Writes of a server's workers, each for many at once, and reads over all servers."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def connected(self, lane: str, workers: Sequence[ConnectedWorker], gone: Sequence[str], now_us: int) -> None:
        """Workers that came to this server, or drain, and sessions that ended."""
        async with self._database.transaction() as connection:
            if gone:
                await connection.execute(_GONE, lane, now_us, uuids(gone))
            if not workers:
                return
            tenants, ids = names([each.tenant for each in workers]), texts([each.worker_id for each in workers])
            await connection.execute(_BACK, tenants, ids)
            await connection.execute(
                _CONNECTED,
                lane,
                uuids([each.session for each in workers]),
                tenants,
                ids,
                texts([each.name for each in workers]),
                lists([each.kinds for each in workers]),
                lists([tuple(spec.code for spec in each.served) for each in workers]),
                lists([each.queues for each in workers]),
                numbers([each.slots for each in workers]),
                numbers([each.connected_us for each in workers]),
                numbers([each.heard_us for each in workers]),
                flags([each.draining for each in workers]),
            )
            served = [(each.tenant, spec) for each in workers for spec in each.served]
            if served:
                await connection.execute(
                    _KINDS,
                    names([tenant for tenant, _ in served]),
                    texts([spec.name for _, spec in served]),
                    numbers([spec.category for _, spec in served]),
                    texts([spec.version for _, spec in served]),
                    texts([spec.description for _, spec in served]),
                    texts([spec.input_schema for _, spec in served]),
                    texts([spec.output_schema for _, spec in served]),
                    now_us,
                    KINDS_MOST,
                )

    async def heard(self, lane: str, workers: Sequence[ConnectedWorker]) -> None:
        """When workers of this server were last heard of, and how many tasks they have."""
        await self._database.execute(
            _HEARD,
            lane,
            uuids([each.session for each in workers]),
            numbers([each.heard_us for each in workers]),
            numbers([each.used for each in workers]),
        )

    async def left(self, lane: str, now_us: int) -> None:
        """This server goes, and its workers with it."""
        await self._database.execute(_LEFT, lane, now_us)

    async def drop(self, before_us: int) -> None:
        """Forget workers that went before then, or are too many, and kinds that nobody serves any more."""
        rows = await self._database.fetch(_FORGET, before_us, LEFT_MOST)
        if rows:
            await self._database.execute(_UNSERVED, names({row["tenant"] for row in rows}), before_us)

    async def workers(
        self, tenant: str, query: WorkerQuery, horizon: Horizon, after: tuple[int, str] | None, skip: int, limit: int
    ) -> list[KnownWorker]:
        """Workers, the last connected first; one more than `limit` where there are more."""
        connected_us, worker_id = after or (-1, "")
        rows = await self._database.fetch(
            _PAGE, *_asked(tenant, query, horizon), connected_us, worker_id, skip, limit + 1
        )
        return [_worker_of(row) for row in rows]

    async def count_workers(self, tenant: str, query: WorkerQuery, horizon: Horizon) -> int:
        """How many match."""
        return int(await self._database.fetchval(_COUNT, *_asked(tenant, query, horizon)))

    async def worker(self, tenant: str, worker_id: str, horizon: Horizon) -> KnownWorker | None:
        """A worker with all its kinds, what is said of them left out."""
        row = await self._database.fetchrow(_WORKER, tenant, horizon.server_us, horizon.worker_us, worker_id)
        return _worker_of(row) if row else None

    async def specs(self, tenant: str, kinds: Sequence[KindSpec]) -> dict[str, KindSpec]:
        """What is said of kinds, by their codes."""
        rows = await self._database.fetch(
            _SPECS,
            tenant,
            texts([each.name for each in kinds]),
            numbers([each.category for each in kinds]),
            texts([each.version for each in kinds]),
        )
        return {spec.code: spec for spec in map(_spec_of, rows)}

    async def kinds(
        self,
        tenant: str,
        query: KindQuery,
        horizon: Horizon,
        after: tuple[str, int, str],
        skip: int,
        limit: int,
    ) -> list[KnownKind]:
        """Kinds by name and version, without who serves them; one more than `limit` where there are more."""
        rows = await self._database.fetch(_KINDS_PAGE, *_asked_kinds(tenant, query, horizon), *after, skip, limit + 1)
        return [KnownKind(_spec_of(row), row["updated_us"], row["workers"]) for row in rows]

    async def count_kinds(self, tenant: str, query: KindQuery, horizon: Horizon) -> int:
        """How many match."""
        return int(await self._database.fetchval(_KINDS_COUNT, *_asked_kinds(tenant, query, horizon)))

    async def serving(
        self, tenant: str, codes: Sequence[str], horizon: Horizon
    ) -> tuple[dict[str, list[ServingWorker]], dict[str, tuple[str, ...]]]:
        """The first workers that serve each kind, the longest connected first, and the queues that it is served in."""
        arguments = (tenant, horizon.server_us, horizon.worker_us, list(codes))
        found: dict[str, list[ServingWorker]] = {}
        for row in await self._database.fetch(_SERVED_BY, *arguments):
            worker = ServingWorker(row["worker_id"], row["name"], row["host"], row["connected_us"], row["heard_us"])
            found.setdefault(row["code"], []).append(worker)
        queues = await self._database.fetch(_QUEUES, *arguments)
        return found, {row["code"]: tuple(row["queues"]) for row in queues}


def _asked(tenant: str, query: WorkerQuery, horizon: Horizon) -> tuple[object, ...]:
    status = _STATUSES.get(query.status, 0)
    return (tenant, horizon.server_us, horizon.worker_us, status, query.kind, query.queue, query.name)


def _asked_kinds(tenant: str, query: KindQuery, horizon: Horizon) -> tuple[object, ...]:
    status = {"": 0, "ONLINE": 1, "OFFLINE": 2}[query.status]
    return (tenant, horizon.server_us, horizon.worker_us, query.name, query.category, status)


def _worker_of(row: Record) -> KnownWorker:
    offline = row["status"] == _STATUSES["OFFLINE"]
    return KnownWorker(
        worker_id=row["worker_id"],
        name=row["name"],
        status=_STATUS_NAMES[row["status"]],
        server=row["host"],
        connected_us=row["connected_us"],
        heard_us=row["heard_us"],
        left_us=row["left_us"] if offline else 0,
        slots=row["slots"],
        used=0 if offline else row["used"],
        queues=tuple(row["queues"]),
        kinds=tuple([KindSpec.of_code(code) for code in (*row["served"], *row["bare"])]),
        agents=tuple(row["agents"]),
        truncated=row["longer"],
    )


def _spec_of(row: Record) -> KindSpec:
    return KindSpec(
        row["name"], row["category"], row["version"], row["description"], row["input_schema"], row["output_schema"]
    )
