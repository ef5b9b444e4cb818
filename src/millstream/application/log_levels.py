"""Log levels: from which level on this server logs, kept as all servers have it."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from millstream.application.registering import Registering
from millstream.application.views.idempotency import Key
from millstream.application.views.log_levels import LogLevel
from millstream.domain.principals import Principal

log = logging.getLogger(__name__)

LOOK_S: Final = 60.0
"""A level whose wake-up was lost is found after this time at the latest."""


class LevelReads(Protocol):
    """Reads levels; see store.registry."""

    async def log_levels(self) -> tuple[Sequence[LogLevel], int]: ...


class LevelPeers(Protocol):
    """Other servers."""

    def log_levels_changed(self) -> None:
        """A level was set."""


@dataclass(frozen=True, slots=True)
class Levels:
    """The level of the settings, the one that holds, and what was set."""

    default: str
    level: str
    set: tuple[LogLevel, ...]


class LogLevels:
    """The use cases of log levels.

    Args:
        default: The level of the settings.
        apply: Makes levels hold in this process, by logger, "" for all of the service; see adapters.logs.
    """

    def __init__(
        self,
        registering: Registering,
        reads: LevelReads,
        peers: LevelPeers,
        default: str,
        apply: Callable[[Mapping[str, str]], None],
    ) -> None:
        self._registering = registering
        self._reads = reads
        self._peers = peers
        self._default = default
        self._apply = apply
        self._held: dict[str, str] = {}
        self._changed = asyncio.Event()
        self._changed.set()
        self._wait_s = LOOK_S

    async def get(self) -> Levels:
        """The levels. Raises Unavailable."""
        found, _ = await self._reads.log_levels()
        by_logger = {each.logger: each.level for each in found}
        return Levels(self._default, by_logger.get("", self._default), tuple(found))

    async def set(
        self, principal: Principal, logger: str, level: str, for_us: int, key: Key | None
    ) -> tuple[Levels, bool]:
        """Set a level on all servers; whether it is a replay. See Registering.set_log_level."""
        made, replayed = await self._registering.set_log_level(principal, logger, level, for_us, key)
        log.warning(
            "log level set: logger=%s level=%s for_seconds=%d by=%s/%s",
            made.logger or "all", made.level or "default", for_us // 1_000_000, principal.tenant, principal.name,
        )  # fmt: skip
        self._peers.log_levels_changed()
        await self.refresh()
        self._changed.set()
        return await self.get(), replayed

    async def refresh(self) -> None:
        """Log from now on as it is set. Raises Unavailable."""
        found, now_us = await self._reads.log_levels()
        self._hold({each.logger: each.level for each in found})
        ends = [each.until_us for each in found if each.until_us]
        self._wait_s = min(LOOK_S, max(min(ends) - now_us, 0) / 1e6) if ends else LOOK_S

    def _hold(self, levels: dict[str, str]) -> None:
        if levels == self._held:
            return
        told = log.isEnabledFor(logging.WARNING)
        if told:
            self._tell(levels)
        self._apply(levels)
        self._held = levels
        if not told:
            # It was too quiet for the notice, and may not be any more.
            self._tell(levels)

    def _tell(self, levels: dict[str, str]) -> None:
        """Who reads the logs has to know why they change."""
        told = {"all": levels.get("", self._default)} | {name: level for name, level in levels.items() if name}
        log.warning("log levels from now on: %s", " ".join(f"{name}={level}" for name, level in told.items()))

    def look_again(self) -> None:
        """Another server set a level."""
        self._changed.set()

    async def run(self) -> None:
        """Look whenever another server tells so, or a level ends, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._wait_s):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()
            try:
                await self.refresh()
            except Exception as error:
                self._wait_s = LOOK_S
                log.warning("log levels could not be read: %s", error)
