"""What is measured: durable PostgreSQL, `millstream serve`, Envoy and a worker, each a process, as in production."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import asyncpg
from tests.bench import rest
from tests.bench.acks import Acks
from tests.bench.load import BenchError, ensure
from tests.proxy import free_port

from millstream import tether
from millstream.cli import programs
from millstream.cli.supervisor import Program
from millstream.store.embedded import EmbeddedPostgres

READY_S = 60.0
SLOTS = 1000
ORDER: dict[str, Any] = {"order_id": "o-1", "amount": 12.5, "items": ["tea", "milk"]}


@dataclass
class Child:
    """A running process; `lines` is its standard output."""

    process: asyncio.subprocess.Process
    kind: str

    async def line(self) -> bytes:
        """The next line it prints. Raises BenchError where it ends instead."""
        assert self.process.stdout is not None
        async with asyncio.timeout(READY_S):
            line = await self.process.stdout.readline()
        if not line:
            raise BenchError("a process ended; see its log")
        return line


@dataclass
class Stand:
    """Everything that runs, and how to reach it."""

    base: Path
    database: EmbeddedPostgres
    layout: programs.Layout
    models: bool = False
    """The worker runs the example's own handlers."""
    near: Acks = field(default_factory=Acks)
    """Completions stored, as the worker on the first server knows."""
    published: int = 0
    """Artifacts that were acknowledged to clients."""
    _children: list[Child] = field(default_factory=list)
    _others: list[tuple[str, int]] = field(default_factory=list)
    _nudges: list[rest.Connection] = field(default_factory=list)

    @property
    def grpc_port(self) -> int:
        """The first server's port, without the proxy."""
        return self.layout.grpc_ports[0]

    def pids(self) -> dict[str, list[int]]:
        """Processes that live, by kind."""
        found: dict[str, list[int]] = {}
        for child in self._children:
            if child.process.returncode is None:
                found.setdefault(child.kind, []).append(child.process.pid)
        for kind, pid in self._others:
            found.setdefault(kind, []).append(pid)
        return found

    @contextlib.contextmanager
    def counting(self, kind: str, pid: int) -> Iterator[None]:
        """Count a process that something else started, for the length of the block."""
        self._others.append((kind, pid))
        try:
            yield
        finally:
            self._others.remove((kind, pid))

    async def connect(self, database: str = "") -> asyncpg.Connection[Any]:
        """A connection of our own, to another database of the same server if asked for."""
        return await asyncpg.connect(self.url(database))

    def url(self, database: str = "") -> str:
        """Where the database is."""
        return self.database.url.replace("/millstream?", f"/{database}?") if database else self.database.url

    async def nudge(self) -> None:
        """Commit something on the first server's connection."""
        for connection in self._nudges:
            rest.published(*await connection.request(rest.post("/api/v1/artifacts", {"type": "Nudge"})))
            self.published += 1

    @contextlib.asynccontextmanager
    async def program(self, program: Program, kind: str) -> AsyncIterator[Child]:
        """Run one of the supervisor's programs for the length of the block."""
        argv = program.argv if program.tethered else tether.command(program.argv, at_death=program.at_death)
        async with self._run(program.name, argv, kind, program.env, program.stop_signal) as child:
            async with asyncio.timeout(READY_S):
                while not await program.is_ready():
                    if child.process.returncode is not None:
                        raise BenchError(f"{program.name} ended: {self._log(program.name).read_text()[-2000:]}")
                    await asyncio.sleep(0.02)
            yield child

    @contextlib.asynccontextmanager
    async def module(self, name: str, *arguments: str, kind: str) -> AsyncIterator[Child]:
        """Run a module of this package for the length of the block, once it has said that it is ready."""
        argv = tether.command([sys.executable, "-m", f"tests.bench.{name}", *arguments], at_death=signal.SIGKILL)
        async with self._run(name, argv, kind, None, signal.SIGTERM, lines=True) as child:
            try:
                ensure(await child.line() == b"ready\n", f"{name} did not start", "")
            except BenchError:
                raise BenchError(f"{name} did not start: {self._log(name).read_text()[-2000:]}") from None
            yield child

    @contextlib.asynccontextmanager
    async def _run(
        self, name: str, argv: Sequence[str], kind: str, env: Any, stop_signal: signal.Signals, lines: bool = False
    ) -> AsyncIterator[Child]:
        with self._log(name).open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *argv, env=env, stdin=asyncio.subprocess.PIPE if lines else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if lines else log, stderr=log, start_new_session=True,
            )  # fmt: skip
        child = Child(process, kind)
        self._children.append(child)
        try:
            yield child
        finally:
            self._children.remove(child)
            await _stop(process, stop_signal)

    def _log(self, name: str) -> Path:
        return self.base / f"{name}.log"

    @contextlib.asynccontextmanager
    async def worker(
        self, port: int, kind: str, acks: Acks, *, suite: str = "", tenant: str = ""
    ) -> AsyncIterator[Child]:
        """An SDK worker process at the server on a port, which serves a suite of agents; see tests.bench.worker."""
        path = self.base / f"{kind}.sock"
        async with acks.listening(path):
            options = ["--target", f"127.0.0.1:{port}", "--acks", str(path), "--kind", kind, "--slots", str(SLOTS)]
            options += ["--suite", suite] if suite else []
            options += ["--tenant", tenant] if tenant else []
            options += ["--models"] if self.models else []
            async with self.module("worker", *options, kind="worker") as child:
                yield child

    @contextlib.asynccontextmanager
    async def second_server(self) -> AsyncIterator[int]:
        """Another server on the same database; its port."""
        async with self.program(programs.server(self.layout, 1), "server"):
            yield self.layout.grpc_ports[1]


