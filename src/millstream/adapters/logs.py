"""Logs: one line an event, as JSON or for people, with the correlation id of the call it belongs to."""

import logging
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Final, Literal, TextIO

import orjson
import structlog

LogFormat = Literal["json", "console"]

ALL: Final = "millstream"
"""The logger above all of the service."""
_NUMBERS: Final = {
    name: logging.getLevelNamesMapping()[name.upper()] for name in ("debug", "info", "warning", "error", "critical")
} | {"exception": logging.ERROR}

# Without the locals of each frame: they hold keys and payloads.
_TRACEBACKS: Final = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)


class _Levels:
    """From which level on what is logged: the configured one, and what was set since, by logger."""

    def __init__(self) -> None:
        self.default: int | None = None
        self._set: dict[str, int] = {}
        self._found: dict[str, int] = {}

    def configured(self, default: int) -> None:
        """The settings say from which level on; nothing else was said yet."""
        self.default = default
        self.hold({})

    def hold(self, levels: Mapping[str, int]) -> None:
        """These levels hold from now on, in place of those that were set before."""
        base = levels.get(ALL, self.default or logging.INFO)
        for name in self._set.keys() - levels.keys() - {ALL}:
            logging.getLogger(name).setLevel(logging.NOTSET)
        self._set, self._found = dict(levels), {}
        # Libraries are not as interesting as the service: their warnings are.
        logging.getLogger().setLevel(max(base, logging.WARNING))
        logging.getLogger(ALL).setLevel(base)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        # What no logger lets through costs a call that does nothing.
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(min([base, *levels.values()])))

    def of(self, name: str) -> int:
        """The level of a logger: its own, or that of the nearest above it."""
        found = self._found.get(name)
        if found is None:
            found = self._found[name] = logging.getLogger(name or ALL).getEffectiveLevel()
        return found


_LEVELS: Final = _Levels()


class _Named(structlog.WriteLogger):
    """Writes lines for the logger of a name."""

    def __init__(self, name: str, out: TextIO) -> None:
        super().__init__(out)
        self.name = name


def _by_level(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Drop what its logger does not let through."""
    if _NUMBERS.get(method, logging.CRITICAL) < _LEVELS.of(logger.name):
        raise structlog.DropEvent
    event["logger"] = logger.name
    return event


def apply(levels: Mapping[str, str]) -> None:
    """Log from these levels on, by logger, "" for all of the service, in place of those that were set before; what has
    none logs as configured. Nothing happens in a process whose logs are not `configure`d."""
    if _LEVELS.default is not None:
        _LEVELS.hold({name or ALL: _NUMBERS[level] for name, level in levels.items()})


def configure(form: LogFormat = "json", level: str = "info", stream: TextIO | None = None) -> None:
    """Set up logging of the process; libraries that log through `logging` come out in the same form."""
    out = stream or sys.stderr
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
        processors=[_by_level, *shared, *render],
        logger_factory=lambda name="millstream": _Named(name, out),
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
    logging.basicConfig(handlers=[handler], force=True)
    _LEVELS.configured(_NUMBERS[level])


def _is_ours(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], UnicodeDecodeError))


def _dumps(event: Any, **_: Any) -> str:
    return orjson.dumps(event, default=repr).decode()
