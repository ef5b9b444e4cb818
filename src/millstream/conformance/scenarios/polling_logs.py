"""What a worker without a stream makes of what its tasks log; for those that serve the kind of it."""

from typing import Final

from millstream.conformance.books import Fence
from millstream.conformance.kinds import LOG
from millstream.conformance.log_books import spans
from millstream.conformance.polling.bench import PollBench
from millstream.conformance.rules import NotServed, Violation
from millstream.conformance.scenario import POLL, Book
from millstream.conformance.scenarios.logs import LINES, MANY, STORED, asking
from millstream.v1 import worker_pb2

book: Final = Book(POLL)


async def _begin(bench: PollBench, *, acks: bool = False) -> None:
    """Waits for a worker that logs; its lines are not acknowledged by themselves."""
    bench.server.logs.acks = acks
    await bench.polled("W39")
    if not any(LOG in poll.kinds for poll in bench.server.polls):
        raise NotServed(LOG)


async def _logged(bench: PollBench, lease: worker_pb2.Lease, numbers: list[int], rule: str, stream: int = 0) -> None:
    """Waits until these lines of an attempt came on a stream, in this order, and nothing else of it."""
    logs = bench.server.logs
    await bench.until(rule, f"{len(numbers)} lines of a task", lambda: len(logs.came(lease, stream)) >= len(numbers))
    if (came := logs.came(lease, stream)) != numbers:
        raise Violation(rule, f"lines {spans(numbers)} of a task were to come; {spans(came)} came")


async def _ack(
    bench: PollBench, lease: worker_pb2.Lease, offset: int, *, again: bool = False, lost: bool = False
) -> None:
    logs = bench.server.logs
    await logs.streams[-1].answer(logs.books.ack(Fence.of(lease), offset, again=again, lost=lost))


async def _seen(bench: PollBench, rule: str) -> None:
    """Sees that the worker has heard the acknowledgements of a stream: it logs by it again."""
    lease = bench.lease(LOG, asking(LINES[:1]))
    stream = len(bench.server.logs.streams) - 1
    await bench.done(lease, rule)
    await _logged(bench, lease, [1], rule, stream)
    await _ack(bench, lease, 1)


@book.add("poll-logs", "what a task logs comes as it was logged, attempt by attempt", "W46", "W49")
async def logs(bench: PollBench) -> None:
    """With level, text and fields; each attempt is numbered anew."""
    await _begin(bench, acks=True)
    first = bench.lease(LOG, asking(LINES))
    for lease in (first, bench.lease(LOG, asking(LINES[:2]), attempt=2, task_id=first.task_id)):
        wanted = LINES[: 4 - lease.attempt]
        await bench.done(lease, "W46")
        books = bench.server.logs.books
        await bench.until("W46", "the lines of a task", lambda: books.count(lease) >= len(wanted))  # noqa: B023 (at once)
        books.check(lease, wanted)


@book.add("poll-logs-resumed", "over a broken stream no line is lost, and none comes that is stored", "W47", "W49")
async def resumed(bench: PollBench) -> None:
    """The task has ended; a part of its lines was acknowledged."""
    await _begin(bench)
    lease = bench.lease(LOG, asking(MANY))
    await bench.done(lease, "W46")
    await _logged(bench, lease, [*range(1, len(MANY) + 1)], "W46")
    await _ack(bench, lease, STORED)
    await _seen(bench, "W47")
    bench.server.logs.streams[0].end()
    await _logged(bench, lease, [*range(STORED + 1, len(MANY) + 1)], "W47", 1)
    await _ack(bench, lease, len(MANY))
    await _seen(bench, "W47")
    bench.server.logs.streams[1].end()
    other = bench.lease(LOG, asking(LINES))
    await bench.done(other, "W47")
    await _logged(bench, other, [1, 2, 3], "W47", 2)
    if came := bench.server.logs.came(lease, 2):
        raise Violation("W47", f"lines {spans(came)} of a task came again, though they were acknowledged")
    bench.server.logs.books.check(lease, MANY)


@book.add("poll-logs-again", "lines that are asked for again come again", "W48")
async def again(bench: PollBench) -> None:
    """The server had no room for the later ones."""
    await _begin(bench)
    lease = bench.lease(LOG, asking(MANY))
    await bench.done(lease, "W46")
    everything = [*range(1, len(MANY) + 1)]
    await _logged(bench, lease, everything, "W46")
    await _ack(bench, lease, STORED, again=True)
    await _logged(bench, lease, everything + everything[STORED:], "W48")


@book.add("poll-logs-refused", "a log that is refused has ended, and its task goes on", "W50")
async def refused(bench: PollBench) -> None:
    """LEASE_LOST: another attempt has logged."""
    await _begin(bench)
    lease = bench.lease(LOG, asking(LINES, hold=True))
    await bench.given("W50", lease)
    await _logged(bench, lease, [1, 2, 3], "W46")
    await _ack(bench, lease, 0, lost=True)
    await _seen(bench, "W50")
    bench.server.logs.streams[0].end()
    bench.cancel(lease)
    await bench.ended(lease, "W50")
    other = bench.lease(LOG, asking(LINES))
    await bench.done(other, "W50")
    await _logged(bench, other, [1, 2, 3], "W50", 1)
    if came := bench.server.logs.came(lease, 1):
        raise Violation("W50", f"lines {spans(came)} of a task came, of which nothing was to come")
