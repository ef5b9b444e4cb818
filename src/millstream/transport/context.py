"""What a handler sees of its call: ours, not grpc.aio's, so that the door can be replaced."""

import hmac
import re
from collections.abc import Callable, Mapping
from typing import Final

import uuid_utils
from google.protobuf.message import Message

from millstream.application.views.idempotency import Key
from millstream.domain.principals import Principal
from millstream.domain.tracing import received

Metadata = Mapping[str, str]
"""Request metadata by lower-case name; of several values the last. Binary ones are left out."""

Remaining = Callable[[], float | None]
"""Seconds until the caller's deadline; None: it has none."""

_LABEL: Final = re.compile(r"[A-Za-z0-9._-]{1,128}").fullmatch
_NOBODY: Final = Principal(name="", tenant="", permissions=frozenset())


class Context:
    """One call.

    Attributes:
        rpc: Name of the method, such as "Publish".
        metadata: What the caller sent beside the request.
        principal: Who calls; without permissions where the method is public.
        correlation_id: Label of this call in logs and errors.
        rest: The call came over REST.
        trusted: The proxy has already checked the payloads.
        headers: What goes with the answer beside the correlation id: headers of REST, metadata of gRPC.
        key: The idempotency key of the call, where its method takes one.
        cursor: Of a stream: what its caller resumes with after what it was sent, "" before anything was.
        trace: The call's context in its trace, see domain.tracing, or "".
        last_words: Of a stream of HttpBody: its last message, of the error that ended it as JSON. Over HTTP/1.1 the
            status has gone, and the end of the body looks like a good one.
    """

    __slots__ = (
        "_remaining",
        "correlation_id",
        "cursor",
        "headers",
        "key",
        "last_words",
        "metadata",
        "principal",
        "rest",
        "rpc",
        "trace",
        "trusted",
    )

    def __init__(self, rpc: str, metadata: Metadata, proxy_token: bytes, remaining: Remaining) -> None:
        self.rpc = rpc
        self.metadata = metadata
        self.principal = _NOBODY
        self.rest = "x-envoy-original-path" in metadata
        self.correlation_id = correlation_id(metadata)
        self.trusted = is_trusted(metadata, proxy_token)
        self.headers: dict[str, str] = {}
        self.key: Key | None = None
        self.cursor = ""
        self.trace = traceparent(metadata)
        self.last_words: Callable[[str], Message] | None = None
        self._remaining = remaining

    @property
    def remaining_s(self) -> float | None:
        """Seconds that the caller still waits, at least 0; None: no deadline."""
        left = self._remaining()
        return None if left is None else max(left, 0.0)

    def status(self, http: int) -> None:
        """Answer REST with another status than the method's own."""
        if self.rest:
            self.headers["x-http-status"] = str(http)

    def replayed(self, replayed: bool) -> None:
        """Say whether the answer is that of an earlier call with the same key."""
        if replayed:
            self.headers["idempotency-replayed"] = "true"


def correlation_id(metadata: Metadata) -> str:
    """The caller's label where it is a sane one, else a new one."""
    given = metadata.get("x-correlation-id", "")
    return given if _LABEL(given) else str(uuid_utils.uuid7())


def traceparent(metadata: Metadata) -> str:
    """The context of the caller's span, or ""."""
    given = metadata.get("traceparent", "")
    return received(given) if given else ""


def is_trusted(metadata: Metadata, proxy_token: bytes) -> bool:
    """Whether the call carries the proxy's token. Never where there is no token."""
    given = metadata.get("x-millstream-proxy")
    return bool(given and proxy_token) and hmac.compare_digest(str(given).encode(), proxy_token)
