"""Envoy before a stub server: what reaches the server, and what becomes of its answers, without the server itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
import pytest
from tests.proxy import Proxy, running_proxy

TOKEN = "a-token-of-the-tests"

Answer = Callable[[bytes, Any], Awaitable[bytes]]


@dataclass
class Call:
    """A call that reached the stub."""

    rpc: str
    """Path of the RPC, such as "/millstream.v1.RunService/GetRun"."""
    request: bytes
    metadata: dict[str, str]
    time_remaining: float | None


@dataclass
class Stub(grpc.GenericRpcHandler):
    """A gRPC server that takes every method: it keeps the calls and answers an empty message, or as `answer` says."""

    calls: list[Call] = field(default_factory=list)
    answer: Answer | None = None
    port: int = 0
    serving: bool = True
    """What it says on grpc.health.v1."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        rpc = str(handler_call_details.method)
        if rpc == "/grpc.health.v1.Health/Check":
            return grpc.unary_unary_rpc_method_handler(self._check_health)

        async def handle(request: bytes, context: Any) -> bytes:
            metadata = {key: str(value) for key, value in context.invocation_metadata()}
            self.calls.append(Call(rpc, request, metadata, context.time_remaining()))
            return b"" if self.answer is None else await self.answer(request, context)

        # No deserialiser: the stub sees the bytes that Envoy made.
        return grpc.unary_unary_rpc_method_handler(handle)

    @property
    def last(self) -> Call:
        return self.calls[-1]

    async def _check_health(self, _: bytes, context: Any) -> bytes:
        # HealthCheckResponse{status: SERVING or NOT_SERVING}
        return b"\x08\x01" if self.serving else b"\x08\x02"


async def start_stub(port: int = 0) -> tuple[Stub, grpc.aio.Server]:
    """Start a stub on a port of 127.0.0.1 (0: a free one)."""
    stub = Stub()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 64 * 1024 * 1024)])
    server.add_generic_rpc_handlers((stub,))
    stub.port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    return stub, server


@pytest.fixture(scope="session")
async def shared_stub() -> AsyncIterator[Stub]:
    stub, server = await start_stub()
    yield stub
    await server.stop(None)


@pytest.fixture(scope="session")
async def proxy(shared_stub: Stub) -> AsyncIterator[Proxy]:
    async with running_proxy([("127.0.0.1", shared_stub.port)], token=TOKEN) as running:
        yield running


@pytest.fixture
def stub(shared_stub: Stub) -> Stub:
    shared_stub.calls.clear()
    shared_stub.answer = None
    return shared_stub


@pytest.fixture
async def client(proxy: Proxy) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=proxy.url) as client:
        yield client


def native(channel: Any, rpc: str) -> Any:
    """A unary call of raw bytes; the stubs of grpc.aio know no call without serialisers."""
    return channel.unary_unary(rpc)


async def raw_http(proxy: Proxy, request: bytes) -> bytes:
    """Send bytes as they are and return all that comes back until the connection is closed (5 s at most)."""
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    writer.write(request)
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    return answer


def check_error(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check that the answer is the one error shape with this status and code, and return its body."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body: dict[str, Any] = response.json()
    assert set(body) == {"code", "message", "correlation_id", "retryable", "details"}
    assert body["code"] == code
    assert body["message"]
    assert body["retryable"] is (code in {"RATE_LIMITED", "UNAVAILABLE", "TIMEOUT"})
    assert body["correlation_id"] == response.headers["x-correlation-id"] != ""
    for detail in body["details"]:
        assert set(detail) == {"field", "message", "code"}
    leaks = ("grpc-", "x-error-body", "x-http-status", "x-local-reply", "x-envoy-", "x-millstream-")
    assert not [name for name in response.headers if name.startswith(leaks)]
    assert "millstream.v1" not in response.text
    assert "type.googleapis" not in response.text
    return body
