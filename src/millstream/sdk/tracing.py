"""W3C trace context of what a program calls, and of the tasks that a worker has.

OpenTelemetry is used where the program has imported it: to import it takes a tenth of a second, which nobody pays for
nothing. Without it a task's context still reaches what its handler calls.
"""

import sys
from contextvars import ContextVar
from typing import Final

_TASK: Final[ContextVar[str]] = ContextVar("millstream_traceparent", default="")


def enter(traceparent: str) -> None:
    """What this asyncio task does from here on belongs to a task's attempt, by its traceparent; "" for no trace."""
    if not traceparent:
        return
    _TASK.set(traceparent)
    if _in_use():
        from opentelemetry import context, propagate

        context.attach(propagate.extract({"traceparent": traceparent}))


def headers() -> tuple[tuple[str, str], ...]:
    """What a call says of its trace: the current span of OpenTelemetry, or the task that a handler is at."""
    if _in_use():
        from opentelemetry import propagate, trace

        if trace.get_current_span().get_span_context().is_valid:
            carrier: dict[str, str] = {}
            propagate.inject(carrier)
            return tuple(carrier.items())
    of_task = _TASK.get()
    return (("traceparent", of_task),) if of_task else ()


def _in_use() -> bool:
    return "opentelemetry.trace" in sys.modules
