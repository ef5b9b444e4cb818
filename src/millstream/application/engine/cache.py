"""Runs this process owns: their state, kept so that deciding needs no read."""

from collections import OrderedDict
from dataclasses import dataclass, field

from millstream.domain.artifacts import Artifact, size_bytes
from millstream.domain.batch import Batch
from millstream.domain.code import Entry, Standing
from millstream.domain.gates import Buffer
from millstream.domain.runs import Run, RunKind, RunStatus, Task

MOST_RUNS = 50_000
MOST_BYTES = 64 * 1024 * 1024
KEPT_ARTIFACTS = 1000
KEPT_ARTIFACT_BYTES = 3 * 1024 * 1024
"""A waited-for cascade keeps as many artifacts in memory as its answer may hold."""
KEPT_ENTRY_BYTES = 4 * 1024 * 1024
"""Of one run, what its code is to be told and has not seen."""
_CONTESTED_MOST = 10_000
_BUFFER_BYTES = 4096
"""What a buffer with a few parts takes; a full one, of a thousand, takes much more, and is rare."""


@dataclass(slots=True)
class Owned:
    """A run with its open tasks and what waits in its gates.

    Attributes:
        artifacts: All artifacts so far, for a caller that waits here; None where they are not, or not all, kept.
        entries: Of a code run, all that its code is to be told of after the event `entries_from`.
    """

    run: Run
    tasks: dict[str, Task] = field(default_factory=dict)
    artifacts: list[Artifact] | None = None
    buffers: dict[str, Buffer] = field(default_factory=dict)
    artifact_bytes: int = 0
    size_bytes: int = 0
    entries: list[Entry] = field(default_factory=list)
    entries_from: int = 0
    entry_bytes: int = 0

    @property
    def knows_tasks(self) -> bool:
        """Nothing else is open in the run."""
        return len(self.tasks) == self.run.open_tasks

    @property
    def knows_buffers(self) -> bool:
        """Nothing else waits in the run's gates."""
        return len(self.buffers) == self.run.open_gates


