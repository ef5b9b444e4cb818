"""How a worker reports, and what it does until its reports are stored."""

from typing import Any, Final

import grpc
from google.protobuf import json_format

from millstream.conformance.bench import Bench, fences
from millstream.conformance.books import Fence
from millstream.conformance.kinds import ECHO, FAIL, OUTPUT, PROGRESS, SLEEP
from millstream.conformance.link import Link
from millstream.conformance.rules import Violation
from millstream.conformance.scenario import Book
from millstream.conformance.stand import output_of
from millstream.v1 import error_pb2, worker_pb2

book: Final = Book()


@book.add("fail", "a failure is told as the task meant it", "W9", "W19")
async def fail(bench: Bench) -> None:
    """With a code and a message; final, or retryable after a while."""
    link = await bench.connect()
    asked: tuple[dict[str, Any], ...] = (
        {"code": "NO_FUNDS", "message": "the card is empty", "retryable": False},
        {"code": "BUSY", "message": "later", "retryable": True, "retry_after_ms": 1500},
    )
    for value in asked:
        lease = bench.lease(FAIL, value)
        await link.push(lease)
        await link.until("W19", "the failure of a task", lambda: link.failures(lease))  # noqa: B023 (at once)
        failure = link.failures(lease)[0]
        # Absent: as the task's retry policy says.
        retryable = failure.retryable or not failure.HasField("retryable")
        found: dict[str, Any] = {"code": failure.code, "message": failure.message, "retryable": retryable}
        if failure.HasField("retry_after"):
            found["retry_after_ms"] = failure.retry_after.ToMilliseconds()
        if found != value:
            raise Violation("W19", f"the task failed with {value}; {found} was reported")
    await bench.idle(link)


@book.add("publish", "what an agent makes goes with its completion", "W20")
async def publish(bench: Bench) -> None:
    """No artifact, one, and several, in their order."""
    link = await bench.connect()
    items: tuple[list[Any], ...] = ([], ["one"], [1, {"two": 2}, None])
    for made in items:
        lease = bench.agent_lease(made)
        await bench.done(link, lease, "W20")
        artifacts = link.completions(lease)[0].artifacts
        found = [json_format.MessageToDict(each.payload) for each in artifacts]
        if found != [{"item": item} for item in made] or {each.type for each in artifacts} - {OUTPUT}:
            raise Violation("W20", f"the agent was given {made!r}; with its completion came {found!r}")
        await bench.idle(link, 1)


@book.add("progress", "progress is told before the end", "W21")
async def progress(bench: Bench) -> None:
    """Half of a task is done."""
    link = await bench.connect()
    lease = bench.lease(PROGRESS, {"fraction": 0.5, "message": "half"})
    await bench.done(link, lease, "W21")
    told = [item for message in link.messages for item in message.progress]
    if [(item.fraction, item.message) for item in told] != [(0.5, "half")]:
        raise Violation("W21", f"the task told 0.5, 'half'; {len(told)} reports of progress came before its end")


@book.add("unacknowledged", "what was not acknowledged goes again, and then no more", "W22", "W23", "W28")
async def unacknowledged(bench: Bench) -> None:
    """The stream breaks before the acknowledgement of a completion and a failure."""
    first = await bench.connect()
    first.acks = False
    done, failed = bench.lease(SLEEP, {"ms": 1}), bench.lease(FAIL, {"code": "GONE", "message": "gone"})
    both = {Fence.of(done), Fence.of(failed)}
    await first.push(done, failed)
    await first.until("W17", "two reports", lambda: both <= first.books.ended)
    first.end(grpc.StatusCode.UNAVAILABLE, "the server was lost")
    second = await bench.link("W26")
    if missing := both - fences(second.hello.held):
        raise Violation(
            "W28", f"the hello does not name task {next(iter(missing)).task_id}, whose report was not acknowledged"
        )
    await second.welcome()
    await second.until("W22", "the reports that were not acknowledged", lambda: both <= second.books.ended)
    if output_of(second.completions(done)[0]) != output_of(first.completions(done)[0]):
        raise Violation("W22", "the completion that was sent again says something else")
    await bench.idle(second)
    await bench.fence(second, "W23")
    second.end(grpc.StatusCode.UNAVAILABLE, "the server was lost again")
    await _nothing_again(bench, both)


