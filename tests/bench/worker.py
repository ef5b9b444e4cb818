"""The worker process: the three agents of the orders example, and a kind of standalone tasks.

Lean by default: the handlers take and return dicts, so what is measured is the service and not pydantic. The types'
JSON Schemas, which the server checks every artifact with, and the `where` of shipping are the example's. With
--models the example's own handlers run.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
from typing import Any

import uvloop
from tests.bench.acks import NotifyingOutbox, connect

import millstream.sdk.worker as worker_module
from millstream.sdk import Worker

Json = dict[str, Any]
Produced = tuple[str, Json]


def add_agents(worker: Worker) -> None:
    """The example's agents on plain dicts."""

    @worker.agent(consumes="Order", publishes="Payment")
    async def payments(order: Json) -> Produced:
        return "Payment", {"order_id": order["order_id"], "amount": order["amount"], "status": "paid"}

    @worker.agent(consumes="Payment", publishes="Shipment", where='payload.status == "paid"')
    async def shipping(payment: Json) -> Produced:
        return "Shipment", {"order_id": payment["order_id"], "tracking": f"TRACK-{payment['order_id']}"}

    @worker.agent(consumes="Shipment", publishes="Notification")
    async def notifier(shipment: Json) -> Produced:
        message = f"Order {shipment['order_id']} is on its way: {shipment['tracking']}"
        return "Notification", {"order_id": shipment["order_id"], "message": message}


def make_worker(target: str, slots: int, *, agents: bool, models: bool) -> Worker:
    """The worker as asked for."""
    worker = Worker(target, name="bench", slots=slots)
    if agents and models:
        from examples import orders

        worker.agent(consumes=orders.Order, publishes=orders.Payment)(orders.payments)
        paid = 'payload.status == "paid"'
        worker.agent(consumes=orders.Payment, publishes=orders.Shipment, where=paid)(orders.shipping)
        worker.agent(consumes=orders.Shipment, publishes=orders.Notification)(orders.notifier)
    elif agents:
        add_agents(worker)
    return worker


async def serve(arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    worker = make_worker(arguments.target, arguments.slots, agents=arguments.agents, models=arguments.models)

    @worker.task(arguments.kind)
    async def task(value: Json) -> Json:
        return value

    async with worker:
        print("ready", flush=True)
        await stop.wait()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", required=True)
    parser.add_argument("--acks", required=True, help="socket to report acknowledged completions to")
    parser.add_argument("--kind", required=True, help="kind of standalone tasks to serve")
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--agents", action="store_true")
    parser.add_argument("--models", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    NotifyingOutbox.notices = connect(arguments.acks)
    worker_module.Outbox = NotifyingOutbox  # type: ignore[attr-defined]
    uvloop.run(serve(arguments))


if __name__ == "__main__":
    main()
