"""The worker process: a suite of agents, and a kind of standalone tasks. The usual suite is the orders example's three.

Lean by default: the handlers take and return dicts, so what is measured is the service and not pydantic. The types'
JSON Schemas, which the server checks every artifact with, and the `where` of shipping are the example's. With
--models the example's own handlers run.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import time
from typing import Any

import uvloop
from tests.bench.acks import NotifyingOutbox, connect

import millstream.sdk.worker as worker_module
from millstream.sdk import Join, Subscription, Worker, WorkflowContext

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


def add_matching(worker: Worker, count: int) -> None:
    """Agents that all subscribe to one type; the first also to a type of its own."""
    for number in range(count):
        types = ["Crowd", "Single"] if number == 0 else ["Crowd"]

        @worker.agent(consumes=types, name=f"matching-{number}")
        async def matching(_: Json) -> None:
            return None


def add_joiner(worker: Worker) -> None:
    """An agent that waits for both halves of a pair, whichever run they come from."""
    pair = Subscription(["Left", "Right"], join=Join(by="payload.id", within=3600), scope="tenant")

    @worker.agent(consumes=pair)
    async def joiner(_: list[Json]) -> None:
        return None


def add_flows(worker: Worker) -> None:
    """What the workflows' rows need: a step, the time, and the three steps as code."""

    @worker.task("bench.step")
    async def step(value: Any) -> Any:
        return value

    @worker.task("bench.now")
    async def now() -> float:
        return time.time()

    @worker.workflow("bench-code")
    async def code(ctx: WorkflowContext, value: Json) -> Json:
        for _ in range(3):
            value = await ctx.task("bench.step", value)
        return value


def make_worker(target: str, slots: int, suite: str, *, models: bool) -> Worker:
    """The worker as asked for: a suite is "orders", "joiner", "flows", or a number of agents, all of one type."""
    worker = Worker(target, name="bench", slots=slots)
    if suite.isdecimal():
        add_matching(worker, int(suite))
    elif suite == "joiner":
        add_joiner(worker)
    elif suite == "flows":
        add_flows(worker)
    elif suite == "orders" and models:
        from examples import orders

        worker.agent(consumes=orders.Order, publishes=orders.Payment)(orders.payments)
        paid = 'payload.status == "paid"'
        worker.agent(consumes=orders.Payment, publishes=orders.Shipment, where=paid)(orders.shipping)
        worker.agent(consumes=orders.Shipment, publishes=orders.Notification)(orders.notifier)
    elif suite == "orders":
        add_agents(worker)
    return worker


async def serve(arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    worker = make_worker(arguments.target, arguments.slots, arguments.suite, models=arguments.models)
    if arguments.tenant:  # the developer's way to be somebody else; with a key, the key says it
        worker._metadata = (*worker._metadata, ("x-tenant", arguments.tenant))

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
    parser.add_argument("--suite", default="", help="agents to serve; see make_worker")
    parser.add_argument("--tenant", default="")
    parser.add_argument("--models", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    NotifyingOutbox.notices = connect(arguments.acks)
    worker_module.Outbox = NotifyingOutbox  # type: ignore[attr-defined]
    uvloop.run(serve(arguments))


if __name__ == "__main__":
    main()
