"""Which connected worker gets which task.

A task that becomes ready while a worker has room is leased in the very transaction that made it ready, and pushed after
the commit, unless older work of its dispatch key (tenant, queue, kind) is known to wait, or may wait: then it is left
pending, and leased in order by the pull.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable, Set

from millstream.application.engine.ready import DispatchKey, Entry, ReadyWork
from millstream.application.engine.sessions import HeldLease, Session, connected
from millstream.application.ports import ConnectedWorker
from millstream.application.views.leases import Cancellation, Lease
from millstream.domain.batch import Batch, Claim, Handoff
from millstream.domain.code import LEAD
from millstream.domain.runs import Task, TaskStatus
from millstream.domain.workers import KindSpec

STICKY_S = 1.0
"""How long a code run waits for the worker that has a copy of it, where another server may have that, before any."""


class Dispatcher:
    """The workers connected to this server, and the dispatch keys with waiting work."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}
        self.wanted = asyncio.Event()
        """Set when there is waiting work that a connected worker could take."""
        self._own = ReadyWork()
        self._undecided: dict[DispatchKey, int] = {}
        self._holders: dict[str, Session] = {}
        self._ready: dict[DispatchKey, deque[Session]] = {}
        self._backlog: dict[DispatchKey, int] = {}
        self._served: dict[DispatchKey, int] = {}
        self._marks = 0
        self._paused: Set[DispatchKey] = frozenset()
        self._here: Counter[str] = Counter()
        self.elsewhere: Callable[[DispatchKey], bool] = lambda key: False
        """Whether workers of other servers serve a key."""

    def pause(self, paused: Set[DispatchKey]) -> None:
        """Tasks of these keys wait from now on, "" standing for any queue or kind; all others go on."""
        before, self._paused = self._paused, paused
        if before - paused:
            self.mark([*self._served])

    def _is_paused(self, key: DispatchKey) -> bool:
        paused = self._paused
        if not paused:
            return False
        tenant, queue, kind = key
        if kind.startswith(LEAD) and self.holds(tenant, kind.partition("@")[0].removeprefix(LEAD)):
            return True
        return key in paused or (tenant, "", kind) in paused or (tenant, queue, "") in paused

    def holds(self, tenant: str, workflow: str) -> bool:
        """Whether a workflow is held, in all its versions."""
        return bool(self._paused) and (tenant, "", LEAD + workflow) in self._paused

    @property
    def served(self) -> set[DispatchKey]:
        """The dispatch keys that connected workers serve."""
        return set(self._served)

    @property
    def workers(self) -> dict[str, ConnectedWorker]:
        """The connected workers by session; one that polls is none, as it comes and goes."""
        return {each.id: connected(each) for each in self.sessions.values() if each.renewed}

    def listed(self, sessions: Iterable[str]) -> None:
        """What these workers say of their kinds is noted: schemas need not be kept here for all that time."""
        for session_id in sessions:
            session = self.sessions.get(session_id)
            if session is not None:
                session.served = tuple([KindSpec(each.name, each.category, each.version) for each in session.served])

    def signs_of_life(self) -> list[ConnectedWorker]:
        """The workers that were heard of, or whose tasks grew more or less, since the last call."""
        found = []
        for session in self.sessions.values():
            now = (session.heard_us, len(session.leases))
            if session.renewed and now != session.noted:
                session.noted = now
                found.append(connected(session))
        return found

    def serves(self, tenant: str, kind: str) -> bool:
        """Whether a worker connected here serves the kind."""
        return any(key[0] == tenant and key[2] == kind for key in self._served)

    def open(self, session: Session) -> None:
        """A worker connected. Work of its keys may wait, so nothing overtakes it until a pull has looked."""
        self.sessions[session.id] = session
        self._here[session.worker_id] += 1
        for task_id, lease in session.leases.items():
            self._hold(session, task_id, lease)
        fresh = [key for key in session.keys if key not in self._served]
        for key in session.keys:
            self._served[key] = self._served.get(key, 0) + 1
        self._queue(session)
        self.mark(fresh)
        if any(key in self._backlog for key in session.keys):
            self.wanted.set()

    def close(self, session: Session) -> None:
        """A worker went."""
        if self.sessions.pop(session.id, None) is None:
            return
        session.draining = True
        self._here -= Counter((session.worker_id,))
        for task_id in session.leases:
            self._holders.pop(task_id, None)
        for key in session.keys:
            self._served[key] -= 1
            if not self._served[key]:
                del self._served[key]
                self._backlog.pop(key, None)
                self._ready.pop(key, None)
                self._own.drop(key)
        pool = session.pool
        session.leave_pool()
        if pool is not None:
            self._requeue(pool.fed())

    def add_credit(self, session: Session, credit: int) -> None:
        """A worker can take more."""
        session.take(-credit)
        self._requeue([session])
        if session.pool is not None:
            self._requeue(session.pool.fed())

    def _requeue(self, sessions: Iterable[Session]) -> None:
        """Sessions may have room again."""
        for session in sessions:
            self._queue(session)
            if any(key in self._backlog or key in self._own for key in session.keys):
                self.wanted.set()

    def _queue(self, session: Session) -> None:
        if not session.has_room:
            self._starve(session)
            return
        for key in session.keys:
            if key not in session.queued:
                session.queued.add(key)
                self._ready.setdefault(key, deque()).append(session)

    @staticmethod
    def _starve(session: Session) -> None:
        """Look at it again when there is room in its pool."""
        if session.pool is not None and session.credit > 0 and not session.draining:
            session.pool.starved[session.id] = session

    def mark(self, keys: Iterable[DispatchKey]) -> None:
        """Work of these keys waits, or may wait."""
        for key in keys:
            if key in self._served:
                self._marks += 1
                self._backlog[key] = self._marks
                self.wanted.set()

    def wanting(self) -> dict[DispatchKey, tuple[int, int]]:
        """Keys with waiting work and room for it: the room, and the mark to clear if nothing more is found (0: all of
        it is known here)."""
        found = {}
        for key in [*self._backlog, *(self._own.keys() - self._backlog.keys())]:
            if self._is_paused(key):
                continue
            room = sum(session.credit for session in self._ready.get(key, ()) if session.has_room)
            if room > 0:
                found[key] = (room, self._backlog.get(key, 0))
        return found

    def take_own(self, key: DispatchKey, most: int) -> list[Entry]:
        """The first of a key's waiting tasks that are known here."""
        return self._own.take(key, most)

    def put_back_own(self, key: DispatchKey, entries: list[Entry]) -> None:
        """Tasks that found no worker after all."""
        self._own.put_back(key, entries)

    def quiet(self) -> dict[DispatchKey, int]:
        """Keys with room where nothing is known to wait; what a safety poll asks for."""
        return {
            key: 1
            for key in self._served
            if key not in self._backlog
            and key not in self._own
            and not self._is_paused(key)
            and any(session.has_room for session in self._ready.get(key, ()))
        }

    def clear(self, key: DispatchKey, mark: int) -> None:
        """Nothing more waits, unless something was marked since."""
        if self._backlog.get(key) == mark:
            del self._backlog[key]

    def offer(self, task: Task) -> Claim | None:
        """A worker for a task that just became ready; None where there is none, or where older work waits."""
        if task.limited:
            return None
        key = (task.tenant, task.queue, task.kind)
        overtakes = key in self._backlog or key in self._own or self._undecided.get(key)
        claim = None if overtakes or self._awaits_its_worker(task) else self.assign(task)
        if claim is None:
            self._undecided[key] = self._undecided.get(key, 0) + 1
        return claim

    def settle(self, waiting: Iterable[Task], committed: bool) -> None:
        """Tasks that found no worker were committed, or were not: from now on they are pulled in their order."""
        for task in waiting:
            key = (task.tenant, task.queue, task.kind)
            left = self._undecided.get(key, 0) - 1
            if left > 0:
                self._undecided[key] = left
            else:
                self._undecided.pop(key, None)
            pending = committed and task.status is TaskStatus.PENDING and key in self._served
            if pending and self._awaits_its_worker(task):
                asyncio.get_running_loop().call_later(STICKY_S, self.mark, [key])
            elif pending and not self._own.add(key, task):
                self.mark([key])

    def assign(self, task: Task) -> Claim | None:
        """A worker with room for the task, taking its credit; workers take turns. One that waited in a line overtakes
        nothing that waits for a worker."""
        key = (task.tenant, task.queue, task.kind)
        if task.status is TaskStatus.IN_LINE and (key in self._backlog or key in self._own or self._undecided.get(key)):
            return None
        ready = self._ready.get(key) if not self._is_paused(key) else None
        if ready and task.leads and task.worker_id and (claim := self._sticky(task, ready)) is not None:
            return claim
        while ready:
            session = ready[0]
            if session.has_room:
                session.take(1)
                ready.rotate(-1)
                return session.claim
            ready.popleft()
            session.queued.discard(key)
            self._starve(session)
        return None

    def _awaits_its_worker(self, task: Task) -> bool:
        """Another server may have the worker that has a copy of the run: it is asked first, and any after a moment."""
        if not (task.leads and task.worker_id) or self._here[task.worker_id]:
            return False
        return self.elsewhere((task.tenant, task.queue, task.kind))

    def _sticky(self, task: Task, ready: Iterable[Session]) -> Claim | None:
        """The worker that has a copy of the run, where it has room."""
        for session in ready:
            if session.worker_id == task.worker_id and session.has_room:
                session.credit -= 1
                return session.claim
        return None

    def undo(self, batch: Batch) -> None:
        """Give back the credit of a batch that was not committed."""
        self.give_back(batch.handoffs)
        batch.handoffs.clear()
        self.settle(batch.waiting, committed=False)
        batch.waiting.clear()

    def give_back(self, handoffs: Iterable[Handoff]) -> None:
        """Workers have room again for what did not come to them."""
        for handoff in handoffs:
            session = self.sessions.get(handoff.session_id)
            if session is not None:
                self.add_credit(session, 1)

    def deliver(self, session_id: str, lease: Lease) -> bool:
        """Push a committed lease. False where the worker is gone."""
        session = self.sessions.get(session_id)
        if session is None:
            return False
        task = lease.task
        self.forget(task.id)
        self._hold(session, task.id, HeldLease(lease.attempt, task.agent, task.timeouts.heartbeat_us, task.run_id))
        session.push([lease], [], False)
        return True

    def _hold(self, session: Session, task_id: str, lease: HeldLease) -> None:
        before = self._holders.get(task_id)
        if before is not None and before is not session:
            self.forget(task_id)
        self._holders[task_id] = session
        session.leases[task_id] = lease

    def forget(self, task_id: str) -> None:
        """The task is in no worker's hands here any more."""
        session = self._holders.pop(task_id, None)
        if session is not None:
            session.leases.pop(task_id, None)
            session.delivered.discard(task_id)

    def cancel(self, task_id: str, attempt: int, reason: str = "CANCELLED") -> None:
        """Tell the worker that holds this attempt to give it up."""
        session = self._holders.get(task_id)
        if session is not None and session.leases[task_id].attempt == attempt:
            session.push([], [Cancellation(task_id, attempt, reason)], False)

    def lost(self, task_id: str, attempt: int) -> None:
        """A lease was reclaimed: tell its worker, and forget it."""
        self.cancel(task_id, attempt, "LEASE_LOST")
        session = self._holders.get(task_id)
        if session is not None and session.leases[task_id].attempt == attempt:
            self.forget(task_id)

    def renewable(self) -> dict[str, int]:
        """Leases this server renews, attempt by task."""
        return {
            task_id: held.attempt
            for session in self.sessions.values()
            if session.renewed
            for task_id, held in session.leases.items()
        }

    def delivered(self) -> list[str]:
        """Tasks whose delivery was acknowledged since the last call."""
        found: list[str] = []
        for session in self.sessions.values():
            found += session.delivered & session.leases.keys()
        return found
