"""What the transport needs of others beside use cases: who calls, and where its measurements go."""

from collections.abc import Mapping
from typing import Protocol

from millstream.domain.principals import Principal


class Authenticator(Protocol):
    """Tells who calls."""

    def authenticate(self, metadata: Mapping[str, str]) -> Principal:
        """The caller by the metadata of its call. Raises Unauthenticated or Forbidden."""
        ...


class RpcMeter(Protocol):
    """Measures the calls of one method."""

    def begin(self) -> None:
        """A call begins."""
        ...

    def end(self, code: str, seconds: float) -> None:
        """It ended with a code of the error table, or "OK", after so many seconds."""
        ...


class RpcMetrics(Protocol):
    """Measures calls."""

    def meter(self, rpc: str) -> RpcMeter:
        """The meter of a method, "ArtifactService/Publish" or "unknown"."""
        ...


class CallSpan(Protocol):
    """The span of a call.

    Attributes:
        traceparent: The context of what the call sets off, see domain.tracing.
    """

    traceparent: str

    def end(self, code: str) -> None:
        """The call ended with a code of the error table, or "OK"."""
        ...


class Tracer(Protocol):
    """Records calls in traces."""

    def begin(self, rpc: str, traceparent: str) -> CallSpan | None:
        """The span of a call that begins, below its caller's context or "" for none; None where it is not recorded."""
        ...


class Disconnect(Exception):
    """The other side of a stream went away, or must: the RPC ends without a word."""
