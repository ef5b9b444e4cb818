"""A worker process for the tests of replays. WHO is its name; QUEUE is where it takes work from; with STALLS it never
comes past a side effect, in the midst of an activation; with CHANGED its code goes another way before that."""

import asyncio
import os
from typing import Any

from millstream.sdk import Worker, WorkflowContext

WHO = os.environ.get("WHO", "nobody")
worker = Worker(os.environ["MILLSTREAM_TARGET"], name=WHO, queues=[os.environ.get("QUEUE", "default")])


async def stall() -> str:
    """Who came past here."""
    print("stalls", flush=True)
    if os.environ.get("STALLS"):
        await asyncio.Event().wait()
    return WHO


@worker.workflow("replayed")
async def replayed(ctx: WorkflowContext, given: int) -> dict[str, Any]:
    """Everything that a replay has to make again, before and after the side effect at which workers stall."""
    print("begins", flush=True)
    drawn = [str(ctx.uuid()), ctx.random.randrange(1000)]
    ctx.state["drawn"] = drawn
    first = await ctx.task("replayed-echo", given)
    noted = await ctx.run(lambda: WHO, "noted")
    other = "replayed-other" if os.environ.get("CHANGED") else "replayed-echo"
    both = await ctx.gather(*(ctx.task(other, first + n) for n in (1, 2)))
    passed = await ctx.run(stall, "stall")
    word = await ctx.signal("go")
    await ctx.sleep(0.01)
    last = await ctx.task("replayed-echo", sum(both))
    return {"drawn": drawn, "noted": noted, "passed": passed, "word": word, "last": last}


@worker.task("replayed-echo")
async def echo(given: int) -> int:
    """The same again."""
    return given


if __name__ == "__main__":
    worker.run_forever()
