"""Cascades as a whole."""

from millstream.application.views.artifacts import CorrelationStatus
from millstream.transport.mapping.times import put
from millstream.wire.v1 import correlation_service_pb2 as wire


def put_status(out: wire.GetCorrelationStatusResponse, status: CorrelationStatus) -> wire.GetCorrelationStatusResponse:
    """Write where a cascade stands."""
    out.correlation_id = status.correlation_id
    out.state = status.state
    out.has_pending_work = status.has_pending_work
    out.artifact_count = status.artifact_count
    out.error_count = status.error_count
    put(out.started_at, status.started_us)
    put(out.last_activity_at, status.last_activity_us)
    if status.artifact_count_is_estimate:
        out.artifact_count_is_estimate = True
    return out
