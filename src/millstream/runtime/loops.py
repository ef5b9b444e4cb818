"""The background loops: timers, the lease reaper, renewals, the safety poll, retention.

Each runs in every server; what they find is judged again under locks, so it does not matter who finds it first.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from millstream.application.engine.commands import Command, Due, Expire, ForceRun, StartTooLate
from millstream.application.engine.engine import Engine
from millstream.application.engine.waiting import Ended
from millstream.domain.errors import MillstreamError
from millstream.runtime.peers import SILENT_US, Peers

log = logging.getLogger(__name__)

POLL_S = 1.0
SWEEP_S = 60.0
BATCH = 500
DAY_US = 86_400_000_000


class LoopStore(Protocol):
    """What the loops ask; see store.maintenance."""

    async def now_us(self) -> int: ...
    async def due(self, now_us: int, limit: int) -> list[str]: ...
    async def next_due_us(self, now_us: int) -> int: ...
    async def expired(self, now_us: int, limit: int) -> list[str]: ...
    async def too_late(self, now_us: int, limit: int) -> list[str]: ...
    async def overdue_cancels(self, now_us: int, limit: int) -> list[str]: ...
    async def renew(self, lane: str, task_ids: Sequence[str], until_us: int) -> set[str]: ...
    async def delivered(self, lane: str, task_ids: Sequence[str]) -> None: ...
    async def sweep(self, now_us: int, silent_us: int) -> None: ...
    async def drop_runs(self, ended_before_us: int, now_us: int, limit: int) -> int: ...
    async def drop_artifacts(self, created_before_us: int, limit: int) -> int: ...


class RunReads(Protocol):
    """Reads runs; see store.runs."""

    async def ended(self, run_ids: list[str]) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class Retention:
    """How long finished runs and artifacts are kept, days."""

    run_days: float
    artifact_days: float


class Loops:
    """The loops of one server."""

    def __init__(self, engine: Engine, store: LoopStore, reads: RunReads, peers: Peers, retention: Retention) -> None:
        self._engine = engine
        self._store = store
        self._reads = reads
        self._peers = peers
        self._retention = retention
        self._next_due_us = 0
        self._due_changed = asyncio.Event()
        self._seen_waiting: set[str] = set()
        engine.scheduled = self._scheduled

    async def run(self) -> None:
        """Run all loops until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._timers(), name="timers")
            group.create_task(_every(POLL_S, self.poll), name="safety poll")
            group.create_task(_every(self._engine.limits.lease_us / 3e6, self.renew), name="renewals")
            group.create_task(_every(SWEEP_S, self.sweep), name="sweep")

    def _scheduled(self, at_us: int) -> None:
        if self._next_due_us == 0 or at_us < self._next_due_us:
            self._next_due_us = at_us
            self._due_changed.set()

    async def _timers(self) -> None:
        """Make scheduled tasks ready at their time; those of other servers are found by the safety poll."""
        while True:
            self._due_changed.clear()
            wait_s = None
            if self._next_due_us:
                wait_s = max(self._next_due_us - self._engine.clock.now_us(), 0) / 1e6
            if wait_s is None or wait_s > 0:
                try:
                    async with asyncio.timeout(wait_s):
                        await self._due_changed.wait()
                    continue
                except TimeoutError:
                    pass
            self._next_due_us = 0
            await _guarded(self._fire_due)

    async def _fire_due(self) -> None:
        now_us = self._engine.clock.now_us()
        while ids := await self._store.due(now_us, BATCH):
            await self._engine.submit_all([Due(task_ids=(task_id,)) for task_id in ids], urgent=True)
            if len(ids) < BATCH:
                break
        next_us = await self._store.next_due_us(now_us)
        if next_us:
            self._scheduled(next_us)

    async def poll(self) -> None:
        """What no wake-up told: due timers, lost leases, overdue cancellations, ended runs, waiting work."""
        engine, now_us = self._engine, await self._store.now_us()
        engine.clock.set(now_us)
        await self._peers.refresh()
        await self._fire_due()
        await self._reap(now_us)
        await self._poll_waiters()
        engine.dispatcher.mark(engine.dispatcher.served)

    async def _reap(self, now_us: int) -> None:
        commands: list[Command] = []
        commands += [Expire(task_ids=(found,), locked=True) for found in await self._store.expired(now_us, BATCH)]
        commands += [
            StartTooLate(task_ids=(found,), locked=True) for found in await self._store.too_late(now_us, BATCH)
        ]
        commands += [
            ForceRun(run_id=found, open_tasks=True, locked=True)
            for found in await self._store.overdue_cancels(now_us, BATCH)
        ]
        if commands:
            await self._engine.submit_all(commands, urgent=True)

    async def _poll_waiters(self) -> None:
        """Only runs already waited for at the last poll: a wake-up has had its chance."""
        waiters = self._engine.waiters
        waiting = waiters.runs
        old = waiting & self._seen_waiting
        self._seen_waiting = waiting
        if old:
            for run_id in await self._reads.ended(sorted(old)):
                waiters.ended(run_id, Ended())

    async def renew(self) -> None:
        """Renew the leases of connected workers, and tell those that lost theirs."""
        engine = self._engine
        dispatcher = engine.dispatcher
        ids = dispatcher.renewable()
        if not ids:
            return
        until_us = engine.clock.now_us() + engine.limits.lease_us
        delivered = dispatcher.delivered()
        if delivered:
            await self._store.delivered(engine.lane_id, delivered)
        attempts = dispatcher.attempts()
        kept = await self._store.renew(engine.lane_id, ids, until_us)
        for task_id in set(ids) - kept:
            dispatcher.lost(task_id, attempts[task_id])

    async def sweep(self) -> None:
        """Drop what its retention has passed, in small steps."""
        store, now_us = self._store, await self._store.now_us()
        await store.sweep(now_us, SILENT_US * 4)
        if self._retention.run_days:
            before_us = now_us - int(self._retention.run_days * DAY_US)
            while await store.drop_runs(before_us, now_us, BATCH) == BATCH:
                await asyncio.sleep(0.05)
        if self._retention.artifact_days:
            before_us = now_us - int(self._retention.artifact_days * DAY_US)
            while await store.drop_artifacts(before_us, BATCH) >= BATCH:
                await asyncio.sleep(0.05)


async def _every(period_s: float, step: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(period_s)
        await _guarded(step)


async def _guarded(step: Callable[[], Awaitable[None]]) -> None:
    """A loop outlives its failures; the next round finds what this one left."""
    try:
        await step()
    except MillstreamError as error:
        log.warning("a background step failed: %s", error.message)
    except Exception:
        log.exception("a background step failed")
