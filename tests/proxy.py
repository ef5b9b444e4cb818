"""A real Envoy for tests: `async with running_proxy(servers=[("127.0.0.1", port)]) as proxy: proxy.url`."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from millstream.adapters.envoy import DEVELOPMENT_ORIGINS, command, render

_FILES = {"log": "envoy.log", "access_log": "access.log", "admin_socket": "admin.sock"}


@dataclass(frozen=True)
class Proxy:
    """A running Envoy."""

    host: str
    port: int
    pid: int
    log: Path
    """What Envoy wrote to its standard error."""
    access_log: Path
    """One JSON line a request."""
    admin_socket: Path

    @property
    def url(self) -> str:
        """Base of REST addresses, without a slash at the end."""
        return f"http://{self.host}:{self.port}"

    @property
    def target(self) -> str:
        """Target of a gRPC channel."""
        return f"{self.host}:{self.port}"


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.asynccontextmanager
async def running_proxy(
    servers: Sequence[tuple[str, int]],
    token: str | None = None,
    cors_origins: Sequence[str] = DEVELOPMENT_ORIGINS,
    concurrency: int = 1,
    max_body_bytes: int | None = None,
    wait_for_server: bool = True,
) -> AsyncIterator[Proxy]:
    """Start Envoy before `servers` on a free port, wait until it listens and found a healthy server, and kill it after.

    With `wait_for_server` false it may find none. Raises RuntimeError, with Envoy's own words, where it does not
    start, or finds none within 10 s.
    """
    with tempfile.TemporaryDirectory(prefix="millstream-proxy-") as scratch:
        folder, port = Path(scratch), free_port()
        config = folder / "envoy.json"
        limits = {} if max_body_bytes is None else {"max_body_bytes": max_body_bytes}
        text = render(
            listen_host="127.0.0.1",
            listen_port=port,
            servers=servers,
            admin_socket=str(folder / _FILES["admin_socket"]),
            proxy_token=token,
            cors_origins=cors_origins,
            access_log=str(folder / _FILES["access_log"]),
            **limits,
        )
        config.write_text(text)
        config.chmod(0o600)
        with (folder / _FILES["log"]).open("wb") as log:
            process = await asyncio.create_subprocess_exec(*command(config, concurrency=concurrency), stderr=log)
        files = {name: folder / file for name, file in _FILES.items()}
        proxy = Proxy("127.0.0.1", port, process.pid, **files)
        try:
            await _listening(proxy, process, wait_for_server)
            yield proxy
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _listening(proxy: Proxy, process: asyncio.subprocess.Process, wait_for_server: bool) -> None:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if process.returncode is not None:
            raise RuntimeError(f"Envoy did not start:\n{proxy.log.read_text()}")
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            if await _answers(proxy) and (not wait_for_server or await _healthy_servers(proxy)):
                return
        # Envoy tells nobody that it is up: it must be asked.
        await asyncio.sleep(0.02)
    raise RuntimeError(f"Envoy does not listen, or finds no healthy server:\n{proxy.log.read_text()}")


async def _answers(proxy: Proxy) -> bool:
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    writer.write(b"OPTIONS /health HTTP/1.1\r\nHost: test\r\n\r\n")
    # Not to the end: Envoy waits a second for its client to close first.
    status = await reader.readline()
    writer.close()
    return b" 204 " in status


async def _healthy_servers(proxy: Proxy) -> int:
    reader, writer = await asyncio.open_unix_connection(str(proxy.admin_socket))
    writer.write(b"GET /stats?filter=membership_healthy HTTP/1.1\r\nHost: admin\r\n\r\n")
    numbers = []
    # In the order of the page, which is that of the names.
    for name in (b"cluster.millstream-transfers.membership_healthy: ", b"cluster.millstream.membership_healthy: "):
        await reader.readuntil(name)
        numbers.append(int(await reader.readline()))
    writer.close()
    return min(numbers)
