"""What the use cases of agents give."""

from dataclasses import dataclass

from millstream.domain.agents import Agent, Pause
from millstream.domain.workers import ServingWorker


@dataclass(frozen=True, slots=True)
class AgentState:
    """An agent and how it stands: "ONLINE", "OFFLINE", "PAUSED" or "DELETED"."""

    agent: Agent
    status: str
    pause: Pause | None = None


@dataclass(frozen=True, slots=True)
class WaitingGate:
    """What waits in a gate of an agent, as a reader may see it.

    Attributes:
        subscription: Its place in the agent; None where it is gone.
        have, need: Artifacts by type.
        size: Of a batch, what fills it.
        window: Of a join by count, among how many artifacts its parts must be; else 0.
        artifact_ids: The oldest of them.
    """

    subscription: int | None
    run_id: str
    key: str
    have: dict[str, int]
    need: tuple[tuple[str, int], ...]
    size: int
    window: int
    artifact_ids: tuple[str, ...]
    opened_us: int
    expires_us: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits in an agent's gates: the next to expire, and how many there are."""

    gates: tuple[WaitingGate, ...] = ()
    total: int = 0


@dataclass(frozen=True, slots=True)
class AgentDetail:
    """What is shown of one agent alone: what waits in its gates, and who serves it."""

    waiting: Waiting
    workers: tuple[ServingWorker, ...] = ()
    worker_count: int = 0


@dataclass(frozen=True, slots=True)
class AgentHistory:
    """Artifacts that an agent made and took up, by type; `truncated` where not all were looked at."""

    produced: dict[str, int]
    consumed: dict[str, int]
    truncated: bool
