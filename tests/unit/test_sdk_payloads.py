"""Payloads of the SDK against a scripted service: pieces, interruptions, and what a worker's handlers see."""

import hashlib
import io
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.struct_pb2 import Struct
from tests.unit.workserver import Order, Payment, WorkServer, lease, one_failure, serving

from millstream.sdk import (
    Artifact,
    Client,
    Context,
    InvalidRequestError,
    NewArtifact,
    PayloadError,
    UnavailableError,
    Worker,
)
from millstream.sdk import calls as calls_module
from millstream.sdk.payloads import LOADED_BYTES, PIECE_BYTES, STRUCT_TYPE
from millstream.v1 import artifact_pb2, artifact_service_pb2, payload_service_pb2, payload_service_pb2_grpc
from millstream.v1 import worker_pb2 as worker_messages

CONTENT = bytes(range(256)) * 8000
"""Of 2 MB, so of four pieces."""
REF = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
CHUNK = 100_000


class Payloads(payload_service_pb2_grpc.PayloadServiceServicer):
    """Keeps what is uploaded; breaks off where it is told to.

    Attributes:
        stored: Media type and content by reference.
        breaks: After so many messages a call is ended as UNAVAILABLE, in turn.
        downloads: The requests that came.
        uploads: The messages of each upload that came to its end.
    """

    def __init__(self) -> None:
        self.stored = {REF: ("video/mp4", CONTENT)}
        self.breaks: list[int] = []
        self.downloads: list[payload_service_pb2.DownloadPayloadRequest] = []
        self.uploads: list[list[payload_service_pb2.UploadPayloadRequest]] = []
        self.refusal = ""
        self.codes = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED]

    async def UploadPayload(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        """Keep it."""
        if self.refusal:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, self.refusal)
        most = self.breaks.pop(0) if self.breaks else None
        messages = []
        async for message in request_iterator:
            messages.append(message)
            if len(messages) == most:
                await context.abort(self.codes.pop(0), "going")
        self.uploads.append(messages)
        content = b"".join(message.content.data for message in messages)
        ref = f"sha256:{hashlib.sha256(content).hexdigest()}"
        media_type = messages[0].content.content_type
        self.stored[ref] = (media_type, content)
        return payload_service_pb2.UploadPayloadResponse(
            payload_ref=ref, size_bytes=len(content), media_type=media_type
        )

    async def GetPayload(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Tell of it."""
        media_type, content = self.stored[request.payload_ref]
        out = payload_service_pb2.GetPayloadResponse(
            payload_ref=request.payload_ref, size_bytes=len(content), media_type=media_type
        )
        out.created_at.FromJsonString("2026-01-31T12:00:00Z")
        return out

    async def DownloadPayload(self, request: Any, context: Any) -> AsyncIterator[HttpBody]:  # noqa: N802
        """Send it in chunks."""
        self.downloads.append(request)
        if request.payload_ref not in self.stored:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no payload")
        media_type, content = self.stored[request.payload_ref]
        end = int(request.offset + request.length) if request.HasField("length") else len(content)
        most = self.breaks.pop(0) if self.breaks else None
        wanted = content[int(request.offset) : end]
        for number, begin in enumerate(range(0, len(wanted) or 1, CHUNK)):
            if number == most:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "going")
            yield HttpBody(content_type=media_type, data=wanted[begin : begin + CHUNK])


@pytest.fixture
def payloads(monkeypatch: pytest.MonkeyPatch) -> Payloads:
    monkeypatch.setattr(calls_module, "FIRST_PAUSE_S", 0.001)
    return Payloads()


@pytest.fixture
async def service(payloads: Payloads) -> AsyncIterator[WorkServer]:
    async with serving(payloads) as service:
        yield service


@pytest.fixture
async def client(service: WorkServer) -> AsyncIterator[Client]:
    async with Client(service.target, retries=3) as client:
        yield client


# -- up -------------------------------------------------------------------------------------------------------


def pieces() -> Iterator[bytes]:
    yield from (CONTENT[begin : begin + 700_000] for begin in range(0, len(CONTENT), 700_000))


async def slowly() -> AsyncIterator[bytes]:
    for piece in pieces():
        yield piece


@pytest.mark.parametrize("kind", ["path", "name", "bytes", "file", "iterator", "async iterator"])
async def test_any_source_goes_up_in_pieces(payloads: Payloads, client: Client, tmp_path: Path, kind: str) -> None:
    """The type is told by the file's name, the size where it is known."""
    path = tmp_path / "film.mp4"
    path.write_bytes(CONTENT)
    sources: dict[str, Any] = {
        "path": path, "name": str(path), "bytes": CONTENT, "file": io.BytesIO(CONTENT), "iterator": pieces(),
        "async iterator": slowly(),
    }  # fmt: skip
    stored = await client.payloads.upload(sources[kind])
    assert (stored.ref, stored.size_bytes) == (REF, len(CONTENT))
    first, *rest = payloads.uploads[0]
    assert first.content.content_type == ("video/mp4" if kind in ("path", "name") else "")
    assert first.HasField("size_bytes") == (kind in ("path", "name", "bytes"))
    assert b"".join(message.content.data for message in rest) == CONTENT
    assert max(len(message.content.data) for message in rest) <= PIECE_BYTES


async def test_what_can_be_read_again_is_sent_again(payloads: Payloads, client: Client) -> None:
    """Wherever it broke off, and whatever was heard of a server that died; an iterator is not: half of it is gone."""
    payloads.breaks = [2, 1]
    stored = await client.payloads.upload(CONTENT, media_type="text/csv", payload_ref=REF)
    assert stored.media_type == "text/csv"
    assert payloads.uploads[0][0].payload_ref == REF
    payloads.breaks = [2]
    with pytest.raises(UnavailableError):
        await client.payloads.upload(slowly())


async def test_a_refusal_in_the_midst_is_told(payloads: Payloads, client: Client) -> None:
    payloads.refusal = "content: has over 5 bytes"
    with pytest.raises(InvalidRequestError, match="over 5 bytes"):
        await client.payloads.upload(slowly())


async def test_a_source_that_fails_ends_the_upload_with_its_error(payloads: Payloads, client: Client) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        await client.payloads.upload(broken())
    assert payloads.uploads == []


# -- down -----------------------------------------------------------------------------------------------------


async def test_a_download_goes_on_where_it_broke_off(payloads: Payloads, client: Client) -> None:
    payloads.breaks = [3, 0, 5]
    got = [piece async for piece in client.payloads.download(REF)]
    assert b"".join(got) == CONTENT
    assert [request.offset for request in payloads.downloads] == [0, 300_000, 300_000, 800_000]


async def test_a_part_is_downloaded_as_a_part(payloads: Payloads, client: Client) -> None:
    payloads.breaks = [1]
    got = [piece async for piece in client.payloads.download(REF, offset=50, length=250_000)]
    assert b"".join(got) == CONTENT[50:250_050]
    assert [(request.offset, request.length) for request in payloads.downloads] == [(50, 250_000), (100_050, 150_000)]


async def test_a_service_that_stays_away_is_given_up(payloads: Payloads, client: Client) -> None:
    payloads.breaks = [0] * 10
    with pytest.raises(UnavailableError):
        await client.payloads.read(REF)
    assert len(payloads.downloads) == 4


async def test_other_bytes_than_the_references_are_an_error(payloads: Payloads, client: Client, tmp_path: Path) -> None:
    """HTTP and gRPC may lose an end: the digest does not."""
    payloads.stored[REF] = ("video/mp4", CONTENT[:-1])
    with pytest.raises(PayloadError, match=REF):
        [piece async for piece in client.payloads.download(REF)]
    with pytest.raises(PayloadError, match=REF):
        await client.payloads.download_to(REF, tmp_path / "film.mp4")
    assert list(tmp_path.iterdir()) == []


async def test_a_file_is_put_in_place_when_it_is_whole(payloads: Payloads, client: Client, tmp_path: Path) -> None:
    """What came of it before is not downloaded again."""
    target = tmp_path / "film.mp4"
    target.write_bytes(b"old")
    payloads.breaks = [2] * 4 + [0] * 4
    with pytest.raises(UnavailableError):
        await client.payloads.download_to(REF, target)
    assert target.read_bytes() == b"old"
    assert (tmp_path / "film.mp4.part").stat().st_size == 800_000
    payloads.breaks = []
    assert await client.payloads.download_to(REF, target, resume=True) == len(CONTENT)
    assert target.read_bytes() == CONTENT
    assert payloads.downloads[-1].offset == 800_000
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]
    await client.payloads.download_to(REF, target)
    assert payloads.downloads[-1].offset == 0


