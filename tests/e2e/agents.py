"""A worker process for the tests: one agent for each way of subscribing, and a few kinds of tasks.

AGENTS names the groups that it serves, by commas; WORKER_NAME and WORKER_SLOTS are the worker's.
"""

import asyncio
import os

from pydantic import BaseModel

from millstream.sdk import Batch, Context, Join, RetryPolicy, Subscription, TaskError, Worker

GROUPS = set(os.environ.get("AGENTS", "subscriptions,failures,sizes").split(","))

worker = Worker(
    os.environ["MILLSTREAM_TARGET"],
    name=os.environ.get("WORKER_NAME", ""),
    slots=int(os.environ.get("WORKER_SLOTS", "50")),
    api_key=os.environ.get("MILLSTREAM_API_KEY"),
)


class Seen(BaseModel):
    """That an agent was activated."""

    agent: str
    what: str = ""


class Sale(BaseModel):
    """For the agents that choose by `where`."""

    amount: float
    items: list[str] = []


class Parcel(BaseModel):
    """For the agents that choose by who made it."""

    note: str = ""


class Label(BaseModel):
    """What the packer makes of a Parcel."""

    note: str = ""


class Signal(BaseModel):
    """For the agents that choose by tags."""

    note: str = ""


class Prize(BaseModel):
    """For the agents of which only one gets it."""

    note: str = ""


class Ranked(BaseModel):
    """For the agents of different urgency."""

    note: str = ""


class Crowd(BaseModel):
    """Makes twenty Guests."""

    note: str = ""


class Guest(BaseModel):
    """For the agent that takes one at a time."""

    number: int


class Fragile(BaseModel):
    """For the agents that fail."""

    note: str = ""


class Many(BaseModel):
    """Makes 1,200 Seen."""

    note: str = ""


class Bulky(BaseModel):
    """Makes 20 Seen of 225 KB."""

    note: str = ""


class Patient(BaseModel):
    """For the agent that waits."""

    note: str = ""


class Left(BaseModel):
    """One half, for the agents that wait for both."""

    id: str = ""


class Right(BaseModel):
    """The other half."""

    id: str = ""


class Brick(BaseModel):
    """For the agents that collect."""

    number: int = 0


class Nut(BaseModel):
    """One half of a pair that any cascade may complete."""

    id: str = ""


class Bolt(BaseModel):
    """The other half."""

    id: str = ""


class Lock(BaseModel):
    """Waits for its key, and not for long."""

    id: str = ""


class Key(BaseModel):
    """Opens a Lock."""

    id: str = ""


class Whole(BaseModel):
    """What an agent was given together."""

    agent: str
    ids: list[str]


if "gates" in GROUPS:

    @worker.agent(consumes=Subscription([Left, Right], counts={Left: 2}), publishes=Whole)
    async def pairer(parts: list[BaseModel]) -> Whole:
        """Waits for two of one and one of the other, in a cascade."""
        return Whole(agent="pairer", ids=[f"{type(part).__name__} {part.id}" for part in parts])  # type: ignore[attr-defined]

    @worker.agent(
        consumes=Subscription([Left, Right], join=Join(by="payload.id", within=3600), scope="tenant"), publishes=Whole
    )
    async def joiner(parts: list[BaseModel]) -> Whole:
        """Joins halves of one id, of all cascades."""
        return Whole(agent="joiner", ids=[part.id for part in parts])  # type: ignore[attr-defined]

    @worker.agent(consumes=Subscription([Left, Right], join=Join(by="payload.id", within_count=4)), publishes=Whole)
    async def windower(parts: list[BaseModel]) -> Whole:
        """Joins halves of one id that come close to each other."""
        return Whole(agent="windower", ids=[part.id for part in parts])  # type: ignore[attr-defined]

    @worker.agent(consumes=Subscription([Left, Right], join=Join(by="payload.id", within=0.2)), publishes=Whole)
    async def hurried(parts: list[BaseModel]) -> Whole:
        """Gives up soon."""
        return Whole(agent="hurried", ids=[part.id for part in parts])  # type: ignore[attr-defined]

    @worker.agent(consumes=Subscription(Brick, batch=Batch(size=5, timeout=3600)), publishes=Whole)
    async def mason(bricks: list[Brick]) -> Whole:
        """Takes five at a time, of all cascades."""
        return Whole(agent="mason", ids=[str(brick.number) for brick in bricks])

    @worker.agent(consumes=Subscription(Brick, batch=Batch(timeout=0.2), scope="correlation"), publishes=Whole)
    async def sweeper(bricks: list[Brick]) -> Whole:
        """Takes what there is after a while, of a cascade."""
        return Whole(agent="sweeper", ids=[str(brick.number) for brick in bricks])

    @worker.agent(consumes=Subscription([Nut, Bolt], counts={Nut: 1}, scope="tenant"), publishes=Whole)
    async def assembler(parts: list[BaseModel]) -> Whole:
        """Waits for one of each, of all cascades."""
        return Whole(agent="assembler", ids=[part.id for part in parts])  # type: ignore[attr-defined]

    @worker.agent(consumes=Subscription([Lock, Key], counts={Lock: 1}, gate_timeout=0.2), publishes=Whole)
    async def opener(parts: list[BaseModel]) -> Whole:
        """Waits for one of each, and not for long."""
        return Whole(agent="opener", ids=[part.id for part in parts])  # type: ignore[attr-defined]

    @worker.agent(consumes=Subscription(Brick, mode="direct"), publishes=Whole)
    async def summoned(brick: Brick) -> Whole:
        """Is run by name only."""
        return Whole(agent="summoned", ids=[str(brick.number)])


