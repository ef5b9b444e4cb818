"""AgentService: registering agents and reading them back."""

import re
from typing import Final, Protocol

from google.protobuf.message import Message

from millstream.application.views.agents import AgentState
from millstream.domain.artifacts import NewArtifact
from millstream.domain.errors import TimedOut
from millstream.transport.context import Context
from millstream.transport.mapping import agents as mapping
from millstream.transport.mapping.pages import known, page_of, pagination
from millstream.transport.mapping.payloads import digest_of
from millstream.transport.notices import tell_deprecated
from millstream.transport.use_cases import Agents
from millstream.wire.v1 import agent_pb2
from millstream.wire.v1 import agent_service_pb2 as wire

DEFAULT_SYNC_S: Final = 30.0
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}").fullmatch


class AgentService:
    """Agents over the wire."""

    def __init__(self, agents: Agents) -> None:
        self._agents = agents

    async def create_agent(self, request: wire.CreateAgentRequest, context: Context) -> Message:
        """Register an agent."""
        state, replayed = await self._agents.create(context.principal, mapping.agent_spec(request), context.key)
        return await self._answer(state, replayed, context)

    async def update_agent(self, request: wire.UpdateAgentRequest, context: Context) -> Message:
        """Replace what an agent is registered with."""
        spec, expected = mapping.agent_spec(request), mapping.expected(request)
        state, replayed = await self._agents.update(
            context.principal, _wanted(request), spec, expected, context.key, request.id.lower()
        )
        return await self._answer(state, replayed, context)

    async def delete_agent(self, request: wire.DeleteAgentRequest, context: Context) -> Message:
        """Delete an agent."""
        context.replayed(await self._agents.delete(context.principal, _wanted(request), context.key))
        return wire.DeleteAgentResponse()

    async def pause_agent(self, request: wire.PauseAgentRequest, context: Context) -> Message:
        """Pause an agent."""
        state, replayed = await self._agents.pause(context.principal, _wanted(request), request.reason, context.key)
        return await self._answer(state, replayed, context)

    async def resume_agent(self, request: wire.ResumeAgentRequest, context: Context) -> Message:
        """Resume an agent."""
        state, replayed = await self._agents.resume(context.principal, _wanted(request), context.key)
        return await self._answer(state, replayed, context)

    async def run_agent(self, request: wire.RunAgentRequest, context: Context) -> Message:
        """Run an agent by name, and wait."""
        timeout_s = request.timeout if request.HasField("timeout") else DEFAULT_SYNC_S
        inputs = [
            NewArtifact(each.type, each.payload, payload_digest=digest_of(each.payload_ref)) for each in request.inputs
        ]
        result = await self._agents.run(context.principal, _wanted(request), inputs, context.key, timeout_s)
        if not result.completed and request.fail_on_timeout:
            raise TimedOut(f"the cascade {result.correlation_id} was not idle within {timeout_s:g} s; it goes on")
        context.replayed(result.replayed)
        context.headers["x-correlation-id"] = result.correlation_id
        tell_deprecated(context, result.notice)
        return mapping.put_result(wire.RunAgentResponse(), result)

    async def get_agent_history_summary(self, request: wire.GetAgentHistorySummaryRequest, context: Context) -> Message:
        """Count what an agent has made and taken up."""
        agent, history = await self._agents.history(context.principal, _wanted(request))
        return mapping.put_history(wire.GetAgentHistorySummaryResponse(agent_id=agent.id), history)

    async def list_agents(self, request: wire.ListAgentsRequest, context: Context) -> Message:
        """List agents."""
        status = known(request.status, agent_pb2.Agent.Status.DELETED, "status")
        wanted = agent_pb2.Agent.Status.Name(request.status) if status else None
        page = await self._agents.list(context.principal, page_of(request), request.name, wanted)
        out = wire.ListAgentsResponse(pagination=pagination(page.info))
        for state in page.items:
            mapping.put_agent(out.items.add(), state)
        out.agents.extend(out.items)
        return out

    async def get_agent(self, request: wire.GetAgentRequest, context: Context) -> Message:
        """Get an agent by its id or its name."""
        return await self._shown(await self._agents.get(context.principal, _wanted(request)), context)

    async def _answer(self, state: AgentState, replayed: bool, context: Context) -> Message:
        context.replayed(replayed)
        return await self._shown(state, context)

    async def _shown(self, state: AgentState, context: Context) -> Message:
        detail = await self._agents.detail(context.principal, state.agent)
        return mapping.put_detail(mapping.put_agent(agent_pb2.Agent(), state), detail)


class _Named(Protocol):
    agent_id: str


def _wanted(request: _Named) -> str:
    """The agent a request names; an id in its canonical form."""
    return request.agent_id.lower() if _UUID(request.agent_id) else request.agent_id
