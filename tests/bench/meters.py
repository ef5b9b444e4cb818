"""What a window of load costs: CPU by kind of process, and WAL syncs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import asyncpg
import psutil

STATISTICS_S = 1.05
"""A PostgreSQL backend publishes its statistics at the end of a transaction, at most once a second
(PGSTAT_MIN_INTERVAL)."""


def process_cpu_s(pid: int) -> float:
    """CPU seconds of a process, its ended threads included; to the nanosecond where the kernel has such a clock."""
    try:
        # clock_getcpuclockid(3): the complement of the pid over CPUCLOCK_SCHED.
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)


def main_thread_cpu_s(pid: int) -> float | None:
    """CPU seconds of the main thread, where the event loop runs; None where the kernel does not tell."""
    try:
        with open(f"/proc/{pid}/task/{pid}/schedstat") as file:  # noqa: PTH123 (twice a window)
            return int(file.read().split()[0]) / 1e9
    except OSError:
        return None


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM."""
    return int(psutil.Process(pid).memory_info().rss)


def tree_cpu_s(pid: int) -> float:
    """CPU seconds of a process with the children it has and those it had (PostgreSQL: one per connection)."""
    total = 0.0
    with contextlib.suppress(psutil.NoSuchProcess, OSError):
        parent = psutil.Process(pid)
        times = parent.cpu_times()
        total = process_cpu_s(pid) + times.children_user + times.children_system
        for child in parent.children():
            with contextlib.suppress(psutil.NoSuchProcess, OSError):
                total += process_cpu_s(child.pid)
    return total


def cpu_by_kind(pids: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """CPU seconds so far of each kind of process, this one being the client, and of all else on the machine."""
    found = {kind: sum(tree_cpu_s(pid) for pid in members) for kind, members in pids.items()}
    found["client"] = time.process_time()
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # Guests are counted in user and nice, too.
    busy = sum(times) - idle - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    found["others"] = busy - sum(found.values())
    return found


class WalSyncs:
    """Counts WAL syncs of the whole PostgreSQL server.

    `nudge` commits something on every server's connection, so that their statistics are published.
    """

    def __init__(self, connection: asyncpg.Connection[Any], nudge: Callable[[], Awaitable[None]]) -> None:
        """Nothing is read yet."""
        self._connection = connection
        self._nudge = nudge

    async def read(self) -> int:
        """Syncs so far, the nudge's own included."""
        await asyncio.sleep(STATISTICS_S)
        await self._nudge()
        await self._connection.execute("SELECT pg_stat_clear_snapshot()")
        if self._connection.get_server_version().major >= 18:
            query = "SELECT sum(fsyncs)::int8 FROM pg_stat_io WHERE object = 'wal'"
        else:
            query = "SELECT wal_sync FROM pg_stat_wal"
        return int(await self._connection.fetchval(query) or 0)
