"""Runs and events."""

from typing import Any

from millstream.application.views import RunQuery
from millstream.domain.runs import Event, Run, RunKind, RunStatus
from millstream.transport.mapping.json import labels_of, struct_of
from millstream.transport.mapping.pages import known
from millstream.transport.mapping.times import put, us
from millstream.wire.v1 import run_pb2


def run_query(request: Any) -> RunQuery:
    """Which runs a request asks for."""
    status = known(request.status, max(RunStatus), "status")
    kind = known(request.kind, max(RunKind), "kind")
    return RunQuery(
        status=RunStatus(status) if status else None,
        kind=RunKind(kind) if kind else None,
        created_after_us=us(request.created_after, "created_after") if request.HasField("created_after") else 0,
        created_before_us=us(request.created_before, "created_before") if request.HasField("created_before") else 0,
    )


def put_run(out: run_pb2.Run, run: Run) -> run_pb2.Run:
    """Write a run."""
    out.run_id = run.id
    out.kind = int(run.kind)  # type: ignore[assignment]
    out.status = int(run.status)  # type: ignore[assignment]
    put(out.created_at, run.created_us)
    put(out.updated_at, run.updated_us or run.created_us)
    put(out.finished_at, run.finished_us)
    put_error(out.error, run.error_code, run.error_message)
    out.task_count = run.task_count
    out.open_tasks = run.open_tasks
    out.failed_tasks = run.failed_tasks
    out.artifact_count = run.artifact_count
    out.last_sequence = run.last_seq
    out.created_by = run.created_by
    out.open_gates = run.open_gates
    out.parent_run_ids.extend(run.parents)
    if run.labels:
        out.labels.update(labels_of(run.labels))
    return out


def put_error(out: run_pb2.TaskError, code: str, message: str) -> None:
    """Write why something failed; nothing where it did not."""
    if code or message:
        out.code = code
        out.message = message


def put_event(out: run_pb2.RunEvent, event: Event) -> None:
    """Write an event."""
    out.sequence = event.seq
    out.type = int(event.type)  # type: ignore[assignment]
    put(out.created_at, event.at_us)
    out.task_id = event.task_id
    out.artifact_id = event.artifact_id
    out.attempt = event.attempt
    out.data = struct_of(event.data)
