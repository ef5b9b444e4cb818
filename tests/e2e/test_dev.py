"""`millstream dev` as a user runs it: it becomes ready, stops cleanly, survives its children, leaves none."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

pytestmark = pytest.mark.slow

READY_S = 60.0


def free_port(count: int = 1) -> int:
    """Return a port that is free, with the ones after it."""
    while True:
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                for offset in range(1, count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port + offset))
            except OSError:
                continue
            return port


@dataclass
class Dev:
    """A running `millstream dev`."""

    process: asyncio.subprocess.Process
    port: int

    def children(self) -> dict[int, str]:
        """Every process below it, with its command line."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        found = {}
        for process in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                found[process.pid] = " ".join(process.cmdline())
        return found

    async def line(self, stream: str, text: str, *, timeout_s: float = READY_S) -> str:
        """Read until a line holds `text`, and return it."""
        reader = self.process.stdout if stream == "stdout" else self.process.stderr
        assert reader is not None
        seen = []
        async with asyncio.timeout(timeout_s):
            while raw := await reader.readline():
                seen.append(raw.decode().rstrip())
                if text in seen[-1]:
                    return seen[-1]
        raise AssertionError(f"no line with {text!r} among {seen}")

    async def answers(self, *, timeout_s: float = READY_S) -> bool:
        """Wait until the service is ready behind its one port."""
        async with httpx.AsyncClient(trust_env=False) as client, asyncio.timeout(timeout_s):
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.get(f"http://127.0.0.1:{self.port}/health/ready")).status_code == 200:
                        return True
                await asyncio.sleep(0.05)


async def launch(*options: str, processes: int = 1, port: int | None = None) -> Dev:
    """Start it on free ports; it is not ready yet."""
    chosen = port or free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "millstream.cli", "dev", "--port", str(chosen),
        "--grpc-port", str(free_port(processes)), "--processes", str(processes), *options,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if not name.startswith("MILLSTREAM_DATABASE")},
    )  # fmt: skip
    return Dev(process, chosen)


@pytest.fixture
async def dev() -> AsyncIterator[Dev]:
    """One with two server processes, ready."""
    running = await launch("--ephemeral", processes=2)
    await running.line("stdout", "millstream is ready")
    yield running
    if running.process.returncode is None:
        running.process.kill()
    await running.process.communicate()


async def gone(pids: Iterable[int], *, timeout_s: float = 20.0) -> bool:
    """Wait until none of the processes exists."""
    async with asyncio.timeout(timeout_s):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                while True:
                    os.kill(pid, 0)
                    await asyncio.sleep(0.05)
    return True


def one(children: dict[int, str], program: str) -> int:
    """The process whose command line holds `program`."""
    return next(pid for pid, arguments in children.items() if program in arguments)


async def test_it_says_one_line_when_it_is_ready_and_a_request_works_at_once() -> None:
    dev = await launch("--ephemeral")
    try:
        assert await dev.line("stdout", "") == f"millstream is ready: http://127.0.0.1:{dev.port}"
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"http://127.0.0.1:{dev.port}/health/ready")).status_code == 200
        assert (await dev.line("stdout", "curl")).startswith("try: curl ")
    finally:
        dev.process.send_signal(signal.SIGINT)
        await dev.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_stops_everything(dev: Dev, number: signal.Signals) -> None:
    children = dev.children()
    for program in ("postgres -D", "millstream.cli serve", "envoy"):
        assert one(children, program)
    dev.process.send_signal(number)
    async with asyncio.timeout(30):
        _, errors = await dev.process.communicate()
    assert dev.process.returncode == 0
    assert await gone(children)
    assert b"killing" not in errors


async def test_a_signal_in_the_middle_of_the_start_stops_everything() -> None:
    dev = await launch("--ephemeral")
    while not dev.children():  # noqa: ASYNC110 (nothing tells of another process's children)
        await asyncio.sleep(0.02)
    dev.process.send_signal(signal.SIGINT)
    children = dev.children()
    async with asyncio.timeout(30):
        await dev.process.communicate()
    assert dev.process.returncode == 0
    assert await gone(children)