if "subscriptions" in GROUPS:

    @worker.agent(consumes=Sale, publishes=Seen, where="payload.amount > 100.0 && size(payload.items) > 0")
    async def big_sales(sale: Sale) -> Seen:
        """Sales over 100 with items."""
        return Seen(agent="big_sales", what=f"{sale.amount:g}")

    @worker.agent(consumes=Sale, publishes=Seen, where="payload.discount > 0.0")
    async def discounts(sale: Sale) -> Seen:
        """Asks for a key that no sale has."""
        return Seen(agent="discounts")

    @worker.agent(consumes=Sale, publishes=Seen, where='artifact.partition_key == "north" && "vip" in artifact.tags')
    async def northern(sale: Sale) -> Seen:
        """Looks at what stands around the payload."""
        return Seen(agent="northern")

    @worker.agent(consumes=Parcel, publishes=Label)
    async def packer(parcel: Parcel) -> Label:
        """Makes a Label."""
        return Label(note=parcel.note)

    @worker.agent(consumes=Label, publishes=Seen, from_agents=["packer"])
    async def courier(label: Label) -> Seen:
        """Takes labels of the packer only."""
        return Seen(agent="courier", what=label.note)

    @worker.agent(consumes=Label, publishes=Seen, from_agents=["external"])
    async def clerk(label: Label) -> Seen:
        """Takes labels of clients only."""
        return Seen(agent="clerk", what=label.note)

    @worker.agent(consumes=Signal, publishes=Seen, tags=["red", "amber"])
    async def alarm(signal: Signal) -> Seen:
        """Takes red and amber signals."""
        return Seen(agent="alarm", what=signal.note)

    @worker.agent(consumes=[Signal, Prize], publishes=Seen)
    async def archive(item: BaseModel) -> Seen:
        """Takes two types, whatever their tags."""
        return Seen(agent="archive", what=type(item).__name__)

    @worker.agent(consumes=Prize, publishes=Seen, delivery="exclusive", priority=1)
    async def second(prize: Prize) -> Seen:
        """Comes second."""
        return Seen(agent="second")

    @worker.agent(consumes=Prize, publishes=Seen, delivery="exclusive", priority=10, where='payload.note != "refused"')
    async def winner(prize: Prize) -> Seen:
        """Comes first, where it wants the prize at all."""
        return Seen(agent="winner")

    @worker.agent(consumes=Crowd, publishes=Guest)
    async def doorman(crowd: Crowd) -> list[Guest]:
        """Lets twenty in."""
        return [Guest(number=number) for number in range(20)]

    @worker.agent(consumes=Guest, publishes=Seen, max_concurrency=1)
    async def host(guest: Guest) -> Seen:
        """Takes one at a time."""
        await asyncio.sleep(0.02)
        return Seen(agent="host", what=str(guest.number))


if "ranked" in GROUPS:

    @worker.agent(consumes=Ranked, publishes=Seen, priority=-50, queue="ranked")
    async def last(ranked: Ranked) -> Seen:
        """Comes last."""
        return Seen(agent="last")

    @worker.agent(consumes=Ranked, publishes=Seen, priority=100, queue="ranked")
    async def first(ranked: Ranked) -> Seen:
        """Comes first."""
        return Seen(agent="first")

    @worker.agent(consumes=Ranked, publishes=Seen, queue="ranked")
    async def middle(ranked: Ranked) -> Seen:
        """Comes between."""
        return Seen(agent="middle")


if "failures" in GROUPS:

    @worker.agent(consumes=Fragile, publishes=Seen, retry=RetryPolicy(initial_interval=0.01, max_attempts=3))
    async def clumsy(fragile: Fragile) -> Seen:
        """Fails, always."""
        raise TaskError("BROKEN", f"dropped {fragile.note}", retryable=True)

    @worker.agent(consumes=Fragile, publishes=Seen, retry=RetryPolicy(initial_interval=0.01))
    async def learner(fragile: Fragile, ctx: Context) -> Seen:
        """Fails the first time."""
        if ctx.attempt == 1:
            raise RuntimeError("not yet")
        return Seen(agent="learner", what=str(ctx.attempt))

    @worker.agent(consumes=Patient, publishes=Seen)
    async def waiter(patient: Patient, ctx: Context) -> Seen:
        """Works until it is cancelled."""
        print(f"waiting {ctx.run_id}")
        await asyncio.Event().wait()
        return Seen(agent="waiter")


if "sizes" in GROUPS:

    @worker.agent(consumes=Many, publishes=Seen)
    async def hundreds(many: Many) -> list[Seen]:
        """Makes 600."""
        return [Seen(agent="hundreds", what=str(number)) for number in range(600)]

    @worker.agent(consumes=Many, publishes=Seen)
    async def dozens(many: Many) -> list[Seen]:
        """Makes 600 more."""
        return [Seen(agent="dozens", what=str(number)) for number in range(600)]

    @worker.agent(consumes=Bulky, publishes=Seen)
    async def heavy(bulky: Bulky, ctx: Context) -> list[Seen]:
        """Makes 4.5 MB."""
        return [Seen(agent="heavy", what=chr(97 + number) * 225_000) for number in range(20)]


if "holds" in GROUPS:

    @worker.task("hold")
    async def hold(what: str, ctx: Context) -> str:
        """Never ends the first time."""
        if ctx.attempt == 1:
            print(f"holding {ctx.task_id}")
            await asyncio.Event().wait()
        return f"{what} by {worker.name}"


@worker.task("echo")
async def echo(value: object) -> object:
    """Returns what it is given."""
    return value


if __name__ == "__main__":
    worker.run_forever()
