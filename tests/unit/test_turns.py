"""Turns: few at once, fair between tenants, bounded in what waits."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from millstream.application.turns import Turns
from millstream.domain.errors import RateLimited


async def test_a_tenant_has_half_of_the_turns_and_others_the_rest() -> None:
    turns = Turns(4, 100)
    async with AsyncExitStack() as held:
        for _ in range(2):
            await held.enter_async_context(turns.turn("greedy", 1, refuse=True))
        third = asyncio.create_task(_once(turns, "greedy"))
        await asyncio.wait_for(_once(turns, "modest"), 5)
        assert not third.done()
    await asyncio.wait_for(third, 5)
    assert turns._tenants == {}


async def test_too_many_bytes_are_refused_unless_they_may_not_be() -> None:
    """Half of them for one tenant; what was refused counts no longer."""
    turns = Turns(4, 100)
    async with AsyncExitStack() as held:
        await held.enter_async_context(turns.turn("a", 40, refuse=True))
        with pytest.raises(RateLimited):
            await _once(turns, "a", 11)
        await _once(turns, "a", 11, refuse=False)
        await held.enter_async_context(turns.turn("b", 45, refuse=True))
        with pytest.raises(RateLimited):
            await _once(turns, "c", 16)
        await _once(turns, "c", 15)
    await _once(turns, "a", 50)


async def _once(turns: Turns, tenant: str, size_bytes: int = 1, *, refuse: bool = True) -> None:
    async with turns.turn(tenant, size_bytes, refuse=refuse):
        pass
