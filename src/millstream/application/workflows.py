"""Workflows read: by callers, and in the form that runs follow."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import orjson

from millstream.application.catalog import TENANTS_MOST, Catalogs
from millstream.application.defining import Defining, Given
from millstream.application.definitions import json_schema
from millstream.application.paging import (
    Page,
    PageRequest,
    decode_token,
    encode_token,
    fitting,
    page_info,
    text_bytes,
    token_count,
    token_number,
    token_of,
)
from millstream.application.ports import Costly
from millstream.application.reading_definitions import definition_of, read
from millstream.application.views.idempotency import Key
from millstream.application.views.workflows import (
    Validation,
    WorkflowDetail,
    WorkflowHead,
    WorkflowQuery,
    WorkflowVersion,
)
from millstream.domain.errors import Conflict, FieldFault, NotFound, ValidationFailed
from millstream.domain.principals import Principal
from millstream.domain.struct_wire import Json
from millstream.domain.workflows import Definition

HEADS_MOST = 10_000
LOOK_AGAIN_US = 2_000_000
"""A wake-up may be lost: after so long, the registry is asked whether it has moved."""
DEFINITIONS_BYTES = 32 * 1024 * 1024
"""Documents whose definitions are kept at hand; a definition takes several times its document."""


class WorkflowReads(Protocol):
    """What is read of workflows; see store.workflows."""

    async def find(self, tenant: str, id_or_name: str) -> WorkflowHead | None: ...
    async def version(self, tenant: str, name: str, version: int) -> WorkflowVersion | None: ...
    async def versions(
        self, tenant: str, name: str, before: int, skip: int, limit: int
    ) -> tuple[list[WorkflowVersion], int]: ...
    async def page(
        self, tenant: str, query: WorkflowQuery, after: tuple[int, str] | None, skip: int, limit: int
    ) -> list[WorkflowHead]: ...
    async def count(self, tenant: str, query: WorkflowQuery) -> tuple[int, bool]: ...


class Workflows:
    """The use cases of workflows, and where runs get what they follow."""

    def __init__(self, catalogs: Catalogs, defining: Defining, reads: WorkflowReads, now_us: Callable[[], int]) -> None:
        self._catalogs = catalogs
        self._now_us = now_us
        self._looked: dict[str, int] = {}
        self._defining = defining
        self._reads = reads
        self._heads: OrderedDict[tuple[str, str], tuple[int, WorkflowHead]] = OrderedDict()
        self._definitions: OrderedDict[tuple[str, str, int], tuple[int, Definition]] = OrderedDict()
        self._definitions_bytes = 0

    async def current(
        self, tenant: str, name_or_id: str, version: str = "", fresh: bool = False
    ) -> tuple[Definition, int]:
        """What a new run of a workflow follows: of its latest version, or of the given one (a number as text); and the
        version of the tenant's registry of which that holds.

        It costs no SQL where it was asked for before and nothing registered has changed since, but for one look at the
        registry's version every 2 s. A change made here is seen at once, one made on another server once its wake-up
        has come, which takes milliseconds, or with the next such look. So a command carries the registry's version
        (`Command.registry`): it is sent back where the registry has moved, and made again of what is `fresh`.

        Raises NotFound where there is no such workflow or version, or it was deleted; Conflict where its version was
        saved by a newer server and says what this one cannot run.
        """
        catalog = await self._catalogs.get(tenant, fresh or self._is_time_to_look(tenant))
        key = (tenant, name_or_id)
        seen, head = self._heads.get(key, (-1, None))
        # Nobody is refused by what may be outdated.
        if head is None or seen != catalog.version or head.deleted_us:
            head = await self._reads.find(tenant, name_or_id)
            if head is None:
                raise NotFound(f"there is no workflow {name_or_id!r}")
            # Read after the catalog: it may be newer than that says, never older.
            self._heads[key] = catalog.version, head
        self._heads.move_to_end(key)
        while len(self._heads) > HEADS_MOST:
            self._heads.popitem(last=False)
        if head.deleted_us:
            raise NotFound(f"there is no workflow {name_or_id!r}; it was deleted")
        return await self.pinned(tenant, head.name, version or head.version), catalog.version

    def moved(self, tenant: str) -> None:
        """The tenant's registry has moved: what is asked for from now on is read again."""
        self._catalogs.forget(tenant)

    def _is_time_to_look(self, tenant: str) -> bool:
        now_us = self._now_us()
        if now_us - self._looked.get(tenant, 0) < LOOK_AGAIN_US:
            return False
        if len(self._looked) > TENANTS_MOST:
            self._looked.clear()
        self._looked[tenant] = now_us
        return True

    async def pinned(self, tenant: str, name: str, version: str | int) -> Definition:
        """What a run follows that was begun with this version, whether or not the workflow was deleted since.

        It costs no SQL where it was asked for lately: a version never changes. Raises NotFound, and Conflict as
        `definition` does.
        """
        number = int(version) if isinstance(version, int) or (version.isascii() and version.isdigit()) else 0
        if not 0 < number < 1 << 31:
            raise NotFound(f"workflow {name!r} has no version {version!r}")
        key = (tenant, name, number)
        found = self._definitions.get(key)
        if found is None:
            found = await self._load(tenant, name, number)
            if key not in self._definitions:
                self._definitions[key] = found
                self._definitions_bytes += found[0]
        self._definitions.move_to_end(key)
        while self._definitions_bytes > DEFINITIONS_BYTES and len(self._definitions) > 1:
            self._definitions_bytes -= self._definitions.popitem(last=False)[1][0]
        return found[1]

    async def _load(self, tenant: str, name: str, version: int) -> tuple[int, Definition]:
        stored = await self._reads.version(tenant, name, version)
        if stored is None:
            raise NotFound(f"workflow {name!r} has no version {version}")
        document = read(orjson.loads(stored.document)).document
        if document is None:
            raise Conflict(f"version {version} of workflow {name!r} says what this server is too old to run")
        return len(stored.document), definition_of(document, version)

    async def check_input(self, definition: Definition, value: Json, size_bytes: int, field: str = "input") -> None:
        """Raise ValidationFailed, with all faults below `field`, unless a run of the definition may be given the value.

        Args:
            size_bytes: Size of the value, in wire form.
        """
        self._raise(await self._faults(definition.input_schema, value, size_bytes, field))

    async def check_output(self, definition: Definition, value: Json, size_bytes: int, field: str = "output") -> None:
        """Raise ValidationFailed unless a run of the definition may answer the value. See check_input."""
        self._raise(await self._faults(definition.output_schema, value, size_bytes, field))

    async def _faults(self, schema: str, value: Json, size_bytes: int, field: str) -> list[FieldFault]:
        if not schema:
            return []
        try:
            return self._catalogs.schemas.compile(schema)(value, field, size_bytes)
        except Costly:
            return await self._catalogs.sandbox.faults(schema, value, field)

    @staticmethod
    def _raise(faults: list[FieldFault]) -> None:
        if faults:
            raise ValidationFailed(f"{faults[0].field}: {faults[0].message}", faults)

    def schema(self) -> bytes:
        """JSON Schema of documents, as JSON."""
        return orjson.dumps(json_schema())

    async def validate(self, principal: Principal, given: Given) -> Validation:
        """Say what is wrong with a document; see Defining.validate."""
        return await self._defining.validate(principal, given)

    async def create(self, principal: Principal, given: Given, key: Key | None) -> tuple[WorkflowDetail, bool]:
        """Make a workflow; see Defining.create."""
        return await self._defining.create(principal, given, key)

    async def update(
        self, principal: Principal, id_or_name: str, given: Given, expected: int | None, key: Key | None
    ) -> tuple[WorkflowDetail, bool]:
        """Make the next version; see Defining.update."""
        return await self._defining.update(principal, id_or_name, given, expected, key)

    async def delete(self, principal: Principal, id_or_name: str, key: Key | None) -> bool:
        """Delete a workflow; see Defining.delete."""
        return await self._defining.delete(principal, id_or_name, key)

    async def get(self, principal: Principal, id_or_name: str) -> WorkflowDetail:
        """A workflow by its id or name, deleted or not, with its latest version. Raises NotFound."""
        head = await self._head(principal, id_or_name)
        return WorkflowDetail(head, await self._version(principal, head, head.version))

    async def version(self, principal: Principal, id_or_name: str, version: int) -> WorkflowVersion:
        """A version of a workflow, deleted or not. Raises NotFound."""
        return await self._version(principal, await self._head(principal, id_or_name), version)

    async def versions(self, principal: Principal, id_or_name: str, request: PageRequest) -> Page[WorkflowVersion]:
        """The versions of a workflow without their documents, newest first. Raises NotFound."""
        request.check()
        head = await self._head(principal, id_or_name)
        before = 1 << 30
        if request.page_token:
            kind, name = token_of("workflow versions"), token_of(head.name)
            *_, before = decode_token(request.page_token, kind, name, token_count)
        found, total = await self._reads.versions(principal.tenant, head.name, before, request.skip, request.size)
        page = fitting(found, request.size, _version_bytes)
        token = encode_token("workflow versions", head.name, page[-1].version) if len(found) > len(page) else ""
        return Page(page, page_info(request, (total, False), token))

    async def list(self, principal: Principal, query: WorkflowQuery, request: PageRequest) -> Page[WorkflowHead]:
        """Workflows in the order asked for; those that were deleted only where they are asked for."""
        request.check()
        kind = f"workflows by {query.sort}{' descending' if query.descending else ''}"
        after = None
        if request.page_token:
            _, at, name = decode_token(request.page_token, token_of(kind), token_number, str)
            after = (at, name)
        found = await self._reads.page(principal.tenant, query, after, request.skip, request.size)
        total = None if request.page_token is not None else await self._reads.count(principal.tenant, query)
        page = fitting(found, request.size, _head_bytes)
        token = ""
        if page and len(found) > len(page):
            token = encode_token(kind, _at(page[-1], query), page[-1].name)
        return Page(page, page_info(request, total, token))

    async def _head(self, principal: Principal, id_or_name: str) -> WorkflowHead:
        found = await self._reads.find(principal.tenant, id_or_name)
        if found is None:
            raise NotFound(f"there is no workflow {id_or_name!r}")
        return found

    async def _version(self, principal: Principal, head: WorkflowHead, version: int) -> WorkflowVersion:
        found = await self._reads.version(principal.tenant, head.name, version)
        if found is None:
            raise NotFound(f"workflow {head.name!r} has no version {version}")
        return found


def _at(head: WorkflowHead, query: WorkflowQuery) -> int:
    return {"created_at": head.created_us, "updated_at": head.updated_us}.get(query.sort, 0)


def _head_bytes(head: WorkflowHead) -> int:
    return 300 + text_bytes(head.name, head.description, head.created_by)


def _version_bytes(version: WorkflowVersion) -> int:
    return 150 + text_bytes(version.name, version.created_by)
