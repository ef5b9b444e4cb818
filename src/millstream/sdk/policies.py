"""What agents and tasks are registered or made with: subscriptions, visibility, retries, timeouts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, TypeAlias

from google.protobuf.duration_pb2 import Duration as WireDuration
from pydantic import BaseModel

from millstream.v1 import agent_pb2, artifact_pb2, retry_pb2, run_pb2

Seconds: TypeAlias = float | timedelta
"""A length of time: a number of seconds, or a timedelta."""

TypeRef: TypeAlias = type[BaseModel] | str
"""An artifact type: the model that declares it, or the name of one registered elsewhere."""


def type_name(ref: TypeRef) -> str:
    """Name of the type: the model's bare name."""
    return ref if isinstance(ref, str) else ref.__name__


def duration(value: Seconds) -> WireDuration:
    """The length of time as the wire has it."""
    wire = WireDuration()
    wire.FromTimedelta(value if isinstance(value, timedelta) else timedelta(seconds=value))
    return wire


def seconds(message: Any, name: str) -> float | None:
    """The length of time in the field `name`, in seconds; None where it is absent."""
    if not message.HasField(name):
        return None
    wire: WireDuration = getattr(message, name)
    return wire.seconds + wire.nanos / 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When and how often a failed task is tried again.

    Attempt n waits `initial_interval * factor^(n-1)`, at most `maximum_interval`, times a random number
    between `1 - jitter` and `1 + jitter`. What is None is the service's default.
    """

    initial_interval: Seconds | None = None
    """Wait before the second attempt. Default 1 s."""
    factor: float | None = None
    """Growth of the wait. Default 2."""
    maximum_interval: Seconds | None = None
    """The longest wait. Default 60 s."""
    jitter: float | None = None
    """Share of the wait that is random, 0 to 1. Default 0.1."""
    max_attempts: int | None = None
    """Attempts in all. Default 3."""
    non_retryable_codes: Sequence[str] = ()
    """Failures with these codes are final at once."""

    def to_wire(self) -> retry_pb2.RetryPolicy:
        """The message of the contract."""
        return retry_pb2.RetryPolicy(
            initial_interval=None if self.initial_interval is None else duration(self.initial_interval),
            factor=self.factor,
            maximum_interval=None if self.maximum_interval is None else duration(self.maximum_interval),
            jitter=self.jitter,
            max_attempts=self.max_attempts,
            non_retryable_codes=self.non_retryable_codes,
        )

    @classmethod
    def from_wire(cls, wire: retry_pb2.RetryPolicy) -> "RetryPolicy":
        """The value of a message."""
        return cls(
            initial_interval=seconds(wire, "initial_interval"),
            factor=wire.factor if wire.HasField("factor") else None,
            maximum_interval=seconds(wire, "maximum_interval"),
            jitter=wire.jitter if wire.HasField("jitter") else None,
            max_attempts=wire.max_attempts if wire.HasField("max_attempts") else None,
            non_retryable_codes=tuple(wire.non_retryable_codes),
        )


@dataclass(frozen=True, slots=True)
class Concurrency:
    """At most `limit` tasks with this key run at once, over all workers of the tenant."""

    key: str
    limit: int

    def to_wire(self) -> run_pb2.Concurrency:
        """The message of the contract."""
        return run_pb2.Concurrency(key=self.key, limit=self.limit)


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most `limit` tasks with this key start in any `period`, over all workers of the tenant."""

    key: str
    limit: int
    period: Seconds

    def to_wire(self) -> run_pb2.RateLimit:
        """The message of the contract."""
        return run_pb2.RateLimit(key=self.key, limit=self.limit, period=duration(self.period))


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long a task may take, enforced by the service. None is its default."""

    schedule_to_start: Seconds | None = None
    """From ready to started; when it passes the task fails finally. Default: none."""
    start_to_close: Seconds | None = None
    """From start to the end of one attempt. Default 5 min."""
    heartbeat: Seconds | None = None
    """Longest silence between two heartbeats. Default: none are asked for."""

    def to_wire(self) -> retry_pb2.Timeouts:
        """The message of the contract."""
        return retry_pb2.Timeouts(
            schedule_to_start=None if self.schedule_to_start is None else duration(self.schedule_to_start),
            start_to_close=None if self.start_to_close is None else duration(self.start_to_close),
            heartbeat=None if self.heartbeat is None else duration(self.heartbeat),
        )

    @classmethod
    def from_wire(cls, wire: retry_pb2.Timeouts) -> "Timeouts":
        """The value of a message."""
        return cls(
            schedule_to_start=seconds(wire, "schedule_to_start"),
            start_to_close=seconds(wire, "start_to_close"),
            heartbeat=seconds(wire, "heartbeat"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Visibility:
    """Who may see an artifact, and which agents it is delivered to. The publisher always sees it."""

    kind: Literal["Public", "Private", "Labelled", "Tenant", "After"] = "Public"
    agents: Sequence[str] = ()
    """For Private: names of agents."""
    required_labels: Sequence[str] = ()
    """For Labelled: labels an agent must all carry."""
    tenant_id: str = ""
    """For Tenant: the publisher's own, which empty stands for."""
    ttl: Seconds | None = None
    """For After: how long it stays hidden."""
    then: "Visibility | None" = None
    """For After: the visibility that follows. Default Public."""

    def to_wire(self) -> artifact_pb2.Visibility:
        """The message of the contract."""
        return artifact_pb2.Visibility(
            kind=self.kind,
            agents=self.agents,
            required_labels=self.required_labels,
            tenant_id=self.tenant_id,
            ttl=None if self.ttl is None else duration(self.ttl),
            then=None if self.then is None else self.then.to_wire(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """What makes artifacts belong together; one of `within` and `within_count`."""

    by: str
    """CEL over `payload` and `artifact`; its value is the key."""
    within: Seconds | None = None
    """They must come within this time of the first."""
    within_count: int | None = None
    """They must be among so many artifacts that the subscription takes one after the other."""

    def to_wire(self) -> agent_pb2.Join:
        """The message of the contract."""
        return agent_pb2.Join(
            by=self.by,
            within=None if self.within is None else duration(self.within),
            within_count=self.within_count,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """How artifacts are collected; one of `size` and `timeout`, or both: whichever comes first."""

    size: int | None = None
    """So many are handed over, 1 to 1,000."""
    timeout: Seconds | None = None
    """What there is is handed over so long after the first."""

    def to_wire(self) -> agent_pb2.Batch:
        """The message of the contract."""
        return agent_pb2.Batch(size=self.size, timeout=None if self.timeout is None else duration(self.timeout))


@dataclass(frozen=True, slots=True)
class Subscription:
    """Which artifacts activate an agent, where the decorator's own options are not enough."""

    types: TypeRef | Sequence[TypeRef]
    """One type or several; one artifact of any of them activates, or with `counts` or `join` all of them."""
    where: str = ""
    """CEL over `payload` and `artifact` (its type, tags, produced_by, partition_key). Empty: all."""
    from_agents: Sequence[str] = ()
    """Only artifacts made by these agents ("external" for clients). Empty: anyone's."""
    tags: Sequence[str] = ()
    """Only artifacts with at least one of these tags. Empty: with any tags or none."""
    priority: int = 0
    """Urgency of the tasks, -100 to 100, the higher the sooner."""
    delivery: Literal["broadcast", "exclusive"] = "broadcast"
    """Every agent that matches is activated, or only one of the exclusive ones."""
    mode: Literal["both", "events", "direct"] = "both"
    """Activated by what is published ("events"), when run by name ("direct"), or both."""
    counts: Mapping[TypeRef, int] = field(default_factory=dict)
    """An AND gate: so many of each type, handed over in one task. A type that is not named counts 1."""
    join: Join | None = None
    """An AND gate by key: one of each type, or as `counts` says."""
    batch: Batch | None = None
    """Artifacts are collected and handed over in one task."""
    scope: Literal["", "correlation", "tenant"] = ""
    """Where parts come from. Default: "tenant" for a batch, else "correlation"."""
    gate_timeout: Seconds | None = None
    """How long parts wait for the rest, where neither `join.within` nor `batch.timeout` says it. Default 1 hour."""

    @property
    def gated(self) -> bool:
        """Artifacts wait for others, and are handed over together."""
        return bool(self.counts) or self.join is not None or self.batch is not None

    def refs(self) -> tuple[TypeRef, ...]:
        """The types, always as several."""
        if isinstance(self.types, str | type):
            return (self.types,)
        return tuple(self.types)

    def to_wire(self) -> agent_pb2.Subscription:
        """The message of the contract."""
        return agent_pb2.Subscription(
            types=[type_name(ref) for ref in self.refs()],
            where=self.where,
            from_agents=self.from_agents,
            tags=self.tags,
            priority=self.priority,
            delivery=self.delivery,
            mode="" if self.mode == "both" else self.mode,
            counts={type_name(ref): count for ref, count in self.counts.items()},
            join=None if self.join is None else self.join.to_wire(),
            batch=None if self.batch is None else self.batch.to_wire(),
            scope=self.scope,
            gate_timeout=None if self.gate_timeout is None else duration(self.gate_timeout),
        )
