"""What a worker does with the tasks that it is given."""

from typing import Any, Final

import grpc

from millstream.conformance.bench import Bench
from millstream.conformance.books import Fence
from millstream.conformance.kinds import ECHO, FAIL, HOLD, KINDS, SLEEP, TOKEN
from millstream.conformance.rules import Violation
from millstream.conformance.scenario import Book

book: Final = Book()

ROUNDS: Final = 5
LONG_MS: Final = 300
VALUES: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 1.5, 1e300, -1e-300, 2**53 - 1, "", "text", "\u00e4\u20ac\U0001f600", '"\\/\b\n\t',
    [], {}, [1, [2, [3, []]], None], {"": 0, "a": {"b": {"c": [True, None, "x"]}}}, {"list": [{"n": 1}, {"n": 2}]},
    "x" * 200_000,
)  # fmt: skip
"""Each type of JSON, and their edges."""


@book.add("credit", "the worker runs as many tasks as it has slots, and asks for no more", "W8", "W9", "W10")
async def credit(bench: Bench) -> None:
    """All slots are taken at once; each that is free again is told, and no other."""
    link = await bench.connect()
    held = [bench.lease(HOLD) for _ in range(link.books.slots - 1)]
    last = bench.lease(SLEEP, {"ms": 1})
    await link.push(*held, last)
    # With all others held, the last one ends only where all of them run at once.
    await bench.completed(link, last, "W10")
    await bench.idle(link, 1)
    for number in range(ROUNDS):
        await bench.done(link, bench.lease(ECHO, number), "W9")
        await bench.idle(link, 1)
    for lease in held:
        await link.cancel(lease)
    await bench.idle(link)


@book.add("batch", "leases that come in one message are all done", "W9", "W10", "W17")
async def batch(bench: Bench) -> None:
    """Several rounds of all slots at once."""
    link = await bench.connect()
    for _ in range(ROUNDS):
        leases = [bench.lease(ECHO, number) for number in range(link.books.slots)]
        await link.push(*leases)
        for number, lease in enumerate(leases):
            if (found := await bench.completed(link, lease, "W10")) != number:
                raise Violation("W14", f"the echo of {number} is {found!r}")
        await bench.idle(link)


@book.add("delivery", "a lease is acknowledged when it arrives, not when it ends", "W11")
async def delivery(bench: Bench) -> None:
    """A task that does not end; and a server that stores no report meanwhile."""
    link = await bench.connect()
    lease = bench.lease(HOLD)
    await link.push(lease)
    await link.until("W11", "the acknowledgement of a lease", lambda: Fence.of(lease) in link.books.arrived)
    if link.completions(lease) or link.failures(lease):
        raise Violation("W11", "the acknowledgement came with the report of a task that was to go on")
    await link.cancel(lease)
    await link.until("W33", "the end of a cancelled task", lambda: Fence.of(lease) in link.books.ended)


@book.add("payloads", "JSON goes in and comes out as it is", "W14")
async def payloads(bench: Bench) -> None:
    """Each type of JSON is echoed."""
    link = await bench.connect()
    for value in VALUES:
        found = await bench.done(link, bench.lease(ECHO, value), "W14")
        # In Python False is 0 and True is 1, in JSON they are not.
        if found != value or isinstance(found, bool) is not isinstance(value, bool):
            raise Violation("W14", f"the echo of {value!r:.60} is {found!r:.60}")
        await bench.idle(link, 1)


@book.add("duplicate", "a lease that comes twice is run once", "W12", "W17")
async def duplicate(bench: Bench) -> None:
    """While it runs, while its report waits for the acknowledgement, and on the next stream."""
    first = await bench.connect()
    first.acks = False
    running, ended = bench.lease(SLEEP, {"ms": LONG_MS}), bench.lease(SLEEP, {"ms": 1})
    await first.push(running)
    await first.until("W11", "the acknowledgement of a lease", lambda: Fence.of(running) in first.books.arrived)
    await first.send(leases=[running])
    _once(await bench.completed(first, running, "W12"))
    _once(await bench.done(first, ended, "W12"))
    await first.send(leases=[running, ended])
    # Should they run again, the short one is reported before this one ends.
    await bench.done(first, bench.lease(SLEEP, {"ms": LONG_MS}))
    first.end(grpc.StatusCode.UNAVAILABLE, "the server was lost")
    second = await bench.link("W26")
    second.acks = False
    await second.welcome()
    await second.send(leases=[running, ended])
    for lease in (running, ended):
        _once(await bench.completed(second, lease, "W22"))
    await bench.done(second, bench.lease(SLEEP, {"ms": LONG_MS}), "W12")


def _once(output: Any) -> None:
    if output["runs"] != 1:
        raise Violation("W12", f"a lease that came twice was run {output['runs']:g} times")


@book.add("unknown-kind", "a task that the worker cannot do is given back as failed", "W9", "W13")
async def unknown_kind(bench: Bench) -> None:
    """A kind that nobody serves, such as one that an older version of the worker did."""
    link = await bench.connect()
    lease = bench.lease("conformance.nobody")
    await link.push(lease)
    await link.until("W13", "the end of a task of an unknown kind", lambda: Fence.of(lease) in link.books.ended)
    failures = link.failures(lease)
    if not failures or (failures[0].HasField("retryable") and not failures[0].retryable):
        raise Violation("W13", "a task of an unknown kind did not fail in a way that another worker may try it again")
    await bench.idle(link)


@book.add("attempts", "the next attempt of a task is run under its own number", "W15")
async def attempts(bench: Bench) -> None:
    """The first one fails; the second succeeds."""
    link = await bench.connect()
    failing = bench.lease(FAIL, {"code": "FIRST", "message": "the first try"})
    await link.push(failing)
    await link.until("W17", "the failure of a task", lambda: link.failures(failing))
    again = bench.lease(ECHO, "the second", attempt=2, task_id=failing.task_id)
    if (found := await bench.done(link, again, "W15")) != "the second":
        raise Violation("W15", f"the echo of a second attempt is {found!r}")
    third = bench.lease(SLEEP, {"ms": 1}, attempt=3, task_id=failing.task_id)
    await bench.done(link, third, "W15")


@book.add("token", "a task is given its idempotency token", "W16")
async def token(bench: Bench) -> None:
    """It is the same for all attempts, and none of the worker's making."""
    link = await bench.connect()
    for attempt in (1, 2):
        lease = bench.lease(TOKEN, attempt=attempt, idempotency_token="conformance-token")  # noqa: S106 (made up)
        found = await bench.done(link, lease, "W16")
        if found != {"idempotency_token": "conformance-token"}:
            raise Violation("W16", f"the task was given {found!r}")


@book.add("kinds", "each kind that the hello names is done", "W6")
async def kinds(bench: Bench) -> None:
    """None of them is unknown after all."""
    link = await bench.connect()
    for kind in KINDS:
        lease = bench.lease(kind, {"ms": 1, "code": "EXPECTED", "message": "as asked", "fraction": 0.5})
        await link.push(lease)
        if kind == HOLD:
            await link.until("W11", "the acknowledgement of a lease", lambda: link.books.arrived)
            await link.cancel(lease)
        await link.until("W6", f"the end of a task of the kind {kind}", lambda: Fence.of(lease) in link.books.ended)  # noqa: B023 (at once)
        failures = link.failures(lease)
        if kind not in (FAIL, HOLD) and failures:
            raise Violation("W6", f"a task of the kind {kind} failed: {failures[0].code}: {failures[0].message}")
