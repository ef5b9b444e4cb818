"""Large payloads in chunks, by tenant and content.

Chunks belong to a blob: that of an upload in progress until its end gives the blob to a payload, in one transaction.
Whatever no payload owns has a row in `payload_upload`, so an upload that breaks off, at whatever point, is found by it.
"""

from sqlalchemy import literal, literal_column, select

from millstream.application.views.leases import LeaseRef
from millstream.application.views.payloads import StoredPayload
from millstream.domain.artifacts import Reader
from millstream.domain.errors import NotFound
from millstream.store.artifacts import visible_to
from millstream.store.connections import Database
from millstream.store.query import fetch
from millstream.store.tables.artifacts import artifact

_BEGIN = "INSERT INTO payload_upload (blob, tenant, touched_us) VALUES ($1::text::uuid, $2, $3)"
# Nobody waits for a chunk to be on the disk: the commit that makes a payload of them is, and all before it with it.
_APPEND = """WITH lazily AS (SELECT set_config('synchronous_commit', 'off', true)),
alive AS (UPDATE payload_upload SET touched_us = $3
WHERE blob = $1::text::uuid AND tenant = $2 AND touched_us > 0 RETURNING blob)
INSERT INTO payload_chunk (blob, n, bytes) SELECT blob, $4::int4, $5::bytea FROM alive, lazily"""
_ABANDON = "UPDATE payload_upload SET touched_us = 0 WHERE blob = $1::text::uuid AND tenant = $2"
_GIVEN = "DELETE FROM payload_upload WHERE blob = $1::text::uuid AND tenant = $2 AND touched_us > 0"
_PUT = """INSERT INTO payload (tenant, sha256, blob, size_bytes, media_type, created_us, touched_us)
VALUES ($1, $2, $3::text::uuid, $4, $5, $6, $6)
ON CONFLICT (tenant, sha256) DO UPDATE SET touched_us = excluded.touched_us
RETURNING blob::text, size_bytes, media_type, created_us"""
_KEEP = """WITH kept AS (INSERT INTO payload (tenant, sha256, blob, size_bytes, media_type, created_us, touched_us)
VALUES ($1, $2, $3::text::uuid, $4, $5, $6, $6) ON CONFLICT (tenant, sha256) DO NOTHING RETURNING blob)
INSERT INTO payload_chunk (blob, n, bytes) SELECT blob, n, substring($7::bytea FROM n * $8::int4 + 1 FOR $8::int4)
FROM kept, generate_series(0, (($4::int8 - 1) / $8::int4)::int4) n"""
_RETYPE = "UPDATE payload SET media_type = $3 WHERE tenant = $1 AND sha256 = $2"
_HOLD = "INSERT INTO payload_holder (tenant, sha256, principal) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING"
_FIND = "SELECT blob::text, size_bytes, media_type, created_us FROM payload WHERE tenant = $1 AND sha256 = $2"
_HELD = "SELECT EXISTS (SELECT 1 FROM payload_holder WHERE tenant = $1 AND sha256 = $2 AND principal = $3)"
_LEASED = """SELECT EXISTS (SELECT 1 FROM task t, artifact a WHERE t.id = $3::text::uuid AND t.tenant = $1
AND t.status = 3 AND t.attempt = $4 AND a.tenant = $1 AND a.payload_digest = $2 AND a.payload_digest <> ''::bytea
AND a.id = ANY(string_to_array(t.artifact_ids, ',')::uuid[]))"""
_CHUNK = "SELECT bytes FROM payload_chunk WHERE blob = $1::text::uuid AND n = $2"
# Who is about to refer to a payload touches it first: the lock's second look at touched_us then passes it over. One
# still referred to is looked at again only after another grace.
_UNUSED = """WITH old AS (SELECT tenant, sha256, blob FROM payload WHERE touched_us < $1
ORDER BY touched_us LIMIT $3 FOR UPDATE SKIP LOCKED),
judged AS (SELECT old.*, EXISTS (SELECT 1 FROM artifact a WHERE a.tenant = old.tenant
AND a.payload_digest = old.sha256 AND a.payload_digest <> ''::bytea) AS used FROM old),
kept AS (UPDATE payload p SET touched_us = $2 FROM judged j
WHERE j.used AND p.tenant = j.tenant AND p.sha256 = j.sha256),
gone AS (DELETE FROM payload p USING judged j WHERE NOT j.used AND p.tenant = j.tenant AND p.sha256 = j.sha256),
holders AS (DELETE FROM payload_holder h USING judged j
WHERE NOT j.used AND h.tenant = j.tenant AND h.sha256 = j.sha256),
left_over AS (INSERT INTO payload_upload (blob, tenant, touched_us) SELECT blob, tenant, 0 FROM judged WHERE NOT used)
SELECT count(*) FROM judged"""
_SILENT = "UPDATE payload_upload SET touched_us = 0 WHERE touched_us > 0 AND touched_us < $1"
_LEFT = "SELECT blob FROM payload_upload WHERE touched_us = 0 LIMIT 1 FOR UPDATE SKIP LOCKED"
_CHUNKS = """DELETE FROM payload_chunk WHERE ctid = ANY(ARRAY(
SELECT ctid FROM payload_chunk WHERE blob = $1 ORDER BY n LIMIT $2))"""


