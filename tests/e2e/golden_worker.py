"""A worker process for the golden files: a kind of tasks for each way in which one may end, and a workflow as code."""

import asyncio
import os
from typing import Any

from millstream.sdk import Context, TaskError, Worker, WorkflowContext

worker = Worker(os.environ["MILLSTREAM_TARGET"], name="golden", slots=50, queues=["default", "golden"])


@worker.task("golden.echo", version="1.4.0")
async def echo(given: Any) -> Any:
    """Return what is given."""
    return given


failed: set[str] = set()


@worker.task("golden.flaky")
async def flaky(given: Any, ctx: Context) -> Any:
    """Fail at the first attempt of each run."""
    if ctx.run_id not in failed:
        failed.add(ctx.run_id)
        raise TaskError("BUSY", "Connection timeout", retryable=True)
    return given


@worker.task("golden.hold")
async def hold(_: Any) -> None:
    """Take for ever."""
    await asyncio.Event().wait()


@worker.workflow("golden.greet", version="2.1.0")
async def greet(ctx: WorkflowContext, given: Any) -> dict[str, Any]:
    """Greet somebody, by a task."""
    return {"greeting": await ctx.task("golden.echo", f"hello {given['name']}")}


if __name__ == "__main__":
    worker.run_forever()
