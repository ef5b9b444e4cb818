"""Workflows made, changed and deleted; every version is checked before it is saved."""

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Set
from dataclasses import replace
from typing import Any, Protocol

import orjson

from millstream.application.catalog import Catalogs, RegistryChange
from millstream.application.ids import new_id
from millstream.application.registry_keys import claim, claimed
from millstream.application.views.idempotency import Key
from millstream.application.views.workflows import Validation, WorkflowDetail, WorkflowHead, WorkflowVersion
from millstream.application.workflow_rules import Examined, Expressions, Known, bounded, examine, unknown
from millstream.domain.batch import KeyClaim
from millstream.domain.errors import Conflict, FieldFault, NotFound, ValidationFailed
from millstream.domain.principals import Principal
from millstream.domain.workflows import Definition

WORKFLOWS_MOST = 10_000
VERSIONS_MOST = 1_000_000
FIELD = "definition"
"""The field of requests that holds the document."""

Given = Mapping[str, Any]


class Announcer(Protocol):
    """Tells other servers; see runtime.peers."""

    def registry_moved(self, tenant: str) -> None:
        """Something registered changed."""


class Heads(Protocol):
    """Reads workflows; see store.workflows."""

    async def named(self, tenant: str, names: Iterable[str]) -> dict[str, WorkflowHead]: ...


class Defining:
    """The use cases that change workflows.

    Args:
        served: Kinds of a tenant's tasks that connected workers serve.
        key_ttl_us: How long an idempotency key holds, microseconds.
    """

    def __init__(
        self,
        catalogs: Catalogs,
        heads: Heads,
        expressions: Expressions,
        announcer: Announcer,
        served: Callable[[str], Awaitable[Set[str]]],
        key_ttl_us: int,
    ) -> None:
        self._catalogs = catalogs
        self._heads = heads
        self._expressions = expressions
        self._announcer = announcer
        self._served = served
        self._key_ttl_us = key_ttl_us

    async def validate(self, principal: Principal, given: Given) -> Validation:
        """Say what is wrong with a document; nothing is saved."""
        found, tenant = await self._examine(given), principal.tenant
        catalog = await self._catalogs.get(tenant, fresh=True)
        heads = await self._heads.named(tenant, _named(found, "workflow"))
        known = Known(catalog.agents, catalog.types, _living_versions(heads), await self._served(tenant))
        faults, warnings = unknown(str(given.get("name")), found.references, known)
        return Validation(_told([*found.faults, *faults]), _told([*found.warnings, *warnings]))

    async def create(self, principal: Principal, given: Given, key: Key | None) -> tuple[WorkflowDetail, bool]:
        """Make a workflow; whether it is a replay. One that was deleted goes on with the next version, by another id.

        Raises ValidationFailed, Conflict where there is one of its name, IdempotencyConflict.
        """
        found = await self._examine(given)
        served = await self._served(principal.tenant)
        async with self._catalogs.registry.transaction(principal.tenant) as change:
            earlier = await claimed(change, principal, key)
            if earlier is not None:
                return await _replayed(change, principal, earlier), True
            definition, warnings = await _checked(change, found, served)
            before = (await change.workflows.named([definition.name])).get(definition.name)
            if before is not None and not before.deleted_us:
                raise Conflict(f"there is a workflow {before.name!r} already; update it, or choose another name")
            if await change.workflows.count() >= WORKFLOWS_MOST:
                raise Conflict(f"a tenant has at most {WORKFLOWS_MOST} workflows; delete some")
            head = WorkflowHead(
                principal.tenant, definition.name, new_id(), before.version + 1 if before else 1, found.description,
                change.now_us, principal.name, change.now_us,
            )  # fmt: skip
            made = await self._save(change, principal, head, given, key)
        self._moved(principal.tenant)
        return replace(made, warnings=warnings), False

    async def update(
        self, principal: Principal, id_or_name: str, given: Given, expected: int | None, key: Key | None
    ) -> tuple[WorkflowDetail, bool]:
        """Make the next version, unless the document is that of the latest; whether it is a replay. The name stays.

        Raises ValidationFailed, NotFound, Conflict where it has another version than expected, IdempotencyConflict.
        """
        found = await self._examine(given)
        served = await self._served(principal.tenant)
        async with self._catalogs.registry.transaction(principal.tenant) as change:
            earlier = await claimed(change, principal, key)
            if earlier is not None:
                return await _replayed(change, principal, earlier), True
            head = await _living(change, id_or_name)
            if given.get("name") != head.name:
                text = f"must be {head.name!r}: a workflow keeps its name"
                found.faults.append(FieldFault("name", text))
            _, warnings = await _checked(change, found, served)
            if expected is not None and expected != head.version:
                raise Conflict(f"workflow {head.name!r} has version {head.version}, not {expected}; read it again")
            latest = await change.workflows.version(head.name, head.version)
            if latest is not None and json.loads(latest.document) == given:
                await claim(change, principal, key, [head.name, head.version, head.id], self._key_ttl_us)
                return WorkflowDetail(head, latest, warnings), False
            if head.version >= VERSIONS_MOST:
                raise Conflict(f"a workflow has at most {VERSIONS_MOST} versions; go on with another name")
            head = replace(head, version=head.version + 1, description=found.description, updated_us=change.now_us)
            made = await self._save(change, principal, head, given, key)
        self._moved(principal.tenant)
        return replace(made, warnings=warnings), False

    async def delete(self, principal: Principal, id_or_name: str, key: Key | None) -> bool:
        """Delete a workflow; whether it is a replay. Its runs go on. Raises NotFound, IdempotencyConflict."""
        async with self._catalogs.registry.transaction(principal.tenant) as change:
            if await claimed(change, principal, key) is not None:
                return True
            head = await _living(change, id_or_name)
            await change.workflows.put(replace(head, deleted_us=change.now_us, updated_us=change.now_us))
            await claim(change, principal, key, [head.name, head.version, head.id], self._key_ttl_us)
        self._moved(principal.tenant)
        return False

    async def _examine(self, given: Given) -> Examined:
        return await examine(given, self._expressions, self._catalogs.schemas, self._catalogs.sandbox)

    async def _save(
        self, change: RegistryChange, principal: Principal, head: WorkflowHead, given: Given, key: Key | None
    ) -> WorkflowDetail:
        text = orjson.dumps(given).decode()
        made = WorkflowVersion(head.name, head.version, head.id, text, change.now_us, principal.name)
        await change.workflows.put(head)
        await change.workflows.add(made)
        await claim(change, principal, key, [head.name, head.version, head.id], self._key_ttl_us)
        return WorkflowDetail(head, made)

    def _moved(self, tenant: str) -> None:
        self._catalogs.forget(tenant)
        self._announcer.registry_moved(tenant)