async def test_what_is_read_at_once_is_bounded(client: Client) -> None:
    assert await client.payloads.read(REF) == CONTENT
    with pytest.raises(PayloadError, match="download it to a file"):
        await client.payloads.read(REF, most=1000)


async def test_a_payload_is_told_of(client: Client) -> None:
    found = await client.payloads.get(REF)
    assert (found.ref, found.size_bytes, found.media_type) == (REF, len(CONTENT), "video/mp4")
    assert found.created_at is not None
    assert found.created_at.isoformat() == "2026-01-31T12:00:00+00:00"


# -- artifacts ------------------------------------------------------------------------------------------------


def keep(payloads: Payloads, content: bytes, media_type: str = "application/json") -> str:
    """A payload that the service has."""
    ref = f"sha256:{hashlib.sha256(content).hexdigest()}"
    payloads.stored[ref] = (media_type, content)
    return ref


async def test_data_that_are_kept_outside_take_their_place(payloads: Payloads, client: Client) -> None:
    """Where they are a JSON object; nothing is asked for an artifact that has its own."""
    ref = keep(payloads, json.dumps({"order_id": "o", "n": 1}).encode())
    loaded = await client.payloads.load(Artifact("a", "Order", {}, payload_ref=ref, payload_bytes=20))
    assert loaded.payload == {"order_id": "o", "n": 1}
    sent = Struct()
    sent.update({"order_id": "o", "n": [1, {"a": None}]})
    ref_of_it = keep(payloads, sent.SerializeToString(), STRUCT_TYPE)
    loaded = await client.payloads.load(Artifact("a", "Order", {}, payload_ref=ref_of_it, payload_bytes=20))
    assert loaded.payload == {"order_id": "o", "n": [1, {"a": None}]}
    for content, media_type in ((b"[1]", "application/json"), (b"{", "application/json"), (b"{}", "text/plain")):
        other = Artifact("a", "Order", {}, payload_ref=keep(payloads, content, media_type), payload_bytes=1)
        assert await client.payloads.load(other) == other
    asked = len(payloads.downloads)
    large = Artifact("a", "Order", {}, payload_ref=ref, payload_bytes=LOADED_BYTES + 1)
    assert await client.payloads.load(large) == large
    assert await client.payloads.load(Artifact("a", "Order", {"n": 2})) == Artifact("a", "Order", {"n": 2})
    assert len(payloads.downloads) == asked


