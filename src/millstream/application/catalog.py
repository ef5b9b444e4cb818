"""Agents and types, compiled: what an artifact is checked and matched with, before any transaction.

A catalog has the version of the registry it was made from; the transaction compares it and sends a command back when it
moved, so a cached one is never wrong, only retried.
"""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from millstream.application.views import Key
from millstream.domain.agents import Activation, Agent, AgentSpec, ArtifactType, Subscription
from millstream.domain.artifacts import NewArtifact
from millstream.domain.batch import KeyClaim
from millstream.domain.errors import FieldFault, NotFound, ValidationFailed
from millstream.domain.matching import Route, match, routes_of
from millstream.domain.struct_wire import Json, decode_struct

TENANTS_MOST = 1000

Check = Callable[[Json, str], list[FieldFault]]
Predicate = Callable[[Mapping[str, Json]], bool]


class Predicates(Protocol):
    """Compiles conditions; see adapters.expressions."""

    def compile(self, text: str) -> Predicate:
        """Raises ValueError."""


class Schemas(Protocol):
    """Compiles JSON Schemas; see adapters.schemas."""

    def compile(self, schema: Json) -> Check:
        """Raises ValueError."""


class RegistryChange(Protocol):
    """A transaction over a tenant's registry."""

    now_us: int

    async def key(self, principal: str, key: Key) -> KeyClaim | None: ...
    async def claim(self, claim: KeyClaim) -> None: ...
    async def types(self) -> dict[str, ArtifactType]: ...
    async def agents(self) -> dict[str, Agent]: ...
    async def add_type(self, found: ArtifactType) -> None: ...
    async def put_agent(self, agent_id: str, spec: AgentSpec, version: int) -> None: ...


class Registry(Protocol):
    """Where agents and types are kept; see store.registry."""

    async def version(self, tenant: str) -> int: ...
    async def load(self, tenant: str) -> tuple[int, list[Agent], list[ArtifactType]]: ...
    async def type_version(self, tenant: str, name: str, version: int) -> ArtifactType | None: ...
    async def type_versions(
        self, tenant: str, name: str, before: int, skip: int, limit: int
    ) -> tuple[list[ArtifactType], int]: ...
    async def online(self, tenant: str, since_us: int) -> set[str]: ...
    def transaction(self, tenant: str) -> AbstractAsyncContextManager[RegistryChange]: ...


@dataclass(slots=True)
class Catalog:
    """A tenant's agents and types at one version."""

    tenant: str
    version: int
    agents: dict[str, Agent]
    types: dict[str, ArtifactType]
    routes: dict[str, list[Route]]
    checks: dict[str, Check | None]
    predicates: dict[str, Predicate] = field(default_factory=dict)

    def examine(self, new: NewArtifact, producer: str, field_path: str = "payload") -> tuple[int, list[Activation]]:
        """Check an artifact and match it: the version of its type, and the agents it activates.

        Raises NotFound where the type is not registered, ValidationFailed where the payload breaks its schema. The
        payload is decoded at most once, and only where a schema or a condition needs it.
        """
        known = self.types.get(new.type)
        if known is None:
            raise NotFound(f"there is no artifact type {new.type!r}; register it first")
        check = self.checks[new.type]
        routes = self.routes.get(new.type, ())
        payload: dict[str, Json] | None = None
        if check is not None:
            payload = decode_struct(new.payload)
            faults = check(payload, field_path)
            if faults:
                raise ValidationFailed(f"{faults[0].field}: {faults[0].message}", faults)
        if not routes:
            return known.version, []
        variables: dict[str, Json] = {}

        def holds(subscription: Subscription) -> bool:
            if not variables:
                variables["payload"] = decode_struct(new.payload) if payload is None else payload
                variables["artifact"] = {
                    "type": new.type,
                    "tags": list(new.tags),
                    "produced_by": producer,
                    "partition_key": new.partition_key,
                }
            return self.predicates[subscription.where](variables)

        return known.version, match(routes, new, producer, self.tenant, holds)


class Catalogs:
    """Cached catalogs by tenant, and what compiles them."""

    def __init__(self, registry: Registry, predicates: Predicates, schemas: Schemas) -> None:
        self.registry = registry
        self.predicates = predicates
        self.schemas = schemas
        self._catalogs: OrderedDict[str, Catalog] = OrderedDict()
        self._looks: dict[str, asyncio.Task[Catalog]] = {}

    def forget(self, tenant: str) -> None:
        """The tenant's registry moved."""
        self._catalogs.pop(tenant, None)

    def cached(self, tenant: str) -> Catalog | None:
        """The tenant's catalog if it is at hand."""
        return self._catalogs.get(tenant)

    async def get(self, tenant: str, fresh: bool = False) -> Catalog:
        """The tenant's catalog; `fresh`: of the registry's present version.

        All who ask at the same time share one look at the registry, which for a fresh one begins after they asked.
        """
        if not fresh and tenant in self._catalogs:
            return self._catalogs[tenant]
        look = self._looks.get(tenant)
        if look is not None and fresh:
            await asyncio.wait([look])
            look = self._looks.get(tenant)
        if look is None:
            look = asyncio.get_running_loop().create_task(self._look(tenant))
            self._looks[tenant] = look
            look.add_done_callback(lambda _: self._looks.pop(tenant, None))
        # Whoever gives up takes nothing from the others.
        return await asyncio.shield(look)

    async def _look(self, tenant: str) -> Catalog:
        catalog = self._catalogs.get(tenant)
        if catalog is not None and await self.registry.version(tenant) == catalog.version:
            return catalog
        version, agents, types = await self.registry.load(tenant)
        catalog = self._compile(tenant, version, agents, types)
        self._catalogs[tenant] = catalog
        while len(self._catalogs) > TENANTS_MOST:
            self._catalogs.popitem(last=False)
        return catalog

    def _compile(self, tenant: str, version: int, agents: Sequence[Agent], types: Sequence[ArtifactType]) -> Catalog:
        conditions = {sub.where for agent in agents for sub in agent.spec.subscriptions if sub.where}
        return Catalog(
            tenant,
            version,
            {agent.spec.name: agent for agent in agents},
            {found.name: found for found in types},
            routes_of(agents),
            {found.name: self.schemas.compile(json.loads(found.schema)) if found.schema else None for found in types},
            {text: self.predicates.compile(text) for text in conditions},
        )
