"""A lane: the connection through which a process commits its batches, in order.

Every write also inserts the row (lane, n) into commit_batch. When a connection is lost at the commit, inserting that
row again tells what happened: if it is there the write was committed, and if it is not, it never can be.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import asyncpg

from millstream.application.ports import Disconnected
from millstream.domain.batch import BUSINESS, Batch, KeyClaim
from millstream.domain.bounds import Line, LineKey
from millstream.domain.code import CLOSED
from millstream.domain.gates import Buffer
from millstream.domain.planners import RUN_TIMEOUT
from millstream.domain.runs import Run, Task
from millstream.store import hot, single
from millstream.store.columns import names, numbers, texts, uuids
from millstream.store.connections import LOST, connect, translated
from millstream.store.feed import packed
from millstream.store.policies import spec_of, starts_text
from millstream.store.rows import BUFFER_COLUMNS, RUN_COLUMNS, TASK_COLUMNS, buffer_of, line_of, run_of, task_of

BLOCKING_LOCK_MS = 5000
"""How long the blocking lane waits for a run that another server holds."""
FAST_LOCK_MS = 500
"""How long the one-statement path waits for a row before the locked path, which can pass it over, takes over."""
UNBOUNDED = 1 << 30
_KEPT_BATCHES = 1000
_SETTINGS = {
    # The statements have one sensible plan each (see hot.py), so planning them again per batch buys nothing.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
    "lock_timeout": str(FAST_LOCK_MS),
    # A process that is stopped inside a transaction loses its locks after this.
    "idle_in_transaction_session_timeout": "2000",
    "tcp_user_timeout": "5000",
}
_KEYS = """SELECT tenant, principal, rpc, key, fingerprint, response, expires_us FROM idempotency
WHERE (tenant, principal, rpc, key) IN (SELECT * FROM unnest($1::text::text[], $2::text::text[], $3::text::text[],
$4::text[])) ORDER BY 1, 2, 3, 4"""
_DROP_KEYS = """DELETE FROM idempotency WHERE (tenant, principal, rpc, key) IN (SELECT * FROM
unnest($1::text::text[], $2::text::text[], $3::text::text[], $4::text[])) AND expires_us <= $5"""
_TARGETS = "id = ANY($1::text::uuid[] || ARRAY(SELECT run_id FROM task WHERE id = ANY($2::text::uuid[])))"
_LOCK_RUNS = f"SELECT {RUN_COLUMNS} FROM run WHERE {_TARGETS} ORDER BY run.id FOR UPDATE SKIP LOCKED"  # noqa: S608
_WAIT_RUNS = f"SELECT {RUN_COLUMNS} FROM run WHERE {_TARGETS} ORDER BY run.id FOR UPDATE"  # noqa: S608
_KNOWN_RUNS = "SELECT id::text FROM run WHERE id = ANY($1::text::uuid[])"
_TASKS = f"""SELECT {TASK_COLUMNS} FROM task WHERE id = ANY($1::text::uuid[])"""  # noqa: S608
_OPEN_TASKS = f"""SELECT {TASK_COLUMNS} FROM task WHERE run_id = ANY($1::text::uuid[]) AND finished_us = 0"""  # noqa: S608
_FAILED_TASKS = f"""SELECT {TASK_COLUMNS} FROM task WHERE run_id = ANY($1::text::uuid[]) AND finished_us > 0
AND (status = 5 OR error_code = '{RUN_TIMEOUT}' OR id = run_id OR (status = 6 AND error_message = '{CLOSED}'))"""  # noqa: S608
_BUFFERS = f"""SELECT {BUFFER_COLUMNS} FROM buffer
WHERE id = ANY($1::text::uuid[] || ARRAY(SELECT id FROM buffer WHERE run_id = ANY($2::text::uuid[])))
ORDER BY buffer.id FOR UPDATE"""  # noqa: S608
_KNOWN_BUFFERS = "SELECT id::text FROM buffer WHERE id = ANY($1::text::uuid[])"
_REGISTRY = "SELECT tenant, version FROM registry WHERE tenant = ANY($1::text::text[])"
_LOCK_AGENTS = """SELECT tenant, name, spec FROM agent WHERE (tenant, name) IN
(SELECT * FROM unnest($1::text::text[], $2::text::text[])) ORDER BY tenant, name FOR UPDATE SKIP LOCKED"""
_LOCK_LINES = """SELECT tenant, name, period_us, starts FROM line WHERE (tenant, name) IN
(SELECT * FROM unnest($1::text::text[], $2::text::text[])) ORDER BY tenant, name FOR UPDATE SKIP LOCKED"""
_LINES_RUNNING = """SELECT k.tenant, k.name, (SELECT count(*) FROM task WHERE tenant = k.tenant AND status = 3
AND concurrency_key = substr(k.name, 3) AND concurrency_key <> '') AS running
FROM unnest($1::text::text[], $2::text::text[]) k(tenant, name)"""
_STARTED = """UPDATE line SET period_us = u.period_us, starts = u.starts, until_us = CASE WHEN
line.until_us < u.until_us THEN u.until_us + 86400000000 ELSE line.until_us END
FROM unnest($1::text::text[], $2::text::text[], $3::text::int8[], $4::text::text[], $5::text::int8[])
u(tenant, name, period_us, starts, until_us) WHERE line.tenant = u.tenant AND line.name = u.name"""
_ENDED_OF_KEYS = "SELECT id::text FROM run WHERE id = ANY($1::text::uuid[]) AND status IN (4, 5)"
_FREE_KEYS = """DELETE FROM idempotency WHERE (tenant, principal, rpc, key, response) IN (SELECT * FROM
unnest($1::text::text[], $2::text::text[], $3::text::text[], $4::text[], $5::text[]))"""
_AGENTS = (
    "SELECT tenant, name FROM agent WHERE (tenant, name) IN (SELECT * FROM unnest($1::text::text[], $2::text::text[]))"
)
_RUNNING = "SELECT count(*) FROM task WHERE tenant = $1 AND kind = $2 AND status = 3 AND limited"
_PAYLOADS = """SELECT tenant, sha256 FROM payload WHERE (tenant, sha256) IN
(SELECT k.tenant, decode(k.digest, 'hex') FROM unnest($1::text::text[], $2::text::text[]) k(tenant, digest))"""
_OPEN_PROMISES = """SELECT tenant, promise_key, id::text FROM task WHERE promise_key <> '' AND finished_us = 0
AND (tenant, promise_key) IN (SELECT * FROM unnest($1::text::text[], $2::text::text[]))"""
# The number is taken by settle itself: its negative tells so, should the answer to this be lost in turn.
_VOID = """WITH mine AS (INSERT INTO commit_batch (lane, n) VALUES ($1::text::uuid, $2) ON CONFLICT DO NOTHING
RETURNING lane, n) INSERT INTO commit_batch (lane, n) SELECT lane, -n FROM mine RETURNING 1"""
_VOIDED = "SELECT 1 FROM commit_batch WHERE lane = $1::text::uuid AND n = -$2::int8"
_PRUNE = "DELETE FROM commit_batch WHERE lane = $1::text::uuid AND n >= $2 AND n < $3 AND artifacts = ''"
_NOW = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8"


@dataclass(frozen=True, slots=True)
class Statement:
    """A batch ready to be written: the text and its parameters but for the lane and the number."""

    text: str
    parameters: list[object]


def statement_of(batch: Batch, registry: Mapping[str, int]) -> Statement:
    """The statement that writes a batch."""
    feed = packed(batch.artifacts) if batch.artifacts else b""
    rows = {table: found for table, found in hot.rows_of(batch).items() if found}
    if single.fits(rows):
        shape, values = single.parameters_of(rows)
        values += _fenced(rows, registry)
        return Statement(single.write_sql(shape, bool(registry)), [feed, *values])
    parts: list[str] = []
    parameters: list[object] = [feed]
    for table, found in rows.items():
        part, encoded = hot.encode(table, found)
        parts.append(part)
        parameters += encoded
    parameters += _fenced(rows, registry)
    return Statement(hot.write_sql(tuple(parts), bool(registry)), parameters)


def _fenced(rows: Mapping[str, list[tuple[Any, ...]]], registry: Mapping[str, int]) -> list[object]:
    """What the fences compare with."""
    found: list[object] = [*hot.updates(rows)]
    if registry:
        found += [names(registry), numbers(registry.values()), len(registry)]
    return found


def _key_columns(ids: Iterable[tuple[str, str, str, str]]) -> tuple[str, str, str, list[str]]:
    tenants, principals, rpcs, values = zip(*ids, strict=True)
    return names(tenants), names(principals), names(rpcs), list(values)


class PostgresTransaction:
    """A transaction on a lane's connection."""

    def __init__(
        self, connection: "asyncpg.Connection[asyncpg.Record]", batch: tuple[str, int], blocking: bool
    ) -> None:
        self._connection = connection
        self._batch = batch
        self._blocking = blocking

    async def keys(self, claims: Iterable[KeyClaim]) -> dict[tuple[str, str, str, str], KeyClaim]:
        """The live keys already claimed; expired ones are removed, so that they can be claimed anew."""
        ids = sorted(claim.id for claim in claims)
        rows = await self._connection.fetch(_KEYS, *_key_columns(ids))
        now = await self._connection.fetchval(_NOW)
        if any(row["expires_us"] <= now for row in rows):
            await self._connection.execute(_DROP_KEYS, *_key_columns(ids), now)
        found = {claim.id: claim for claim in (KeyClaim(**row) for row in rows if row["expires_us"] > now)}
        await self._free(found)
        return found

    async def _free(self, found: dict[tuple[str, str, str, str], KeyClaim]) -> None:
        """Take business keys out whose run failed or was cancelled: they can be claimed anew."""
        of_runs = {claim: json.loads(claim.response)[-1] for claim in found.values() if claim.rpc.startswith(BUSINESS)}
        if not of_runs:
            return
        ended = {row["id"] for row in await self._connection.fetch(_ENDED_OF_KEYS, uuids(of_runs.values()))}
        free = [claim for claim, run_id in of_runs.items() if run_id in ended]
        if free:
            columns = _key_columns(claim.id for claim in free)
            await self._connection.execute(_FREE_KEYS, *columns, [claim.response for claim in free])
        for claim in free:
            del found[claim.id]

    async def runs(self, run_ids: set[str], task_ids: set[str]) -> tuple[dict[str, Run], set[str]]:
        """Lock runs in the order of their ids; of those named directly, which are locked elsewhere."""
        targets = (uuids(sorted(run_ids)), uuids(sorted(task_ids)))
        rows = await self._connection.fetch(_WAIT_RUNS if self._blocking else _LOCK_RUNS, *targets)
        found = {run.id: run for run in map(run_of, rows)}
        missing = run_ids - found.keys()
        if self._blocking or not missing:
            return found, set()
        return found, {row["id"] for row in await self._connection.fetch(_KNOWN_RUNS, uuids(missing))}

    async def tasks(self, task_ids: set[str], open_of: set[str], failed_of: set[str]) -> dict[str, Task]:
        """Tasks by id, and open and failed tasks by run.

        They need no locks of their own: whoever changes a task's state holds its run, or waits for it.
        """
        rows = []
        if task_ids:
            rows += await self._connection.fetch(_TASKS, uuids(sorted(task_ids)))
        if open_of:
            rows += await self._connection.fetch(_OPEN_TASKS, uuids(sorted(open_of)))
        if failed_of:
            rows += await self._connection.fetch(_FAILED_TASKS, uuids(sorted(failed_of)))
        return {task.id: task for task in map(task_of, rows)}

    async def registry(self, tenants: set[str]) -> dict[str, int]:
        """Versions of the tenants' registries."""
        rows = await self._connection.fetch(_REGISTRY, names(sorted(tenants)))
        return {row["tenant"]: row["version"] for row in rows}

    async def room(self, gates: set[tuple[str, str]]) -> dict[tuple[str, str], int]:
        """Lock limited agents in order; their bound less what runs. An agent that has none any more has room; one that
        another server holds is left out, so that nobody waits for a server that was stopped."""
        tenants, kinds = zip(*sorted(gates), strict=True)
        agents = [kind.removeprefix("agent:") for kind in kinds]
        rows = await self._connection.fetch(_LOCK_AGENTS, names(tenants), names(agents))
        found = dict.fromkeys(gates, UNBOUNDED)
        for row in rows:
            gate = (row["tenant"], f"agent:{row['name']}")
            bound = spec_of(row["spec"]).max_concurrency
            if bound:
                found[gate] = bound - await self._connection.fetchval(_RUNNING, *gate)
        if len(rows) < len(gates):
            locked = {(row["tenant"], row["name"]) for row in rows}
            for row in await self._connection.fetch(_AGENTS, names(tenants), names(agents)):
                if (row["tenant"], row["name"]) not in locked:
                    del found[row["tenant"], f"agent:{row['name']}"]
        return found

    async def lines(self, wanted: set[LineKey]) -> dict[LineKey, Line]:
        """Lock lines in order, and count what runs of their keys. Those locked elsewhere are passed over, so that
        nobody waits for a server that was stopped."""
        tenants, lines = zip(*sorted(wanted), strict=True)
        rows = await self._connection.fetch(_LOCK_LINES, names(tenants), names(lines))
        found = {(row["tenant"], row["name"]): line_of(row) for row in rows}
        counted = [key for key, line in found.items() if not line.is_rate]
        if counted:
            tenants, lines = zip(*counted, strict=True)
            for row in await self._connection.fetch(_LINES_RUNNING, names(tenants), names(lines)):
                found[row["tenant"], row["name"]].running = row["running"]
        return found

    async def buffers(self, ids: set[str], of_runs: set[str]) -> tuple[dict[str, Buffer], set[str]]:
        """Lock buffers; what of them another server holds is passed over, unless this is the blocking lane."""
        passing = "" if self._blocking else " SKIP LOCKED"
        rows = await self._connection.fetch(_BUFFERS + passing, uuids(sorted(ids)), uuids(sorted(of_runs)))
        found = {row["id"]: buffer_of(row) for row in rows}
        missing = ids - found.keys()
        elsewhere: set[str] = set()
        if missing and not self._blocking:
            elsewhere = {row["id"] for row in await self._connection.fetch(_KNOWN_BUFFERS, uuids(sorted(missing)))}
        return found, elsewhere

    async def open_promises(self, wanted: set[tuple[str, str]]) -> dict[tuple[str, str], str]:
        """Ids of open promises by (tenant, key)."""
        tenants, keys = zip(*wanted, strict=True)
        rows = await self._connection.fetch(_OPEN_PROMISES, names(tenants), texts(keys))
        return {(row["tenant"], row["promise_key"]): row["id"] for row in rows}

    async def payloads(self, wanted: set[tuple[str, bytes]]) -> set[tuple[str, bytes]]:
        """Payloads outside that there are, of those asked for."""
        tenants, digests = zip(*wanted, strict=True)
        rows = await self._connection.fetch(_PAYLOADS, names(tenants), texts([each.hex() for each in digests]))
        return {(row["tenant"], row["sha256"]) for row in rows}

    async def write(self, batch: Batch) -> None:
        """Write the batch with its number."""
        started = [(tenant, line) for (tenant, _), line in batch.lines.items() if line.changed]
        if started:
            await self._connection.execute(
                _STARTED,
                names([tenant for tenant, _ in started]),
                names([line.name for _, line in started]),
                numbers([line.period_us for _, line in started]),
                texts([starts_text(line.starts) for _, line in started]),
                numbers([batch.now_us + line.period_us for _, line in started]),
            )
        statement = statement_of(batch, {})
        await self._connection.fetchrow(statement.text, *self._batch, *statement.parameters)