def test_an_artifact_is_published_by_reference() -> None:
    """With its type alone, by name or by model."""
    for item in ("Order", Order):
        draft = NewArtifact(item, payload_ref=REF).fill(artifact_service_pb2.PublishRequest())
        assert (draft.type, draft.payload_ref, draft.HasField("payload")) == ("Order", REF, False)
    for wrong in (NewArtifact(("Order", {}), payload_ref=REF), NewArtifact("Order")):
        with pytest.raises(PayloadError):
            wrong.fill(artifact_service_pb2.PublishRequest())


async def test_an_input_of_a_run_by_name_is_a_reference_and_nothing_more(client: Client) -> None:
    with pytest.raises(ValueError, match="nothing else"):
        await client.agents.run("payments", NewArtifact("Order", tags=["x"], payload_ref=REF))


# -- workers --------------------------------------------------------------------------------------------------


def given(ref: str, size: int, **more: Any) -> worker_messages.Lease:
    """The task of an agent with an artifact whose payload is kept outside."""
    artifact = artifact_pb2.Artifact(id="a1", type="Order", payload_ref=ref, payload_bytes=size)
    return lease("agent:payments", "t1", artifacts=[artifact], **more)


@pytest.fixture
def worker(service: WorkServer) -> Worker:
    return Worker(service.target, name="w", slots=10, backoff=(0.001, 0.01), drain_timeout=10, cancel_grace=10)