async def test_a_killed_supervisor_leaves_no_child(dev: Dev) -> None:
    children = dev.children()
    assert len(children) >= 4
    dev.process.kill()
    assert await gone(children)


@pytest.mark.crash
@pytest.mark.parametrize("program", ["millstream.cli serve", "envoy", "postgres -D"])
async def test_a_killed_child_is_started_again_and_it_is_said_so(dev: Dev, program: str) -> None:
    os.kill(one(dev.children(), program), signal.SIGKILL)
    line = await dev.line("stderr", "starting it again")
    assert "killed by SIGKILL" in line
    assert await dev.answers()


async def test_a_taken_port_is_one_clear_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        dev = await launch("--ephemeral", port=taken.getsockname()[1])
        output, errors = await dev.process.communicate()
    assert (dev.process.returncode, output) == (1, b"")
    assert errors.decode() == f"millstream: port {dev.port} is taken: choose another with --port\n"


async def test_a_second_one_in_the_same_directory_leaves_the_first_alone(tmp_path: Path) -> None:
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    first = await launch("--data-dir", str(tmp_path / "data"))
    try:
        await first.line("stdout", "millstream is ready")
        kept = sorted(tmp_path.glob("data/*/*"))
        second = await launch("--data-dir", str(tmp_path / "data"), "--database-url", "postgresql://x@127.0.0.1:1/x")
        output, errors = await second.process.communicate()
        assert (second.process.returncode, output) == (1, b"")
        assert errors.decode().startswith(f"millstream: {tmp_path / 'data'} is in use: ")
        assert sorted(tmp_path.glob("data/*/*")) == kept
    finally:
        first.process.send_signal(signal.SIGINT)
        await first.process.communicate()


async def test_a_database_that_is_away_is_said_by_its_own_words(tmp_path: Path) -> None:
    dev = await launch("--data-dir", str(tmp_path / "data"), "--database-url", "postgresql://x@127.0.0.1:1/x")
    output, errors = await dev.process.communicate()
    assert (dev.process.returncode, output) == (1, b"")
    last = errors.decode().splitlines()[-1]
    assert last.startswith("millstream: server does not start (exit code 1): cannot start: cannot reach the database: ")


async def test_a_broken_data_directory_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "postgres" / "data").mkdir(parents=True)
    (tmp_path / "postgres" / "data" / "PG_VERSION").write_text("18\n")
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    dev = await launch("--data-dir", str(tmp_path))
    output, errors = await dev.process.communicate()
    assert (dev.process.returncode, output) == (1, b"")
    assert "is not a whole PostgreSQL data directory" in errors.decode()
    assert len(errors.decode().splitlines()) == 1


async def test_a_missing_wheel_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLSTREAM_ENVOY_BIN", "/does/not/exist")
    dev = await launch("--ephemeral")
    output, errors = await dev.process.communicate()
    assert (dev.process.returncode, output) == (1, b"")
    assert errors.decode() == "millstream: cannot run Envoy at /does/not/exist: it is not an executable file\n"


async def test_an_unknown_example_is_one_clear_line() -> None:
    dev = await launch("--ephemeral", "--example", "nonsense")
    output, errors = await dev.process.communicate()
    assert (dev.process.returncode, output) == (1, b"")
    assert errors.decode().startswith("millstream: there is no example 'nonsense' (--example)")


async def test_data_outlives_a_restart(tmp_path: Path) -> None:
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    for _ in range(2):
        dev = await launch("--data-dir", str(tmp_path / "data"))
        await dev.line("stdout", "millstream is ready")
        dev.process.send_signal(signal.SIGINT)
        await dev.process.communicate()
        assert dev.process.returncode == 0
    assert (tmp_path / "data/logs/server.log.1").exists()
