"""What ended lately, as servers count it."""

from collections.abc import Mapping, Sequence
from dataclasses import fields

from millstream.application.views.queues import Ends
from millstream.store.columns import names, numbers
from millstream.store.connections import Database

_FIELDS = tuple(field.name for field in fields(Ends))
_ARRAYS = ", ".join(f"${n}::text::int4[]" for n in range(4, 4 + len(_FIELDS)))
_NOTE = f"""INSERT INTO throughput (lane, at_us, tenant, {", ".join(_FIELDS)})
SELECT $1::text::uuid, $2, * FROM unnest($3::text::text[], {_ARRAYS}) ON CONFLICT DO NOTHING"""  # noqa: S608
SINCE = f"""SELECT {", ".join(f"coalesce(sum({name}), 0)::int8 AS {name}" for name in _FIELDS)}
FROM throughput WHERE tenant = $1 AND at_us > $2"""  # noqa: S608  # our columns
"""Sums what was noted of a tenant."""
DROP = """DELETE FROM throughput WHERE ctid = ANY(ARRAY(SELECT ctid FROM throughput WHERE at_us < $1
ORDER BY at_us LIMIT $2))"""
"""Drops what was noted before $1, $2 rows at most."""


class ThroughputRows:
    """Notes and sums of what ended; a tenant has a row for each server and five seconds in which something did."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def note(self, lane: str, at_us: int, ends: Mapping[str, Sequence[int]]) -> None:
        """What ended at a server, by tenant, in the order of the fields of Ends; the same again is noted once."""
        columns = zip(*ends.values(), strict=True)
        await self._database.execute(_NOTE, lane, at_us, names(ends), *map(numbers, columns))

    async def since(self, tenant: str, since_us: int) -> Ends:
        """What ended at all servers, as noted since then."""
        row = await self._database.fetchrow(SINCE, tenant, since_us)
        return Ends(**row) if row else Ends()

    async def drop(self, before_us: int, limit: int) -> int:
        """Drop what was noted before then; returns how many rows."""
        return int((await self._database.execute(DROP, before_us, limit)).rsplit(" ", 1)[-1])
