"""The lines in which tasks wait for their turn: who is first, and where a line stands. Nothing here locks."""

from collections.abc import Sequence

from millstream.application.ports import Group, InLine
from millstream.domain.bounds import LineKey
from millstream.store.columns import names, numbers
from millstream.store.connections import Database
from millstream.store.policies import bounds_of
from millstream.store.rows import line_of

KEPT_US = 86_400_000_000
"""A line's row is swept a day after it was last made or started from; it is made again when it is needed."""
_FIRST = """SELECT queue, kind, bounds FROM task WHERE tenant = {0}.tenant AND waits_for = {0}.name
AND waits_for <> '' AND status = 0{1} ORDER BY queue, kind, urgency, run_at_us, id LIMIT 1"""
# From group to group by the index: what waits behind the first of each is not looked at.
_GROUPS = f"""WITH RECURSIVE g AS (
SELECT k.tenant, k.name, h.* FROM unnest($1::text::text[], $2::text::text[]) k(tenant, name),
LATERAL ({_FIRST.format("k", "")}) h
UNION ALL
SELECT g.tenant, g.name, h.* FROM g,
LATERAL ({_FIRST.format("g", " AND (queue, kind) > (g.queue, g.kind)")}) h)
SELECT g.*, coalesce(line.period_us, 0) AS period_us, coalesce(line.starts, '') AS starts,
(SELECT count(*) FROM task WHERE tenant = g.tenant AND waits_for = g.name AND waits_for <> '' AND status = 2
AND queue = g.queue AND kind = g.kind) AS called,
(SELECT count(*) FROM task WHERE tenant = g.tenant AND status = 3 AND concurrency_key = substr(g.name, 3)
AND concurrency_key <> '' AND g.name LIKE 'c:%') AS running
FROM g LEFT JOIN line ON line.tenant = g.tenant AND line.name = g.name"""  # noqa: S608  # our own text
_FIRST_OF = """SELECT t.id::text, t.tenant, t.kind, t.limited, t.bounds FROM unnest($1::text::text[], $2::text::text[],
$3::text::text[], $4::text::text[], $5::text::int8[]) k(tenant, name, queue, kind, room),
LATERAL (SELECT id, tenant, kind, limited, bounds, urgency, run_at_us FROM task WHERE tenant = k.tenant
AND waits_for = k.name AND waits_for <> '' AND status = 0 AND queue = k.queue AND kind = k.kind
ORDER BY urgency, run_at_us, id LIMIT k.room) t ORDER BY t.urgency, t.run_at_us, t.id"""
_ENSURE = """INSERT INTO line (tenant, name, until_us) SELECT tenant, name, $3 FROM unnest($1::text::text[],
$2::text::text[]) u(tenant, name) ORDER BY 1, 2 ON CONFLICT DO NOTHING"""
_NEXT = """SELECT tenant, waits_for FROM task WHERE waits_for <> ''{} ORDER BY tenant, waits_for LIMIT 1"""
_AFTER = f"""WITH RECURSIVE l AS (
(SELECT tenant, waits_for, 1 AS n FROM ({_NEXT.format(" AND (tenant, waits_for) > ($1, $2)")}) first)
UNION ALL
SELECT h.tenant, h.waits_for, l.n + 1 FROM l,
LATERAL ({_NEXT.format(" AND (tenant, waits_for) > (l.tenant, l.waits_for)")}) h WHERE l.n < $3)
SELECT tenant, waits_for FROM l"""  # noqa: S608  # our own text


class Lines:
    """Reads of lines, and their rows."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def groups(self, lines: Sequence[LineKey]) -> list[Group]:
        """What waits in lines, by queue and kind."""
        tenants, found = zip(*lines, strict=True)
        groups = []
        for row in await self._database.fetch(_GROUPS, names(tenants), names(found)):
            line = line_of(row)
            line.running = row["running"]
            groups.append(
                Group(row["tenant"], line, row["queue"], row["kind"], bounds_of(row["bounds"]), row["called"])
            )
        return groups

    async def held(self, groups: Sequence[tuple[Group, int]]) -> list[InLine]:
        """The first of each group, as many as are asked for, the most urgent first."""
        rows = await self._database.fetch(
            _FIRST_OF,
            names([group.tenant for group, _ in groups]),
            names([group.line.name for group, _ in groups]),
            names([group.queue for group, _ in groups]),
            names([group.kind for group, _ in groups]),
            numbers([room for _, room in groups]),
        )
        return [InLine(row["id"], row["tenant"], row["kind"], row["limited"], bounds_of(row["bounds"])) for row in rows]

    async def ensure(self, lines: Sequence[LineKey], now_us: int) -> None:
        """Make the rows by which lines are locked, in a transaction of their own: nobody waits for who makes them."""
        tenants, found = zip(*lines, strict=True)
        await self._database.execute(_ENSURE, names(tenants), names(found), now_us + KEPT_US)

    async def after(self, last: LineKey, limit: int) -> list[LineKey]:
        """Lines in which something waits, in the order of their names."""
        return [(row["tenant"], row["waits_for"]) for row in await self._database.fetch(_AFTER, *last, limit)]
