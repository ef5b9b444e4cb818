"""The floor of every unary call: a bare grpc.aio server that answers a publish with the same bytes each time.

It has none of our layers, no protobuf, no database: what is left is grpc.aio, uvloop and, through the proxy, Envoy.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import uuid
from typing import Any

import grpc
import uvloop
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]
from tests.bench.rpc import PUBLISH

from millstream.v1.artifact_service_pb2 import PublishResponse


class _Echo(grpc.GenericRpcHandler):
    """Answers a publish, and a health check so that the proxy sends requests here."""

    def __init__(self) -> None:
        artifact_id, run_id = str(uuid.uuid4()), str(uuid.uuid4())
        answer = PublishResponse(status="accepted", artifact_id=artifact_id, correlation_id=run_id)
        self._handlers: dict[str, Any] = {
            PUBLISH: grpc.unary_unary_rpc_method_handler(_answering(answer.SerializeToString())),
            "/grpc.health.v1.Health/Check": grpc.unary_unary_rpc_method_handler(
                _answering(health_pb2.HealthCheckResponse(status="SERVING").SerializeToString())
            ),
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._handlers.get(handler_call_details.method)


def _answering(raw: bytes) -> Any:
    async def answer(_request: bytes, _context: Any) -> bytes:
        return raw

    return answer


async def serve(port: int) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Echo(),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print("ready", flush=True)
    await stop.wait()
    await server.stop(0)


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
