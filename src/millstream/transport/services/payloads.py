"""PayloadService: large payloads, up and down as streams."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final, cast

import grpc
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.message import Message

from millstream.application.payloads import Expected
from millstream.application.views.payloads import StoredPayload
from millstream.domain.errors import TimedOut, ValidationFailed
from millstream.transport.context import Context
from millstream.transport.mapping import payloads as mapping
from millstream.transport.pipeline import Stream
from millstream.transport.reading import Reader
from millstream.transport.use_cases import Payloads
from millstream.wire.v1 import payload_service_pb2 as wire

PAUSE_S: Final = 60.0
"""After so long without a piece an upload ends."""
_RANGE = re.compile(r"bytes=(\d{1,15})-(\d{0,15})").fullmatch


class PayloadService:
    """Payloads over the wire."""

    def __init__(self, payloads: Payloads) -> None:
        self._payloads = payloads

    async def upload_payload(self, stream: Stream, context: Context, reader: Reader) -> Message:
        """Store what comes."""
        with self._payloads.transfer(context.principal):
            first = await self._next(stream, context, reader) or wire.UploadPayloadRequest()
            uploaded = await self._payloads.upload(
                context.principal,
                self._pieces(first, stream, context, reader),
                mapping.media_type_of(first.content.content_type),
                Expected(mapping.digest_of(first.payload_ref), _announced(first, context)),
            )
        return mapping.put_uploaded(wire.UploadPayloadResponse(), uploaded)

    async def _pieces(
        self, message: wire.UploadPayloadRequest | None, stream: Stream, context: Context, reader: Reader
    ) -> AsyncIterator[bytes]:
        while message is not None:
            yield message.content.data
            message = await self._next(stream, context, reader)

    async def _next(self, stream: Stream, context: Context, reader: Reader) -> wire.UploadPayloadRequest | None:
        """The next message; None at the end. Raises TimedOut: the call is over then, so that its read may be broken."""
        try:
            async with asyncio.timeout(PAUSE_S):
                raw = await stream.read()
        except TimeoutError:
            raise TimedOut(f"no piece of the upload came for {PAUSE_S:g} s; start it again") from None
        if raw is grpc.aio.EOF:
            return None
        return cast(wire.UploadPayloadRequest, reader.read(raw, context.trusted))

    async def get_payload(self, request: wire.GetPayloadRequest, context: Context) -> Message:
        """Tell of a payload."""
        digest = mapping.digest_of(request.payload_ref)
        found = await self._payloads.get(context.principal, digest, mapping.lease_of(request))
        return mapping.put_payload(wire.GetPayloadResponse(), request.payload_ref, found)

    async def download_payload(
        self, request: wire.DownloadPayloadRequest, context: Context
    ) -> AsyncGenerator[Message, None]:
        """Give a payload, or a part of it."""
        with self._payloads.transfer(context.principal):
            digest = mapping.digest_of(request.payload_ref)
            found = await self._payloads.get(context.principal, digest, mapping.lease_of(request))
            offset = _whole(request.offset, "offset")
            length = _whole(request.length, "length") if request.HasField("length") else None
            if context.rest:
                offset, length = _told(context, request.payload_ref, found, offset, length)
            empty = True
            async for chunk in self._payloads.read(found, offset, length):
                empty = False
                yield HttpBody(content_type=found.media_type, data=chunk)
            if empty:
                # Without a message REST would have no headers.
                yield HttpBody(content_type=found.media_type)


def _announced(first: wire.UploadPayloadRequest, context: Context) -> int | None:
    """How many bytes were announced. The proxy tells the length of a body that has one."""
    if first.HasField("size_bytes"):
        return _whole(first.size_bytes, "size_bytes")
    length = context.metadata.get("x-upload-bytes", "") if context.rest else ""
    return int(length) if length.isdecimal() and len(length) < 16 else None


def _told(context: Context, ref: str, found: StoredPayload, offset: int, length: int | None) -> tuple[int, int | None]:
    """Say in the headers of REST what is sent, and what to send of the content."""
    headers = context.headers
    headers |= {
        "etag": f'"{ref}"',
        "x-payload-bytes": str(found.size_bytes),
        "accept-ranges": "bytes",
        # It is a user's, whatever it claims to be: no page of this origin.
        "content-disposition": "attachment",
        "x-content-type-options": "nosniff",
    }
    if "x-millstream-head" in context.metadata:
        return found.size_bytes, None
    asked = _RANGE(context.metadata.get("range", ""))
    if asked is None or offset or length is not None:
        return offset, length
    offset = int(asked[1])
    last = min(int(asked[2] or found.size_bytes), found.size_bytes - 1)
    if last < offset:
        # Nothing of it is there, or it makes no sense: the whole, as if no range had been asked for.
        return 0, None
    headers["x-http-status"] = "206"
    headers["content-range"] = f"bytes {offset}-{last}/{found.size_bytes}"
    return offset, last - offset + 1


def _whole(value: float, field: str) -> int:
    if value != int(value):
        raise ValidationFailed.of(field, "must be a whole number of bytes")
    return int(value)
