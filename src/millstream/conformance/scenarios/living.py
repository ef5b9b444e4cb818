"""Signs of life, and cancellation."""

from typing import Final

from millstream.conformance.bench import Bench
from millstream.conformance.books import Fence
from millstream.conformance.kinds import ECHO, HOLD
from millstream.conformance.rules import Violation
from millstream.conformance.scenario import Book
from millstream.conformance.stand import new_id

book: Final = Book()

LEASE_S: Final = 3.0
BEAT_S: Final = 1.5
BEATS: Final = 3


@book.add("keep-alive", "a worker that has nothing to do is heard of", "W31")
async def keep_alive(bench: Bench) -> None:
    """The server drops a worker that says nothing for a lease; a third of it leaves room for what is slow."""
    link = await bench.connect(lease_s=LEASE_S)
    for _ in range(BEATS):
        known = len(link.messages)
        await link.until("W31", "a sign of life", lambda: len(link.messages) > known, LEASE_S)  # noqa: B023 (at once)


@book.add("heartbeat", "a task that is watched shows signs of life", "W32")
async def heartbeat(bench: Bench) -> None:
    """It would fail without, after its heartbeat timeout."""
    link = await bench.connect()
    lease = bench.lease(HOLD)
    lease.heartbeat_timeout.FromMilliseconds(int(BEAT_S * 1000))
    await link.push(lease)

    def beats() -> int:
        beaten = [Fence.of(ref) for message in link.messages for ref in message.heartbeats]
        told = [Fence.of(each) for message in link.messages for each in message.progress]
        return (beaten + told).count(Fence.of(lease))

    for number in range(BEATS):
        await link.until("W32", "a heartbeat", lambda: beats() > number, BEAT_S)  # noqa: B023 (at once)
    await link.cancel(lease)
    await link.until("W33", "the end of a cancelled task", lambda: Fence.of(lease) in link.books.ended)


@book.add("cancel", "a task that is cancelled ends", "W9", "W33")
async def cancel(bench: Bench) -> None:
    """By a failure or a completion, which must not be that of another task."""
    link = await bench.connect()
    cancelled, other = bench.lease(HOLD), bench.lease(HOLD)
    await link.push(cancelled, other)
    both = {Fence.of(cancelled), Fence.of(other)}
    await link.until("W11", "the acknowledgement of two leases", lambda: both <= link.books.arrived)
    await link.cancel(cancelled)
    await link.until("W33", "the end of a cancelled task", lambda: Fence.of(cancelled) in link.books.ended)
    if Fence.of(other) in link.books.ended:
        raise Violation("W33", "a task that was not cancelled ended")
    await link.cancel(other)
    await bench.idle(link)


@book.add("lease-lost", "a task whose lease is lost ends without a report", "W9", "W34")
async def lease_lost(bench: Bench) -> None:
    """Another worker may have it by now."""
    link = await bench.connect()
    lost = [bench.lease(HOLD) for _ in range(link.books.slots)]
    await link.push(*lost)
    wanted = set(map(Fence.of, lost))
    await link.until("W11", "the acknowledgement of all leases", lambda: wanted <= link.books.arrived)
    for lease in lost:
        await link.cancel(lease, "LEASE_LOST")
    await bench.idle(link)
    await bench.fence(link, "W34")
    if wanted & link.books.ended:
        raise Violation("W34", "a lease that was lost was reported")


@book.add("stray-cancel", "a cancellation of what is not held changes nothing", "W35")
async def stray_cancel(bench: Bench) -> None:
    """Of a task never given, of one that ended, and of an attempt that is not the one that runs."""
    link = await bench.connect()
    ended = bench.lease(ECHO, 1)
    await bench.done(link, ended)
    running = bench.lease(HOLD, attempt=2)
    await link.push(running)
    await link.until("W11", "the acknowledgement of a lease", lambda: Fence.of(running) in link.books.arrived)
    before = bench.lease(HOLD, attempt=1, task_id=running.task_id)
    for reason in ("CANCELLED", "LEASE_LOST"):
        for stray in (bench.lease(HOLD, task_id=new_id()), ended, before):
            await link.cancel(stray, reason)
    await bench.fence(link, "W35")
    if Fence.of(running) in link.books.ended:
        raise Violation("W35", "an attempt ended though the cancellation was of another one")
    await link.cancel(running)
    await bench.idle(link)
