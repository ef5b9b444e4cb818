"""What every scenario works with: a worker's process, the server that it is to find, and leases."""

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any, Final

from google.protobuf import json_format

from millstream.conformance.kinds import INPUT, PUBLISHER
from millstream.conformance.rules import Violation
from millstream.conformance.server import Server
from millstream.conformance.target import Target
from millstream.v1 import worker_pb2

MAX_ATTEMPTS: Final = 3
START_S: Final = 30.0


class Stand:
    """One scenario's own worker and server.

    Args:
        patience_s: How long the worker has for each thing that it must do.
    """

    def __init__(self, argv: Sequence[str], patience_s: float, server: Server) -> None:
        self.patience_s = patience_s
        self.server = server
        self.target = Target(argv)

    async def start(self) -> None:
        """Starts the server, and the worker that is to connect to it. Raises OSError."""
        await self.server.start()
        await self.target.start(self.server.address)

    async def close(self) -> None:
        """Ends both."""
        await self.target.stop()
        await self.server.stop()

    def check(self) -> None:
        """Raises Violation where a rule was broken that holds always."""

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


def new_id() -> str:
    """An id of a task, or a run."""
    return str(uuid.uuid4())


def output_of(completion: worker_pb2.Completion) -> Any:
    """The output of a completion as JSON."""
    return json_format.MessageToDict(completion.output) if completion.HasField("output") else None
