"""Promises."""

import re
from typing import Final

from millstream.application.views.promises import PromiseQuery, PromiseRef, PromiseView
from millstream.domain.errors import ValidationFailed
from millstream.domain.promises import NewPromise, PromiseState, Rejection, state_of
from millstream.domain.runs import Task
from millstream.transport.mapping.json import labels_of, labels_text
from millstream.transport.mapping.pages import known
from millstream.transport.mapping.runs import put_error
from millstream.transport.mapping.times import duration_us, put
from millstream.wire.v1 import promise_pb2
from millstream.wire.v1.promise_service_pb2 import CreatePromiseRequest, ListPromisesRequest, RejectPromiseRequest

_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}").fullmatch
_DEFAULTS: Final = NewPromise(name="")


def new_promise(message: CreatePromiseRequest) -> NewPromise:
    """The promise to make."""
    return NewPromise(
        name=message.name,
        key=message.key,
        input=message.input,
        timeout_us=duration_us(message.timeout) if message.HasField("timeout") else _DEFAULTS.timeout_us,
        labels=labels_text(dict(message.labels)) if message.labels else "",
    )


def ref_of(promise_id: str) -> PromiseRef:
    """The promise that a request names. Raises ValidationFailed."""
    kind, colon, rest = promise_id.partition(":")
    if kind == "key" and colon and rest:
        return PromiseRef(key=rest)
    named = rest if kind == "id" and colon else promise_id
    if not _UUID(named):
        raise ValidationFailed.of("promise_id", 'must be a UUID, "id:" and a UUID, or "key:" and a key')
    return PromiseRef(id=named.lower())


def rejection_of(message: RejectPromiseRequest) -> Rejection:
    """Why to reject a promise."""
    return Rejection(message.code, message.message)


def promise_query(request: ListPromisesRequest) -> PromiseQuery:
    """Which promises a request asks for."""
    number = known(request.state, max(PromiseState), "state")
    state = PromiseState(number) if number else None
    return PromiseQuery(state, request.key, request.name, request.run_id.lower())


def put_promise(out: promise_pb2.Promise, task: Task) -> promise_pb2.Promise:
    """Write a promise without its input and value."""
    out.promise_id = task.id
    out.run_id = task.run_id
    out.name = task.kind
    out.key = task.promise_key
    out.state = int(state_of(task))  # type: ignore[assignment]
    put(out.created_at, task.created_us)
    put(out.expires_at, task.start_by_us or task.created_us + task.timeouts.schedule_to_start_us)
    put(out.settled_at, task.finished_us)
    out.settled_by = task.worker_name
    put_error(out.error, task.error_code, task.error_message)
    if task.labels:
        out.labels.update(labels_of(task.labels))
    return out


def promise_view(view: PromiseView) -> promise_pb2.Promise:
    """A promise with its input and value."""
    out = put_promise(promise_pb2.Promise(), view.task)
    if view.task.input:
        out.input = view.task.input
    if view.value:
        out.value = view.value
    return out
