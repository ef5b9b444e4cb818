"""Calls agents by their protocol: A2A with the official SDK, or plain HTTP."""

import asyncio
import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from millstream.application.call_ports import Answer, Call, CallWatch
from millstream.domain.addresses import Network
from millstream.domain.agents import A2A

if TYPE_CHECKING:
    import httpx

__all__ = ["AgentCaller"]


class _Protocol(Protocol):
    async def call(self, call: Call, watch: CallWatch) -> Answer: ...


class AgentCaller:
    """Calls agents; see application.call_ports.Caller.

    Args:
        networks: Networks that are not public where agents may be called.
        answer_most: Largest answer of an agent, bytes.
    """

    def __init__(self, networks: Sequence[Network], answer_most: int) -> None:
        self._networks = networks
        self._answer_most = answer_most
        self._http: httpx.AsyncClient | None = None
        self._protocols: dict[str, _Protocol] = {}
        self._loading = asyncio.Lock()

    async def call(self, call: Call, watch: CallWatch) -> Answer:
        """Raises CallFailed."""
        found = self._protocols.get(call.protocol) or await self._load(call.protocol)
        return await found.call(call, watch)

    async def close(self) -> None:
        """End the connections."""
        if self._http is not None:
            await self._http.aclose()

    async def _load(self, protocol: str) -> _Protocol:
        async with self._loading:
            if protocol in self._protocols:
                return self._protocols[protocol]
            # Most of a second, and many servers never need it.
            http = self._http or await asyncio.to_thread(self._client)
            self._http = http
            name, kind = ("a2a", "A2aAgents") if protocol == A2A else ("http", "HttpAgents")
            module = await asyncio.to_thread(importlib.import_module, f"{__name__}.{name}")
            found: _Protocol = getattr(module, kind)(http)
            self._protocols[protocol] = found
            return found

    def _client(self) -> "httpx.AsyncClient":
        from millstream.adapters.agents.guard import client

        return client(self._networks, self._answer_most)
