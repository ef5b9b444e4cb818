"""Which agents an artifact activates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from millstream.domain.agents import Activation, Agent, Subscription
from millstream.domain.artifacts import NewArtifact, Reader, delay_us, settled, visible

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


def routes_of(agents: Sequence[Agent]) -> dict[str, list[Route]]:
    """Routes by artifact type, the most urgent first, then by the agent's name."""
    found: dict[str, list[Route]] = {}
    for agent in agents:
        spec = agent.spec
        for subscription in spec.subscriptions:
            activation = Activation(
                spec.name,
                agent.kind,
                spec.queue,
                subscription.priority,
                spec.retry,
                spec.timeouts,
                limited=spec.max_concurrency > 0,
            )
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
) -> list[Activation]:
    """The activations of an artifact: each agent once, and of the exclusive subscriptions only the first.

    Args:
        holds: Whether a subscription's `where` is true for the artifact; asked last, as it is dearest.
    """
    found: list[Activation] = []
    seen: set[str] = set()
    exclusive_taken = False
    wait_us = delay_us(new.visibility)
    for route in routes:
        name, subscription = route.agent.spec.name, route.subscription
        exclusive = subscription.delivery == "exclusive"
        if name in seen or (exclusive and exclusive_taken) or not _applies(route, new, producer, tenant):
            continue
        if subscription.where and not holds(subscription):
            continue
        seen.add(name)
        exclusive_taken = exclusive_taken or exclusive
        found.append(route.activation if not wait_us else _delayed(route.activation, wait_us))
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


def _delayed(activation: Activation, wait_us: int) -> Activation:
    return Activation(
        activation.agent,
        activation.kind,
        activation.queue,
        activation.priority,
        activation.retry,
        activation.timeouts,
        wait_us,
        activation.limited,
    )
