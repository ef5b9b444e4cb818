"""One connection of a worker: a stream in both directions, with one reader and one writer."""

import asyncio
import logging
from typing import Final, TypeAlias, cast

import grpc

from millstream.sdk.outbox import Fence, Outbox
from millstream.sdk.slots import Slots
from millstream.v1 import worker_pb2
from millstream.v1.worker_service_pb2 import WorkRequest, WorkResponse

METHOD: Final = "/millstream.v1.WorkerService/Work"
HELLO_TIMEOUT_S: Final = 15.0
"""A server that does not answer the hello for so long is given up."""
DEFAULT_LEASE_S: Final = 30.0
MAX_HELD: Final = 10_000
"""The contract's limit on the leases that a hello names."""
_LOG: Final = logging.getLogger("millstream.worker")

Call: TypeAlias = grpc.aio.StreamStreamCall[bytes, WorkResponse]
Method: TypeAlias = grpc.aio.StreamStreamMultiCallable[bytes, WorkResponse]


class Session:
    """A connection, from the hello to the end of its stream."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        metadata: tuple[tuple[str, str], ...],
        hello: worker_pb2.WorkerHello,
        outbox: Outbox,
        slots: Slots,
    ) -> None:
        # No serializer: the outbox makes ready messages.
        method: Method = channel.stream_stream(METHOD, response_deserializer=WorkResponse.FromString)
        self._call: Call = method(metadata=metadata)
        self._hello = hello
        self._outbox = outbox
        self._slots = slots
        self._loop = asyncio.get_running_loop()
        self._closing = False
        self._dropped = False
        self.acknowledged = False
        """The server has stored something that was sent after the hello."""
        self._leaving: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Says hello, and takes up again what is still held.

        Raises:
            grpc.aio.AioRpcError: the stream ended instead.
        """
        outbox, slots = self._outbox, self._slots
        # Results first: should there be too many, work that still runs is what can be done again.
        held = [*outbox.unsettled(), *slots.held()][:MAX_HELD]
        del self._hello.held[:]
        self._hello.held.extend(worker_pb2.LeaseRef(task_id=f.task_id, attempt=f.attempt) for f in held)
        patience = self._loop.call_later(HELLO_TIMEOUT_S, self._call.cancel)
        try:
            await self._call.write(WorkRequest(number=1, hello=self._hello).SerializeToString(deterministic=True))
            response = await self._read()
        finally:
            patience.cancel()
        if response is None or not response.HasField("welcome"):
            raise _unavailable("the server ended the stream without a welcome")
        welcome = response.welcome
        still_ours = frozenset(Fence(ref.task_id, ref.attempt) for ref in welcome.held)
        ended = sum(fence in still_ours for fence in outbox.unsettled())
        outbox.restart()
        outbox.logs.restart(welcome.log_window_bytes)
        outbox.forget(slots.keep(still_ours))
        # The server starts with the slots less what is held, and these of it have ended here by now.
        outbox.give_credit(ended)
        self._lease_s = welcome.lease.seconds + welcome.lease.nanos / 1e9 or DEFAULT_LEASE_S
        self._handle(response)

    async def serve(self) -> None:
        """Works until the stream ends.

        Raises:
            grpc.aio.AioRpcError: it ended with an error.
        """
        writer = self._loop.create_task(self._write())
        self._pulse = self._loop.call_later(self._lease_s / 3, self._tick)
        try:
            while (response := await self._read()) is not None:
                self._handle(response)
        finally:
            self._pulse.cancel()
            for task in filter(None, (writer, self._leaving)):
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def close(self) -> None:
        """Ends the stream from this side once everything queued is written."""
        self._closing = True
        self._outbox.keep_alive()

    def drop(self) -> None:
        """Ends the stream at once."""
        self._dropped = True
        self._call.cancel()

    async def _read(self) -> WorkResponse | None:
        """The next message; None at the end of the stream."""
        try:
            response = await self._call.read()
        except asyncio.CancelledError:
            # This is how a call that was cancelled here ends; a cancellation of this very task goes on.
            if self._call.cancelled() and not _cancelling():
                if self._dropped:
                    return None
                raise _unavailable("the server did not answer the hello") from None
            raise
        return None if response is grpc.aio.EOF else cast("WorkResponse", response)

    async def _write(self) -> None:
        outbox, call = self._outbox, self._call
        try:
            while not self._closing:
                await outbox.ready()
                while (message := outbox.take()) is not None:
                    await call.write(message)
            await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # the reader hears why the stream ended

    def _tick(self) -> None:
        self._pulse = self._loop.call_later(self._lease_s / 3, self._tick)
        self._outbox.keep_alive()

    def _handle(self, response: WorkResponse) -> None:
        for refused in response.refused:
            if refused.cancel_requested:
                self._slots.cancel(Fence(refused.task_id, refused.attempt), "CANCELLED")
            if not refused.HasField("error"):
                continue
            _LOG.warning(
                "the report on task %s, attempt %d was refused: %s: %s",
                refused.task_id, refused.attempt, refused.error.code, refused.error.message,
            )  # fmt: skip
        if response.ack:
            # The hello was the first message: its acknowledgement says nothing of what came after.
            self.acknowledged = self.acknowledged or response.ack > 1
            self._outbox.acknowledge(response.ack)
        for log_ack in response.log_acks:
            self._outbox.logs.acknowledge(log_ack)
        if response.leases:
            self._slots.accept(response.leases)
        for cancellation in response.cancellations:
            self._slots.cancel(Fence(cancellation.task_id, cancellation.attempt), cancellation.reason)
        if response.drain and self._leaving is None:
            self._leaving = self._loop.create_task(self._leave())

    async def _leave(self) -> None:
        """The server is going: finishes and reports, then ends the stream; the next one may be another's."""
        _LOG.info("the server is draining; connecting elsewhere when the work in hand is reported")
        await self._slots.idle()
        await self._outbox.settled()
        await self._outbox.logs.settled()
        self.close()


def _cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _unavailable(details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details)
