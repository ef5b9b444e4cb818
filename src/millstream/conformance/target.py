"""The worker's process."""

import asyncio
import contextlib
import os
import signal
from collections import deque
from collections.abc import Sequence
from typing import Final

from millstream import tether
from millstream.conformance.kinds import environment

_LINES: Final = 20
_LINE: Final = 300
"""Of its output the last lines are kept, for the report."""
_LAST_WORDS_S: Final = 1.0


class Target:
    """A worker's process, from its start to its end; what it prints is kept for the report."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._argv = list(argv)
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self.lines: deque[str] = deque(maxlen=_LINES)

    async def start(self, address: str) -> None:
        """Starts it. Raises OSError."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MILLSTREAM_")}
        self._process = await asyncio.create_subprocess_exec(
            # Of a kit that was killed no worker is left.
            *tether.command(self._argv, at_death=signal.SIGKILL),
            env=inherited | environment(address),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=1 << 20,
        )
        self._reading = asyncio.create_task(self._read(self._process), name="worker's output")

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.returncode if self._process is not None else None

    def terminate(self) -> None:
        """Asks it to stop, as an operator does."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    async def ended(self) -> int:
        """Its exit code, when it has ended."""
        assert self._process is not None  # noqa: S101 (it was started)
        return await self._process.wait()

    async def stop(self) -> None:
        """Ends it, if it has not ended."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        if self._reading is not None:
            # To its last words; but a child of its own may hold the pipe open.
            await asyncio.wait({self._reading}, timeout=_LAST_WORDS_S)
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        if process.stdout is None:
            return
        while True:
            try:
                raw = await process.stdout.readline()
            except ValueError:
                continue  # a line beyond all bounds
            if not raw:
                return
            self.lines.append(raw.decode(errors="replace").rstrip()[:_LINE])
