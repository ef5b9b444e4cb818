"""A wired server: its use cases, and what runs in it."""

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field

from millstream.application.advancing import Advancing
from millstream.application.agents import Agents, Types
from millstream.application.artifacts import Artifacts
from millstream.application.calling import Calling
from millstream.application.code_runs import CodeRuns
from millstream.application.correlations import Correlations
from millstream.application.dead_letters import DeadLetters
from millstream.application.discovery import Discovery
from millstream.application.engine.engine import Engine
from millstream.application.log_feed import LogFeed
from millstream.application.log_intake import LogIntake
from millstream.application.log_watches import LogWatching
from millstream.application.payloads import Payloads
from millstream.application.promises import Promises
from millstream.application.queues import Queues
from millstream.application.run_operations import RunOperations
from millstream.application.run_steps import RunSteps
from millstream.application.run_watches import RunWatching
from millstream.application.runs import Runs
from millstream.application.system import System
from millstream.application.task_logs import TaskLogs
from millstream.application.tasks import Tasks
from millstream.application.tenants import Tenants
from millstream.application.watching import Watching
from millstream.application.workers import Workers
from millstream.application.workflow_kinds import WorkflowKinds
from millstream.application.workflow_pauses import WorkflowPauses
from millstream.application.workflow_runs import WorkflowRuns
from millstream.application.workflows import Workflows
from millstream.runtime.loops import Loops
from millstream.store.wakeups import Wakeups
from millstream.wiring.core import Core

log = logging.getLogger(__name__)

LISTEN_S = 2.0
"""How long the start waits until wake-ups are heard."""


@dataclass(slots=True)
class Service:
    """A wired service; `start` runs its engine and loops, `close` ends them."""

    artifacts: Artifacts
    payloads: Payloads
    watching: Watching
    run_watching: RunWatching
    correlations: Correlations
    types: Types
    agents: Agents
    workflows: Workflows
    runs: Runs
    run_operations: RunOperations
    code_runs: CodeRuns
    tasks: Tasks
    promises: Promises
    workflow_runs: WorkflowRuns
    steps: RunSteps
    workflow_pauses: WorkflowPauses
    dead_letters: DeadLetters
    queues: Queues
    workers: Workers
    log_intake: LogIntake
    task_logs: TaskLogs
    log_watching: LogWatching
    log_feed: LogFeed
    discovery: Discovery
    tenants: Tenants
    workflow_kinds: WorkflowKinds
    system: System
    core: Core
    advancing: Advancing
    calling: Calling
    loops: Loops
    wakeups: Wakeups
    _background: list[asyncio.Task[None]] = field(default_factory=list)
    broken: asyncio.Event = field(default_factory=asyncio.Event)
    """A part ended that has to run as long as the server does."""

    @property
    def engine(self) -> Engine:
        """Its engine."""
        return self.core.engine

    async def start(self) -> None:
        """Look who else is there, then run."""
        core = self.core
        core.engine.clock.set(await core.stores.maintenance.now_us())
        await core.peers.refresh()
        await core.pauses.refresh()
        await self.calling.refresh()
        await self.tenants.start()
        await self.loops.make_partitions()
        for name, step in (
            ("engine", core.engine.run()),
            ("loops", self.loops.run()),
            ("wake-ups sent", self.wakeups.run_sender()),
            ("wake-ups heard", self.wakeups.run_receiver()),
            ("announcer", core.peers.run_announcer()),
            ("presence", core.peers.run_presence()),
            ("pauses", core.pauses.run()),
            ("agents called", self.calling.run()),
            ("log levels", self.system.levels.run()),
            ("feed", core.feed.run()),
            ("feed of runs", core.run_feed.run()),
            ("progress", core.notes.run()),
            ("throughput", core.throughput.run()),
            ("workflows", self.advancing.run()),
            ("logs of tasks", self.log_intake.run()),
            ("feed of logs", self.log_feed.run()),
        ):
            task = asyncio.create_task(step, name=name)
            task.add_done_callback(self._ended)
            self._background.append(task)
        # Who is told that this server is there may wake it at once. Without, the safety poll finds what it missed.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LISTEN_S):
                await self.wakeups.listening.wait()

    async def close(self) -> None:
        """End everything, answer who still waits, disconnect."""
        await self.calling.close()
        for task in reversed(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self.engine.stop()
        await self.core.sandbox.close()
        await self.core.stores.close()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A part of the server ended, which only its cancellation may do."""
        if task.cancelled():
            return
        error = task.exception()
        log.critical("a part of the server ended: %s", task.get_name(), exc_info=error)
        # The name of the error only: its text may tell what is nobody's business.
        self.system.readiness.part_ended(task.get_name(), type(error).__name__ if error else "without an error")
        self.broken.set()
