"""How a worker without a stream polls, runs and reports."""

import itertools
from typing import Any, Final

from google.protobuf import json_format

from millstream.conformance.books import Fence
from millstream.conformance.kinds import (
    ECHO,
    FAIL,
    HOLD,
    KINDS,
    OUTPUT,
    POLL_LEASE_S,
    PROGRESS,
    PUBLISHER,
    SLEEP,
    TOKEN,
)
from millstream.conformance.polling.bench import PollBench
from millstream.conformance.rules import Violation
from millstream.conformance.scenario import POLL, Book
from millstream.conformance.scenarios.leases import VALUES
from millstream.conformance.stand import START_S

book: Final = Book(POLL)

REFUSALS: Final = 5
SHORT_MS: Final = 300
BEAT_S: Final = 1.5
BEATS: Final = 3
UNKNOWN: Final = b"\xc0\x3e\x01"
"""Field 1000, which no version has: 1."""


@book.add("poll-hello", "the worker polls for what it serves", "W3", "W4", "W39")
async def hello(bench: PollBench) -> None:
    """The first poll is complete, and a task can be done after it."""
    await bench.polled("W39")
    asked = {kind for poll in bench.server.polls for kind in poll.kinds}
    wanted = {*KINDS, f"agent:{PUBLISHER}"}
    if len(bench.server.polls) == 1 and (missing := wanted - asked):
        raise Violation("W39", f"kinds of the poll do not name {', '.join(sorted(missing))}")
    await bench.fence("W39")


@book.add("poll-again", "the worker polls again after an empty answer, and waits there", "W41")
async def again(bench: PollBench) -> None:
    """Nothing came, twice; then something does. A poll that does not wait is asked again and again for nothing."""
    await bench.polled("W41")
    for _ in range(2):
        before = len(bench.server.polls)
        await bench.server.answer_empty()
        await bench.polled("W41", before + 1)
    await bench.fence("W41")
    shortest = min(poll.wait if poll.HasField("wait") else 30.0 for poll in bench.server.polls)
    if shortest < 1:
        raise Violation("W41", f"a poll waits {shortest:g} s; let it wait at the service, for a second at least")


@book.add("poll-slots", "the worker runs as many tasks as it has slots, and asks for no more", "W9", "W10", "W40")
async def slots(bench: PollBench) -> None:
    """All slots are taken at once, and are free again when their tasks have ended."""
    held = [bench.lease(HOLD) for _ in range(bench.server.books.slots - 1)]
    last = bench.lease(SLEEP, {"ms": 1})
    await bench.given("W10", *held, last)
    await bench.completed(last, "W10")
    for lease in held:
        bench.cancel(lease)
    for lease in held:
        await bench.ended(lease, "W33")
    await bench.free("W9")


@book.add("poll-payloads", "input and output are what they were", "W14", "W16")
async def payloads(bench: PollBench) -> None:
    """Each type of JSON, and the token."""
    for value in VALUES:
        found = await bench.done(bench.lease(ECHO, value), "W14")
        # In Python False is 0 and True is 1, in JSON they are not.
        if found != value or isinstance(found, bool) is not isinstance(value, bool):
            raise Violation("W14", f"the echo of {value!r:.60} is {found!r:.60}")
    lease = bench.lease(TOKEN, idempotency_token="not-the-task")  # noqa: S106 (no secret)
    found = await bench.done(lease, "W16")
    if found != {"idempotency_token": lease.idempotency_token}:
        raise Violation("W16", f"the task was given {found!r}, not its lease's idempotency token")


@book.add("poll-attempts", "a later attempt runs, and a kind that is not served fails", "W13", "W15")
async def attempts(bench: PollBench) -> None:
    """Each under its own number."""
    first = bench.lease(SLEEP, {"ms": 1})
    await bench.done(first, "W15")
    second = bench.lease(SLEEP, {"ms": 1}, attempt=2, task_id=first.task_id)
    if (await bench.done(second, "W15"))["runs"] != 1:
        raise Violation("W15", "the second attempt was not run as one of its own")
    stray = bench.lease("conformance.unheard-of")
    await bench.given("W13", stray)
    await bench.ended(stray, "W13")
    failure = bench.server.failures.get(Fence.of(stray))
    if failure is None or (failure.HasField("retryable") and not failure.retryable):
        raise Violation("W13", "a task of a kind that is not served is to be failed, retryable")
    await bench.fence("W13")


@book.add("poll-fail", "a failure is told as the task meant it", "W19")
async def fail(bench: PollBench) -> None:
    """With a code and a message; final, or retryable after a while."""
    asked: tuple[dict[str, Any], ...] = (
        {"code": "NO_FUNDS", "message": "the card is empty", "retryable": False},
        {"code": "BUSY", "message": "later", "retryable": True, "retry_after_ms": 1500},
    )
    for value in asked:
        lease = bench.lease(FAIL, value)
        await bench.given("W19", lease)
        await bench.ended(lease, "W19")
        failure = bench.server.failures.get(Fence.of(lease))
        if failure is None:
            raise Violation("W19", "a task that failed was completed")
        # Absent: as the task's retry policy says.
        retryable = failure.retryable or not failure.HasField("retryable")
        found: dict[str, Any] = {"code": failure.code, "message": failure.message, "retryable": retryable}
        if failure.HasField("retry_after"):
            found["retry_after_ms"] = failure.retry_after.ToMilliseconds()
        if found != value:
            raise Violation("W19", f"the task failed with {value}; {found} was reported")


