"""Agents: registered and read."""

from millstream.sdk.calls import Area, Listing, choice
from millstream.sdk.results import Agent
from millstream.v1 import agent_pb2
from millstream.v1 import agent_service_pb2 as wire


class Agents(Area):
    """Reads agents. Workers register theirs when they connect."""

    def list(self, *, name: str = "", status: str = "", page_size: int = 100) -> Listing[Agent]:
        """Lists agents by name; `status` is "ONLINE" or "OFFLINE".

        Raises:
            ValueError: there is no such status.
        """
        wanted = choice(agent_pb2.Agent.Status, status)

        async def fetch(cursor: str | None) -> tuple[list[Agent], str | None]:
            request = wire.ListAgentsRequest(name=name, status=wanted, page_size=page_size, page_token=cursor or "")
            page = await self._calls.read("AgentService/ListAgents", request, wire.ListAgentsResponse)
            return [Agent.from_wire(item) for item in page.items], page.pagination.next_page_token

        return Listing(fetch)

    async def get(self, agent: str) -> Agent:
        """Gets an agent by its name or its id."""
        request = wire.GetAgentRequest(agent_id=agent)
        return Agent.from_wire(await self._calls.read("AgentService/GetAgent", request, wire.GetAgentResponse))