class Payloads:
    """The payloads of all tenants. Raises the ports' errors."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, tenant: str, blob: str, now_us: int) -> None:
        """Open an upload."""
        await self._database.execute(_BEGIN, blob, tenant, now_us)

    async def append(self, tenant: str, blob: str, number: int, chunk: bytes, now_us: int) -> bool:
        """Store a chunk; False where the upload was given up meanwhile."""
        return _count(await self._database.execute(_APPEND, blob, tenant, now_us, number, chunk)) == 1

    async def abandon(self, tenant: str, blob: str) -> None:
        """Leave an upload's chunks to the sweep."""
        await self._database.execute(_ABANDON, blob, tenant)

    async def finish(
        self, tenant: str, principal: str, sha256: bytes, found: StoredPayload, now_us: int
    ) -> StoredPayload | None:
        """Make an upload a payload, or leave its chunks to the sweep where the tenant has the same content. Returns
        what is stored; its blob is another's in the second case. None where the upload was given up meanwhile."""
        values = (tenant, sha256, found.blob, found.size_bytes, found.media_type, now_us)
        async with self._database.transaction() as connection:
            if _count(await connection.execute(_GIVEN, found.blob, tenant)) != 1:
                return None
            stored = StoredPayload(**await connection.fetchrow(_PUT, *values))
            if stored.blob != found.blob:
                await connection.execute(_BEGIN, found.blob, tenant, 0)
            await connection.execute(_HOLD, tenant, sha256, principal)
            return stored

    async def keep(
        self, tenant: str, sha256: bytes, found: StoredPayload, content: bytes, chunk_bytes: int, now_us: int
    ) -> None:
        """Store a content that is at hand, in one statement; nothing where the tenant has it."""
        values = (tenant, sha256, found.blob, found.size_bytes, found.media_type, now_us, content, chunk_bytes)
        await self._database.execute(_KEEP, *values)

    async def retype(self, tenant: str, sha256: bytes, media_type: str) -> None:
        """Say anew what a payload is."""
        await self._database.execute(_RETYPE, tenant, sha256, media_type)

    async def find(self, tenant: str, sha256: bytes) -> StoredPayload | None:
        """A tenant's payload."""
        row = await self._database.fetchrow(_FIND, tenant, sha256)
        return StoredPayload(**row) if row else None

    async def held(self, tenant: str, sha256: bytes, principal: str) -> bool:
        """Whether a principal uploaded it."""
        return bool(await self._database.fetchval(_HELD, tenant, sha256, principal))

    async def seen(self, tenant: str, sha256: bytes, reader: Reader | None, now_us: int) -> bool:
        """Whether an artifact refers to it that a reader, None for one who sees all, may see."""
        found = select(literal(1)).where(
            artifact.c.tenant == tenant,
            artifact.c.payload_digest == sha256,
            artifact.c.payload_digest != literal_column("''::bytea"),
        )
        if reader is not None:
            found = found.where(visible_to(reader, now_us))
        return bool(await fetch(self._database, found.limit(1)))

    async def leased(self, tenant: str, sha256: bytes, lease: LeaseRef) -> bool:
        """Whether this running attempt of a task was given an artifact that refers to it."""
        return bool(await self._database.fetchval(_LEASED, tenant, sha256, lease.task_id, lease.attempt))

    async def chunk(self, blob: str, number: int) -> bytes:
        """One chunk. Raises NotFound where retention has dropped it."""
        found = await self._database.fetchval(_CHUNK, blob, number)
        if found is None:
            raise NotFound("the payload was dropped by retention while it was read")
        return bytes(found)

    async def release(self, untouched_since_us: int, now_us: int, limit: int) -> int:
        """Leave to the sweep what no artifact refers to; returns how many payloads were looked at."""
        return int(await self._database.fetchval(_UNUSED, untouched_since_us, now_us, limit))

    async def sweep(self, silent_since_us: int, limit: int) -> int:
        """Drop chunks, at most `limit`, of one upload that broke off or blob that was left; returns how many rows went,
        0 once nothing is left."""
        await self._database.execute(_SILENT, silent_since_us)
        async with self._database.transaction() as connection:
            blob = await connection.fetchval(_LEFT)
            if blob is None:
                return 0
            dropped = _count(await connection.execute(_CHUNKS, blob, limit))
            if dropped < limit:
                await connection.execute("DELETE FROM payload_upload WHERE blob = $1", blob)
                dropped += 1
            return dropped


def _count(tag: str) -> int:
    """Rows that a statement changed, by its tag."""
    return int(tag.rsplit(" ", 1)[-1])
