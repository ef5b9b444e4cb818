"""CorrelationService: where cascades stand."""

from google.protobuf.message import Message

from millstream.transport.context import Context
from millstream.transport.mapping import correlations as mapping
from millstream.transport.use_cases import Correlations
from millstream.wire.v1 import correlation_service_pb2 as wire


class CorrelationService:
    """Cascades over the wire."""

    def __init__(self, correlations: Correlations) -> None:
        self._correlations = correlations

    async def get_correlation_status(self, request: wire.GetCorrelationStatusRequest, context: Context) -> Message:
        """Tell where a cascade stands."""
        status = await self._correlations.status(context.principal, request.correlation_id.lower())
        return mapping.put_status(wire.GetCorrelationStatusResponse(), status)
