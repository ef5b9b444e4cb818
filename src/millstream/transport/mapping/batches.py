"""Batches: items are read one by one, so that a bad one fails alone."""

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from millstream.application.views.artifacts import Published
from millstream.application.views.idempotency import Key
from millstream.application.views.runs import RunResult
from millstream.application.views.tasks import CreatedTask
from millstream.domain.errors import MillstreamError
from millstream.transport import idempotency
from millstream.transport.mapping.errors import body
from millstream.transport.reading import Reader

Item = TypeVar("Item")
New = TypeVar("New")


class Items(Generic[Item, New]):
    """Reads the items of a batch as the single call reads its request.

    An item has the fields of that request under the same numbers, and `idempotency_key`; its key is of the single
    call's scope, so that a batch and a single call know each other's keys.
    """

    def __init__(self, rpc: str, reader: Reader, new: Callable[[Any], New]) -> None:
        self._rpc = rpc
        self._reader = reader
        self._new = new

    def read(self, items: Iterable[Any], trusted: bool) -> tuple[list[New | MillstreamError], list[Key | None]]:
        """The items, or the error of each that is refused, with their keys."""
        out: list[New | MillstreamError] = []
        keys: list[Key | None] = []
        for item in items:
            key: Key | None = None
            try:
                new, key = self._one(item, trusted)
                out.append(new)
            except MillstreamError as error:
                out.append(error)
            keys.append(key)
        return out, keys

    def _one(self, item: Any, trusted: bool) -> tuple[New, Key | None]:
        key = item.idempotency_key
        if key:
            idempotency.checked(key, "idempotency_key")
            item.ClearField("idempotency_key")
        raw = item.SerializeToString()
        new = self._new(self._reader.read(raw, trusted))
        if not key:
            return new, None
        return new, idempotency.key(key, self._rpc, raw, self._reader.public_request)


def put_outcomes(
    out: Any,
    outcomes: "Iterable[Published | CreatedTask | RunResult | MillstreamError]",
    field: str,
    correlation_id: str,
) -> None:
    """Write what became of each item of the request's list `field`, in order."""
    failed = 0
    for index, outcome in enumerate(outcomes):
        result = out.results.add(index=index)
        if isinstance(outcome, MillstreamError):
            failed += 1
            result.status = "failed"
            result.error.CopyFrom(body(outcome, correlation_id))
            for detail in result.error.details:
                detail.field = f"{field}[{index}].{detail.field}"
            continue
        result.status = "duplicate" if outcome.replayed else "accepted"
        if isinstance(outcome, Published):
            result.artifact_id = outcome.artifact_id
            result.correlation_id = outcome.correlation_id
            if outcome.notice:
                result.deprecation = outcome.notice
        elif isinstance(outcome, RunResult):
            result.run_id = outcome.run.id
        else:
            result.task_id = outcome.task.id
            result.run_id = outcome.task.run_id
    out.accepted = len(out.results) - failed
    out.failed = failed
