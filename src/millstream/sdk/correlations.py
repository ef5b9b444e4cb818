"""Cascades as a whole: where one stands, and all of its artifacts."""

from collections.abc import AsyncIterator

import orjson
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.json_format import ParseDict

from millstream.sdk.calls import Area
from millstream.sdk.results import Artifact, CorrelationStatus, when
from millstream.sdk.streams import Streamed, resumed
from millstream.v1 import artifact_pb2
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

    async def export(self, correlation_id: str, cursor: str = "") -> AsyncIterator[Streamed[Artifact]]:
        """The artifacts of a cascade that the caller may see, in the order stored, as far as it is; a connection that
        is lost is resumed.

        Args:
            cursor: of an earlier one; go on behind it.

        Raises:
            NotFoundError: there is no such cascade.
        """
        async for line in self.export_lines(correlation_id, cursor):
            value = orjson.loads(line)
            artifact = ParseDict(value, artifact_pb2.Artifact(), ignore_unknown_fields=True)
            yield Streamed(Artifact.from_wire(artifact), value["cursor"])

    async def export_lines(self, correlation_id: str, cursor: str = "") -> AsyncIterator[bytes]:
        """The same as lines of JSON, each with its line break: an artifact as REST shows it, with `cursor`."""
        behind = cursor

        def begin() -> AsyncIterator[HttpBody]:
            request = wire.ExportCorrelationRequest(correlation_id=correlation_id, cursor=behind)
            return self._calls.stream("CorrelationService/ExportCorrelation", request, HttpBody)

        async for body in resumed(begin, retries=self._calls.retries):
            for line in body.data.splitlines(keepends=True):
                value = orjson.loads(line)
                if "end" in value:
                    return
                behind = value["cursor"]
                yield line
