"""The whole service for tests: PostgreSQL, server processes, one Envoy, and workers as processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx
from tests.proxy import Proxy, running_proxy

from millstream import tether
from millstream.store.embedded import EmbeddedPostgres

LOOPBACK = "127.0.0.1"
TOKEN = "what-only-the-proxy-knows"
READY_S = 30.0
ORDERS = Path(__file__).parents[2] / "examples" / "orders.py"


class Process:
    """A program whose lines can be waited for; it cannot outlive the tests."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: list[str] = []
        self._said = asyncio.Condition()
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def start(self, *argv: str, **environment: str) -> None:
        """Start it; nobody's own settings of Millstream reach it."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MILLSTREAM_", "PG"))}
        local = {"no_proxy": LOOPBACK, "NO_PROXY": LOOPBACK, "PYTHONUNBUFFERED": "1"}
        self._process = await asyncio.create_subprocess_exec(
            *tether.command(argv, at_death=signal.SIGKILL),
            env=kept | local | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._reading = asyncio.create_task(self._read())

    async def line(self, text: str, after: int = 0) -> str:
        """The first line with `text` from line number `after` on, once it is there.

        Raises AssertionError, with its last words, where the process ends or 30 s pass first.
        """

        def found() -> str | None:
            return next((line for line in self.lines[after:] if text in line), None)

        try:
            async with asyncio.timeout(READY_S), self._said:
                await self._said.wait_for(lambda: found() is not None or self._ended)
        except TimeoutError:
            pass
        line = found()
        assert line is not None, f"{self.name} never said {text!r}:\n" + "\n".join(self.lines[-30:])
        return line

    @property
    def pid(self) -> int:
        """Its id while it runs."""
        assert self._process is not None
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code, once it has ended."""
        return self._process.returncode if self._process is not None else None

    async def ended(self) -> int:
        """Its exit code, when it has ended by itself."""
        assert self._process is not None
        async with asyncio.timeout(READY_S):
            return await self._process.wait()

    async def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        await self._end(signal.SIGTERM)

    async def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
        await self._process.wait()
        if self._reading is not None:
            await self._reading

    @property
    def _ended(self) -> bool:
        return self._reading is not None and self._reading.done()

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        while raw := await self._process.stdout.readline():
            async with self._said:
                self.lines.append(raw.decode(errors="replace").rstrip())
                self._said.notify_all()
        async with self._said:
            self._said.notify_all()


def rest_client(url: str, **headers: str) -> httpx.AsyncClient:
    """A REST client that sends these headers; `_` stands for `-`."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    # There is no TLS here, and to load the certificates of the world takes 30 ms a client.
    return httpx.AsyncClient(base_url=url, headers=sent, timeout=30, trust_env=False, verify=False)


@dataclass
class Stack:
    """A running service; `url` and `target` are the proxy's, `ports` the servers' own."""

    database: EmbeddedPostgres
    servers: list[Process]
    ports: list[int]
    proxy: Proxy
    environment: Mapping[str, str] = field(repr=False)
    _stack: contextlib.AsyncExitStack = field(repr=False)

    @property
    def url(self) -> str:
        """Base of REST addresses."""
        return self.proxy.url

    @property
    def target(self) -> str:
        """Target of a gRPC channel through the proxy."""
        return self.proxy.target

    def native(self, server: int = 0) -> str:
        """Target of a gRPC channel to a server itself."""
        return f"{LOOPBACK}:{self.ports[server]}"

    async def restart(self, server: int) -> Process:
        """Stop a server as an operator does, and start it anew on its port; return the one that ended."""
        ended = self.servers[server]
        await ended.stop()
        process = self.servers[server] = Process(ended.name)
        self._stack.push_async_callback(process.kill)
        settings = {**self.environment, "MILLSTREAM_PORT": str(self.ports[server])}
        await process.start(sys.executable, "-m", "millstream.cli", "serve", **settings)
        await process.line('"event":"ready"')
        return ended

    async def rest(self, **headers: str) -> httpx.AsyncClient:
        """A REST client that sends these headers; `_` stands for `-`. It is closed with the stack."""
        return await self._stack.enter_async_context(rest_client(self.url, **headers))

    async def channel(self, target: str = "") -> grpc.aio.Channel:
        """A gRPC channel, through the proxy unless told otherwise. It is closed with the stack."""
        channel = grpc.aio.insecure_channel(target or self.target, options=[("grpc.enable_http_proxy", 0)])
        return await self._stack.enter_async_context(channel)

    async def worker(self, program: Path, name: str, **environment: str) -> Process:
        """A worker process that the service has welcomed. It is killed with the stack at the latest."""
        process = Process(name)
        self._stack.push_async_callback(process.kill)
        await process.start(
            sys.executable, str(program), **{"MILLSTREAM_TARGET": self.target, "WORKER_NAME": name} | environment
        )
        await process.line("kinds of tasks at")
        return process

    async def command(self, *arguments: str) -> Process:
        """A command of `millstream` that goes on by itself. It is killed with the stack at the latest."""
        process = Process(arguments[0])
        self._stack.push_async_callback(process.kill)
        await process.start(sys.executable, "-m", "millstream.cli", *arguments, MILLSTREAM_TARGET=self.target)
        return process

    def faults(self) -> list[str]:
        """What the servers logged as errors: faults of ours, whatever the callers were told.

        gRPC itself logs metadata that is not UTF-8 as an error, and goes on.
        """
        said = [line for server in self.servers for line in server.lines if '"level":"error"' in line]
        return [line for line in said if "Invalid encoding on" not in line]


@contextlib.asynccontextmanager
async def running_stack(settings: Mapping[str, str], servers: int = 1) -> AsyncIterator[Stack]:
    """Start it all on free ports, with settings of the servers by name, and end it after."""
    async with contextlib.AsyncExitStack() as exits:
        database = await exits.enter_async_context(EmbeddedPostgres(ephemeral=True))
        environment = {
            "MILLSTREAM_DATABASE_URL": database.url,
            "MILLSTREAM_PORT": "0",
            "MILLSTREAM_PROXY_TOKEN": TOKEN,
            **{f"MILLSTREAM_{name.upper()}": value for name, value in settings.items()},
        }
        processes = [Process(f"server-{number}") for number in range(1, servers + 1)]
        for process in processes:
            exits.push_async_callback(process.kill)
            await process.start(sys.executable, "-m", "millstream.cli", "serve", **environment)
        ready = [json.loads(await process.line('"event":"ready"')) for process in processes]
        ports = [int(line["address"].rpartition(":")[2]) for line in ready]
        proxy = await exits.enter_async_context(
            running_proxy([(LOOPBACK, port) for port in ports], token=TOKEN, cors_origins=["https://app.example"])
        )
        within = await exits.enter_async_context(contextlib.AsyncExitStack())
        yield Stack(database, processes, ports, proxy, environment, within)
