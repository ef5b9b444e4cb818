"""Leads code through the history of a run that it, or code before it, has made."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from millstream.sdk.errors import MillstreamError
from millstream.sdk.handlers import Registry, WorkflowHandler
from millstream.sdk.histories import History
from millstream.sdk.journal import NonDeterminism
from millstream.sdk.worker import Worker
from millstream.testing.stand import Stand
from millstream.v1 import activation_pb2, worker_pb2

NON_DETERMINISM = "NON_DETERMINISM"


class HistoriesDiffer(Exception):
    """Code does not fit stored runs.

    Attributes:
        faults: What is wrong, by file.
    """

    def __init__(self, faults: Mapping[Path, BaseException], total: int) -> None:
        """`total`: how many files were looked at."""
        self.faults = dict(faults)
        lines = [f"{path}: {error}" for path, error in faults.items()]
        super().__init__(f"{len(lines)} of {total} stored runs do not fit the code\n\n" + "\n\n".join(lines))


def stored_runs(place: str | Path) -> list[Path]:
    """Files of histories: a file, or those called *.json in a folder and below, by name.

    Raises:
        FileNotFoundError: there are none, so that a test which looks in the wrong place does not pass.
    """
    place = Path(place)
    found = sorted(place.rglob("*.json")) if place.is_dir() else [place]
    if not found or not found[0].exists():
        raise FileNotFoundError(f"there are no histories (*.json) in {place}")
    return found


async def replay_all(place: str | Path, *code: Worker | Callable[..., Any]) -> int:
    """Leads workflows through all stored histories of a folder; how many there are.

    Args:
        place: the folder, or a file.
        code: as of `replay`.

    Raises:
        HistoriesDiffer: names each file that the code does not fit, with the first place where it goes another way.
        FileNotFoundError: there are none.
    """
    paths = stored_runs(place)
    faults: dict[Path, BaseException] = {}
    for path in paths:
        try:
            await replay(path, *code)
        except (NonDeterminism, MillstreamError, LookupError) as error:
            faults[path] = error
    if faults:
        raise HistoriesDiffer(faults, len(paths))
    return len(paths)


async def replay(history: History | Mapping[str, Any] | str | Path, *code: Worker | Callable[..., Any]) -> None:
    """Leads workflows through a stored history, as a worker does that takes over a run. No task, side effect or timer
    is begun.

    Args:
        history: from `client.runs.history`, `TestRun.history`, or exported: a file, JSON as text, or a dict.
        code: workers that have the workflow in the run's version, or its function.

    Raises:
        NonDeterminism: the code does something else than the history says; shows both.
        LookupError: none of `code` has the workflow in that version.
        MillstreamError: the code cannot be run at all, or goes round in circles.
        PayloadError: the history is none.
    """
    history = _read(history)
    handler = _handler(history, code)
    stand = Stand()
    try:
        await lead(stand, handler, history)
    except NonDeterminism as error:
        raise NonDeterminism(_explained(error.message, history)) from None
    finally:
        stand.close()


def _read(given: History | Mapping[str, Any] | str | Path) -> History:
    if isinstance(given, Path):
        given = given.read_text(encoding="utf-8")
    if isinstance(given, str):
        return History.from_json(given)
    return given if isinstance(given, History) else History.from_dict(given)


def _explained(message: str, history: History) -> str:
    """What differs, with the run, and with what had happened in it just before."""
    found = re.search(r"\(after event (\d+)\)", message)
    if found is not None:
        message = message.replace(found[0], f"(after event {found[1]}: {_about(int(found[1]), history)})", 1)
    return f"run {history.run_id} of {history.workflow}@{history.version}: {message}"


def _about(sequence: int, history: History) -> str:
    """What an event tells the code."""
    names = {
        item.command.number: f"{activation_pb2.RecordedCommand.Type.Name(item.command.type)} {item.command.name!r}"
        for item in history.items if item.HasField("command")
    }  # fmt: skip
    for item in history.items:
        if item.HasField("event") and item.event.sequence == sequence:
            kind = activation_pb2.HistoryEvent.Type.Name(item.event.type)
            name = f" {item.event.name!r}" if item.event.name else ""
            step = f" of {item.event.step}. {names.get(item.event.step, '')}" if item.event.step else ""
            return f"{kind}{name}{step.rstrip()}"
    return "what happened there"


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
