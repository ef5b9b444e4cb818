"""How the service is: ready or not, and its gauges."""

from collections.abc import Callable, Sequence
from typing import Protocol

from millstream.application.engine.engine import Engine
from millstream.application.log_levels import Levels, LogLevels
from millstream.application.readiness import Check, Readiness
from millstream.application.views.idempotency import Key
from millstream.domain.errors import MillstreamError
from millstream.domain.principals import Principal


class SystemStore(Protocol):
    """What is asked of the database; see store.maintenance."""

    async def stats(self) -> tuple[int, int]: ...
    def connections(self) -> tuple[int, int]: ...


class LogQueue(Protocol):
    """Lines that wait to be stored; see application.log_intake."""

    @property
    def bytes(self) -> int: ...


class System:
    """The use cases of operations.

    Args:
        set_gauge: Takes a gauge's name and value; see adapters.metrics.

    Attributes:
        readiness: Judges whether this server can serve.
        levels: From which level on the servers log.
    """

    def __init__(
        self,
        engine: Engine,
        store: SystemStore,
        logs: LogQueue,
        readiness: Readiness,
        levels: LogLevels,
        set_gauge: Callable[[str, float], None],
    ) -> None:
        self.readiness = readiness
        self.levels = levels
        self._engine = engine
        self._store = store
        self._logs = logs
        self._set = set_gauge

    async def checks(self) -> Sequence[Check]:
        """What this server needs in order to serve, and whether it has it."""
        return await self.readiness.checks()

    async def log_levels(self) -> Levels:
        """From which level on the servers log."""
        return await self.levels.get()

    async def set_log_level(
        self, principal: Principal, logger: str, level: str, for_us: int, key: Key | None
    ) -> tuple[Levels, bool]:
        """Set it on all servers; see LogLevels.set."""
        return await self.levels.set(principal, logger, level, for_us, key)

    async def gauge(self) -> None:
        """Set the gauges, when somebody asks for them: an idle server does no work for its metrics."""
        engine = self._engine
        dispatcher = engine.dispatcher
        self._set("queue_commands", len(engine.queue))
        self._set("queue_bytes", engine.queue.size_bytes)
        self._set("leases", sum(len(session.leases) for session in dispatcher.sessions.values()))
        self._set("waiters", len(engine.waiters))
        self._set("workers_connected", sum(each.pool is None for each in dispatcher.sessions.values()))
        self._set("worker_slots", sum(each.slots for each in dispatcher.sessions.values() if each.pool is None))
        self._set("log_waiting_bytes", self._logs.bytes)
        connections, idle = self._store.connections()
        self._set("database_connections", connections)
        self._set("database_connections_busy", connections - idle)
        try:
            ready, oldest_us = await self._store.stats()
        except MillstreamError:
            return
        self._set("tasks_ready", ready)
        self._set("oldest_ready_task_seconds", max(engine.clock.now_us() - oldest_us, 0) / 1e6 if oldest_us else 0)
