"""An answer that many ask for and that stays true for a moment: it is found once for all of them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Fresh(Generic[T]):
    """Asks at most once in a while, and one at a time.

    Args:
        ask: Finds the answer; what it raises is an answer, too.
        for_s: How long an answer stands.
    """

    def __init__(self, ask: Callable[[], Awaitable[T]], for_s: float) -> None:
        self._ask = ask
        self._for_s = for_s
        self._asked: asyncio.Future[T] | None = None
        self._until_s = 0.0

    async def __call__(self) -> T:
        """The last answer, or a new one."""
        asked = self._asked
        if asked is None or (asked.done() and asyncio.get_running_loop().time() >= self._until_s):
            asked = self._asked = asyncio.ensure_future(self._find())
            # Whoever asked may all have gone away.
            asked.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(asked)

    def forget(self) -> None:
        """Ask anew next time."""
        self._asked = None

    async def _find(self) -> T:
        try:
            return await self._ask()
        finally:
            self._until_s = asyncio.get_running_loop().time() + self._for_s
