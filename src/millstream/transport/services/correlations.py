"""CorrelationService: where cascades stand, and all of their artifacts at once."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from google.protobuf.message import Message

from millstream.transport.context import Context
from millstream.transport.mapping import correlations as mapping
from millstream.transport.mapping.lines import body, error_line, joined, line
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

    async def export_correlation(
        self, request: wire.ExportCorrelationRequest, context: Context
    ) -> AsyncGenerator[Message, None]:
        """Send the artifacts of a cascade as lines."""
        context.cursor, context.last_words = request.cursor, error_line(lambda: context.cursor)
        pages = self._correlations.export(context.principal, request.correlation_id.lower(), request.cursor)
        count = 0
        async with aclosing(pages):
            async for page in pages:
                count += len(page)
                for data, cursor in joined(page):
                    context.cursor = cursor
                    yield body(data)
        yield body(line({"end": True, "count": count, "cursor": context.cursor}))
