"""Turns: few at once, fewer of them for one tenant, and a bound on the bytes of those that wait."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from millstream.domain.errors import RateLimited


@dataclass(slots=True)
class _Tenant:
    """One tenant's: how many it has or waits for, and their bytes."""

    turns: asyncio.Semaphore
    count: int = field(default=0)
    size_bytes: int = field(default=0)


class Turns:
    """Lets few in at once, so that the rest of the server goes on, and no tenant takes all turns.

    Args:
        most: Turns at once; half of them for one tenant.
        most_bytes: Of those who wait; half of them for one tenant.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self._turns = asyncio.Semaphore(most)
        self._most_of_tenant = max(1, most // 2)
        self._most_bytes = most_bytes
        self._size_bytes = 0
        self._tenants: dict[str, _Tenant] = {}

    @contextlib.asynccontextmanager
    async def turn(self, tenant: str, size_bytes: int, *, refuse: bool) -> AsyncIterator[None]:
        """Wait for a turn, and keep it for the length of the block. Raises RateLimited where too much waits already,
        if it is to be refused."""
        own = self._tenants.get(tenant)
        if own is None:
            own = self._tenants[tenant] = _Tenant(asyncio.Semaphore(self._most_of_tenant))
        own.count += 1
        own.size_bytes += size_bytes
        self._size_bytes += size_bytes
        try:
            if refuse and (self._size_bytes > self._most_bytes or 2 * own.size_bytes > self._most_bytes):
                raise RateLimited("too many large payloads wait for their turn; try again", retry_after_s=1.0)
            async with own.turns, self._turns:
                yield
        finally:
            own.count -= 1
            own.size_bytes -= size_bytes
            self._size_bytes -= size_bytes
            if not own.count:
                del self._tenants[tenant]
