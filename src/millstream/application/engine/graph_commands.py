"""The commands of runs that follow a workflow's definition, and of runs that others began."""

from collections.abc import Sequence
from dataclasses import dataclass

from millstream.application.engine.commands import Command, keep_for_replays
from millstream.domain.agents import Activation
from millstream.domain.batch import Batch
from millstream.domain.cancellation import limit_run
from millstream.domain.children import child_id
from millstream.domain.errors import Conflict
from millstream.domain.graph_runs import Advance, advance, begin
from millstream.domain.publication import Produce, publish, run_agent
from millstream.domain.runs import PayloadKind, Run, RunKind, RunStatus, Task, TaskStatus
from millstream.domain.settling import settle, settle_failed

TOO_DEEP = "TOO_DEEP"
"""So many runs have begun each other that no other may be begun."""
HOLD_US = 30_000_000
"""How often the runs of a held workflow are looked at; resuming it has all of them looked at."""


@dataclass(slots=True)
class StartGraph(Command):
    """Begin a run of a workflow; returns it.

    Attributes:
        input: What it is given, google.protobuf.Value in wire form.
        labels: JSON object as text, or "".
        waiter: The lane where a caller waits for its end, or "".
        parent_id, parent_task: The run and its task that begin it, or "".
        timeout_us: How long it may take; 0: as long as its definition says.
        rerun_of: The run that it repeats, or "".
        queue, priority: Of its tasks that name none; "" and 0 for those of the service.
    """

    tenant: str = ""
    by: str = ""
    input: bytes = b""
    labels: str = ""
    waiter: str = ""
    parent_id: str = ""
    parent_task: str = ""
    timeout_us: int = 0
    rerun_of: str = ""
    queue: str = ""
    priority: int = 0
    advance: Advance = None  # type: ignore[assignment]  # always given; dataclass order wants a default

    def decide(self, batch: Batch) -> Run:
        """Make the run and begin its first steps. Raises Conflict where its parent does not wait for it any more."""
        if self.parent_task:
            waiting_for(batch, self.parent_task)
        definition = self.advance.definition
        run = Run(
            self.run_id, self.tenant, RunKind.GRAPH, batch.now_us, self.by, updated_us=batch.now_us,
            labels=self.labels, workflow=definition.name, workflow_version=str(definition.version),
            parent_id=self.parent_id, parent_task=self.parent_task, rerun_of=self.rerun_of,
            waiters=(self.waiter,) if self.waiter else (), queue=self.queue, priority=self.priority,
        )  # fmt: skip
        batch.add_run(run)
        if self.input:
            batch.keep(run, PayloadKind.INPUT, self.input)
        limit_run(batch, run, self.timeout_us or definition.timeout_us)
        begin(batch, run, self.advance)
        keep_for_replays(batch, run, self.key)
        keep_for_replays(batch, run, self.business_key)
        return run


@dataclass(slots=True)
class AdvanceGraph(Command):
    """Go on with a run of a workflow. `due_us`: the mark that this answers; what came after it is looked at again."""

    due_us: int = 0
    advance: Advance = None  # type: ignore[assignment]  # always given; dataclass order wants a default

    def decide(self, batch: Batch) -> None:
        """Look at what has ended in it."""
        run = batch.runs.get(self.run_id)
        if run is None or not run.due_us:
            # A kept copy may be behind: another server has marked the run, or looked at it.
            batch.unsure = True
        else:
            advance(batch, run, self.advance, run.due_us if run.due_us != self.due_us else 0)


@dataclass(slots=True)
class Looked(Command):
    """A run was looked at. `due_us`: the mark that this answers."""

    due_us: int = 0

    def decide(self, batch: Batch) -> None:
        """Take the mark back, unless another came."""
        run = batch.runs.get(self.run_id)
        if run is not None and run.due_us == self.due_us:
            batch.attended(run)
        else:
            batch.unsure = True


