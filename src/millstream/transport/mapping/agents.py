"""Agents and their subscriptions."""

from typing import Any

from millstream.application.views.agents import AgentDetail, AgentHistory, AgentState
from millstream.application.views.artifacts import SyncResult
from millstream.domain.agents import WORKER, AgentSpec, Collect, Join, Subscription
from millstream.domain.errors import ValidationFailed
from millstream.domain.workers import ServingWorker
from millstream.transport.mapping.artifacts import put_artifact, put_failure
from millstream.transport.mapping.policies import put_retry, put_timeouts, retry_of, timeouts_of
from millstream.transport.mapping.times import duration_us, put, put_duration
from millstream.wire.v1 import agent_pb2
from millstream.wire.v1 import agent_service_pb2 as wire


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
        **_called(message),
    )


def _called(message: Any) -> dict[str, str]:
    """How the servers call the agent. What a worker registers says nothing of it."""
    if "protocol" not in message.DESCRIPTOR.fields_by_name:
        return {}
    return {"protocol": message.protocol.upper() or WORKER, "url": message.url}


def expected(request: wire.UpdateAgentRequest) -> int | None:
    """The version that the agent must have, by its own field or as it was read. Raises ValidationFailed."""
    given = request.expected_version if request.HasField("expected_version") else None
    read = request.version or None
    if given is not None and read is not None and given != read:
        raise ValidationFailed.of("expected_version", f"is not the version {read} that was read; leave one of them out")
    return given if given is not None else read


def _subscription(message: agent_pb2.Subscription) -> Subscription:
    given = message.HasField
    join, batch = message.join, message.batch
    return Subscription(
        types=tuple(message.types),
        where=message.where,
        from_agents=tuple(message.from_agents),
        tags=tuple(message.tags),
        priority=message.priority,
        delivery=message.delivery or "broadcast",
        mode=message.mode or "both",
        counts=tuple(sorted(message.counts.items())),
        join=Join(join.by, duration_us(join.within), join.within_count) if given("join") else None,
        batch=Collect(batch.size, duration_us(batch.timeout)) if given("batch") else None,
        scope=message.scope,
        wait_us=duration_us(message.gate_timeout),
    )


def _put_subscription(out: agent_pb2.Subscription, each: Subscription) -> None:
    out.types.extend(each.types)
    out.where = each.where
    out.from_agents.extend(each.from_agents)
    out.tags.extend(each.tags)
    out.priority = each.priority
    out.delivery = each.delivery
    out.mode = each.mode
    out.counts.update(dict(each.counts))
    out.scope = each.scope
    if each.join is not None:
        out.join.by = each.join.key
        if each.join.within_us:
            put_duration(out.join.within, each.join.within_us)
        if each.join.within_count:
            out.join.within_count = each.join.within_count
    if each.batch is not None:
        out.batch.SetInParent()
        if each.batch.size:
            out.batch.size = each.batch.size
        if each.batch.timeout_us:
            put_duration(out.batch.timeout, each.batch.timeout_us)
    if each.wait_us:
        put_duration(out.gate_timeout, each.wait_us)


def put_detail(out: agent_pb2.Agent, detail: AgentDetail) -> agent_pb2.Agent:
    """Write what waits in an agent's gates, and who serves it."""
    out.worker_count = detail.worker_count
    for worker in detail.workers:
        put_serving(out.served_by.add(), worker)
    waiting = detail.waiting
    out.waiting_gates = waiting.total
    for gate in waiting.gates:
        found = out.gates.add(
            correlation_id=gate.run_id,
            key=gate.key,
            have=gate.have,
            need=dict(gate.need),
            batch_size=gate.size,
            within_count=gate.window,
            artifact_ids=gate.artifact_ids,
            artifact_ids_truncated=len(gate.artifact_ids) < sum(gate.have.values()),
        )
        if gate.subscription is not None:
            found.subscription = gate.subscription
        put(found.opened_at, gate.opened_us)
        put(found.expires_at, gate.expires_us)
    return out


def put_serving(out: agent_pb2.ServingWorker, worker: ServingWorker) -> None:
    """Write a connected worker, in few words."""
    out.worker_id, out.name, out.server = worker.worker_id, worker.name, worker.server
    put(out.connected_at, worker.connected_us)
    put(out.last_seen_at, worker.seen_us)


def put_history(out: wire.GetAgentHistorySummaryResponse, history: AgentHistory) -> wire.GetAgentHistorySummaryResponse:
    """Write what an agent has made and taken up."""
    for counts, by_type in ((out.summary.produced, history.produced), (out.summary.consumed, history.consumed)):
        counts.SetInParent()
        counts.total = sum(by_type.values())
        counts.by_type.update(by_type)
    out.summary.truncated = history.truncated
    return out


def put_result(out: wire.RunAgentResponse, result: SyncResult) -> wire.RunAgentResponse:
    """Write what a run of an agent made."""
    out.correlation_id = result.correlation_id
    out.completed = result.completed
    out.duration_ms = result.duration_ms
    for artifact in result.artifacts:
        put_artifact(out.artifacts.add(), artifact)
    for failure in result.failures:
        put_failure(out.failures.add(), failure)
    if result.next_page_token:
        out.truncated = True
        out.next_page_token = result.next_page_token
    if result.notice:
        out.deprecation = result.notice
    return out


def put_agent(out: agent_pb2.Agent, state: AgentState) -> agent_pb2.Agent:
    """Write an agent."""
    agent = state.agent
    spec = agent.spec
    out.id = agent.id
    out.name = spec.name
    out.description = spec.description
    for each in spec.subscriptions:
        _put_subscription(out.subscriptions.add(), each)
    out.outputs.extend(spec.outputs)
    out.labels.extend(spec.labels)
    out.max_concurrency = spec.max_concurrency
    out.queue = spec.queue
    put_retry(out.retry, spec.retry)
    put_timeouts(out.timeouts, spec.timeouts)
    out.protocol = spec.protocol
    out.url = spec.url
    out.version = agent.version
    out.status = agent_pb2.Agent.Status.Value(state.status)
    if state.pause is not None:
        put(out.pause.paused_at, state.pause.paused_us)
        out.pause.paused_by = state.pause.paused_by
        out.pause.reason = state.pause.reason
    put(out.deleted_at, agent.deleted_us)
    put(out.created_at, agent.created_us)
    put(out.updated_at, agent.updated_us)
    return out
