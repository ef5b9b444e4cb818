"""Cascades as a whole, by their correlation id."""

from typing import Protocol

from millstream.application.engine.engine import Engine
from millstream.application.sight import restricted
from millstream.application.views import ArtifactQuery, CorrelationStatus
from millstream.domain.artifacts import Reader
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


class CorrelationReads(Protocol):
    """What is read of a cascade; see store.runs and store.artifacts."""

    async def run(self, tenant: str, run_id: str) -> Run | None: ...
    async def limits_reached(self, found: Run) -> list[Event]: ...
    async def count(
        self, tenant: str, query: ArtifactQuery, reader: Reader | None, now_us: int
    ) -> tuple[int, bool]: ...


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
