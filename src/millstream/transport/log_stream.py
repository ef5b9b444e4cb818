"""A stream of lines, for workers that have no connection for all else: one reader, one writer.

A message is read when there is room for it, so gRPC's own flow control slows a sender down.
"""

import asyncio
import contextlib
from typing import Any, Final

import grpc
import structlog

from millstream.application.log_intake import SOURCE_BYTES
from millstream.domain.errors import BadRequest, MillstreamError, Unavailable
from millstream.domain.task_logs import LogAck, latest
from millstream.transport import validation
from millstream.transport.context import Context
from millstream.transport.mapping import task_logs as mapping
from millstream.transport.pipeline import Stream
from millstream.transport.reading import Reader
from millstream.transport.use_cases import LogIntake
from millstream.wire.v1.worker_service_pb2 import StreamLogsRequest, StreamLogsResponse

_log: Final = structlog.get_logger("millstream.work")
LAST_WORDS_S: Final = 5.0
"""How long a sender that has ended its side may take to read the last acknowledgements."""


class LogStream:
    """Serves one stream of lines."""

    def __init__(self, stream: Stream, context: Context, reader: Reader, intake: LogIntake) -> None:
        self._stream = stream
        self._context = context
        self._reader = reader
        self._told: dict[tuple[str, int], LogAck] = {}
        self._filled = asyncio.Event()
        self._ended = False
        self._fault: Exception | None = None
        self._intake = intake
        self._source = intake.open(context.principal, mapping.reader_of(intake.now_us), self._tell)

    async def serve(self) -> None:
        """Serve until the sender ends, or the server does."""
        # Never cancelled: it ends with the RPC, and to cancel its read would break the stream before its status.
        reading = asyncio.create_task(self._read(), name="log-reader")
        writing = asyncio.create_task(self._write(), name="log-writer")
        draining = asyncio.create_task(self._intake.drained.wait())
        try:
            await asyncio.wait({reading, draining}, return_when=asyncio.FIRST_COMPLETED)
            await self._settle()
            await asyncio.wait({writing}, timeout=LAST_WORDS_S)
        finally:
            self._ended = True
            self._source.close()
            for task in (writing, draining):
                task.cancel()
        if self._fault is not None:
            raise self._fault
        if not reading.done():
            raise Unavailable(
                "the server is going; connect again, and go on behind the last acknowledged line", (), 0.5
            )

    async def _read(self) -> None:
        try:
            while (raw := await self._stream.read()) is not grpc.aio.EOF and not self._ended:
                self._source.put(self._batches(raw))
                await self._source.room()
        except MillstreamError as error:
            self._fault = error
        except Exception as gone:
            _log.debug("a sender of lines is gone", reason=repr(gone))

    async def _settle(self) -> None:
        """Have what came stored and acknowledged."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                await self._source.settled()
        self._ended = True
        self._filled.set()

    def _batches(self, raw: bytes) -> list[tuple[str, bytes]]:
        if len(raw) > SOURCE_BYTES:
            raise BadRequest(f"a message of lines has {len(raw):,} bytes; the limit is {SOURCE_BYTES:,} bytes")
        message: Any = self._reader.parse(raw)
        request: StreamLogsRequest = message
        validation.check(request)
        return mapping.by_task(request.batches)

    def _tell(self, acks: list[LogAck]) -> None:
        for ack in acks:
            key = (ack.task_id, ack.attempt)
            self._told[key] = latest(self._told.get(key), ack)
        self._filled.set()

    async def _write(self) -> None:
        with contextlib.suppress(Exception):
            while True:
                await self._filled.wait()
                self._filled.clear()
                told, self._told = self._told, {}
                if told:
                    out = StreamLogsResponse()
                    for ack in told.values():
                        mapping.put_ack(out.acks.add(), ack, self._context.correlation_id)
                    await self._stream.write(out.SerializeToString())
                elif self._ended:
                    return
