"""Registering artifact types and agents, by callers and by workers as they connect."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from millstream.application.catalog import Catalog, Catalogs, RegistryChange
from millstream.application.checking import check_agent, normalized
from millstream.application.ids import new_id
from millstream.application.registry_keys import claim, claimed
from millstream.application.typing_rules import (
    asked_for,
    changed,
    check_examples,
    check_latest,
    check_next,
    check_schema,
    options_after,
)
from millstream.application.views.idempotency import Key
from millstream.application.views.log_levels import LogLevel
from millstream.application.views.types import TypeChange, TypeSpec
from millstream.domain.addresses import Network
from millstream.domain.agents import Agent, AgentSpec, ArtifactType
from millstream.domain.batch import KeyClaim
from millstream.domain.code import LEAD
from millstream.domain.errors import Conflict, NotFound, ValidationFailed
from millstream.domain.principals import Principal

AGENTS_MOST = 10_000
TYPES_MOST = 10_000
LEVELS_MOST = 100


async def put_type(change: RegistryChange, tenant: str, known: dict[str, ArtifactType], spec: TypeSpec) -> ArtifactType:
    """The type as registered: a new version where the schema is another one. Updates `known`.

    Raises ValidationFailed where that refuses what the version before took.
    """
    found = known.get(spec.name)
    schema = _canonical(spec.schema)
    if found is not None and _canonical(found.schema) == schema:
        return found
    if found is None and await change.count_types() >= TYPES_MOST:
        raise Conflict(f"a tenant has at most {TYPES_MOST} artifact types")
    version = found.version + 1 if found else 1
    if found is not None:
        check_next(found, spec)
    description = spec.description or (found.description if found else "")
    options = options_after(found, spec)
    made = ArtifactType(tenant, spec.name, version, spec.schema, description, change.now_us, options)
    await change.add_type(made)
    known[spec.name] = made
    return made


def _canonical(schema: str) -> str:
    return json.dumps(json.loads(schema), sort_keys=True) if schema else ""


class Registering:
    """The use cases that change the registry.

    Args:
        key_ttl_us: How long an idempotency key holds, microseconds.
        networks: Networks that are not public where agents may be called.
    """

    def __init__(self, catalogs: Catalogs, key_ttl_us: int, networks: Sequence[Network] = ()) -> None:
        self._catalogs = catalogs
        self._key_ttl_us = key_ttl_us
        self._networks = networks

    async def create_type(self, principal: Principal, spec: TypeSpec, key: Key | None) -> tuple[ArtifactType, bool]:
        """Register a type; whether it is a replay. Raises ValidationFailed, IdempotencyConflict."""
        await check_schema(self._catalogs, spec)
        async with self._catalogs.registry.transaction(principal.tenant) as change:
            earlier = await claimed(change, principal, key)
            if earlier is not None:
                return await _type_of(change, earlier), True
            known = await change.types([spec.name])
            made = await put_type(change, principal.tenant, known, spec)
            if made != (said := changed(made, asked_for(spec))):
                # The same schema as before, and the caller says other things beside it: those hold from now on.
                await change.change_type(said)
                made = said
            await self._claim(change, principal, key, [made.name, made.version])
        self._catalogs.forget(principal.tenant)
        return made, False

    async def update_type(self, principal: Principal, wanted: TypeChange, key: Key | None) -> tuple[ArtifactType, bool]:
        """Change what a type says beside its schema; whether it is a replay.

        Raises NotFound, ValidationFailed, IdempotencyConflict, Conflict where a version came while its examples were
        checked.
        """
        checked = await self._check_examples(principal, wanted)
        async with self._catalogs.registry.transaction(principal.tenant) as change:
            earlier = await claimed(change, principal, key)
            if earlier is not None:
                return await _type_of(change, earlier), True
            found = latest = (await change.types([wanted.name])).get(wanted.name)
            if latest is not None and wanted.version is not None and wanted.version != latest.version:
                found = await change.type_version(wanted.name, wanted.version)
            if latest is None or found is None:
                version = f" in version {wanted.version}" if wanted.version else ""
                raise NotFound(f"there is no artifact type {wanted.name!r}{version}")
            check_latest(wanted, latest)
            if isinstance(checked, ValidationFailed):
                raise checked
            if wanted.examples and (checked is None or checked.version != found.version):
                raise Conflict(f"version {found.version} of {found.name!r} came in between; try again")
            made = changed(found, wanted)
            if made != found:
                await change.change_type(made)
            await self._claim(change, principal, key, [made.name, made.version])
        self._catalogs.forget(principal.tenant)
        return made, False

    async def _check_examples(self, principal: Principal, wanted: TypeChange) -> ArtifactType | ValidationFailed | None:
        """The version whose schema the new examples satisfy, if there is one, or why they do not: a schema is not run
        under locks, and what is wrong now is nothing to who repeats a call."""
        if not wanted.examples:
            return None
        if wanted.version is not None:
            found = await self._catalogs.registry.type_version(principal.tenant, wanted.name, wanted.version)
        else:
            found = (await self._catalogs.get(principal.tenant, fresh=True)).types.get(wanted.name)
        try:
            if found is not None:
                await check_examples(self._catalogs, found.schema, wanted.examples)
        except ValidationFailed as error:
            return error
        return found

    async def create_agent(self, principal: Principal, spec: AgentSpec, key: Key | None) -> tuple[Agent, bool]:
        """Register an agent; whether it is a replay. Raises ValidationFailed, NotFound, Conflict,
        IdempotencyConflict."""
        spec = normalized(spec)
        async with self._catalogs.registry.transaction(principal.tenant) as change:
            earlier = await claimed(change, principal, key)
            if earlier is not None:
                return await _agent_of(change, earlier), True
            check_agent(self._catalogs, spec, set(await change.types(_types_of([spec]))), self._networks)
            if await change.agents([spec.name]):
                raise Conflict(f"there is an agent {spec.name!r} already; choose another name")
            await _check_room(change, 1)
            made = Agent(new_id(), principal.tenant, spec, 1, change.now_us, change.now_us)
            await change.put_agent(made.id, spec, 1)
            await self._claim(change, principal, key, [made.id])
        self._catalogs.forget(principal.tenant)
        return made, False

    async def update_agent(
        self,
        principal: Principal,
        id_or_name: str,
        spec: AgentSpec,
        expected: int | None,
        key: Key | None,
        read_id: str = "",
    ) -> tuple[Agent, bool]:
        """Replace an agent's specification; whether it is a replay. The name stays.

        Raises ValidationFailed, NotFound, Conflict where it has another version than expected, or its name was another
        agent's when it was read (`read_id`), IdempotencyConflict.
        """
        async with self._catalogs.registry.transaction(principal.tenant) as change:
            earlier = await claimed(change, principal, key)
            if earlier is not None:
                return await _agent_of(change, earlier), True
            found = await _named(change, id_or_name)
            if spec.name not in ("", found.spec.name):
                raise ValidationFailed.of("name", f"must be {found.spec.name!r}: an agent keeps its name")
            if read_id not in ("", found.id):
                raise Conflict(f"agent {found.spec.name!r} was made anew since it was read; read it again")
            if expected is not None and expected != found.version:
                raise Conflict(f"agent {found.spec.name!r} has version {found.version}, not {expected}; read it again")
            spec = normalized(replace(spec, name=found.spec.name))
            check_agent(self._catalogs, spec, set(await change.types(_types_of([spec]))), self._networks)
            made = found
            if spec != found.spec:
                made = replace(found, spec=spec, version=found.version + 1, updated_us=change.now_us)
                await change.put_agent(made.id, spec, made.version)
            await self._claim(change, principal, key, [made.id])
        self._catalogs.forget(principal.tenant)
        return made, False

    async def delete_agent(self, principal: Principal, id_or_name: str, key: Key | None) -> bool:
        """Delete an agent; whether it is a replay. Raises NotFound, IdempotencyConflict."""
        async with self._catalogs.registry.transaction(principal.tenant) as change:
            if await claimed(change, principal, key) is not None:
                return True
            found = await _named(change, id_or_name)
            await change.drop_agent(found.spec.name)
            await change.resume("", found.kind)
            await self._claim(change, principal, key, [found.id])
        self._catalogs.forget(principal.tenant)
        return False

    async def pause_agent(
        self, principal: Principal, id_or_name: str, reason: str | None, key: Key | None
    ) -> tuple[Agent, bool]:
        """Let an agent's tasks wait, or (reason None) go on; whether it is a replay. Raises NotFound,
        IdempotencyConflict."""
        async with self._catalogs.registry.transaction(principal.tenant) as change:
            earlier = await claimed(change, principal, key)
            if earlier is not None:
                return await _agent_of(change, earlier), True
            found = await _named(change, id_or_name)
            if reason is None:
                await change.resume("", found.kind)
            else:
                await change.pause("", found.kind, principal.name, reason)
            await self._claim(change, principal, key, [found.id])
        return found, False

    async def pause_queue(self, principal: Principal, queue: str, reason: str | None, key: Key | None) -> bool:
        """Let a queue's tasks wait, or (reason None) go on; whether it is a replay. Raises IdempotencyConflict."""
        async with self._catalogs.registry.transaction(principal.tenant) as change:
            if await claimed(change, principal, key) is not None:
                return True
            if reason is None:
                await change.resume(queue, "")
            else:
                await change.pause(queue, "", principal.name, reason)
            await self._claim(change, principal, key, [queue])
        return False

    async def pause_workflow(self, principal: Principal, name: str, reason: str | None, key: Key | None) -> bool:
        """Hold a workflow, or (reason None) let it go on; whether it is a replay. Raises IdempotencyConflict."""
        async with self._catalogs.registry.transaction(principal.tenant) as change:
            if await claimed(change, principal, key) is not None:
                return True
            if reason is None:
                await change.resume("", LEAD + name)
            else:
                await change.pause("", LEAD + name, principal.name, reason)
            await self._claim(change, principal, key, [name])
        return False

    async def set_log_level(
        self, principal: Principal, logger: str, level: str, for_us: int, key: Key | None
    ) -> tuple[LogLevel, bool]:
        """Set the level of a logger, "" for that of the settings, for a time or (0) for ever; whether it is a replay.
        Raises Conflict where there are too many, IdempotencyConflict."""
        async with self._catalogs.registry.transaction(principal.tenant) as change:
            made = LogLevel(logger, level, change.now_us + for_us if for_us else 0)
            if await claimed(change, principal, key) is not None:
                return made, True
            if not await change.set_log_level(made, LEVELS_MOST):
                raise Conflict(f"{LEVELS_MOST} loggers have a level of their own; set some back to default first")
            await self._claim(change, principal, key, [])
        return made, False

    async def register(self, principal: Principal, types: Sequence[TypeSpec], agents: Sequence[AgentSpec]) -> bool:
        """Bring a worker's types and agents up to date, all or none; whether anything changed.

        Raises ValidationFailed, NotFound, Conflict.
        """
        specs = [normalized(spec) for spec in agents]
        catalog = await self._catalogs.get(principal.tenant, fresh=True)
        if _up_to_date(catalog, types, specs):
            return False
        for spec in types:
            await check_schema(self._catalogs, spec)
        async with self._catalogs.registry.transaction(principal.tenant) as change:
            known_types = await change.types({*(each.name for each in types), *_types_of(specs)})
            known_agents = await change.agents([spec.name for spec in specs])
            await _check_room(change, len({spec.name for spec in specs} - known_agents.keys()))
            for type_spec in types:
                await put_type(change, principal.tenant, known_types, type_spec)
            for agent_spec in specs:
                check_agent(self._catalogs, agent_spec, set(known_types))
                found = known_agents.get(agent_spec.name)
                if found is not None and found.spec.remote:
                    raise Conflict(
                        f"agent {found.spec.name!r} is called by the server ({found.spec.protocol}), so no worker can"
                        " register it; choose another name, or update it to the protocol WORKER"
                    )
                if found is None or found.spec != agent_spec:
                    agent_id, version = (found.id, found.version + 1) if found else (new_id(), 1)
                    await change.put_agent(agent_id, agent_spec, version)
        self._catalogs.forget(principal.tenant)
        return True

    async def _claim(self, change: RegistryChange, principal: Principal, key: Key | None, response: object) -> None:
        await claim(change, principal, key, response, self._key_ttl_us)


