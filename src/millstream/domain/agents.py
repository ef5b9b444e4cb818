"""Agents and the subscriptions that activate them."""

from dataclasses import dataclass

from millstream.domain.gates import Gate
from millstream.domain.retry import DEFAULT_RETRY, DEFAULT_TIMEOUTS, RetryPolicy, Timeouts


@dataclass(frozen=True, slots=True)
class Join:
    """Parts of one key belong together.

    Attributes:
        key: CEL over the artifact; its value, as text, is the key.
        within_us: They must come within this time, microseconds; 0 where a count bounds them.
        within_count: They must be among so many artifacts that the subscription takes one after the other; 0 where a
            time bounds them.
    """

    key: str
    within_us: int = 0
    within_count: int = 0


@dataclass(frozen=True, slots=True)
class Collect:
    """Artifacts are handed over together: `size` of them, or what there is `timeout_us` after the first. 0: no bound
    of this kind."""

    size: int = 0
    timeout_us: int = 0


@dataclass(frozen=True, slots=True)
class Subscription:
    """Which artifacts activate an agent.

    Attributes:
        types: Names of artifact types; any of them, or with `counts` or `join` all of them.
        where: CEL over the artifact, "" for all.
        from_agents: Producers, empty for anyone.
        tags: At least one of them, empty for any.
        priority: Urgency of the tasks, the higher the sooner.
        delivery: "broadcast" or "exclusive".
        mode: "direct" (only when the agent is run by name), "events" (only by what is published) or "both".
        counts: (type, number) pairs: an AND gate that waits for so many of each.
        join: An AND gate by key, or None.
        batch: Artifacts are collected, or None.
        scope: Where the parts come from: "correlation" or "tenant"; "" where each artifact stands alone.
        wait_us: How long parts wait for the rest, microseconds; 0 where each artifact stands alone.
    """

    types: tuple[str, ...]
    where: str = ""
    from_agents: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    priority: int = 0
    delivery: str = "broadcast"
    mode: str = "both"
    counts: tuple[tuple[str, int], ...] = ()
    join: Join | None = None
    batch: Collect | None = None
    scope: str = ""
    wait_us: int = 0

    @property
    def gated(self) -> bool:
        """Its artifacts wait for others."""
        return bool(self.counts) or self.join is not None or self.batch is not None


WORKER = "WORKER"
"""Protocol of agents that connected workers serve; the servers themselves call those of the others."""
A2A = "A2A"
HTTP = "HTTP"


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """What registers an agent; `url` is where the servers call it, "" where workers serve it."""

    name: str
    description: str = ""
    subscriptions: tuple[Subscription, ...] = ()
    outputs: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    max_concurrency: int = 0
    queue: str = "default"
    retry: RetryPolicy = DEFAULT_RETRY
    timeouts: Timeouts = DEFAULT_TIMEOUTS
    protocol: str = WORKER
    url: str = ""

    @property
    def remote(self) -> bool:
        """The servers call it themselves."""
        return self.protocol != WORKER


@dataclass(frozen=True, slots=True)
class Agent:
    """A registered agent. Times are microseconds since the epoch; `deleted_us` is 0 while it is there."""

    id: str
    tenant: str
    spec: AgentSpec
    version: int
    created_us: int
    updated_us: int
    deleted_us: int = 0

    @property
    def kind(self) -> str:
        """Kind of its tasks."""
        return f"agent:{self.spec.name}"


@dataclass(frozen=True, slots=True)
class TypeOptions:
    """What a type asks for beside its schema; its latest version's hold for the type.

    Attributes:
        compatibility: What the next version must be: "backward", "rules" (so but for `allowed_changes`) or "none".
        allowed_changes: Kinds of breaks that "rules" lets pass; see domain.compatibility.
        retention_days: How long its artifacts are kept; 0 for the server's setting.
        deprecated: It still works, and whoever publishes it is told.
        deprecation: What to use in its place.
        examples: Payloads that satisfy the schema, as JSON text each.
    """

    compatibility: str = "backward"
    allowed_changes: tuple[str, ...] = ()
    retention_days: int = 0
    deprecated: bool = False
    deprecation: str = ""
    examples: tuple[str, ...] = ()


DEFAULT_OPTIONS = TypeOptions()


@dataclass(frozen=True, slots=True)
class Pause:
    """That tasks of a dispatch key wait; "" stands for any queue, or any kind."""

    tenant: str
    queue: str
    kind: str
    paused_us: int
    paused_by: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ArtifactType:
    """A registered type; `schema` is a JSON Schema as JSON text, "" for anything."""

    tenant: str
    name: str
    version: int
    schema: str
    description: str
    created_us: int
    options: TypeOptions = DEFAULT_OPTIONS

    @property
    def notice(self) -> str:
        """What whoever publishes it is told; "" where it is not deprecated."""
        if not self.options.deprecated:
            return ""
        return self.options.deprecation or f"the type {self.name} is deprecated"


@dataclass(frozen=True, slots=True)
class Activation:
    """An agent that an artifact activates, with what its task needs.

    Attributes:
        delay_us: Delivery waits this long after publication (visibility After).
        limited: The agent bounds how many of its tasks run at once.
        gate: Where the artifact waits for others first, or None.
        key: Its key in a join.
    """

    agent: str
    kind: str
    queue: str
    priority: int
    retry: RetryPolicy
    timeouts: Timeouts
    delay_us: int = 0
    limited: bool = False
    gate: Gate | None = None
    key: str = ""
