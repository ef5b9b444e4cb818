"""Processes that cannot outlive the test: started, killed, stopped, started again on the same ports.

Each is tethered to this process (millstream.tether), so that not even a killed test run leaves an orphan, and each is
ended by its own id.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import asyncpg
import psutil

from millstream import tether
from millstream.adapters.envoy import command, render
from millstream.store.embedded import EmbeddedPostgres

LOOPBACK = "127.0.0.1"
READY_S = 60.0
_PORTS = random.Random()  # unseeded: two runs on one machine must differ


def free_port() -> int:
    """A port that nobody listens on, below those that the system gives to clients: one of them would take the port
    of a server that is just dead, or connect to itself on it."""
    for _ in range(1000):
        port = _PORTS.randrange(15_000, 32_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((LOOPBACK, port))
                return port
    raise RuntimeError("no port is free")


def environment(**more: str) -> dict[str, str]:
    """The environment of a child: none of the caller's own settings of Millstream reach it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MILLSTREAM_", "PG"))}
    local = {"no_proxy": LOOPBACK, "NO_PROXY": LOOPBACK, "PYTHONUNBUFFERED": "1"}
    return kept | local | more


def scratch_folder() -> Path:
    """A folder that the database's unprivileged user can enter (pytest's own are private); the caller removes it."""
    folder = Path(tempfile.mkdtemp(prefix="millstream-crash-"))
    folder.chmod(0o711)
    return folder


async def until(what: str, done: Callable[[], Awaitable[bool]], timeout_s: float = READY_S) -> None:
    """Wait until it is done. Raises TimeoutError, saying what was waited for."""
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout_s
    while not await done():
        if loop.time() > end:
            raise TimeoutError(f"{what}: not after {timeout_s:g} s")
        # Nothing tells of another process's state: it must be asked.
        await asyncio.sleep(0.03)


async def listens(port: int) -> bool:
    """Whether somebody accepts connections."""
    try:
        _, writer = await asyncio.open_connection(LOOPBACK, port)
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