class RunCache:
    """A bounded cache of open runs, least recently touched out first.

    A run that two servers write in turn is contested: it is left out for good, because each would only ever find its
    copy outdated.
    """

    def __init__(self, most_runs: int = MOST_RUNS, most_bytes: int = MOST_BYTES) -> None:
        self._most_runs = most_runs
        self._most_bytes = most_bytes
        self._runs: OrderedDict[str, Owned] = OrderedDict()
        self._tasks: dict[str, Task] = {}
        self._contested: OrderedDict[str, None] = OrderedDict()
        self._suspects: dict[str, int] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._runs)

    def run(self, run_id: str) -> Owned | None:
        """The run if it is owned."""
        return self._runs.get(run_id)

    def task(self, task_id: str) -> Task | None:
        """The open task if its run is owned."""
        return self._tasks.get(task_id)

    def leads(self, run_id: str) -> bool:
        """Whether a run's own task is known, if it has one that is open."""
        owned = self._runs.get(run_id)
        return owned is not None and (owned.run.kind is not RunKind.CODE or run_id in owned.tasks)

    def entries(self, run_id: str, after: int, upto: int) -> list[Entry] | None:
        """What a run's code is to be told after one event and up to another; None where that has to be read."""
        owned = self._runs.get(run_id)
        if owned is None or after < owned.entries_from:
            return None
        return [entry for entry in owned.entries if after < entry.seq <= upto]

    def suspect(self, batch: Batch) -> None:
        """A write from kept copies failed: one of them may be outdated. Which one shows when they are read again."""
        for event in batch.events:
            if event[1] not in batch.new_runs:
                self._suspects.setdefault(event[1], event[2] - 1)

    def reread(self, run: Run) -> None:
        """A run was read under its lock. Where another server has written past our copy, it will again."""
        owned = self._runs.get(run.id)
        known_seq = self._suspects.pop(run.id, None)
        if owned is not None:
            known_seq = owned.run.last_seq
        if known_seq is not None and known_seq < run.last_seq:
            self._contested[run.id] = None
            if len(self._contested) > _CONTESTED_MOST:
                self._contested.popitem(last=False)
        self.drop(run.id)

    def drop(self, run_id: str) -> None:
        """Forget a run."""
        owned = self._runs.pop(run_id, None)
        if owned is None:
            return
        self._bytes -= owned.size_bytes
        for task_id in owned.tasks:
            self._tasks.pop(task_id, None)

    def clear(self) -> None:
        """Forget all."""
        self._suspects.clear()
        self._runs.clear()
        self._tasks.clear()
        self._bytes = 0

    def settle(self, batch: Batch, waited: set[str]) -> dict[str, list[Artifact]]:
        """Take over what a committed batch changed; returns the kept artifacts of the runs that ended.

        Args:
            waited: Runs that a caller in this process waits for.
        """
        for run in batch.dirty_runs.values():
            run.stored_us = run.updated_us
            if run.finished_us == 0 or run.id in waited or run.id in self._runs:
                self._keep(run, batch, waited)
        for task in batch.dirty_tasks.values():
            self._keep_task(task, task.id in batch.new_tasks)
        for buffer in batch.dirty_buffers.values():
            self._keep_buffer(buffer)
        for artifact in batch.artifacts:
            self._keep_artifact(artifact)
        for run in batch.dirty_runs.values():
            if run.kind is RunKind.CODE:
                self._keep_entries(run, batch.entries.get(run.id, []), run.id in batch.new_runs)
        kept = {}
        for run_id in batch.ended:
            owned = self._runs.get(run_id)
            if owned is not None and owned.artifacts is not None:
                kept[run_id] = owned.artifacts
            if batch.runs[run_id].status > RunStatus.CANCELLING:
                self.drop(run_id)
        while len(self._runs) > self._most_runs or self._bytes > self._most_bytes:
            self.drop(next(iter(self._runs)))
        return kept

    def _keep(self, run: Run, batch: Batch, waited: set[str]) -> None:
        owned = self._runs.get(run.id)
        if owned is not None:
            owned.run = run
            self._runs.move_to_end(run.id)
            return
        if run.id in self._contested:
            return
        # Of a run that ended and went on within the batch, each caller's answer has another end: those are read.
        whole = run.id in batch.new_runs and run.id not in batch.reopened
        self._runs[run.id] = Owned(run, artifacts=[] if whole and run.id in waited else None)

    def _keep_task(self, task: Task, new: bool) -> None:
        owned = self._runs.get(task.run_id)
        if owned is None:
            return
        if not task.open:
            if owned.tasks.pop(task.id, None) is not None:
                self._tasks.pop(task.id, None)
                owned.size_bytes -= len(task.input)
                self._bytes -= len(task.input)
        else:
            if task.id not in owned.tasks:
                owned.size_bytes += len(task.input)
                self._bytes += len(task.input)
            owned.tasks[task.id] = task
            self._tasks[task.id] = task

    def _keep_entries(self, run: Run, entries: list[Entry], new: bool) -> None:
        """Keep what a code run's code has not seen yet, or all of a run that has just begun."""
        owned = self._runs.get(run.id)
        if owned is None:
            return
        if not owned.entries_from and not owned.entries and not new:
            owned.entries_from = entries[0].seq - 1 if entries else run.last_seq
        owned.entries += entries
        size = owned.entry_bytes + sum(entry.size_bytes for entry in entries)
        seen = Standing.of(run.plan).seen
        if seen > owned.entries_from:
            owned.entries, owned.entries_from = [entry for entry in owned.entries if entry.seq > seen], seen
            size = sum(entry.size_bytes for entry in owned.entries)
        if size > KEPT_ENTRY_BYTES:
            owned.entries, owned.entries_from, size = [], run.last_seq, 0
        self._bytes += size - owned.entry_bytes
        owned.size_bytes += size - owned.entry_bytes
        owned.entry_bytes = size

    def _keep_buffer(self, buffer: Buffer) -> None:
        buffer.stored = bool(buffer.parts)
        owned = self._runs.get(buffer.run_id)
        if owned is None:
            return
        if not buffer.parts:
            if owned.buffers.pop(buffer.id, None) is not None:
                owned.size_bytes -= _BUFFER_BYTES
                self._bytes -= _BUFFER_BYTES
            return
        if buffer.id not in owned.buffers:
            owned.size_bytes += _BUFFER_BYTES
            self._bytes += _BUFFER_BYTES
        owned.buffers[buffer.id] = buffer

    def _keep_artifact(self, artifact: Artifact) -> None:
        owned = self._runs.get(artifact.run_id)
        if owned is None or owned.artifacts is None:
            return
        owned.artifacts.append(artifact)
        owned.artifact_bytes += size_bytes(artifact)
        if len(owned.artifacts) > KEPT_ARTIFACTS or owned.artifact_bytes > KEPT_ARTIFACT_BYTES:
            owned.artifacts = None
