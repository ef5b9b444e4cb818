"""Server-sent events: what a browser's EventSource reads."""

from collections.abc import Callable
from typing import Any, Final

import orjson
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.message import Message

EVENT_STREAM: Final = "text/event-stream"
RETRY: Final = b"retry: 1000\n\n"
"""When a browser comes back after the stream broke off, milliseconds."""


def event(name: str, cursor: str, value: dict[str, Any]) -> bytes:
    """An event whose id is the cursor behind it. JSON has no line breaks of its own."""
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (cursor.encode(), name.encode(), orjson.dumps(value))


def event_body(data: bytes) -> Message:
    """Events as a message of a stream."""
    message: Message = HttpBody(content_type=EVENT_STREAM, data=data)
    return message


def error_event(cursor: Callable[[], str]) -> Callable[[str], Message]:
    """Makes the event of an error, given as JSON, that ends a stream at the cursor."""
    return lambda error: event_body(b"id: %s\nevent: error\ndata: %s\n\n" % (cursor().encode(), error.encode()))