def _up_to_date(catalog: Catalog, types: Sequence[TypeSpec], agents: Sequence[AgentSpec]) -> bool:
    """Whether the registry has all of this already, as it mostly does when a worker connects again."""
    for spec in types:
        known = catalog.types.get(spec.name)
        if known is None or _canonical(known.schema) != _canonical(spec.schema):
            return False
    return all(spec.name in catalog.agents and catalog.agents[spec.name].spec == spec for spec in agents)


def _types_of(specs: Sequence[AgentSpec]) -> set[str]:
    """Names of the types that agents subscribe to."""
    return {name for spec in specs for subscription in spec.subscriptions for name in subscription.types}


async def _check_room(change: RegistryChange, more: int) -> None:
    """Raise Conflict where so many more agents would be too many."""
    if more and await change.count_agents() + more > AGENTS_MOST:
        raise Conflict(f"a tenant has at most {AGENTS_MOST} agents; delete some")


async def _named(change: RegistryChange, id_or_name: str) -> Agent:
    """An agent by its name or its id. Raises NotFound."""
    found = await change.agent(id_or_name)
    if found is None:
        raise NotFound(f"there is no agent {id_or_name!r}")
    return found


def named(agents: Mapping[str, Agent], id_or_name: str) -> Agent:
    """An agent by its name or id. Raises NotFound."""
    found = agents.get(id_or_name) or next((each for each in agents.values() if each.id == id_or_name.lower()), None)
    if found is None:
        raise NotFound(f"there is no agent {id_or_name!r}")
    return found


async def _agent_of(change: RegistryChange, earlier: KeyClaim) -> Agent:
    """The agent that a key's first call made or changed, as it is, deleted or not: its name may be another's by now."""
    found = await change.agent_ever(json.loads(earlier.response)[0])
    if found is None:
        raise NotFound("the agent of this idempotency key is gone")
    return found


async def _type_of(change: RegistryChange, earlier: KeyClaim) -> ArtifactType:
    """The version of a type that a key's first call made or changed, as it is."""
    name, version = json.loads(earlier.response)
    found = await change.type_version(name, version)
    if found is None:
        raise NotFound("the artifact type of this idempotency key is gone")
    return found
