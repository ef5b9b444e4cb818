"""A real server over fake use cases, on a free port."""

import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import grpc
import pytest
import structlog
from tests.rpc.fakes import Fakes

from millstream.adapters import logs
from millstream.adapters.auth import ApiKey, ApiKeyAuthenticator
from millstream.adapters.metrics import Metrics
from millstream.transport.admission import Admission
from millstream.transport.pipeline import Pipeline
from millstream.transport.reading import Limits
from millstream.transport.server import Server
from millstream.transport.streams import Streams

PROXY_TOKEN = "only-the-proxy-knows"


def api_key(name: str, *roles: str) -> ApiKey:
    return ApiKey(id=name, sha256=sha256(name.encode()).hexdigest(), roles=roles)


KEYS = [api_key("root", "admin"), api_key("reader", "viewer"), api_key("maker", "operator")]


@dataclass
class Service:
    """A running server with a channel to it."""

    fakes: Fakes
    metrics: Metrics
    server: Server
    channel: grpc.aio.Channel
    port: int
    streams: Streams

    async def call(self, path: str, request: bytes = b"", key: str | None = "root", **metadata: str) -> "Answer":
        """Call a method by "Service/Method" with raw bytes; metadata names have `_` for `-`."""
        sent = [(name.replace("_", "-"), value) for name, value in metadata.items()]
        if key is not None:
            sent.append(("authorization", f"Bearer {key}"))
        method: Any = self.channel.unary_unary(f"/millstream.v1.{path}")
        call = method(request, metadata=tuple(sent), timeout=10)
        try:
            body = await call
        except grpc.aio.AioRpcError as error:
            return Answer(b"", error, _dict(error.initial_metadata()) | _dict(error.trailing_metadata()))
        return Answer(body, None, _dict(await call.initial_metadata()) | _dict(await call.trailing_metadata()))


@dataclass
class Answer:
    """The body, or the error, with all metadata."""

    body: bytes
    error: grpc.aio.AioRpcError | None
    metadata: dict[str, Any]


def _dict(metadata: Any) -> dict[str, Any]:
    return {str(name): value for name, value in metadata or ()}


@contextlib.asynccontextmanager
async def serving(fakes: Fakes, admission: Admission) -> AsyncIterator[Service]:
    """A server before fakes."""
    metrics = Metrics()

    async def ready() -> bool:
        return not fakes.system.faults

    streams = Streams(most_of_tenant=2)
    pipeline = Pipeline(ApiKeyAuthenticator(KEYS), metrics, Limits(), PROXY_TOKEN.encode(), streams, admission)
    server = Server(pipeline, fakes.use_cases(metrics.exposition), "1.2.3", ready, drain_timeout_s=0.5)
    port = await server.start("127.0.0.1:0")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Service(fakes, metrics, server, channel, port, streams)
    await server.stop()


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with serving(Fakes(), Admission()) as running:
        yield running


@pytest.fixture(autouse=True)
def _logs_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("millstream").setLevel(logging.NOTSET)
    logs._LEVELS.default = None
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
