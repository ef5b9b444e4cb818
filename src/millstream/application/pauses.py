"""Pauses: which tasks wait on this server, kept as the registry has them."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol

from millstream.application.engine.dispatch import Dispatcher
from millstream.domain.agents import Pause

log = logging.getLogger(__name__)


class PauseReads(Protocol):
    """Reads pauses; see store.registry."""

    async def pauses(self, tenant: str = "") -> Sequence[Pause]: ...


class PausePeers(Protocol):
    """Other servers."""

    def pauses_changed(self) -> None:
        """Something was paused or resumed."""


class Pauses:
    """Tells the dispatcher what is paused."""

    def __init__(self, dispatcher: Dispatcher, reads: PauseReads, peers: PausePeers) -> None:
        self._dispatcher = dispatcher
        self._reads = reads
        self._peers = peers
        self._changed = asyncio.Event()

    async def refresh(self) -> None:
        """Look what is paused. Raises Unavailable."""
        found = await self._reads.pauses()
        self._dispatcher.pause({(each.tenant, each.queue, each.kind) for each in found})

    async def changed_here(self) -> None:
        """Something was paused or resumed through this server: hold to it, and tell the others."""
        self._peers.pauses_changed()
        await self.refresh()

    def look_again(self) -> None:
        """Another server paused or resumed something."""
        self._changed.set()

    async def run(self) -> None:
        """Look whenever another server tells so, until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self.refresh()
            except Exception as error:
                log.warning("pauses could not be read; the next poll will: %s", error)