@contextlib.asynccontextmanager
async def two_servers(stand: Stand) -> AsyncIterator[int]:
    """A second server with a worker, and a proxy before both servers; the proxy's port."""
    runtime = stand.base / "two"
    runtime.mkdir(mode=0o700, exist_ok=True)
    layout = replace(stand.layout, port=free_port(), runtime_dir=runtime)
    async with (
        stand.second_server() as port,
        stand.worker(port, "bench.second", Acks(), suite="orders"),
        stand.program(programs.envoy(layout), "envoy"),
    ):
        yield layout.port


@contextlib.asynccontextmanager
async def extra_server(stand: Stand, name: str, environment: Mapping[str, str]) -> AsyncIterator[int]:
    """A further server on the same database, with settings of its own; its port."""
    ports = (*stand.layout.grpc_ports, free_port())
    program = programs.server(replace(stand.layout, grpc_ports=ports), len(ports) - 1)
    program = replace(program, name=f"server-{name}", env={**(program.env or {}), **environment})
    async with stand.program(program, "server"):
        yield ports[-1]


async def _stop(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)
    try:
        async with asyncio.timeout(20):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


async def register(port: int, tenant: str = "") -> None:
    """Register the example's types with their schemas, and those of the other rows, in a tenant."""
    from examples import orders

    headers = f"x-tenant: {tenant}\r\n" if tenant else ""

    models = (orders.Order, orders.Payment, orders.Shipment, orders.Notification)
    types: dict[str, Any] = {model.__name__: model.model_json_schema() for model in models}
    # Nobody subscribes to these. A receipt is checked as an order is; a document is not checked.
    types |= {"Receipt": orders.Order.model_json_schema(), "Document": {}, "Nudge": {}}
    async with rest.connections(port, 1) as (connection,):
        for name, schema in types.items():
            request = rest.post("/api/v1/artifact-types", {"name": name, "schema": schema}, headers)
            status, body = await connection.request(request)
            ensure(status == 201, f"type {name}", (status, body))


@contextlib.asynccontextmanager
async def running(base: Path, *, models: bool = False) -> AsyncIterator[Stand]:
    """Start everything in `base`, which must be on a disk for the figures to mean anything."""
    # The bound of one row's gates; it costs nothing where nothing waits.
    os.environ.setdefault("MILLSTREAM_MAX_WAITING_KEYS", "300000")
    database = EmbeddedPostgres(base / "postgres")
    await asyncio.to_thread(database.initialise)
    runtime = base / "run"
    runtime.mkdir(mode=0o700)
    ports = (free_port(), free_port())
    # The proxy knows the first server only: the second runs for one row, and is called by its worker alone.
    layout = programs.Layout(free_port(), ports[:1], database.url, runtime, secrets.token_urlsafe(32))
    stand = Stand(
        base, database, programs.Layout(layout.port, ports, database.url, runtime, layout.proxy_token), models
    )
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(stand.program(programs.postgres(database), "postgres"))
        await stack.enter_async_context(stand.program(programs.server(stand.layout, 0), "server"))
        await stack.enter_async_context(stand.program(programs.envoy(layout), "envoy"))
        await register(layout.port)
        stand._nudges += await stack.enter_async_context(rest.connections(layout.port, 1))
        await stack.enter_async_context(stand.worker(stand.grpc_port, "bench.near", stand.near, suite="orders"))
        yield stand
