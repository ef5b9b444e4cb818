"""What a scenario works with: a worker's process, the server that it connects to, leases, and waits with deadlines."""

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any, Final

from google.protobuf import json_format

from millstream.conformance.books import Fence
from millstream.conformance.kinds import API_KEY, ECHO, INPUT, PUBLISHER
from millstream.conformance.link import LEASE_S, Link
from millstream.conformance.rules import Violation
from millstream.conformance.server import Server
from millstream.conformance.target import Target
from millstream.v1 import worker_pb2

MAX_ATTEMPTS: Final = 3
START_S: Final = 30.0


class Bench:
    """One scenario's own worker and server.

    Args:
        patience_s: How long the worker has for each thing that it must do.
    """

    def __init__(self, argv: Sequence[str], patience_s: float) -> None:
        self.patience_s = patience_s
        self.server = Server(patience_s)
        self.target = Target(argv)
        self._links: list[Link] = []

    async def start(self) -> None:
        """Starts the server, and the worker that is to connect to it. Raises OSError."""
        await self.server.start()
        await self.target.start(self.server.address)

    async def close(self) -> None:
        """Ends both."""
        await self.target.stop()
        await self.server.stop()

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

    async def wait(self, rule: str, what: str, event: Any, within_s: float | None = None) -> Any:
        """What an event gives. Raises Violation where it does not come in time, or the worker's process ends."""
        wait_s = within_s or self.patience_s
        waiting = asyncio.ensure_future(event)
        ended = asyncio.ensure_future(self.target.ended())
        try:
            await asyncio.wait({waiting, ended}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return waiting.result()
            if ended.done():
                raise Violation(rule, f"the worker exited with {ended.result()}; expected: {what}")
            raise Violation(rule, f"{what} did not come within {wait_s:g} s")
        finally:
            waiting.cancel()
            ended.cancel()
            await asyncio.gather(waiting, ended, return_exceptions=True)

    # -- work -------------------------------------------------------------------------------------------------

    def lease(
        self, kind: str, value: Any = None, *, attempt: int = 1, task_id: str = "", **more: Any
    ) -> worker_pb2.Lease:
        """A lease of a standalone task."""
        made = worker_pb2.Lease(
            task_id=task_id or new_id(),
            attempt=attempt,
            run_id=new_id(),
            kind=kind,
            queue="default",
            tries=attempt,
            max_attempts=MAX_ATTEMPTS,
            **more,
        )
        made.idempotency_token = made.idempotency_token or made.task_id
        json_format.ParseDict(value, made.input)
        made.created_at.GetCurrentTime()
        return made

    def agent_lease(self, items: Sequence[Any]) -> worker_pb2.Lease:
        """A lease of the agent's, with an artifact."""
        made = self.lease(f"agent:{PUBLISHER}", agent=PUBLISHER)
        made.ClearField("input")
        artifact = made.artifacts.add(
            id=new_id(), type=INPUT, produced_by="external", version=1, correlation_id=made.run_id
        )
        artifact.payload.update({"items": list(items)})
        return made

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


def new_id() -> str:
    """An id of a task, or a run."""
    return str(uuid.uuid4())


def output_of(completion: worker_pb2.Completion) -> Any:
    """The output of a completion as JSON."""
    return json_format.MessageToDict(completion.output) if completion.HasField("output") else None


def fences(held: Any) -> set[Fence]:
    """The leases that a hello names."""
    return {Fence.of(ref) for ref in held}
