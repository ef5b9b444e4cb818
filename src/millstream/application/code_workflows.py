"""Which code-first workflows there are: workers register them as they connect."""

import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

from millstream.application.catalog import Catalogs, Check
from millstream.application.ports import Costly
from millstream.domain.errors import NotFound, ValidationFailed
from millstream.domain.struct_wire import decode_value
from millstream.domain.workers import KindSpec

KNOWN_MOST = 10_000
KNOWN_S = 1.0
"""For how long another server's workers may have registered a later version that this one does not know of."""


class Store(Protocol):
    """Keeps them; see store.journal."""

    async def latest(self, tenant: str, name: str, version: str) -> tuple[str, str] | None: ...
    async def register(
        self, tenant: str, name: str, version: str, description: str, schemas: tuple[str, str], now_us: int
    ) -> None: ...


class CodeWorkflows:
    """The workflows that workers have the code of."""

    def __init__(self, store: Store, catalogs: Catalogs) -> None:
        self._store = store
        self._catalogs = catalogs
        self._known: OrderedDict[tuple[str, str, str], tuple[float, str, str]] = OrderedDict()
        self._checks: OrderedDict[str, Check] = OrderedDict()

    async def register(self, tenant: str, specs: Sequence[KindSpec], now_us: int) -> None:
        """A worker has the code of these. Raises ValidationFailed where a schema is none."""
        for index, spec in enumerate(specs):
            for field, schema in (("input_schema", spec.input_schema), ("output_schema", spec.output_schema)):
                if schema:
                    await self._read(schema, f"hello.kind_specs[{index}].{field}")
        for spec in specs:
            schemas = (spec.input_schema, spec.output_schema)
            await self._store.register(tenant, spec.name, spec.version, spec.description, schemas, now_us)
            self._known.pop((tenant, spec.name, ""), None)
            self._known.pop((tenant, spec.name, spec.version), None)

    async def _read(self, schema: str, field: str) -> None:
        try:
            await self._catalogs.sandbox.read(schema)
        except ValueError as error:
            raise ValidationFailed.of(field, f"is no JSON Schema: {error}") from None

    async def version_for(self, tenant: str, name: str, version: str, given: bytes) -> str:
        """The version that a run is to have ("": the latest), whose schema its input fits. Raises NotFound,
        ValidationFailed."""
        found, schema = await self._find(tenant, name, version)
        if schema:
            value = decode_value(given) if given else None
            try:
                faults = self._check(schema)(value, "input", len(given))
            except Costly:
                faults = await self._catalogs.sandbox.faults(schema, value, "input")
            if faults:
                raise ValidationFailed(f"{faults[0].field}: {faults[0].message}", faults)
        return found

    async def known(self, tenant: str, name: str) -> bool:
        """Whether a worker has ever registered a workflow of this name."""
        try:
            await self._find(tenant, name, "")
        except NotFound:
            return False
        return True

    async def _find(self, tenant: str, name: str, version: str) -> tuple[str, str]:
        key = (tenant, name, version)
        known = self._known.get(key)
        if known is not None and time.monotonic() - known[0] < KNOWN_S:
            return known[1:]
        found = await self._store.latest(tenant, name, version)
        if found is None:
            what = f"version {version!r} of the workflow {name!r}" if version else f"the workflow {name!r}"
            raise NotFound(f"no worker has registered {what}; start a worker that has its code")
        self._known[key] = (time.monotonic(), *found)
        if len(self._known) > KNOWN_MOST:
            self._known.popitem(last=False)
        return found

    def _check(self, schema: str) -> Check:
        check = self._checks.get(schema)
        if check is None:
            check = self._checks[schema] = self._catalogs.schemas.compile(schema)
            if len(self._checks) > KNOWN_MOST // 10:
                self._checks.popitem(last=False)
        return check
