"""Cascades as a whole: where one stands."""

from millstream.sdk.calls import Area
from millstream.sdk.results import CorrelationStatus, when
from millstream.v1 import correlation_service_pb2 as wire


class Correlations(Area):
    """Reads cascades by their correlation id."""

    async def status(self, correlation_id: str) -> CorrelationStatus:
        """Where a cascade stands; of one that is unknown the state is "not_found", and no error is raised."""
        message = await self._calls.read(
            "CorrelationService/GetCorrelationStatus",
            wire.GetCorrelationStatusRequest(correlation_id=correlation_id),
            wire.GetCorrelationStatusResponse,
        )
        return CorrelationStatus(
            correlation_id=message.correlation_id,
            state=message.state,
            has_pending_work=message.has_pending_work,
            artifact_count=message.artifact_count,
            error_count=message.error_count,
            started_at=when(message, "started_at"),
            last_activity_at=when(message, "last_activity_at"),
            artifact_count_is_estimate=message.artifact_count_is_estimate,
        )
