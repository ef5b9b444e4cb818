"""What a worker without a stream makes of what its tasks log: it sends the lines by StreamLogs."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import json_format

from millstream.v1 import task_log_pb2
from millstream.v1 import worker_service_pb2 as wire

BATCH_LINES = 100
Fence = tuple[str, int]


@dataclass
class AttemptLog:
    """What an attempt logged. The first of the lines is the one behind those that are stored."""

    lines: list[task_log_pb2.LogLine] = field(default_factory=list)
    stored: int = 0
    sent: int = 0
    ended: bool = False

    @property
    def last(self) -> int:
        """Number of its last line."""
        return self.stored + len(self.lines)


class PollingLogs:
    """Keeps lines until they are acknowledged; they go over one stream after the other."""

    def __init__(self, open_stream: Callable[[], Any], pause: Callable[[int], Awaitable[None]]) -> None:
        self._open = open_stream
        self._pause = pause
        self.logs: dict[Fence, AttemptLog] = {}
        self._changed = asyncio.Event()

    def write(self, fence: Fence, line: dict[str, Any]) -> None:
        """Takes a line of an attempt."""
        log = self.logs.setdefault(fence, AttemptLog())
        if not log.ended:
            log.lines.append(json_format.ParseDict(line, task_log_pb2.LogLine()))
        self._changed.set()

    def last(self, fence: Fence) -> int:
        """Number of an attempt's last line."""
        return self.logs[fence].last if fence in self.logs else 0

    async def run(self) -> None:
        """Sends, until cancelled."""
        for tries in itertools.count():
            await self._changed.wait()
            try:
                await self._stream()
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                # The latter: it broke while a line was to be written.
                await self._pause(min(tries, 3))

    async def _stream(self) -> None:
        call = self._open()
        for log in self.logs.values():
            log.sent = 0
        reading = asyncio.ensure_future(self._read(call))
        try:
            while not reading.done():
                self._changed.clear()
                for fence, log in [*self.logs.items()]:
                    while batch := self._batch(fence, log):
                        await call.write(wire.StreamLogsRequest(batches=[batch]))
                changed = asyncio.ensure_future(self._changed.wait())
                await asyncio.wait({reading, changed}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
            await reading
        finally:
            self._changed.set()
            call.cancel()
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    @staticmethod
    def _batch(fence: Fence, log: AttemptLog) -> task_log_pb2.LogBatch | None:
        lines = log.lines[log.sent : log.sent + BATCH_LINES]
        if not lines:
            return None
        offset = log.stored + log.sent + 1
        log.sent += len(lines)
        return task_log_pb2.LogBatch(task_id=fence[0], attempt=fence[1], offset=offset, lines=lines)

    async def _read(self, call: Any) -> None:
        async for answer in call:
            for ack in answer.acks:
                self.acknowledge(self.logs[ack.task_id, ack.attempt], ack)
            self._changed.set()

    def acknowledge(self, log: AttemptLog, ack: task_log_pb2.LogAck) -> None:
        """Drops what is stored, and what nobody wants."""
        stored = max(ack.offset - log.stored, 0)
        del log.lines[:stored]
        log.stored += stored
        log.sent = 0 if ack.again else max(log.sent - stored, 0)
        if ack.HasField("error"):
            log.ended = True
            log.lines.clear()
            log.sent = 0
