"""Agents and artifact types: reading what is registered."""

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Protocol, TypeVar

from millstream.application.agent_runs import AgentRuns
from millstream.application.calling import Calling
from millstream.application.catalog import Catalogs
from millstream.application.engine.engine import Engine
from millstream.application.paging import (
    Page,
    PageRequest,
    decode_token,
    encode_token,
    fitting,
    page_info,
    text_bytes,
    token_count,
    token_of,
)
from millstream.application.pauses import Pauses
from millstream.application.registering import Registering, named
from millstream.application.sight import restricted
from millstream.application.views.agents import AgentDetail, AgentHistory, AgentState
from millstream.application.views.artifacts import SyncResult
from millstream.application.views.idempotency import Key
from millstream.application.views.types import TypeChange, TypeSpec
from millstream.application.waiting_gates import WaitingGates
from millstream.domain.agents import Agent, AgentSpec, ArtifactType, Pause, Subscription
from millstream.domain.artifacts import NewArtifact, Reader
from millstream.domain.errors import NotFound
from millstream.domain.principals import Principal

T = TypeVar("T")

DELETED_MOST = 10_000
WORKERS_SHOWN = 100
SILENT_US = 15_000_000
"""A server not seen for this long is gone, and its workers with it."""


def type_bytes(found: ArtifactType) -> int:
    """About what a type takes in a list."""
    return 500 + text_bytes(found.schema, found.description, *found.options.examples)


def agent_bytes(agent: Agent) -> int:
    """About what an agent takes in a list, which shows each twice."""
    spec = agent.spec
    texts = [text for sub in spec.subscriptions for text in _texts(sub)]
    return 2 * (600 + text_bytes(spec.description, *spec.outputs, *spec.labels, *spec.retry.non_retryable, *texts))


def _texts(subscription: Subscription) -> tuple[str, ...]:
    key = subscription.join.key if subscription.join else ""
    return (subscription.where, key, *subscription.types, *subscription.from_agents, *subscription.tags)


def named_page(
    kind: str, items: list[T], name: Callable[[T], str], request: PageRequest, size_bytes: Callable[[T], int]
) -> Page[T]:
    """A page of items that are at hand, in the order of their names. `kind`: what only their page tokens name."""
    request.check()
    total = len(items)
    if request.page_token:
        _, after = decode_token(request.page_token, token_of(kind), str)
        items = [item for item in items if name(item) > after]
    else:
        items = items[request.skip :]
    page = fitting(items, request.size, size_bytes)
    token = encode_token(kind, name(page[-1])) if len(items) > len(page) and page else ""
    return Page(page, page_info(request, (total, False), token))


class HistoryReads(Protocol):
    """Reads histories; see store.history."""

    async def history(self, tenant: str, agent: str, reader: Reader | None, now_us: int) -> AgentHistory: ...


class Agents:
    """The use cases of agents."""

    def __init__(
        self,
        engine: Engine,
        catalogs: Catalogs,
        registering: Registering,
        pauses: Pauses,
        gates: WaitingGates,
        runs: AgentRuns,
        reads: HistoryReads,
        calling: Calling,
    ) -> None:
        self._engine = engine
        self._catalogs = catalogs
        self._registering = registering
        self._pauses = pauses
        self._gates = gates
        self._reads = reads
        self._runs = runs
        self._calling = calling

    async def create(self, principal: Principal, spec: AgentSpec, key: Key | None) -> tuple[AgentState, bool]:
        """Register an agent; see Registering.create_agent."""
        agent, replayed = await self._registering.create_agent(principal, spec, key)
        if agent.spec.remote:
            await self._calling.changed_here(principal.tenant)
        return await self._state(agent), replayed

    async def update(
        self,
        principal: Principal,
        id_or_name: str,
        spec: AgentSpec,
        expected: int | None,
        key: Key | None,
        read_id: str = "",
    ) -> tuple[AgentState, bool]:
        """Replace an agent's specification; see Registering.update_agent."""
        agent, replayed = await self._registering.update_agent(principal, id_or_name, spec, expected, key, read_id)
        if agent.spec.remote or self._calling.serves(agent):
            await self._calling.changed_here(principal.tenant)
        return await self._state(agent), replayed

    async def delete(self, principal: Principal, id_or_name: str, key: Key | None) -> bool:
        """Delete an agent; see Registering.delete_agent."""
        replayed = await self._registering.delete_agent(principal, id_or_name, key)
        await self._pauses.changed_here()
        await self._calling.changed_here(principal.tenant)
        return replayed

    async def pause(
        self, principal: Principal, id_or_name: str, reason: str, key: Key | None
    ) -> tuple[AgentState, bool]:
        """Let an agent's tasks wait; see Registering.pause_agent."""
        return await self._pause(principal, id_or_name, reason, key)

    async def resume(self, principal: Principal, id_or_name: str, key: Key | None) -> tuple[AgentState, bool]:
        """Let an agent's tasks go on; see Registering.pause_agent."""
        return await self._pause(principal, id_or_name, None, key)

    async def _pause(
        self, principal: Principal, id_or_name: str, reason: str | None, key: Key | None
    ) -> tuple[AgentState, bool]:
        agent, replayed = await self._registering.pause_agent(principal, id_or_name, reason, key)
        await self._pauses.changed_here()
        return await self._state(agent), replayed

    async def run(
        self, principal: Principal, id_or_name: str, inputs: Sequence[NewArtifact], key: Key | None, timeout_s: float
    ) -> SyncResult:
        """Run an agent by name and wait; see AgentRuns.run."""
        return await self._runs.run(principal, id_or_name, inputs, key, timeout_s)

    async def list(self, principal: Principal, request: PageRequest, name: str, status: str | None) -> Page[AgentState]:
        """Agents by name; those that were deleted only where their status is asked for."""
        tenant = principal.tenant
        if status == "DELETED":
            gone = await self._catalogs.registry.deleted(tenant, DELETED_MOST)
            found = [AgentState(agent, status) for agent in gone if not name or agent.spec.name == name]
            found.sort(key=_deleted_name)
            return named_page("deleted agents", found, _deleted_name, request, lambda item: agent_bytes(item.agent))
        catalog = await self._catalogs.get(tenant, fresh=True)
        online = await self._online(tenant)
        pauses = {each.kind: each for each in await self._catalogs.registry.pauses(tenant) if not each.queue}
        states = [_state_of(agent, online, pauses) for _, agent in sorted(catalog.agents.items())]
        found = [
            state for state in states if (not name or state.agent.spec.name == name) and status in (None, state.status)
        ]
        return named_page(
            "agents", found, lambda item: item.agent.spec.name, request, lambda item: agent_bytes(item.agent)
        )

    async def get(self, principal: Principal, id_or_name: str) -> AgentState:
        """An agent by id or name. Raises NotFound, also where it was deleted."""
        catalog = await self._catalogs.get(principal.tenant, fresh=True)
        return await self._state(named(catalog.agents, id_or_name))

    async def detail(self, principal: Principal, agent: Agent) -> AgentDetail:
        """What waits in an agent's gates, as the caller may see it, and who serves it."""
        now_us = self._engine.clock.now_us()
        workers, count = await self._catalogs.registry.workers(
            agent.tenant, agent.kind, now_us - SILENT_US, WORKERS_SHOWN
        )
        return AgentDetail(await self._gates.of(principal, agent, now_us), tuple(workers), count)

    async def history(self, principal: Principal, id_or_name: str) -> tuple[Agent, AgentHistory]:
        """What an agent has made and taken up, as far as the caller may see it. Raises NotFound."""
        agent = (await self.get(principal, id_or_name)).agent
        name, now_us = agent.spec.name, self._engine.clock.now_us()
        return agent, await self._reads.history(principal.tenant, name, restricted(principal), now_us)

    async def _state(self, agent: Agent) -> AgentState:
        if agent.deleted_us:
            return AgentState(agent, "DELETED")
        online = await self._online(agent.tenant)
        pauses = {each.kind: each for each in await self._catalogs.registry.pauses(agent.tenant) if not each.queue}
        return _state_of(agent, online, pauses)

    async def _online(self, tenant: str) -> set[str]:
        return await online_kinds(self._engine, self._catalogs, tenant)


