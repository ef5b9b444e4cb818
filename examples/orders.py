"""An order is paid for, shipped, and its customer told: three agents that know nothing of each other.

`make run` starts this worker beside the service; to run it by hand: `python examples/orders.py`. Then publish an
Order and wait for what it sets off:

    millstream publish Order '{"order_id": "o-1", "amount": 12.5, "items": ["tea"]}' --sync
"""

import os

from pydantic import BaseModel

from millstream.sdk import Context, TaskError, Worker


class Order(BaseModel):
    """What a customer asks for."""

    order_id: str
    amount: float
    items: list[str] = []


class Payment(BaseModel):
    """That an order is paid for."""

    order_id: str
    amount: float
    status: str


class Shipment(BaseModel):
    """That an order is on its way."""

    order_id: str
    tracking: str


class Notification(BaseModel):
    """What the customer is told."""

    order_id: str
    message: str


worker = Worker(os.environ.get("MILLSTREAM_TARGET", "127.0.0.1:7080"), api_key=os.environ.get("MILLSTREAM_API_KEY"))


@worker.agent(consumes=Order, publishes=Payment)
async def payments(order: Order, ctx: Context) -> Payment:
    """Charges the customer."""
    if order.amount < 0:
        # Final: another attempt would be declined as well. Callers find it among the cascade's failures.
        raise TaskError("PAYMENT_DECLINED", f"cannot charge {order.amount}")
    # A payment provider would be given ctx.idempotency_token, so that a second attempt does not charge twice.
    ctx.log.info("charged %.2f for order %s", order.amount, order.order_id)
    return Payment(order_id=order.order_id, amount=order.amount, status="paid")


@worker.agent(consumes=Payment, publishes=Shipment, where='payload.status == "paid"')
async def shipping(payment: Payment) -> Shipment:
    """Ships what is paid for."""
    return Shipment(order_id=payment.order_id, tracking=f"TRACK-{payment.order_id}")


@worker.agent(consumes=Shipment, publishes=Notification)
async def notifier(shipment: Shipment) -> Notification:
    """Tells the customer."""
    message = f"Order {shipment.order_id} is on its way: {shipment.tracking}"
    return Notification(order_id=shipment.order_id, message=message)


if __name__ == "__main__":
    worker.run_forever()
