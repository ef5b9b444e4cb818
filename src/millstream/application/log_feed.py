"""Who follows the logs of which runs at this server, and what wakes them up.

A wake-up is a hint: whoever follows reads the store from a place of its own on. Once a second the ends of all logs that
are followed are read, in one go, and so what no wake-up told of is found.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Final, Protocol

from millstream.application.following import Inbox

log = logging.getLogger(__name__)

POLL_S: Final = 1.0
_NOBODY: Final[set[str]] = set()

Wakeups = Inbox[bool]


class LogEnds(Protocol):
    """Reads where logs end; see store.task_logs."""

    async def run_log_ends(self, run_ids: Sequence[str]) -> dict[str, int]: ...


class LogFeed:
    """The followers of this server.

    Attributes:
        on_change: Called when logs of another tenant are followed here, or of one no longer.
    """

    def __init__(self, ends: LogEnds) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self._ends = ends
        self._followers: dict[str, set[Wakeups]] = {}
        self._seen: dict[str, int] = {}
        self._tenants: Counter[str] = Counter()
        self._followed = asyncio.Event()

    @property
    def watched(self) -> set[str]:
        """The tenants of which logs are followed here."""
        return set(self._tenants) if self._tenants else _NOBODY

    def look(self, run_ids: Iterable[str]) -> None:
        """These runs have new lines, or may have."""
        for run_id in run_ids:
            for inbox in self._followers.get(run_id, ()):
                wake(inbox)

    @contextlib.asynccontextmanager
    async def following(self, tenant: str, run_id: str) -> AsyncIterator[Wakeups]:
        """An inbox that is filled when there may be new lines."""
        inbox = Wakeups(1_000_000, 1)
        self._followers.setdefault(run_id, set()).add(inbox)
        self._tenants[tenant] += 1
        self._followed.set()
        if self._tenants[tenant] == 1:
            self.on_change()
        try:
            yield inbox
        finally:
            followers = self._followers[run_id]
            followers.discard(inbox)
            if not followers:
                del self._followers[run_id]
                self._seen.pop(run_id, None)
            self._tenants[tenant] -= 1
            if not self._tenants[tenant]:
                del self._tenants[tenant]
                self.on_change()

    async def run(self) -> None:
        """Look at the ends of the logs that are followed, until cancelled."""
        while True:
            if not self._followers:
                self._followed.clear()
            await self._followed.wait()
            await asyncio.sleep(POLL_S)
            try:
                await self.poll()
            except Exception as error:
                log.warning("the ends of logs could not be read: %s", error)

    async def poll(self) -> None:
        """Wake those whose logs went on."""
        ends = await self._ends.run_log_ends(list(self._followers))
        moved = [run_id for run_id, last in ends.items() if self._seen.get(run_id) != last]
        self._seen = {run_id: last for run_id, last in ends.items() if run_id in self._followers}
        self.look(moved)


def wake(inbox: Wakeups) -> None:
    """Have a follower look; more than once is as good as once."""
    if not inbox.filled.is_set():
        inbox.put(True, 0)
