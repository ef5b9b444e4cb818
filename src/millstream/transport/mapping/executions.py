"""Runs of workflows: begun, and what they came to."""

from typing import Any

from millstream.application.views.runs import RunResult
from millstream.application.workflow_runs import NewRun
from millstream.domain.errors import TimedOut
from millstream.domain.runs import RunStatus
from millstream.transport.mapping.json import labels_text
from millstream.transport.mapping.runs import put_error
from millstream.transport.mapping.times import duration_us, put

DEFAULT_WAIT_S = 30.0


def check_in_time(result: RunResult, fail: bool, timeout_s: float) -> None:
    """Raise TimedOut where the caller wants that of a run that has not ended."""
    if fail and not result.completed:
        raise TimedOut(f"run {result.run.id} did not end within {timeout_s:g} s; it goes on")


def new_run(request: Any) -> NewRun:
    """The run to begin."""
    labels = labels_text(dict(request.labels)) if request.labels else ""
    timeout_us = duration_us(request.run_timeout) if request.HasField("run_timeout") else 0
    return NewRun(request.workflow_id, request.version, request.input, labels, timeout_us)


def put_begun(out: Any, result: RunResult) -> Any:
    """Write a run that was begun."""
    run = result.run
    out.run_id, out.workflow, out.version = run.id, run.workflow, run.workflow_version
    out.status = int(run.status)
    put(out.created_at, run.created_us)
    return out


def put_result(out: Any, result: RunResult, now_us: int) -> Any:
    """Write what a run came to."""
    run = result.run
    out.run_id, out.workflow, out.version = run.id, run.workflow, run.workflow_version
    out.status = int(run.status)
    out.completed = result.completed
    if run.status is RunStatus.COMPLETED and result.output:
        out.output = result.output
    put_error(out.error, run.error_code, run.error_message)
    out.duration_ms = max((run.finished_us or now_us) - run.created_us, 0) / 1000
    return out
