"""What is stuck: tasks that are retried, and what waits for a worker. To find them costs the same however many tasks
there are."""

from millstream.application.views.runs import StuckQuery, StuckTask
from millstream.store.connections import Database, Record
from millstream.store.rows import TASK_COLUMNS, task_of

LOOKED_AT = 5_000
"""Retried tasks that a page looks at."""
KEYS_MOST = 200
"""Queues and kinds."""
COUNTED = 1_000
SILENT_US = 15_000_000
"""A server not seen for this long is gone."""
_LISTED = TASK_COLUMNS.replace("input", "''::bytea AS input")
_FIRST_FAILURE = """coalesce((SELECT finished_us FROM attempt WHERE attempt.day = task.day AND attempt.task_id = task.id
AND attempt.status IN (3, 4, 5) ORDER BY number LIMIT 1), task.created_us)"""
_RETRIED = """SELECT * FROM task WHERE tenant = $1 AND tries > 0 AND finished_us = 0 AND id > $2::text::uuid
ORDER BY id"""
_RETRYING = f"""SELECT * FROM (SELECT {_LISTED}, id AS place, {_FIRST_FAILURE} AS since
FROM ({_RETRIED} LIMIT {LOOKED_AT}) task WHERE ($3 = '' OR kind = $3) AND ($4 = '' OR queue = $4)) t
WHERE since <= $5 ORDER BY place LIMIT $6"""  # noqa: S608
_LAST_LOOKED_AT = f"SELECT id::text FROM ({_RETRIED} LIMIT {LOOKED_AT}) t OFFSET {LOOKED_AT - 1}"  # noqa: S608
_READY = "FROM task WHERE tenant = $1 AND status = 2"
# Down the index of ready tasks from key to key, a step for each; and within one from urgency to urgency.
_KEYS = f"""WITH RECURSIVE keys(queue, kind) AS ((SELECT queue, kind {_READY} ORDER BY queue, kind LIMIT 1) UNION ALL
SELECT t.queue, t.kind FROM keys, LATERAL (SELECT queue, kind {_READY} AND (queue, kind) > (keys.queue, keys.kind)
ORDER BY queue, kind LIMIT 1) t)"""  # noqa: S608
_OF_KEY = f"{_READY} AND queue = k.queue AND kind = k.kind"
_OLDEST = f"""WITH RECURSIVE steps(urgency) AS ((SELECT urgency {_OF_KEY} ORDER BY urgency LIMIT 1) UNION ALL
SELECT t.urgency FROM steps, LATERAL (SELECT urgency {_OF_KEY} AND urgency > steps.urgency
ORDER BY urgency LIMIT 1) t)
SELECT first.id, first.run_at_us FROM steps, LATERAL (SELECT id, run_at_us {_OF_KEY} AND urgency = steps.urgency
ORDER BY run_at_us, id LIMIT 1) first ORDER BY first.run_at_us, first.id LIMIT 1"""  # noqa: S608
_SERVED = """EXISTS (SELECT 1 FROM lane JOIN interest ON interest.lane = lane.id WHERE lane.seen_us > $2
AND interest.tenant = $1 AND interest.queue = k.queue AND interest.kind = k.kind)"""
_WAITING = f"""{_KEYS}, found AS (SELECT k.queue, k.kind, oldest.id, oldest.run_at_us AS since, {_SERVED} AS served
FROM (SELECT * FROM keys LIMIT {KEYS_MOST}) k, LATERAL ({_OLDEST}) oldest
WHERE ($3 = '' OR k.kind = $3) AND ($4 = '' OR k.queue = $4) AND left(k.queue, 1) <> '~')
SELECT {", ".join(f"task.{each.strip()}" for each in _LISTED.split(",") if "input" not in each)}, ''::bytea AS input,
k.since, k.served, (SELECT count(*) FROM (SELECT 1 {_OF_KEY} LIMIT {COUNTED}) c) AS waiting
FROM found k JOIN task ON task.id = k.id
WHERE k.since <= $5 AND NOT ($6 AND k.served) ORDER BY k.since, k.queue, k.kind LIMIT $7"""  # noqa: S608
FIRST_ID = "00000000-0000-0000-0000-000000000000"


class StuckReads:
    """Reads of what is stuck."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def retrying(
        self, tenant: str, query: StuckQuery, since_us: int, after: str, limit: int
    ) -> tuple[list[StuckTask], str]:
        """Tasks that failed and are tried again, the oldest first; and the id to go on after, "" at the end."""
        place = after or FIRST_ID
        rows = await self._database.fetch(_RETRYING, tenant, place, query.kind, query.queue, since_us, limit + 1)
        found = [_stuck(row) for row in rows]
        if len(found) > limit:
            return found[:limit], found[limit - 1].task.id
        return found, str(await self._database.fetchval(_LAST_LOOKED_AT, tenant, place) or "")

    async def waiting(self, tenant: str, query: StuckQuery, now_us: int, limit: int) -> list[StuckTask]:
        """By queue and kind the task that waits the longest for a worker, the longest wait first."""
        rows = await self._database.fetch(
            _WAITING, tenant, now_us - SILENT_US, query.kind, query.queue, now_us - query.for_us, query.unserved, limit
        )
        return [_stuck(row) for row in rows]


def _stuck(row: Record) -> StuckTask:
    fields = dict(row)
    since_us, _ = fields.pop("since"), fields.pop("place", None)
    waiting, served = fields.pop("waiting", 0), fields.pop("served", False)
    return StuckTask(task_of(fields), since_us, waiting, served)
