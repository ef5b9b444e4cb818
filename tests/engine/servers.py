"""Servers of the engine's tests: two services in one process, with lanes, caches and pools of their own."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import SecretStr
from tests.engine.database import Database

from millstream.adapters.metrics import Metrics
from millstream.config import Settings
from millstream.wiring import Service, wire

_RUNNING: list[Service] = []
PATIENCE_S = 5.0
"""How long a test waits for what must happen; nothing sleeps this long where all is well."""


class Start(Protocol):
    """Starts two servers on the test's database."""

    async def __call__(self, **settings: Any) -> tuple[Service, Service]: ...


def settings_of(database: Database, **settings: Any) -> Settings:
    """Settings for a test: leases hold for an hour unless the test is about them."""
    given = {"lease_s": 3600.0, "reconnect_grace_s": 0.0, "pool_size": 2} | settings
    return Settings(database_url=SecretStr(database.url), **given)


@contextlib.asynccontextmanager
async def server(database: Database, **settings: Any) -> AsyncIterator[Service]:
    """One server for the length of the block."""
    service = await wire(settings_of(database, **settings), Metrics())
    try:
        await service.start()
        _RUNNING.append(service)
        database.clocks.append(service.engine.clock)
        yield service
    finally:
        if service in _RUNNING:
            _RUNNING.remove(service)
        await service.close()


def starting(database: Database, stack: contextlib.AsyncExitStack) -> Start:
    """What starts servers that the stack closes."""

    async def start(**settings: Any) -> tuple[Service, Service]:
        first = await stack.enter_async_context(server(database, **settings))
        second = await stack.enter_async_context(server(database, **settings))
        await acquainted(first, second)
        return first, second

    return start


async def killed(service: Service) -> None:
    """The server does nothing any more, and says goodbye to nobody."""
    _RUNNING.remove(service)
    for background in service._background:
        background.cancel()
    calls = [call for one in service.calling._serving.values() for call in one.running.values()]
    for call in calls:
        # What a killed process does not do: to tell the agent.
        call.stop("LEASE_LOST")
    await asyncio.gather(*service._background, *(call.task for call in calls if call.task), return_exceptions=True)


async def acquainted(*services: Service) -> None:
    """Return when every server knows of all others."""
    for service in services:
        await eventually(lambda service=service: knows(service, len(services) - 1))  # type: ignore[misc]


async def knows(service: Service, others: int) -> bool:
    """Whether a server knows of so many others; looks again."""
    await service.core.peers.refresh()
    return len(service.core.peers._lanes) >= others


async def introduced(service: Service) -> None:
    """Return when all other servers know what this one's workers serve; before, only the safety poll finds them."""
    served, lane = service.engine.dispatcher.served, service.engine.lane_id

    async def all_know() -> bool:
        others = (other.core.peers._interests for other in _RUNNING if other is not service)
        return all(lane in known.get(key, ()) for known in others for key in served)

    await eventually(all_know, "that other servers know of a worker")


async def eventually(condition: Callable[[], Awaitable[bool]], what: str = "the condition") -> None:
    """Return when the condition holds; fail where it does not in time. Only for what tells nobody that it happened."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE_S
    while not await condition():
        if loop.time() > deadline:
            raise AssertionError(f"{what} did not come true in {PATIENCE_S:g} s")
        await asyncio.sleep(0.002)


@dataclass(frozen=True)
class Roles:
    """Which server does what: the heart of the suite runs with all on one, and spread over two."""

    publisher: Service
    worker: Service
