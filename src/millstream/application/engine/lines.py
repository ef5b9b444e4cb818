"""Calls tasks up that wait in lines, whenever there may be room.

A line is looked at when something came to it or left room, when its rate lets the next one start, and, in case that was
lost with a server, now and then. To look costs the same however long the line is.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

from millstream.application.engine.leasing import LeaseReady
from millstream.application.ports import Group, InLine
from millstream.domain.bounds import LineKey
from millstream.domain.errors import MillstreamError

log = logging.getLogger(__name__)

LINES_MOST = 500
"""Lines looked at together, and tasks called up together."""
KNOWN_MOST = 20_000
"""Lines to look at that are remembered; what is more is found by the sweep."""
SWEEP_MOST = 200
"""Lines that one sweep looks at; the next one goes on from there."""
AGAIN_S = 0.02
"""When lines are looked at again that another server held."""


class LineReads(Protocol):
    """Reads lines; see store.lines."""

    async def groups(self, lines: Sequence[LineKey]) -> list[Group]: ...
    async def held(self, groups: Sequence[tuple[Group, int]]) -> list[InLine]: ...
    async def ensure(self, lines: Sequence[LineKey], now_us: int) -> None: ...
    async def after(self, last: LineKey, limit: int) -> list[LineKey]: ...


Submit = Callable[[LeaseReady], Awaitable[tuple[list[str], set[tuple[str, str]]]]]


class Lines:
    """Looks at lines.

    Args:
        submit: Has tasks leased, or called up; returns those that could not be.
    """

    def __init__(self, reads: LineReads, submit: Submit, now_us: Callable[[], int]) -> None:
        self._reads = reads
        self._submit = submit
        self._now_us = now_us
        self._marked: dict[LineKey, None] = {}
        self._opening: dict[LineKey, asyncio.TimerHandle] = {}
        self._filled = asyncio.Event()
        self._swept: LineKey = ("", "")
        self._looking = False

    @property
    def idle(self) -> bool:
        """All lines that were told of have been looked at."""
        return not self._marked and not self._looking

    def look(self, lines: Iterable[LineKey]) -> None:
        """There may be room in these lines."""
        for key in lines:
            if len(self._marked) < KNOWN_MOST:
                self._marked[key] = None
        if self._marked:
            self._filled.set()

    async def ensure(self, lines: Sequence[LineKey]) -> None:
        """Make the rows by which lines are locked. Raises Unavailable."""
        await self._reads.ensure(lines, self._now_us())

    async def sweep(self) -> None:
        """Look at some lines that nobody told of. Raises Unavailable."""
        found = await self._reads.after(self._swept, SWEEP_MOST)
        self._swept = found[-1] if len(found) == SWEEP_MOST else ("", "")
        if found:
            self.look(found)

    async def run(self) -> None:
        """Look whenever something is marked, until cancelled."""
        while True:
            await self._filled.wait()
            lines = [*self._marked][:LINES_MOST]
            for key in lines:
                del self._marked[key]
            if not self._marked:
                self._filled.clear()
            self._looking = True
            try:
                await self._look(lines)
            except Exception as error:
                if isinstance(error, MillstreamError):
                    log.warning("lines could not be looked at: %s", error.message)
                else:
                    log.exception("lines could not be looked at")
                self._again(lines, 0.5)
            finally:
                self._looking = False

    async def _look(self, lines: Sequence[LineKey]) -> None:
        if not lines:
            return
        wanted: list[tuple[Group, int]] = []
        cut: list[LineKey] = []
        now_us, left = self._now_us(), LINES_MOST
        for group in await self._reads.groups(lines):
            room = group.line.room(group.bounds, now_us)
            if room <= 0 and group.line.is_rate:
                self._look_at(group.key, group.line.opens_us(group.bounds, now_us))
            room -= group.called
            if room > left:
                cut.append(group.key)
            if room > 0 and left > 0:
                wanted.append((group, min(room, left)))
                left -= min(room, left)
        if wanted and (await self._call_up(wanted) or len(wanted) > 1):
            # No more than so many at once: the rest follows.
            self.look(cut)

    async def _call_up(self, wanted: Sequence[tuple[Group, int]]) -> bool:
        """Have the first tasks leased, or called up; whether any was."""
        held = await self._reads.held(wanted)
        if not held:
            return False
        lines = tuple({(task.tenant, name) for task in held for name in task.bounds.lines})
        await self.ensure(lines)
        gates = tuple({(task.tenant, task.kind) for task in held if task.limited})
        left, _ = await self._submit(
            LeaseReady(task_ids=[task.id for task in held], gates=gates, lines=lines, locked=True)
        )
        if left:
            # Another server holds their runs or lines, maybe for the moment of a batch, maybe because it was stopped.
            still = set(left)
            self._again(
                {(task.tenant, name) for task in held if task.id in still for name in task.bounds.lines}, AGAIN_S
            )
        return len(left) < len(held)

    def _again(self, lines: Iterable[LineKey], wait_s: float) -> None:
        asyncio.get_running_loop().call_later(wait_s, self.look, [*lines])

    def _look_at(self, key: LineKey, at_us: int) -> None:
        """Look at a line when its rate lets the next task start."""
        before = self._opening.pop(key, None)
        if before is not None:
            before.cancel()
        if len(self._opening) < KNOWN_MOST:
            wait_s = max(at_us - self._now_us(), 0) / 1e6
            self._opening[key] = asyncio.get_running_loop().call_later(wait_s, self._open, key)

    def _open(self, key: LineKey) -> None:
        self._opening.pop(key, None)
        self.look([key])
