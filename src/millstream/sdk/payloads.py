"""Large payloads: uploaded and downloaded piece by piece, whatever their size."""

import asyncio
import hashlib
import json
import mimetypes
import os
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias

from google.api.httpbody_pb2 import HttpBody
from google.protobuf.struct_pb2 import Struct

from millstream.sdk.calls import Area, Calls
from millstream.sdk.errors import PayloadError
from millstream.sdk.outbox import Fence
from millstream.sdk.payload import fill_struct, from_struct
from millstream.sdk.results import Artifact, when
from millstream.sdk.streams import resumed
from millstream.v1 import payload_service_pb2 as wire

PIECE_BYTES: Final = 512 * 1024
"""What is sent, and read from files, at once."""
LOADED_BYTES: Final = 16 * 1024 * 1024
"""JSON outside is put in the place of an artifact's payload up to this size."""
STRUCT_TYPE: Final = "application/x-protobuf; message=google.protobuf.Struct"
"""Of data that were sent with an artifact, and are kept outside of it because they are large."""
_JSON: Final = "application/json"

Source: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO | Iterable[bytes] | AsyncIterable[bytes]
"""A file's path, bytes, an open binary file, or an iterator of bytes."""


@dataclass(frozen=True, slots=True)
class StoredPayload:
    """A payload that the service keeps."""

    ref: str
    """For `payload_ref` of an artifact: "sha256:" and 64 hexadecimal digits."""
    size_bytes: int
    media_type: str
    existed: bool = False
    """Of an upload: the tenant had it before."""
    created_at: datetime | None = None


