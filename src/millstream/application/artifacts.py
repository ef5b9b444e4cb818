"""Reading artifacts, and publishing them (see publishing)."""

from collections.abc import Sequence
from typing import Protocol

from millstream.application.cascades import CascadeReads, may_see, reader_of
from millstream.application.catalog import Catalogs
from millstream.application.engine.engine import Engine
from millstream.application.paging import Page, PageRequest, decode_token, encode_token, page_info
from millstream.application.publishing import Publishing
from millstream.application.views import ArtifactQuery, Consumption, ListedArtifact, Summary
from millstream.domain.artifacts import Artifact, Reader
from millstream.domain.errors import NotFound, ValidationFailed
from millstream.domain.principals import Principal


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
        parts = decode_token(request.page_token, 3) if request.page_token else []
        total = None
        found: Sequence[Artifact]
        if parts and parts[0] == "run":
            found, more = await self._rest_of_run(principal, parts, request.size)
            token = encode_token("run", parts[1], found[-1].seq) if more and found else ""
        else:
            after = parts[1] if parts else ""
            found, more = await self._reads.page(
                principal.tenant, query, reader, now_us, after, request.skip, request.size
            )
            token = encode_token("id", found[-1].id, "") if more and found else ""
            if not parts:
                total = await self._reads.count(principal.tenant, query, reader, now_us)
        if reader is not None:
            found = [item for item in found if may_see(reader, item, now_us)]
        taken = await self._reads.consumptions(principal.tenant, [*found]) if embed_meta and found else {}
        items = [ListedArtifact(item, taken.get(item.id, []) if embed_meta else None) for item in found]
        return Page(items, page_info(request, total, token, offset_style=True))

    async def _rest_of_run(
        self, principal: Principal, parts: Sequence[str], limit: int
    ) -> tuple[Sequence[Artifact], bool]:
        _, run_id, seq = parts
        if not seq.isdigit():
            raise ValidationFailed.of("page_token", "is not a token of this list; start again without it")
        if await self._reads.run(principal.tenant, run_id) is None:
            raise NotFound(f"the cascade {run_id} is gone")
        return await self._reads.of_run(run_id, int(seq), limit)

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
