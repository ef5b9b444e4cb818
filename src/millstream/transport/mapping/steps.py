"""Steps of runs."""

from millstream.application.views.steps import StepView
from millstream.transport.mapping.runs import put_error
from millstream.transport.mapping.times import put
from millstream.wire.v1 import run_pb2


def put_step(out: run_pb2.Step, step: StepView) -> None:
    """Write a step."""
    out.id = step.id
    out.kind = step.kind
    out.status = run_pb2.Step.Status.Value(step.status)
    out.needs.extend(step.needs)
    out.child_run_id = step.child_run_id
    if step.input:
        out.input = step.input
    if step.output:
        out.output = step.output
    if step.items is not None:
        out.items.begun, out.items.ended, out.items.failed = step.items.made, step.items.ended, step.items.failed
    task = step.task
    if task is None:
        put_error(out.error, *step.error)
        return
    out.task_id = task.id
    out.attempt = task.attempt
    out.max_attempts = task.retry.max_attempts
    put_error(out.error, task.error_code, task.error_message)
    put(out.created_at, task.created_us)
    put(out.started_at, task.started_us)
    put(out.finished_at, task.finished_us)
