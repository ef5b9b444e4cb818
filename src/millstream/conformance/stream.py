"""The server's side of the stream: takes the worker's connections, one after the other."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc

from millstream.conformance.link import Link, parse
from millstream.conformance.log_books import LogBooks
from millstream.conformance.rules import Violation
from millstream.conformance.server import SERVICE, Server

METHOD: Final = f"{SERVICE}Work"


class StreamServer(Server):
    """Serves `Work`, and leaves the rest to the scenario.

    Attributes:
        links: Connections that said hello.
        refusals: What the next connections are refused with.
        logs: What was logged over all of them.
    """

    def __init__(self, patience_s: float) -> None:
        super().__init__()
        self.links: asyncio.Queue[Link | Violation] = asyncio.Queue()
        self.logs = LogBooks()
        self.refusals: list[tuple[grpc.StatusCode, str]] = []
        self._patience_s = patience_s

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
        link = Link(first, stream, context, self._patience_s, self.logs)
        self.links.put_nowait(link)
        await link.serve()
