"""Who the workers are, and what they serve."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from millstream.application.engine.engine import Engine
from millstream.application.paging import (
    PAGE_BYTES,
    Page,
    PageRequest,
    decode_token,
    encode_token,
    fitting,
    page_info,
    text_bytes,
    token_count,
    token_id,
    token_number,
    token_of,
)
from millstream.domain.errors import NotFound
from millstream.domain.principals import Principal
from millstream.domain.workers import (
    Horizon,
    KindQuery,
    KindSpec,
    KnownKind,
    KnownWorker,
    ServingWorker,
    WorkerQuery,
)

SILENT_US = 15_000_000
"""A server not seen for this long is gone, and its workers with it."""


class WorkerReads(Protocol):
    """Reads workers and kinds; see store.workers."""

    async def workers(
        self, tenant: str, query: WorkerQuery, horizon: Horizon, after: tuple[int, str] | None, skip: int, limit: int
    ) -> list[KnownWorker]: ...
    async def count_workers(self, tenant: str, query: WorkerQuery, horizon: Horizon) -> int: ...
    async def worker(self, tenant: str, worker_id: str, horizon: Horizon) -> KnownWorker | None: ...
    async def specs(self, tenant: str, kinds: Sequence[KindSpec]) -> dict[str, KindSpec]: ...
    async def kinds(
        self,
        tenant: str,
        query: KindQuery,
        horizon: Horizon,
        after: tuple[str, int, str],
        skip: int,
        limit: int,
    ) -> list[KnownKind]: ...
    async def count_kinds(self, tenant: str, query: KindQuery, horizon: Horizon) -> int: ...
    async def serving(
        self, tenant: str, codes: Sequence[str], horizon: Horizon
    ) -> tuple[dict[str, list[ServingWorker]], dict[str, tuple[str, ...]]]: ...


class Discovery:
    """The use cases that tell of workers."""

    def __init__(self, engine: Engine, reads: WorkerReads) -> None:
        self._engine = engine
        self._reads = reads

    def _horizon(self) -> Horizon:
        now_us = self._engine.clock.now_us()
        return Horizon(now_us - SILENT_US, now_us - self._engine.limits.lease_us)

    async def workers(self, principal: Principal, query: WorkerQuery, request: PageRequest) -> Page[KnownWorker]:
        """Workers, the last connected first. Raises ValidationFailed."""
        request.check()
        after = None
        if request.page_token:
            _, connected_us, worker_id = decode_token(request.page_token, token_of("workers"), token_number, token_id)
            after = (connected_us, worker_id)
        horizon = self._horizon()
        found = await self._reads.workers(principal.tenant, query, horizon, after, request.skip, request.size)
        page = fitting(found, request.size, _worker_bytes)
        token = ""
        if len(found) > len(page):
            token = encode_token("workers", page[-1].connected_us, page[-1].worker_id)
        total = None
        if request.page_token is None:
            total = (await self._reads.count_workers(principal.tenant, query, horizon), False)
        return Page(page, page_info(request, total, token, cut=len(page) < request.size))

    async def worker(self, principal: Principal, worker_id: str) -> KnownWorker:
        """A worker with what it says of its kinds, as much as one answer holds. Raises NotFound."""
        found = await self._reads.worker(principal.tenant, worker_id, self._horizon())
        if found is None:
            raise NotFound(f"there is no worker {worker_id}")
        said = await self._reads.specs(principal.tenant, found.kinds) if found.kinds else {}
        kinds, whole = _told(found.kinds, said)
        return replace(found, kinds=kinds, truncated=found.truncated or not whole)

    async def kinds(self, principal: Principal, query: KindQuery, request: PageRequest) -> Page[KnownKind]:
        """Kinds by name and version, with who serves them. Raises ValidationFailed."""
        request.check()
        after = ("", 0, "")
        if request.page_token:
            _, name, category, version = decode_token(
                request.page_token, token_of("kinds"), _token_text, token_count, _token_text
            )
            after = (name, category, version)
        tenant, horizon = principal.tenant, self._horizon()
        found = await self._reads.kinds(tenant, query, horizon, after, request.skip, request.size)
        page = fitting(found, request.size, _kind_bytes)
        token = ""
        if len(found) > len(page):
            last = page[-1].spec
            token = encode_token("kinds", last.name.encode().hex(), last.category, last.version.encode().hex())
        total = None
        if request.page_token is None:
            total = (await self._reads.count_kinds(tenant, query, horizon), False)
        served = [each.spec.code for each in page if each.count]
        if served:
            workers, queues = await self._reads.serving(tenant, served, horizon)
            page = [
                replace(each, workers=tuple(workers.get(each.spec.code, ())), queues=queues.get(each.spec.code, ()))
                for each in page
            ]
        return Page(page, page_info(request, total, token, cut=len(page) < request.size))


def _token_text(part: str) -> str:
    return bytes.fromhex(part).decode()


def _told(kinds: Sequence[KindSpec], said: Mapping[str, KindSpec]) -> tuple[tuple[KindSpec, ...], bool]:
    """What is said of kinds, up to the bytes of a page, beyond it only their names; and whether that is all."""
    whole = [said.get(kind.code, kind) for kind in kinds]
    fit = fitting(whole, len(whole), _spec_bytes, PAGE_BYTES)
    return (*fit, *kinds[len(fit) :]), len(fit) == len(whole)


def _spec_bytes(spec: KindSpec) -> int:
    # A schema's wire form may be twice as long as its text.
    return (
        50
        + text_bytes(spec.name, spec.version, spec.description)
        + 2 * text_bytes(spec.input_schema, spec.output_schema)
    )


def _worker_bytes(worker: KnownWorker) -> int:
    listed = sum(map(_spec_bytes, worker.kinds))
    return 300 + listed + text_bytes(worker.name, worker.server, *worker.queues, *worker.agents)


def _kind_bytes(kind: KnownKind) -> int:
    return 4000 + _spec_bytes(kind.spec)