@book.add("poll-publish", "what an agent makes goes with its completion, and progress before it", "W20", "W21")
async def publish(bench: PollBench) -> None:
    """No artifact, one, and several, in their order; and half of a task is done."""
    items: tuple[list[Any], ...] = ([], ["one"], [1, {"two": 2}, None])
    for made in items:
        lease = bench.agent_lease(made)
        await bench.done(lease, "W20")
        artifacts = bench.server.completions[Fence.of(lease)].artifacts
        found = [json_format.MessageToDict(each.payload) for each in artifacts]
        if found != [{"item": item} for item in made] or {each.type for each in artifacts} - {OUTPUT}:
            raise Violation("W20", f"the agent was given {made!r}; with its completion came {found!r}")
    await bench.done(bench.lease(PROGRESS, {"fraction": 0.5, "message": "half"}), "W21")
    told = [(item.fraction, item.message) for item in bench.server.progress]
    if told != [(0.5, "half")]:
        raise Violation("W21", f"the task told 0.5, 'half'; {len(told)} reports of progress came before its end")


@book.add("poll-renew", "a worker renews what it holds", "W32", "W33", "W42")
async def renew(bench: PollBench) -> None:
    """Its leases run out without; and a task that is watched fails without signs of life."""
    held, watched = bench.lease(HOLD), bench.lease(HOLD)
    watched.heartbeat_timeout.FromMilliseconds(int(BEAT_S * 1000))
    await bench.given("W42", held, watched)
    for rule, lease, within_s in (("W32", watched, BEAT_S), ("W42", held, POLL_LEASE_S)):
        for _ in range(BEATS):
            await bench.renewed(lease, rule, within_s)
    for lease in (held, watched):
        bench.cancel(lease)
        await bench.ended(lease, "W33")


@book.add("poll-cancel", "a task that is cancelled ends, and no other", "W33")
async def cancel(bench: PollBench) -> None:
    """The answer to its heartbeat says so."""
    cancelled, other = bench.lease(HOLD), bench.lease(HOLD)
    await bench.given("W33", cancelled, other)
    bench.cancel(cancelled)
    await bench.ended(cancelled, "W33")
    if Fence.of(other) in bench.server.books.ended:
        raise Violation("W33", "a task that was not cancelled ended")
    bench.cancel(other)
    await bench.ended(other, "W33")


@book.add("poll-lost", "a task whose lease is lost ends without a report", "W9", "W44")
async def lost(bench: PollBench) -> None:
    """Another worker may have it by now. Its slot is free."""
    leases = [bench.lease(HOLD) for _ in range(bench.server.books.slots)]
    await bench.given("W10", *leases)
    wanted = set(map(Fence.of, leases))
    for lease in leases:
        bench.lose(lease)
    await bench.until("W42", "a heartbeat of each task", lambda: wanted <= bench.server.books.told)
    await bench.free("W9")


@book.add("poll-unavailable", "the pauses between tries grow", "W27")
async def unavailable(bench: PollBench) -> None:
    """The service refuses for a while, as one that starts."""
    server = bench.server
    server.refuse["Poll"] = REFUSALS
    knocks = [await bench.wait("W27", "a poll", server.knocks.get(), START_S) for _ in range(REFUSALS + 1)]
    pauses = [late - early for early, late in itertools.pairwise(knocks)]
    if pauses[-1] <= pauses[0]:
        shown = ", ".join(f"{pause:.2f}" for pause in pauses)
        raise Violation("W27", f"the pauses between tries were {shown} s")
    await bench.fence("W27")


@book.add("poll-report-again", "a report that was not answered goes again", "W43")
async def report_again(bench: PollBench) -> None:
    """The service refuses a completion and a failure for a while."""
    bench.server.refuse.update({"Complete": 2, "Fail": 2})
    done, failed = bench.lease(ECHO, "kept"), bench.lease(FAIL, {"code": "GONE", "message": "gone"})
    await bench.given("W43", done, failed)
    if await bench.completed(done, "W43") != "kept":
        raise Violation("W43", "the completion that was sent again says something else")
    await bench.ended(failed, "W43")
    await bench.fence("W43")


@book.add("poll-refused", "a report that is refused is not sent again", "W24")
async def refused(bench: PollBench) -> None:
    """The answer is LEASE_LOST: meanwhile another attempt runs."""
    lease = bench.lease(ECHO, "too late")
    bench.server.books.refused.add(Fence.of(lease))
    await bench.given("W24", lease)
    await bench.ended(lease, "W24")
    await bench.free("W24")


@book.add("poll-unknown-fields", "what the worker does not know is ignored", "W38")
async def unknown_fields(bench: PollBench) -> None:
    """In every answer."""
    bench.server.extra = UNKNOWN
    await bench.polled("W38")
    await bench.server.answer_empty()
    await bench.fence("W38")
    await bench.fence("W38")


@book.add("poll-stop", "a worker that is stopped finishes what runs", "W45")
async def stop(bench: PollBench) -> None:
    """SIGTERM: it asks for no more, reports, and exits with 0. What a poll still brought, it does."""
    lease = bench.lease(SLEEP, {"ms": SHORT_MS})
    await bench.given("W45", lease)
    bench.target.terminate()
    await bench.completed(lease, "W45")
    code = await bench.wait("W45", "the worker's exit", bench.target.ended())
    if code != 0:
        raise Violation("W45", f"the worker exited with {code}")
    if left := bench.server.books.open:
        raise Violation("W45", f"the worker exited while it held task {next(iter(left)).task_id}")
