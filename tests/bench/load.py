"""Closed loops: callers that send their next request when the last one is answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from tests.bench.report import Outcome


class BenchError(RuntimeError):
    """An answer was wrong, so there is no figure."""


def ensure(condition: bool, what: str, answer: object) -> None:
    """Raise BenchError with the answer unless the condition holds."""
    if not condition:
        raise BenchError(f"{what}: {str(answer)[:500]}")


async def closed_loop(callers: Sequence[Callable[[], Awaitable[None]]], seconds: float, per_call: int = 1) -> Outcome:
    """Let every caller call again and again; calls under way at the end are waited for, and counted."""
    latencies: list[float] = []
    clock = time.perf_counter
    start = clock()
    end = start + seconds

    async def run(call: Callable[[], Awaitable[None]]) -> None:
        while (began := clock()) < end:
            await call()
            latencies.append(clock() - began)

    async with asyncio.TaskGroup() as group:
        for call in callers:
            group.create_task(run(call))
    return Outcome(len(latencies) * per_call, clock() - start, latencies)
