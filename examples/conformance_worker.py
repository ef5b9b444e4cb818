"""The worker that the conformance kit tests this SDK with: `millstream conformance --target "python ..."`.

docs/worker-protocol.md says what each kind does.
"""

import asyncio
import logging
import os
from collections import Counter
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from millstream.sdk import Context, TaskError, Worker

worker = Worker(
    os.environ["MILLSTREAM_TARGET"],
    name="conformance",
    slots=int(os.environ.get("MILLSTREAM_CONFORMANCE_SLOTS", "20")),
    api_key=os.environ.get("MILLSTREAM_API_KEY"),
)
begun: Counter[tuple[str, int]] = Counter()


class ConformanceInput(BaseModel):
    """What the agent is given."""

    items: list[Any] = []


class ConformanceOutput(BaseModel):
    """What the agent makes of an item."""

    item: Any = None


@worker.agent(name="conformance-publisher", consumes=ConformanceInput, publishes=ConformanceOutput)
async def publisher(given: ConformanceInput) -> list[ConformanceOutput]:
    """Publishes each item."""
    return [ConformanceOutput(item=item) for item in given.items]


@worker.task("conformance.echo")
async def echo(value: Any) -> Any:
    """Returns what it is given."""
    return value


@worker.task("conformance.fail")
async def fail(value: dict[str, Any]) -> None:
    """Fails as asked."""
    after = value.get("retry_after_ms")
    raise TaskError(
        value["code"],
        value["message"],
        retryable=bool(value.get("retryable")),
        retry_after=None if after is None else timedelta(milliseconds=after),
    )


@worker.task("conformance.sleep")
async def sleep(value: dict[str, Any], ctx: Context) -> dict[str, int]:
    """Waits, and tells how often this very attempt was begun."""
    begun[ctx.task_id, ctx.attempt] += 1
    await asyncio.sleep(value["ms"] / 1000)
    return {"runs": begun[ctx.task_id, ctx.attempt]}


@worker.task("conformance.hold")
async def hold(value: Any) -> None:
    """Ends when it is cancelled."""
    await asyncio.Event().wait()


@worker.task("conformance.progress")
async def progress(value: dict[str, Any], ctx: Context) -> None:
    """Tells how far it is."""
    ctx.progress(value["fraction"], value.get("message", ""))


@worker.task("conformance.log")
async def log(value: dict[str, Any], ctx: Context) -> dict[str, int]:
    """Logs these lines; ends then, or when it is cancelled."""
    levels = logging.getLevelNamesMapping()
    for line in value["lines"]:
        ctx.log.log(levels[line["level"]], line["message"], extra=line["fields"])
    if value.get("hold"):
        await asyncio.Event().wait()
    return {"lines": len(value["lines"])}


@worker.task("conformance.token")
async def token(value: Any, ctx: Context) -> dict[str, str]:
    """Tells its idempotency token."""
    return {"idempotency_token": ctx.idempotency_token}


if __name__ == "__main__":
    worker.run_forever()
