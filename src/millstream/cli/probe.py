"""Small HTTP questions to our own children, without a client library and without gRPC."""

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LIMIT_BYTES = 16 << 20


@dataclass(frozen=True)
class Answer:
    """Status and body; status 0 where nobody answered."""

    status: int
    body: bytes = b""

    def json(self) -> Any:
        """The body as JSON, None where it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


async def ask(
    path: str, *, port: int = 0, host: str = "127.0.0.1", unix: Path | None = None, method: str = "GET",
    timeout_s: float = 5.0,
) -> Answer:  # fmt: skip
    """Send one HTTP/1.1 request to a TCP port or a Unix socket. Never raises: no answer is an answer."""
    try:
        async with asyncio.timeout(timeout_s):
            if unix is None:
                reader, writer = await asyncio.open_connection(host, port)
            else:
                reader, writer = await asyncio.open_unix_connection(str(unix))
            try:
                request = (
                    f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
                )
                writer.write(request.encode())
                return _parse(await _read_all(reader))
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError, IndexError):
        return Answer(0)


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    received = bytearray()
    while len(received) < _LIMIT_BYTES and (part := await reader.read(1 << 16)):
        received += part
    return bytes(received)


def _parse(response: bytes) -> Answer:
    head, _, body = response.partition(b"\r\n\r\n")
    status = int(head.split(maxsplit=2)[1])
    if b"transfer-encoding: chunked" in head.lower():
        body = _unchunked(body)
    return Answer(status, body)


def _unchunked(body: bytes) -> bytes:
    whole = bytearray()
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size.split(b";")[0], 16)
        if length == 0:
            break
        whole += rest[:length]
        body = rest[length + 2 :]
    return bytes(whole)
