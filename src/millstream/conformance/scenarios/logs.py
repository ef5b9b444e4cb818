"""What a worker makes of what its tasks log; for workers that serve the kind of it, as none has to."""

from typing import Any, Final

import grpc

from millstream.conformance.bench import Bench
from millstream.conformance.books import Fence
from millstream.conformance.kinds import LOG
from millstream.conformance.link import Link
from millstream.conformance.log_books import Shown, spans
from millstream.conformance.rules import NotServed, Violation
from millstream.conformance.scenario import Book
from millstream.v1 import worker_pb2

book: Final = Book()

LINES: Final[list[Shown]] = [
    ("INFO", "begun", {}),
    ("WARN", "odd", {"order": "o-1", "count": 3.5, "deep": {"list": [1.0, None, True]}}),
    ("ERROR", "it broke: \u00e4\u20ac", {"count": 0.0}),
]
MANY: Final[list[Shown]] = [("INFO", f"line {number}", {}) for number in range(1, 501)]
"""More than one batch of most workers."""
STORED: Final = 200
"""So many of them are acknowledged before the stream breaks."""


def asking(lines: list[Shown], **more: Any) -> dict[str, Any]:
    """The input of a task that logs."""
    return {"lines": [dict(zip(("level", "message", "fields"), line, strict=True)) for line in lines], **more}


async def _connect(bench: Bench, *, log_acks: bool = False) -> Link:
    """The next connection, welcomed, of a worker that logs; its lines are not acknowledged by themselves."""
    link = await bench.link()
    if LOG not in link.hello.kinds:
        raise NotServed(LOG)
    link.log_acks = log_acks
    await link.welcome()
    return link


async def _logged(link: Link, lease: worker_pb2.Lease, numbers: list[int], rule: str) -> None:
    """Waits until these lines of an attempt came on a stream, in this order, and nothing else of it."""

    def came() -> list[int]:
        return link.logged.get(Fence.of(lease), [])

    await link.until(rule, f"{len(numbers)} lines of a task", lambda: len(came()) >= len(numbers))
    if came() != numbers:
        raise Violation(rule, f"lines {spans(numbers)} of a task were to come; {spans(came())} came")


async def _silent(link: Link, lease: worker_pb2.Lease, rule: str, bench: Bench) -> None:
    """Sees that a worker which does what it is told next has sent no line of an attempt on this stream."""
    await bench.fence(link, rule)
    await bench.fence(link, rule)
    if came := link.logged.get(Fence.of(lease)):
        raise Violation(rule, f"lines {spans(came)} of a task came, of which nothing was to come")


@book.add("logs", "what a task logs comes as it was logged, attempt by attempt", "W46", "W49")
async def logs(bench: Bench) -> None:
    """With level, text and fields; each attempt is numbered anew."""
    link = await _connect(bench, log_acks=True)
    first = bench.lease(LOG, asking(LINES))
    for lease in (first, bench.lease(LOG, asking(LINES[:2]), attempt=2, task_id=first.task_id)):
        wanted = LINES[: 4 - lease.attempt]
        await bench.done(link, lease, "W46")
        await _logged(link, lease, [*range(1, len(wanted) + 1)], "W46")
        link.logs.check(lease, wanted)
    await bench.idle(link)


@book.add("logs-resumed", "over a broken stream no line is lost, and none comes that is stored", "W47", "W49")
async def resumed(bench: Bench) -> None:
    """The task runs on; a part of its lines was acknowledged."""
    first = await _connect(bench)
    lease = bench.lease(LOG, asking(MANY, hold=True))
    await first.push(lease)
    await _logged(first, lease, [*range(1, len(MANY) + 1)], "W46")
    await first.ack_lines(lease, STORED)
    await bench.fence(first, "W47")
    first.end(grpc.StatusCode.UNAVAILABLE, "the server was lost")
    second = await _connect(bench)
    await _logged(second, lease, [*range(STORED + 1, len(MANY) + 1)], "W47")
    await second.ack_lines(lease, len(MANY))
    await bench.fence(second, "W47")
    second.end(grpc.StatusCode.UNAVAILABLE, "the server was lost")
    third = await _connect(bench)
    await third.cancel(lease)
    await third.until("W33", "the end of a task that is cancelled", lambda: third.failures(lease))
    await _silent(third, lease, "W47", bench)
    third.logs.check(lease, MANY)


@book.add("logs-after-end", "lines of an attempt that has ended go again, too", "W47", "W49")
async def after_end(bench: Bench) -> None:
    """Its completion is acknowledged, its lines are not."""
    first = await _connect(bench)
    lease = bench.lease(LOG, asking(LINES))
    await bench.done(first, lease, "W46")
    await _logged(first, lease, [1, 2, 3], "W46")
    await bench.fence(first, "W47")
    first.end(grpc.StatusCode.UNAVAILABLE, "the server was lost")
    second = await _connect(bench)
    await _logged(second, lease, [1, 2, 3], "W47")
    await second.ack_lines(lease, 3)
    await bench.fence(second, "W47")
    second.logs.check(lease, LINES)


@book.add("logs-again", "lines that are asked for again come again", "W48")
async def again(bench: Bench) -> None:
    """The server had no room for the later ones."""
    link = await _connect(bench)
    lease = bench.lease(LOG, asking(MANY))
    await bench.done(link, lease, "W46")
    everything = [*range(1, len(MANY) + 1)]
    await _logged(link, lease, everything, "W46")
    await link.ack_lines(lease, STORED, again=True)
    await _logged(link, lease, everything + everything[STORED:], "W48")
    await link.ack_lines(lease, len(MANY))
    await bench.fence(link, "W48")
    await _logged(link, lease, everything + everything[STORED:], "W48")


@book.add("logs-refused", "a log that is refused has ended, and its task goes on", "W50")
async def refused(bench: Bench) -> None:
    """LEASE_LOST: another attempt has logged."""
    first = await _connect(bench)
    lease = bench.lease(LOG, asking(LINES, hold=True))
    await first.push(lease)
    await _logged(first, lease, [1, 2, 3], "W46")
    await first.ack_lines(lease, 0, lost=True)
    await bench.fence(first, "W50")
    first.end(grpc.StatusCode.UNAVAILABLE, "the server was lost")
    second = await _connect(bench)
    await second.cancel(lease)
    await second.until("W50", "the end of a task that is cancelled", lambda: second.failures(lease))
    await _silent(second, lease, "W50", bench)


@book.add("logs-untaken", "a server that takes no lines is sent none", "W51")
async def untaken(bench: Bench) -> None:
    """As one of an older release. The worker ends when it is stopped, whatever its tasks have logged."""
    link = await bench.link()
    if LOG not in link.hello.kinds:
        raise NotServed(LOG)
    await link.welcome(log_window_bytes=0)
    lease = bench.lease(LOG, asking(LINES))
    await bench.done(link, lease, "W51")
    await _silent(link, lease, "W51", bench)
    bench.target.terminate()
    await bench.wait("W51", "the worker's exit", bench.target.ended())
    if link.logged:
        raise Violation("W51", "lines came at the end, though the server takes none")
