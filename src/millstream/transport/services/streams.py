"""StreamService: streams over REST, as server-sent events or as lines."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from google.protobuf.message import Message

from millstream.application.views.artifacts import Sent
from millstream.domain.errors import ValidationFailed
from millstream.transport.context import Context
from millstream.transport.mapping.artifacts import watched_of
from millstream.transport.mapping.events import RETRY, error_event, event, event_body
from millstream.transport.mapping.lines import NDJSON, artifact_object, body, error_line, sent_line
from millstream.transport.use_cases import Watching
from millstream.wire.v1 import stream_service_pb2 as wire

LAST_EVENT = "last-event-id"
CURSOR_MOST = 40_000
"""As the contract bounds the parameter."""


class StreamService:
    """Streams as text."""

    def __init__(self, watching: Watching) -> None:
        self._watching = watching

    async def stream_artifacts(
        self, request: wire.StreamArtifactsRequest, context: Context
    ) -> AsyncGenerator[Message, None]:
        """Send artifacts as they are stored."""
        cursor = _resumed(request.cursor, context)
        as_lines = NDJSON in context.metadata.get("accept", "")
        context.cursor = cursor
        context.headers["cache-control"] = "no-store"
        context.last_words = (error_line if as_lines else error_event)(lambda: context.cursor)
        watch = self._watching.watch(context.principal, watched_of(request), cursor)
        began = False
        async with aclosing(watch):
            async for sent in watch:
                context.cursor = sent.cursor
                if as_lines:
                    yield body(sent_line(sent))
                else:
                    yield event_body(_event(sent) if began else RETRY + _event(sent))
                began = True


def _resumed(cursor: str, context: Context) -> str:
    """Where to go on: a page that began with a cursor resumes by the header, and the browser sends both."""
    last = context.metadata.get(LAST_EVENT, "")
    if len(last) > CURSOR_MOST:
        raise ValidationFailed.of(LAST_EVENT, f"has over {CURSOR_MOST:,} characters", "OUT_OF_RANGE")
    return last or cursor


def _event(sent: Sent) -> bytes:
    if sent.artifact is None:
        return event("heartbeat", sent.cursor, {})
    return event("artifact", sent.cursor, artifact_object(sent.artifact))
