"""A collector of traces: OTLP over gRPC, as any other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as wire
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1 import trace_pb2

SOON_S = 30.0


class Collector(TraceServiceServicer):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.spans: list[trace_pb2.Span] = []
        self.endpoint = ""
        self._came = asyncio.Condition()

    async def Export(self, request: wire.ExportTraceServiceRequest, context: Any) -> Any:  # noqa: N802  (gRPC's name)
        """Take spans."""
        async with self._came:
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    self.spans.extend(scope.spans)
            self._came.notify_all()
        return wire.ExportTraceServiceResponse()

    async def of(self, trace_id: str, whole: Callable[[dict[str, trace_pb2.Span]], bool]) -> dict[str, trace_pb2.Span]:
        """The spans of a trace by name, once they are `whole`."""

        def found() -> dict[str, trace_pb2.Span]:
            return {span.name: span for span in self.spans if span.trace_id.hex() == trace_id}

        async with asyncio.timeout(SOON_S), self._came:
            await self._came.wait_for(lambda: whole(found()))
        return found()


@contextlib.asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """A collector that listens."""
    collector = Collector()
    server = grpc.aio.server()
    add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]  # generated without types
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield collector
    finally:
        await server.stop(None)
