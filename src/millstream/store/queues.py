"""Queues: which there are, and how many tasks stand in each. Nothing here reads more than a bound of any queue."""

from collections.abc import Sequence

from millstream.application.views.queues import QueueState
from millstream.store.columns import names
from millstream.store.connections import Database

QUEUES_MOST = 1000
COUNT_MOST = 10_001
RUNNING_MOST = 100_000
"""Running tasks that are looked at, of all tenants together: they are as many as all workers' slots."""
_NEXT = "SELECT queue FROM task WHERE tenant = $1 AND status = {0}{1} ORDER BY queue LIMIT 1"
# From queue to queue by the index: what waits in each is not looked at.
_NAMES = """WITH RECURSIVE q AS (({first}) UNION ALL SELECT h.queue FROM q, LATERAL ({next}) h)
SELECT queue FROM q LIMIT {most}"""
_WAITING = 2
_STATUSES = (0, 1, _WAITING)
_NAMES_BY = {
    status: _NAMES.format(
        first=_NEXT.format(status, ""), next=_NEXT.format(status, " AND queue > q.queue"), most=QUEUES_MOST
    )
    for status in _STATUSES
}
_RUNNING = f"""SELECT queue, least(count(*), {COUNT_MOST}) AS running FROM
(SELECT tenant, queue FROM task WHERE status = 3 LIMIT {RUNNING_MOST}) t WHERE tenant = $1 GROUP BY queue"""  # noqa: S608  # numbers only
_SERVED = """SELECT DISTINCT queue FROM interest JOIN lane ON lane.id = interest.lane
WHERE tenant = $1 AND queue <> '' AND seen_us > $2"""
_COUNTS = {
    status: f"""SELECT k.queue, c.n, c.oldest FROM unnest($2::text::text[]) k(queue), LATERAL (SELECT count(*) AS n,
coalesce(min(run_at_us), 0) AS oldest FROM (SELECT run_at_us FROM task WHERE tenant = $1 AND queue = k.queue
AND status = {status} LIMIT {COUNT_MOST}) t) c"""  # noqa: S608  # numbers only
    for status in _STATUSES
}


class QueueReads:
    """Reads of queues."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def running(self, tenant: str) -> dict[str, int]:
        """Running tasks by queue."""
        return {row["queue"]: row["running"] for row in await self._database.fetch(_RUNNING, tenant)}

    async def names(self, tenant: str, since_us: int) -> set[str]:
        """Queues in which something waits, or that a worker serves at a server seen since then; the first of each."""
        found = {row["queue"] for row in await self._database.fetch(_SERVED, tenant, since_us)}
        for statement in _NAMES_BY.values():
            found.update(row["queue"] for row in await self._database.fetch(statement, tenant))
        return found

    async def counts(self, tenant: str, queues: Sequence[str]) -> dict[str, QueueState]:
        """How many wait in each of the queues, and since when."""
        found = {}
        for status, statement in _COUNTS.items():
            found[status] = {row["queue"]: row for row in await self._database.fetch(statement, tenant, names(queues))}
        in_line, scheduled, ready = (found[status] for status in _STATUSES)
        return {
            queue: QueueState(
                queue, ready[queue]["n"], in_line[queue]["n"], scheduled[queue]["n"], oldest_us=ready[queue]["oldest"]
            )
            for queue in queues
        }
