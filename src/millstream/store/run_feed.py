"""What those who watch runs read: events of many runs at once, and where their trees branch."""

from collections.abc import Mapping, Sequence

from millstream.application.ports import RunHead
from millstream.domain.runs import CHILD_QUEUE, Event, EventType
from millstream.store.columns import numbers, uuids
from millstream.store.connections import Database
from millstream.store.rows import EVENT_COLUMNS, event_of

_HEADS = "SELECT id::text, last_seq, finished_us FROM run WHERE id = ANY($1::text::uuid[])"
_EVENTS = f"""SELECT e.* FROM unnest($1::text::uuid[], $2::text::int8[], $3::text::int8[]) k(id, after, upto)
JOIN run r ON r.id = k.id, LATERAL (SELECT {EVENT_COLUMNS} FROM event WHERE day = r.created_us / 86400000000
AND run_id = r.id AND seq > k.after AND seq <= k.upto ORDER BY seq LIMIT $4) e"""  # noqa: S608  # our names
# What a tree is known by: its branches, and the ends of its members.
_KNOWN_BY = [int(each) for each in (
    EventType.RUN_COMPLETED, EventType.RUN_FAILED, EventType.RUN_CANCELLED, EventType.RUN_REOPENED,
    EventType.RETRY_REQUESTED, EventType.TASK_RETRY,
)]  # fmt: skip
_BRANCHES = f"""SELECT e.* FROM unnest($1::text::uuid[], $2::text::int8[]) k(id, upto) JOIN run r ON r.id = k.id,
LATERAL (SELECT {EVENT_COLUMNS} FROM event WHERE day = r.created_us / 86400000000 AND run_id = r.id
AND seq <= k.upto AND (type = ANY($3::int2[])
OR (type = {int(EventType.TASK_CREATED)} AND data LIKE '%"queue":"{CHILD_QUEUE}"%')) ORDER BY seq) e"""  # noqa: S608
ALL: int = 1 << 40


class RunFeedReads:
    """Reads for those who watch runs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def heads(self, run_ids: Sequence[str]) -> dict[str, RunHead]:
        """Where runs stand, of those that there are."""
        rows = await self._database.fetch(_HEADS, uuids(run_ids))
        return {row["id"]: RunHead(row["last_seq"], row["finished_us"] > 0) for row in rows}

    async def events_of(
        self, after: Mapping[str, int], limit: int, upto: Mapping[str, int] | None = None
    ) -> list[Event]:
        """Events of runs behind a number of each, and up to one, at most so many of each run; those of a run in
        order."""
        ends = [upto[run_id] if upto is not None else ALL for run_id in after]
        rows = await self._database.fetch(_EVENTS, uuids(after), numbers(after.values()), numbers(ends), limit)
        return [event_of(row) for row in rows]

    async def branches(self, upto: Mapping[str, int]) -> list[Event]:
        """Of the events of runs up to a number of each those by which their trees are known; those of a run in
        order."""
        rows = await self._database.fetch(_BRANCHES, uuids(upto), numbers(upto.values()), _KNOWN_BY)
        return [event_of(row) for row in rows]
