"""A worker for the crash suite: the orders example, which also notes each execution, stumbles, and takes its time.

Run as a script. CRASH_EXECUTIONS names the file that each execution appends one JSON line to, before it begins.
"""

import asyncio
import json
import os
import random
import time
import zlib
from typing import Any

from pydantic import BaseModel

from millstream.sdk import Context, RetryPolicy, TaskError, Worker, WorkflowContext


class Order(BaseModel):
    """What a customer asks for."""

    order_id: str


class Payment(BaseModel):
    """That an order is paid for."""

    order_id: str


class Shipment(BaseModel):
    """That an order is on its way."""

    order_id: str


class Notification(BaseModel):
    """What the customer is told."""

    order_id: str


# Every kill may burn an attempt; none of them may be the last.
RETRY = RetryPolicy(initial_interval=0.05, factor=1.5, maximum_interval=0.4, max_attempts=1000)
BUSY_S = float(os.environ.get("CRASH_BUSY_S", "0.01"))

notes = os.open(os.environ["CRASH_EXECUTIONS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
worker = Worker(os.environ["MILLSTREAM_TARGET"], slots=64, backoff=(0.05, 0.5), drain_timeout=1.0)


def note(ctx: Context, order_id: str) -> None:
    """One write of one line, which O_APPEND keeps whole among processes."""
    fields: dict[str, Any] = {
        "task": ctx.task_id, "attempt": ctx.fence.attempt, "run": ctx.run_id, "token": ctx.idempotency_token,
        "kind": ctx.kind, "key": order_id, "pid": os.getpid(), "at": time.time(),
    }  # fmt: skip
    os.write(notes, json.dumps(fields).encode() + b"\n")


@worker.agent(consumes=Order, publishes=Payment, retry=RETRY)
async def payments(order: Order, ctx: Context) -> Payment:
    """Charges the customer; one in ten only at the second try."""
    note(ctx, order.order_id)
    await asyncio.sleep(random.uniform(0, BUSY_S))
    if ctx.attempt == 1 and zlib.crc32(order.order_id.encode()) % 10 == 0:
        raise TaskError("STUMBLED", "once", retryable=True)
    return Payment(order_id=order.order_id)


@worker.agent(consumes=Payment, publishes=Shipment, retry=RETRY)
def shipping(payment: Payment, ctx: Context) -> Shipment:
    """Ships, in a thread."""
    note(ctx, payment.order_id)
    time.sleep(random.uniform(0, BUSY_S))
    return Shipment(order_id=payment.order_id)


@worker.agent(consumes=Shipment, publishes=Notification, retry=RETRY, max_concurrency=24)
async def notifier(shipment: Shipment, ctx: Context) -> Notification:
    """Tells the customer; a bounded number at once, so that its tasks go through the gate."""
    note(ctx, shipment.order_id)
    await asyncio.sleep(random.uniform(0, BUSY_S / 4))
    return Notification(order_id=shipment.order_id)


@worker.task("crash.echo")
async def echo(value: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """A standalone task: gives back what it is given."""
    note(ctx, str(value["key"]))
    await asyncio.sleep(random.uniform(0, BUSY_S))
    return value


@worker.task("crash.slow")
async def slow(value: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """One that takes `seconds`, through stops of its server."""
    note(ctx, str(value["key"]))
    await asyncio.sleep(value["seconds"])
    return value


@worker.task("crash.step")
async def step(value: dict[str, Any], ctx: Context) -> float:
    """A step of a workflow: gives back twice its number; one in ten only at the second try."""
    note(ctx, str(value["key"]))
    await asyncio.sleep(random.uniform(0, BUSY_S))
    if ctx.attempt == 1 and zlib.crc32(f"{value['key']}/{value['n']:g}".encode()) % 10 == 0:
        raise TaskError("STUMBLED", "once", retryable=True)
    return float(2 * value["n"])


@worker.task("crash.refuse")
async def refuse(value: dict[str, Any], ctx: Context) -> None:
    """A step that fails finally."""
    note(ctx, str(value["key"]))
    raise TaskError("REFUSED", "as ever", retryable=False)


@worker.workflow("crash.code")
async def code(ctx: WorkflowContext, given: dict[str, Any]) -> dict[str, Any]:
    """One task, two at once, a pause, something recorded, and one that joins them."""
    key = given["key"]
    first = await ctx.task("crash.step", {"key": key, "n": 1}, retry=RETRY)
    tasks = [ctx.task("crash.step", {"key": key, "n": first + n}, retry=RETRY) for n in (1, 2)]
    left, right = await ctx.gather(*tasks)
    await ctx.sleep(0.1)
    pid = await ctx.run(os.getpid)
    assert isinstance(pid, float | int)
    return {"key": key, "n": await ctx.task("crash.step", {"key": key, "n": left + right}, retry=RETRY)}


if __name__ == "__main__":
    worker.run_forever()
