"""Two servers on one durable PostgreSQL, one Envoy over both, two workers: what the scenarios break."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
from tests.crash import checker
from tests.crash.checker import Verdict
from tests.crash.history import History, read
from tests.crash.load import Load, doors_to, replay
from tests.crash.processes import Child, Envoy, Postgres, Server, Worker
from tests.crash.summary import Row

TOKEN = "a-token-of-the-crash-suite"
LEASE_S = 2.0
"""Short, so that a dead worker's tasks are another's within the time of a test."""
DRAIN_S = 45.0
LONGEST_PAUSE_S = 1.5
"""A server whose neighbour is stopped answers something at least so often (a lock that it meets holds it 0.5 s)."""
LEAST_SHARE = 0.2
"""What it keeps of its rate: the machine is shared, and tasks of the stopped one come to it."""
_OPEN = """SELECT (SELECT count(*) FROM run WHERE finished_us = 0 OR due_us <> 0)
    + (SELECT count(*) FROM task WHERE finished_us = 0)"""
_DUMPS = (
    "SELECT * FROM run WHERE id = $1::text::uuid",
    "SELECT * FROM task WHERE run_id = $1::text::uuid ORDER BY id",
    """SELECT a.* FROM attempt a JOIN task t ON t.id = a.task_id WHERE t.run_id = $1::text::uuid
    ORDER BY a.task_id, a.number""",
    "SELECT * FROM event WHERE run_id = $1::text::uuid ORDER BY seq, at_us",
)


class Cluster:
    """The processes of one installation.

    Attributes:
        url: The database, reached directly.
        executions: Where the workers note what they run.
    """

    def __init__(self, postgres: Postgres, url: str, folder: Path) -> None:
        self.postgres = postgres
        self.url = url
        self.folder = folder
        self.executions = folder / "executions.jsonl"
        self.servers: list[Server] = []
        self.workers: list[Worker] = []
        self.envoy: Envoy | None = None

    def server(self, name: str, url: str = "", program: Path | None = None, **settings: str) -> Server:
        """Another server, not started; `url` where it reaches the database by another way."""
        short = {"lease_s": str(LEASE_S), "reconnect_grace_s": "1", "pool_size": "4", "proxy_token": TOKEN}
        # CRASH_OWNER_PATH=false runs all of it on the locked path alone.
        short["owner_path"] = os.environ.get("CRASH_OWNER_PATH", "true")
        found = Server(name, url or self.url, self.folder, program, **{**short, **settings})
        self.servers.append(found)
        return found

    def proxy(self) -> Envoy:
        """Envoy over all servers there are, not started."""
        self.envoy = Envoy(self.servers, self.folder, TOKEN)
        return self.envoy

    def worker(self, name: str, target: str, **more: str) -> Worker:
        """Another worker, not started."""
        found = Worker(name, target, self.executions, self.folder, **more)
        self.workers.append(found)
        return found

    @property
    def children(self) -> list[Child]:
        """All processes, in the order in which they are started."""
        return [self.postgres, *self.servers, *([self.envoy] if self.envoy else []), *self.workers]

    async def heal(self) -> None:
        """Start what is dead, as a supervisor would, and wait until all are ready."""
        first, *others = self.children
        await first.revive()
        await asyncio.gather(*(child.revive() for child in others))

    async def stop(self) -> None:
        """End all but PostgreSQL."""
        for child in reversed(self.children[1:]):
            await child.kill()

    async def drain(self, timeout_s: float = DRAIN_S) -> None:
        """Wait until no run and no task is open, and none due to be looked at, or the time has passed: what is left
        then is the checker's."""
        end = time.monotonic() + timeout_s
        quiet = 0
        connection = await asyncpg.connect(self.url)
        try:
            # Twice, with a pause: a call that hung in a stopped server may still be on its way.
            while quiet < 2 and time.monotonic() < end:
                quiet = quiet + 1 if await connection.fetchval(_OPEN) == 0 else 0
                await asyncio.sleep(0.2)
        finally:
            await connection.close()

    @contextlib.asynccontextmanager
    async def scenario(
        self,
        name: str,
        seed: int,
        rows: list[Row],
        clients: int = 8,
        kinds: dict[str, int] | None = None,
        joiners: int = 0,
        pause_s: float = 0.04,
    ) -> AsyncIterator[Scenario]:
        """Load while the block runs; then drain, check, note the counts, and fail on any fault."""
        started = time.monotonic()
        await self.heal()
        since_us = await checker.now_us(self.url)
        history = History(self.folder / f"{name.replace(' ', '-')}-{seed}-{since_us}.jsonl")
        assert self.envoy is not None
        targets = {"grpc": self.envoy.target} | {server.name: server.target for server in self.servers}
        async with doors_to(self.envoy.url, targets) as doors, contextlib.aclosing(history):
            load = Load(history, doors, seed, clients, pause_s, joiners=joiners)
            if kinds is not None:
                load.kinds = kinds
            scenario = Scenario(self, load, history)
            load.start()
            try:
                await load.acknowledged(10)
                yield scenario
            finally:
                await load.finish()
            await self.postgres.revive()
            # What else is dead starts while the rest goes on; the next scenario waits for it.
            for child in self.children:
                if not child.alive:
                    await child.launch()
            await self.drain()
            ops = read(history.path)
            replayed = await replay(doors, ops, random.Random(seed))
        verdict = await checker.check(self.url, ops, self.executions, since_us)
        verdict.duplicates += replayed
        rows.append(Row.of(name, scenario.faults, verdict, dict(history.errors), time.monotonic() - started))
        assert not verdict.faults, await self._report(verdict, history)

    async def _report(self, verdict: Verdict, history: History) -> str:
        faults = verdict.faults
        shown = "\n".join(faults[:20] + ([f"... and {len(faults) - 20} more"] if len(faults) > 20 else []))
        dump = history.path.with_suffix(".dump")
        dump.write_text(await self._dump([*verdict.gaps, *verdict.duplicates, *verdict.others, *verdict.unfinished]))
        return f"{len(faults)} faults (history in {history.path}, rows in {dump}):\n{shown}"

    async def _dump(self, texts: list[str]) -> str:
        """The rows of the first runs and tasks that the faults name."""
        named = list(dict.fromkeys(uuid for text in texts for uuid in re.findall(r"[0-9a-f-]{36}", text)))[:6]
        lines: list[str] = []
        connection = await asyncpg.connect(self.url)
        try:
            for uuid in named:
                found = await connection.fetchval("SELECT run_id::text FROM task WHERE id = $1::text::uuid", uuid)
                lines.append(f"-- {uuid}")
                for statement in _DUMPS:
                    lines += [str(dict(row)) for row in await connection.fetch(statement, found or uuid)]
        finally:
            await connection.close()
        return "\n".join(lines)


