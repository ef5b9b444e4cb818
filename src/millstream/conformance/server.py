"""The server's side: takes the worker's connections, one after the other."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc

from millstream.conformance.link import Link, parse
from millstream.conformance.rules import Violation

METHOD: Final = "/millstream.v1.WorkerService/Work"
_OPTIONS: Final = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    ("grpc.max_send_message_length", 16 * 1024 * 1024),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_ping_strikes", 0),
)


class Server(grpc.GenericRpcHandler):
    """Serves `Work` on a port of the loopback, and leaves the rest to the scenario.

    Attributes:
        links: Connections that said hello.
        refusals: What the next connections are refused with.
        knocks: When connections came, in seconds of the loop's clock.
    """

    def __init__(self, patience_s: float) -> None:
        self.links: asyncio.Queue[Link | Violation] = asyncio.Queue()
        self.refusals: list[tuple[grpc.StatusCode, str]] = []
        self.knocks: asyncio.Queue[float] = asyncio.Queue()
        self._patience_s = patience_s
        self._server: grpc.aio.Server | None = None
        self._open: set[Link] = set()
        self.port = 0

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listens, on the port that it had before if it had one."""
        self._server = grpc.aio.server(options=_OPTIONS)
        self._server.add_generic_rpc_handlers((self,))
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self, grace_s: float = 0.0) -> None:
        """Tells connections that the server goes (GOAWAY), gives their streams so much time, and ends them."""
        if self._server is not None:
            await self._server.stop(grace_s)
            self._server = None

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of `Work`; there is no other."""
        if handler_call_details.method != METHOD:
            return None
        return grpc.stream_stream_rpc_method_handler(self._work)

    async def _work(self, requests: AsyncIterator[bytes], context: Any) -> None:
        self.knocks.put_nowait(asyncio.get_running_loop().time())
        stream = aiter(requests)
        try:
            first = parse(await anext(stream))
        except Violation as violation:
            self.links.put_nowait(violation)
            return
        except StopAsyncIteration:
            self.links.put_nowait(Violation("W1", "a stream ended without a message"))
            return
        if self.refusals:
            await context.abort(*self.refusals.pop(0))
        link = Link(first, stream, context, self._patience_s)
        self.links.put_nowait(link)
        await link.serve()
