"""What a worker says of itself, and what it is given."""

from collections.abc import Callable
from dataclasses import dataclass, field

from millstream.application.views.types import TypeSpec
from millstream.domain.agents import AgentSpec
from millstream.domain.artifacts import Artifact, size_bytes
from millstream.domain.code import Activation, History
from millstream.domain.runs import Task
from millstream.domain.workers import KindSpec


@dataclass(frozen=True, slots=True)
class LeaseRef:
    """A lease by its fence."""

    task_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Hello:
    """Who a worker is and what it serves."""

    worker_id: str
    name: str
    kinds: tuple[str, ...]
    queues: tuple[str, ...]
    agents: tuple[AgentSpec, ...]
    types: tuple[TypeSpec, ...]
    held: tuple[LeaseRef, ...]
    slots: int
    specs: tuple[KindSpec, ...] = ()


@dataclass(frozen=True, slots=True)
class Lease:
    """A task for a worker with the artifacts it is given; of a code run's own task, what its code is to look at."""

    task: Task
    attempt: int
    artifacts: list[Artifact]
    tries: int
    activation: Activation | None = None
    history: History = field(default_factory=History)

    @property
    def size_bytes(self) -> int:
        """About what it takes on the wire, not less; 400 is an ordinary one without input and artifacts."""
        size = 400 + len(self.task.input) + sum(map(size_bytes, self.artifacts))
        return size + sum(item.size_bytes for item in self.history.items)


@dataclass(frozen=True, slots=True)
class Cancellation:
    """A lease to give up; reason "CANCELLED" or "LEASE_LOST"."""

    task_id: str
    attempt: int
    reason: str


Push = Callable[[list[Lease], list[Cancellation], bool], None]
"""How a worker's connection is told: leases, cancellations, and whether the server drains. Never blocks."""
