"""Queues: what stands in them, pausing and resuming them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from millstream.application.agents import SILENT_US, named_page
from millstream.application.catalog import Catalogs
from millstream.application.engine.engine import Engine
from millstream.application.paging import Page, PageRequest, text_bytes
from millstream.application.pauses import Pauses
from millstream.application.registering import Registering
from millstream.application.throughput import Throughput
from millstream.application.views.idempotency import Key
from millstream.application.views.queues import Ends, QueueState
from millstream.domain.principals import Principal
from millstream.domain.runs import UNLEASED

QUEUES_MOST = 1000


class QueueReads(Protocol):
    """Reads queues; see store.queues."""

    async def running(self, tenant: str) -> dict[str, int]: ...
    async def names(self, tenant: str, since_us: int) -> set[str]: ...
    async def counts(self, tenant: str, queues: Sequence[str]) -> dict[str, QueueState]: ...


class Queues:
    """The use cases of queues."""

    def __init__(
        self,
        engine: Engine,
        catalogs: Catalogs,
        registering: Registering,
        pauses: Pauses,
        reads: QueueReads,
        throughput: Throughput,
    ) -> None:
        self._engine = engine
        self._catalogs = catalogs
        self._registering = registering
        self._pauses = pauses
        self._reads = reads
        self._throughput = throughput

    async def pause(self, principal: Principal, queue: str, reason: str, key: Key | None) -> tuple[QueueState, bool]:
        """Let a queue's tasks wait; whether it is a replay. Raises IdempotencyConflict."""
        return await self._pause(principal, queue, reason, key)

    async def resume(self, principal: Principal, queue: str, key: Key | None) -> tuple[QueueState, bool]:
        """Let a queue's tasks go on; whether it is a replay. Raises IdempotencyConflict."""
        return await self._pause(principal, queue, None, key)

    async def _pause(
        self, principal: Principal, queue: str, reason: str | None, key: Key | None
    ) -> tuple[QueueState, bool]:
        replayed = await self._registering.pause_queue(principal, queue, reason, key)
        await self._pauses.changed_here()
        states = await self._states(principal.tenant, [queue], await self._reads.running(principal.tenant))
        return states[0], replayed

    async def _states(self, tenant: str, queues: Sequence[str], running: dict[str, int]) -> list[QueueState]:
        if not queues:
            return []
        counts = await self._reads.counts(tenant, queues)
        pauses = {each.queue: each for each in await self._catalogs.registry.pauses(tenant) if not each.kind}
        return [replace(counts[queue], running=running.get(queue, 0), pause=pauses.get(queue)) for queue in queues]

    async def throughput(self, principal: Principal) -> Ends:
        """What ended within the last minute, at all servers."""
        return await self._throughput.lately(principal.tenant)

    async def list(self, principal: Principal, request: PageRequest) -> Page[QueueState]:
        """Queues by name; of a tenant's more than 1,000 the first. Raises ValidationFailed."""
        tenant = principal.tenant
        running = await self._reads.running(tenant)
        found = {*running, *await self._reads.names(tenant, self._engine.clock.now_us() - SILENT_US)}
        found |= {each.queue for each in await self._catalogs.registry.pauses(tenant) if each.queue}
        listed = sorted(queue for queue in found if not queue.startswith(UNLEASED))[:QUEUES_MOST]
        page = named_page("queues", listed, lambda queue: queue, request, lambda queue: 300 + text_bytes(queue))
        return Page(await self._states(tenant, page.items, running), page.info)
