"""Agents and their subscriptions."""

from typing import Any

from millstream.domain.agents import Agent, AgentSpec, Subscription
from millstream.transport.mapping.policies import put_retry, put_timeouts, retry_of, timeouts_of
from millstream.transport.mapping.times import put
from millstream.wire.v1 import agent_pb2

ONLINE = agent_pb2.Agent.Status.ONLINE
OFFLINE = agent_pb2.Agent.Status.OFFLINE


def agent_spec(message: Any) -> AgentSpec:
    """The agent to register, from CreateAgentRequest or AgentSpec."""
    return AgentSpec(
        name=message.name,
        description=message.description,
        subscriptions=tuple(_subscription(each) for each in message.subscriptions),
        outputs=tuple(message.outputs),
        labels=tuple(message.labels),
        max_concurrency=message.max_concurrency,
        queue=message.queue or "default",
        retry=retry_of(message.retry),
        timeouts=timeouts_of(message.timeouts),
    )


def _subscription(message: agent_pb2.Subscription) -> Subscription:
    return Subscription(
        types=tuple(message.types),
        where=message.where,
        from_agents=tuple(message.from_agents),
        tags=tuple(message.tags),
        priority=message.priority,
        delivery=message.delivery or "broadcast",
        mode=message.mode or "both",
    )


def put_agent(out: agent_pb2.Agent, agent: Agent, online: bool) -> agent_pb2.Agent:
    """Write an agent."""
    spec = agent.spec
    out.id = agent.id
    out.name = spec.name
    out.description = spec.description
    for each in spec.subscriptions:
        out.subscriptions.add(
            types=each.types,
            where=each.where,
            from_agents=each.from_agents,
            tags=each.tags,
            priority=each.priority,
            delivery=each.delivery,
            mode=each.mode,
        )
    out.outputs.extend(spec.outputs)
    out.labels.extend(spec.labels)
    out.max_concurrency = spec.max_concurrency
    out.queue = spec.queue
    put_retry(out.retry, spec.retry)
    put_timeouts(out.timeouts, spec.timeouts)
    out.version = agent.version
    out.status = ONLINE if online else OFFLINE
    put(out.created_at, agent.created_us)
    put(out.updated_at, agent.updated_us)
    return out
