"""Progress of tasks among the events of their runs: of what a worker reports, as much as is worth an event.

The latest report stands in the task at once. An event costs its run an update, so of a task there is at most one a
second, all of them in one transaction; and none for less than a hundredth, unless the message is another and ten
seconds have passed.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from millstream.application.engine.commands import Command
from millstream.application.engine.engine import Engine
from millstream.application.engine.progress_commands import NoteProgress
from millstream.application.views.reports import Progress
from millstream.domain.errors import MillstreamError

log = logging.getLogger(__name__)

EVERY_S: Final = 1.0
STEP: Final = 0.01
"""A share that is worth an event."""
WORDS_EVERY_S: Final = 10.0
"""So often another message alone is worth one."""
KNOWN_MOST: Final = 20_000
"""Attempts of which the latest event is remembered."""
WAITING_MOST: Final = 20_000
"""Attempts whose report may wait; of more, some reports have no event."""


@dataclass(frozen=True, slots=True)
class _Noted:
    at_s: float
    fraction: float
    message: str


class ProgressNotes:
    """Makes events of the reports that come to this server."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: dict[tuple[str, int], tuple[str, Progress]] = {}
        self._noted: OrderedDict[tuple[str, int], _Noted] = OrderedDict()
        self._wanted = asyncio.Event()

    def note(self, tenant: str, reports: Iterable[Progress]) -> None:
        """Reports of running attempts; the latest of each counts."""
        for report in reports:
            key = (report.task_id, report.attempt)
            if key in self._waiting or len(self._waiting) < WAITING_MOST:
                self._waiting[key] = (tenant, report)
        self._wanted.set()

    async def run(self) -> None:
        """Store events of what was reported, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            commands = self._commands()
            try:
                await self._engine.submit_all(commands)
            except MillstreamError as error:
                log.warning("progress was not noted: %s", error.message)
            await asyncio.sleep(EVERY_S)

    def _commands(self) -> list[Command]:
        waiting, self._waiting = self._waiting, {}
        now_s = asyncio.get_running_loop().time()
        commands: list[Command] = []
        for key, (tenant, report) in waiting.items():
            if self._worth(key, report, now_s):
                self._noted[key] = _Noted(now_s, report.fraction, report.message)
                self._noted.move_to_end(key)
                commands.append(
                    NoteProgress(
                        task_ids=(report.task_id,), tenant=tenant, attempt=report.attempt,
                        fraction=report.fraction, message=report.message, size_bytes=200 + len(report.message),
                    )
                )  # fmt: skip
        while len(self._noted) > KNOWN_MOST:
            self._noted.popitem(last=False)
        return commands

    def _worth(self, key: tuple[str, int], report: Progress, now_s: float) -> bool:
        noted = self._noted.get(key)
        if noted is None or abs(report.fraction - noted.fraction) >= STEP:
            return True
        return report.message != noted.message and now_s - noted.at_s >= WORDS_EVERY_S
