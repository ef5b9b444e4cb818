"""An order as a workflow: paid, packed item by item, shipped; and undone where shipping fails.

To run it by hand beside `millstream dev`: `python examples/order_workflow.py`. Then, in another terminal:

    millstream workflows execute order '{"customer": "ann", "items": ["ink", "pens"], "amount": 12}' --wait
    millstream workflows execute order '{"customer": "ann", "items": ["lava"], "amount": 12}' --wait
    millstream runs list --workflow order
    millstream runs steps ID
"""

import asyncio
import os

from millstream.sdk import Client, Context, TaskError, Worker

TARGET = os.environ.get("MILLSTREAM_TARGET", "127.0.0.1:8080")
API_KEY = os.environ.get("MILLSTREAM_API_KEY")

ORDER = {
    "name": "order",
    "description": "Takes an order: pays, packs, ships; a refund where that fails.",
    "input_schema": {"type": "object", "required": ["customer", "items", "amount"]},
    "steps": [
        {
            "id": "pay",
            "kind": "task",
            "task": "orders.pay",
            "input": {"customer": "${input.customer}", "amount": "${input.amount}"},
            "on_failure": {"compensate": "refund"},
        },
        {"id": "refund", "kind": "task", "task": "orders.refund", "input": {"payment": "${steps.pay.output.payment}"}},
        {
            "id": "pack",
            "kind": "map",
            "needs": ["pay"],
            "over": "input.items",
            "concurrency": 10,
            "each": {"kind": "task", "task": "orders.pack", "input": {"item": "${item}", "place": "${index}"}},
        },
        {
            "id": "ship",
            "kind": "task",
            "needs": ["pack"],
            "task": "orders.ship",
            "input": {"customer": "${input.customer}", "parcels": "${steps.pack.output}"},
            "retry": {"max_attempts": 2, "initial": 0.1},
        },
    ],
    "output": {"payment": "${steps.pay.output.payment}", "tracking": "${steps.ship.output.tracking}"},
}

worker = Worker(TARGET, api_key=API_KEY)


@worker.task("orders.pay")
async def pay(order: dict[str, object], ctx: Context) -> dict[str, object]:
    """Takes the money, once for each task, however often it is tried."""
    return {"payment": f"pay-{ctx.task_id[-6:]}", "amount": order["amount"]}


@worker.task("orders.refund")
async def refund(order: dict[str, object]) -> dict[str, object]:
    """Gives it back."""
    return {"refunded": order["payment"]}


@worker.task("orders.pack")
async def pack(order: dict[str, object]) -> str:
    """Packs one item."""
    return f"parcel of {order['item']}"


@worker.task("orders.ship")
async def ship(order: dict[str, object]) -> dict[str, object]:
    """Hands the parcels over. Nobody takes lava."""
    parcels = order["parcels"]
    if not isinstance(parcels, list) or any("lava" in str(parcel) for parcel in parcels):
        raise TaskError("REFUSED_BY_CARRIER", "no carrier takes that")
    return {"tracking": f"track-{len(parcels)}"}


async def define() -> None:
    """Make the workflow, or its next version."""
    async with Client(TARGET, api_key=API_KEY) as client:
        applied = await client.workflows.apply(ORDER)
        print(f"{applied.workflow.name} is {applied.outcome} as version {applied.workflow.version}", flush=True)


if __name__ == "__main__":
    asyncio.run(define())
    worker.run_forever()
