"""How a worker connects, and connects again."""

import itertools
from typing import Final

import grpc

from millstream.conformance.bench import Bench, fences
from millstream.conformance.books import Fence
from millstream.conformance.kinds import ECHO, HOLD, INPUT, KINDS, OUTPUT, PUBLISHER, SLEEP, SLOTS
from millstream.conformance.rules import Violation
from millstream.conformance.scenario import Book
from millstream.conformance.stand import START_S

book: Final = Book()

REFUSALS: Final = 5
SHORT_MS: Final = 300
"""Of a task that still runs when its stream ends."""


@book.add("hello", "the worker says who it is and what it serves", "W1", "W3", "W4", "W5", "W6", "W7")
async def hello(bench: Bench) -> None:
    """The first message is complete, and a task can be done after it."""
    link = await bench.link("W1")
    said = link.hello
    if said.held:
        raise Violation("W28", "the first hello names leases, though none was ever given")
    if missing := set(KINDS) - set(said.kinds):
        raise Violation("W6", f"kinds of the hello do not name {', '.join(sorted(missing))}")
    if said.slots != SLOTS:
        raise Violation("W6", f"the hello has {said.slots} slots; the worker was told {SLOTS}")
    agents = {each.name: each for each in said.agents}
    if PUBLISHER not in agents:
        raise Violation("W6", f"agents of the hello do not name {PUBLISHER}")
    consumed = {name for each in agents[PUBLISHER].subscriptions for name in each.types}
    if consumed != {INPUT} or list(agents[PUBLISHER].outputs) != [OUTPUT]:
        raise Violation("W6", f"the agent is to take {INPUT} and to have {OUTPUT} as its output")
    for spec in said.kind_specs:
        if spec.category != spec.WORKFLOW and spec.kind not in said.kinds:
            raise Violation("W7", f"kind_specs describe {spec.kind!r}, which kinds do not name")
    await link.welcome()
    await bench.fence(link, "W1")


@book.add("reconnect", "a task goes on over a broken stream and runs once", "W5", "W26", "W28", "W29")
async def reconnect(bench: Bench) -> None:
    """The stream breaks while a task runs."""
    first = await bench.connect()
    running = bench.lease(SLEEP, {"ms": SHORT_MS})
    await first.push(running)
    await first.until("W11", "the acknowledgement of a lease", lambda: Fence.of(running) in first.books.arrived)
    first.end(grpc.StatusCode.UNAVAILABLE, "the server was lost")
    second = await bench.link("W26")
    if Fence.of(running) not in fences(second.hello.held):
        raise Violation("W28", "the hello after a broken stream does not name the lease that is held")
    await second.welcome()
    runs = (await bench.completed(second, running, "W29"))["runs"]
    if runs != 1:
        raise Violation("W29", f"the task ran {runs:g} times; it was to go on")
    await bench.idle(second)


@book.add("held-lost", "leases that are no longer the worker's are given up", "W9", "W30")
async def held_lost(bench: Bench) -> None:
    """The welcome names one lease of two."""
    first = await bench.connect()
    lost, kept = bench.lease(HOLD), bench.lease(SLEEP, {"ms": SHORT_MS})
    await first.push(lost, kept)
    both = {Fence.of(lost), Fence.of(kept)}
    await first.until("W11", "the acknowledgement of two leases", lambda: both <= first.books.arrived)
    first.end(grpc.StatusCode.UNAVAILABLE, "the server was lost")
    second = await bench.link("W26")
    if missing := both - fences(second.hello.held):
        raise Violation(
            "W28", f"the hello does not name the lease of task {next(iter(missing)).task_id}, which is held"
        )
    await second.welcome(held=[Fence.of(kept)])
    await bench.completed(second, kept, "W29")
    # Its slot is free: with all others held, one more task ends only where all of them run at once.
    await bench.idle(second)
    held, last = [bench.lease(HOLD) for _ in range(second.books.slots - 1)], bench.lease(SLEEP, {"ms": 1})
    await second.push(*held, last)
    await bench.completed(second, last, "W30")
    for lease in held:
        await second.cancel(lease)
    await bench.idle(second)
    if second.completions(lost) or second.failures(lost):
        raise Violation("W30", "a lease that the welcome did not name was reported")


@book.add("unavailable", "the pauses between tries grow", "W26", "W27")
async def unavailable(bench: Bench) -> None:
    """The service refuses for a while, as one that starts."""
    bench.server.refusals = [(grpc.StatusCode.UNAVAILABLE, "starting")] * REFUSALS
    knocks = [await bench.wait("W26", "a connection", bench.server.knocks.get(), START_S) for _ in range(REFUSALS + 1)]
    pauses = [late - early for early, late in itertools.pairwise(knocks)]
    if pauses[-1] <= pauses[0]:
        shown = ", ".join(f"{pause:.2f}" for pause in pauses)
        raise Violation("W27", f"the pauses between tries were {shown} s")
    await bench.fence(await bench.connect(), "W26")


@book.add("goaway", "the worker comes back after its server went", "W26", "W28")
async def goaway(bench: Bench) -> None:
    """The connection is told that the server goes, and ends; another one listens at the same place."""
    first = await bench.connect()
    running = bench.lease(SLEEP, {"ms": SHORT_MS})
    await first.push(running)
    await first.until("W11", "the acknowledgement of a lease", lambda: Fence.of(running) in first.books.arrived)
    await bench.server.stop()
    await bench.server.start()
    second = await bench.connect()
    if Fence.of(running) not in fences(second.hello.held):
        raise Violation("W28", "the hello at the next server does not name the lease that is held")
    await bench.completed(second, running, "W29")


@book.add("clean-end", "a stream that ends without an error is opened again", "W26")
async def clean_end(bench: Bench) -> None:
    """A proxy may end streams so."""
    first = await bench.connect()
    await bench.fence(first, "W17")
    first.end()
    await bench.fence(await bench.connect(), "W26")


@book.add("unknown-fields", "what a newer server says beside is ignored", "W38")
async def unknown_fields(bench: Bench) -> None:
    """Fields that the worker's contract has not, in a message and in a lease; and an empty message."""
    link = await bench.connect()
    lease = bench.lease(ECHO, {"known": True})
    link.count(lease)
    # Field 1000, a text; and field 1001, a number.
    more = b"\xc2\x3e\x05extra" + b"\xc8\x3e\x2a"
    raw = lease.SerializeToString() + more
    await link.send_raw(b"")
    await link.send_raw(more)
    await link.send_raw(b"\x1a" + _length(len(raw)) + raw + more)
    if (found := await bench.completed(link, lease, "W38")) != {"known": True}:
        raise Violation("W14", f"the echo of {{'known': True}} is {found!r}")
    await bench.fence(link, "W38")


def _length(size: int) -> bytes:
    """A number as a varint."""
    out = bytearray()
    while size >= 0x80:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out)
