"""Publishing: an artifact is stored, and what it activates is started.

Every function checks before it changes anything, so that a command which is refused leaves no trace in the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import assert_never

from millstream.domain.agents import Activation
from millstream.domain.artifacts import EXTERNAL, Artifact, NewArtifact
from millstream.domain.batch import Batch
from millstream.domain.errors import Conflict, NotFound
from millstream.domain.gates import buffer_id
from millstream.domain.gating import enter, start_task
from millstream.domain.lifecycle import check_fence, close_attempt, end_if_idle, finish, recurring, refuse
from millstream.domain.planners import RUN_TIMEOUT, EnterGate, Refuse, StartTask, plan_published
from millstream.domain.runs import AttemptStatus, EventType, Run, RunKind, RunStatus, Task, TaskStatus
from millstream.domain.tracing import below


@dataclass(slots=True)
class Produce:
    """An artifact about to be stored: what was given, and what was found out about it before the transaction.

    Attributes:
        version: Version of the type's schema it was checked with.
        activations: Agents it activates.
        ids: Ids for what they may make, in the same order: a task, and a run where a tenant's gate opens.
    """

    new: NewArtifact
    artifact_id: str
    version: int
    activations: Sequence[Activation] = ()
    ids: Sequence[tuple[str, str]] = field(default_factory=tuple)

    @property
    def gated(self) -> bool:
        """It waits in a gate, maybe."""
        return any(each.gate is not None for each in self.activations)

    @property
    def tenant_wide(self) -> bool:
        """It waits in a gate where artifacts of other runs do."""
        return any(each.gate is not None and each.gate.tenant_wide for each in self.activations)

    def buffers(self, tenant: str, run_id: str) -> list[str]:
        """The buffers in which it waits, when published in this run."""
        return [
            buffer_id(tenant, each.agent, each.gate, run_id, each.key)
            for each in self.activations
            if each.gate is not None
        ]


def publish(batch: Batch, run: Run, produce: Produce, by: str = "") -> None:
    """Publish a client's artifact into a cascade. Raises Conflict where the run takes none."""
    if run.kind is not RunKind.CASCADE:
        raise Conflict(f"{run.id} is a run of another kind; leave correlation_id out or use another UUID")
    if run.status in (RunStatus.CANCELLING, RunStatus.CANCELLED):
        raise Conflict(f"the cascade {run.id} was cancelled; publish without its correlation_id")
    if run.status is not RunStatus.RUNNING:
        _reopen(batch, run)
    _store(batch, run, produce, EXTERNAL, 1, by)
    end_if_idle(batch, run)


def run_agent(batch: Batch, run: Run, inputs: Sequence[Produce], start: Activation, task_id: str) -> None:
    """Store artifacts of its creator in a new run and give all of them to one task of an agent, and to nobody else."""
    for produce in inputs:
        _store(batch, run, produce, EXTERNAL, 1, run.created_by)
    start_task(batch, run, start, task_id, tuple(each.artifact_id for each in inputs), 1, batch.now_us)


def cascade_of(batch: Batch, parent: Run, run_id: str, produce: Produce) -> None:
    """Publish an artifact of another run into a new cascade."""
    run = Run(run_id, parent.tenant, RunKind.CASCADE, batch.now_us, parent.created_by, updated_us=batch.now_us)
    run.parents = (parent.id,)
    run.trace = below(parent.trace, parent.id)
    batch.add_run(run)
    _store(batch, run, produce, EXTERNAL, 1, parent.created_by)
    end_if_idle(batch, run)


def _store(batch: Batch, run: Run, produce: Produce, producer: str, depth: int, by: str = "") -> None:
    """Store an artifact in a running cascade and start what it activates."""
    new = produce.new
    if new.payload_digest and (run.tenant, new.payload_digest) in batch.gone_payloads:
        raise NotFound("payload_ref: the payload was dropped, as nothing referred to it; upload it again")
    data = recurring(type=new.type, produced_by=producer)
    seq = batch.record(run, EventType.ARTIFACT_PUBLISHED, artifact_id=produce.artifact_id, data=data)
    artifact = Artifact(
        produce.artifact_id, run.tenant, run.id, seq, new.type, produce.version, new.payload, producer,
        new.visibility, new.tags, new.partition_key, batch.now_us, by, new.payload_digest, new.payload_bytes,
    )  # fmt: skip
    batch.artifacts.append(artifact)
    run.artifact_count += 1
    batch.touch(run)
    if produce.activations:
        _start_agents(batch, run, produce, artifact, depth)


def _reopen(batch: Batch, run: Run) -> None:
    run.status = RunStatus.RUNNING
    run.finished_us = 0
    run.plan = str(int(run.plan or 0) + 1)
    batch.reopened.add(run.id)
    batch.record(run, EventType.RUN_REOPENED)


def _start_agents(batch: Batch, run: Run, produce: Produce, artifact: Artifact, depth: int) -> None:
    actions = plan_published(run, produce.artifact_id, depth, produce.activations, batch.limits)
    for action, ids in zip(actions, produce.ids, strict=True):
        match action:
            case Refuse():
                refuse(batch, run, action.agent, action.artifact_id, action.reason)
            case EnterGate():
                enter(batch, run, artifact, action.activation, depth, ids)
            case StartTask():
                start_task(
                    batch, run, action.activation, ids[0], (artifact.id,), depth,
                    batch.now_us + action.activation.delay_us,
                )  # fmt: skip
            case _:
                assert_never(action)


def complete(batch: Batch, run: Run, task: Task, attempt: int, output: bytes, produced: Sequence[Produce]) -> bool:
    """Complete a task and publish what it made, unless it or its run is being cancelled: then its end is recorded, and
    nothing follows from it. False where this very completion was stored before.

    Raises LeaseLost, and Conflict where a task that is not of a cascade publishes, or is a run's own.
    """
    if task.status is TaskStatus.COMPLETED and task.attempt == attempt:
        return False
    check_fence(task, attempt)
    if task.leads:
        raise Conflict("an activation is answered, not completed: its code says how the run goes on")
    if produced and run.kind is not RunKind.CASCADE:
        raise Conflict("a standalone task cannot publish artifacts; give its result as its output")
    task.tries += 1
    close_attempt(batch, task, AttemptStatus.COMPLETED, output=output)
    if run.status is not RunStatus.CANCELLING or task.error_code != RUN_TIMEOUT:
        # What ends in the grace of a time-out says so: nothing follows from it, until a retry does it again.
        task.error_code = task.error_message = ""
    finish(batch, run, task, TaskStatus.COMPLETED, EventType.TASK_COMPLETED)
    if run.status is RunStatus.RUNNING and not task.cancelling:
        for item in produced:
            _store(batch, run, item, task.agent, task.depth + 1)
    end_if_idle(batch, run)
    return True
