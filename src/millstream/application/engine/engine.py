"""The engine: submits commands, offers work to workers, waits for runs. All state is written through it."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence, Set
from typing import Any, Protocol

from millstream.application.engine.batches import Hooks, Sizes
from millstream.application.engine.cache import RunCache
from millstream.application.engine.clock import Clock
from millstream.application.engine.commands import Command, Release
from millstream.application.engine.committer import Committer
from millstream.application.engine.dispatch import Dispatcher
from millstream.application.engine.leasing import LeaseReady
from millstream.application.engine.lines import LineReads, Lines
from millstream.application.engine.queue import CommandQueue, Outcome
from millstream.application.engine.ready import DispatchKey, Entry
from millstream.application.engine.sessions import Session, lease_of
from millstream.application.engine.waiting import Ended, Waiters
from millstream.application.ports import Lane
from millstream.application.tracing import CALL_TRACE
from millstream.application.whenever import whenever
from millstream.domain.artifacts import Artifact
from millstream.domain.batch import Batch, Handoff, Limits
from millstream.domain.bounds import Bounds
from millstream.domain.code import Activation, History
from millstream.domain.errors import MillstreamError, Unavailable
from millstream.domain.runs import PROMISE_QUEUE, PayloadKind, Run, TaskStatus

log = logging.getLogger(__name__)

PULL_MOST = 500
HISTORY_BYTES = 1024 * 1024
"""Of a history, what comes along with an activation; the worker fetches the rest."""
PASSED_OVER_S = 0.02
"""When tasks are looked at again whose runs another server held."""


class Candidate(Protocol):
    """A pending task that may be leased."""

    @property
    def key(self) -> DispatchKey: ...
    @property
    def entry(self) -> Entry: ...
    @property
    def limited(self) -> bool: ...
    @property
    def bounds(self) -> Bounds: ...


class Pending(Protocol):
    """Finds pending tasks; see store.maintenance."""

    async def candidates(self, wanted: Mapping[DispatchKey, int]) -> Sequence[Candidate]:
        """The oldest and most urgent pending tasks by key, as many as there is room for."""


class Artifacts(Protocol):
    """Reads artifacts; see store.artifacts."""

    async def by_ids(self, tenant: str, ids: list[str]) -> dict[str, Artifact]:
        """Artifacts of a tenant by id."""


class Journal(Protocol):
    """Reads histories of code runs; see store.journal."""

    async def history(
        self, day: int, run_id: str, after: int, number: int, upto: int, first: int, most_bytes: int
    ) -> History:
        """A page of a history."""


class Peers(Protocol):
    """Other servers."""

    def ready(self, keys: set[DispatchKey]) -> None:
        """Work of these keys waits."""

    def ended(self, lane: str, run_id: str) -> None:
        """A run, or a promise, ended that a caller waits for there."""

    def cancel(self, lane: str, task_id: str, attempt: int) -> None:
        """A worker there is to stop."""

    def lost(self, lane: str, task_id: str, attempt: int) -> None:
        """A worker there has lost a lease."""


class Observer(Protocol):
    """Where measures go; see adapters.metrics."""

    def observe_batch(self, commands: int, seconds: float, path: str) -> None:
        """A batch was committed."""

    def observe_undone(self) -> None:
        """A batch was not committed as it was decided."""


def _in_trace(commands: Sequence[Command]) -> Sequence[Command]:
    """The commands, for the trace of the call that is served."""
    trace = CALL_TRACE.get()
    if trace:
        for command in commands:
            command.trace = trace
    return commands


class Engine:
    """One server's part of the engine.

    Args:
        lane: The lane that commits batches; `blocking` commits those whose runs stay locked elsewhere.
    """

    def __init__(
        self,
        lane: Lane,
        blocking: Lane,
        pending: Pending,
        lines: LineReads,
        artifacts: Artifacts,
        journal: Journal,
        peers: Peers,
        observer: Observer,
        limits: Limits,
        sizes: Sizes,
        queue_most: int = 20_000,
        queue_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        self.lane_id = lane.id
        self.limits = limits
        self.clock = Clock()
        self.waiters = Waiters()
        self.dispatcher = Dispatcher()
        self.scheduled: Callable[[int], None] = lambda at_us: None
        """Called with the earliest time at which a task scheduled here is due."""
        self.stored: Callable[[list[Artifact]], None] = lambda artifacts: None
        """Called with the artifacts of each commit."""
        self.recorded: list[Callable[[Batch], None]] = []
        """Called with each batch that stored events, when those who wait for it have been told."""
        self.attend: Callable[[Set[str]], None] = lambda run_ids: None
        """Called with the runs that somebody has to look at after a commit."""
        self._pending = pending
        self.lines = Lines(lines, lambda command: self.submit(command, urgent=True), self.clock.now_us)
        self._artifacts = artifacts
        self._observer = observer
        self._journal = journal
        self._peers = peers
        self.cache = RunCache()
        self.queue = CommandQueue(queue_most, queue_bytes)
        hooks = Hooks(
            self.dispatcher.offer, self.dispatcher.assign, self._committed, self._undone, observer.observe_batch
        )
        self._hooks = hooks
        self.committer = Committer(lane, lane.id, self.queue, self.cache, self.clock, hooks, limits, sizes)
        self._blocked_queue = CommandQueue(queue_most, queue_bytes)
        self._blocked = Committer(blocking, lane.id, self._blocked_queue, self.cache, self.clock, hooks, limits, sizes)
        self.committer.blocked = self._blocked_queue
        self._deliveries: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Commit and dispatch until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.committer.run(), name="committer")
            group.create_task(self._blocked.run(), name="blocking committer")
            pull = whenever(self.dispatcher.wanted, self._pull, log, "no work could be leased")
            group.create_task(pull, name="pull")
            group.create_task(self.lines.run(), name="lines")

    def stop(self) -> None:
        """Answer everything that still waits."""
        for queue in (self.queue, self._blocked_queue):
            queue.fail_all(Unavailable("the server is shutting down"))

    def gates_full(self, full: Set[tuple[str, str]]) -> None:
        """Gates over all correlations, (tenant, fingerprint), in which no more keys may wait."""
        self._hooks.full = full

    # Submitting.

    async def submit_all(self, commands: Sequence[Command], urgent: bool = False) -> list[Outcome]:
        """Decide commands; their outcomes in order, errors among them. Raises RateLimited where the queue is full."""
        return await self.queue.put(_in_trace(commands), urgent) if commands else []

    async def submit(self, command: Command, urgent: bool = False) -> Any:
        """Decide one command. Raises what refused it (RegistryMoved too)."""
        outcome = (await self.queue.put(_in_trace((command,)), urgent))[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    # What follows a commit.

    def _committed(self, batch: Batch) -> None:
        outputs = {run_id: value for _, run_id, what, value in batch.payloads if what == PayloadKind.OUTPUT}
        kept = self.cache.settle(batch, self.waiters.among(batch.dirty_runs))
        for run_id, run in batch.ended.items():
            if run.finished_us == 0:
                # It ended and was reopened within one batch.
                continue
            self._wake(run_id, run, Ended(run, kept.get(run_id), outputs.get(run_id)))
        self._take_back(batch)
        for task_id, task in batch.dirty_tasks.items():
            if task.status is not TaskStatus.RUNNING:
                self.dispatcher.forget(task_id)
            if task.finished_us and task.queue == PROMISE_QUEUE:
                self._wake(task_id, batch.runs[task.run_id], Ended())
        if batch.handoffs:
            self._hand_off(batch)
        if batch.ready or batch.freed:
            self.dispatcher.settle(batch.waiting, committed=True)
            self.dispatcher.mark(batch.freed)
            self._peers.ready(batch.ready | batch.freed)
            if self.dispatcher.wanting():
                self.dispatcher.wanted.set()
        if batch.looks:
            self.lines.look(batch.looks)
        if batch.scheduled_us:
            self.scheduled(batch.scheduled_us)
        if batch.due_runs:
            self.attend(batch.due_runs)
        if batch.artifacts:
            self.stored(batch.artifacts)
        if batch.events:
            for told in self.recorded:
                told(batch)

    def _undone(self, batch: Batch) -> None:
        self._observer.observe_undone()
        self.dispatcher.undo(batch)

    def _wake(self, awaited: str, run: Run, ended: Ended) -> None:
        """Wake those who wait for a run, or for a promise in it, here and at other servers."""
        self.waiters.ended(awaited, ended)
        for lane in run.waiters:
            if lane != self.lane_id:
                self._peers.ended(lane, awaited)

    def _take_back(self, batch: Batch) -> None:
        """Tell workers what they are to give up, or have lost."""
        for task_id, attempt, owner in batch.cancelled:
            if owner == self.lane_id:
                self.dispatcher.cancel(task_id, attempt)
            elif owner:
                self._peers.cancel(owner, task_id, attempt)
        for task_id, attempt, owner in batch.lost:
            if owner == self.lane_id:
                self.dispatcher.lost(task_id, attempt)
            elif owner:
                self._peers.lost(owner, task_id, attempt)

    def _hand_off(self, batch: Batch) -> None:
        fresh = {artifact.id: artifact for artifact in batch.artifacts}
        to_read: list[Handoff] = []
        gone: list[Handoff] = []
        for handoff in batch.handoffs:
            ids = handoff.task.artifact_ids
            told = handoff.activation
            history = self._known_history(told) if told is not None else History()
            if history is not None and all(artifact_id in fresh for artifact_id in ids):
                if not self._deliver(handoff, fresh, history):
                    gone.append(handoff)
            else:
                to_read.append(handoff)
        if to_read:
            self._in_background(self._read_and_deliver(to_read))
        if gone:
            self._in_background(self._release(gone))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        delivery = asyncio.get_running_loop().create_task(work)
        self._deliveries.add(delivery)
        delivery.add_done_callback(self._deliveries.discard)

    def _known_history(self, told: Activation) -> History | None:
        """What an activation tells, where all of it is at hand: events that were not answered yet, to a worker that
        has what was; or all of a run that has just begun."""
        if not told.token and told.count > told.first:
            return None
        entries = self.cache.entries(told.run_id, told.after, told.base)
        if entries is None or sum(entry.size_bytes for entry in entries) > HISTORY_BYTES:
            return None
        return History(entries)

    async def _history(self, told: Activation) -> History:
        """The first page of what an activation tells. Raises MillstreamError where it cannot be read."""
        known = self._known_history(told)
        # Commands given at the last event that a worker knows are known to it as well.
        number = told.count if told.token else told.first
        return known or await self._journal.history(
            told.day, told.run_id, told.after, number, told.base, number, HISTORY_BYTES
        )

    def _deliver(self, handoff: Handoff, artifacts: Mapping[str, Artifact], history: History) -> bool:
        """Push a lease. False where the worker is gone."""
        ids = handoff.task.artifact_ids
        found = [artifacts[artifact_id] for artifact_id in ids if artifact_id in artifacts]
        return self.dispatcher.deliver(handoff.session_id, lease_of(handoff, found, history))

    async def _release(self, handoffs: list[Handoff]) -> None:
        """Give back leases that reached no worker; one that cannot be given back runs out."""
        await self.submit_all(
            [Release(task_ids=(each.task.id,), tenant=each.task.tenant, attempt=each.attempt) for each in handoffs],
            urgent=True,
        )

    async def _read_and_deliver(self, handoffs: list[Handoff]) -> None:
        """Read the artifacts that leased tasks are given, then push the leases."""
        wanted: dict[str, set[str]] = {}
        for handoff in handoffs:
            if handoff.task.artifact_ids:
                wanted.setdefault(handoff.task.tenant, set()).update(handoff.task.artifact_ids)
        found: dict[str, Artifact] = {}
        histories: dict[str, History] = {}
        try:
            for tenant, ids in wanted.items():
                found |= await self._artifacts.by_ids(tenant, sorted(ids))
            for told in filter(None, (handoff.activation for handoff in handoffs)):
                histories[told.run_id] = await self._history(told)
        except MillstreamError as error:
            log.warning("leases could not be delivered: %s", error.message)
            self.dispatcher.give_back(handoffs)
            await self._release(handoffs)
            return
        none = History()
        gone = [each for each in handoffs if not self._deliver(each, found, histories.get(each.task.run_id, none))]
        if gone:
            await self._release(gone)

    # The pull: leasing what waits, in order.

    async def _pull(self) -> None:
        dispatcher = self.dispatcher
        wanting = dispatcher.wanting()
        if not wanting:
            return
        own = {
            key: dispatcher.take_own(key, min(room, PULL_MOST)) for key, (room, mark) in wanting.items() if mark == 0
        }
        rooms = {key: min(room, PULL_MOST) for key, (room, mark) in wanting.items() if mark}
        left = {entry[2] for entries in own.values() for entry in entries}
        held: set[tuple[str, str]] = set()
        found: Sequence[Candidate] = []
        try:
            if rooms:
                found = await self._pending.candidates(rooms)
            left, held = await self._lease_in_order(own, found)
        finally:
            for key, entries in own.items():
                dispatcher.put_back_own(key, [entry for entry in entries if entry[2] in left])
        counts = Counter(item.key for item in found)
        limited = {item.key for item in found if item.limited and (item.key[0], item.key[2]) not in held}
        passed_over = {item.key for item in found if item.entry[2] in left}
        for key, room in rooms.items():
            # A limited key is looked at again when one of its tasks ends, wherever that is.
            if key in limited or (counts[key] < room and key not in passed_over):
                dispatcher.clear(key, wanting[key][1])
        if not dispatcher.wanting():
            return
        tried = len(found) + sum(map(len, own.values()))
        if len(left) < tried or not tried:
            dispatcher.wanted.set()
        else:
            # Another server holds their runs or gates, maybe for the moment of a batch, maybe because it was stopped.
            asyncio.get_running_loop().call_later(PASSED_OVER_S, dispatcher.wanted.set)

    async def _lease_in_order(
        self, own: Mapping[DispatchKey, Sequence[Entry]], found: Sequence[Candidate]
    ) -> tuple[set[str], set[tuple[str, str]]]:
        """Lease waiting tasks, known here or found, the most urgent first whatever their key; those that still wait,
        and the gates that another server holds."""
        waiting = sorted([*(entry for entries in own.values() for entry in entries), *(item.entry for item in found)])
        if not waiting:
            return set(), set()
        gates = tuple({(item.key[0], item.key[2]) for item in found if item.limited})
        lines = tuple({(item.key[0], name) for item in found for name in item.bounds.lines})
        if lines:
            await self.lines.ensure(lines)
        command = LeaseReady(
            task_ids=[entry[2] for entry in waiting], gates=gates, lines=lines, locked=bool(gates or lines)
        )
        still_waiting, held = await self.submit(command, urgent=True)
        return set(still_waiting), held

    async def look_for_work(self) -> None:
        """Find waiting work that no wake-up told of. Nothing is marked before something is found, so that hand-off
        goes on meanwhile."""
        dispatcher = self.dispatcher
        quiet = dispatcher.quiet()
        if quiet:
            dispatcher.mark({item.key for item in await self._pending.candidates(quiet)})
        if dispatcher.wanting():
            dispatcher.wanted.set()
        await self.lines.sweep()

    # Workers.

    def connect(self, session: Session) -> None:
        """A worker connected."""
        self.dispatcher.open(session)

    def disconnect(self, session: Session) -> None:
        """A worker went; its leases run out unless it comes back."""
        self.dispatcher.close(session)
