"""Agents and the subscriptions that activate them."""

from dataclasses import dataclass

from millstream.domain.retry import DEFAULT_RETRY, DEFAULT_TIMEOUTS, RetryPolicy, Timeouts


@dataclass(frozen=True, slots=True)
class Subscription:
    """Which artifacts activate an agent.

    Attributes:
        types: Names of artifact types; any of them.
        where: CEL over the artifact, "" for all.
        from_agents: Producers, empty for anyone.
        tags: At least one of them, empty for any.
        priority: Urgency of the tasks, the higher the sooner.
        delivery: "broadcast" or "exclusive".
        mode: "both".
    """

    types: tuple[str, ...]
    where: str = ""
    from_agents: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    priority: int = 0
    delivery: str = "broadcast"
    mode: str = "both"


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """What registers an agent."""

    name: str
    description: str = ""
    subscriptions: tuple[Subscription, ...] = ()
    outputs: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    max_concurrency: int = 0
    queue: str = "default"
    retry: RetryPolicy = DEFAULT_RETRY
    timeouts: Timeouts = DEFAULT_TIMEOUTS


@dataclass(frozen=True, slots=True)
class Agent:
    """A registered agent. Times are microseconds since the epoch."""

    id: str
    tenant: str
    spec: AgentSpec
    version: int
    created_us: int
    updated_us: int

    @property
    def kind(self) -> str:
        """Kind of its tasks."""
        return f"agent:{self.spec.name}"


@dataclass(frozen=True, slots=True)
class ArtifactType:
    """A registered type; `schema` is a JSON Schema as JSON text, "" for anything."""

    tenant: str
    name: str
    version: int
    schema: str
    description: str
    created_us: int


@dataclass(frozen=True, slots=True)
class Activation:
    """An agent that an artifact activates, with what its task needs.

    Attributes:
        delay_us: Delivery waits this long after publication (visibility After).
        limited: The agent bounds how many of its tasks run at once.
    """

    agent: str
    kind: str
    queue: str
    priority: int
    retry: RetryPolicy
    timeouts: Timeouts
    delay_us: int = 0
    limited: bool = False
