"""A worker process for the golden files: a kind of tasks for each way in which one may end, a workflow as code, and
agents."""

import asyncio
import os
from typing import Any

from pydantic import BaseModel

from millstream.sdk import Context, TaskError, Worker, WorkflowContext


class GoldenOrder(BaseModel):
    """What is to be packed; of what is out of stock nothing can be."""

    order_id: str
    out_of_stock: bool = False


class GoldenParcel(BaseModel):
    """What is packed."""

    order_id: str


class GoldenReceipt(BaseModel):
    """That it was brought."""

    order_id: str


class GoldenWait(BaseModel):
    """What nobody ever ends with."""


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


@worker.task("golden.half")
async def half(_: Any, ctx: Context) -> None:
    """Tell that half is done, and take for ever over the rest."""
    ctx.progress(0.5, "half of it")
    await asyncio.Event().wait()


@worker.workflow("golden.greet", version="2.1.0")
async def greet(ctx: WorkflowContext, given: Any) -> dict[str, Any]:
    """Greet somebody, by a task."""
    return {"greeting": await ctx.task("golden.echo", f"hello {given['name']}")}


@worker.agent(name="golden-packer", description="packs orders", consumes=GoldenOrder, publishes=GoldenParcel)
async def packer(order: GoldenOrder) -> GoldenParcel:
    """Packs what is in stock."""
    if order.out_of_stock:
        raise TaskError("NO_STOCK", f"nothing is left of {order.order_id}")
    return GoldenParcel(order_id=order.order_id)


@worker.agent(name="golden-courier", consumes=GoldenParcel, publishes=GoldenReceipt)
async def courier(parcel: GoldenParcel) -> GoldenReceipt:
    """Brings parcels."""
    return GoldenReceipt(order_id=parcel.order_id)


@worker.agent(name="golden-waiter", consumes=GoldenWait)
async def waiter(_: GoldenWait) -> None:
    """Take for ever."""
    await asyncio.Event().wait()


if __name__ == "__main__":
    worker.run_forever()
