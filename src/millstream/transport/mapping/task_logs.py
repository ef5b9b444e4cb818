"""What tasks log: batches of workers, and lines as they are read."""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final

from google.api.httpbody_pb2 import HttpBody
from google.protobuf.message import DecodeError

from millstream.application.log_topics import SentLine
from millstream.application.paging import PageRequest
from millstream.application.views.task_logs import LogEntry, LogQuery
from millstream.domain.errors import BadRequest, MillstreamError, ValidationFailed
from millstream.domain.struct_wire import decode_struct
from millstream.domain.task_logs import LineLevel, LogAck, LogBatch, LogLine
from millstream.transport import validation
from millstream.transport.mapping.errors import body
from millstream.transport.mapping.events import EVENT_STREAM, event
from millstream.transport.mapping.lines import NDJSON, fraction
from millstream.transport.mapping.lines import line as line_of
from millstream.transport.mapping.pages import page_of
from millstream.transport.mapping.times import put, us
from millstream.transport.payloads import PayloadRules
from millstream.wire.v1 import execution_service_pb2, task_log_pb2
from millstream.wire.v1 import task_log_service_pb2 as wire

LINE_BYTES: Final = 32 * 1024
"""Of a line's message, and of its fields: as the contract says."""
LINES_MOST: Final = 1000
DEFAULT_LINES: Final = 100
_LOGGER_CHARS: Final = 128
_MOST: Final = 2_000_000_000
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch
_INFO: Final = int(LineLevel.INFO)
_FIELDS: Final = PayloadRules(LINE_BYTES)


_TASK_ID: Final = bytes((task_log_pb2.LogBatch.TASK_ID_FIELD_NUMBER << 3 | 2, 36))
"""The field of a task's id, and the length of one."""


def reader_of(now_us: Callable[[], int]) -> Callable[[bytes], LogBatch]:
    """Reads batches; `now_us` is the time of lines that say none."""
    return lambda raw: batch_of(raw, now_us)


def by_task(batches: Iterable[bytes]) -> list[tuple[str, bytes]]:
    """Batches, each behind the task that it is of, which a sender that writes fields in their order has in front: what
    does not begin so, as the wire form allows, is taken for that of one more task."""
    return [(raw[2:38].decode("latin-1").lower() if raw[:2] == _TASK_ID else "", raw) for raw in batches]


def batch_of(raw: bytes, now_us: Callable[[], int]) -> LogBatch:
    """A batch as a worker sends it; one that breaks a rule has its fault in place of its lines. Its rules are checked
    here, not by the validator: there are many lines."""
    try:
        message = task_log_pb2.LogBatch.FromString(raw)
    except DecodeError:
        return LogBatch("", 0, fault=BadRequest("a batch of lines is malformed, or has text that is not UTF-8"))
    task_id, attempt = message.task_id.lower(), message.attempt
    try:
        if not (_UUID(task_id) and 1 <= attempt <= _MOST):
            task_id, attempt = "", 0
            validation.check(message)
        if not 1 <= len(message.lines) <= LINES_MOST or not 1 <= message.offset <= _MOST:
            validation.check(message)
        lines = [_line(line, f"lines[{index}].", now_us) for index, line in enumerate(message.lines)]
        return LogBatch(task_id, attempt, message.offset, lines)
    except MillstreamError as error:
        return LogBatch(task_id, attempt, message.offset, fault=error)


def _line(line: task_log_pb2.LogLine, prefix: str, now_us: Callable[[], int]) -> LogLine:
    message, logger, fields = line.message, line.logger, line.fields
    if len(message) > LINE_BYTES or (not message.isascii() and len(message.encode()) > LINE_BYTES):
        raise _too_long(f"{prefix}message", f"{LINE_BYTES:,} bytes")
    if len(logger) > _LOGGER_CHARS:
        raise _too_long(f"{prefix}logger", f"{_LOGGER_CHARS} characters")
    if fields:
        _FIELDS.check_struct(fields, f"{prefix}fields", trusted=False)
    if "\0" in message:
        message = message.replace("\0", "\ufffd")
    at_us = us(line.time, f"{prefix}time") if line.HasField("time") else now_us()
    level = line.level if 1 <= line.level <= LineLevel.ERROR else _INFO
    return LogLine(level, message, at_us, logger.replace("\0", "\ufffd"), fields, min(line.cut, _MOST))


def _too_long(field: str, limit: str) -> ValidationFailed:
    return ValidationFailed.of(field, f"must have at most {limit}; cut it, or send it as several lines", "OUT_OF_RANGE")


def ends_of(reports: Any) -> list[tuple[str, int, int]]:
    """Where attempts have ended to log: (task, attempt, number of the last line), of completions or failures."""
    return [
        (each.task_id.lower(), each.attempt, min(each.log_offset, _MOST))
        for each in reports
        if each.HasField("log_offset")
    ]


