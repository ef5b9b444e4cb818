"""SystemService: health, readiness, metrics, and the level of the logs."""

from collections.abc import Awaitable, Callable

from google.api.httpbody_pb2 import HttpBody
from google.protobuf.message import Message

from millstream.application.log_levels import Levels
from millstream.domain.errors import FieldFault, Unavailable
from millstream.transport.context import Context
from millstream.transport.mapping.times import SECOND_US, put
from millstream.transport.use_cases import System
from millstream.wire.v1 import system_service_pb2 as wire

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class SystemService:
    """How the service is, over the wire; `exposition` writes the metrics in Prometheus' text format."""

    def __init__(self, system: System, version: str, exposition: Callable[[], Awaitable[bytes]]) -> None:
        self._system = system
        self._version = version
        self._exposition = exposition

    async def get_health(self, _: wire.GetHealthRequest, context: Context) -> Message:
        """The process lives."""
        return wire.GetHealthResponse(status="ok", version=self._version)

    async def get_readiness(self, _: wire.GetReadinessRequest, context: Context) -> Message:
        """The process can serve. Raises Unavailable naming what is not ready."""
        checks = await self._system.checks()
        faults = [FieldFault(check.name, check.detail, "NOT_READY") for check in checks if not check.ok]
        if faults:
            raise Unavailable("not ready: " + ", ".join(fault.field for fault in faults), faults)
        return wire.GetReadinessResponse(
            status="ready",
            checks={check.name: "ok" for check in checks},
            results=[wire.ReadinessCheck(name=check.name, ok=True, detail=check.detail) for check in checks],
        )

    async def get_metrics(self, _: wire.GetMetricsRequest, context: Context) -> Message:
        """The metrics."""
        body: Message = HttpBody(content_type=METRICS_TYPE, data=await self._exposition())
        return body

    async def get_log_level(self, _: wire.GetLogLevelRequest, context: Context) -> Message:
        """The levels of the logs."""
        return _put_levels(wire.GetLogLevelResponse(), await self._system.log_levels())

    async def set_log_level(self, request: wire.SetLogLevelRequest, context: Context) -> Message:
        """Set a level of the logs."""
        level = "" if request.level == "default" else request.level
        levels, replayed = await self._system.set_log_level(
            context.principal, request.logger, level, request.for_seconds * SECOND_US, context.key
        )
        context.replayed(replayed)
        return _put_levels(wire.SetLogLevelResponse(), levels)


def _put_levels(out: wire.GetLogLevelResponse | wire.SetLogLevelResponse, levels: Levels) -> Message:
    out.default_level, out.level = levels.default, levels.level
    for each in levels.set:
        put(out.levels.add(logger=each.logger, level=each.level).until, each.until_us)
    return out
