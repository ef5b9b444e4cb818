"""The feed: which artifacts each batch stored, in the order in which its lane committed.

It stands in the row (lane, n) that every batch inserts anyway. A lane commits one batch after the other, so whoever
sees its row n sees all before it: a place in the feed is a number for each lane. The order of ids or of times is not
that of commits.
"""

import struct
from collections.abc import Container, Iterable, Mapping
from operator import itemgetter
from typing import Any, Final

from sqlalchemy import BigInteger, cast, literal, literal_column, select, tuple_

from millstream.application.ports import FULL, FeedRow, Places
from millstream.domain.artifacts import Artifact
from millstream.store.artifacts import COLUMNS_WITHOUT_PAYLOAD, hidden_us
from millstream.store.columns import numbers, uuids
from millstream.store.connections import Database, Record
from millstream.store.query import fetch, uid
from millstream.store.rows import artifact_of
from millstream.store.tables.artifacts import artifact

_COUNT: Final = struct.Struct(">HI")
_ID_BYTES: Final = 16

LANES: Final = """WITH RECURSIVE lanes(lane) AS ((SELECT lane FROM commit_batch ORDER BY lane LIMIT 1) UNION ALL
SELECT (SELECT b.lane FROM commit_batch b WHERE b.lane > lanes.lane ORDER BY b.lane LIMIT 1) FROM lanes
WHERE lanes.lane IS NOT NULL)"""
"""All lanes with rows: a step of the index for each, however many rows it has."""
_LAST = "coalesce((SELECT n FROM commit_batch b WHERE b.lane = lanes.lane AND n > 0 ORDER BY n DESC LIMIT 1), 0)"
_END = f"{LANES} SELECT lane::text, {_LAST} AS last FROM lanes WHERE lane IS NOT NULL"  # noqa: S608  # our own parts
_ROWS = f"""{LANES} SELECT lanes.lane::text, {_LAST} AS last, r.n, r.at_us, r.artifacts FROM lanes
LEFT JOIN unnest($1::text::uuid[], $2::text::int8[]) k(lane, n) ON k.lane = lanes.lane
LEFT JOIN LATERAL (SELECT n, at_us, artifacts FROM commit_batch b WHERE b.lane = lanes.lane AND b.n >= coalesce(k.n, 1)
AND b.artifacts <> '' ORDER BY b.n LIMIT $3) r ON true WHERE lanes.lane IS NOT NULL ORDER BY lanes.lane, r.n"""  # noqa: S608
# A row of a server of the version before has no time, and is that server's to drop.
_DROP = f"""{LANES} DELETE FROM commit_batch WHERE ctid = ANY(ARRAY(SELECT old.ctid FROM lanes, LATERAL (SELECT ctid,
at_us FROM commit_batch b WHERE b.lane = lanes.lane ORDER BY b.n LIMIT $2) old
WHERE old.at_us > 0 AND old.at_us < $1))"""  # noqa: S608


def packed(artifacts: Iterable[Artifact]) -> bytes:
    """The ids of a batch's artifacts by tenant, as they are stored."""
    by_tenant: dict[str, list[str]] = {}
    for item in artifacts:
        by_tenant.setdefault(item.tenant, []).append(item.id)
    parts = []
    for tenant, ids in by_tenant.items():
        name = tenant.encode()
        parts += [_COUNT.pack(len(name), len(ids)), name, bytes.fromhex("".join(ids).replace("-", ""))]
    return b"".join(parts)


def unpacked(data: bytes, tenants: Container[str]) -> dict[str, tuple[str, ...]]:
    """The reverse of packed, for some tenants."""
    found: dict[str, tuple[str, ...]] = {}
    at = 0
    while at < len(data):
        name_bytes, count = _COUNT.unpack_from(data, at)
        begin = at + _COUNT.size + name_bytes
        tenant = data[at + _COUNT.size : begin].decode()
        at = begin + count * _ID_BYTES
        if tenant in tenants:
            found[tenant] = tuple(_text(data[i : i + _ID_BYTES].hex()) for i in range(begin, at, _ID_BYTES))
    return found