class PostgresLane:
    """A lane on PostgreSQL. Not for use by two tasks at once: a connection does one thing at a time."""

    def __init__(self, url: str, lane_id: str) -> None:
        self.id = lane_id
        self._url = url
        self._n = 0
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None

    async def open(self) -> None:
        """Connect. Raises OSError or a PostgresError where that fails."""
        self._connection = await connect(self._url, _SETTINGS)

    async def close(self) -> None:
        """Disconnect."""
        if self._connection is not None:
            with contextlib.suppress(*LOST):
                await self._connection.close(timeout=2)
            self._connection = None

    def _live(self) -> "asyncpg.Connection[asyncpg.Record]":
        if self._connection is None or self._connection.is_closed():
            raise Disconnected
        return self._connection

    def prepare(self, batch: Batch, registry: Mapping[str, int]) -> Statement:
        """What writes a batch, made while another may still be under way."""
        return statement_of(batch, registry)

    async def write(self, statement: Statement) -> int:
        """Write a batch in one autocommit statement."""
        self._n += 1  # first: of a write that finds no connection, settle must not tell what became of the one before
        with translated():
            row = await self._live().fetchrow(statement.text, self.id, self._n, *statement.parameters)
        if self._n % _KEPT_BATCHES == 0:
            await self._prune()
        return int(row[0]) if row else 0

    @contextlib.asynccontextmanager
    async def transaction(self, blocking: bool = False) -> AsyncIterator[PostgresTransaction]:
        """A transaction of this batch's number."""
        self._n += 1
        with translated():
            connection = self._live()
            async with connection.transaction():
                if blocking:
                    await connection.execute(f"SET LOCAL lock_timeout = {BLOCKING_LOCK_MS}")
                yield PostgresTransaction(connection, (self.id, self._n), blocking)
        if self._n % _KEPT_BATCHES == 0:
            await self._prune()

    async def settle(self) -> bool:
        """Connect again and find out about the last write; an uncommitted one is made impossible."""
        pause = 0.05
        while True:
            try:
                if self._connection is not None:
                    self._connection.terminate()
                self._connection = await connect(self._url, _SETTINGS)
                if await self._connection.fetchval(_VOID, self.id, self._n):
                    return False
                return await self._connection.fetchval(_VOIDED, self.id, self._n) is None
            except (asyncpg.PostgresError, *LOST):
                await asyncio.sleep(pause)
                pause = min(pause * 2, 1.0)

    async def _prune(self) -> None:
        """Old numbers of this lane tell nothing any more, a later batch was committed; but for those that stored
        artifacts: these are the feed."""
        with translated():
            await self._live().execute(_PRUNE, self.id, self._n - _KEPT_BATCHES, self._n)

    async def now_us(self) -> int:
        """The database's time."""
        with translated():
            return int(await self._live().fetchval(_NOW))