@book.add("acknowledged-in-part", "the acknowledgement of a message is that of all before it", "W22", "W23")
async def acknowledged_in_part(bench: Bench) -> None:
    """Of three reports the first two are acknowledged, by the number of the second's message."""
    first = await bench.connect()
    first.acks = False
    leases = [bench.lease(ECHO, number) for number in range(3)]
    numbers = []
    for lease in leases:
        await bench.done(first, lease)
        numbers.append(first.books.number)
        await bench.idle(first, 1)
    await first.send(ack=numbers[1])
    # What the server says is taken in order: the echo is given after the acknowledgement.
    last = bench.lease(ECHO, "last")
    await bench.done(first, last)
    first.end(grpc.StatusCode.UNAVAILABLE, "the server was lost")
    second = await bench.link("W26")
    held = fences(second.hello.held)
    if again := held & {Fence.of(lease) for lease in leases[:2]}:
        raise Violation("W23", f"the hello names task {next(iter(again)).task_id}, whose report was acknowledged")
    await second.welcome()
    await bench.completed(second, leases[2], "W22")
    await bench.completed(second, last, "W22")
    if second.completions(*leases[:2]):
        raise Violation("W23", "a report that was acknowledged came again")


async def _nothing_again(bench: Bench, reported: set[Fence]) -> None:
    """Checks the next stream for reports that were acknowledged."""
    link = await bench.link("W26")
    if again := fences(link.hello.held) & reported:
        raise Violation("W23", f"the hello names task {next(iter(again)).task_id}, whose report was acknowledged")
    await link.welcome()
    await bench.fence(link, "W26")
    _silent(link, reported, "W23", "a report that was acknowledged came again")


def _silent(link: Link, about: set[Fence], rule: str, what: str) -> None:
    came = [*map(Fence.of, link.completions()), *map(Fence.of, link.failures())]
    if about & set(came):
        raise Violation(rule, what)


@book.add("refused", "a report that is refused is not sent again", "W9", "W24")
async def refused(bench: Bench) -> None:
    """The server answers with LEASE_LOST: meanwhile another attempt runs."""
    first = await bench.connect()
    first.acks = False
    lease = bench.lease(ECHO, "too late")
    await bench.done(first, lease)
    error = error_pb2.ErrorBody(code="LEASE_LOST", message="another attempt runs", retryable=False)
    result = worker_pb2.ReportResult(task_id=lease.task_id, attempt=lease.attempt, error=error)
    await first.send(ack=first.books.number, refused=[result])
    first.acks = True
    await bench.idle(first)
    await bench.fence(first, "W24")
    first.end(grpc.StatusCode.UNAVAILABLE, "the server was lost")
    second = await bench.connect()
    await bench.fence(second, "W24")
    _silent(second, {Fence.of(lease)}, "W24", "a report that was refused came again")


@book.add("slow-acks", "the worker goes on while nothing is acknowledged", "W22", "W25")
async def slow_acks(bench: Bench) -> None:
    """Several rounds of all slots before the first acknowledgement."""
    link = await bench.connect()
    link.acks = False
    for _ in range(3):
        leases = [bench.lease(ECHO, number) for number in range(link.books.slots)]
        await link.push(*leases)
        for lease in leases:
            await bench.completed(link, lease, "W25")
        await link.until("W25", "credit while no report is acknowledged", lambda: link.books.credit >= link.books.slots)
    await link.ack()
    link.acks = True
    await bench.fence(link, "W25")
    reported = set(link.books.ended)
    link.end(grpc.StatusCode.UNAVAILABLE, "the server was lost")
    await _nothing_again(bench, reported)
