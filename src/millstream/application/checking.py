"""What an agent may ask for: its conditions compile, its types are known, its gates make sense."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from millstream.application.catalog import Catalogs
from millstream.domain.addresses import Network, url_fault
from millstream.domain.agents import HTTP, WORKER, AgentSpec, Subscription
from millstream.domain.artifacts import EXTERNAL
from millstream.domain.errors import FieldFault, NotFound, ValidationFailed

COUNTS_MOST = 100
"""Artifacts that an AND gate takes: a task is given all of them at once."""
WAIT_US = 3_600_000_000
"""How long what waits in a gate does, where nothing else is said."""


def check_agent(catalogs: Catalogs, spec: AgentSpec, types: set[str], networks: Sequence[Network] = ()) -> None:
    """Raise ValidationFailed on a bad condition, key, gate or address, NotFound on a type that is not registered."""
    faults: list[FieldFault] = []
    if spec.name == EXTERNAL:
        # It would pass for the producer of all that clients publish.
        faults.append(FieldFault("name", f"{EXTERNAL!r} stands for clients; choose another name"))
    if spec.timeouts.fault:
        faults.append(FieldFault("timeouts.heartbeat", spec.timeouts.fault))
    faults += _called(spec, networks)
    for index, subscription in enumerate(spec.subscriptions):
        field = f"subscriptions[{index}]"
        faults += _expressions(catalogs, subscription, field)
        faults += _gates(subscription, field) if subscription.mode != "direct" else _unused(subscription, field)
        unknown = sorted(set(subscription.types) - types)
        if unknown:
            raise NotFound(
                f"there is no artifact type {unknown[0]!r}; register it first",
                [FieldFault(f"{field}.types", f"{name!r} is not registered", "NOT_FOUND") for name in unknown],
            )
    if faults:
        raise ValidationFailed(f"{faults[0].field}: {faults[0].message}", faults)


def _called(spec: AgentSpec, networks: Sequence[Network]) -> Iterator[FieldFault]:
    """What is wrong with how the servers are to call an agent."""
    if not spec.remote:
        if spec.url:
            text = f"has no effect with the protocol {WORKER}, whose workers connect; leave it out, or use A2A or HTTP"
            yield FieldFault("url", text)
        return
    if not spec.url:
        yield FieldFault("url", f"is needed with the protocol {spec.protocol}: where the server calls it", "REQUIRED")
    elif fault := url_fault(spec.url, networks):
        yield FieldFault("url", fault)
    if spec.protocol == HTTP and spec.timeouts.heartbeat_us:
        text = "has no effect with the protocol HTTP, which gives no sign of life; leave it out, or use A2A"
        yield FieldFault("timeouts.heartbeat", text)


def _expressions(catalogs: Catalogs, subscription: Subscription, field: str) -> Iterator[FieldFault]:
    compile_, compile_key = catalogs.predicates.compile, catalogs.predicates.compile_key
    if subscription.where and (reason := _compiles(compile_, subscription.where)):
        yield FieldFault(f"{field}.where", f"is no condition: {reason}")
    if subscription.join and (reason := _compiles(compile_key, subscription.join.key)):
        yield FieldFault(f"{field}.join.by", f"is no key: {reason}")


def _compiles(compile_: Callable[[str], object], text: str) -> str:
    """What is wrong with an expression, or ""."""
    try:
        compile_(text)
    except ValueError as error:
        return str(error) or "does not compile"
    return ""


def _unused(sub: Subscription, field: str) -> Iterator[FieldFault]:
    """What a subscription says that holds for published artifacts only, though it takes none."""
    given = {
        "where": sub.where,
        "from_agents": sub.from_agents,
        "tags": sub.tags,
        "delivery": sub.delivery == "exclusive",
        "counts": sub.counts,
        "join": sub.join,
        "batch": sub.batch,
        "scope": sub.scope,
        "gate_timeout": sub.wait_us,
    }
    for name in [name for name, value in given.items() if value]:
        text = 'has no effect with mode direct: who runs the agent chooses its inputs; leave it out, or use mode "both"'
        yield FieldFault(f"{field}.{name}", text)


def _gates(sub: Subscription, field: str) -> Iterator[FieldFault]:
    counts, join, batch = dict(sub.counts), sub.join, sub.batch
    for name in sorted(counts.keys() - set(sub.types)):
        yield FieldFault(f"{field}.counts", f"names {name!r}, which is not among the types; add it there")
    together = sum(counts.get(name, 1) for name in sub.types)
    if together > COUNTS_MOST:
        yield FieldFault(f"{field}.counts", f"must be at most {COUNTS_MOST} together", "OUT_OF_RANGE")
    if batch and (counts or join):
        yield FieldFault(f"{field}.batch", "cannot be together with counts or join; leave one of them out")
    if batch and not (batch.size or batch.timeout_us):
        yield FieldFault(f"{field}.batch", "needs a size or a timeout", "REQUIRED")
    if join and bool(join.within_us) == bool(join.within_count):
        yield FieldFault(f"{field}.join", "needs either within or within_count", "REQUIRED")
    if join and 0 < join.within_count < together:
        text = f"must be at least {together}, as many as belong together; raise it, or ask for fewer"
        yield FieldFault(f"{field}.join.within_count", text, "OUT_OF_RANGE")
    if join and len(sub.types) == 1 and counts.get(sub.types[0], 1) == 1:
        yield FieldFault(f"{field}.join", "has nothing to join: name more types, or a count over 1")
    if not sub.gated and (sub.scope or sub.wait_us):
        name = "scope" if sub.scope else "gate_timeout"
        yield FieldFault(f"{field}.{name}", "has no effect without counts, join or batch; leave it out")
    if sub.wait_us and (batch or (join and join.within_us)):
        other = "batch.timeout" if batch else "join.within"
        yield FieldFault(f"{field}.gate_timeout", f"has no effect here: {other} says it; leave it out")


def normalized(spec: AgentSpec) -> AgentSpec:
    """The specification with its defaults spelled out."""
    return replace(spec, subscriptions=_all(spec.subscriptions), queue=spec.queue or "default")


def _all(subscriptions: Sequence[Subscription]) -> tuple[Subscription, ...]:
    return tuple(_normalized(sub) for sub in subscriptions)


def _normalized(sub: Subscription) -> Subscription:
    sub = replace(sub, delivery=sub.delivery or "broadcast", mode=sub.mode or "both")
    if not sub.gated or sub.mode == "direct":
        return sub
    if sub.batch is not None:
        batch = sub.batch if sub.batch.timeout_us or not sub.batch.size else replace(sub.batch, timeout_us=WAIT_US)
        return replace(sub, scope=sub.scope or "tenant", batch=batch)
    waits = 0 if sub.join is not None and sub.join.within_us else WAIT_US
    return replace(sub, scope=sub.scope or "correlation", wait_us=sub.wait_us or waits)
