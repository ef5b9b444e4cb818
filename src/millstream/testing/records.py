"""What a store would keep of runs, in memory, and how it is read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

from millstream.application.views.runs import OpenChild
from millstream.application.views.steps import ItemCounts, StepEnd
from millstream.domain.code import ABANDONED, CommandType, Entry, History, Recorded, Standing
from millstream.domain.runs import CHILD_QUEUE, EventType, PayloadKind, Run, Task, TaskStatus
from millstream.domain.struct_wire import Json, decode_value

if TYPE_CHECKING:
    from millstream.domain.artifacts import Artifact
    from millstream.domain.batch import Batch, JournalRow
    from millstream.domain.gates import Buffer


class Records:
    """Runs with all that belongs to them; nothing is ever dropped.

    Attributes:
        artifacts: All of them, in the order they were published.
        events: Types of each run's events, in order.
    """

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.tasks: dict[str, Task] = {}
        self.buffers: dict[str, Buffer] = {}
        self.artifacts: list[Artifact] = []
        self.events: dict[str, list[EventType]] = defaultdict(list)
        self._entries: dict[str, list[Entry]] = defaultdict(list)
        self._journal: dict[str, list[JournalRow]] = defaultdict(list)
        self._payloads: dict[tuple[str, int], bytes] = {}
        self._outputs: dict[tuple[str, int], bytes] = {}
        self._of_run: dict[str, list[Task]] = defaultdict(list)

    def store(self, batch: Batch) -> None:
        """Keep what a batch has changed."""
        # The latest of all that are kept: to look through those would cost more with each.
        for task_id in [*islice(reversed(batch.tasks), len(batch.new_tasks))][::-1]:
            self._of_run[batch.tasks[task_id].run_id].append(batch.tasks[task_id])
        for _, run_id, _, kind, *_ in batch.events:
            self.events[run_id].append(EventType(kind))
        for run_id, entries in batch.entries.items():
            self._entries[run_id] += entries
        for row in batch.journal:
            self._journal[row[1]].append(row)
        for _, run_id, what, value in batch.payloads:
            self._payloads[run_id, what] = value
        for attempt in batch.attempts:
            self._outputs[attempt.task_id, attempt.number] = attempt.output
        self.artifacts += batch.artifacts
        for run in batch.dirty_runs.values():
            run.stored_us = run.updated_us

    # -- code runs --------------------------------------------------------------------------------------------

    def history(self, run: Run, after: int, standing: Standing, upto: int) -> History:
        """What the code of a run was told behind an event, up to another, and what it did then."""
        given: dict[int, list[Recorded]] = defaultdict(list)
        for _, _, number, at, kind, name, value, code, message in self._journal[run.id]:
            if number > standing.first:
                given[at].append(Recorded(number, at, CommandType(kind), name, value, code, message))
        items: list[Entry | Recorded] = []
        for entry in self._entries[run.id]:
            if max(after, standing.since - 1) < entry.seq <= upto:
                items += [entry, *given[entry.seq]]
        return History(items)

    def state(self, run: Run) -> dict[str, Json]:
        """What a run of code remembers by name."""
        first, found = Standing.of(run.plan).first, dict[str, Json]()
        for _, _, number, _, kind, name, value, _, _ in self._journal[run.id]:
            if number > first and kind == CommandType.STATE:
                found.pop(name, None)
                found[name] = decode_value(value)
        return {name: value for name, value in found.items() if value is not None}

    # -- what the use cases read ------------------------------------------------------------------------------

    def tasks_of(self, run_id: str) -> Sequence[Task]:
        """Tasks of a run, in the order they were made."""
        return self._of_run[run_id]

    def artifacts_with(self, ids: Sequence[str]) -> list[Artifact]:
        """Artifacts by their ids, in that order."""
        found = {each.id: each for each in self.artifacts if each.id in ids}
        return [found[each] for each in ids]

    def output(self, run: Run) -> bytes:
        """What a run has answered, google.protobuf.Value in wire form."""
        return self._payloads.get((run.id, PayloadKind.OUTPUT), b"")

    async def run_by_id(self, run_id: str) -> Run | None:
        """A run."""
        return self.runs.get(run_id)

    async def run(self, _tenant: str, run_id: str) -> Run | None:
        """A run."""
        return self.runs.get(run_id)

    async def payload(self, found: Run, what: PayloadKind) -> bytes:
        """What a run was given, or answers."""
        return self._payloads.get((found.id, what), b"")

    async def of_run(self, run_id: str, after_seq: int, limit: int) -> tuple[list[Artifact], bool]:
        """Artifacts of a run behind an event, and whether there are more."""
        found = [each for each in self.artifacts if each.run_id == run_id and each.seq > after_seq]
        return found[:limit], len(found) > limit

    async def step_ends(self, found: Run) -> list[StepEnd]:
        """How the tasks of a run's steps have ended, in the order they were made."""
        return [
            StepEnd(
                task.step, task.item, task.status, self._outputs.get((task.id, task.attempt), b""),
                task.error_code, task.error_message,
            )
            for task in self._of_run[found.id] if task.step and task.finished_us
        ]  # fmt: skip

    async def step_tasks(self, found: Run) -> dict[int, Task]:
        """The latest task of each step, by the step's number from 0; items of maps left out."""
        return {task.step - 1: task for task in self._of_run[found.id] if task.step and not task.item}

    async def item_counts(self, found: Run) -> dict[int, ItemCounts]:
        """How far the maps of a run are, by the step's number from 0."""
        steps: dict[int, list[Task]] = defaultdict(list)
        for task in self._of_run[found.id]:
            if task.item > 0:
                steps[task.step - 1].append(task)
        return {
            step: ItemCounts(
                len(items), sum(not each.open for each in items),
                sum(each.status in (TaskStatus.FAILED, TaskStatus.CANCELLED) for each in items),
            )
            for step, items in steps.items()
        }  # fmt: skip

    async def first_failure(self, run_id: str) -> tuple[str, str]:
        """Code and message of a run's first finally failed task, with its kind; empty where there is none."""
        for task in self._of_run[run_id]:
            if task.status is TaskStatus.FAILED:
                return task.error_code, f"{task.kind}: {task.error_message}"
        return "", ""

    async def waiting_children(self, parent: Run) -> list[Task]:
        """Tasks of a run that wait for runs of their own."""
        return [
            task for task in self._of_run[parent.id]
            if task.queue == CHILD_QUEUE and task.status is TaskStatus.PENDING
        ]  # fmt: skip

    async def known_runs(self, run_ids: Sequence[str]) -> set[str]:
        """Which of these runs there are."""
        return {each for each in run_ids if each in self.runs}

    async def generation(self, run: Run, most: int) -> int:
        """How many runs there are from the one that nobody began to this one, both counted; `most` at most."""
        found = 1
        while run.parent_id and found < most:
            run, found = self.runs[run.parent_id], found + 1
        return found

    async def failed_tasks(self, run_id: str) -> list[Task]:
        """Finally failed tasks of a run."""
        tasks = [each for each in self.tasks.values() if each.run_id == run_id and each.status is TaskStatus.FAILED]
        return sorted(tasks, key=lambda each: each.id)

    async def open_children(self, parent: Run) -> list[OpenChild]:
        """Open runs that a run has begun and not abandoned."""
        found = []
        for run in self.runs.values():
            task = self.tasks.get(run.parent_task)
            if run.parent_id == parent.id and not run.finished_us and task is not None and task.item != ABANDONED:
                found.append(OpenChild(run.id, task.id, task.tries, task.finished_us > 0))
        return found
