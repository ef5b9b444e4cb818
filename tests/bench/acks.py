"""When a completion is stored: the worker's process says so, over a local socket.

A worker knows that a completion is stored when the server acknowledges it, which the server does after the commit and
never before. So the worker sends, at that moment, how many were acknowledged and the time on the machine's monotonic
clock, which all processes share: the client compares it with its own start, so neither polling nor the way back to
the client is in the figure. The alternative, finished_us - created_us of the database, would miss both the second
commit and the call that creates the task.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path

from tests.bench.load import BenchError

from millstream.sdk.outbox import Outbox

_NOTICE = struct.Struct("<Id")


class NotifyingOutbox(Outbox):
    """An outbox that tells the benchmark how many reports were just acknowledged."""

    notices: socket.socket
    """Set before the worker starts."""

    def acknowledge(self, number: int) -> None:
        """Everything up to this message is stored: say so."""
        now = time.monotonic()
        before = self._unacked
        super().acknowledge(number)
        if before > self._unacked:
            self.notices.sendall(_NOTICE.pack(before - self._unacked, now))


def connect(path: str) -> socket.socket:
    """The worker's end."""
    notices = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    notices.connect(path)
    return notices


class Acks:
    """The benchmark's end: how many completions one worker process knows to be stored, and since when."""

    def __init__(self) -> None:
        """None yet."""
        self.total = 0
        self.last_at = 0.0
        self._wanted = 0
        self._reached = asyncio.Event()

    @contextlib.asynccontextmanager
    async def listening(self, path: Path) -> AsyncIterator[Acks]:
        """Listen on a Unix socket for the length of the block."""
        server = await asyncio.start_unix_server(self._serve, path)
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                count, at = _NOTICE.unpack(await reader.readexactly(_NOTICE.size))
                self.total += count
                self.last_at = max(self.last_at, at)
                if self.total >= self._wanted:
                    self._reached.set()
        writer.close()

    async def until(self, total: int, timeout_s: float = 60.0) -> float:
        """Wait for that many in all; the monotonic time of the last. One waiter at a time."""
        self._wanted = total
        self._reached.clear()
        if self.total < total:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._reached.wait()
            except TimeoutError:
                raise BenchError(f"{total - self.total} tasks were not completed within {timeout_s:g} s") from None
        return self.last_at
