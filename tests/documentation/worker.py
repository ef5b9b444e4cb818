"""What the examples of the documentation ask for: tasks that end in each way, and a workflow as code."""

import asyncio
import os
from typing import Any

from millstream.sdk import Context, TaskError, Worker, WorkflowContext

worker = Worker(os.environ["MILLSTREAM_TARGET"], name="images", slots=50, queues=["default", "images"])


@worker.task("resize", version="1.4.0")
async def resize(given: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Say what a picture would be."""
    ctx.log.info("resizing", extra={"file": given["file"]})
    ctx.progress(0.5, "half of it")
    return {"file": given["file"], "width": given.get("width", 640)}


@worker.task("charge")
async def charge(given: Any) -> None:
    """Refuse, finally."""
    raise TaskError("CARD_DECLINED", "the card was declined", retryable=False)


@worker.task("record")
async def record(_: Any) -> None:
    """Take for ever."""
    await asyncio.Event().wait()


@worker.workflow("album", version="2.1.0")
async def album(ctx: WorkflowContext, given: dict[str, Any]) -> dict[str, Any]:
    """Resize a picture, then wait for somebody's approval where that is wanted."""
    ctx.state["pictures"] = 1
    picture = await ctx.task("resize", {"file": given["file"]})
    if given.get("approval"):
        await ctx.signal("approved", timeout=86_400)
    return {"pictures": [picture]}


if __name__ == "__main__":
    worker.run_forever()
