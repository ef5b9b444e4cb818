"""Runs and events."""

from dataclasses import replace
from typing import Any, Final, TypeVar

from millstream.application.views.runs import DoneRuns, ManyRuns, RunQuery, RunView
from millstream.domain.errors import MillstreamError, ValidationFailed
from millstream.domain.progress import share_done
from millstream.domain.runs import Event, Run, RunKind, RunStatus
from millstream.domain.tracing import trace_id
from millstream.transport.mapping.errors import body
from millstream.transport.mapping.json import labels_of, struct_of
from millstream.transport.mapping.pages import known
from millstream.transport.mapping.times import put, put_duration, us
from millstream.wire.v1 import run_pb2
from millstream.wire.v1.run_service_pb2 import CancelRunsResponse, RetryRunsResponse

Done = TypeVar("Done", RetryRunsResponse, CancelRunsResponse)

BULK_MOST: Final = 1000


def run_query(request: Any) -> RunQuery:
    """Which runs a request asks for, in which order."""
    wanted = [known(request.status, max(RunStatus), "status")]
    wanted += [known(each, max(RunStatus), f"statuses[{n}]") for n, each in enumerate(request.statuses)]
    return replace(
        run_filter(request),
        statuses=tuple(dict.fromkeys(RunStatus(each) for each in wanted if each)),
        by_updated=request.sort_by == "updated_at",
        ascending=request.sort_order == "asc",
    )


def run_filter(request: Any, field: str = "") -> RunQuery:
    """Which runs a request, or a filter in one, asks for, in whatever status. `field` stands before its fields'
    names."""
    given = request.HasField
    kind = known(request.kind, max(RunKind), f"{field}kind")
    return RunQuery(
        kind=RunKind(kind) if kind else None,
        created_after_us=us(request.created_after, f"{field}created_after") if given("created_after") else 0,
        created_before_us=us(request.created_before, f"{field}created_before") if given("created_before") else 0,
        workflow=request.workflow_id,
        labels=tuple(_label(each, f"{field}labels[{n}]") for n, each in enumerate(request.labels)),
        text=request.text.strip().lower(),
        parent_id=request.parent_run_id.lower(),
    )


def _label(text: str, field: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ValidationFailed.of(field, "must be a label as key=value")
    return name, value


def many_runs(request: Any, why: str) -> ManyRuns:
    """Runs to do the same to."""
    return ManyRuns(
        ids=tuple(dict.fromkeys(each.lower() for each in request.run_ids)),
        query=run_filter(request.filter, "filter.") if request.HasField("filter") else None,
        why=why,
        dry_run=request.dry_run,
        limit=request.limit if request.HasField("limit") else BULK_MOST,
        page_token=request.page_token,
    )


def put_done(out: Done, done: DoneRuns, correlation_id: str) -> Done:
    """Write what became of many runs."""
    for run_id, outcome in done.outcomes:
        result = out.results.add(run_id=run_id)
        if isinstance(outcome, MillstreamError):
            result.status = "failed"
            result.error.CopyFrom(body(outcome, correlation_id))
        else:
            result.status = outcome
            out.accepted += outcome != "matched"
    out.failed = sum(result.status == "failed" for result in out.results)
    out.matched = done.matched
    out.left = done.left
    if done.next_page_token:
        out.next_page_token = done.next_page_token
    return out


def run_view(view: RunView) -> run_pb2.Run:
    """A run with what it was given and answers."""
    out = put_run(run_pb2.Run(), view.run)
    if view.input:
        out.input = view.input
    if view.output:
        out.output = view.output
    return out


def put_run(out: run_pb2.Run, run: Run) -> run_pb2.Run:
    """Write a run."""
    out.run_id = run.id
    out.kind = int(run.kind)  # type: ignore[assignment]
    out.status = int(run.status)  # type: ignore[assignment]
    put(out.created_at, run.created_us)
    put(out.updated_at, run.updated_us or run.created_us)
    put(out.finished_at, run.finished_us)
    put_error(out.error, run.error_code, run.error_message)
    # A code run's own task, which runs its code, is none that it made.
    own = int(run.kind is RunKind.CODE)
    out.task_count = run.task_count - own
    out.open_tasks = run.open_tasks - (own if not run.finished_us else 0)
    out.failed_tasks = run.failed_tasks
    out.artifact_count = run.artifact_count
    out.last_sequence = run.last_seq
    out.created_by = run.created_by
    out.open_gates = run.open_gates
    out.parent_run_ids.extend(run.parents)
    out.retry_attempt = run.redone
    put(out.paused_at, run.paused_us)
    if run.timeout_us:
        put_duration(out.timeout, run.timeout_us)
    put(out.deadline, run.deadline_us)
    out.rerun_of = run.rerun_of
    out.workflow = run.workflow
    out.workflow_version = run.workflow_version
    out.parent_run_id = run.parent_id
    out.parent_task_id = run.parent_task
    out.progress = share_done(run)
    if run.trace:
        out.trace_id = trace_id(run.trace)
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
