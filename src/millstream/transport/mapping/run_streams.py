"""What streams of runs send, as messages, as server-sent events and as lines; each encoded once for all readers."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson
from google.api.httpbody_pb2 import HttpBody

from millstream.application.run_topics import RunSent
from millstream.application.views.reports import Streamed
from millstream.domain.errors import ValidationFailed
from millstream.domain.runs import Event, EventType
from millstream.domain.struct_wire import decode_value
from millstream.transport.mapping.events import EVENT_STREAM, event
from millstream.transport.mapping.lines import NDJSON, fraction, line
from millstream.transport.mapping.runs import put_event
from millstream.wire.v1.run_pb2 import StreamedValue
from millstream.wire.v1.run_service_pb2 import WatchRunResponse

Shown = Callable[[Event], dict[str, Any]]
"""An event as the JSON of a path."""

NAMES: Final[Mapping[EventType, str]] = {each: each.name.lower() for each in EventType}
"""Names of server-sent events."""


def cursor_of(after_sequence: int, cursor: str, deep: bool) -> str:
    """Where a request goes on. Raises ValidationFailed."""
    if not after_sequence:
        return cursor
    if cursor:
        raise ValidationFailed.of("after_sequence", "give after_sequence or cursor, not both")
    if deep:
        raise ValidationFailed.of(
            "after_sequence", "is of a run alone; with its descendants go on by the cursor of a message"
        )
    return str(after_sequence)


def message(sent: RunSent) -> bytes:
    """As a message; those of both watches are alike."""
    found = sent.forms.get(message)
    if found is None:
        out = WatchRunResponse(cursor=sent.cursor, ended=sent.ended)
        if sent.event is not None:
            out.run_id = sent.event.run_id
            put_event(out.event, sent.event)
        elif sent.streamed is not None:
            out.run_id = sent.run_id
            put_streamed(out.streamed, sent.streamed)
        found = sent.forms[message] = out.SerializeToString()
    return found


def sse(sent: RunSent, shown: Shown) -> bytes:
    """As a server-sent event, in a message of text."""
    key = (sse, shown)
    found = sent.forms.get(key)
    if found is None:
        found = sent.forms[key] = HttpBody(content_type=EVENT_STREAM, data=_sse(sent, shown)).SerializeToString()
    return found


def _sse(sent: RunSent, shown: Shown) -> bytes:
    if sent.event is not None:
        return event(NAMES[sent.event.type], sent.cursor, shown(sent.event))
    if sent.streamed is not None:
        # Without an id: who comes back goes on behind the last event.
        return b"event: stream\ndata: %s\n\n" % orjson.dumps(_streamed(sent.run_id, sent.streamed, shown))
    return event("end" if sent.ended else "heartbeat", sent.cursor, {})


def ndjson(sent: RunSent, shown: Shown) -> bytes:
    """As a line, in a message of text."""
    key = (ndjson, shown)
    found = sent.forms.get(key)
    if found is None:
        found = sent.forms[key] = HttpBody(content_type=NDJSON, data=_line(sent, shown)).SerializeToString()
    return found


def _line(sent: RunSent, shown: Shown) -> bytes:
    if sent.event is not None:
        return line({**shown(sent.event), "cursor": sent.cursor})
    if sent.streamed is not None:
        return line({"stream": _streamed(sent.run_id, sent.streamed, shown)})
    return line({"end": True, "cursor": sent.cursor} if sent.ended else {"cursor": sent.cursor})


def put_streamed(out: StreamedValue, streamed: Streamed) -> None:
    """Write something that a task streams."""
    out.task_id, out.attempt, out.index = streamed.task_id, streamed.attempt, streamed.index
    out.value = streamed.value


def _streamed(run_id: str, streamed: Streamed, shown: Shown) -> dict[str, Any]:
    run, task = ("run_id", "task_id") if shown is of_run else ("workflowExecutionId", "taskExecutionId")
    return {
        run: run_id,
        task: streamed.task_id,
        "attempt": streamed.attempt,
        "index": streamed.index,
        "value": decode_value(streamed.value),
    }


def of_run(happened: Event) -> dict[str, Any]:
    """An event as ListRunEvents shows it, with its run."""
    return {
        "run_id": happened.run_id,
        "sequence": happened.seq,
        "type": happened.type.name,
        "created_at": _time(happened.at_us),
        "task_id": happened.task_id,
        "artifact_id": happened.artifact_id,
        "attempt": happened.attempt,
        "data": _data(happened),
    }


def of_execution(happened: Event) -> dict[str, Any]:
    """An event as ListWorkflowExecutionEvents shows it, with its execution."""
    out: dict[str, Any] = {
        "workflowExecutionId": happened.run_id,
        "sequence": happened.seq,
        "type": happened.type.name,
        "timestamp": _time(happened.at_us),
        "attempt": happened.attempt,
        "data": _data(happened),
    }
    if happened.task_id:
        out["taskExecutionId"] = happened.task_id
    if happened.artifact_id:
        out["artifactId"] = happened.artifact_id
    return out


def _data(happened: Event) -> Any:
    return orjson.Fragment(happened.data) if happened.data else {}


def _time(at_us: int) -> str:
    return fraction(at_us, "%Y-%m-%dT%H:%M:%S") + "Z"