async def online_kinds(engine: Engine, catalogs: Catalogs, tenant: str) -> set[str]:
    """Kinds of a tenant's tasks that connected workers serve, here or elsewhere."""
    since_us = engine.clock.now_us() - SILENT_US
    here = {key[2] for key in engine.dispatcher.served if key[0] == tenant}
    return here | await catalogs.registry.online(tenant, since_us)


def _state_of(agent: Agent, online: Set[str], pauses: Mapping[str, Pause]) -> AgentState:
    pause = pauses.get(agent.kind)
    status = "PAUSED" if pause else "ONLINE" if agent.kind in online else "OFFLINE"
    return AgentState(agent, status, pause)


def _deleted_name(state: AgentState) -> str:
    """One name may have been deleted many times: page tokens tell them apart."""
    return f"{state.agent.spec.name} {state.agent.id}"


class Types:
    """The use cases of artifact types."""

    def __init__(self, catalogs: Catalogs, registering: Registering) -> None:
        self._catalogs = catalogs
        self._registering = registering

    async def create(self, principal: Principal, spec: TypeSpec, key: Key | None) -> tuple[ArtifactType, bool]:
        """Register a type; see Registering.create_type."""
        return await self._registering.create_type(principal, spec, key)

    async def update(self, principal: Principal, change: TypeChange, key: Key | None) -> tuple[ArtifactType, bool]:
        """Change a type; see Registering.update_type."""
        return await self._registering.update_type(principal, change, key)

    async def list(self, principal: Principal, request: PageRequest) -> Page[ArtifactType]:
        """Types in their latest version, by name."""
        catalog = await self._catalogs.get(principal.tenant, fresh=True)
        found = [catalog.types[name] for name in sorted(catalog.types)]
        return named_page("types", found, lambda item: item.name, request, type_bytes)

    async def get(self, principal: Principal, name: str, version: int | None) -> ArtifactType:
        """A type in one version. Raises NotFound."""
        if version is not None:
            found = await self._catalogs.registry.type_version(principal.tenant, name, version)
        else:
            found = (await self._catalogs.get(principal.tenant, fresh=True)).types.get(name)
        if found is None:
            raise NotFound(f"there is no artifact type {name!r}" + (f" in version {version}" if version else ""))
        return found

    async def versions(self, principal: Principal, name: str, request: PageRequest) -> Page[ArtifactType]:
        """The versions of a type, newest first. Raises NotFound."""
        request.check()
        before = 1 << 30
        if request.page_token:
            *_, before = decode_token(request.page_token, token_of("versions"), token_of(name), token_count)
        found, total = await self._catalogs.registry.type_versions(
            principal.tenant, name, before, request.skip, request.size
        )
        if total == 0:
            raise NotFound(f"there is no artifact type {name!r}")
        page = fitting(found, request.size, type_bytes)
        token = encode_token("versions", name, page[-1].version) if len(found) > len(page) else ""
        return Page(page, page_info(request, (total, False), token))
