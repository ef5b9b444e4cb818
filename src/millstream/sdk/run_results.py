"""Runs, their events, tasks and attempts, as small values in place of protobuf messages."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from millstream.sdk.payload import JsonValue, from_struct, from_value
from millstream.sdk.policies import seconds
from millstream.sdk.results import when
from millstream.v1 import run_pb2


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a task, an attempt or a run failed."""

    code: str
    message: str

    @classmethod
    def of(cls, wire: Any) -> "Fault | None":
        """The `error` of a message; None where it is absent."""
        return cls(wire.error.code, wire.error.message) if wire.HasField("error") else None


@dataclass(frozen=True, slots=True)
class RunResult:
    """A run as it stands, with its output where it has ended well."""

    run_id: str
    status: str
    completed: bool
    """It has ended, however."""
    output: JsonValue = None
    error: Fault | None = None
    started: bool = False
    """It began by this call."""
    workflow: str = ""
    version: str = ""
    """That it follows."""
    duration_ms: float = 0.0
    """From its beginning to its end, or to the answer."""

    @classmethod
    def from_wire(cls, wire: Any) -> "RunResult":
        """The value of a response."""
        return cls(
            wire.run_id, run_pb2.Run.Status.Name(wire.status), wire.completed, from_value(wire.output),
            Fault.of(wire), getattr(wire, "started", False), getattr(wire, "workflow", ""),
            getattr(wire, "version", ""), getattr(wire, "duration_ms", 0.0),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """A unit of durable work: the cascade of an artifact, or a standalone task."""

    run_id: str
    kind: str
    status: str
    created_at: datetime | None
    updated_at: datetime | None
    finished_at: datetime | None
    error: Fault | None
    task_count: int
    open_tasks: int
    failed_tasks: int
    artifact_count: int
    last_sequence: int
    created_by: str
    labels: Mapping[str, str] = field(default_factory=dict)
    open_gates: int = 0
    """Gates in which artifacts of it wait for others."""
    parent_run_ids: tuple[str, ...] = ()
    """Of a cascade that a gate of the tenant began: those whose artifacts opened it."""
    retry_attempt: int = 0
    """How often it was retried by hand."""
    paused_at: datetime | None = None
    """Since when nothing new of it starts."""
    progress: float = 0.0
    """The share of its work that is done."""
    timeout: float | None = None
    """How long it may take in all, seconds."""
    deadline: datetime | None = None
    rerun_of: str = ""
    """The run that it repeats."""
    workflow: str = ""
    workflow_version: str = ""
    parent_run_id: str = ""
    """The run that began it as its child."""
    parent_task_id: str = ""
    input: JsonValue = None
    """What a run of a workflow was given. Not in lists."""
    output: JsonValue = None
    """What a run of a workflow answered. Not in lists."""

    @classmethod
    def from_wire(cls, wire: Any) -> "Run":
        """The value of a Run, or of a response with a run's fields."""
        return cls(
            run_id=wire.run_id,
            kind=run_pb2.RunKind.Kind.Name(wire.kind),
            status=run_pb2.Run.Status.Name(wire.status),
            created_at=when(wire, "created_at"),
            updated_at=when(wire, "updated_at"),
            finished_at=when(wire, "finished_at"),
            error=Fault.of(wire),
            task_count=wire.task_count,
            open_tasks=wire.open_tasks,
            failed_tasks=wire.failed_tasks,
            artifact_count=wire.artifact_count,
            last_sequence=wire.last_sequence,
            created_by=wire.created_by,
            labels=dict(wire.labels),
            open_gates=wire.open_gates,
            parent_run_ids=tuple(wire.parent_run_ids),
            retry_attempt=wire.retry_attempt,
            paused_at=when(wire, "paused_at"),
            progress=wire.progress,
            timeout=seconds(wire, "timeout"),
            deadline=when(wire, "deadline"),
            rerun_of=wire.rerun_of,
            workflow=wire.workflow,
            workflow_version=wire.workflow_version,
            parent_run_id=wire.parent_run_id,
            parent_task_id=wire.parent_task_id,
            input=from_value(wire.input) if wire.HasField("input") else None,
            output=from_value(wire.output) if wire.HasField("output") else None,
        )


@dataclass(frozen=True, slots=True)
class RunEvent:
    """Something that happened in a run; `sequence` counts from 1 without gaps."""

    sequence: int
    type: str
    created_at: datetime | None
    task_id: str
    artifact_id: str
    attempt: int
    data: dict[str, JsonValue]

    @classmethod
    def from_wire(cls, wire: run_pb2.RunEvent) -> "RunEvent":
        """The value of a message."""
        return cls(
            wire.sequence, run_pb2.RunEvent.Type.Name(wire.type), when(wire, "created_at"), wire.task_id,
            wire.artifact_id, wire.attempt, from_struct(wire.data),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Task:
    """A piece of work for one worker. Lists leave out `input` and `output`."""

    task_id: str
    run_id: str
    kind: str
    queue: str
    status: str
    priority: int
    attempt: int
    max_attempts: int
    created_at: datetime | None
    run_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    input: JsonValue
    output: JsonValue
    error: Fault | None
    worker: str
    agent: str
    artifact_ids: tuple[str, ...]
    progress: float
    progress_message: str
    labels: Mapping[str, str] = field(default_factory=dict)
    held: bool = False
    """Its run is paused: it does not start before that is resumed."""
    waiting_for: str = ""
    """While it waits for its turn, for what: "concurrency:" or "rate:" and the key."""
    dropped: bool = False
    """It was dropped from the dead letters."""

    @classmethod
    def from_wire(cls, wire: Any) -> "Task":
        """The value of a Task, or of a response with a task's fields."""
        return cls(
            task_id=wire.task_id,
            run_id=wire.run_id,
            kind=wire.kind,
            queue=wire.queue,
            status=run_pb2.Task.Status.Name(wire.status),
            priority=wire.priority,
            attempt=wire.attempt,
            max_attempts=wire.max_attempts,
            created_at=when(wire, "created_at"),
            run_at=when(wire, "run_at"),
            started_at=when(wire, "started_at"),
            finished_at=when(wire, "finished_at"),
            input=from_value(wire.input),
            output=from_value(wire.output),
            error=Fault.of(wire),
            worker=wire.worker,
            agent=wire.agent,
            artifact_ids=tuple(wire.artifact_ids),
            progress=wire.progress,
            progress_message=wire.progress_message,
            labels=dict(wire.labels),
            held=wire.held,
            waiting_for=wire.waiting_for,
            dropped=wire.dropped,
        )


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a task."""

    attempt: int
    status: str
    started_at: datetime | None
    finished_at: datetime | None
    duration_ms: float
    worker: str
    error: Fault | None
    output: JsonValue
