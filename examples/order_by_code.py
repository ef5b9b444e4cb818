"""The order of order_workflow.py as code: the same steps, written as an async function that outlasts its worker.

To run it by hand beside `millstream dev`: `python examples/order_by_code.py`. Then, in another terminal:

    millstream workflows execute order-by-code '{"customer": "ann", "items": ["ink", "pens"], "amount": 12}' --wait
    millstream workflows execute order-by-code '{"customer": "ann", "items": ["lava"], "amount": 12}' --wait
    millstream workflows execute order-by-code '{"customer": "bob", "items": ["ink"], "amount": 5000}'
    millstream runs signal ID approved '{"by": "carol"}'
"""

import os
from typing import Any

from millstream.sdk import RetryPolicy, StepFailed, TaskError, Worker, WorkflowContext

TARGET = os.environ.get("MILLSTREAM_TARGET", "127.0.0.1:8080")
API_KEY = os.environ.get("MILLSTREAM_API_KEY")
LARGE = 1000
DAY_S = 86_400

worker = Worker(TARGET, api_key=API_KEY)


@worker.workflow("order-by-code", version="1")
async def order(ctx: WorkflowContext, given: dict[str, Any]) -> dict[str, Any]:
    """Asks where it is large, pays, packs, ships; gives the money back where shipping fails."""
    approved_by = ""
    if given["amount"] > LARGE:
        ctx.state["waits for"] = "approval"
        approved_by = (await ctx.signal("approved", timeout=DAY_S))["by"]
        ctx.state["waits for"] = ""
    paid = await ctx.task("code-pay", {"customer": given["customer"], "amount": given["amount"]})
    try:
        parcels = await ctx.gather(*(ctx.task("code-pack", item) for item in given["items"]))
        shipped = await ctx.task("code-ship", parcels, retry=RetryPolicy(max_attempts=2, initial_interval=0.1))
    except StepFailed:
        await ctx.task("code-refund", paid)
        raise
    return {"payment": paid["payment"], "tracking": shipped["tracking"], "approved_by": approved_by}


@worker.task("code-pay")
async def pay(given: dict[str, Any]) -> dict[str, Any]:
    """Takes the money."""
    return {"payment": f"pay-{given['customer']}", "amount": given["amount"]}


@worker.task("code-refund")
async def refund(paid: dict[str, Any]) -> dict[str, Any]:
    """Gives it back."""
    return {"refunded": paid["payment"]}


@worker.task("code-pack")
async def pack(item: str) -> str:
    """Packs one item."""
    return f"parcel of {item}"


@worker.task("code-ship")
async def ship(parcels: list[str]) -> dict[str, Any]:
    """Hands the parcels over. Nobody takes lava."""
    if any("lava" in parcel for parcel in parcels):
        raise TaskError("REFUSED_BY_CARRIER", "no carrier takes that")
    return {"tracking": f"track-{len(parcels)}"}


if __name__ == "__main__":
    worker.run_forever()
