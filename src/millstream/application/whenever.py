"""A loop that works whenever it is woken."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from millstream.domain.errors import MillstreamError


async def whenever(
    wanted: asyncio.Event, look: Callable[[], Awaitable[None]], log: logging.Logger, fault: str, gap_s: float = 0.0
) -> None:
    """Call `look` whenever `wanted` is set, until cancelled; again soon where it failed.

    Args:
        wanted: Set by whoever has work; `look` may set it to be called again.
        fault: What a failure means, for the log.
        gap_s: Least seconds between two calls: under load one does for many wake-ups.
    """
    while True:
        await wanted.wait()
        wanted.clear()
        try:
            await look()
        except Exception as error:
            if isinstance(error, MillstreamError):
                log.warning("%s: %s", fault, error.message)
            else:
                log.exception(fault)
            await asyncio.sleep(random.uniform(0.2, 0.5))  # noqa: S311  # the database is away; nothing to wait on
            wanted.set()
        if gap_s:
            await asyncio.sleep(gap_s)
