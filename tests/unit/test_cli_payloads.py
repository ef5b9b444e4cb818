"""`millstream payloads` and `publish --payload-file` against a scripted service."""

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.api.httpbody_pb2 import HttpBody
from typer.testing import CliRunner, Result

from millstream.cli.app import app
from millstream.v1 import (
    artifact_service_pb2,
    payload_service_pb2,
    payload_service_pb2_grpc,
)

CONTENT = bytes(range(256)) * 3000
REF = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
Run = Callable[..., Result]


class Payloads(payload_service_pb2_grpc.PayloadServiceServicer):
    """Takes anything, and has CONTENT."""

    def __init__(self) -> None:
        self.uploaded: list[tuple[str, bytes]] = []
        self.offsets: list[float] = []

    def UploadPayload(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        """Keep it."""
        messages = list(request_iterator)
        content = b"".join(message.content.data for message in messages)
        self.uploaded.append((messages[0].content.content_type, content))
        return payload_service_pb2.UploadPayloadResponse(
            payload_ref=f"sha256:{hashlib.sha256(content).hexdigest()}", size_bytes=len(content), existed=True
        )

    def GetPayload(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Tell of it."""
        return payload_service_pb2.GetPayloadResponse(
            payload_ref=request.payload_ref, size_bytes=len(CONTENT), media_type="video/mp4"
        )

    def DownloadPayload(self, request: Any, context: Any) -> Iterator[HttpBody]:  # noqa: N802
        """Send it."""
        self.offsets.append(request.offset)
        if request.payload_ref != REF:
            context.abort(grpc.StatusCode.NOT_FOUND, "there is no payload")
        yield HttpBody(data=CONTENT[int(request.offset) : 500_000])
        yield HttpBody(data=CONTENT[500_000:])


class Artifacts:
    """Takes artifacts."""

    def __init__(self) -> None:
        self.published: list[artifact_service_pb2.PublishRequest] = []
        publish = grpc.unary_unary_rpc_method_handler(
            self._publish,
            request_deserializer=artifact_service_pb2.PublishRequest.FromString,
            response_serializer=artifact_service_pb2.PublishResponse.SerializeToString,
        )
        self.handler = grpc.method_handlers_generic_handler("millstream.v1.ArtifactService", {"Publish": publish})

    def _publish(self, request: Any, context: Any) -> Any:
        self.published.append(request)
        return artifact_service_pb2.PublishResponse(artifact_id="a-1", correlation_id="c-1")


@pytest.fixture
def payloads() -> Payloads:
    return Payloads()


@pytest.fixture
def artifacts() -> Artifacts:
    return Artifacts()


@pytest.fixture
def run(payloads: Payloads, artifacts: Artifacts) -> Iterator[Run]:
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool, handlers=[artifacts.handler])
        payload_service_pb2_grpc.add_PayloadServiceServicer_to_server(payloads, server)
        target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()

        def invoke(*args: str, stdin: bytes | None = None) -> Result:
            return CliRunner().invoke(app, args, input=stdin, env={"MILLSTREAM_TARGET": target})

        yield invoke
        server.stop(0).wait()


def test_a_file_goes_up_and_its_reference_is_shown(run: Run, payloads: Payloads, tmp_path: Path) -> None:
    file = tmp_path / "film.mp4"
    file.write_bytes(CONTENT)
    result = run("payloads", "upload", str(file))
    assert result.exit_code == 0
    assert REF in result.stdout
    assert "768,000 bytes" in result.stdout
    assert "uploaded before" in result.stdout
    told = json.loads(run("payloads", "upload", str(file), "--media-type", "video/ogg", "--json").stdout)
    assert (told["ref"], told["size_bytes"]) == (REF, 768_000)
    assert payloads.uploaded == [("video/mp4", CONTENT), ("video/ogg", CONTENT)]


def test_stdin_goes_up(run: Run, payloads: Payloads) -> None:
    assert run("payloads", "upload", "-", stdin=b"\xff\0").exit_code == 0
    assert payloads.uploaded == [("", b"\xff\0")]


def test_a_file_that_is_not_there_is_a_usage_error(run: Run, payloads: Payloads) -> None:
    for args in (("payloads", "upload", "/no/such/file"), ("publish", "Film", "--payload-file", "/no/such/file")):
        result = run(*args)
        assert (result.exit_code, payloads.uploaded) == (2, [])
        assert "/no/such/file" in result.stderr


def test_a_payload_comes_down_to_a_file_or_to_stdout(run: Run, payloads: Payloads, tmp_path: Path) -> None:
    """What came of it before is not asked for again."""
    file = tmp_path / "film.mp4"
    (tmp_path / "film.mp4.part").write_bytes(CONTENT[:1000])
    assert run("payloads", "download", REF, "-o", str(file)).exit_code == 0
    assert file.read_bytes() == CONTENT
    assert payloads.offsets == [1000]
    assert run("payloads", "download", REF).stdout_bytes == CONTENT
    unknown = run("payloads", "download", "sha256:" + "0" * 64)
    assert unknown.exit_code == 1
    assert "there is no payload" in unknown.stderr
    unwritable = run("payloads", "download", REF, "-o", str(tmp_path / "none" / "film.mp4"))
    assert unwritable.exit_code == 1
    assert "No such file" in unwritable.stderr


def test_what_is_known_of_a_payload_is_shown(run: Run) -> None:
    assert "video/mp4" in run("payloads", "get", REF).stdout
    assert json.loads(run("payloads", "get", REF, "--json").stdout)["ref"] == REF


def test_a_file_is_uploaded_and_published_in_one(run: Run, artifacts: Artifacts, tmp_path: Path) -> None:
    file = tmp_path / "film.mp4"
    file.write_bytes(CONTENT)
    for args in (("--payload-file", str(file)), ("--payload-ref", REF)):
        assert run("publish", "Film", *args).exit_code == 0
    assert [(request.type, request.payload_ref) for request in artifacts.published] == [("Film", REF)] * 2
    for two in (["--payload-file", str(file), "--payload-ref", REF], ["{}x", "--payload-ref", REF]):
        assert run("publish", "Film", *two).exit_code == 2
