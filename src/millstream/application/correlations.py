"""Cascades as a whole, by their correlation id."""

from collections.abc import AsyncGenerator
from typing import Protocol

from millstream.application.engine.engine import Engine
from millstream.application.paging import decode_token, encode_token, token_count, token_id, token_of
from millstream.application.sight import restricted
from millstream.application.views.artifacts import ArtifactQuery, CorrelationStatus, Sent
from millstream.domain.artifacts import Artifact, Reader
from millstream.domain.errors import NotFound, ValidationFailed
from millstream.domain.planners import LIMIT_CODE
from millstream.domain.principals import Principal
from millstream.domain.runs import Event, Run, RunKind, RunStatus

_STATES = {
    RunStatus.RUNNING: "active",
    RunStatus.CANCELLING: "active",
    RunStatus.COMPLETED: "completed",
    RunStatus.FAILED: "failed",
    # It did not do what it was for, and FL-18 has no word for why.
    RunStatus.CANCELLED: "failed",
}


EXPORT_PAGE = 100
"""Artifacts that an export reads, and holds, at once."""


class CorrelationReads(Protocol):
    """What is read of a cascade; see store.runs and store.artifacts."""

    async def run(self, tenant: str, run_id: str) -> Run | None: ...
    async def limits_reached(self, found: Run) -> list[Event]: ...
    async def count(
        self, tenant: str, query: ArtifactQuery, reader: Reader | None, now_us: int
    ) -> tuple[int, bool]: ...
    async def seen_of_run(
        self, tenant: str, query: ArtifactQuery, reader: Reader | None, now_us: int, after_seq: int, limit: int
    ) -> tuple[list[Artifact], bool]: ...


class Correlations:
    """The use cases of cascades."""

    def __init__(self, engine: Engine, reads: CorrelationReads) -> None:
        self._engine = engine
        self._reads = reads

    async def status(self, principal: Principal, correlation_id: str) -> CorrelationStatus:
        """Where a cascade stands, by its rows alone. What is unknown, another tenant's or no cascade is "not_found"."""
        run = await self._reads.run(principal.tenant, correlation_id)
        if run is None or run.kind is not RunKind.CASCADE:
            return CorrelationStatus(correlation_id)
        limits = await self._reads.limits_reached(run) if run.error_code == LIMIT_CODE else []
        artifacts, is_estimate = await self._reads.count(
            principal.tenant, ArtifactQuery(correlation_id=run.id), restricted(principal), self._engine.clock.now_us()
        )
        return CorrelationStatus(
            run.id,
            _STATES[run.status],
            run.open_tasks > 0 or run.open_gates > 0,
            artifacts,
            is_estimate,
            run.failed_tasks + len(limits),
            run.created_us,
            run.updated_us or run.created_us,
        )

    async def export(self, principal: Principal, correlation_id: str, cursor: str) -> AsyncGenerator[list[Sent], None]:
        """The artifacts of a cascade that the caller may see, page by page in the order stored.

        Raises NotFound, ValidationFailed.
        """
        after = _place(cursor, correlation_id) if cursor else 0
        query, reader = ArtifactQuery(correlation_id=correlation_id), restricted(principal)
        if not cursor and await self._reads.run(principal.tenant, correlation_id) is None:
            # The artifacts of a cascade may outlive it.
            now_us = self._engine.clock.now_us()
            if not (await self._reads.seen_of_run(principal.tenant, query, reader, now_us, 0, 1))[0]:
                raise NotFound(f"there is no cascade {correlation_id}, or none any longer: its retention has passed")
        more = True
        while more:
            now_us = self._engine.clock.now_us()
            found, more = await self._reads.seen_of_run(principal.tenant, query, reader, now_us, after, EXPORT_PAGE)
            if found:
                after = found[-1].seq
                yield [Sent(each, encode_token("export", correlation_id, each.seq)) for each in found]


def _place(cursor: str, correlation_id: str) -> int:
    """The place that a cursor names."""
    _, named, seq = decode_token(cursor, token_of("export"), token_id, token_count, field="cursor")
    if named != correlation_id:
        raise ValidationFailed.of("cursor", f"is of an export of the cascade {named}; start again without it")
    place: int = seq
    return place
