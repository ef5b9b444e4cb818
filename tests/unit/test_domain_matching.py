"""Matching: which agents an artifact activates."""

from collections.abc import Callable
from typing import Any

import pytest

from millstream.domain.agents import Agent, AgentSpec, Subscription
from millstream.domain.artifacts import NewArtifact, Visibility
from millstream.domain.matching import match, routes_of


def agent(name: str, *subscriptions: Subscription, **fields: Any) -> Agent:
    """An agent; by default it consumes Orders."""
    spec = AgentSpec(name, subscriptions=subscriptions or (Subscription(("Order",)),), **fields)
    return Agent(name, "t", spec, 1, 0, 0)


def no_key(_: Subscription) -> str | None:
    """No artifact has a key."""
    return None


def activated(
    *agents: Agent,
    new: NewArtifact | None = None,
    producer: str = "external",
    holds: Callable[[Subscription], bool] = lambda subscription: True,
) -> list[str]:
    """Names of the agents that an artifact activates, in order."""
    new = new or NewArtifact("Order")
    return [found.agent for found in match(routes_of(agents).get(new.type, ()), new, producer, "t", holds, no_key)]


def test_agents_are_activated_by_type() -> None:
    """FL-14: any of a subscription's types."""
    either, other = Subscription(("Payment", "Order")), Subscription(("Other",))
    assert activated(agent("a"), agent("b", either), agent("c", other)) == ["a", "b"]


def test_an_agent_is_activated_once() -> None:
    """FL-14: however many of its subscriptions match; by the most urgent of them."""
    both = agent("a", Subscription(("Order",), priority=1), Subscription(("Order",), priority=7))
    (found,) = match(routes_of([both])["Order"], NewArtifact("Order"), "external", "t", lambda _: True, no_key)
    assert found.priority == 7


def test_the_most_urgent_comes_first_then_by_name() -> None:
    """FL-14: the same on every server."""
    agents = [agent("b"), agent("a"), agent("z", Subscription(("Order",), priority=3))]
    assert activated(*agents) == activated(*reversed(agents)) == ["z", "a", "b"]


def test_of_exclusive_subscriptions_the_first_takes_it() -> None:
    """FL-14: beside all broadcasts."""
    exclusive = Subscription(("Order",), delivery="exclusive")
    assert activated(agent("b", exclusive), agent("a", exclusive), agent("c")) == ["a", "c"]


def test_an_exclusive_subscription_that_does_not_match_leaves_it_to_the_next() -> None:
    """FL-14."""
    first = Subscription(("Order",), where="no", delivery="exclusive")
    second = Subscription(("Order",), delivery="exclusive")
    agents = [agent("a", first), agent("b", second)]
    assert activated(*agents, holds=lambda subscription: False) == ["b"]


def test_conditions_are_asked_last_and_only_where_there_are_any() -> None:
    """Rule 4: what costs most comes last."""
    asked: list[str] = []

    def holds(subscription: Subscription) -> bool:
        asked.append(subscription.where)
        return subscription.where == "yes"

    agents = [
        agent("a", Subscription(("Order",), where="yes")),
        agent("b", Subscription(("Order",), where="no")),
        agent("c", Subscription(("Order",), where="never", tags=("x",))),
        agent("d"),
    ]
    assert activated(*agents, holds=holds) == ["a", "d"]
    assert asked == ["yes", "no"]


@pytest.mark.parametrize(
    ("tags", "wanted", "expected"),
    [((), (), True), (("a",), (), True), ((), ("a",), False), (("a", "b"), ("b", "c"), True), (("a",), ("b",), False)],
)
def test_tags_are_channels(tags: tuple[str, ...], wanted: tuple[str, ...], expected: bool) -> None:
    """FL-14: at least one in common; none wanted is any."""
    found = activated(agent("a", Subscription(("Order",), tags=wanted)), new=NewArtifact("Order", tags=tags))
    assert bool(found) is expected


@pytest.mark.parametrize(
    ("wanted", "expected"), [((), True), (("maker",), True), (("x", "maker"), True), (("x",), False)]
)
def test_producers_select(wanted: tuple[str, ...], expected: bool) -> None:
    """FL-14: from_agents."""
    found = activated(agent("a", Subscription(("Order",), from_agents=wanted)), producer="maker")
    assert bool(found) is expected


def test_what_an_agent_may_not_see_does_not_activate_it() -> None:
    """FL-6: by its name and labels, for what stays once every After has passed."""
    private = Visibility("Private", agents=("a",))
    later = Visibility("After", ttl_us=5, then=Visibility("After", ttl_us=7, then=private))
    agents = [agent("a"), agent("b")]
    assert activated(*agents, new=NewArtifact("Order", visibility=private)) == ["a"]
    assert activated(*agents, new=NewArtifact("Order", visibility=later)) == ["a"]
    (found,) = match(
        routes_of(agents)["Order"],
        NewArtifact("Order", visibility=later),
        "external",
        "t",
        lambda _: True,
        no_key,
    )
    assert found.delay_us == 12


def test_a_bounded_agents_tasks_are_marked() -> None:
    """FL-14: max_concurrency."""
    routes = routes_of([agent("a", max_concurrency=2), agent("b")])["Order"]
    found = match(routes, NewArtifact("Order"), "external", "t", lambda _: True, no_key)
    assert [(item.agent, item.limited, item.kind) for item in found] == [
        ("a", True, "agent:a"),
        ("b", False, "agent:b"),
    ]
