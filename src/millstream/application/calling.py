"""Agents that this server calls itself: each has a session at the dispatcher, as a connected worker has.

All servers serve all of them. What a server holds when it is killed is taken back as from a worker that is lost.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from millstream.application.calls import DRAINED, Calls, Running
from millstream.application.engine.engine import Engine
from millstream.application.engine.pool import Pool
from millstream.application.engine.sessions import Session
from millstream.application.ids import new_id
from millstream.application.views.leases import Cancellation, Lease
from millstream.domain.agents import Agent

log = logging.getLogger(__name__)

SERVED_DELETED_US: Final = 86_400_000_000
"""How long the tasks of a deleted agent are still worked off."""
DELETED_MOST: Final = 10_000
LAST_S: Final = 8.0
"""How long calls that are ended may take for it: the agents are told, and the leases given back."""


class CalledAgents(Protocol):
    """Reads the agents that servers call; see store.registry."""

    async def called(
        self, tenant: str, deleted_since_us: int, limit: int, known: Mapping[str, Agent]
    ) -> Sequence[Agent]: ...
    async def called_stamp(self) -> tuple[int, int, int]: ...


class CallPeers(Protocol):
    """Other servers."""

    def registry_moved(self, tenant: str) -> None:
        """Agents of a tenant changed."""

    def interest_changed(self) -> None:
        """What this server serves changed."""


@dataclass(slots=True, eq=False)
class Serving:
    """An agent that is served here, with the calls that are under way."""

    agent: Agent
    session: Session
    retired: bool = False
    running: dict[tuple[str, int], Running] = field(default_factory=dict)


class Calling:
    """Serves the agents that servers call.

    Args:
        name: Of the worker that this server is, where workers are shown.
        drain_s: How long calls under way may take when the server stops.
    """

    def __init__(
        self, engine: Engine, reads: CalledAgents, calls: Calls, peers: CallPeers, name: str, pool: Pool,
        drain_s: float,
    ) -> None:  # fmt: skip
        self._engine = engine
        self._reads = reads
        self._calls = calls
        self._peers = peers
        self._name = name
        self._pool = pool
        self._drain_s = drain_s
        self._drained_at: float | None = None
        self._serving: dict[tuple[str, str], Serving] = {}
        self._retired: set[Serving] = set()
        self._changed = asyncio.Event()
        self._moved: set[str] = set()
        self._stamp = (0, 0, 0)
        self._refreshing = asyncio.Lock()

    async def refresh(self, tenant: str = "") -> None:
        """Look which agents there are, of a tenant or of all. Raises Unavailable."""
        async with self._refreshing:
            known = {each.agent.id: each.agent for each in self._serving.values()}
            since_us = self._engine.clock.now_us() - SERVED_DELETED_US
            found = await self._reads.called(tenant, since_us, DELETED_MOST, known)
            # Of one name the living is served, else the one that was deleted last.
            wanted: dict[tuple[str, str], Agent] = {}
            for agent in found:
                wanted.setdefault((agent.tenant, agent.spec.name), agent)
            before = {key for key in self._serving if tenant in ("", key[0])}
            changed = [self._serve(key, agent) for key, agent in wanted.items()]
            for key in before - wanted.keys():
                self._retire(self._serving.pop(key))
        if any(changed) or before - wanted.keys():
            self._peers.interest_changed()

    async def refresh_moved(self) -> None:
        """Look again where agents are others than before: a wake-up may have been lost. Raises Unavailable."""
        stamp = await self._reads.called_stamp()
        if stamp != self._stamp:
            await self.refresh()
            self._stamp = stamp

    async def changed_here(self, tenant: str) -> None:
        """An agent was registered, changed or deleted through this server: serve it, and tell the others."""
        self._peers.registry_moved(tenant)
        await self.refresh(tenant)

    def serves(self, agent: Agent) -> bool:
        """Whether an agent of this name is served here."""
        return (agent.tenant, agent.spec.name) in self._serving

    def look_again(self, tenant: str) -> None:
        """Another server registered, changed or deleted an agent."""
        self._moved.add(tenant)
        self._changed.set()

    async def run(self) -> None:
        """Look whenever another server tells so, until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            moved, self._moved = self._moved, set()
            try:
                for tenant in moved:
                    await self.refresh(tenant)
            except Exception as error:
                log.warning("the agents to call could not be read; the next poll will: %s", error)

    async def close(self) -> None:
        """Let calls under way end in their time, give back what is left, and serve nothing any more."""
        self._drain()
        serving = [*self._serving.values(), *self._retired]
        running = [each for one in serving for each in one.running.values()]
        tasks = {each.task for each in running if each.task is not None}
        if tasks:
            left_s = (self._drained_at or 0.0) + self._drain_s - asyncio.get_running_loop().time()
            await asyncio.wait(tasks, timeout=max(0.0, left_s))
            for each in running:
                each.stop(DRAINED)
            _, left = await asyncio.wait(tasks, timeout=LAST_S)
            for task in left:
                task.cancel()
        for one in serving:
            self._engine.disconnect(one.session)
        await self._calls.close()

    def _drain(self) -> None:
        if self._drained_at is None:
            self._drained_at = asyncio.get_running_loop().time()
        for one in self._serving.values():
            one.session.draining = True

    # Serving.

    def _serve(self, key: tuple[str, str], agent: Agent) -> bool:
        """Serve an agent as it is now; whether what is served changed."""
        before = self._serving.get(key)
        if before is not None and before.agent is agent:
            return False
        keys = {(agent.tenant, agent.spec.queue, agent.kind)}
        if before is not None:
            if keys <= set(before.session.keys):
                before.agent = agent
                return False
            # In the queue before there may be tasks left.
            keys |= set(before.session.keys)
            self._retire(before)
        serving = Serving(agent, self._session(agent, tuple(sorted(keys))))
        serving.session.push = self._pushing(serving)
        self._serving[key] = serving
        self._engine.connect(serving.session)
        return True

    def _session(self, agent: Agent, keys: tuple[tuple[str, str, str], ...]) -> Session:
        worker_id = f"server.{self._engine.lane_id}.{agent.spec.name}"
        now_us = self._engine.clock.now_us()
        # No slots of its own to be listed, and no signs of life to be stored: it lives as long as its server does.
        return Session(
            new_id(), agent.tenant, worker_id, self._name, keys, lambda *_: None, self._pool.most_of_tenant,
            connected_us=now_us, draining=self._drained_at is not None, heard_us=now_us, noted=(now_us, 0),
            queues=tuple(sorted({key[1] for key in keys})), pool=self._pool,
        )  # fmt: skip

    def _retire(self, serving: Serving) -> None:
        """Give it no more; what is under way ends."""
        serving.retired = serving.session.draining = True
        self._retired.add(serving)
        self._end_retired(serving)

    def _end_retired(self, serving: Serving) -> None:
        if serving.retired and not serving.running:
            self._retired.discard(serving)
            self._engine.disconnect(serving.session)
            self._peers.interest_changed()

    def _pushing(self, serving: Serving) -> Callable[[list[Lease], list[Cancellation], bool], None]:
        def push(leases: list[Lease], cancellations: list[Cancellation], drain: bool) -> None:
            for lease in leases:
                self._begin(serving, lease)
            for each in cancellations:
                running = serving.running.get((each.task_id, each.attempt))
                if running is not None:
                    running.stop(each.reason)
            if drain:
                self._drain()

        return push

    def _begin(self, serving: Serving, lease: Lease) -> None:
        # From here on to lose this server burns an attempt: the agent may have been called.
        serving.session.delivered.add(lease.task.id)
        running = Running(lease)
        serving.running[lease.task.id, lease.attempt] = running
        running.task = asyncio.get_running_loop().create_task(self._work(serving, running), name="call of an agent")

    async def _work(self, serving: Serving, running: Running) -> None:
        lease, session = running.lease, serving.session
        try:
            await self._calls.work(serving.agent, running, session.leases)
        except Exception:
            log.exception("a call could not be reported; its lease runs out")
            # Not renewed any more, so that another server goes on.
            self._engine.dispatcher.forget(lease.task.id)
        finally:
            del serving.running[lease.task.id, lease.attempt]
            self._engine.dispatcher.add_credit(session, 1)
            self._end_retired(serving)
