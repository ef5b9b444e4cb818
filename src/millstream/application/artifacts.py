"""Reading artifacts, and publishing them (see publishing)."""

from dataclasses import replace
from typing import Protocol

from millstream.application.cascades import CascadeReads
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
from millstream.application.ports import TooSlow
from millstream.application.publishing import Publishing
from millstream.application.referring import Referring
from millstream.application.sight import may_see, restricted
from millstream.application.views.artifacts import ArtifactQuery, Consumption, ListedArtifact, Summary
from millstream.domain.artifacts import Artifact, Reader, size_bytes
from millstream.domain.errors import NotFound, TimedOut, ValidationFailed
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

    def __init__(
        self, engine: Engine, catalogs: Catalogs, referring: Referring, reads: ArtifactReads, key_ttl_us: int
    ) -> None:
        super().__init__(engine, catalogs, referring, reads, key_ttl_us)
        self._reads = reads

    async def list(
        self, principal: Principal, query: ArtifactQuery, request: PageRequest, embed_meta: bool
    ) -> Page[ListedArtifact]:
        """A page of artifacts the caller may see, newest first; or, by the token of a truncated sync publish, the rest
        of its cascade in the order stored. Raises ValidationFailed."""
        request.check()
        reader, now_us = restricted(principal), self._engine.clock.now_us()
        style, after, seq = "id", "", 0
        if request.page_token:
            style, after, seq = decode_token(request.page_token, _style, token_id, token_count)
        total = None
        if style == "run":
            if query.correlation_id not in ("", after):
                raise ValidationFailed.of("page_token", f"is of the cascade {after}, and correlation_id names another")
            query = replace(query, correlation_id=after)
            if await self._reads.run(principal.tenant, after) is None:
                raise NotFound(f"the cascade {after} is gone: its retention has passed")
            found, more = await self._reads.seen_of_run(principal.tenant, query, reader, now_us, seq, request.size)
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
        items = [ListedArtifact(item, taken.get(item.id, []) if embed_meta else None) for item in found]
        return Page(items, page_info(request, total, token, offset_style=True, cut=cut))

    async def summarize(self, principal: Principal, query: ArtifactQuery) -> Summary:
        """Counts of the artifacts the caller may see. Raises TimedOut where there are too many to count."""
        reader = restricted(principal)
        try:
            return await self._reads.summary(principal.tenant, query, reader, self._engine.clock.now_us())
        except TooSlow:
            raise TimedOut(
                "there are too many artifacts to count in time; ask for fewer, by from and to, type, produced_by, tag,"
                " visibility or correlation_id"
            ) from None

    async def get(self, principal: Principal, artifact_id: str) -> Artifact:
        """One artifact, with its payload also where that came within a request and is kept outside. Raises NotFound,
        also where the caller may not see it."""
        found = (await self._reads.by_ids(principal.tenant, [artifact_id])).get(artifact_id)
        reader = restricted(principal)
        if found is None or (reader is not None and not may_see(reader, found, self._engine.clock.now_us())):
            raise NotFound(f"there is no artifact {artifact_id}, or none any longer: its retention may have passed")
        return replace(found, payload=await self._referring.payload_of(found)) if found.payload_digest else found


def _style(part: str) -> str:
    """What a page token goes on with: artifacts by id, or those of a run."""
    if part not in ("id", "run"):
        raise ValueError
    return part