async def _checked(
    change: RegistryChange, found: Examined, served: Set[str]
) -> tuple[Definition, tuple[FieldFault, ...]]:
    """The definition, with warnings. Raises ValidationFailed, with all faults."""
    name = found.definition.name if found.definition is not None else ""
    known = Known(
        await change.agents(_named(found, "agent")),
        await change.types(_named(found, "type")),
        _living_versions(await change.workflows.named(_named(found, "workflow"))),
        served,
    )
    faults, warnings = unknown(name, found.references, known)
    told = _told([*found.faults, *faults])
    if told or found.definition is None:
        # An error carries as many as fit into metadata.
        more = f" ({len(told)} faults in all: ValidateWorkflow tells each)" if len(told) > 1 else ""
        raise ValidationFailed(f"{told[0].field}: {told[0].message}{more}", told)
    return found.definition, _told([*found.warnings, *warnings])


def _named(found: Examined, what: str) -> set[str]:
    return {each.name for each in found.references if each.what == what}


def _living_versions(heads: Mapping[str, WorkflowHead]) -> dict[str, int]:
    return {head.name: head.version for head in heads.values() if not head.deleted_us}


def _told(found: list[FieldFault]) -> tuple[FieldFault, ...]:
    """By the fields of the request."""
    return tuple(replace(each, field=f"{FIELD}.{each.field}".rstrip(".")) for each in bounded(found))


async def _living(change: RegistryChange, id_or_name: str) -> WorkflowHead:
    """A workflow by its name or its id. Raises NotFound, also where it was deleted."""
    found = await change.workflows.find(id_or_name)
    if found is None or found.deleted_us:
        raise NotFound(f"there is no workflow {id_or_name!r}" + ("; it was deleted" if found else ""))
    return found


async def _replayed(change: RegistryChange, principal: Principal, earlier: KeyClaim) -> WorkflowDetail:
    """What a key's first call made, as it is, deleted or not: its name may be another workflow's by now."""
    name, version, workflow_id = json.loads(earlier.response)
    made = await change.workflows.version(name, version)
    head = (await change.workflows.named([name])).get(name)
    if made is None or head is None:
        raise NotFound("the workflow of this idempotency key is gone")
    if head.id != workflow_id:
        head = replace(head, id=workflow_id, version=version, deleted_us=head.created_us, updated_us=head.created_us)
    return WorkflowDetail(head, made)
