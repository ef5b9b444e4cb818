"""What the runtime's loops ask: what is due, whose lease ran out, who is there, what may go."""

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from millstream.domain.bounds import UNBOUND, Bounds
from millstream.domain.runs import DAY_US
from millstream.store.columns import names, numbers, uuids
from millstream.store.connections import Database
from millstream.store.policies import bounds_of, options_of
from millstream.store.query import first_id
from millstream.store.workers import REMEMBER

DispatchKey = tuple[str, str, str]

_CANDIDATES = """SELECT t.id::text, t.tenant, t.kind, t.queue, t.limited, t.bounds, t.urgency, t.run_at_us FROM
unnest($1::text::text[], $2::text::text[], $3::text::text[], $4::text::int4[]) k(tenant, queue, kind, room),
LATERAL (SELECT id, tenant, kind, queue, limited, bounds, urgency, run_at_us FROM task
WHERE tenant = k.tenant AND queue = k.queue AND kind = k.kind AND status = 2
ORDER BY urgency, run_at_us, id LIMIT k.room) t ORDER BY t.urgency, t.run_at_us, t.id"""
_DUE = "SELECT id::text FROM task WHERE status = 1 AND run_at_us <= $1 ORDER BY run_at_us LIMIT $2"
_NEXT_DUE = """SELECT least((SELECT min(run_at_us) FROM task WHERE status = 1 AND run_at_us > $1),
(SELECT min(start_by_us) FROM task WHERE status = 2 AND start_by_us > 0 AND start_by_us > $1),
(SELECT min(start_by_us) FROM task WHERE status = 0 AND start_by_us > 0 AND start_by_us > $1))"""
_EXPIRED = "SELECT id::text FROM task WHERE status = 3 AND lease_until_us <= $1 ORDER BY lease_until_us LIMIT $2"
_TOO_LATE = """SELECT id::text FROM task WHERE status = 2 AND start_by_us > 0 AND start_by_us <= $1
ORDER BY start_by_us LIMIT $2"""
_TOO_LATE_IN_LINE = """SELECT id::text FROM task WHERE status = 0 AND start_by_us > 0 AND start_by_us <= $1
ORDER BY start_by_us LIMIT $2"""
_OVERDUE_CANCELS = """SELECT id::text FROM run WHERE cancel_by_us > 0 AND cancel_by_us <= $1
ORDER BY cancel_by_us LIMIT $2"""
_OVERTIME = "SELECT id::text FROM run WHERE deadline_us > 0 AND deadline_us <= $1 ORDER BY deadline_us LIMIT $2"
_NEXT_OVERTIME = "SELECT min(deadline_us) FROM run WHERE deadline_us > 0 AND deadline_us > $1"
_DUE_RUNS = "SELECT id::text FROM run WHERE due_us > 0 AND due_us <= $1 ORDER BY due_us LIMIT $2"
_OF_WORKER = "SELECT id::text FROM task WHERE status = 3 AND worker_id = $1 LIMIT 10000"
_RENEW = """UPDATE task SET lease_until_us = LEAST($3, CASE WHEN deadline_us > 0 THEN deadline_us END,
CASE WHEN beat_by_us > 0 THEN beat_by_us END) WHERE id = ANY($1::text::uuid[]) AND owner = $2 RETURNING id::text"""
_DELIVERED = "UPDATE task SET delivered = true WHERE id = ANY($1::text::uuid[]) AND owner = $2"
_BEAT = """UPDATE task SET beat_by_us = CASE WHEN u.beat_us > 0 THEN $4 + u.beat_us ELSE 0 END, delivered = true,
lease_until_us = LEAST($5, CASE WHEN deadline_us > 0 THEN deadline_us END,
CASE WHEN u.beat_us > 0 THEN $4 + u.beat_us END)
FROM unnest($1::text::uuid[], $2::text::int8[], $3::text::int8[]) u(id, attempt, beat_us)
WHERE task.id = u.id AND task.attempt = u.attempt AND task.finished_us = 0 AND task.owner <> ''
RETURNING task.id::text, task.attempt, task.cancelling"""
_BEAT_INTERVALS = "SELECT id::text, policy FROM task WHERE id = ANY($1::text::uuid[]) AND tenant = $2"
_PROGRESS = """UPDATE task SET progress = u.fraction, progress_message = u.message
FROM unnest($1::text::uuid[], $2::text::int8[], $3::text::float4[], $4::text[]) u(id, attempt, fraction, message)
WHERE task.id = u.id AND task.attempt = u.attempt AND task.owner <> ''"""
_SHORTEN = """UPDATE task SET lease_until_us = LEAST(lease_until_us, $3),
delivered = delivered OR id = ANY($4::text::uuid[])
WHERE id = ANY($1::text::uuid[]) AND owner = $2"""
_SEE = """INSERT INTO lane (id, server, started_us, seen_us)
SELECT id, CASE WHEN n = 1 THEN $2 ELSE '' END, $3, $3 FROM unnest($1::text::uuid[]) WITH ORDINALITY u(id, n)
ON CONFLICT (id) DO UPDATE SET seen_us = excluded.seen_us"""
_PEERS = "SELECT id::text FROM lane WHERE seen_us > $1 AND id <> $2::text::uuid AND server <> ''"
_INTERESTS = """SELECT interest.lane::text, tenant, queue, kind FROM interest JOIN lane ON lane.id = interest.lane
WHERE seen_us > $1 AND interest.lane <> $2::text::uuid"""
_LEAVE = "DELETE FROM interest WHERE lane = $1::text::uuid"
_INTEREST = """INSERT INTO interest (lane, tenant, queue, kind)
SELECT $1::text::uuid, * FROM unnest($2::text::text[], $3::text::text[], $4::text::text[])
ON CONFLICT DO NOTHING"""
_SEALED = f"""WITH gone AS (DELETE FROM lane WHERE seen_us < $1 RETURNING id, server AS host, seen_us AS left_us),
batches AS (DELETE FROM commit_batch WHERE lane IN (SELECT id FROM gone) AND artifacts = ''),
went AS (DELETE FROM worker USING gone WHERE lane = gone.id RETURNING worker.*, gone.host, gone.left_us),
remembered AS ({REMEMBER})
DELETE FROM interest WHERE lane IN (SELECT id FROM gone)"""  # noqa: S608
_KEYS = """DELETE FROM idempotency WHERE ctid = ANY(ARRAY(SELECT ctid FROM idempotency WHERE expires_us < $1
ORDER BY expires_us LIMIT $2))"""
_LINES = """DELETE FROM line WHERE ctid = ANY(ARRAY(SELECT ctid FROM line WHERE until_us < $1 ORDER BY until_us
LIMIT $2 FOR UPDATE SKIP LOCKED))"""
_ORDERLY = {"enable_seqscan": "off", "enable_sort": "off"}
"""How the oldest few are found: in the order of an index, not by reading all."""
# Locked, so that none is opened again while it is dropped.
_OLD_RUNS = """SELECT id::text, created_us / 86400000000 AS day FROM run
WHERE created_us < $1 AND finished_us > 0 AND finished_us < $1 AND keep_until_us < $2
ORDER BY created_us LIMIT $3 FOR UPDATE SKIP LOCKED"""
# Type by type, each with its own age; ids are in order of time, so what is young is not even looked at. A live key's
# replay needs what its run made, and an open run's tasks what they were given: those of a gate of the tenant, from
# other runs.
_OLD_ARTIFACTS = """DELETE FROM artifact WHERE ctid = ANY(ARRAY(SELECT old.ctid FROM
unnest($1::text::text[], $2::text::text[], $3::text::uuid[], $4::text::int8[]) k(tenant, type, before, before_us),
LATERAL (SELECT ctid FROM artifact WHERE tenant = k.tenant AND type = k.type AND id < k.before
AND created_us < k.before_us AND NOT EXISTS (SELECT 1 FROM run
WHERE run.id = artifact.run_id AND (run.keep_until_us >= $5 OR run.finished_us = 0)) AND NOT EXISTS (SELECT 1 FROM run
WHERE parents <> '' AND string_to_array(parents, ',') @> ARRAY[artifact.run_id::text] AND finished_us = 0)
ORDER BY id LIMIT $6) old
LIMIT $6))"""
_TYPES = """SELECT tenant, name, options FROM (SELECT DISTINCT ON (tenant, name) tenant, name, options
FROM artifact_type WHERE (tenant, name) > ($1, $2) ORDER BY tenant, name, version DESC) t LIMIT $3"""
_WAITING_SINCE = """SELECT tenant, min(opened_us) AS since FROM buffer WHERE run_id IS NULL AND waiting > 0
GROUP BY tenant"""
TYPES_A_STEP = 500
_STATS = """SELECT count(*) AS ready, coalesce(min(run_at_us), 0) AS oldest FROM
(SELECT run_at_us FROM task WHERE status = 2 AND queue NOT LIKE '~%' LIMIT 100000) t"""
_NOW = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A pending task that may be leased; `entry` is its place in line: urgency (the lower, the sooner), run_at, id."""

    key: DispatchKey
    entry: tuple[int, int, str]
    limited: bool
    bounds: Bounds = UNBOUND


class Maintenance:
    """Reads and small writes beside the committer; none of them changes the state of a run or task."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def now_us(self) -> int:
        """The database's time."""
        return int(await self._database.fetchval(_NOW))

    async def candidates(self, wanted: Mapping[DispatchKey, int]) -> list[Candidate]:
        """The oldest and most urgent pending tasks of each dispatch key, as many as there is room for."""
        tenants, queues, kinds = zip(*wanted, strict=True)
        rows = await self._database.fetch(
            _CANDIDATES, names(tenants), names(queues), names(kinds), numbers(wanted.values())
        )
        return [
            Candidate(
                (row["tenant"], row["queue"], row["kind"]),
                (row["urgency"], row["run_at_us"], row["id"]),
                row["limited"],
                bounds_of(row["bounds"]),
            )
            for row in rows
        ]

    async def _ids(self, statement: str, *arguments: object) -> list[str]:
        return [row["id"] for row in await self._database.fetch(statement, *arguments)]

    async def due(self, now_us: int, limit: int) -> list[str]:
        """Scheduled tasks whose time has come."""
        return await self._ids(_DUE, now_us, limit)

    async def next_due_us(self, now_us: int) -> int:
        """When the next scheduled task is due, or pending one too late; 0 for none."""
        return int(await self._database.fetchval(_NEXT_DUE, now_us) or 0)

    async def expired(self, now_us: int, limit: int) -> list[str]:
        """Running tasks whose lease ran out."""
        return await self._ids(_EXPIRED, now_us, limit)

    async def too_late(self, now_us: int, limit: int) -> list[str]:
        """Waiting tasks whose schedule_to_start has passed."""
        return await self._ids(_TOO_LATE, now_us, limit) + await self._ids(_TOO_LATE_IN_LINE, now_us, limit)

    async def overdue_cancels(self, now_us: int, limit: int) -> list[str]:
        """Runs whose cancellation has waited long enough."""
        return await self._ids(_OVERDUE_CANCELS, now_us, limit)

    async def overtime(self, now_us: int, limit: int) -> list[str]:
        """Runs whose time is over."""
        return await self._ids(_OVERTIME, now_us, limit)

    async def next_overtime_us(self, now_us: int) -> int:
        """When the time of the next run is over; 0 for none."""
        return int(await self._database.fetchval(_NEXT_OVERTIME, now_us) or 0)

    async def due_runs(self, now_us: int, limit: int) -> list[str]:
        """Runs that somebody has to look at."""
        return await self._ids(_DUE_RUNS, now_us, limit)

    async def of_worker(self, worker_id: str) -> list[str]:
        """Running tasks of a worker."""
        return await self._ids(_OF_WORKER, worker_id)

    async def renew(self, lane: str, task_ids: Sequence[str], until_us: int) -> set[str]:
        """Renew leases of this lane; returns those that are still its own."""
        return set(await self._ids(_RENEW, uuids(task_ids), lane, until_us))

    async def delivered(self, lane: str, task_ids: Sequence[str]) -> None:
        """Note that leases arrived, so that a worker lost from here on burns an attempt."""
        await self._database.execute(_DELIVERED, uuids(task_ids), lane)

    async def policies(self, tenant: str, task_ids: Sequence[str]) -> dict[str, str]:
        """Policies of a tenant's tasks as text."""
        rows = await self._database.fetch(_BEAT_INTERVALS, uuids(task_ids), tenant)
        return {row["id"]: row["policy"] for row in rows}

    async def beat(
        self, beats: Sequence[tuple[str, int, int]], now_us: int, until_us: int
    ) -> dict[tuple[str, int], bool]:
        """Signs of life: (task, attempt, heartbeat interval in us or 0). Returns, for those attempts that still run,
        whether their cancellation was asked for."""
        ids, attempts, intervals = zip(*beats, strict=True)
        rows = await self._database.fetch(_BEAT, uuids(ids), numbers(attempts), numbers(intervals), now_us, until_us)
        return {(row["id"], row["attempt"]): row["cancelling"] for row in rows}

    async def progress(self, reports: Sequence[tuple[str, int, float, str]]) -> None:
        """Progress of running tasks: (task, attempt, fraction, message)."""
        ids, attempts, fractions, messages = zip(*reports, strict=True)
        await self._database.execute(_PROGRESS, uuids(ids), numbers(attempts), numbers(fractions), list(messages))

    async def shorten(self, lane: str, task_ids: Sequence[str], until_us: int, delivered: Sequence[str]) -> None:
        """End leases of a worker that went, unless it comes back before then."""
        await self._database.execute(_SHORTEN, uuids(task_ids), lane, until_us, uuids(delivered))

    async def see(self, lanes: Sequence[str], server: str, now_us: int) -> None:
        """This server lives: its own lane, then others that it commits through but is not reached by."""
        await self._database.execute(_SEE, uuids(lanes), server, now_us)

    async def peers(self, lane: str, since_us: int) -> tuple[list[str], dict[DispatchKey, list[str]]]:
        """Other servers that live, and which of them serve which dispatch keys."""
        lanes = [row["id"] for row in await self._database.fetch(_PEERS, since_us, lane)]
        rows = await self._database.fetch(_INTERESTS, since_us, lane) if lanes else []
        interests: dict[DispatchKey, list[str]] = {}
        for row in rows:
            interests.setdefault((row["tenant"], row["queue"], row["kind"]), []).append(row["lane"])
        return lanes, interests

    async def interested(self, lane: str, keys: Sequence[DispatchKey]) -> None:
        """What this server's workers serve, in place of what they served."""
        async with self._database.transaction() as connection:
            await connection.execute(_LEAVE, lane)
            if keys:
                tenants, queues, kinds = zip(*keys, strict=True)
                await connection.execute(_INTEREST, lane, names(tenants), names(queues), names(kinds))

    async def leave(self, lanes: Sequence[str]) -> None:
        """This server goes. Its lanes stay, as gone, until what they committed is swept."""
        await self._database.execute(_LEAVE, lanes[0])
        await self.see(lanes, "", 0)

    async def drop_lanes(self, silent_since_us: int) -> None:
        """Drop lanes of servers that are gone, with the numbers of their batches but for those of the feed."""
        await self._database.execute(_SEALED, silent_since_us)

    @contextlib.asynccontextmanager
    async def _orderly(self) -> AsyncIterator[Any]:
        async with self._database.transaction() as connection:
            for name, value in _ORDERLY.items():
                await connection.execute(f"SET LOCAL {name} = {value}")
            yield connection

    async def drop_keys(self, now_us: int, limit: int) -> int:
        """Drop expired idempotency keys; returns how many."""
        async with self._orderly() as connection:
            return _count(await connection.execute(_KEYS, now_us, limit))

    async def drop_lines(self, now_us: int, limit: int) -> int:
        """Drop rows of lines that were not used for long; returns how many. They are made again when needed."""
        async with self._orderly() as connection:
            return _count(await connection.execute(_LINES, now_us, limit))

    async def drop_runs(self, ended_before_us: int, now_us: int, limit: int) -> int:
        """Drop finished runs with all that is theirs but their artifacts; returns how many."""
        async with self._orderly() as connection:
            rows = await connection.fetch(_OLD_RUNS, ended_before_us, now_us, limit)
            if not rows:
                return 0
            ids = uuids([row["id"] for row in rows])
            days = numbers(sorted({row["day"] for row in rows}))
            await connection.execute(
                "DELETE FROM attempt WHERE day = ANY($1::text::int4[]) AND task_id = ANY(ARRAY("
                "SELECT id FROM task WHERE run_id = ANY($2::text::uuid[])))",
                days,
                ids,
            )
            for statement in (
                "DELETE FROM run_payload WHERE day = ANY($1::text::int4[]) AND run_id = ANY($2::text::uuid[])",
                "DELETE FROM journal WHERE day = ANY($1::text::int4[]) AND run_id = ANY($2::text::uuid[])",
                "DELETE FROM event WHERE day = ANY($1::text::int4[]) AND run_id = ANY($2::text::uuid[])",
                "DELETE FROM task WHERE $1::text <> '' AND run_id = ANY($2::text::uuid[])",
                "DELETE FROM run WHERE $1::text <> '' AND id = ANY($2::text::uuid[])",
            ):
                await connection.execute(statement, days, ids)
            return len(rows)

    async def drop_artifacts(self, now_us: int, default_days: float, limit: int) -> int:
        """Drop artifacts older than their type, or else the server (0: never), keeps them; returns how many, at most
        `limit` of each TYPES_A_STEP types."""
        dropped, last = 0, ("", "")
        # What waits in a gate of the tenant is younger than the first that does.
        waiting = {row["tenant"]: row["since"] for row in await self._database.fetch(_WAITING_SINCE)}
        while True:
            rows = await self._database.fetch(_TYPES, *last, TYPES_A_STEP)
            days = [(row, options_of(row["options"]).retention_days or default_days) for row in rows]
            kept = [
                (row["tenant"], row["name"], min(now_us - int(each * DAY_US), waiting.get(row["tenant"], now_us)))
                for row, each in days
                if each
            ]
            if kept:
                tenants, kinds, before_us = zip(*kept, strict=True)
                before = [first_id(each) for each in before_us]
                arguments = (names(tenants), names(kinds), uuids(before), numbers(before_us), now_us, limit)
                async with self._orderly() as connection:
                    dropped += _count(await connection.execute(_OLD_ARTIFACTS, *arguments))
            if len(rows) < TYPES_A_STEP:
                return dropped
            last = (rows[-1]["tenant"], rows[-1]["name"])

    def connections(self) -> tuple[int, int]:
        """This server's connections for reads and upkeep, and those of them that are idle."""
        return self._database.size

    async def stats(self) -> tuple[int, int]:
        """Pending tasks (counted to 100,000), and since when the oldest is ready, microseconds (0 for none)."""
        row = await self._database.fetchrow(_STATS)
        return (int(row["ready"]), int(row["oldest"])) if row else (0, 0)


def _count(tag: str) -> int:
    """Rows that a statement changed, by its tag."""
    return int(tag.rsplit(" ", 1)[-1])
