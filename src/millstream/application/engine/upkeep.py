"""What the runtime's loops do to the engine."""

import asyncio
from collections.abc import Mapping, Sequence, Set
from typing import Protocol

from millstream.application.catalog import Catalogs
from millstream.application.engine.commands import Command, Due, Expire, ForceRun, StartTooLate
from millstream.application.engine.engine import Engine
from millstream.application.engine.gate_due import GateDue
from millstream.application.engine.run_operations import TimeOutRun
from millstream.application.engine.waiting import Ended
from millstream.application.feed import Feed
from millstream.application.ids import new_id
from millstream.application.pauses import Pauses
from millstream.application.ports import ConnectedWorker
from millstream.application.run_feed import RunFeed
from millstream.domain.gates import Buffer

PATIENCE_S = 0.5


class AgentsCalled(Protocol):
    """The agents that servers call; see application.calling."""

    async def refresh_moved(self) -> None: ...


class Upkeep:
    """The engine as the loops see it; see ports.Upkeep."""

    def __init__(
        self,
        engine: Engine,
        catalogs: Catalogs,
        pauses: Pauses,
        feed: Feed,
        run_feed: RunFeed,
        calling: "AgentsCalled",
    ) -> None:
        self._engine = engine
        self._run_feed = run_feed
        self._feed = feed
        self._catalogs = catalogs
        self._pauses = pauses
        self._calling = calling
        self.lane_id = engine.lane_id
        self.lease_us = engine.limits.lease_us
        self._asked: set[str] = set()
        self._under_way: set[str] = set()

    def now_us(self) -> int:
        """The database's time, carried on by this process's clock."""
        return self._engine.clock.now_us()

    def set_clock(self, now_us: int) -> None:
        """The database's time was just read."""
        self._engine.clock.set(now_us)

    async def make_due(self, task_ids: Sequence[str]) -> bool:
        """Make scheduled tasks ready; False where all of them were under way already."""
        return await self._submit({f"due {task_id}": Due(task_ids=(task_id,)) for task_id in task_ids})

    async def open_gates(self, due: Sequence[Buffer]) -> bool:
        """Hand over batches whose time has come, give up what waited too long; False where all were under way."""
        commands: dict[str, Command] = {}
        for buffer in due:
            start, version = await self._catalogs.gate(buffer.tenant, buffer.agent, buffer.sub)
            commands[f"gate {buffer.id}"] = GateDue(
                run_id=buffer.run_id,
                run_ids=sorted({part.run_id for part in buffer.parts}) if start is None or not buffer.collects else (),
                gated=True,
                locked=True,
                registry=(buffer.tenant, version),
                buffer_id=buffer.id,
                start=start,
                ids=(new_id(), new_id()),
            )
        return await self._submit(commands)

    def gates_full(self, full: Set[tuple[str, str]]) -> None:
        """Gates over all correlations in which no more keys may wait."""
        self._engine.gates_full(full)

    @property
    def max_gates(self) -> int:
        """Keys that may wait in a gate."""
        return self._engine.limits.max_gates

    async def start_too_late(self, task_ids: Sequence[str]) -> bool:
        """Fail what no worker took in time, and reject promises that nobody settled; False where all were under way."""
        found = {f"start {task_id}": StartTooLate(task_ids=(task_id,), locked=True) for task_id in task_ids}
        return await self._submit(found)

    async def reap(self, expired: Sequence[str], overdue_runs: Sequence[str]) -> None:
        """Reclaim leases, end cancelled runs; each is judged again under its lock."""
        commands: dict[str, Command] = {}
        for task_id in expired:
            commands[f"expire {task_id}"] = Expire(task_ids=(task_id,), locked=True)
        for run_id in overdue_runs:
            commands[f"force {run_id}"] = ForceRun(run_id=run_id, open_tasks=True, locked=True)
        await self._submit(commands)

    async def time_out(self, run_ids: Sequence[str]) -> bool:
        """End runs whose time is over; False where all of them were under way already."""
        return await self._submit(
            {f"time out {each}": TimeOutRun(run_id=each, open_tasks=True, locked=True) for each in run_ids}
        )

    async def _submit(self, commands: Mapping[str, Command]) -> bool:
        """Submit what is not under way already, and wait for it, but not for long: a run that another server holds may
        not stop the timers and leases of all others."""
        futures = []
        for name, command in commands.items():
            if name not in self._under_way:
                self._under_way.add(name)
                future = self._engine.queue.put((command,), urgent=True)
                future.add_done_callback(lambda _, name=name: self._under_way.discard(name))  # type: ignore[misc]
                futures.append(future)
        if futures:
            await asyncio.wait(futures, timeout=PATIENCE_S)
        return bool(futures)

    def attend(self, run_ids: Sequence[str]) -> None:
        """Look at runs that no server has looked at yet."""
        if run_ids:
            self._engine.attend({*run_ids})

    def long_awaited(self) -> list[str]:
        """Runs waited for here since the last call or longer: a wake-up has had its chance."""
        waiting = self._engine.waiters.runs
        found, self._asked = waiting & self._asked, waiting
        return sorted(found)

    def ended(self, run_id: str) -> None:
        """Wake those who wait for a run."""
        self._engine.waiters.ended(run_id, Ended())

    async def look_for_work(self) -> None:
        """Find waiting work and artifacts that no wake-up told of, what was paused or resumed, and agents to call."""
        self._feed.look()
        await self._run_feed.poll()
        await self._pauses.refresh()
        await self._calling.refresh_moved()
        await self._engine.look_for_work()

    def leases(self) -> tuple[dict[str, int], list[str]]:
        """Leases this server renews, attempt by task, and the tasks whose delivery is acknowledged."""
        dispatcher = self._engine.dispatcher
        return dispatcher.renewable(), dispatcher.delivered()

    def signs_of_life(self) -> list[ConnectedWorker]:
        """The workers of this server that were heard of since the last call."""
        return self._engine.dispatcher.signs_of_life()

    def lost(self, task_id: str, attempt: int) -> None:
        """A lease was reclaimed: tell its worker."""
        self._engine.dispatcher.lost(task_id, attempt)
