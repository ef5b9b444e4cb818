"""Answers that are streams: in order, bounded, ended by the caller, by an error or by a drain."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
import pytest
from google.api.httpbody_pb2 import HttpBody
from google.protobuf import json_format
from tests.rpc.answers import status_of
from tests.rpc.conftest import Answer, Service
from tests.rpc.fakes import ID, artifact

from millstream.application.views.artifacts import Sent
from millstream.application.watches import WatchFilter
from millstream.domain.errors import MillstreamError, NotFound, ValidationFailed
from millstream.transport.mapping.artifacts import put_artifact
from millstream.transport.mapping.lines import artifact_object
from millstream.v1.artifact_pb2 import Artifact
from millstream.v1.artifact_service_pb2 import WatchArtifactsRequest, WatchArtifactsResponse
from millstream.v1.correlation_service_pb2 import ExportCorrelationRequest
from millstream.v1.stream_service_pb2 import StreamArtifactsRequest
from millstream.wire.v1 import artifact_pb2

EXPORT = "CorrelationService/ExportCorrelation"
REQUEST = ExportCorrelationRequest(correlation_id=ID).SerializeToString()
REST = {"x-envoy-original-path": f"/api/v1/correlations/{ID}/export"}


def start(
    service: Service, request: bytes = REQUEST, key: str = "root", metadata: Mapping[str, str] | None = None
) -> Any:
    """A call under way."""
    method: Any = service.channel.unary_stream(f"/millstream.v1.{EXPORT}")
    return method(request, metadata=(("authorization", f"Bearer {key}"), *(metadata or {}).items()), timeout=30)


async def refused(call: Any) -> Answer:
    """The error that a stream ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    return Answer(b"", caught.value, {str(name): value for name, value in caught.value.trailing_metadata() or ()})


async def lines(call: Any) -> AsyncIterator[dict[str, Any]]:
    """The lines of an export, as they come."""
    async for raw in call:
        body = HttpBody.FromString(raw)
        assert body.content_type == "application/x-ndjson"
        for line in body.data.splitlines():
            yield json.loads(line)


def in_flight(service: Service) -> float:
    name = f'millstream_requests_in_flight{{rpc="{EXPORT}"}} '
    found = [line for line in service.metrics.exposition().decode().splitlines() if line.startswith(name)]
    return float(found[0].removeprefix(name))


def counted(service: Service, code: str) -> bool:
    return f'millstream_requests_total{{code="{code}",rpc="{EXPORT}"}} 1.0'.encode() in service.metrics.exposition()


async def test_a_stream_is_sent_in_order_and_ends_by_itself(service: Service) -> None:
    call = start(service, metadata={"x-correlation-id": "label-1"})
    found = [line async for line in lines(call)]
    assert [line.get("cursor") for line in found] == ["c1", "c2", "c3", "c3"]
    assert [line.get("type") for line in found] == ["Order", "Payment", "Note", None]
    assert found[-1] == {"end": True, "count": 3, "cursor": "c3"}
    assert dict(await call.initial_metadata())["x-correlation-id"] == "label-1"
    assert await call.code() is grpc.StatusCode.OK
    assert counted(service, "OK")
    assert in_flight(service) == 0


async def test_a_cursor_reaches_the_use_case(service: Service) -> None:
    request = ExportCorrelationRequest(correlation_id=ID.upper(), cursor="c9").SerializeToString()
    service.fakes.correlations.pages = []
    assert [line async for line in lines(start(service, request))] == [{"end": True, "count": 0, "cursor": "c9"}]
    assert service.fakes.correlations.calls[0][2:] == (ID, "c9")


@pytest.mark.parametrize(
    ("request_", "key", "code"),
    [
        (REQUEST, "nobody", "UNAUTHENTICATED"),
        (ExportCorrelationRequest(correlation_id="x").SerializeToString(), "root", "VALIDATION_ERROR"),
        (b"\xff\xff", "root", "BAD_REQUEST"),
        (ExportCorrelationRequest(correlation_id=ID, cursor="x" * 257).SerializeToString(), "root", "VALIDATION_ERROR"),
    ],
)
async def test_a_stream_passes_what_every_call_passes(service: Service, request_: bytes, key: str, code: str) -> None:
    """WM-9, WM-10: credentials and rules come first, and the use case is not asked."""
    assert status_of(await refused(start(service, request_, key)))[0] == code
    assert service.fakes.correlations.calls == []
    assert counted(service, code)


@pytest.mark.parametrize("error", [NotFound("where"), ValidationFailed.of("cursor", "is odd")])
async def test_an_error_before_the_first_answer_is_a_status_of_its_own(
    service: Service, error: MillstreamError
) -> None:
    """FL-10"""
    service.fakes.correlations.error = error
    over_grpc = await refused(start(service))
    assert status_of(over_grpc)[0] == error.code
    assert "x-resume-cursor" not in over_grpc.metadata
    over_rest = await refused(start(service, metadata=REST))
    assert json.loads(over_rest.metadata["x-error-body"])["code"] == error.code


