"""A worker's connection, and the leases that it holds."""

from dataclasses import dataclass, field

from millstream.application.engine.pool import Pool
from millstream.application.engine.ready import DispatchKey
from millstream.application.ports import ConnectedWorker
from millstream.application.views.leases import Lease, Push
from millstream.domain.artifacts import Artifact
from millstream.domain.batch import Claim, Handoff
from millstream.domain.code import History
from millstream.domain.runs import Task
from millstream.domain.workers import KindSpec


@dataclass(frozen=True, slots=True)
class HeldLease:
    """What a report on a lease needs to know of its task."""

    attempt: int
    agent: str
    heartbeat_us: int
    run_id: str


@dataclass(slots=True, eq=False)
class Session:
    """A worker's connection.

    Attributes:
        keys: What it serves.
        credit: Tasks it can take now; negative while it gives less back than it took.
        leases: What it holds, by task.
        delivered: Tasks whose lease it has acknowledged, so that losing the worker burns an attempt.
        renewed: Its leases are renewed by the server; a poller renews its own.
        served: What it says of its kinds; what they take and return only until it is noted.
        heard_us: When it was last heard of.
        noted: When it was last heard of and what it held, as last noted.
        pool: Where it needs room beside its own credit, or None; `pooled` is how much of it it has.
    """

    id: str
    tenant: str
    worker_id: str
    name: str
    keys: tuple[DispatchKey, ...]
    push: Push
    credit: int = 0
    renewed: bool = True
    connected_us: int = 0
    draining: bool = False
    served: tuple[KindSpec, ...] = ()
    queues: tuple[str, ...] = ()
    slots: int = 0
    heard_us: int = 0
    noted: tuple[int, int] = (0, 0)
    leases: dict[str, HeldLease] = field(default_factory=dict)
    delivered: set[str] = field(default_factory=set)
    queued: set[DispatchKey] = field(default_factory=set)
    pool: Pool | None = None
    pooled: int = 0

    @property
    def has_room(self) -> bool:
        """It can be given a task."""
        fits = self.pool is None or self.pool.has_room(self.tenant)
        return self.credit > 0 and not self.draining and fits

    def take(self, count: int) -> None:
        """It is given so many tasks, or (negative) gives them back."""
        self.credit -= count
        if self.pool is not None:
            self.pool.take(self.tenant, count)
            self.pooled += count

    def leave_pool(self) -> None:
        """It is given nothing any more, and gives nothing back."""
        if self.pool is not None:
            self.pool.starved.pop(self.id, None)
            self.pool.take(self.tenant, -self.pooled)
            self.pool = None

    @property
    def claim(self) -> Claim:
        """What a lease notes of it."""
        return Claim(self.id, self.worker_id, self.name, arrived=not self.renewed)


def connected(session: Session) -> ConnectedWorker:
    """What other servers may know of it."""
    return ConnectedWorker(
        session=session.id,
        tenant=session.tenant,
        worker_id=session.worker_id,
        name=session.name,
        kinds=tuple(dict.fromkeys(key[2] for key in session.keys)),
        connected_us=session.connected_us,
        served=session.served,
        queues=session.queues,
        slots=session.slots,
        draining=session.draining,
        heard_us=session.heard_us,
        used=len(session.leases),
    )


def lease_of(handoff: Handoff, artifacts: list[Artifact], history: History | None = None) -> Lease:
    """What is pushed to a worker."""
    task = handoff.task
    return Lease(task, handoff.attempt, artifacts, task.tries + 1, handoff.activation, history or History())


def held_lease(task: Task) -> HeldLease:
    """What a report on the running attempt of a task needs to know."""
    return HeldLease(task.attempt, task.agent, task.timeouts.heartbeat_us, task.run_id)
