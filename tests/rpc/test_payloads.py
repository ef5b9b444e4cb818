"""Large payloads over the wire: pieces up, chunks down, and what REST is told in headers."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.api.httpbody_pb2 import HttpBody
from tests.rpc.conftest import Answer, Service
from tests.rpc.fakes import AT_US, ID

from millstream.application.payloads import Expected
from millstream.application.views.leases import LeaseRef
from millstream.application.views.payloads import STRUCT_TYPE
from millstream.domain.errors import NotFound, PayloadTooLarge
from millstream.transport.services import payloads as service_module
from millstream.v1.payload_service_pb2 import (
    DownloadPayloadRequest,
    GetPayloadRequest,
    GetPayloadResponse,
    UploadPayloadRequest,
    UploadPayloadResponse,
)

REF = "sha256:" + "ab" * 32
REST = {"x_envoy_original_path": "/api/v1/payloads"}


def piece(data: bytes, content_type: str = "", **fields: Any) -> bytes:
    """A message of an upload."""
    body = HttpBody(data=data, content_type=content_type)
    return UploadPayloadRequest(content=body, **fields).SerializeToString()


async def upload(service: Service, *pieces: bytes, key: str = "root", **metadata: str) -> Answer:
    """UploadPayload/UploadPayload of these messages."""

    async def sent() -> AsyncIterator[bytes]:
        for each in pieces:
            yield each

    method: Any = service.channel.stream_unary("/millstream.v1.PayloadService/UploadPayload")
    return await _answer(method(sent(), metadata=_metadata(key, metadata), timeout=10))


async def download(service: Service, key: str = "root", metadata: dict[str, str] | None = None, **fields: Any) -> Any:
    """PayloadService/DownloadPayload: its messages and its headers, or its error."""
    method: Any = service.channel.unary_stream("/millstream.v1.PayloadService/DownloadPayload")
    request = DownloadPayloadRequest(**({"payload_ref": REF} | fields)).SerializeToString()
    call = method(request, metadata=_metadata(key, metadata or {}), timeout=10)
    try:
        bodies = [HttpBody.FromString(raw) async for raw in call]
    except grpc.aio.AioRpcError as error:
        return await _refusal(error)
    return bodies, {str(name): value for name, value in await call.initial_metadata()}


def _metadata(key: str, more: dict[str, str]) -> tuple[tuple[str, str], ...]:
    named = [(name.replace("_", "-"), value) for name, value in more.items()]
    return (("authorization", f"Bearer {key}"), *named)


async def _answer(call: Any) -> Answer:
    try:
        body = await call
    except grpc.aio.AioRpcError as error:
        return await _refusal(error)
    return Answer(body, None, {str(name): value for name, value in await call.trailing_metadata()})


async def _refusal(error: grpc.aio.AioRpcError) -> Answer:
    parts = (*(error.initial_metadata() or ()), *(error.trailing_metadata() or ()))
    return Answer(b"", error, {str(name): value for name, value in parts})


async def test_pieces_become_one_content(service: Service) -> None:
    """What the first message says of it reaches the use case, and the answer says what was stored."""
    answer = await upload(
        service, piece(b"he", "text/csv", payload_ref=REF, size_bytes=5), piece(b"l", "text/html"), piece(b"lo")
    )
    assert answer.error is None, answer.error
    assert UploadPayloadResponse.FromString(answer.body) == UploadPayloadResponse(
        payload_ref=REF, size_bytes=5, media_type="text/csv"
    )
    fake = service.fakes.payloads
    assert fake.content == b"hello"
    assert fake.expected == Expected(b"\xab" * 32, 5)
    assert fake.calls[0][0] == "transfer", "it was let in before it had a place"
    assert fake.calls[1][1].name == "root"


async def test_an_upload_without_a_message_is_an_empty_payload(service: Service) -> None:
    answer = await upload(service)
    assert UploadPayloadResponse.FromString(answer.body).media_type == "application/octet-stream"
    assert service.fakes.payloads.content == b""
    assert service.fakes.payloads.expected == Expected()


async def test_rest_announces_its_length_and_is_answered_201(service: Service) -> None:
    answer = await upload(service, piece(b"hello"), x_upload_bytes="5", **REST)
    assert answer.metadata["x-http-status"] == "201"
    assert service.fakes.payloads.expected == Expected(b"", 5)
    await upload(service, piece(b"hello"), x_upload_bytes="5")
    assert service.fakes.payloads.expected == Expected(), "a native caller's header was believed"


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (piece(b"", "no media type"), "content.content_type"),
        (piece(b"", STRUCT_TYPE), "content.content_type"),
        (piece(b"", "text/" + "x" * 300), "content.content_type"),
        (piece(b"", "text/plain\r\nx: y"), "content.content_type"),
        (piece(b"", payload_ref="sha256:xyz"), "payload_ref"),
        (piece(b"", size_bytes=-1), "size_bytes"),
        (piece(b"", size_bytes=1.5), "size_bytes"),
    ],
)
async def test_a_bad_first_message_names_its_field(service: Service, message: bytes, field: str) -> None:
    answer = await upload(service, message, **REST)
    assert answer.metadata["x-http-status"] == "422"
    assert f'"field":"{field}"' in answer.metadata["x-error-body"]


async def test_a_piece_over_the_limit_of_a_request_is_refused(service: Service) -> None:
    answer = await upload(service, piece(b"x" * (4 * 1024 * 1024 + 1)), **REST)
    assert answer.metadata["x-http-status"] == "413"
    assert "4,194,304" in answer.metadata["x-error-body"]


async def test_an_upload_that_pauses_too_long_ends(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its place is free again: a read that never ends is not waited for."""
    monkeypatch.setattr(service_module, "PAUSE_S", 0.01)

    async def sent() -> AsyncIterator[bytes]:
        yield piece(b"he")
        await asyncio.Event().wait()

    method: Any = service.channel.stream_unary("/millstream.v1.PayloadService/UploadPayload")
    answer = await _answer(method(sent(), metadata=_metadata("root", {}), timeout=30))
    assert answer.error is not None
    assert answer.error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "no piece" in str(answer.error.details())
    assert [call[0] for call in service.fakes.payloads.calls] == ["transfer"], "what was not finished was stored"