class Payloads(Area):
    """Uploads and downloads payloads."""

    def __init__(self, calls: Calls, lease: Fence | None = None) -> None:
        """`lease`: of the task for which a worker asks."""
        super().__init__(calls)
        self._lease: dict[str, Any] = {"task_id": lease.task_id, "attempt": lease.attempt} if lease else {}

    def of(self, lease: Fence) -> "Payloads":
        """The same for a task: what it was given may be downloaded with it."""
        return Payloads(self._calls, lease)

    async def upload(self, source: Source, *, media_type: str = "", payload_ref: str = "") -> StoredPayload:
        """Uploads a content, in pieces. One that is a path or bytes is sent again where the service goes away.

        Args:
            source: where the bytes come from; an iterator is read once.
            media_type: what they are. Default: by the name of the file, else application/octet-stream.
            payload_ref: the reference that they must have.

        Raises:
            OSError: the file cannot be read.
            ServiceError: the service refused it.
        """
        size_bytes, again = _size(source), isinstance(source, str | os.PathLike | bytes)
        first = wire.UploadPayloadRequest(payload_ref=payload_ref, size_bytes=size_bytes)
        first.content.content_type = media_type or _media_type(source)

        async def requests() -> AsyncIterator[wire.UploadPayloadRequest]:
            yield first
            async for piece in _pieces(source):
                yield wire.UploadPayloadRequest(content=HttpBody(data=piece))

        stored = await self._calls.send(
            "PayloadService/UploadPayload", requests, wire.UploadPayloadResponse, repeat=again
        )
        return StoredPayload(stored.payload_ref, int(stored.size_bytes), stored.media_type, stored.existed)

    async def get(self, payload_ref: str) -> StoredPayload:
        """Tells of a payload."""
        request = wire.GetPayloadRequest(payload_ref=payload_ref, **self._lease)
        found = await self._calls.read("PayloadService/GetPayload", request, wire.GetPayloadResponse)
        return StoredPayload(
            found.payload_ref, int(found.size_bytes), found.media_type, created_at=when(found, "created_at")
        )

    async def download(
        self, payload_ref: str, *, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """The bytes of a payload, piece by piece; a download that breaks off goes on where it was.

        Raises:
            PayloadError: all of it came, and it is not what the reference names.
            ServiceError: the service refused it, or stays away.
        """
        digest = hashlib.sha256()
        async with aclosing(self._bodies(payload_ref, offset, length)) as bodies:
            async for body in bodies:
                digest.update(body.data)
                if body.data:
                    yield body.data
        if not offset and length is None and f"sha256:{digest.hexdigest()}" != payload_ref:
            raise PayloadError(f"what came is not {payload_ref}; download it again")

    async def download_to(self, payload_ref: str, path: str | os.PathLike[str], *, resume: bool = False) -> int:
        """Downloads a payload into a file, and returns its size.

        It is written beside the file, as `<name>.part`, and put in its place when all of it is there.

        Args:
            payload_ref: the payload.
            path: the file, which is replaced.
            resume: go on with what is in `<name>.part` from an earlier try.

        Raises:
            OSError: the file cannot be written.
            PayloadError: what is in the file, and what came, are not the payload.
            ServiceError: the service refused it, or stays away.
        """
        target = Path(path)
        part = target.with_name(f"{target.name}.part")
        digest, size = hashlib.sha256(), 0
        if resume and part.exists():
            digest, size = await asyncio.to_thread(_digest_of, part)
        with part.open("ab" if size else "wb") as file:
            async with aclosing(self._bodies(payload_ref, size, None)) as bodies:
                async for body in bodies:
                    digest.update(body.data)
                    size += await asyncio.to_thread(file.write, body.data)
        if f"sha256:{digest.hexdigest()}" != payload_ref:
            part.unlink()
            raise PayloadError(f"what came is not {payload_ref}; download it again")
        part.replace(target)
        return size

    async def read(self, payload_ref: str, *, most: int = LOADED_BYTES) -> bytes:
        """All of a payload at once.

        Raises:
            PayloadError: it is larger than `most` bytes.
            ServiceError: the service refused it, or stays away.
        """
        data = bytearray()
        async with aclosing(self.download(payload_ref)) as pieces:
            async for piece in pieces:
                data += piece
                if len(data) > most:
                    raise PayloadError(f"{payload_ref} has over {most:,} bytes; download it to a file")
        return bytes(data)

    async def load(self, artifact: Artifact) -> Artifact:
        """The artifact with the data that it refers to in the place of its payload, where they are a JSON object of up
        to 16 MiB; else the artifact as it is.

        Raises:
            PayloadError: they have numbers that JSON on the wire cannot hold.
            ServiceError: the service refused it, or stays away.
        """
        found = Struct()
        if artifact.payload_ref and await self.fill(found, artifact.payload_ref, artifact.payload_bytes):
            return replace(artifact, payload=from_struct(found))
        return artifact

    async def fill(self, struct: Struct, payload_ref: str, size_bytes: int) -> bool:
        """Put what a payload of this size holds into an empty Struct; False where it is no JSON object, or too large to
        be held.

        Raises:
            PayloadError: it has numbers that JSON on the wire cannot hold.
            ServiceError: the service refused it, or stays away.
        """
        if size_bytes > LOADED_BYTES:
            return False
        data, media_type = bytearray(), ""
        async with aclosing(self._bodies(payload_ref, 0, None)) as bodies:
            async for body in bodies:
                media_type = media_type or body.content_type
                if media_type != STRUCT_TYPE and not _is_json(media_type):
                    return False
                data += body.data
        if media_type == STRUCT_TYPE:
            struct.MergeFromString(bytes(data))
            return True
        try:
            found = json.loads(data)
        except ValueError:
            return False
        if not isinstance(found, dict):
            return False
        fill_struct(struct, found)
        return True

    async def _bodies(self, payload_ref: str, offset: int, length: int | None) -> AsyncGenerator[HttpBody, None]:
        """The messages of a download, which goes on where it broke off."""
        end = None if length is None else offset + length

        def begin() -> AsyncIterator[HttpBody]:
            request = wire.DownloadPayloadRequest(payload_ref=payload_ref, offset=offset, **self._lease)
            if end is not None:
                request.length = end - offset
            return self._calls.stream("PayloadService/DownloadPayload", request, HttpBody)

        async for body in resumed(begin, retries=self._calls.retries):
            offset += len(body.data)
            yield body
            if offset == end:
                return


def _is_json(media_type: str) -> bool:
    kind = media_type.partition(";")[0].strip().lower()
    return kind == _JSON or (kind.startswith("application/") and kind.endswith("+json"))


def _media_type(source: Source) -> str:
    return mimetypes.guess_type(os.fspath(source))[0] or "" if isinstance(source, str | os.PathLike) else ""


def _size(source: Source) -> int | None:
    """How many bytes there are, where that is known."""
    if isinstance(source, bytes):
        return len(source)
    # Not of a pipe.
    return Path(source).stat().st_size if isinstance(source, str | os.PathLike) and Path(source).is_file() else None


async def _pieces(source: Source) -> AsyncIterator[bytes]:
    """The bytes of a source, in pieces of PIECE_BYTES at most."""
    if isinstance(source, str | os.PathLike):
        with await asyncio.to_thread(Path(source).open, "rb") as file:
            async for piece in _of_file(file):
                yield piece
    elif isinstance(source, bytes):
        for piece in _cut(source):
            yield piece
    elif isinstance(source, AsyncIterable):
        async for given in source:
            for piece in _cut(given):
                yield piece
    elif hasattr(source, "read"):
        async for piece in _of_file(source):
            yield piece
    else:
        for given in source:
            for piece in _cut(given):
                yield piece


async def _of_file(file: Any) -> AsyncIterator[bytes]:
    # A disk may be slow, and a pipe may have nothing for long.
    while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
        yield piece


def _cut(data: bytes) -> Iterable[bytes]:
    return (data[begin : begin + PIECE_BYTES] for begin in range(0, len(data), PIECE_BYTES))


def _digest_of(path: Path) -> tuple[Any, int]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
            size += len(piece)
    return digest, size
