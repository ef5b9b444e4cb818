"""Other servers: who they are, what they serve, and how they are woken."""

import asyncio
import base64
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from millstream.application.ports import ConnectedWorker
from millstream.application.views.reports import Streamed
from millstream.domain.artifacts import Artifact
from millstream.domain.errors import MillstreamError
from millstream.domain.runs import Run

log = logging.getLogger(__name__)

DispatchKey = tuple[str, str, str]
Message = tuple[str, ...]

SILENT_US = 15_000_000
"""A server not seen for this long is gone."""
SEEN_EVERY_S = 5.0
WATCHES = ("", "watches artifacts")
"""Queue and kind of the interest of a server where a tenant is watched; no task has them."""
WATCHES_RUNS = ("", "watches runs")
"""The same of one where runs of a tenant are watched."""
WATCHES_LOGS = ("", "watches logs")
"""The same of one where logs of a tenant are watched."""


class PeerStore(Protocol):
    """Where servers note that they live; see store.maintenance."""

    async def now_us(self) -> int: ...
    async def see(self, lanes: Sequence[str], server: str, now_us: int) -> None: ...
    async def peers(self, lane: str, since_us: int) -> tuple[list[str], dict[DispatchKey, list[str]]]: ...
    async def interested(self, lane: str, keys: list[DispatchKey]) -> None: ...
    async def leave(self, lanes: Sequence[str]) -> None: ...


class WorkerStore(Protocol):
    """Where servers note their workers; see store.workers."""

    async def connected(
        self, lane: str, workers: Sequence[ConnectedWorker], gone: Sequence[str], now_us: int
    ) -> None: ...
    async def left(self, lane: str, now_us: int) -> None: ...


