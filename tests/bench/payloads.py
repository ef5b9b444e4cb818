"""Rows of large payloads: one goes up, one comes down, and what the processes hold at most meanwhile."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from tests.bench.load import ensure
from tests.bench.report import Aim, Load, Outcome, Result, Results, Row
from tests.bench.stand import Stand

from millstream.sdk import Client

_MIB = 1024 * 1024
_WARM_UP_MIB = 16
_HELD_MIB = 64
"""What a process may hold of a payload of any size."""
_seeds = itertools.count()


class _Peaks:
    """By how many MiB the memory of processes grows at most; notes for people where the kernel does not tell."""

    def __init__(self, stand: Stand) -> None:
        pids = stand.pids()
        self._pids = {kind: pids[kind][0] for kind in ("server", "envoy")}
        self._before: dict[str, int] = {}
        with contextlib.suppress(OSError):
            for kind, pid in self._pids.items():
                # proc(5): from here on the peak is counted anew.
                Path(f"/proc/{pid}/clear_refs").write_text("5")
                self._before[kind] = self._peak_kib(pid)

    def notes(self) -> dict[str, float]:
        """The growth so far."""
        return {
            f"{kind} memory grew by MiB": (self._peak_kib(self._pids[kind]) - before) / 1024
            for kind, before in self._before.items()
        }

    @staticmethod
    def _peak_kib(pid: int) -> int:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        return int(found[1]) if found else 0


async def _content(mib: int) -> AsyncIterator[bytes]:
    """Bytes that were never uploaded before, and cost the client little."""
    seed = hashlib.sha256(str((next(_seeds), time.time_ns())).encode()).digest()
    block = seed * (_MIB // len(seed))
    for number in range(mib):
        yield number.to_bytes(8, "big") + block[8:]


def _up(mib: int) -> Callable[[Stand], contextlib.AbstractAsyncContextManager[Load]]:
    @contextlib.asynccontextmanager
    async def prepare(stand: Stand) -> AsyncIterator[Load]:
        async with Client(f"127.0.0.1:{stand.layout.port}") as client:

            async def load(seconds: float) -> Outcome:
                size = _WARM_UP_MIB if seconds <= 0.5 else mib
                peaks, start = _Peaks(stand), time.monotonic()
                stored = await client.payloads.upload(_content(size))
                ensure(stored.size_bytes == size * _MIB, "another size was stored", stored)
                return Outcome(stored.size_bytes, time.monotonic() - start, notes=peaks.notes())

            yield load

    return prepare


def _down(mib: int) -> Callable[[Stand], contextlib.AbstractAsyncContextManager[Load]]:
    @contextlib.asynccontextmanager
    async def prepare(stand: Stand) -> AsyncIterator[Load]:
        async with Client(f"127.0.0.1:{stand.layout.port}") as client:
            stored = await client.payloads.upload(_content(mib))

            async def load(seconds: float) -> Outcome:
                wanted = min(_WARM_UP_MIB, mib) * _MIB if seconds <= 0.5 else None
                peaks, start, size = _Peaks(stand), time.monotonic(), 0
                # All of it is compared with its digest, which is the client's work and time.
                async for piece in client.payloads.download(stored.ref, length=wanted):
                    size += len(piece)
                ensure(size == (wanted or mib * _MIB), "another size came", size)
                return Outcome(size, time.monotonic() - start, notes=peaks.notes())

            yield load

    return prepare


def _rate(outcome: Outcome, _: dict[str, float]) -> float:
    return outcome.ops / outcome.seconds / 1e6


def _bounded(result: Result, _: Results) -> bool | None:
    grown = [value for sample in result.rounds for name, value in sample.notes.items() if "memory" in name]
    return max(grown) <= _HELD_MIB if grown else None


def rows(mib: int) -> list[Row]:
    """Of a payload of so many MiB."""
    aim = Aim(f"memory grows < {_HELD_MIB} MiB", _bounded)
    said = f"a payload of {mib:,} MiB through the proxy, by the SDK over gRPC"
    return [
        Row("payload-up", f"upload of {said}", _up(mib), unit="MB/s", value=_rate, aim=aim),
        Row("payload-down", f"download of {said}", _down(mib), unit="MB/s", value=_rate, aim=aim),
    ]
