"""A worker of steps and of a workflow as code that the SDK of either release can run; the program of tests that mix
releases. WHO is its name."""

import os
from typing import Any

from millstream.sdk import Worker, WorkflowContext

WHO = os.environ["WHO"]
worker = Worker(os.environ["MILLSTREAM_TARGET"])


@worker.task("side.double")
async def double(given: dict[str, Any]) -> dict[str, Any]:
    """Twice its number, and who doubled it."""
    return {"n": 2 * given["n"], "by": WHO}


@worker.workflow("side.code", version="1")
async def code(ctx: WorkflowContext, given: dict[str, Any]) -> dict[str, Any]:
    """Tasks, chance, a side effect and a child before a signal; the same again after it."""
    first = await ctx.task("side.double", {"n": given["n"]})
    left, right = await ctx.gather(*(ctx.task("side.double", {"n": first["n"] + n}) for n in (1, 2)))
    drawn, noted = str(ctx.uuid()), await ctx.run(lambda: WHO)
    child = await ctx.child("side.flow", {"n": 1})
    ctx.state["drawn"] = drawn
    word = await ctx.signal("go")
    await ctx.sleep(0.01)
    last = await ctx.task("side.double", {"n": left["n"] + right["n"] + child["n"]})
    return {"n": last["n"], "drawn": drawn, "noted": noted, "word": word}


worker.run_forever()
