"""Logs: one line an event, as JSON or for people, with the correlation id of the call it belongs to."""

import logging
import sys
from typing import Any, Final, Literal, TextIO

import orjson
import structlog

LogFormat = Literal["json", "console"]

# Without the locals of each frame: they hold keys and payloads.
_TRACEBACKS: Final = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)


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
        [_TRACEBACKS, structlog.processors.JSONRenderer(serializer=_dumps)]
        if form == "json"
        else [structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=structlog.dev.plain_traceback)]
    )
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        # Modules hold their loggers from import on; what is configured later must reach them.
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
        )
    )
    # A header that is no text is refused all the same; the library would log its value, in full, as an error of ours.
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_ours)
    # Libraries are not as interesting as the service: their warnings are.
    logging.basicConfig(handlers=[handler], level=max(number, logging.WARNING), force=True)


def _is_ours(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], UnicodeDecodeError))


def _dumps(event: Any, **_: Any) -> str:
    return orjson.dumps(event, default=repr).decode()