async def test_an_error_in_mid_stream_tells_where_to_go_on(service: Service) -> None:
    """FL-10: over gRPC by its status and the cursor beside it; over REST, where no status follows, by a last line."""

    async def fail() -> None:
        raise RuntimeError("password=secret")

    service.fakes.correlations.fail_after, service.fakes.correlations.failed = 0, fail
    over_grpc = await refused(start(service))
    assert status_of(over_grpc)[0] == "INTERNAL"
    assert over_grpc.metadata["x-resume-cursor"] == "c2"
    call = start(service, metadata={**REST, "x-correlation-id": "label-2"})
    over_rest = lines(call)
    found = [await anext(over_rest) for _ in range(3)]
    with pytest.raises(grpc.aio.AioRpcError):
        await anext(over_rest)
    assert [line["cursor"] for line in found] == ["c1", "c2", "c2"]
    assert found[-1]["error"]["code"] == "INTERNAL"
    assert found[-1]["error"]["correlation_id"] == "label-2"
    assert "secret" not in str(found)


async def test_a_caller_that_goes_leaves_nothing_behind(service: Service) -> None:
    service.fakes.correlations.fail_after = 0
    call = start(service)
    assert (await anext(lines(call)))["cursor"] == "c1"
    assert in_flight(service) == 1
    call.cancel()
    async with asyncio.timeout(5):
        await service.fakes.correlations.closed.wait()
        while in_flight(service):
            await service.call("SystemService/GetHealth", key=None)
    assert counted(service, "CANCELLED")
    assert len(service.streams) == 0


async def test_a_deadline_ends_a_stream(service: Service) -> None:
    service.fakes.correlations.fail_after = 0
    method: Any = service.channel.unary_stream(f"/millstream.v1.{EXPORT}")
    call = method(REQUEST, metadata=(("authorization", "Bearer root"),), timeout=0.3)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in lines(call):
            pass
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(5):
        await service.fakes.correlations.closed.wait()


async def test_a_server_that_goes_ends_its_streams_and_tells_where_to_go_on(service: Service) -> None:
    service.fakes.correlations.fail_after = 0
    native, rest = start(service), start(service, metadata=REST)
    over_rest = lines(rest)
    assert (await anext(lines(native)))["cursor"] == "c1"
    assert [(await anext(over_rest))["cursor"] for _ in range(2)] == ["c1", "c2"]
    stopping = asyncio.create_task(service.server.stop())
    over_grpc = await refused(native)
    assert status_of(over_grpc)[0] == "UNAVAILABLE"
    assert over_grpc.metadata["x-resume-cursor"] == "c2"
    last = await anext(over_rest)
    assert (last["error"]["code"], last["error"]["retryable"], last["cursor"]) == ("UNAVAILABLE", True, "c2")
    await stopping


async def test_streams_are_bounded(service: Service) -> None:
    """A clear refusal, and room again when one ends."""
    service.fakes.correlations.fail_after = 0
    open_ = [start(service) for _ in range(2)]
    for call in open_:
        await anext(lines(call))
    refusal = await refused(start(service))
    assert status_of(refusal)[0] == "RATE_LIMITED"
    assert "max_streams_per_tenant" in str(refusal.error and refusal.error.details())
    open_[0].cancel()
    async with asyncio.timeout(5):
        while len(service.streams) > 1:
            await service.call("SystemService/GetHealth", key=None)
    assert (await anext(lines(start(service))))["cursor"] == "c1"


async def test_a_slow_reader_is_not_read_ahead_for(service: Service) -> None:
    """The handler is asked for no more than what was taken, and what gRPC has room for."""
    big = artifact()
    big.partition_key = "x" * 200_000
    service.fakes.correlations.pages = [[Sent(big, f"c{n}")] for n in range(1000)]
    asked = 0

    def counted_pages() -> Any:
        nonlocal asked
        for n in range(1000):
            asked = n
            yield [Sent(big, f"c{n}")]

    service.fakes.correlations.pages = counted_pages()
    call = start(service)
    assert (await anext(lines(call)))["cursor"] == "c0"
    before = -1
    while before != asked:
        before = asked
        await asyncio.sleep(0.1)
    assert asked < 500
    call.cancel()


