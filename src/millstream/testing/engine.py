"""The engine of the service without a database: its own commands, decided one after the other over rows in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from millstream.application.engine.commands import Command, Due, Expire, ForceRun, StartTooLate
from millstream.application.engine.leasing import LeaseReady
from millstream.application.engine.run_operations import TimeOutRun
from millstream.domain.batch import Batch, Claim, Handoff, Limits
from millstream.domain.bounds import Line, LineKey
from millstream.domain.errors import MillstreamError
from millstream.domain.runs import NEVER_US, Run, Task, TaskStatus
from millstream.testing.clock import Alarm, Clock
from millstream.testing.records import Records

TENANT: Final = "test"
HERE: Final = Claim("here", "here", "test", arrived=True)
"""Who takes every task: the test."""
LIMITS: Final = Limits(lease_us=1 << 50)
"""Those of the service, but that no lease runs out by itself: nobody is lost in a test."""
_ENDED: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class _Owned:
    run: Run


class Engine:
    """Decides commands, and says what follows from them.

    Attributes:
        begun: Leases to be worked on, in order.
        stopped: Leases whose work is to end; whether its report would be refused.
        due: Runs to be looked at.
    """

    def __init__(
        self, clock: Clock, records: Records, serves: Callable[[str], bool], chance: Callable[[], float]
    ) -> None:
        """`serves`: whether there is anybody for a kind of tasks."""
        self.begun: list[Handoff] = []
        self.stopped: list[tuple[str, int, bool]] = []
        self.due: dict[str, None] = {}
        self._clock = clock
        self._records = records
        self._serves = serves
        self._chance = chance
        self._alarms: dict[str, Alarm] = {}
        self._looks: dict[LineKey, None] = {}
        # As the use cases of the service know it.
        self.cache = self.dispatcher = self

    def task(self, task_id: str) -> Task | None:
        """A task."""
        return self._records.tasks.get(task_id)

    def run(self, run_id: str) -> _Owned | None:
        """A run."""
        found = self._records.runs.get(run_id)
        return None if found is None else _Owned(found)

    def holds(self, _tenant: str, _workflow: str) -> bool:
        """No workflow is held."""
        return False

    # -- commands ---------------------------------------------------------------------------------------------

    async def submit_all(self, commands: Sequence[Command], urgent: bool = False) -> list[Any]:
        """Decide commands; of one that is refused its error."""
        outcomes: list[Any] = []
        for command in commands:
            try:
                outcomes.append(self.decide(command))
            except MillstreamError as error:
                outcomes.append(error)
        return outcomes

    def decide(self, command: Command, lines: Iterable[LineKey] = ()) -> Any:
        """Decide a command; what it returns. Raises MillstreamError where it is refused."""
        records = self._records
        batch = Batch(
            self._clock.now_us, "here", LIMITS, self._offer, self._offer, self._chance,
            runs=records.runs, tasks=records.tasks, buffers=records.buffers,
        )  # fmt: skip
        if command.promise_keys:
            batch.open_promises = {
                (each.tenant, each.promise_key): each.id for each in records.tasks.values()
                if each.promise_key and each.open
            }  # fmt: skip
        batch.lines = {key: self._line(key) for key in lines}
        outcome = command.decide(batch)
        self._stored(batch)
        return outcome

    def offer_waiting(self, kind: str) -> None:
        """Somebody came for a kind of tasks: those that wait are taken."""
        waiting = [
            each for each in self._records.tasks.values()
            if each.kind == kind and each.status is TaskStatus.PENDING
        ]  # fmt: skip
        for task in waiting:
            self._lease(task)

    def call_up(self) -> bool:
        """Have tasks taken that wait in a line which has room; whether there was a line to look at."""
        looks, self._looks = [*self._looks], {}
        for tenant, name in looks:
            for task in [*self._records.tasks.values()]:
                if task.status is TaskStatus.IN_LINE and task.tenant == tenant and name in task.bounds.lines:
                    self._lease(task)
        return bool(looks)

    def _lease(self, task: Task) -> None:
        lines = [(task.tenant, name) for name in task.bounds.lines]
        self.decide(LeaseReady(task_ids=(task.id,), lines=tuple(lines)), lines)

    def _line(self, key: LineKey) -> Line:
        running = sum(
            each.status is TaskStatus.RUNNING and each.tenant == key[0] and key[1] in each.bounds.lines
            for each in self._records.tasks.values()
        )
        return Line(key[1], running)

    def _offer(self, task: Task) -> Claim | None:
        return HERE if self._serves(task.kind) else None

    # -- what follows -----------------------------------------------------------------------------------------

    def _stored(self, batch: Batch) -> None:
        self._records.store(batch)
        for task in batch.dirty_tasks.values():
            self._watch_task(task)
        for run in batch.dirty_runs.values():
            at_us = run.cancel_by_us or run.deadline_us
            command = ForceRun(run_id=run.id) if run.cancel_by_us else TimeOutRun(run_id=run.id)
            self._watch(f"run {run.id}", at_us, command)
        self._looks |= dict.fromkeys(batch.looks)
        self.due |= dict.fromkeys(sorted(batch.due_runs))
        self.stopped += [(task_id, attempt, False) for task_id, attempt, _ in batch.cancelled]
        self.stopped += [(task_id, attempt, True) for task_id, attempt, _ in batch.lost]
        self.begun += batch.handoffs

    def _watch_task(self, task: Task) -> None:
        at_us = 0
        command: Command = Due(task_ids=(task.id,))
        match task.status:
            case TaskStatus.SCHEDULED:
                at_us = task.run_at_us
            case TaskStatus.PENDING | TaskStatus.IN_LINE:
                at_us, command = task.start_by_us, StartTooLate(task_ids=(task.id,))
            case TaskStatus.RUNNING:
                # Work shows signs of life: time that a test skips is none that its code hung in.
                task.beat_by_us, task.lease_until_us = 0, task.deadline_us or _ENDED
                at_us, command = task.deadline_us, Expire(task_ids=(task.id,))
        self._watch(f"task {task.id}", at_us, command)

    def _watch(self, name: str, at_us: int, command: Command) -> None:
        """Have a command decided at a time, instead of what was to be before; 0 and times without end: none."""
        before = self._alarms.pop(name, None)
        if before is not None:
            before.stop()
        if 0 < at_us < NEVER_US:
            self._alarms[name] = self._clock.at(at_us, lambda: self._ring(name, command))

    def _ring(self, name: str, command: Command) -> None:
        self._alarms.pop(name, None)
        self.decide(command)
