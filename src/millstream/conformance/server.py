"""The server's side: where the worker finds it."""

import asyncio
from typing import Final

import grpc

SERVICE: Final = "/millstream.v1.WorkerService/"
"""What the methods of workers begin with."""
_OPTIONS: Final = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    ("grpc.max_send_message_length", 16 * 1024 * 1024),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_ping_strikes", 0),
)


class Server(grpc.GenericRpcHandler):
    """Listens on a port of the loopback; a subclass says what it serves there.

    Attributes:
        knocks: When the worker came, in seconds of the loop's clock.
    """

    def __init__(self) -> None:
        self.knocks: asyncio.Queue[float] = asyncio.Queue()
        self._server: grpc.aio.Server | None = None
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