@dataclass(slots=True)
class Hold(Command):
    """Leave a run whose workflow is held for a while. `due_us`: the mark that this puts off."""

    due_us: int = 0

    def decide(self, batch: Batch) -> None:
        """Put the mark off, unless another came."""
        run = batch.runs.get(self.run_id)
        if run is not None and run.due_us == self.due_us:
            run.due_us = batch.now_us + HOLD_US
            batch.touch(run)
        else:
            batch.unsure = True


@dataclass(slots=True)
class TellParent(Command):
    """Settle the task of a parent whose child run has ended.

    Attributes:
        output: What the child answered, google.protobuf.Value in wire form.
        code, message: Why it failed, where its row does not tell; else "".
    """

    output: bytes = b""
    code: str = ""
    message: str = ""

    def decide(self, batch: Batch) -> None:
        """Once: the child's mark goes with it."""
        run = batch.runs.get(self.run_id)
        if run is None or not run.due_us or run.finished_us == 0:
            return
        batch.attended(run)
        task = batch.tasks.get(run.parent_task)
        parent = batch.runs.get(run.parent_id)
        if task is None or parent is None or task.status is not TaskStatus.PENDING:
            return
        if run.id != child_id(task.id, task.tries + 1):
            # The task took too long for it, and waits for another.
            return
        if run.status is RunStatus.COMPLETED:
            settle(batch, parent, task, self.output)
            return
        code = run.error_code or self.code or run.status.name
        message = run.error_message or self.message or run.status.name
        # To try again what goes too deep, at each of so many levels, would not end.
        retryable = False if code == TOO_DEEP else None
        settle_failed(batch, parent, task, code, f"run {run.id}: {message}", retryable=retryable)


def waiting_for(batch: Batch, task_id: str) -> Task:
    """A parent's task that waits for a run. Raises Conflict where it does not any more."""
    task = batch.tasks.get(task_id)
    if task is None or task.status is not TaskStatus.PENDING or task.run_id not in batch.runs:
        raise Conflict(f"task {task_id} does not wait for a run")
    return task


@dataclass(slots=True)
class StartCascade(Command):
    """Begin a cascade for a parent's task: publish an artifact, or give artifacts to one agent.

    Attributes:
        start: The agent that takes the artifacts; None: whoever subscribes to them.
        settled: What the parent's task is completed with at once, google.protobuf.Value in wire form; None: it waits.
    """

    tenant: str = ""
    by: str = ""
    parent_id: str = ""
    parent_task: str = ""
    inputs: Sequence[Produce] = ()
    start: Activation | None = None
    task_id: str = ""
    settled: bytes | None = None

    def buffers(self, batch: Batch) -> Sequence[str]:
        """Those of the gates that the artifacts enter."""
        return [each for item in self.inputs for each in item.buffers(self.tenant, self.run_id)]

    def decide(self, batch: Batch) -> Run:
        """Make the run. Raises Conflict where its parent does not wait for it any more."""
        waiting = waiting_for(batch, self.parent_task)
        run = Run(
            self.run_id, self.tenant, RunKind.CASCADE, batch.now_us, self.by, updated_us=batch.now_us,
            parent_id=self.parent_id, parent_task=self.parent_task,
        )  # fmt: skip
        batch.add_run(run)
        if self.start is not None:
            run_agent(batch, run, self.inputs, self.start, self.task_id)
        else:
            for produce in self.inputs:
                publish(batch, run, produce, self.by)
        if self.settled is not None:
            settle(batch, batch.runs[waiting.run_id], waiting, self.settled)
        return run


@dataclass(slots=True)
class FailChild(Command):
    """Fail a parent's task whose run cannot be begun."""

    code: str = ""
    message: str = ""

    def decide(self, batch: Batch) -> None:
        """Unless it was begun, or is not waited for any more."""
        for task_id in self.task_ids:
            task = batch.tasks.get(task_id)
            if task is not None and task.status is TaskStatus.PENDING:
                settle_failed(batch, batch.runs[task.run_id], task, self.code, self.message)
