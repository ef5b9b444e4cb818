"""How a worker leaves, and how it is sent elsewhere."""

from typing import Final

from millstream.conformance.bench import Bench
from millstream.conformance.books import Fence
from millstream.conformance.kinds import SLEEP
from millstream.conformance.link import Link
from millstream.conformance.rules import Violation
from millstream.conformance.scenario import Book
from millstream.v1 import worker_pb2

book: Final = Book()

SHORT_MS: Final = 300


async def _running(bench: Bench, link: Link) -> worker_pb2.Lease:
    """A task that runs for a while yet."""
    lease = bench.lease(SLEEP, {"ms": SHORT_MS})
    await link.push(lease)
    await link.until("W11", "the acknowledgement of a lease", lambda: Fence.of(lease) in link.books.arrived)
    return lease


@book.add("server-drain", "a worker that is sent elsewhere finishes first", "W36")
async def server_drain(bench: Bench) -> None:
    """It reports what runs, waits for the acknowledgement, ends the stream, and connects again with empty hands."""
    first = await bench.connect()
    first.acks = False
    lease = await _running(bench, first)
    await first.send(drain=True)
    await bench.completed(first, lease, "W36")
    if first.half_closed:
        raise Violation("W36", "the stream was ended before the last report was acknowledged")
    await first.ack()
    await first.until("W36", "the end of the worker's side of the stream", lambda: first.half_closed)
    second = await bench.link("W36")
    if second.hello.held:
        raise Violation("W36", "the hello at the next server names leases, though all was reported")
    await second.welcome()
    await bench.fence(second, "W36")


@book.add("stop", "a worker that is stopped finishes what runs", "W17", "W37")
async def stop(bench: Bench) -> None:
    """SIGTERM: it takes no more, reports, waits for the acknowledgement, and exits with 0. What is given to it
    meanwhile it gives back, or does."""
    link = await bench.connect()
    link.acks = False
    lease = await _running(bench, link)
    bench.target.terminate()
    await link.until("W37", "a message with drain", lambda: any(each.drain for each in link.messages))
    late = bench.lease(SLEEP, {"ms": 1})
    await link.push(late)
    await bench.completed(link, lease, "W37")
    await link.until("W37", "the end of a lease that came late", lambda: Fence.of(late) in link.books.ended)
    if link.failures(late):
        raise Violation("W37", "a lease that came after drain was failed; give it back by `released`, or do it")
    if bench.target.code is not None:
        raise Violation("W37", "the worker exited before its last report was acknowledged")
    await link.ack()
    link.acks = True
    code = await bench.wait("W37", "the worker's exit", _exit(bench))
    if code != 0:
        raise Violation("W37", f"the worker exited with {code}")


async def _exit(bench: Bench) -> int:
    return await bench.target.ended()