async def test_a_handler_is_given_its_model_wherever_the_data_are(
    service: WorkServer, worker: Worker, payloads: Payloads
) -> None:
    """It is asked for with the fence of the task, and again where the service goes away."""
    content = json.dumps({"order_id": "o-1", "amount": 7, "more": "x" * 300_000}).encode()
    ref = keep(payloads, content)
    seen = []

    @worker.agent(consumes=Order, publishes=Payment)
    async def payments(order: Order, ctx: Context) -> Payment:
        seen.append((order, ctx.artifacts[0].payload["order_id"], ctx.artifacts[0].payload_ref))
        return Payment(order_id=order.order_id)

    payloads.breaks = [1]
    async with worker:
        stream = await service.next()
        await stream.push(given(ref, len(content)))
        await stream.until(lambda s: len(s.completions) == 1)
        await stream.ack()
    assert seen == [(Order(order_id="o-1", amount=7), "o-1", ref)]
    assert [(request.task_id, request.attempt) for request in payloads.downloads] == [("t1", 1)] * 2


async def test_a_handler_reads_and_makes_what_is_no_json(
    service: WorkServer, worker: Worker, payloads: Payloads, tmp_path: Path
) -> None:
    """From a thread too, and publishes it by its reference."""

    @worker.agent(consumes="Order", publishes="Film")
    def payments(order: dict[str, Any], ctx: Context) -> None:
        (artifact,) = ctx.artifacts
        assert order == {}
        path = tmp_path / "film.mp4"
        ctx.wait(ctx.payloads.download_to(artifact.payload_ref, path))
        path.write_bytes(path.read_bytes()[:10])
        stored = ctx.wait(ctx.payloads.upload(path))
        ctx.publish("Film", payload_ref=stored.ref, tags=["short"])

    async with worker:
        stream = await service.next()
        await stream.push(given(REF, len(CONTENT)))
        await stream.until(lambda s: bool(s.completions or s.failures))
        await stream.ack()
    (produced,) = stream.completions[0].artifacts
    assert (produced.type, list(produced.tags)) == ("Film", ["short"])
    assert payloads.stored[produced.payload_ref] == ("video/mp4", CONTENT[:10])
    assert not produced.HasField("payload")


async def test_an_async_handler_may_not_wait_for_itself(service: WorkServer, worker: Worker) -> None:
    @worker.agent(consumes="Order")
    async def payments(order: dict[str, Any], ctx: Context) -> None:
        ctx.wait(ctx.payloads.read(REF))

    async with worker:
        stream = await service.next()
        await stream.push(given(REF, len(CONTENT)))
        failure = await one_failure(stream)
        await stream.ack()
    assert (failure.code, "async handler awaits it" in failure.message) == ("RuntimeError", True)


async def test_data_that_do_not_come_are_tried_again_and_those_that_do_not_fit_are_not(
    service: WorkServer, worker: Worker, payloads: Payloads
) -> None:
    @worker.agent(consumes=Order)
    async def payments(order: Order) -> None:
        raise AssertionError("it was given nothing")

    missing = "sha256:" + "0" * 64
    exact = keep(payloads, b'{"order_id": 9007199254740993}')
    async with worker:
        stream = await service.next()
        for number, ref in enumerate((missing, REF, exact), 1):
            await stream.push(given(ref, 10))
            await stream.until(lambda s, number=number: len(s.failures) == number)  # type: ignore[misc]
            await stream.ack()
    gone, film, inexact = stream.failures
    assert (gone.code, gone.retryable) == ("NOT_FOUND", True)
    assert missing in gone.message
    assert (film.code, film.retryable) == ("INVALID_INPUT", False)
    assert REF in film.message
    assert "2^53" in inexact.message
