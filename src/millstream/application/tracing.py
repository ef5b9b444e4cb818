"""The trace of the call that is served, for what it sets off."""

from contextvars import ContextVar
from typing import Final

CALL_TRACE: Final[ContextVar[str]] = ContextVar("call_trace", default="")
"""The context of the call, see domain.tracing; "" where it belongs to no trace. A worker's stream has none: what it
reports goes on in the traces of its tasks."""
