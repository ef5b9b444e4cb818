"""`millstream dev`: the whole service on this machine, as one command."""

import asyncio
import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from millstream.cli import programs
from millstream.cli.supervisor import Supervisor, SupervisorError
from millstream.store.embedded import EmbeddedPostgres, EmbeddedPostgresError

app = typer.Typer()

_HIGHEST_PORT = 65535
# A socket's whole path may have 103 bytes on every system; ours add up to 20.
_LONGEST_DIRECTORY_BYTES = 80


@dataclass(frozen=True)
class Options:
    """The command line, checked."""

    port: int
    grpc_port: int
    data_dir: Path
    ephemeral: bool
    database_url: str | None
    example: str | None
    processes: int


@app.command()
def dev(
    port: Annotated[int, typer.Option(min=1, max=_HIGHEST_PORT, help="REST, gRPC and gRPC-Web.")] = 8080,
    grpc_port: Annotated[
        int, typer.Option(min=1, max=_HIGHEST_PORT, help="First port of the servers behind it.")
    ] = 7080,
    data_dir: Annotated[Path, typer.Option(file_okay=False, help="Where the database and the logs are kept.")] = Path(
        ".millstream"
    ),
    ephemeral: Annotated[
        bool, typer.Option("--ephemeral", help="Keep data in memory, and nothing after the end.")
    ] = False,
    database_url: Annotated[
        str | None,
        typer.Option(envvar="MILLSTREAM_DATABASE_URL", help="Use this PostgreSQL, start none.", show_envvar=True),
    ] = None,
    example: Annotated[str | None, typer.Option(help="Run this example's worker too, such as orders.")] = None,
    processes: Annotated[
        int, typer.Option(min=1, max=64, help="Server processes, on --grpc-port and the ports after it.")
    ] = 1,
) -> None:
    """Run the whole service on this machine: PostgreSQL, servers, the proxy and, if asked for, an example.

    Only this machine can reach it, and nobody needs credentials: for development.
    """
    options = Options(port, grpc_port, data_dir, ephemeral, database_url, example, processes)
    try:
        asyncio.run(_run(options))
    except (SupervisorError, EmbeddedPostgresError) as error:
        _say(str(error))
        raise typer.Exit(1) from None


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone; that is no reason to leave orphans
        print(f"millstream: {line}", file=sys.stderr, flush=True)


async def _run(options: Options) -> None:
    stop, at_once = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, _on_signal(stop, at_once))
    _check(options)
    example = None if options.example is None else programs.example_file(options.example)
    async with contextlib.AsyncExitStack() as stack:
        if not options.ephemeral:
            _claim(_data_dir(options), stack)
        database = await _database(options, stack)
        base = database.base if database is not None and options.ephemeral else _data_dir(options)
        runtime_dir = _runtime_dir(base, stack)
        if not options.ephemeral:
            _say(f"starting; data and logs are in {base}")
        supervisor = Supervisor(base / "logs", _say, logs_stay=not options.ephemeral)
        stack.push_async_callback(supervisor.stop, at_once=at_once)
        layout = programs.Layout(
            port=options.port,
            grpc_ports=tuple(range(options.grpc_port, options.grpc_port + options.processes)),
            database_url=options.database_url or (database.url if database else ""),
            runtime_dir=runtime_dir,
            proxy_token=secrets.token_urlsafe(32),
        )
        await _start(supervisor, layout, database, example, stop)
        if not stop.is_set():
            _announce(options.port, example)
        await supervisor.run_until(stop)
        _say("stopping")


def _on_signal(stop: asyncio.Event, at_once: asyncio.Event) -> Callable[[], None]:
    """The first signal stops in order, the second one at once."""

    def handle() -> None:
        (at_once if stop.is_set() else stop).set()

    return handle


def _check(options: Options) -> None:
    programs.check_port(options.port, "--port")
    last = options.grpc_port + options.processes - 1
    if last > _HIGHEST_PORT or options.grpc_port <= options.port <= last:
        raise SupervisorError(
            f"ports {options.grpc_port} to {last} (--grpc-port, --processes) do not fit beside {options.port} (--port)"
        )
    for port in range(options.grpc_port, last + 1):
        programs.check_port(port, "--grpc-port")
    programs.envoy_binary()


def _data_dir(options: Options) -> Path:
    """Create the data directory; root's must let the database's user pass through."""
    directory = options.data_dir.absolute()
    try:
        if not directory.exists():
            directory.mkdir(parents=True)
            directory.chmod(0o711 if os.geteuid() == 0 else 0o700)
    except OSError as error:
        raise SupervisorError(f"cannot use {directory} (--data-dir): {error.strerror}") from None
    return directory


def _claim(directory: Path, stack: contextlib.AsyncExitStack) -> None:
    """Keep others out: a second one would take away the first one's logs and the configuration of its proxy."""
    lock = os.open(directory, os.O_RDONLY)
    stack.callback(os.close, lock)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise SupervisorError(f"{directory} is in use: stop that millstream, or choose another --data-dir") from None


def _runtime_dir(base: Path, stack: contextlib.AsyncExitStack) -> Path:
    """Create the directory of short-lived files, where the path of a socket in it is not too long."""
    directory = base / "run"
    if len(os.fsencode(directory)) > _LONGEST_DIRECTORY_BYTES:
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="millstream-")))
    shutil.rmtree(directory, ignore_errors=True)  # a killed one may have left it
    directory.mkdir(mode=0o700)
    stack.callback(shutil.rmtree, directory, ignore_errors=True)
    return directory


async def _database(options: Options, stack: contextlib.AsyncExitStack) -> EmbeddedPostgres | None:
    if options.database_url is not None:
        return None
    if options.ephemeral:
        database = EmbeddedPostgres(ephemeral=True)
    else:
        database = EmbeddedPostgres(_data_dir(options) / "postgres")
    stack.callback(database.remove)
    await asyncio.to_thread(database.initialise)
    return database


async def _start(
    supervisor: Supervisor,
    layout: programs.Layout,
    database: EmbeddedPostgres | None,
    example: Path | None,
    stop: asyncio.Event,
) -> None:
    """Start in the order in which one needs the other; a signal in between ends it."""

    async def stages() -> None:
        if database is not None:
            await supervisor.start([programs.postgres(database)])
        servers = [programs.server(layout, index) for index in range(len(layout.grpc_ports))]
        await supervisor.start([*servers, programs.envoy(layout)])
        if example is not None:
            await supervisor.start([programs.worker(layout, example)])

    work = asyncio.create_task(stages())
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not work.done():
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
        return
    work.result()


def _announce(port: int, example: Path | None) -> None:
    print(f"millstream is ready: http://127.0.0.1:{port}", flush=True)
    curl = None if example is None else programs.example_curl(example, port)
    print(f"try: {curl or f'curl http://127.0.0.1:{port}/health/ready'}", flush=True)