class Peers:
    """Sends wake-ups to the servers that asked for them.

    Args:
        lane: The lane by which this server is known; `blocking` is the other one that it commits through.

    Attributes:
        send: Sends a message to a lane; see store.wakeups.
        offer: The same for what may be lost.
        served: The dispatch keys that workers connected here serve.
        workers: The workers connected here, by session.
        watched: The tenants that are watched here.
        runs_watched: The tenants in which runs are watched here.
        logs_watched: The tenants in which logs are watched here.
        listed: Told which workers, by session, are noted with all that they say of themselves.
    """

    def __init__(self, lane: str, blocking: str, server: str, store: PeerStore, noted: WorkerStore) -> None:
        self.send: Callable[[str, Message], None] = lambda lane, message: None
        self.offer: Callable[[str, Message], None] = lambda lane, message: None
        self.served: Callable[[], set[DispatchKey]] = set
        self.workers: Callable[[], dict[str, ConnectedWorker]] = dict
        self.watched: Callable[[], set[str]] = set
        self.runs_watched: Callable[[], set[str]] = set
        self.logs_watched: Callable[[], set[str]] = set
        self.listed: Callable[[Iterable[str]], None] = lambda sessions: None
        self._lane = lane
        self._both = (lane, blocking)
        self._server = server
        self._store = store
        self._workers = noted
        self._lanes: list[str] = []
        self._interests: dict[DispatchKey, list[str]] = {}
        self._watching = False
        self._watching_runs = False
        self._noted: set[DispatchKey] = set()
        self._listed: dict[str, bool] = {}
        """The workers that are noted, by session, and whether as draining."""
        self._changed = asyncio.Event()
        self._noticed = False

    def serve(self, key: DispatchKey) -> bool:
        """Whether workers of other servers serve a key."""
        return bool(self._interests.get(key))

    def ready(self, keys: set[DispatchKey]) -> None:
        """Work of these keys waits."""
        if not self._lanes:
            return
        for key in keys:
            for lane in self._interests.get(key, ()):
                self.send(lane, ("ready", *key))

    def stored(self, artifacts: Sequence[Artifact]) -> None:
        """Artifacts were committed: tell the servers where their tenants are watched."""
        if not self._watching:
            return
        for tenant in {artifact.tenant for artifact in artifacts}:
            for lane in self._interests.get((tenant, *WATCHES), ()):
                self.send(lane, ("stored", tenant))

    def recorded(self, runs: Iterable[Run]) -> None:
        """Something happened in these runs: tell the servers where runs of their tenants are watched."""
        if not self._watching_runs:
            return
        for run in runs:
            for lane in self._interests.get((run.tenant, *WATCHES_RUNS), ()):
                self.send(lane, ("event", run.id))

    def streamed(self, tenant: str, run_id: str, streamed: Streamed) -> None:
        """A task streams something: pass it on to the servers where runs of its tenant are watched."""
        if not self._watching_runs:
            return
        for lane in self._interests.get((tenant, *WATCHES_RUNS), ()):
            value = base64.b64encode(streamed.value).decode()
            self.offer(lane, ("stream", run_id, streamed.task_id, str(streamed.attempt), str(streamed.index), value))

    def logged(self, runs: Iterable[tuple[str, str]]) -> None:
        """Tasks of these runs, by tenant, have logged: tell the servers where logs of their tenants are watched."""
        for tenant, run_id in runs:
            for lane in self._interests.get((tenant, *WATCHES_LOGS), ()):
                self.send(lane, ("logged", run_id))

    def ended(self, lane: str, run_id: str) -> None:
        """A run ended that a caller waits for there."""
        self.send(lane, ("ended", run_id))

    def cancel(self, lane: str, task_id: str, attempt: int) -> None:
        """A worker there is to stop."""
        self.send(lane, ("cancel", task_id, str(attempt)))

    def lost(self, lane: str, task_id: str, attempt: int) -> None:
        """A worker there has lost a lease."""
        self.send(lane, ("lost", task_id, str(attempt)))

    def registry_moved(self, tenant: str) -> None:
        """Agents or types of a tenant changed."""
        for lane in self._lanes:
            self.send(lane, ("registry", tenant))

    def pauses_changed(self) -> None:
        """Something was paused or resumed."""
        for lane in self._lanes:
            self.send(lane, ("pauses",))

    def log_levels_changed(self) -> None:
        """A log level was set."""
        for lane in self._lanes:
            self.send(lane, ("log levels",))

    def interest_changed(self) -> None:
        """What workers connected here serve, or who watches, may have changed."""
        self._changed.set()

    def look_again(self) -> None:
        """Another server's workers changed."""
        self._noticed = True
        self._changed.set()

    async def refresh(self) -> None:
        """Look who is there and what they serve."""
        since_us = await self._store.now_us() - SILENT_US
        self._lanes, self._interests = await self._store.peers(self._lane, since_us)
        self._watching = any(key[1:] == WATCHES for key in self._interests)
        self._watching_runs = any(key[1:] == WATCHES_RUNS for key in self._interests)

    async def run_announcer(self) -> None:
        """Note what workers connected here serve, whenever that changes, until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                if self._noticed:
                    self._noticed = False
                    await self.refresh()
                await self._list_workers()
                served = self.served() | {(tenant, *WATCHES) for tenant in self.watched()}
                served |= {(tenant, *WATCHES_RUNS) for tenant in self.runs_watched()}
                served |= {(tenant, *WATCHES_LOGS) for tenant in self.logs_watched()}
                if served != self._noted:
                    await self._store.interested(self._lane, sorted(served))
                    self._noted = served
                    await self.refresh()
                    for lane in self._lanes:
                        self.send(lane, ("peers",))
            except Exception as error:
                log.warning("what workers serve could not be noted: %s", error)
                await asyncio.sleep(1)
                self._changed.set()

    async def _list_workers(self) -> None:
        workers = self.workers()
        fresh = [worker for session, worker in workers.items() if self._listed.get(session) != worker.draining]
        gone = self._listed.keys() - workers.keys()
        if fresh or gone:
            await self._workers.connected(self._lane, fresh, sorted(gone), await self._store.now_us())
            self._listed = {session: worker.draining for session, worker in workers.items()}
            self.listed([worker.session for worker in fresh])

    async def run_presence(self) -> None:
        """Be seen, until cancelled; then leave."""
        try:
            while True:
                try:
                    await self._store.see(self._both, self._server, await self._store.now_us())
                except Exception as error:
                    log.warning("this server could not be noted: %s", error)
                await asyncio.sleep(SEEN_EVERY_S)
        finally:
            await self._leave()

    async def _leave(self) -> None:
        try:
            async with asyncio.timeout(2):
                await self._workers.left(self._lane, await self._store.now_us())
                await self._store.leave(self._both)
        except (MillstreamError, TimeoutError) as error:
            log.info("left without a word: %s", error)