def _text(digits: str) -> str:
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


class FeedReads:
    """Reads of the feed, for those who watch."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def end(self) -> Places:
        """The place behind all that is visible now."""
        return {row["lane"]: (row["last"], FULL) for row in await self._database.fetch(_END)}

    async def rows(
        self, places: Mapping[str, tuple[int, int]], limit: int, tenants: Container[str]
    ) -> tuple[list[FeedRow], Places, bool]:
        """Rows from some places on (those of the place included), at most so many of each lane, with what they hold of
        some tenants; the place behind them, and whether there are more. What was stored after another row was committed
        comes after it, in any lane."""
        lanes = list(places)
        rows = await self._database.fetch(_ROWS, uuids(lanes), numbers([places[lane][0] for lane in lanes]), limit)
        by_lane: dict[str, list[tuple[int, Record]]] = {}
        for row in rows:
            found = by_lane.setdefault(row["lane"], [])
            if row["n"] is not None:
                # The time of the write orders lanes; in a lane the number does, should the clock have been set back.
                found.append((max(row["at_us"], found[-1][0]) if found else row["at_us"], row))
        full = [found[-1][0] for found in by_lane.values() if len(found) >= limit]
        until_us = min(full) if full else None
        behind = {row["lane"]: (row["last"], FULL) for row in rows}
        kept: list[tuple[int, Record]] = []
        for lane, found in by_lane.items():
            taken = [each for each in found if until_us is None or each[0] <= until_us]
            kept += taken
            if until_us is not None:
                # Of a lane with room for more the end is not known: what is behind the last row may be too late.
                behind[lane] = (taken[-1][1]["n"], FULL) if taken else places.get(lane, (0, FULL))
        kept.sort(key=itemgetter(0))
        return (
            [FeedRow(row["lane"], row["n"], unpacked(row["artifacts"], tenants)) for _, row in kept],
            behind,
            bool(full),
        )

    async def drop(self, before_us: int, limit: int) -> int:
        """Drop what was stored before then, so many rows of each lane; returns how many."""
        tag = await self._database.execute(_DROP, before_us, limit)
        return int(tag.rsplit(" ", 1)[-1])

    async def hidden(self, tenant: str, run_id: str, after: tuple[int, str], limit: int) -> list[tuple[int, Artifact]]:
        """Artifacts of the kind After (of one cascade, unless "") behind (time, id), by the time when that is over,
        microseconds; without their payloads."""
        concerned = [
            artifact.c.tenant == tenant,
            artifact.c.visibility_kind == literal_column("'After'"),
            artifact.c.visibility_kind != literal_column("'Public'"),
            *([artifact.c.run_id == uid(run_id)] if run_id else []),
        ]
        # Of many artifacts few are hidden differently: how long is worked out once for each way.
        ways = select(artifact.c.visibility).where(*concerned).distinct().cte("ways")
        spans_of = select(ways.c.visibility, cast(hidden_us(ways.c.visibility), BigInteger).label("us"))
        spans = spans_of.cte("spans").prefix_with("MATERIALIZED")
        due_us = (artifact.c.created_us + spans.c.us).label("due_us")
        found = (
            select(*COLUMNS_WITHOUT_PAYLOAD, due_us)
            .join(spans, artifact.c.visibility == spans.c.visibility)
            .where(*concerned)
            .subquery()
        )
        later = tuple_(found.c.due_us, found.c.uuid) > tuple_(literal(after[0]), literal(uid(after[1])))
        statement = select(found).where(later).order_by(found.c.due_us, found.c.uuid).limit(limit)
        out = []
        for row in await fetch(self._database, statement):
            fields: dict[str, Any] = dict(row)
            at_us = int(fields.pop("due_us"))
            del fields["uuid"]
            out.append((at_us, artifact_of(fields)))
        return out
