"""A small HTTP/1.1 client on a raw socket (10-30 us a request), requests made ready, and checks of their answers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import orjson
from tests.bench.load import BenchError, ensure

Check = Callable[[int, bytes], None]
_numbers = itertools.count()


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        """Not connected yet."""
        self._buffer = bytearray()
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: asyncio.Transport | None = None
        self.head = b""
        """Status line and headers of the last answer."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to write."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the request under way."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(BenchError(f"the connection was lost: {exc!r}"))

    def data_received(self, data: bytes) -> None:
        """Answer the caller once the response is whole."""
        self._buffer += data
        found = _response(self._buffer)
        if found is not None and self._answer is not None and not self._answer.done():
            self.head = bytes(self._buffer[: self._buffer.find(b"\r\n\r\n") + 2])
            self._buffer.clear()
            self._answer.set_result(found)

    async def request(self, raw: bytes) -> tuple[int, bytes]:
        """Send a whole request; its status and body."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(raw)
        return await self._answer

    def close(self) -> None:
        """Disconnect."""
        if self._transport is not None:
            self._transport.close()


def _response(buffer: bytearray) -> tuple[int, bytes] | None:
    """Status and body of a whole response, None where more is to come."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return None
    status, body_at = int(buffer[9:12]), end + 4
    at = buffer.find(b"content-length: ", 0, end)
    if at >= 0:
        size = int(buffer[at + 16 : buffer.find(b"\r", at)])
        return (status, bytes(buffer[body_at : body_at + size])) if len(buffer) >= body_at + size else None
    if buffer.endswith(b"0\r\n\r\n") and buffer.find(b"chunked", 0, end) >= 0:
        return status, _unchunk(bytes(buffer[body_at:]))
    return None


def _unchunk(raw: bytes) -> bytes:
    parts: list[bytes] = []
    at = 0
    while True:
        line = raw.index(b"\r\n", at)
        size = int(raw[at:line], 16)
        if size == 0:
            return b"".join(parts)
        parts.append(raw[line + 2 : line + 2 + size])
        at = line + 2 + size + 2


async def connect(port: int) -> Connection:
    """A connection to a port of this machine; to be closed."""
    return (await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port))[1]


@contextlib.asynccontextmanager
async def connections(port: int, count: int) -> AsyncIterator[list[Connection]]:
    """So many connections to a port of this machine."""
    made = [await connect(port) for _ in range(count)]
    try:
        yield made
    finally:
        for connection in made:
            connection.close()


def post(path: str, body: Any, headers: str = "") -> bytes:
    """A whole request."""
    raw = orjson.dumps(body)
    head = f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n{headers}"
    return f"{head}content-length: {len(raw)}\r\n\r\n".encode() + raw


def with_key(request: bytes) -> bytes:
    """The request with an idempotency key of its own."""
    line, _, rest = request.partition(b"\r\n")
    return b"%s\r\nx-idempotency-key: %s-%d\r\n%s" % (line, _PREFIX, next(_numbers), rest)


_PREFIX = uuid.uuid4().hex.encode()


def published(status: int, body: bytes) -> None:
    """Check the answer to a publish."""
    ensure(status == 200 and orjson.loads(body)["status"] == "accepted", "publish", (status, body))


def cascaded(status: int, body: bytes) -> None:
    """Check the answer to a sync publish of an order: all four artifacts, and nothing failed."""
    ensure(status == 200, "sync publish", (status, body))
    answer = orjson.loads(body)
    good = answer["completed"] is True and len(answer["artifacts"]) == 4 and not answer.get("failures")
    ensure(good, "sync publish", body)


def batched(count: int) -> Check:
    """Check the answer to a batch of `count`."""

    def check(status: int, body: bytes) -> None:
        ensure(status == 200, "batch", (status, body))
        answer = orjson.loads(body)
        ensure(answer["accepted"] == count and not answer.get("failed"), "batch", body)

    return check
