"""A collector of traces that throws them away, but counts: it prints how many spans it was sent whenever it is given a
line."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator
from typing import Any, Final

import grpc
import uvloop

_SERVICE: Final = "opentelemetry.proto.collector.trace.v1.TraceService"
# Numbers of fields: of ExportTraceServiceRequest, ResourceSpans and ScopeSpans.
_RESOURCE_SPANS: Final = 1
_SCOPE_SPANS: Final = 2
_SPANS: Final = 2


def _varint(raw: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _parts(raw: memoryview, number: int) -> Iterator[memoryview]:
    """The fields of a message with a number; all of these messages' fields have lengths."""
    at = 0
    while at < len(raw):
        tag, at = _varint(raw, at)
        size, at = _varint(raw, at)
        if tag == number << 3 | 2:
            yield raw[at : at + size]
        at += size


def spans_in(raw: bytes) -> int:
    """Spans of a request, without parsing them: what a collector does with them is not measured here."""
    return sum(
        sum(1 for _ in _parts(scope, _SPANS))
        for resource in _parts(memoryview(raw), _RESOURCE_SPANS)
        for scope in _parts(resource, _SCOPE_SPANS)
    )


async def main() -> None:
    """Serve until the end of the input."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", required=True)
    port = parser.parse_args().port
    spans = 0

    async def export(raw: bytes, _: Any) -> bytes:
        nonlocal spans
        spans += spans_in(raw)
        return b""

    server = grpc.aio.server()
    handlers: dict[str, Any] = {"Export": grpc.unary_unary_rpc_method_handler(export)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print("ready", flush=True)
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(spans, flush=True)
    await server.stop(None)


if __name__ == "__main__":
    uvloop.run(main())
