"""A saga: a trip is booked flight by room by car; where one is not to be had, what was booked before is given back.

To run it by hand beside `millstream dev`: `python examples/saga.py`. Then, in another terminal:

    millstream workflows execute trip '{"traveller": "ann", "to": "Lisbon"}' --wait
    millstream workflows execute trip '{"traveller": "ann", "to": "Atlantis"}' --wait
    millstream runs steps ID
"""

import asyncio
import os

from millstream.sdk import Client, Context, TaskError, Worker

TARGET = os.environ.get("MILLSTREAM_TARGET", "127.0.0.1:8080")
API_KEY = os.environ.get("MILLSTREAM_API_KEY")


def booking(what: str, *needs: str) -> list[dict[str, object]]:
    """A step that books something, and the one that gives it back."""
    return [
        {
            "id": what,
            "kind": "task",
            "needs": [*needs],
            "task": "trips.book",
            "input": {"what": what, "to": "${input.to}", "traveller": "${input.traveller}"},
            "on_failure": {"compensate": f"no_{what}"},
        },
        {
            # The step that failed is to be undone, too, for what it may have done before; here it has done nothing.
            "id": f"no_{what}",
            "kind": "task",
            "when": f"steps.{what}.status == 'COMPLETED'",
            "task": "trips.give_back",
            "input": {"booking": f"${{steps.{what}.output.booking}}"},
            "retry": {"max_attempts": 100},
        },
    ]


TRIP = {
    "name": "trip",
    "description": "Books a flight, a room and a car, or nothing of it.",
    "input_schema": {"type": "object", "required": ["traveller", "to"]},
    "steps": [*booking("flight"), *booking("room", "flight"), *booking("car", "room")],
    "output": {what: f"${{steps.{what}.output.booking}}" for what in ("flight", "room", "car")},
}

worker = Worker(TARGET, api_key=API_KEY)


@worker.task("trips.book")
async def book(wanted: dict[str, str], ctx: Context) -> dict[str, str]:
    """Books one part of a trip, once for each task, however often it is tried. There are no cars in Atlantis."""
    if (wanted["what"], wanted["to"]) == ("car", "Atlantis"):
        raise TaskError("NOT_TO_BE_HAD", f"there is no {wanted['what']} in {wanted['to']}")
    return {"booking": f"{wanted['what']} {ctx.idempotency_token[-6:]}"}


@worker.task("trips.give_back")
async def give_back(given: dict[str, str]) -> dict[str, str]:
    """Cancels a booking. It must not fail for good, so it is tried often."""
    return {"cancelled": given["booking"]}


async def define() -> None:
    """Make the workflow, or its next version."""
    async with Client(TARGET, api_key=API_KEY) as client:
        applied = await client.workflows.apply(TRIP)
        print(f"{applied.workflow.name} is {applied.outcome} as version {applied.workflow.version}", flush=True)


if __name__ == "__main__":
    asyncio.run(define())
    worker.run_forever()
