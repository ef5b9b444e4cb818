"""A worker process for the tests of code-first workflows: workflows in several versions, and kinds of tasks.

VERSIONS names the versions of "flow" that it has, by commas; QUEUE is where it takes work from.
"""

import asyncio
import os
from typing import Any

from pydantic import BaseModel

from millstream.sdk import StepFailed, TaskError, Worker, WorkflowContext

worker = Worker(
    os.environ["MILLSTREAM_TARGET"],
    name=os.environ.get("WORKER_NAME", ""),
    slots=50,
    queues=[os.environ.get("QUEUE", "default")],
)
VERSIONS = os.environ.get("VERSIONS", "1").split(",")


class Order(BaseModel):
    """What is ordered."""

    id: int
    amount: float = 1.0


@worker.workflow("code-order")
async def order(ctx: WorkflowContext, given: Order) -> dict[str, Any]:
    """Pay, then ship and tell at once, then wait for the customer."""
    paid = await ctx.task("pay", {"id": given.id, "amount": given.amount})
    ctx.state["paid"] = paid
    shipped, told = await ctx.gather(ctx.task("ship", given.id), ctx.task("tell", given.id))
    if given.amount > 100:
        ctx.state["waits for"] = "confirmed"
        return {"confirmed": await ctx.signal("confirmed"), "paid": paid}
    return {"paid": paid, "shipped": shipped, "told": told}


@worker.workflow("many")
async def many(ctx: WorkflowContext, count: int) -> int:
    """One task after the other."""
    total = 0
    for n in range(count):
        total += await ctx.task("add", n)
    return total


@worker.workflow("changing")
async def changing(ctx: WorkflowContext, _: Any) -> str:
    """What CHANGED says: another first task, for runs that have begun with "tell"."""
    first = "ship" if os.environ.get("CHANGED") else "tell"
    told = await ctx.task(first, 1)
    await ctx.signal("go")
    return f"{told}, {await ctx.task('tell', 2)}"


@worker.workflow("slow")
async def slow(ctx: WorkflowContext, steps: int) -> list[Any]:
    """Steps with everything that has to survive a worker."""
    chance = await ctx.run(lambda: os.getpid(), "pid")
    made = [chance]
    for n in range(steps):
        await ctx.sleep(0.01)
        made.append(await ctx.task("add", n))
    made.append(await ctx.signal("go", timeout=60))
    made.append(chance)
    return made


@worker.workflow("parent")
async def parent(ctx: WorkflowContext, order: dict[str, Any]) -> Any:
    """A run of another workflow."""
    return {"child": await ctx.child("code-order", order)}


@worker.workflow("careful")
async def careful(ctx: WorkflowContext, kind: str) -> str:
    """Clean up whatever comes."""
    try:
        await ctx.task(kind)
    except StepFailed as error:
        return f"failed: {error.code}"
    finally:
        await ctx.task("tell", "cleaned up")
    return "well"


async def flow(ctx: WorkflowContext, given: Any) -> str:
    """Say which version runs."""
    await ctx.signal("go")
    return f"{ctx.version}: {await ctx.task('tell', given)}"


for version in VERSIONS:
    worker.workflow("flow", version=version)(flow)


@worker.task("pay")
async def pay(given: dict[str, Any]) -> str:
    """Take the money."""
    if given["amount"] < 0:
        raise TaskError("DECLINED", "a negative amount")
    return f"paid {given['id']}"


@worker.task("ship")
async def ship(order_id: int) -> str:
    """Ship it."""
    return f"shipped {order_id}"


@worker.task("tell")
async def tell(text: Any) -> str:
    """Tell somebody."""
    return f"told {text}"


@worker.task("add")
async def add(n: int) -> int:
    """Something that takes no time."""
    return n


@worker.task("hang")
async def hang(_: Any) -> None:
    """Something that takes for ever."""
    await asyncio.Event().wait()


if __name__ == "__main__":
    worker.run_forever()
