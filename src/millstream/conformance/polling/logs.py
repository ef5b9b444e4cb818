"""The server's side of `StreamLogs`."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from millstream.conformance.books import Fence, check_fields
from millstream.conformance.kinds import API_KEY
from millstream.conformance.log_books import LogBooks
from millstream.conformance.rules import Violation
from millstream.v1 import worker_pb2
from millstream.v1.worker_service_pb2 import StreamLogsRequest, StreamLogsResponse

_TOKEN: Final = ("authorization", f"Bearer {API_KEY}")


class LogStream:
    """One stream of lines.

    Attributes:
        logged: Numbers of the lines of each attempt, in the order in which they came on it.
    """

    def __init__(self, context: Any) -> None:
        self.logged: dict[Fence, list[int]] = {}
        self._context = context
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def answer(self, *acks: Any) -> None:
        """Tells how far lines are stored."""
        await self._context.write(StreamLogsResponse(acks=acks).SerializeToString())

    def end(self) -> None:
        """Breaks it."""
        if not self._broken.done():
            self._broken.set_result(None)

    async def until_broken(self, reading: "asyncio.Task[None]", *, patient: bool) -> bool:
        """Waits for the worker's end of it, or until it is broken; whether it is. `patient`: for the latter alone."""
        wait: set[asyncio.Future[Any]] = {self._broken} if patient else {self._broken, reading}
        await asyncio.wait(wait, return_when=asyncio.FIRST_COMPLETED)
        return self._broken.done()


class LogStreams:
    """The streams of lines that a worker opened, and what came by them.

    Attributes:
        acks: Acknowledge what comes.
    """

    def __init__(self, fail: Callable[[Violation], None], notify: Callable[[], Any]) -> None:
        self.acks = True
        self.books = LogBooks()
        self.streams: list[LogStream] = []
        self._fail = fail
        self._notify = notify

    async def serve(self, requests: AsyncIterator[bytes], context: Any) -> None:
        """Takes lines until the worker ends the stream, or the scenario does."""
        stream = LogStream(context)
        if _TOKEN not in [tuple(each) for each in context.invocation_metadata() or ()]:
            self._fail(Violation("W4", "StreamLogs has no `authorization: Bearer` with the key that was given"))
        self.streams.append(stream)
        reading = asyncio.create_task(self._read(stream, requests), name="conformance-lines")
        broken = await stream.until_broken(reading, patient=not self.acks)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        if broken:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server was lost")

    async def _read(self, stream: LogStream, requests: AsyncIterator[bytes]) -> None:
        async for raw in requests:
            try:
                fences = self._take(stream, raw)
            except Violation as violation:
                self._fail(violation)
                fences = []
            await self._notify()
            if self.acks and fences:
                await stream.answer(*(self.books.ack(fence) for fence in dict.fromkeys(fences)))

    def _take(self, stream: LogStream, raw: bytes) -> list[Fence]:
        """A message of the worker. Raises Violation."""
        try:
            message = StreamLogsRequest.FromString(raw)
        except DecodeError:
            raise Violation("W3", "a StreamLogsRequest cannot be read") from None
        check_fields(message)
        fences = [self.books.take(batch) for batch in message.batches]
        for fence, batch in zip(fences, message.batches, strict=True):
            stream.logged.setdefault(fence, []).extend(range(batch.offset, batch.offset + len(batch.lines)))
        return fences

    def came(self, lease: worker_pb2.Lease, stream: int) -> list[int]:
        """Numbers of the lines of an attempt that came on the stream that was opened as the so many-th, from 0."""
        return self.streams[stream].logged.get(Fence.of(lease), []) if stream < len(self.streams) else []
