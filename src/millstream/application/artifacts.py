"""Reading artifacts, and publishing them (see publishing)."""

from collections.abc import Sequence
from typing import Protocol

from millstream.application.cascades import CascadeReads, may_see, reader_of
from millstream.application.catalog import Catalogs
from millstream.application.engine.engine import Engine
from millstream.application.paging import (
    Page,
    PageRequest,
    decode_token,
    encode_token,
    fitting,
    page_info,
    token_count,
    token_id,
)
from millstream.application.publishing import Publishing
from millstream.application.views import ArtifactQuery, Consumption, ListedArtifact, Summary
from millstream.domain.artifacts import Artifact, Reader, size_bytes
from millstream.domain.errors import NotFound
from millstream.domain.principals import Principal

_META_BYTES = 400
"""What one consumption takes on the wire."""


class ArtifactReads(CascadeReads, Protocol):
    """What is read of artifacts; see store.artifacts."""

    async def page(
        self,
        tenant: str,
        query: ArtifactQuery,
        reader: Reader | None,
        now_us: int,
        after_id: str,
        skip: int,
        limit: int,
    ) -> tuple[list[Artifact], bool]: ...
    async def count(
        self, tenant: str, query: ArtifactQuery, reader: Reader | None, now_us: int
    ) -> tuple[int, bool]: ...
    async def summary(self, tenant: str, query: ArtifactQuery, reader: Reader | None, now_us: int) -> Summary: ...
    async def consumptions(self, tenant: str, artifacts: list[Artifact]) -> dict[str, list[Consumption]]: ...


class Artifacts(Publishing):
    """The use cases of artifacts."""

    def __init__(self, engine: Engine, catalogs: Catalogs, reads: ArtifactReads, key_ttl_us: int) -> None:
        super().__init__(engine, catalogs, reads, key_ttl_us)
        self._reads = reads

    async def list(
        self, principal: Principal, query: ArtifactQuery, request: PageRequest, embed_meta: bool
    ) -> Page[ListedArtifact]:
        """A page of artifacts the caller may see, newest first; or, by the token of a truncated sync publish, the rest
        of its cascade in the order stored. Raises ValidationFailed."""
        request.check()
        reader, now_us = self._reader(principal), self._engine.clock.now_us()
        style, after, seq = "id", "", 0
        if request.page_token:
            style, after, seq = decode_token(request.page_token, _style, token_id, token_count)
        total = None
        found: Sequence[Artifact]
        if style == "run":
            found, more = await self._rest_of_run(principal, after, seq, request.size)
            token = encode_token("run", after, found[-1].seq) if more and found else ""
        else:
            found, more = await self._reads.page(
                principal.tenant, query, reader, now_us, after, request.skip, request.size
            )
            token = encode_token("id", found[-1].id, 0) if more and found else ""
            if request.page_token is None:
                total = await self._reads.count(principal.tenant, query, reader, now_us)
        taken: dict[str, list[Consumption]] = {}
        if embed_meta and found:
            taken = await self._reads.consumptions(principal.tenant, [*found])
            fit = fitting(
                found, request.size, lambda item: size_bytes(item) + _META_BYTES * len(taken.get(item.id, ()))
            )
            if len(fit) < len(found):
                found = fit
                token = (
                    encode_token("run", after, found[-1].seq) if style == "run" else encode_token("id", found[-1].id, 0)
                )
        cut = len(found) < request.size
        if style == "run":
            found = [item for item in found if _asked_for(query, item)]
        if reader is not None:
            found = [item for item in found if may_see(reader, item, now_us)]
        items = [ListedArtifact(item, taken.get(item.id, []) if embed_meta else None) for item in found]
        return Page(items, page_info(request, total, token, offset_style=True, cut=cut))

    async def _rest_of_run(
        self, principal: Principal, run_id: str, seq: int, limit: int
    ) -> tuple[Sequence[Artifact], bool]:
        if await self._reads.run(principal.tenant, run_id) is None:
            raise NotFound(f"the cascade {run_id} is gone")
        return await self._reads.of_run(run_id, seq, limit)

    async def summarize(self, principal: Principal, query: ArtifactQuery) -> Summary:
        """Counts of the artifacts the caller may see."""
        reader = self._reader(principal)
        return await self._reads.summary(principal.tenant, query, reader, self._engine.clock.now_us())

    async def get(self, principal: Principal, artifact_id: str) -> Artifact:
        """One artifact. Raises NotFound, also where the caller may not see it."""
        found = (await self._reads.by_ids(principal.tenant, [artifact_id])).get(artifact_id)
        reader = self._reader(principal)
        if found is None or (reader is not None and not may_see(reader, found, self._engine.clock.now_us())):
            raise NotFound(f"there is no artifact {artifact_id}")
        return found

    def _reader(self, principal: Principal) -> Reader | None:
        return None if "artifacts.read_all" in principal.permissions else reader_of(principal)


def _style(part: str) -> str:
    """What a page token goes on with: artifacts by id, or those of a run."""
    if part not in ("id", "run"):
        raise ValueError
    return part


def _asked_for(query: ArtifactQuery, item: Artifact) -> bool:
    """Whether the artifact is among those asked for: the rest of a cascade is read by its numbers alone."""
    return (
        query.type in ("", item.type)
        and query.produced_by in ("", item.produced_by)
        and query.correlation_id in ("", item.run_id)
        and query.visibility in ("", item.visibility.kind)
        and (not query.tag or query.tag in item.tags)
        and query.from_us <= item.created_us
        and (not query.to_us or item.created_us < query.to_us)
    )
