"""Which agents an artifact activates."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from millstream.domain.agents import Activation, Agent, Subscription
from millstream.domain.artifacts import NewArtifact, Reader, delay_us, settled, visible
from millstream.domain.gates import Gate

Predicate = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Route:
    """A subscription of an agent, with what its tasks need.

    Attributes:
        activation: What is handed to the planner, without a delay.
        labels: Labels of the agent.
    """

    agent: Agent
    subscription: Subscription
    activation: Activation
    labels: frozenset[str]


def gate_of(subscription: Subscription) -> Gate | None:
    """Where artifacts of a subscription wait for others; None where each stands alone."""
    if not subscription.gated:
        return None
    counts, join, batch = dict(subscription.counts), subscription.join, subscription.batch
    need = () if batch else tuple((name, counts.get(name, 1)) for name in subscription.types)
    return Gate(
        fingerprint(subscription),
        need,
        batch.size if batch else 0,
        (batch.timeout_us if batch else 0) or (join.within_us if join else 0) or subscription.wait_us,
        join.within_count if join else 0,
        subscription.scope == "tenant",
    )


def fingerprint(subscription: Subscription) -> str:
    """What tells a gate apart: parts stay in it while sizes and times of the subscription change, and its urgency."""
    join = subscription.join
    parts = (
        sorted(subscription.types), subscription.where, sorted(subscription.from_agents), sorted(subscription.tags),
        sorted(subscription.counts), (join.key, bool(join.within_count)) if join else None,
        subscription.batch is not None, subscription.scope,
    )  # fmt: skip
    return hashlib.blake2b(repr(parts).encode(), digest_size=12).hexdigest()


def activation_of(agent: Agent, priority: int) -> Activation:
    """What a task of an agent needs."""
    spec = agent.spec
    return Activation(
        spec.name, agent.kind, spec.queue, priority, spec.retry, spec.timeouts, limited=spec.max_concurrency > 0
    )


def direct(agent: Agent, type_name: str) -> Subscription | None:
    """The most urgent subscription by which an agent takes artifacts of a type when it is run by name."""
    takes = [each for each in agent.spec.subscriptions if each.mode != "events" and type_name in each.types]
    return max(takes, key=lambda each: each.priority, default=None)


def routes_of(agents: Sequence[Agent]) -> dict[str, list[Route]]:
    """Routes by artifact type, the most urgent first, then by the agent's name."""
    found: dict[str, list[Route]] = {}
    for agent in agents:
        spec = agent.spec
        for subscription in spec.subscriptions:
            if subscription.mode == "direct":
                continue
            activation = replace(activation_of(agent, subscription.priority), gate=gate_of(subscription))
            route = Route(agent, subscription, activation, frozenset(spec.labels))
            for name in subscription.types:
                found.setdefault(name, []).append(route)
    for routes in found.values():
        routes.sort(key=lambda route: (-route.subscription.priority, route.agent.spec.name))
    return found


def match(
    routes: Sequence[Route],
    new: NewArtifact,
    producer: str,
    tenant: str,
    holds: Callable[[Subscription], bool],
    key_of: Callable[[Subscription], str | None],
) -> list[Activation]:
    """The activations of an artifact: each agent once (and once more in each of its gates), and of the exclusive
    subscriptions only the first.

    Args:
        holds: Whether a subscription's `where` is true for the artifact; asked last, as it is dearest.
        key_of: The artifact's key in a subscription's join; None where it has none, and is not taken.
    """
    found: list[Activation] = []
    seen: set[str] = set()
    exclusive_taken = False
    wait_us = delay_us(new.visibility)
    for route in routes:
        subscription, activation = route.subscription, route.activation
        gate = activation.gate
        name = activation.agent if gate is None else f"{activation.agent} {gate.sub}"
        exclusive = subscription.delivery == "exclusive"
        if name in seen or (exclusive and exclusive_taken) or not _applies(route, new, producer, tenant):
            continue
        if subscription.where and not holds(subscription):
            continue
        if subscription.join is not None:
            key = key_of(subscription)
            if key is None:
                continue
            activation = replace(activation, key=key)
        seen.add(name)
        exclusive_taken = exclusive_taken or exclusive
        found.append(activation if not wait_us else replace(activation, delay_us=wait_us))
    return found


def _applies(route: Route, new: NewArtifact, producer: str, tenant: str) -> bool:
    subscription = route.subscription
    if subscription.from_agents and producer not in subscription.from_agents:
        return False
    if subscription.tags and not any(tag in new.tags for tag in subscription.tags):
        return False
    if new.visibility.kind == "Public":
        return True
    reader = Reader(tenant, route.agent.spec.name, route.labels)
    return visible(settled(new.visibility), reader, tenant, 0)
