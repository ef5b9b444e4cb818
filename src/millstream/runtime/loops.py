"""The background loops: timers, the lease reaper, renewals, the safety poll, retention.

Each runs in every server; what they find is judged again under locks, so it does not matter who finds it first.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

from millstream.application.ports import ConnectedWorker, Upkeep
from millstream.domain.errors import MillstreamError
from millstream.domain.gates import Buffer
from millstream.runtime.peers import SILENT_US, Peers

log = logging.getLogger(__name__)

POLL_S = 1.0
SWEEP_S = 60.0
BATCH = 500
KEYS_BATCH = 5000
CHUNKS_BATCH = 64
"""Of 256 KiB each: 16 MiB a step."""
STEPS_MOST = 200
DAY_US = 86_400_000_000
ATTEND_US = 1_000_000
ENDS_KEPT_US = 120_000_000
"""How long it is kept what ended; the last minute is told."""
FEED_MARGIN_US = 300_000_000
"""The feed is kept so much longer than a watch may be resumed from it: a write is committed a moment after its time."""


class LoopStore(Protocol):
    """What the loops ask; see store.maintenance."""

    async def now_us(self) -> int: ...
    async def due(self, now_us: int, limit: int) -> list[str]: ...
    async def next_due_us(self, now_us: int) -> int: ...
    async def expired(self, now_us: int, limit: int) -> list[str]: ...
    async def too_late(self, now_us: int, limit: int) -> list[str]: ...
    async def overdue_cancels(self, now_us: int, limit: int) -> list[str]: ...
    async def overtime(self, now_us: int, limit: int) -> list[str]: ...
    async def next_overtime_us(self, now_us: int) -> int: ...
    async def due_runs(self, now_us: int, limit: int) -> list[str]: ...
    async def renew(self, lane: str, task_ids: Sequence[str], until_us: int) -> set[str]: ...
    async def delivered(self, lane: str, task_ids: Sequence[str]) -> None: ...
    async def drop_lanes(self, silent_since_us: int) -> None: ...
    async def drop_keys(self, now_us: int, limit: int) -> int: ...
    async def drop_lines(self, now_us: int, limit: int) -> int: ...
    async def drop_runs(self, ended_before_us: int, now_us: int, limit: int) -> int: ...
    async def drop_artifacts(self, now_us: int, default_days: float, limit: int) -> int: ...


class BufferStore(Protocol):
    """What waits in gates; see store.buffers."""

    async def due(self, now_us: int, limit: int) -> Sequence[Buffer]: ...
    async def next_due_us(self, now_us: int) -> int: ...
    async def full(self, most: int) -> Set[tuple[str, str]]: ...


class WorkerStore(Protocol):
    """The workers of servers; see store.workers."""

    async def heard(self, lane: str, workers: Sequence[ConnectedWorker]) -> None: ...
    async def drop(self, before_us: int) -> None: ...


class PayloadStore(Protocol):
    """Payloads outside; see store.payloads."""

    async def release(self, untouched_since_us: int, now_us: int, limit: int) -> int: ...
    async def sweep(self, silent_since_us: int, limit: int) -> int: ...


class LogPartitions(Protocol):
    """Where what tasks log is kept; see store.log_partitions."""

    async def make(self, today: int) -> None: ...
    async def drop(self, before_day: int, limit: int) -> int: ...


class FeedStore(Protocol):
    """What watches resume from; see store.feed."""

    async def drop(self, before_us: int, limit: int) -> int: ...


class ThroughputStore(Protocol):
    """What ended lately; see store.throughput."""

    async def drop(self, before_us: int, limit: int) -> int: ...


class RunReads(Protocol):
    """Reads runs; see store.runs."""

    async def ended(self, run_ids: list[str]) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class Retention:
    """How long finished runs and artifacts are kept, days."""

    run_days: float
    artifact_days: float
    payload_grace_s: float = DAY_US / 1e6
    """How long a payload that no artifact refers to is kept after it was last uploaded or referred to."""
    upload_silent_s: float = 3600.0
    """After how long without a new piece an upload is given up."""
    watch_resume_s: float = 3600.0
    """How long what watches resume from is kept, and a margin."""
    worker_s: float = DAY_US / 1e6
    """How long a worker that went is listed."""
    log_days: int = 7
    """How long what tasks log is kept."""


class Loops:
    """The loops of one server."""

    def __init__(
        self,
        upkeep: Upkeep,
        store: LoopStore,
        buffers: BufferStore,
        payloads: PayloadStore,
        feed: FeedStore,
        workers: WorkerStore,
        logs: LogPartitions,
        throughput: ThroughputStore,
        reads: RunReads,
        peers: Peers,
        retention: Retention,
    ) -> None:
        self._upkeep = upkeep
        self._store = store
        self._buffers = buffers
        self._payloads = payloads
        self._feed = feed
        self._workers = workers
        self._logs = logs
        self._throughput = throughput
        self._reads = reads
        self._peers = peers
        self._retention = retention
        self._next_due_us = 0
        self._due_changed = asyncio.Event()

    async def run(self) -> None:
        """Run all loops until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._timers(), name="timers")
            group.create_task(_every(POLL_S, self.poll), name="safety poll")
            group.create_task(_every(self._upkeep.lease_us / 3e6, self.renew), name="renewals")
            group.create_task(_every(SWEEP_S, self.sweep), name="sweep")

    def scheduled(self, at_us: int) -> None:
        """A task, a gate, a time-out or the end of a run's time is due at this time."""
        if self._next_due_us == 0 or at_us < self._next_due_us:
            self._next_due_us = at_us
            self._due_changed.set()

    async def _timers(self) -> None:
        """Make scheduled tasks ready, end what waits in vain, and open gates, at their time; those of other servers are
        found by the safety poll."""
        await _guarded(self._fire_due)
        while True:
            self._due_changed.clear()
            wait_s = None
            if self._next_due_us:
                wait_s = max(self._next_due_us - self._upkeep.now_us(), 0) / 1e6
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
        now_us = self._upkeep.now_us()
        while ids := await self._store.due(now_us, BATCH):
            if not await self._upkeep.make_due(ids) or len(ids) < BATCH:
                break
        while ids := await self._store.too_late(now_us, BATCH):
            if not await self._upkeep.start_too_late(ids) or len(ids) < BATCH:
                break
        while found := await self._buffers.due(now_us, BATCH):
            if not await self._upkeep.open_gates(found) or len(found) < BATCH:
                break
        while ids := await self._store.overtime(now_us, BATCH):
            if not await self._upkeep.time_out(ids) or len(ids) < BATCH:
                break
        store = self._store
        for ask in (store.next_due_us, self._buffers.next_due_us, store.next_overtime_us):
            if next_us := await ask(now_us):
                self.scheduled(next_us)

    async def poll(self) -> None:
        """What no wake-up told: due timers, lost leases, overdue cancellations, what ended, waiting work."""
        upkeep, store, now_us = self._upkeep, self._store, await self._store.now_us()
        upkeep.set_clock(now_us)
        await self._peers.refresh()
        await self._fire_due()
        await upkeep.reap(await store.expired(now_us, BATCH), await store.overdue_cancels(now_us, BATCH))
        # Of those just marked their own servers take care, which need not read them.
        upkeep.attend(await store.due_runs(now_us - ATTEND_US, BATCH))
        awaited = upkeep.long_awaited()
        if awaited:
            for run_id in await self._reads.ended(awaited):
                upkeep.ended(run_id)
        await upkeep.look_for_work()

    async def renew(self) -> None:
        """Renew the leases of connected workers, tell those that lost theirs, and note who is alive."""
        upkeep = self._upkeep
        leases, delivered = upkeep.leases()
        if delivered:
            await self._store.delivered(upkeep.lane_id, delivered)
        if leases:
            kept = await self._store.renew(upkeep.lane_id, [*leases], upkeep.now_us() + upkeep.lease_us)
            for task_id in leases.keys() - kept:
                upkeep.lost(task_id, leases[task_id])
        if heard := upkeep.signs_of_life():
            await self._workers.heard(upkeep.lane_id, heard)

    async def sweep(self) -> None:
        """Drop what its retention has passed, in small steps."""
        store, now_us = self._store, await self._store.now_us()
        await store.drop_lanes(now_us - SILENT_US * 4)
        await self._workers.drop(now_us - int(self._retention.worker_s * 1e6))
        self._upkeep.gates_full(await self._buffers.full(self._upkeep.max_gates))
        await _in_steps(lambda: store.drop_keys(now_us, KEYS_BATCH), KEYS_BATCH)
        await _in_steps(lambda: store.drop_lines(now_us, BATCH), BATCH)
        watched_us = now_us - int(self._retention.watch_resume_s * 1e6) - FEED_MARGIN_US
        await _in_steps(lambda: self._feed.drop(watched_us, KEYS_BATCH), KEYS_BATCH)
        await _in_steps(lambda: self._throughput.drop(now_us - ENDS_KEPT_US, KEYS_BATCH), KEYS_BATCH)
        if self._retention.run_days:
            before_us = now_us - int(self._retention.run_days * DAY_US)
            await _in_steps(lambda: store.drop_runs(before_us, now_us, BATCH), BATCH)
        await _in_steps(lambda: store.drop_artifacts(now_us, self._retention.artifact_days, BATCH), BATCH)
        await self._sweep_payloads(now_us)
        await self.make_partitions()
        await _in_steps(lambda: self._logs.drop(now_us // DAY_US - self._retention.log_days, BATCH), BATCH)

    async def make_partitions(self) -> None:
        """Make room for what tasks log today, and in the days ahead."""
        await self._logs.make(await self._store.now_us() // DAY_US)

    async def _sweep_payloads(self, now_us: int) -> None:
        """Drop payloads that no artifact refers to any more, and the chunks of uploads that broke off."""
        payloads, retention = self._payloads, self._retention
        unused_us = now_us - int(retention.payload_grace_s * 1e6)
        silent_us = now_us - int(retention.upload_silent_s * 1e6)
        await _in_steps(lambda: payloads.release(unused_us, now_us, BATCH), BATCH)
        await _in_steps(lambda: payloads.sweep(silent_us, CHUNKS_BATCH), 1)


async def _every(period_s: float, step: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(period_s)
        await _guarded(step)


async def _in_steps(drop: Callable[[], Awaitable[int]], batch: int) -> None:
    """Drop batch after batch, with a rest for others in between; what is left waits for the next sweep."""
    for _ in range(STEPS_MOST):
        if await drop() < batch:
            return
        await asyncio.sleep(0.05)


async def _guarded(step: Callable[[], Awaitable[None]]) -> None:
    """A loop outlives its failures; the next round finds what this one left."""
    try:
        await step()
    except MillstreamError as error:
        log.warning("a background step failed: %s", error.message)
    except Exception:
        log.exception("a background step failed")
