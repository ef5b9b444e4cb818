"""Agents: registered, read, paused, run by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from millstream.sdk.agent_results import Agent, AgentHistory
from millstream.sdk.agent_spec import fill_spec
from millstream.sdk.artifacts import SYNC_MARGIN_S, NewArtifact, sync_result
from millstream.sdk.calls import Area, Listing, choice
from millstream.sdk.context import Publishable
from millstream.sdk.execution import fill_publication
from millstream.sdk.policies import RetryPolicy, Subscription, Timeouts, TypeRef, type_name
from millstream.sdk.results import SyncResult
from millstream.v1 import agent_pb2
from millstream.v1 import agent_service_pb2 as wire


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAgent:
    """What registers an agent, or replaces its registration."""

    name: str
    description: str = ""
    subscriptions: Sequence[Subscription] = ()
    outputs: Sequence[TypeRef] = ()
    """Types it publishes. Empty: any."""
    labels: Sequence[str] = ()
    max_concurrency: int = 0
    """Tasks of it at once over all workers. 0: no bound."""
    queue: str = ""
    retry: RetryPolicy | None = None
    timeouts: Timeouts | None = None
    protocol: str = ""
    """"A2A" or "HTTP": the service calls the agent at `url` itself. Empty: workers serve it."""
    url: str = ""

    def fields(self) -> dict[str, Any]:
        """The fields of a request."""
        return {
            "name": self.name,
            "description": self.description,
            "subscriptions": [each.to_wire() for each in self.subscriptions],
            "outputs": [type_name(each) for each in self.outputs],
            "labels": self.labels,
            "max_concurrency": self.max_concurrency,
            "queue": self.queue,
            "retry": self.retry.to_wire() if self.retry else None,
            "timeouts": self.timeouts.to_wire() if self.timeouts else None,
            "protocol": self.protocol,
            "url": self.url,
        }


class Agents(Area):
    """Agents. Workers register theirs when they connect; `NewAgent`, or a dict as the contract has it, does too."""

    def list(self, *, name: str = "", status: str = "", page_size: int = 100) -> Listing[Agent]:
        """Lists agents by name; `status` is "ONLINE", "OFFLINE", "PAUSED" or "DELETED".

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
        """Gets an agent by its name or its id, with what waits in its gates and who serves it."""
        request = wire.GetAgentRequest(agent_id=agent)
        return Agent.from_wire(await self._calls.read("AgentService/GetAgent", request, wire.GetAgentResponse))

    async def create(self, spec: NewAgent | Mapping[str, Any]) -> Agent:
        """Registers an agent.

        Raises:
            PayloadError: the dict has a field that the contract does not know, or of another kind.
        """
        request = _filled(wire.CreateAgentRequest(), spec)
        answer = await self._calls.write("AgentService/CreateAgent", request, wire.CreateAgentResponse)
        return Agent.from_wire(answer.message)

    async def update(
        self, agent: str, spec: NewAgent | Mapping[str, Any], *, expected_version: int | None = None
    ) -> Agent:
        """Replaces what an agent is registered with; only where it has the expected version, if one is given.

        Raises:
            PayloadError: the dict has a field that the contract does not know, or of another kind.
        """
        request = _filled(wire.UpdateAgentRequest(), spec)
        request.agent_id = agent
        if expected_version is not None:
            request.expected_version = expected_version
        answer = await self._calls.write("AgentService/UpdateAgent", request, wire.UpdateAgentResponse)
        return Agent.from_wire(answer.message)

    async def delete(self, agent: str) -> None:
        """Deletes an agent: nothing activates it any more; tasks it has are worked off."""
        request = wire.DeleteAgentRequest(agent_id=agent)
        await self._calls.write("AgentService/DeleteAgent", request, wire.DeleteAgentResponse)

    async def pause(self, agent: str, reason: str = "") -> Agent:
        """Pauses an agent: its tasks wait until it is resumed; what runs goes on."""
        request = wire.PauseAgentRequest(agent_id=agent, reason=reason)
        answer = await self._calls.write("AgentService/PauseAgent", request, wire.PauseAgentResponse)
        return Agent.from_wire(answer.message)

    async def resume(self, agent: str) -> Agent:
        """Resumes a paused agent: what waits goes to its workers."""
        request = wire.ResumeAgentRequest(agent_id=agent)
        answer = await self._calls.write("AgentService/ResumeAgent", request, wire.ResumeAgentResponse)
        return Agent.from_wire(answer.message)

    async def run(
        self,
        agent: str,
        *inputs: Publishable | NewArtifact,
        timeout: float = 30.0,  # noqa: ASYNC109  (the service's own wait, not this call's)
        fail_on_timeout: bool = False,
        idempotency_key: str = "",
    ) -> SyncResult:
        """Runs an agent by name on the inputs and waits until all that follows is done; the result has what the agent
        itself made. An input that is a NewArtifact may have a `payload_ref`.

        Raises:
            PayloadError: an input is not JSON.
            ServiceError: the service refused it.
            ValueError: an input has what those of a run by name cannot have, such as tags.
        """
        request = wire.RunAgentRequest(agent_id=agent, timeout=timeout, fail_on_timeout=fail_on_timeout)
        for item in inputs:
            new = item if isinstance(item, NewArtifact) else NewArtifact(item)
            if new != NewArtifact(new.item, payload_ref=new.payload_ref):
                raise ValueError("an input of a run by name has a type, data and payload_ref, and nothing else")
            fill_publication(request.inputs.add(), new.item, new.payload_ref)
        answer = await self._calls.write(
            "AgentService/RunAgent",
            request,
            wire.RunAgentResponse,
            key=idempotency_key,
            timeout_s=timeout + SYNC_MARGIN_S,
        )
        return sync_result(answer.message, answer.replayed)

    async def history(self, agent: str) -> AgentHistory:
        """Counts what an agent has made and taken up."""
        request = wire.GetAgentHistorySummaryRequest(agent_id=agent)
        rpc, response = "AgentService/GetAgentHistorySummary", wire.GetAgentHistorySummaryResponse
        found = (await self._calls.read(rpc, request, response)).summary
        return AgentHistory(dict(found.produced.by_type), dict(found.consumed.by_type), found.truncated)


def _filled(request: Any, spec: NewAgent | Mapping[str, Any]) -> Any:
    if isinstance(spec, NewAgent):
        request.MergeFrom(type(request)(**{name: value for name, value in spec.fields().items() if value}))
        return request
    return fill_spec(request, spec)