def put_ack(out: task_log_pb2.LogAck, ack: LogAck, correlation_id: str) -> None:
    """Write how far lines are stored."""
    out.task_id, out.attempt, out.offset, out.again = ack.task_id, ack.attempt, ack.offset, ack.again
    if ack.error is not None:
        out.error.CopyFrom(body(ack.error, correlation_id))


def levels_of(text: str) -> tuple[int, ...]:
    """The levels that a list of their names asks for. Raises ValidationFailed."""
    names = [name for name in text.upper().split(",") if name]
    for name in names:
        if name not in LineLevel.__members__:
            known = ", ".join(LineLevel.__members__)
            raise ValidationFailed.of("level", f"{name!r} is none; give one or some of {known}, with commas between")
    return tuple(int(LineLevel[name]) for name in dict.fromkeys(names))


def query_of(request: wire.ListTaskLogsRequest | wire.ListRunLogsRequest) -> LogQuery:
    """Which lines a request asks for."""
    return LogQuery(
        run_id=request.run_id.lower() if isinstance(request, wire.ListRunLogsRequest) else "",
        task_id=request.task_id.lower(),
        attempt=min(request.attempt, _MOST),
        levels=levels_of(request.level),
        text=request.text,
        since_us=us(request.since, "since") if request.HasField("since") else 0,
        until_us=us(request.until, "until") if request.HasField("until") else 0,
        newest_first=request.newest_first,
    )


def log_page_of(request: Any) -> PageRequest:
    """The page that a list of lines asks for."""
    page = page_of(request)
    return page if page.page_size else replace(page, page_size=DEFAULT_LINES)


def put_entry(out: task_log_pb2.LogEntry, entry: LogEntry) -> None:
    """Write a line."""
    line = entry.line
    out.sequence, out.run_id, out.task_id = entry.seq, entry.run_id, entry.task_id
    out.attempt, out.offset, out.level = entry.attempt, entry.offset, line.level  # type: ignore[assignment]  # its number
    out.message, out.logger, out.cut = line.message, line.logger, line.cut
    out.fields = line.fields
    put(out.timestamp, line.at_us)


def put_line(out: execution_service_pb2.ListWorkflowTaskLogsResponse.Line, entry: LogEntry) -> None:
    """Write a line below the path of a tenant."""
    line = entry.line
    out.id = f"{entry.task_id}-{entry.attempt}-{entry.offset}"
    out.level, out.message = line.level, line.message  # type: ignore[assignment]  # its number
    put(out.timestamp, line.at_us)


def watch_query_of(request: Any) -> LogQuery:
    """Which lines a watch asks for, of a task or of a run."""
    of_task = hasattr(request, "task_id")
    return LogQuery(
        run_id="" if of_task else request.run_id.lower(),
        task_id=request.task_id.lower() if of_task else "",
        attempt=min(request.attempt, _MOST) if of_task else 0,
        levels=levels_of(request.level),
        text=request.text,
    )


def entry_object(entry: LogEntry) -> dict[str, Any]:
    """A line as the JSON of REST has it."""
    line = entry.line
    return {
        "sequence": entry.seq,
        "run_id": entry.run_id,
        "task_id": entry.task_id,
        "attempt": entry.attempt,
        "offset": entry.offset,
        "level": LineLevel(line.level).name,
        "message": line.message,
        "fields": decode_struct(line.fields),
        "timestamp": fraction(line.at_us, "%Y-%m-%dT%H:%M:%S") + "Z",
        "logger": line.logger,
        "cut": line.cut,
    }


def message(sent: SentLine) -> bytes:
    """As a message; those of both watches are alike. Encoded once for all readers, as the others are."""
    found = sent.forms.get(message)
    if found is None:
        out = wire.WatchTaskLogsResponse(cursor=sent.cursor, ended=sent.ended)
        if sent.entry is not None:
            put_entry(out.entry, sent.entry)
        found = sent.forms[message] = out.SerializeToString()
    return found


def sse(sent: SentLine) -> bytes:
    """As a server-sent event, in a message of text."""
    found = sent.forms.get(sse)
    if found is None:
        found = sent.forms[sse] = HttpBody(content_type=EVENT_STREAM, data=_event(sent)).SerializeToString()
    return found


def ndjson(sent: SentLine) -> bytes:
    """As a line of JSON, in a message of text."""
    found = sent.forms.get(ndjson)
    if found is None:
        found = sent.forms[ndjson] = HttpBody(content_type=NDJSON, data=_line_of(sent)).SerializeToString()
    return found


def _event(sent: SentLine) -> bytes:
    if sent.entry is not None:
        return event("log", sent.cursor, entry_object(sent.entry))
    return event("end" if sent.ended else "heartbeat", sent.cursor, {})


def _line_of(sent: SentLine) -> bytes:
    if sent.entry is not None:
        return line_of({**entry_object(sent.entry), "cursor": sent.cursor})
    return line_of({"end": True, "cursor": sent.cursor} if sent.ended else {"cursor": sent.cursor})
