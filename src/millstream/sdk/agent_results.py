"""What the service tells of agents."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from millstream.sdk.policies import RetryPolicy, Timeouts, seconds
from millstream.sdk.results import when
from millstream.v1 import agent_pb2


@dataclass(frozen=True, slots=True)
class AgentSubscription:
    """Which artifacts activate an agent, as it is registered."""

    types: tuple[str, ...]
    where: str
    from_agents: tuple[str, ...]
    tags: tuple[str, ...]
    priority: int
    delivery: str
    mode: str = "both"
    counts: Mapping[str, int] = field(default_factory=dict)
    """Of an AND gate: how many of each type."""
    join: str = ""
    """Of a join: the key's expression."""
    batch_size: int = 0
    """Of a batch: how many are handed over."""
    scope: str = ""
    join_within: float | None = None
    """Of a join: seconds within which its parts must come."""
    join_within_count: int | None = None
    """Of a join: among how many artifacts they must be."""
    batch_timeout: float | None = None
    """Of a batch: seconds after which it is handed over as it is."""
    gate_timeout: float | None = None
    """Seconds that parts wait for the rest; None: the service's default."""

    @classmethod
    def from_wire(cls, wire: Any) -> "AgentSubscription":
        """The value of a Subscription."""
        return cls(
            types=tuple(wire.types),
            where=wire.where,
            from_agents=tuple(wire.from_agents),
            tags=tuple(wire.tags),
            priority=wire.priority,
            delivery=wire.delivery,
            mode=wire.mode,
            counts=dict(wire.counts),
            join=wire.join.by,
            batch_size=wire.batch.size,
            scope=wire.scope,
            join_within=seconds(wire.join, "within"),
            join_within_count=wire.join.within_count if wire.join.HasField("within_count") else None,
            batch_timeout=seconds(wire.batch, "timeout"),
            gate_timeout=seconds(wire, "gate_timeout"),
        )


@dataclass(frozen=True, slots=True)
class WaitingGate:
    """Artifacts that wait in a gate of an agent for others."""

    correlation_id: str
    """Empty where the scope is the tenant."""
    key: str
    """Of a join, where the caller may see all of them."""
    have: Mapping[str, int]
    """By type, of those that the caller may see."""
    need: Mapping[str, int]
    artifact_ids: tuple[str, ...]
    """The 100 oldest; `have` counts all."""
    opened_at: datetime | None
    expires_at: datetime | None
    within_count: int = 0
    """Of a join by count: among how many artifacts they must come."""


@dataclass(frozen=True, slots=True)
class ServingWorker:
    """A connected worker that serves an agent."""

    worker_id: str
    name: str
    server: str
    """Host and process."""
    connected_at: datetime | None


@dataclass(frozen=True, slots=True)
class AgentHistory:
    """What an agent has made and taken up, by type, of the newest artifacts and tasks."""

    produced: Mapping[str, int]
    consumed: Mapping[str, int]
    truncated: bool
    """There is more than was looked at."""


@dataclass(frozen=True, slots=True)
class Agent:
    """A named consumer of artifacts. `status` is "ONLINE" (a worker serves it), "OFFLINE", "PAUSED" or "DELETED"."""

    id: str
    name: str
    description: str
    subscriptions: tuple[AgentSubscription, ...]
    outputs: tuple[str, ...]
    labels: tuple[str, ...]
    queue: str
    max_concurrency: int
    version: int
    status: str
    created_at: datetime | None
    updated_at: datetime | None
    paused_by: str = ""
    pause_reason: str = ""
    gates: tuple[WaitingGate, ...] = ()
    """What waits in its gates, at most 100; of an agent that was not listed, as all that follows."""
    waiting_gates: int = 0
    served_by: tuple[ServingWorker, ...] = ()
    worker_count: int = 0
    retry: RetryPolicy | None = None
    """Of its tasks; None: the service's default."""
    timeouts: Timeouts | None = None
    """Of its tasks; None: the service's default."""
    protocol: str = "WORKER"
    """"WORKER", or "A2A" or "HTTP", where the service itself calls it at `url`."""
    url: str = ""

    @classmethod
    def from_wire(cls, wire: Any) -> "Agent":
        """The value of an Agent, or of a response with an agent's fields."""
        return cls(
            id=wire.id,
            name=wire.name,
            description=wire.description,
            subscriptions=tuple(map(AgentSubscription.from_wire, wire.subscriptions)),
            outputs=tuple(wire.outputs),
            labels=tuple(wire.labels),
            queue=wire.queue,
            max_concurrency=wire.max_concurrency,
            version=wire.version,
            status=agent_pb2.Agent.Status.Name(wire.status),
            created_at=when(wire, "created_at"),
            updated_at=when(wire, "updated_at"),
            paused_by=wire.pause.paused_by,
            pause_reason=wire.pause.reason,
            gates=tuple(map(_gate, wire.gates)),
            waiting_gates=wire.waiting_gates,
            served_by=tuple(
                ServingWorker(each.worker_id, each.name, each.server, when(each, "connected_at"))
                for each in wire.served_by
            ),
            worker_count=wire.worker_count,
            retry=RetryPolicy.from_wire(wire.retry) if wire.HasField("retry") else None,
            timeouts=Timeouts.from_wire(wire.timeouts) if wire.HasField("timeouts") else None,
            protocol=wire.protocol or "WORKER",
            url=wire.url,
        )


def _gate(wire: Any) -> WaitingGate:
    return WaitingGate(
        wire.correlation_id, wire.key, dict(wire.have), dict(wire.need), tuple(wire.artifact_ids),
        when(wire, "opened_at"), when(wire, "expires_at"), wire.within_count,
    )  # fmt: skip
