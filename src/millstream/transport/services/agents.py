"""AgentService: registering agents and reading them back."""

import re
from typing import Final

from google.protobuf.message import Message

from millstream.transport.context import Context
from millstream.transport.mapping import agents as mapping
from millstream.transport.mapping.pages import known, page_of, pagination
from millstream.transport.use_cases import Agents
from millstream.wire.v1 import agent_pb2
from millstream.wire.v1 import agent_service_pb2 as wire

_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}").fullmatch


class AgentService:
    """Agents over the wire."""

    def __init__(self, agents: Agents) -> None:
        self._agents = agents

    async def create_agent(self, request: wire.CreateAgentRequest, context: Context) -> Message:
        """Register an agent."""
        spec = mapping.agent_spec(request)
        agent, replayed = await self._agents.create(context.principal, spec, context.key)
        context.replayed(replayed)
        # A worker may serve it already: workers register the same agents.
        _, online = await self._agents.get(context.principal, agent.id)
        return mapping.put_agent(agent_pb2.Agent(), agent, online)

    async def list_agents(self, request: wire.ListAgentsRequest, context: Context) -> Message:
        """List agents."""
        status = known(request.status, mapping.OFFLINE, "status")
        wanted = agent_pb2.Agent.Status.Name(request.status) if status else None
        page = await self._agents.list(context.principal, page_of(request), request.name, wanted)
        out = wire.ListAgentsResponse(pagination=pagination(page.info))
        for agent, online in page.items:
            mapping.put_agent(out.items.add(), agent, online)
        out.agents.extend(out.items)
        return out

    async def get_agent(self, request: wire.GetAgentRequest, context: Context) -> Message:
        """Get an agent by its id or its name."""
        wanted = request.agent_id
        agent, online = await self._agents.get(context.principal, wanted.lower() if _UUID(wanted) else wanted)
        waiting = await self._agents.waiting(context.principal, agent)
        return mapping.put_gates(mapping.put_agent(agent_pb2.Agent(), agent, online), waiting)
