"""Leads code through the history of a run that it, or code before it, has made."""

from collections.abc import Callable, Mapping
from typing import Any

from millstream.sdk.errors import MillstreamError
from millstream.sdk.handlers import Registry, WorkflowHandler
from millstream.sdk.histories import History
from millstream.sdk.journal import NonDeterminism
from millstream.sdk.worker import Worker
from millstream.testing.stand import Stand
from millstream.v1 import activation_pb2, worker_pb2

NON_DETERMINISM = "NON_DETERMINISM"


async def replay(history: History | Mapping[str, Any] | str, *code: Worker | Callable[..., Any]) -> None:
    """Leads workflows through a stored history, as a worker does that takes over a run. No task, side effect or timer
    is begun.

    Args:
        history: from `client.runs.history`, `TestRun.history`, or exported: JSON as text or as a dict.
        code: workers that have the workflow in the run's version, or its function.

    Raises:
        NonDeterminism: the code does something else than the history says; shows both.
        LookupError: none of `code` has the workflow in that version.
        MillstreamError: the code cannot be run at all, or goes round in circles.
        PayloadError: the history is none.
    """
    if isinstance(history, str):
        history = History.from_json(history)
    elif not isinstance(history, History):
        history = History.from_dict(history)
    handler = _handler(history, code)
    stand = Stand()
    try:
        await lead(stand, handler, history)
    finally:
        stand.close()


async def lead(stand: Stand, handler: WorkflowHandler, history: History) -> None:
    """Lead one workflow through a history. Raises as `replay`."""
    seen = history.seen_sequence
    items = [item for item in history.items if _sequence(item) <= seen]
    told = activation_pb2.Activation(
        workflow=history.workflow, version=history.version, base_sequence=seen, seen_sequence=seen,
        first_number=history.first_number, history=items,
    )  # fmt: skip
    lease = worker_pb2.Lease(task_id=history.run_id, attempt=1, run_id=history.run_id, activation=told)
    said = await stand.perform(stand.execution(lease, handler))
    for failure in said.failures:
        raise failed(failure)


def failed(failure: worker_pb2.AttemptFailure) -> BaseException:
    """Why an activation failed."""
    if failure.code == NON_DETERMINISM:
        return NonDeterminism(failure.message)
    return MillstreamError(failure.code, failure.message)


def _sequence(item: activation_pb2.HistoryItem) -> int:
    return item.event.sequence if item.HasField("event") else item.command.after_sequence


def _handler(history: History, code: tuple[Worker | Callable[..., Any], ...]) -> WorkflowHandler:
    wanted = f"workflow:{history.workflow}@{history.version}"
    known: list[str] = []
    for each in code:
        if isinstance(each, Worker):
            handlers = each.registry.handlers
        else:
            own = Registry()
            own.add_workflow(each, history.workflow, history.version)
            handlers = own.handlers
        found = handlers.get(wanted)
        if isinstance(found, WorkflowHandler):
            return found
        known += [name for name, handler in handlers.items() if isinstance(handler, WorkflowHandler)]
    raise LookupError(f"the history is one of {wanted}, which is not among {', '.join(known) or '(no workflows)'}")
