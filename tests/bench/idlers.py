"""Workers that are connected and have nothing to do, each on a stream of its own."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal

import uvloop

from millstream.sdk import Worker


async def serve(target: str, count: int) -> None:
    """Connect, say so, and stay until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        for number in range(count):
            worker = Worker(target, name=f"idle-{number}")

            @worker.task("bench.idle")
            async def task() -> None:
                return None

            await stack.enter_async_context(worker)
        print("ready", flush=True)
        await stop.wait()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", required=True)
    parser.add_argument("--count", type=int, required=True)
    arguments = parser.parse_args()
    uvloop.run(serve(arguments.target, arguments.count))


if __name__ == "__main__":
    main()
