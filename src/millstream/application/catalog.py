"""Agents and types, compiled: what an artifact is checked and matched with, before any transaction.

A catalog has the version of the registry it was made from; the transaction compares it and sends a command back when it
moved, so a cached one is never wrong, only retried.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from millstream.application.ports import Costly, Sandbox
from millstream.application.views.idempotency import Key
from millstream.application.views.log_levels import LogLevel
from millstream.application.views.workflows import WorkflowHead, WorkflowVersion
from millstream.domain.agents import Activation, Agent, AgentSpec, ArtifactType, Pause, Subscription
from millstream.domain.artifacts import NewArtifact
from millstream.domain.batch import KeyClaim
from millstream.domain.errors import FieldFault, NotFound, ValidationFailed
from millstream.domain.matching import Route, match, routes_of
from millstream.domain.struct_wire import Json, decode_struct
from millstream.domain.tenants import Tenant
from millstream.domain.workers import ServingWorker

TENANTS_MOST = 1000


class Check(Protocol):
    """A compiled JSON Schema."""

    def __call__(self, value: Json, prefix: str, size_bytes: int, /) -> list[FieldFault]:
        """The faults of a value of so many bytes, their fields below a prefix. Raises Costly."""


class Predicate(Protocol):
    """A compiled condition."""

    def __call__(self, variables: Mapping[str, Json], size_bytes: int, /) -> bool:
        """Whether it holds for a payload of so many bytes. Raises Costly."""


class KeyOf(Protocol):
    """A compiled key."""

    def __call__(self, variables: Mapping[str, Json], size_bytes: int, /) -> str | None:
        """The key of a payload of so many bytes; None where it has none. Raises Costly."""


class Predicates(Protocol):
    """Compiles conditions and keys; see adapters.expressions."""

    def compile(self, text: str) -> Predicate:
        """Raises ValueError."""

    def compile_key(self, text: str) -> KeyOf:
        """Raises ValueError."""


class Schemas(Protocol):
    """Compiles JSON Schemas; see adapters.schemas."""

    def compile(self, schema: str) -> Check:
        """Raises ValueError."""

    def is_quick_to_read(self, schema: str) -> bool:
        """Whether it may be compiled within the server for the first time."""


class TenantChange(Protocol):
    """The tenants within such a transaction."""

    async def find(self, slug: str) -> Tenant | None: ...
    async def count(self) -> int: ...
    async def add(self, made: Tenant) -> bool: ...


class WorkflowChange(Protocol):
    """The workflows within such a transaction."""

    async def named(self, names: Iterable[str]) -> dict[str, WorkflowHead]: ...
    async def find(self, id_or_name: str) -> WorkflowHead | None: ...
    async def version(self, name: str, version: int) -> WorkflowVersion | None: ...
    async def count(self) -> int: ...
    async def put(self, head: WorkflowHead) -> None: ...
    async def add(self, made: WorkflowVersion) -> None: ...


class RegistryChange(Protocol):
    """A transaction over a tenant's registry."""

    now_us: int

    @property
    def workflows(self) -> WorkflowChange: ...
    @property
    def tenants(self) -> TenantChange: ...
    async def key(self, principal: str, key: Key) -> KeyClaim | None: ...
    async def claim(self, claim: KeyClaim) -> None: ...
    async def types(self, names: Iterable[str]) -> dict[str, ArtifactType]: ...
    async def agents(self, names: Iterable[str]) -> dict[str, Agent]: ...
    async def agent(self, id_or_name: str) -> Agent | None: ...
    async def agent_ever(self, agent_id: str) -> Agent | None: ...
    async def count_types(self) -> int: ...
    async def count_agents(self) -> int: ...
    async def add_type(self, found: ArtifactType) -> None: ...
    async def type_version(self, name: str, version: int) -> ArtifactType | None: ...
    async def change_type(self, found: ArtifactType) -> None: ...
    async def put_agent(self, agent_id: str, spec: AgentSpec, version: int) -> None: ...
    async def drop_agent(self, name: str) -> None: ...
    async def pause(self, queue: str, kind: str, by: str, reason: str) -> None: ...
    async def resume(self, queue: str, kind: str) -> None: ...
    async def set_log_level(self, found: LogLevel, most: int) -> bool: ...