def test_a_line_is_the_json_that_rest_shows_elsewhere() -> None:
    """FL-17: field by field as protobuf's own JSON."""
    given = artifact()
    for created_us in (1_700_000_000_000_000, 1_700_000_000_120_000, 1_700_000_000_123_456):
        given.created_us = created_us
        # The last of them keeps its payload outside.
        given.payload_digest = b"\xab" * 32 if created_us % 1000 else b""
        given.payload_bytes = 5_368_709_120 if created_us % 1000 else 0
        twin = put_artifact(artifact_pb2.Artifact(), given).SerializeToString()
        shown = json_format.MessageToDict(
            Artifact.FromString(twin), preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        assert artifact_object(given) == shown


# ---- watching

WATCH = "ArtifactService/WatchArtifacts"
STREAM = "StreamService/StreamArtifacts"


def watch(service: Service, rpc: str, request: bytes = b"", **metadata: str) -> Any:
    """A watch under way; metadata names have `_` for `-`."""
    method: Any = service.channel.unary_stream(f"/millstream.v1.{rpc}")
    given = [(name.replace("_", "-"), value) for name, value in metadata.items()]
    return method(request, metadata=(("authorization", "Bearer root"), *given), timeout=30)


async def test_a_watch_sends_artifacts_and_signs_of_life(service: Service) -> None:
    request = WatchArtifactsRequest(
        types=["Order"],
        produced_by=["a"],
        tags=["x", "y"],
        visibility=["Public"],
        correlation_id=ID.upper(),
        cursor="w",
    )
    call = watch(service, WATCH, request.SerializeToString())
    found = [WatchArtifactsResponse.FromString(await call.read()) for _ in range(3)]
    assert [each.cursor for each in found] == ["w0", "w1", "w2"]
    assert [each.HasField("artifact") for each in found] == [False, True, False]
    assert json_format.MessageToDict(found[1].artifact)["payload"] == {"z": 1, "a": [True, None]}
    _, principal, wanted, cursor = service.fakes.watching.calls[0]
    assert (principal.name, cursor) == ("root", "w")
    assert wanted == WatchFilter(
        frozenset({"Order"}), frozenset({"a"}), frozenset({"x", "y"}), frozenset({"Public"}), ID
    )
    call.cancel()
    async with asyncio.timeout(5):
        await service.fakes.watching.closed.wait()


async def test_a_watch_over_rest_is_events_or_lines(service: Service) -> None:
    """The form by Accept; the cursor by Last-Event-ID before the parameter, as a browser resumes."""
    call = watch(service, STREAM, StreamArtifactsRequest(cursor="first").SerializeToString(), last_event_id="w7")
    bodies = [HttpBody.FromString(await call.read()) for _ in range(2)]
    assert {each.content_type for each in bodies} == {"text/event-stream"}
    assert bodies[0].data == b"retry: 1000\n\nid: w0\nevent: heartbeat\ndata: {}\n\n"
    head, data, end = (
        bodies[1].data.split(b"data: ")[0],
        bodies[1].data.split(b"data: ")[1].strip(),
        bodies[1].data[-2:],
    )
    assert (head, end) == (b"id: w1\nevent: artifact\n", b"\n\n")
    assert json.loads(data) == artifact_object(artifact())
    call.cancel()
    call = watch(service, STREAM, accept="application/x-ndjson")
    found = [json.loads(HttpBody.FromString(await call.read()).data) for _ in range(3)]
    assert found == [{"cursor": "w0"}, {**artifact_object(artifact()), "cursor": "w1"}, {"cursor": "w2"}]
    call.cancel()
    assert [asked[3] for asked in service.fakes.watching.calls] == ["w7", ""]


async def test_an_error_that_ends_a_watch_over_rest_is_its_last_event(service: Service) -> None:
    """FL-10"""
    service.fakes.watching.fail = ValidationFailed.of("cursor", "is too old", "EXPIRED")
    call = watch(service, STREAM, x_envoy_original_path="/api/v1/artifacts/stream")
    *_, last = [HttpBody.FromString(await call.read()).data for _ in range(4)]
    assert last.startswith(b"id: w2\nevent: error\ndata: {")
    assert json.loads(last.split(b"data: ")[1])["details"][0]["code"] == "EXPIRED"
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (WatchArtifactsRequest(types=[""]), "types[0]"),
        (WatchArtifactsRequest(visibility=["public"]), "visibility[0]"),
        (WatchArtifactsRequest(correlation_id="x"), "correlation_id"),
        (WatchArtifactsRequest(cursor="x" * 40_001), "cursor"),
        (WatchArtifactsRequest(tags=["x"] * 33), "tags"),
    ],
)
async def test_a_watch_has_rules(service: Service, request_: WatchArtifactsRequest, field: str) -> None:
    """WM-10"""
    refusal = status_of(await refused(watch(service, WATCH, request_.SerializeToString())))
    assert refusal[0] == "VALIDATION_ERROR"
    assert [each[0] for each in refusal[2]] == [field]
    assert service.fakes.watching.calls == []
