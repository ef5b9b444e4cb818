"""What a scenario of polling works with: a worker's process, the server that it polls, and waits with deadlines."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from millstream.conformance.books import Fence
from millstream.conformance.kinds import ECHO
from millstream.conformance.polling.server import PollServer
from millstream.conformance.rules import Violation
from millstream.conformance.stand import START_S, Stand, output_of
from millstream.v1 import worker_pb2

T = TypeVar("T")


class PollBench(Stand):
    """One scenario's own worker and server."""

    server: PollServer

    def __init__(self, argv: Sequence[str], patience_s: float) -> None:
        super().__init__(argv, patience_s, PollServer())

    def check(self) -> None:
        """Raises Violation where a rule was broken that holds always."""
        if self.server.fault is not None:
            raise self.server.fault

    async def until(self, rule: str, what: str, found: Callable[[], T | None], within_s: float | None = None) -> T:
        """Waits until something came, and returns it. Raises Violation, of the rule or of one that is broken first."""
        server = self.server

        async def come() -> None:
            async with server.changed:
                await server.changed.wait_for(lambda: server.fault is not None or bool(found()))

        await self.wait(rule, what, come(), within_s)
        self.check()
        out = found()
        assert out is not None  # noqa: S101 (it was just there)
        return out

    async def polled(self, rule: str, count: int = 1) -> None:
        """Waits until so many polls came in all. Raises Violation."""
        wait_s = max(self.patience_s, START_S) if count == 1 else self.patience_s
        await self.until(rule, "a poll", lambda: len(self.server.polls) >= count, wait_s)

    async def renewed(self, lease: worker_pb2.Lease, rule: str, within_s: float) -> None:
        """Waits for a sign of life of a task from now on. Raises Violation."""
        beats, fence = self.server.beats, Fence.of(lease)
        before = beats[fence]
        await self.until(rule, "a sign of life", lambda: beats[fence] > before, within_s)

    async def given(self, rule: str, *leases: worker_pb2.Lease) -> None:
        """Gives leases, and waits until the worker has asked for all of them."""
        await self.server.give(*leases)
        wanted = set(map(Fence.of, leases))
        wait_s = self.patience_s if self.server.polls else max(self.patience_s, START_S)
        await self.until(rule, "a poll for each of the tasks", lambda: wanted <= self.server.books.given, wait_s)

    async def ended(self, lease: worker_pb2.Lease, rule: str) -> None:
        """Waits for the report on a lease, whichever it is."""
        what = f"the end of a task of the kind {lease.kind}"
        await self.until(rule, what, lambda: Fence.of(lease) in self.server.books.ended)

    async def completed(self, lease: worker_pb2.Lease, rule: str = "W17") -> Any:
        """The output of a task, once it is completed. Raises Violation, also where it failed."""
        await self.ended(lease, rule)
        failure = self.server.failures.get(Fence.of(lease))
        if failure is not None:
            raise Violation(rule, f"a task of the kind {lease.kind} failed: {failure.code}: {failure.message}")
        return output_of(self.server.completions[Fence.of(lease)])

    async def done(self, lease: worker_pb2.Lease, rule: str = "W17") -> Any:
        """Gives a lease, and returns the task's output."""
        await self.given(rule, lease)
        return await self.completed(lease, rule)

    async def fence(self, rule: str) -> None:
        """Has a task echoed. Raises Violation of the rule where the worker does nothing more."""
        await self.done(self.lease(ECHO, "fence"), rule)

    async def free(self, rule: str) -> None:
        """Has a task done in each slot at once, and so sees that all of them are free."""
        leases = [self.lease(ECHO, number) for number in range(self.server.books.slots)]
        await self.given(rule, *leases)
        for lease in leases:
            await self.completed(lease, rule)

    def cancel(self, lease: worker_pb2.Lease) -> None:
        """Asks for the end of a lease, with the answer to what the worker says of it next."""
        self.server.books.cancelled.add(Fence.of(lease))

    def lose(self, lease: worker_pb2.Lease) -> None:
        """Takes a lease away; the answer to its next heartbeat tells so."""
        self.server.books.lost.add(Fence.of(lease))