class Registry(Protocol):
    """Where agents and types are kept; see store.registry."""

    async def version(self, tenant: str) -> int: ...
    async def load(self, tenant: str, known: Mapping[str, Agent]) -> tuple[int, list[Agent], list[ArtifactType]]: ...
    async def type_version(self, tenant: str, name: str, version: int) -> ArtifactType | None: ...
    async def type_versions(
        self, tenant: str, name: str, before: int, skip: int, limit: int
    ) -> tuple[list[ArtifactType], int]: ...
    async def deleted(self, tenant: str, limit: int) -> list[Agent]: ...
    async def pauses(self, tenant: str = "") -> list[Pause]: ...
    async def workers(self, tenant: str, kind: str, since_us: int, limit: int) -> tuple[list[ServingWorker], int]: ...
    async def online(self, tenant: str, since_us: int) -> set[str]: ...
    def transaction(self, tenant: str) -> AbstractAsyncContextManager[RegistryChange]: ...


class _Unjudged(Exception):
    """What an examination must not find out itself: whether a condition holds, an artifact's key, or what a schema has
    to say."""

    def __init__(self, what: str, text: str, given: dict[str, Json], prefix: str = "") -> None:
        super().__init__(text)
        self.what = what
        self.text = text
        self.given = given
        self.prefix = prefix


@dataclass(slots=True)
class Judged:
    """What the sandbox has found out."""

    faults: list[FieldFault] | None = None
    conditions: dict[str, bool] = field(default_factory=dict)
    keys: dict[str, str | None] = field(default_factory=dict)


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
    keys: dict[str, KeyOf] = field(default_factory=dict)

    def examine(self, new: NewArtifact, producer: str, field_path: str, judged: Judged) -> tuple[int, list[Activation]]:
        """See Catalogs.examine. Raises _Unjudged where the sandbox has to be asked first."""
        known = self.types.get(new.type)
        if known is None:
            raise NotFound(f"there is no artifact type {new.type!r}; register it first")
        check = self.checks[new.type]
        routes = self.routes.get(new.type, ())
        payload = new.content
        size_bytes = new.payload_bytes or len(new.payload)
        # Of a payload outside that was not looked at, nothing is known.
        unread = bool(new.payload_digest) and payload is None and not new.payload
        if check is not None and not unread:
            payload = decode_struct(new.payload) if payload is None else payload
            faults = (
                self._faults(check, known.schema, payload, new, field_path) if judged.faults is None else judged.faults
            )
            if faults:
                raise ValidationFailed(f"{faults[0].field}: {faults[0].message}", faults)
        if not routes:
            return known.version, []
        given: dict[str, Json] = {}

        def variables() -> dict[str, Json]:
            if not given:
                given["payload"] = decode_struct(new.payload) if payload is None else payload
                given["artifact"] = {
                    "type": new.type,
                    "tags": list(new.tags),
                    "produced_by": producer,
                    "partition_key": new.partition_key,
                }
            return given

        def holds(subscription: Subscription) -> bool:
            where = subscription.where
            if where in judged.conditions:
                return judged.conditions[where]
            try:
                return self.predicates[where](variables(), size_bytes)
            except Costly:
                raise _Unjudged("condition", where, given) from None

        def key_of(subscription: Subscription) -> str | None:
            text = subscription.join.key if subscription.join else ""
            if text in judged.keys:
                return judged.keys[text]
            try:
                return self.keys[text](variables(), size_bytes)
            except Costly:
                raise _Unjudged("key", text, given) from None

        return known.version, match(routes, new, producer, self.tenant, holds, key_of)

    def _faults(
        self, check: Check, schema: str, payload: dict[str, Json], new: NewArtifact, field_path: str
    ) -> list[FieldFault]:
        try:
            return check(payload, field_path, new.payload_bytes or len(new.payload))
        except Costly:
            raise _Unjudged("faults", schema, payload, field_path) from None