async def test_what_the_use_case_refuses_is_told_in_the_midst(service: Service) -> None:
    service.fakes.payloads.error = PayloadTooLarge("content: has over 5 bytes")
    answer = await upload(service, piece(b"hello!"), **REST)
    assert answer.metadata["x-http-status"] == "413"


async def test_who_may_not_publish_uploads_nothing(service: Service) -> None:
    """Refused before a piece is sent: one that came too late gRPC's client would take for an error of its own."""

    async def sent() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    method: Any = service.channel.stream_unary("/millstream.v1.PayloadService/UploadPayload")
    answer = await _answer(method(sent(), metadata=_metadata("reader", REST), timeout=30))
    assert answer.metadata["x-http-status"] == "403"
    assert service.fakes.payloads.calls == []


async def test_a_payload_is_told_of(service: Service) -> None:
    request = GetPayloadRequest(payload_ref=REF, task_id=ID.upper(), attempt=2)
    answer = await service.call("PayloadService/GetPayload", request.SerializeToString(), key="reader")
    found = GetPayloadResponse.FromString(answer.body)
    assert (found.payload_ref, found.size_bytes, found.media_type) == (REF, 5, "text/plain")
    assert found.created_at.ToMicroseconds() == AT_US
    assert service.fakes.payloads.calls[0][2:] == (b"\xab" * 32, LeaseRef(ID, 2))


async def test_chunks_come_down_one_by_one(service: Service) -> None:
    """PayloadService/DownloadPayload"""
    bodies, headers = await download(service)
    assert [body.data for body in bodies] == [b"hel", b"lo"]
    assert {body.content_type for body in bodies} == {"text/plain"}
    assert "etag" not in headers
    assert [call[0] for call in service.fakes.payloads.calls] == ["transfer", "get", "read"]
    bodies, _ = await download(service, offset=1, length=3)
    assert b"".join(body.data for body in bodies) == b"ell"


async def test_rest_is_told_the_size_and_a_page_cannot_be_made_of_it(service: Service) -> None:
    _, headers = await download(service, metadata=REST)
    assert headers["x-payload-bytes"] == "5"
    assert headers["etag"] == f'"{REF}"'
    assert headers["content-disposition"] == "attachment"
    assert headers["x-content-type-options"] == "nosniff"
    assert "x-http-status" not in headers


async def test_head_of_rest_is_told_all_and_sent_nothing(service: Service) -> None:
    bodies, headers = await download(service, metadata=REST | {"x-millstream-head": "1", "range": "bytes=1-"})
    assert [(body.data, body.content_type) for body in bodies] == [(b"", "text/plain")]
    assert headers["x-payload-bytes"] == "5"
    assert "content-range" not in headers


@pytest.mark.parametrize(
    ("asked", "sent", "told"),
    [
        ("bytes=2-", b"llo", "bytes 2-4/5"),
        ("bytes=1-3", b"ell", "bytes 1-3/5"),
        ("bytes=4-99", b"o", "bytes 4-4/5"),
        ("bytes=3-1", b"hello", None),
        ("bytes=5-", b"hello", None),
        ("bytes=-2", b"hello", None),
        ("lines=1-2", b"hello", None),
    ],
)
async def test_a_range_of_rest_is_a_part(service: Service, asked: str, sent: bytes, told: str | None) -> None:
    """What is no range of ours, or of the content, is the whole, with the status that says so."""
    bodies, headers = await download(service, metadata=REST | {"range": asked})
    assert b"".join(body.data for body in bodies) == sent
    assert headers.get("content-range") == told
    assert headers.get("x-http-status") == ("206" if told else None)
    bodies, headers = await download(service, metadata={"range": asked})
    assert b"".join(body.data for body in bodies) == b"hello", "gRPC has an offset of its own"


async def test_a_payload_that_is_not_there_is_an_error_and_no_stream(service: Service) -> None:
    service.fakes.payloads.error = NotFound("there is no payload")
    answer = await download(service, metadata=REST)
    assert answer.metadata["x-http-status"] == "404"
    answer = await download(service, metadata=REST, payload_ref="sha256:" + "AB" * 32)
    assert answer.metadata["x-http-status"] == "422"
    answer = await download(service, metadata=REST, offset=0.5)
    assert answer.metadata["x-http-status"] == "404"
    service.fakes.payloads.error = None
    answer = await download(service, metadata=REST, offset=0.5)
    assert '"field":"offset"' in answer.metadata["x-error-body"]