class Scenario:
    """A scenario under way.

    Attributes:
        faults: How many faults were injected.
    """

    def __init__(self, cluster: Cluster, load: Load, history: History) -> None:
        self.cluster = cluster
        self.load = load
        self.history = history
        self.faults = 0
        self._rates: dict[str, float] = {}

    async def kill(self, child: Child) -> None:
        """kill -9."""
        self.note(f"kill -9 {child.name}")
        await child.kill()

    def note(self, what: str) -> None:
        """Count a fault."""
        self.faults += 1
        self.history.fault(what)

    async def steady(self, seconds: float = 1.0) -> None:
        """Let the load run, and note its rate by door, for `goes_on` to compare with."""
        clock = asyncio.get_running_loop().time
        since = clock()
        await asyncio.sleep(seconds)
        done = Counter(door for at, door in self.load.ok_at if at >= since)
        self._rates = {door: count / seconds for door, count in done.items()}

    async def goes_on(self, door: str, seconds: float) -> None:
        """Watch for so long that the server behind a door is never without an answer for a second, and keeps a good
        part of its rate."""
        clock = asyncio.get_running_loop().time
        since = clock()
        await asyncio.sleep(seconds)
        done = [at for at, each in self.load.ok_at if each == door and at >= since]
        pauses = [late - early for early, late in itertools.pairwise([since, *done, since + seconds])]
        assert max(pauses) < LONGEST_PAUSE_S, f"{door} was silent for {max(pauses):.2f} s"
        rate, before = len(done) / seconds, self._rates.get(door, 0.0)
        assert rate > before * LEAST_SHARE, f"{door} fell from {before:.1f} to {rate:.1f} operations a second"
