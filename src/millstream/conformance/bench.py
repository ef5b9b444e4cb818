"""What a scenario works with: a worker's process, the server that it connects to, leases, and waits with deadlines."""

from collections.abc import Sequence
from typing import Any

from millstream.conformance.books import Fence
from millstream.conformance.kinds import API_KEY, ECHO
from millstream.conformance.link import LEASE_S, Link
from millstream.conformance.rules import Violation
from millstream.conformance.stand import START_S, Stand, output_of
from millstream.conformance.stream import StreamServer
from millstream.v1 import worker_pb2


class Bench(Stand):
    """One scenario's own worker and server, for a worker of the stream."""

    server: StreamServer

    def __init__(self, argv: Sequence[str], patience_s: float) -> None:
        super().__init__(argv, patience_s, StreamServer(patience_s))
        self._links: list[Link] = []

    def check(self) -> None:
        """Raises Violation where, on any stream, a rule was broken that holds always."""
        for link in self._links:
            link.check()

    # -- connections ------------------------------------------------------------------------------------------

    async def link(self, rule: str = "W26") -> Link:
        """The next connection, its hello not answered yet. Raises Violation where there is none, of this rule."""
        coming = self.server.links.get()
        # The first one has to be waited for as long as a process takes to start.
        wait_s = self.patience_s if self._links else max(self.patience_s, START_S)
        found: Link | Violation = await self.wait(rule, "a connection of the worker", coming, wait_s)
        if isinstance(found, Violation):
            raise found
        self._links.append(found)
        found.check()
        if found.metadata.get("authorization") != f"Bearer {API_KEY}":
            raise Violation("W4", "the stream's metadata has no `authorization: Bearer` with the key that was given")
        before = self._links[0].hello
        if found.hello.worker_id != before.worker_id:
            raise Violation("W5", "the worker's id is another one after a reconnect")
        return found

    async def connect(self, lease_s: float = LEASE_S) -> Link:
        """The next connection, welcomed with all that it holds."""
        found = await self.link()
        await found.welcome(lease_s=lease_s)
        return found

    # -- work -------------------------------------------------------------------------------------------------

    async def completed(self, link: Link, lease: worker_pb2.Lease, rule: str = "W17") -> Any:
        """The output of a task, once it is completed. Raises Violation, also where it failed."""

        def ended() -> bool:
            return bool(link.completions(lease) or link.failures(lease))

        await link.until(rule, f"the end of a task of the kind {lease.kind}", ended)
        failures = link.failures(lease)
        if failures:
            raise Violation(rule, f"a task of the kind {lease.kind} failed: {failures[0].code}: {failures[0].message}")
        return output_of(link.completions(lease)[0])

    async def done(self, link: Link, lease: worker_pb2.Lease, rule: str = "W17") -> Any:
        """Gives a lease, and returns the task's output."""
        await link.push(lease)
        return await self.completed(link, lease, rule)

    async def idle(self, link: Link, slots: int | None = None) -> None:
        """Waits until the worker has room for so many tasks, by default for all it has slots for."""
        wanted = link.books.slots if slots is None else slots
        await link.until("W9", f"credit for {wanted} tasks", lambda: link.books.credit >= wanted)

    async def fence(self, link: Link, rule: str) -> None:
        """Has a task echoed: what the worker does in the order of what it is told, it has done by then. Raises
        Violation of the rule where the worker does nothing more."""
        await self.done(link, self.lease(ECHO, "fence"), rule)


def fences(held: Any) -> set[Fence]:
    """The leases that a hello names."""
    return {Fence.of(ref) for ref in held}
