"""Agents and artifact types: reading what is registered."""

from collections.abc import Callable
from typing import TypeVar

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
)
from millstream.application.registering import Registering
from millstream.application.views import Key, TypeChange, TypeSpec, Waiting
from millstream.application.waiting_gates import WaitingGates
from millstream.domain.agents import Agent, AgentSpec, ArtifactType, Subscription
from millstream.domain.errors import NotFound
from millstream.domain.principals import Principal

T = TypeVar("T")

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
    items: list[T], name: Callable[[T], str], request: PageRequest, size_bytes: Callable[[T], int]
) -> Page[T]:
    """A page of items that are at hand, by name."""
    request.check()
    total = len(items)
    if request.page_token:
        after = decode_token(request.page_token, str)[0]
        items = [item for item in items if name(item) > after]
    else:
        items = items[request.skip :]
    page = fitting(items, request.size, size_bytes)
    token = encode_token(name(page[-1])) if len(items) > len(page) and page else ""
    return Page(page, page_info(request, (total, False), token))


class Agents:
    """The use cases of agents."""

    def __init__(self, engine: Engine, catalogs: Catalogs, registering: Registering, gates: WaitingGates) -> None:
        self._engine = engine
        self._catalogs = catalogs
        self._registering = registering
        self._gates = gates

    async def create(self, principal: Principal, spec: AgentSpec, key: Key | None) -> tuple[Agent, bool]:
        """Register an agent; see Registering.create_agent."""
        return await self._registering.create_agent(principal, spec, key)

    async def list(
        self, principal: Principal, request: PageRequest, name: str, status: str | None
    ) -> Page[tuple[Agent, bool]]:
        """Agents by name, each with whether a worker serves it."""
        catalog = await self._catalogs.get(principal.tenant, fresh=True)
        online = await self._online(principal.tenant)
        found = [
            (agent, agent.kind in online)
            for _, agent in sorted(catalog.agents.items())
            if (not name or agent.spec.name == name)
            and status in (None, "ONLINE" if agent.kind in online else "OFFLINE")
        ]
        return named_page(found, lambda item: item[0].spec.name, request, lambda item: agent_bytes(item[0]))

    async def get(self, principal: Principal, id_or_name: str) -> tuple[Agent, bool]:
        """An agent by id or name, and whether a worker serves it. Raises NotFound."""
        catalog = await self._catalogs.get(principal.tenant, fresh=True)
        agent = catalog.agents.get(id_or_name) or next(
            (found for found in catalog.agents.values() if found.id == id_or_name.lower()), None
        )
        if agent is None:
            raise NotFound(f"there is no agent {id_or_name!r}")
        return agent, agent.kind in await self._online(principal.tenant)

    async def waiting(self, principal: Principal, agent: Agent) -> Waiting:
        """What waits in an agent's gates, as the caller may see it."""
        return await self._gates.of(principal, agent, self._engine.clock.now_us())

    async def _online(self, tenant: str) -> set[str]:
        since_us = self._engine.clock.now_us() - SILENT_US
        here = {key[2] for key in self._engine.dispatcher.served if key[0] == tenant}
        return here | await self._catalogs.registry.online(tenant, since_us)


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
        return named_page(found, lambda item: item.name, request, type_bytes)

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
        before = decode_token(request.page_token, token_count)[0] if request.page_token else 1 << 30
        found, total = await self._catalogs.registry.type_versions(
            principal.tenant, name, before, request.skip, request.size
        )
        if total == 0:
            raise NotFound(f"there is no artifact type {name!r}")
        page = fitting(found, request.size, type_bytes)
        token = encode_token(page[-1].version) if len(found) > len(page) else ""
        return Page(page, page_info(request, (total, False), token))
