"""One connection of the worker, seen from the server's side."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Final, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError

from millstream.conformance.books import Books, Fence
from millstream.conformance.log_books import WINDOW_BYTES, LogBooks
from millstream.conformance.rules import Violation
from millstream.v1 import worker_pb2
from millstream.v1.worker_service_pb2 import WorkRequest, WorkResponse

T = TypeVar("T")
Context: TypeAlias = grpc.aio.ServicerContext[bytes, bytes]

LEASE_S: Final = 30.0


class Link:
    """A stream. What comes is checked against the rules that hold always, and acknowledged, unless told otherwise.

    Attributes:
        acks: Acknowledge what comes.
        log_acks: Acknowledge the lines that come, too.
        logged: Numbers of the lines of each attempt, in the order in which they came on this stream.
        half_closed: The worker has ended its side.
    """

    def __init__(
        self,
        first: WorkRequest,
        requests: AsyncIterator[bytes],
        context: Context,
        patience_s: float,
        logs: LogBooks,
    ) -> None:
        self.hello = first.hello
        self.messages = [first]
        self.acks = True
        self.log_acks = True
        self.logged: dict[Fence, list[int]] = {}
        self.logs = logs
        self.half_closed = False
        self.metadata = dict(context.invocation_metadata() or ())
        self.books = Books(0)
        self.fault: Violation | None = None
        self._requests = requests
        self._context = context
        self._patience_s = patience_s
        self._changed = asyncio.Condition()
        self._writing = asyncio.Lock()
        self._end: asyncio.Future[tuple[grpc.StatusCode, str] | None] = asyncio.get_running_loop().create_future()
        self._check(lambda: self.books.hello(first))

    # -- to the worker ----------------------------------------------------------------------------------------

    async def welcome(
        self, held: Iterable[Fence] | None = None, lease_s: float = LEASE_S, log_window_bytes: int = WINDOW_BYTES
    ) -> None:
        """Answers the hello; `held` are those of its leases that are still the worker's, by default all."""
        still = [Fence.of(ref) for ref in self.hello.held] if held is None else list(held)
        out = worker_pb2.WorkerWelcome(session_id="conformance", server_version="conformance")
        out.log_window_bytes = log_window_bytes
        out.lease.FromMilliseconds(int(lease_s * 1000))
        for fence in still:
            out.held.add(task_id=fence.task_id, attempt=fence.attempt)
        self.books.welcome(still)
        await self.send(welcome=out)
        await self.send(ack=1)

    async def send(self, **response: Any) -> None:
        """Sends a message."""
        await self.send_raw(WorkResponse(**response).SerializeToString())

    async def send_raw(self, raw: bytes) -> None:
        """Sends a message as it is. To a worker that broke the stream off, nothing: who waits for what it says to it
        will miss that."""
        async with self._writing:
            with contextlib.suppress(grpc.aio.BaseError):
                await self._context.write(raw)

    async def push(self, *leases: worker_pb2.Lease) -> None:
        """Gives leases, all in one message."""
        self.count(*leases)
        await self.send(leases=leases)

    def count(self, *leases: worker_pb2.Lease) -> None:
        """Notes leases that are given. A server never gives more than it has credit for."""
        for lease in leases:
            self.books.push(Fence.of(lease))
            self.logs.given.add(Fence.of(lease))

    async def cancel(self, lease: worker_pb2.Lease, reason: str = "CANCELLED") -> None:
        """Has a lease given up."""
        if reason == "LEASE_LOST":
            self.books.lose(Fence.of(lease))
        told = worker_pb2.Cancellation(task_id=lease.task_id, attempt=lease.attempt, reason=reason)
        await self.send(cancellations=[told])

    async def ack(self) -> None:
        """Acknowledges all that came."""
        await self.send(ack=self.books.number)

    async def ack_lines(self, lease: worker_pb2.Lease, offset: int, *, again: bool = False, lost: bool = False) -> None:
        """Tells how far the lines of an attempt are stored; `again`: those behind are asked for again; `lost`: its log
        is over."""
        await self.send(log_acks=[self.logs.ack(Fence.of(lease), offset, again=again, lost=lost)])

    def end(self, code: grpc.StatusCode | None = None, details: str = "") -> None:
        """Ends the stream: cleanly, or with a status."""
        if not self._end.done():
            self._end.set_result(None if code is None else (code, details))

    # -- from the worker --------------------------------------------------------------------------------------

    async def until(self, rule: str, what: str, found: Callable[[], T | None], within_s: float | None = None) -> T:
        """Waits until something was received, and returns it.

        Raises:
            Violation: of the rule, where that does not come in time; of another one, where that is broken first.
        """

        def done() -> bool:
            return self.fault is not None or bool(found())

        wait_s = within_s or self._patience_s
        try:
            async with asyncio.timeout(wait_s), self._changed:
                await self._changed.wait_for(done)
        except TimeoutError:
            raise Violation(rule, f"{what} did not come within {wait_s:g} s") from None
        self.check()
        out = found()
        assert out is not None  # noqa: S101 (it was just there)
        return out

    def check(self) -> None:
        """Raises Violation where a rule that holds always was broken."""
        if self.fault is not None:
            raise self.fault

    def completions(self, *leases: worker_pb2.Lease) -> list[worker_pb2.Completion]:
        """Completions, of these leases or of all, in the order they came."""
        wanted = set(map(Fence.of, leases))
        return [
            item for message in self.messages for item in message.completions if not wanted or Fence.of(item) in wanted
        ]

    def failures(self, *leases: worker_pb2.Lease) -> list[worker_pb2.AttemptFailure]:
        """Failures, of these leases or of all, in the order they came."""
        wanted = set(map(Fence.of, leases))
        return [
            item for message in self.messages for item in message.failures if not wanted or Fence.of(item) in wanted
        ]

    async def serve(self) -> None:
        """Reads until the worker ends its side, or the scenario ends the stream."""
        reader = asyncio.create_task(self._read(), name="conformance-reader")
        both: set[asyncio.Future[Any]] = {reader, self._end}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        outcome = self._end.result() if self._end.done() else None
        if outcome is not None:
            await self._context.abort(*outcome)

    async def _read(self) -> None:
        async for raw in self._requests:
            async with self._changed:
                self._check(lambda raw=raw: self._take(raw))  # type: ignore[misc]
                self._changed.notify_all()
            if self.acks:
                await self.ack()
            logged = {Fence(batch.task_id, batch.attempt) for batch in self.messages[-1].logs}
            if self.log_acks and logged:
                await self.send(log_acks=[self.logs.ack(fence) for fence in logged])
        async with self._changed:
            self.half_closed = True
            self._changed.notify_all()

    def _take(self, raw: bytes) -> None:
        message = parse(raw)
        self.messages.append(message)
        self.books.take(message)
        for batch in message.logs:
            came = self.logged.setdefault(self.logs.take(batch), [])
            came.extend(range(batch.offset, batch.offset + len(batch.lines)))
        self.logs.report((*message.completions, *message.failures))

    def _check(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Violation as violation:
            self.fault = self.fault or violation


def parse(raw: bytes) -> WorkRequest:
    """A message of the worker. Raises Violation."""
    try:
        return WorkRequest.FromString(raw)
    except DecodeError:
        raise Violation("W3", "a message cannot be read") from None
