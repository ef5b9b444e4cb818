"""Python's logging, sent to the service with the task that logs."""

import logging
import traceback
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, Protocol

from millstream.sdk.log_buffer import AttemptLog
from millstream.v1.task_log_pb2 import LogLine

TASK_LOGGERS: Final = ("millstream.task", "millstream.workflow")
"""Loggers of `ctx.log`, which are sent without asking."""
_TRACE_CHARS: Final = 16 * 1024
_KNOWN: Final = "_millstream_known"
_SENT: Final = "_millstream_sent"
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", _SENT, _KNOWN}


class Sink(Protocol):
    """Where the code that runs logs to."""

    def current(self) -> AttemptLog | None:
        """The log of the attempt that runs; None where nothing is to be said."""


CURRENT: Final[ContextVar[Sink | None]] = ContextVar("millstream_task_log", default=None)
"""The log of the task whose code runs, in its coroutines and its thread."""


class KnownFields(logging.LoggerAdapter[logging.Logger]):
    """Adds fields that the service knows of a line anyway, which are not sent, to those of the call, which are."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Merges its fields with those of the call."""
        known = self.extra or {}
        kwargs["extra"] = {**known, **(kwargs.get("extra") or {}), _KNOWN: known}
        return msg, kwargs


class TaskLogHandler(logging.Handler):
    """Sends records that are made while a task runs to the service, with the task; others it passes over.

        logging.getLogger().addHandler(TaskLogHandler())

    has all that a task's code and its libraries log, from the loggers' levels on. What `ctx.log` is told goes to the
    service without it. It never blocks, and a record that comes twice is sent once.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Sends a record."""
        sink = CURRENT.get()
        log = sink.current() if sink is not None else None
        if log is None or record.__dict__.get(_SENT):
            return
        try:
            record.__dict__[_SENT] = True
            log.write(level_of(record.levelno), record.getMessage(), _fields(record), record.created, record.name)
        except Exception:
            self.handleError(record)


def level_of(number: int) -> int:
    """The service's level of one of logging's."""
    if number >= logging.ERROR:
        return LogLine.ERROR
    if number >= logging.WARNING:
        return LogLine.WARN
    return LogLine.INFO if number >= logging.INFO else LogLine.DEBUG


def send_task_loggers() -> None:
    """Has what `ctx.log` is told sent, from INFO on unless the loggers say otherwise."""
    for name in TASK_LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(each, TaskLogHandler) for each in logger.handlers):
            logger.addHandler(TaskLogHandler())
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)


@contextmanager
def logging_to(sink: Sink) -> Iterator[None]:
    """What is logged in the block is that task's, wherever it runs."""
    token = CURRENT.set(sink)
    try:
        yield
    finally:
        CURRENT.reset(token)


def trace_of(error: BaseException) -> str:
    """The end of an exception's traceback."""
    return "".join(traceback.format_exception(error))[-_TRACE_CHARS:]


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    known: Mapping[str, Any] = vars(record).get(_KNOWN, {})
    found = {
        name: value
        for name, value in vars(record).items()
        if name not in _STANDARD and not (name in known and known[name] is value)
    }
    if record.exc_info and record.exc_info[1] is not None:
        found["exception"] = trace_of(record.exc_info[1])
    if record.stack_info:
        found["stack"] = record.stack_info[-_TRACE_CHARS:]
    return found
