"""Logs: one line an event, as JSON or for people, with the correlation id of the call it belongs to."""

import logging
import sys
from typing import Any, Literal, TextIO

import orjson
import structlog

LogFormat = Literal["json", "console"]


def configure(form: LogFormat = "json", level: str = "info", stream: TextIO | None = None) -> None:
    """Set up logging of the process; libraries that log through `logging` come out in the same form."""
    out = stream or sys.stderr
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render: list[Any] = (
        [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer(serializer=_dumps)]
        if form == "json"
        else [structlog.dev.ConsoleRenderer(colors=out.isatty())]
    )
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
        )
    )
    # Libraries are not as interesting as the service: their warnings are.
    logging.basicConfig(handlers=[handler], level=max(number, logging.WARNING), force=True)


def _dumps(event: Any, **_: Any) -> str:
    return orjson.dumps(event, default=repr).decode()
