"""Calls agents by their protocol: A2A with the official SDK, or plain HTTP."""

import asyncio
import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from millstream.adapters.agents.apart import Apart
from millstream.application.call_ports import Answer, Call, CallWatch, Credential
from millstream.domain.addresses import Network
from millstream.domain.agents import A2A

if TYPE_CHECKING:
    from millstream.adapters.agents.guard import Clients

__all__ = ["AgentCaller"]


class _Protocol(Protocol):
    async def call(self, call: Call, watch: CallWatch) -> Answer: ...


class AgentCaller:
    """Calls agents; see application.call_ports.Caller. All of it is done in a thread of its own.

    Args:
        networks: Networks that are not public where agents may be called.
        answer_most: Largest answer of an agent, bytes.
        credentials: What agents are sent to know who calls.
    """

    def __init__(self, networks: Sequence[Network], answer_most: int, credentials: Sequence[Credential] = ()) -> None:
        self._networks = networks
        self._credentials = credentials
        self._answer_most = answer_most
        self._apart = Apart("calls of agents")
        self._clients: Clients | None = None
        self._protocols: dict[str, _Protocol] = {}

    async def call(self, call: Call, watch: CallWatch) -> Answer:
        """Raises CallFailed."""
        there = _Relay(watch, asyncio.get_running_loop())
        return await self._apart.run(lambda: self._protocol(call.protocol).call(call, there))

    async def close(self) -> None:
        """End the connections."""
        clients, self._clients = self._clients, None
        self._protocols.clear()
        if clients is not None:
            await self._apart.run(clients.aclose)
        await self._apart.close()

    def _protocol(self, name: str) -> _Protocol:
        """Loaded with the first call, as that takes most of a second, and many servers never need it."""
        found = self._protocols.get(name)
        if found is None:
            if self._clients is None:
                guard = importlib.import_module(f"{__name__}.guard")
                self._clients = guard.Clients(self._networks, self._answer_most, self._credentials)
            module, kind = ("a2a", "A2aAgents") if name == A2A else ("http", "HttpAgents")
            made: Any = getattr(importlib.import_module(f"{__name__}.{module}"), kind)(self._clients)
            found = self._protocols[name] = made
        return found


class _Relay:
    """Tells who waits in another thread."""

    def __init__(self, watch: CallWatch, loop: asyncio.AbstractEventLoop) -> None:
        self._watch = watch
        self._loop = loop

    @property
    def lost(self) -> bool:
        """The task is another server's by now."""
        return self._watch.lost

    def seen(self, message: str = "", fraction: float | None = None) -> None:
        """The agent gave a sign of life."""
        self._loop.call_soon_threadsafe(self._watch.seen, message, fraction)
