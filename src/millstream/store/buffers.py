"""What waits in gates: what is due, what is shown, and how much there is."""

from collections.abc import Set

from millstream.domain.gates import Buffer
from millstream.store.connections import Database
from millstream.store.rows import BUFFER_COLUMNS, buffer_of

_DUE = f"SELECT {BUFFER_COLUMNS} FROM buffer WHERE expires_us <= $1 ORDER BY expires_us LIMIT $2"  # noqa: S608
_NEXT_DUE = "SELECT min(expires_us) FROM buffer WHERE expires_us > $1"
_OF_AGENT = f"""SELECT {BUFFER_COLUMNS} FROM buffer WHERE tenant = $1 AND agent = $2
ORDER BY expires_us LIMIT $3"""  # noqa: S608
_COUNT = "SELECT count(*) FROM (SELECT 1 FROM buffer WHERE tenant = $1 AND agent = $2 LIMIT $3) b"
_FULL = "SELECT tenant, sub FROM buffer WHERE run_id IS NULL GROUP BY tenant, sub HAVING count(*) >= $1"


class Buffers:
    """Reads of buffers."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def due(self, now_us: int, limit: int) -> list[Buffer]:
        """Buffers whose time has come."""
        return [buffer_of(row) for row in await self._database.fetch(_DUE, now_us, limit)]

    async def next_due_us(self, now_us: int) -> int:
        """When the next buffer is due; 0 for none."""
        return int(await self._database.fetchval(_NEXT_DUE, now_us) or 0)

    async def of_agent(self, tenant: str, agent: str, limit: int, count_most: int) -> tuple[list[Buffer], int]:
        """What waits for an agent, the next to expire first, and how much there is, counted so far."""
        rows = await self._database.fetch(_OF_AGENT, tenant, agent, limit)
        total = len(rows) if len(rows) < limit else await self._database.fetchval(_COUNT, tenant, agent, count_most)
        return [buffer_of(row) for row in rows], int(total)

    async def full(self, most: int) -> Set[tuple[str, str]]:
        """(tenant, subscription) of gates over all correlations with so many buffers."""
        return {(row["tenant"], row["sub"]) for row in await self._database.fetch(_FULL, most)}