class Catalogs:
    """Cached catalogs by tenant, and what compiles them."""

    def __init__(self, registry: Registry, predicates: Predicates, schemas: Schemas, sandbox: Sandbox) -> None:
        self.registry = registry
        self.predicates = predicates
        self.schemas = schemas
        self.sandbox = sandbox
        self._catalogs: OrderedDict[str, Catalog] = OrderedDict()
        self._stale: set[str] = set()
        self._looks: dict[str, asyncio.Task[Catalog]] = {}

    async def examine(
        self, catalog: Catalog, new: NewArtifact, producer: str, field_path: str = "payload"
    ) -> tuple[int, list[Activation]]:
        """Check an artifact and match it: the version of its type, and the agents it activates.

        Raises NotFound where the type is not registered, ValidationFailed where the payload breaks its schema. The
        payload is decoded only where a schema or a condition needs it, and again for each that the sandbox judges.
        """
        judged = Judged()
        while True:
            try:
                return catalog.examine(new, producer, field_path, judged)
            except _Unjudged as costly:
                if costly.what == "condition":
                    judged.conditions[costly.text] = await self.sandbox.condition(costly.text, costly.given)
                elif costly.what == "key":
                    judged.keys[costly.text] = await self.sandbox.key(costly.text, costly.given)
                else:
                    judged.faults = await self.sandbox.faults(costly.text, costly.given, costly.prefix)

    async def gate(self, tenant: str, agent: str, sub: str) -> tuple[Activation | None, int]:
        """What a gate activates, by the agent and the fingerprint of its subscription; None where that is gone. And the
        version of the registry that tells so."""
        catalog = await self.get(tenant, fresh=True)
        found = catalog.agents.get(agent)
        routes = routes_of([found]) if found is not None else {}
        for route in (route for each in routes.values() for route in each):
            if route.activation.gate is not None and route.activation.gate.sub == sub:
                return route.activation, catalog.version
        return None, catalog.version

    def forget(self, tenant: str) -> None:
        """The tenant's registry moved."""
        # It stays for what has not changed in it: there may be thousands of agents, of which one did.
        if tenant in self._catalogs or tenant in self._looks:
            self._stale.add(tenant)

    def cached(self, tenant: str) -> Catalog | None:
        """The tenant's catalog if it is at hand."""
        return None if tenant in self._stale else self._catalogs.get(tenant)

    async def get(self, tenant: str, fresh: bool = False) -> Catalog:
        """The tenant's catalog; `fresh`: of the registry's present version.

        All who ask at the same time share one look at the registry, which for a fresh one begins after they asked, and
        for all after it was last said to have moved.
        """
        if not fresh and (cached := self.cached(tenant)) is not None:
            return cached
        look = self._looks.get(tenant)
        if look is not None and (fresh or tenant in self._stale):
            await asyncio.wait([look])
            look = self._looks.get(tenant)
        if look is None:
            look = asyncio.get_running_loop().create_task(self._look(tenant))
            self._looks[tenant] = look
            look.add_done_callback(lambda _: self._looks.pop(tenant, None))
        # Whoever gives up takes nothing from the others.
        return await asyncio.shield(look)

    async def _look(self, tenant: str) -> Catalog:
        self._stale.discard(tenant)
        catalog = self._catalogs.get(tenant)
        if catalog is not None and await self.registry.version(tenant) == catalog.version:
            return catalog
        version, agents, types = await self.registry.load(tenant, catalog.agents if catalog is not None else {})
        catalog = await self._compile(tenant, version, agents, types)
        self._catalogs[tenant] = catalog
        while len(self._catalogs) > TENANTS_MOST:
            self._stale.discard(self._catalogs.popitem(last=False)[0])
        return catalog

    async def _compile(
        self, tenant: str, version: int, agents: Sequence[Agent], types: Sequence[ArtifactType]
    ) -> Catalog:
        checks: dict[str, Check | None] = {}
        for found in types:
            checks[found.name] = self.schemas.compile(found.schema) if found.schema else None
            # Others take their turn: there may be thousands.
            await asyncio.sleep(0)
        subscriptions = [sub for agent in agents for sub in agent.spec.subscriptions]
        conditions = {sub.where for sub in subscriptions if sub.where}
        keys = {sub.join.key for sub in subscriptions if sub.join}
        return Catalog(
            tenant,
            version,
            {agent.spec.name: agent for agent in agents},
            {found.name: found for found in types},
            routes_of(agents),
            checks,
            {text: self.predicates.compile(text) for text in conditions},
            {text: self.predicates.compile_key(text) for text in keys},
        )