class Child:
    """One program.

    Attributes:
        starts: How often it was started.
    """

    def __init__(self, name: str, argv: Sequence[str], env: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self.argv = list(argv)
        self.env = dict(env)
        self.log = folder / f"{name}.log"
        self.starts = 0
        self.process: asyncio.subprocess.Process | None = None
        self._folder = folder
        self._reviving = asyncio.Lock()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs (or is stopped)."""
        return self.process is not None and self.process.returncode is None

    async def launch(self) -> None:
        """Start it; it is not ready yet."""
        assert not self.alive, f"{self.name} runs"
        self.starts += 1
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.command(),
                env=self.env,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def command(self) -> list[str]:
        """The argument list, tethered."""
        return tether.command(self.argv, at_death=signal.SIGKILL)

    async def ready(self) -> bool:
        """Whether it does its work."""
        return True

    async def start(self) -> None:
        """Start it and wait until it is ready."""
        await self.launch()
        await self.wait_ready()

    async def revive(self) -> None:
        """Have it ready: started where it is dead, and again where it ends at its start, as a supervisor does (a server
        ends without its database)."""

        async def done() -> bool:
            if not self.alive:
                await self.launch()
            return await self.ready()

        async with self._reviving:
            await until(f"{self.name} is ready", done)

    async def wait_ready(self, timeout_s: float = READY_S) -> None:
        """Wait until it is ready. Raises AssertionError, with its last words, where it ends instead."""

        async def done() -> bool:
            assert self.alive, f"{self.name} ended at its start:\n{self.tail()}"
            return await self.ready()

        await until(f"{self.name} is ready", done, timeout_s)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    async def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()

    async def ended(self, timeout_s: float = READY_S) -> int:
        """Wait until it has ended by itself; its exit code."""
        assert self.process is not None
        async with asyncio.timeout(timeout_s):
            return await self.process.wait()

    def tail(self, lines: int = 30) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Server(Child):
    """A `millstream serve`, or a program that is one (see armed_server)."""

    def __init__(self, name: str, database_url: str, folder: Path, program: Path | None = None, **settings: str):
        self.port = free_port()
        argv = [sys.executable, *([str(program)] if program else ["-m", "millstream.cli", "serve"])]
        env = environment(
            MILLSTREAM_DATABASE_URL=database_url,
            MILLSTREAM_HOST=LOOPBACK,
            MILLSTREAM_PORT=str(self.port),
            MILLSTREAM_AUTH_MODE="developer",
            MILLSTREAM_LOG_FORMAT="console",
            **{f"MILLSTREAM_{name.upper()}": value for name, value in settings.items()},
        )
        super().__init__(name, argv, env, folder)

    @property
    def target(self) -> str:
        """Target of a gRPC channel."""
        return f"{LOOPBACK}:{self.port}"

    async def ready(self) -> bool:
        """It listens."""
        return await listens(self.port)


class Envoy(Child):
    """The proxy over the servers, on one port for all its lives."""

    def __init__(self, servers: Sequence[Server], folder: Path, token: str) -> None:
        self.port = free_port()
        self._admin = folder / "envoy.sock"
        config = folder / "envoy.json"
        config.write_text(
            render(
                listen_host=LOOPBACK,
                listen_port=self.port,
                servers=[(LOOPBACK, server.port) for server in servers],
                admin_socket=str(self._admin),
                proxy_token=token,
            )
        )
        super().__init__("envoy", command(config, concurrency=1), environment(), folder)

    @property
    def target(self) -> str:
        """Target of a gRPC channel."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def url(self) -> str:
        """Base of REST addresses."""
        return f"http://{LOOPBACK}:{self.port}"

    async def ready(self) -> bool:
        """It listens, and found a healthy server."""
        if not await listens(self.port):
            return False
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_unix_connection(str(self._admin))
            try:
                writer.write(b"GET /stats?filter=membership_healthy HTTP/1.1\r\nHost: admin\r\n\r\n")
                await reader.readuntil(b"cluster.millstream.membership_healthy: ")
                return int(await reader.readline()) > 0
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
        return False


class Worker(Child):
    """A worker of the SDK (orders_worker.py), which notes each execution in `executions`."""

    def __init__(self, name: str, target: str, executions: Path, folder: Path, **more: str) -> None:
        program = Path(__file__).parent / "orders_worker.py"
        env = environment(MILLSTREAM_TARGET=target, CRASH_EXECUTIONS=str(executions), **more)
        super().__init__(name, [sys.executable, str(program)], env, folder)

    async def ready(self) -> bool:
        """The service has welcomed this life of it."""
        return self.log.read_text().count("kinds of tasks at") >= self.starts


class Postgres(Child):
    """A durable embedded PostgreSQL (fsync on)."""

    def __init__(self, folder: Path) -> None:
        self.server = EmbeddedPostgres(folder / "postgres")
        super().__init__("postgres", [], self.server.environment(), folder)

    def command(self) -> list[str]:
        """The launcher's own, which is tethered."""
        return self.server.command()

    async def launch(self) -> None:
        """Make or check its directory, and start it."""
        await asyncio.to_thread(self.server.initialise)
        await super().launch()

    async def ready(self) -> bool:
        """It answers: after a crash, when it has recovered."""
        return await self.server.is_ready()

    async def kill(self) -> None:
        """kill -9 of the postmaster and of everything below it, as when the machine dies."""
        if not self.alive:
            return
        children = psutil.Process(self.pid).children(recursive=True)
        await super().kill()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        await asyncio.to_thread(psutil.wait_procs, children, 10)

    async def create_database(self, name: str) -> str:
        """Create a database; its URL."""
        connection = await asyncpg.connect(self.server.url)
        try:
            await connection.execute(f"CREATE DATABASE {name}")
        finally:
            await connection.close()
        return self.server.url.replace("@/millstream?", f"@/{name}?")
