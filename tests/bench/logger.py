"""A worker process whose tasks log: `bench.log` as many lines as it is told, at the pace at which they go, and
`bench.flood` for so many seconds as fast as it can."""

from __future__ import annotations

import argparse
import asyncio
import logging
import time
from typing import Any

import uvloop

from millstream.sdk import Context, Worker

_WAITING_BYTES = 512 * 1024
_AT_ONCE = 50


async def main() -> None:
    """Serve until it is ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", required=True)
    arguments = parser.parse_args()
    # What is measured is the way to the service, not that to a terminal.
    logging.getLogger("millstream.task").propagate = False
    worker = Worker(arguments.target, name="logger", slots=10, queues=["bench-logs"])

    @worker.task("bench.log")
    async def log(count: float, ctx: Context) -> None:
        for n in range(int(count)):
            ctx.log.info("line %d of what a task has to say", n, extra={"n": n})
            if n % _AT_ONCE == 0:
                await asyncio.sleep(0)
                while ctx.attempt_log.size > _WAITING_BYTES:  # noqa: ASYNC110  # it is told of nothing
                    await asyncio.sleep(0.001)

    @worker.task("bench.mute")
    async def mute(seconds: float, ctx: Context) -> None:
        # As busy as a flood, and none of it goes to the service.
        ctx.attempt_log.ended = True
        await flood(seconds, ctx)

    @worker.task("bench.flood")
    async def flood(seconds: float, ctx: Context) -> dict[str, Any]:
        end, said = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            for _ in range(_AT_ONCE):
                ctx.log.info("line %d of what a task has to say", said)
                said += 1
            await asyncio.sleep(0.001)
        return {"said": said}

    async with worker:
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
