"""Run several programs as one: start them in stages, start again what dies, stop them in order, leave no orphan.

Every program is a direct child of this process and tethered to it (millstream.tether). Nothing here opens a gRPC
channel: its threads do not survive a fork.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from millstream import tether

_POLL_S = 0.02
_START_UP_TRIES = 3
_FIRST_BACKOFF_S = 0.25
_LONGEST_BACKOFF_S = 30.0
_STEADY_S = 30.0
_TAIL_BYTES = 64 << 10


class SupervisorError(RuntimeError):
    """A program cannot be started. Its message is one line."""


async def _always() -> bool:
    return True


async def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Program:
    """What to run, and how to tell that it works and stop it."""

    name: str
    """Unique; also names its log."""
    argv: Sequence[str]
    """The program and its arguments."""
    env: Mapping[str, str] | None = None
    """Its whole environment; None: this process's."""
    is_ready: Callable[[], Awaitable[bool]] = _always
    """Whether it does its work; asked again and again until it does."""
    ready_s: float = 60.0
    """How long that may take."""
    before_stop: Callable[[], Awaitable[None]] = _nothing
    """What lets it finish its work before it is told to end."""
    stop_signal: signal.Signals = signal.SIGTERM
    stop_s: float = 10.0
    """How long its end may take before it is killed."""
    at_death: signal.Signals = signal.SIGKILL
    """What it gets when this process is gone."""
    tethered: bool = False
    """`argv` is tethered already (it changes the user, too)."""


@dataclass
class _Child:
    program: Program
    log: Path
    process: asyncio.subprocess.Process | None = None
    quick_deaths: int = 0
    started: float = 0.0
    was_ready: bool = False
    keeper: asyncio.Task[None] | None = field(default=None, repr=False)


class Supervisor:
    """Runs stages of programs; a stage starts when all of the stage before are ready.

    `say` gets one line for everything that a user should know: deaths, restarts, forced ends.
    """

    def __init__(self, log_dir: Path, say: Callable[[str], None], *, logs_stay: bool = True) -> None:
        """Remember where the programs' output goes, and whether it can be read afterwards. Nothing runs yet."""
        self._log_dir = log_dir
        self._logs_stay = logs_stay
        self._say = say
        self._children: list[_Child] = []
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stopping = False

    async def start(self, stage: Sequence[Program]) -> None:
        """Start the programs side by side and return when all are ready.

        Raises SupervisorError when one ends three times before it was ready, or is not ready in time.
        """
        children = [_Child(program, self._log_dir / f"{program.name}.log") for program in stage]
        self._children += children
        for child in children:
            _rotate(child.log)
            await self._spawn(child)
            child.keeper = asyncio.create_task(self._keep(child), name=f"keep {child.program.name}")
        await self._or_failure(asyncio.gather(*(self._await_ready(child) for child in children)))

    async def run_until(self, stop: asyncio.Event) -> None:
        """Keep everything running until `stop` is set. Raises SupervisorError when something cannot be kept."""
        await self._or_failure(asyncio.ensure_future(stop.wait()))

    async def stop(self, *, at_once: asyncio.Event | None = None) -> None:
        """Stop everything, last started first; `at_once` cuts the waiting short."""
        self._stopping = True
        for child in reversed(self._children):
            if child.keeper is not None:
                child.keeper.cancel()
            await self._stop(child, at_once or asyncio.Event())
        if self._failed.done() and not self._failed.cancelled():
            self._failed.exception()  # it was reported, or came too late to matter

    async def _or_failure(self, work: asyncio.Future[Any]) -> None:
        both: set[asyncio.Future[Any]] = {work, self._failed}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
            self._failed.result()
        work.result()

    async def _spawn(self, child: _Child) -> None:
        program = child.program
        argv = list(program.argv)
        if not program.tethered:
            argv = tether.command(argv, at_death=program.at_death)
        child.started = time.monotonic()
        with child.log.open("ab") as log:
            # A session of its own: Ctrl-C is for us, who stop the children in order.
            child.process = await asyncio.create_subprocess_exec(
                *argv, env=program.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    async def _await_ready(self, child: _Child) -> None:
        deadline = time.monotonic() + child.program.ready_s
        while not await child.program.is_ready():
            if time.monotonic() > deadline:
                late = f"{child.program.name} is not ready after {child.program.ready_s:.0f} s"
                raise SupervisorError(f"{late}: {self._last_words(child.log)}")
            await asyncio.sleep(_POLL_S)
        child.was_ready = True

    async def _keep(self, child: _Child) -> None:
        """Start the program again whenever it ends."""
        while True:
            assert child.process is not None  # noqa: S101 (for the type checker: it was spawned)
            code = await child.process.wait()
            if self._stopping:
                return
            steady = time.monotonic() - child.started > _STEADY_S
            child.quick_deaths = 1 if steady else child.quick_deaths + 1
            if not child.was_ready and child.quick_deaths >= _START_UP_TRIES:
                self._fail(f"{child.program.name} does not start ({_cause(code)}): {self._last_words(child.log)}")
                return
            pause_s = min(_FIRST_BACKOFF_S * 2 ** (child.quick_deaths - 1), _LONGEST_BACKOFF_S)
            self._say(f"{child.program.name} ended ({_cause(code)}); starting it again in {pause_s:g} s")
            await asyncio.sleep(pause_s)
            try:
                await self._spawn(child)
            except OSError as error:
                self._fail(f"{child.program.name} cannot be started: {error.strerror}")
                return

    def _last_words(self, log: Path) -> str:
        line = _telling_line(log) or "it wrote nothing"
        return f"{line} (see {log})" if self._logs_stay else line

    def _fail(self, line: str) -> None:
        if not self._failed.done():
            self._failed.set_exception(SupervisorError(line))

    async def _stop(self, child: _Child, at_once: asyncio.Event) -> None:
        process, program = child.process, child.program
        if process is None or process.returncode is not None:
            return
        if not at_once.is_set():
            await program.before_stop()
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(program.stop_signal)
        waiters = {asyncio.create_task(process.wait()), asyncio.create_task(at_once.wait())}
        await asyncio.wait(waiters, timeout=program.stop_s, return_when=asyncio.FIRST_COMPLETED)
        if process.returncode is None:
            if not at_once.is_set():
                self._say(f"{program.name} did not end within {program.stop_s:g} s; killing it")
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the session is its own, with all that it started
            await process.wait()
        for waiter in waiters:
            waiter.cancel()


def _telling_line(log: Path) -> str:
    """The line of a log that tells best why its program ended."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [bare for line in text.splitlines() if (bare := line.strip("\u2500\u2502\u256d\u256e\u2570\u256f \t"))]
    telling = ("fatal", "panic", "critical", "error:", "cannot", "no such", "millstream:")
    told = (line for line in reversed(lines) if any(word in line.lower() for word in telling))
    return _plain(next(told, lines[-1] if lines else ""))[:300]


def _plain(line: str) -> str:
    """What a line of a server's JSON log says; any other line as it is."""
    try:
        entry = json.loads(line)
        return f"{entry['event']}: {entry['reason']}"
    except (ValueError, TypeError, KeyError):
        return line


def _rotate(log: Path) -> None:
    """Begin a new log, and keep the one before."""
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if log.exists():
        log.replace(log.with_suffix(".log.1"))


def _cause(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
