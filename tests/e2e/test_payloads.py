"""Large payloads through Envoy: up and down as streams over gRPC and REST, in little memory, and only for their own."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import httpx
import pytest
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.struct_pb2 import Struct
from pydantic import BaseModel
from tests.e2e.answers import ARTIFACT, check_error, check_ok
from tests.e2e.stack import Stack, rest_client, running_stack
from tests.e2e.stored import Stored
from tests.engine.servers import eventually

from millstream.sdk import Client, Context, NewArtifact, Visibility, Worker
from millstream.v1.payload_service_pb2 import DownloadPayloadRequest, UploadPayloadRequest, UploadPayloadResponse
from millstream.v1.payload_service_pb2_grpc import PayloadServiceStub
from millstream.v1.system_service_pb2 import GetMetricsRequest
from millstream.v1.system_service_pb2_grpc import SystemServiceStub

PATH = "/api/v1/payloads"
MIB = 1024 * 1024
LARGE = 96
"""Of so many MiB is what goes up and down below."""
BOUND = 48
"""By so many MiB may a process grow for it."""
PRIVATE = Visibility(kind="Private", agents=["echo", "cutter"])
UNKNOWN = "sha256:" + "0" * 64


def block(number: int) -> bytes:
    """A MiB that is like no other."""
    return hashlib.sha256(str(number).encode()).digest() * (MIB // 32)


def blocks(count: int) -> Iterator[bytes]:
    """So many MiB."""
    return map(block, range(count))


def ref_of(*pieces: bytes) -> str:
    """The reference of a content."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return f"sha256:{digest.hexdigest()}"


async def sent(count: int) -> AsyncIterator[bytes]:
    """So many MiB as a body without a length."""
    for each in blocks(count):
        yield each


class Memory:
    """What processes hold at most from here on; the kernel counts it (proc(5): clear_refs, VmHWM)."""

    def __init__(self, *pids: int) -> None:
        for pid in pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5")
        self._before = {pid: self._peak_kib(pid) for pid in pids}

    def grown_mib(self) -> list[int]:
        """By how much the peak of each is over what it began with."""
        return [(self._peak_kib(pid) - before) // 1024 for pid, before in self._before.items()]

    @staticmethod
    def _peak_kib(pid: int) -> int:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        assert found is not None
        return int(found[1])


def as_tenant(tenant: str) -> tuple[tuple[str, str], ...]:
    """Metadata of a call in a tenant."""
    return (("x-tenant", tenant),)


async def test_a_body_goes_up_and_comes_down_as_it_is(own: httpx.AsyncClient) -> None:
    """DC-3: any bytes with their Content-Type, a body of JSON too, and an empty one; 201 with the reference."""
    contents = {
        "image/png": b"\x89PNG\r\n\0" + bytes(range(256)) * 5000,
        "application/json": b'{"not": checked, here}',
        "text/csv; charset=utf-8": "ö,ü\n".encode(),
        "application/octet-stream": b"",
    }
    for media_type, content in contents.items():
        made = check_ok(await own.post(PATH, content=content, headers={"content-type": media_type}), 201)
        assert made == {
            "payload_ref": ref_of(content), "size_bytes": len(content), "media_type": media_type, "existed": False,
        }  # fmt: skip
        found = await own.get(f"{PATH}/{made['payload_ref']}")
        assert (found.status_code, found.content) == (200, content)
        assert found.headers["content-type"] == media_type
        assert found.headers["x-payload-bytes"] == str(len(content))
        assert found.headers["content-disposition"] == "attachment"
        head = await own.head(f"{PATH}/{made['payload_ref']}")
        assert (head.status_code, head.content) == (200, b"")
        assert (head.headers["content-length"], head.headers["content-type"]) == (str(len(content)), media_type)
        told = check_ok(await own.get(f"{PATH}/{made['payload_ref']}/metadata"))
        assert (told["size_bytes"], told["media_type"]) == (len(content), media_type)
        again = check_ok(await own.post(PATH, content=content, headers={"content-type": "text/other"}), 201)
        assert (again["existed"], again["media_type"]) == (True, media_type)


async def test_what_is_announced_is_held_to(own: httpx.AsyncClient, stored: Stored) -> None:
    """Digest and size of a query; a second one, an unknown one and a bad one are told by their names."""
    content = b"content"
    good = {"payload_ref": ref_of(content), "size_bytes": "7"}
    check_ok(await own.post(PATH, params=good, content=content), 201)
    for params, field in (
        ({"payload_ref": UNKNOWN}, "payload_ref"),
        ({"payload_ref": "nonsense"}, "payload_ref"),
        ({"size_bytes": "8"}, "size_bytes"),
        ({"size_bytes": "many"}, "size_bytes"),
        ({"sise_bytes": "7"}, "sise_bytes"),
    ):
        check_error(await own.post(PATH, params=params, content=b"other"), 422, "VALIDATION_ERROR", field)
    doubled = f"{PATH}?size_bytes=5&size_bytes=5"
    check_error(await own.post(doubled, content=b"other"), 422, "VALIDATION_ERROR", "size_bytes")
    check_error(await own.post(PATH, content=b"x", headers={"content-type": "odd"}), 422, "VALIDATION_ERROR",
                "content.content_type")  # fmt: skip
    assert await stored.count("payload") == 1


async def test_over_the_maximum_is_refused_before_it_comes(stack: Stack, own: httpx.AsyncClient) -> None:
    """413 by its length alone, whether announced by the header or by the query."""
    limit = 5 * 1024 * MIB
    answer = await own.post(PATH, params={"size_bytes": str(limit + 1)}, content=b"x")
    body = check_error(answer, 413, "PAYLOAD_TOO_LARGE")
    assert f"{limit:,}" in body["message"]
    assert "max_upload_bytes" in body["message"]
    reader, writer = await asyncio.open_connection(stack.proxy.host, stack.proxy.port)
    writer.write(b"POST /api/v1/payloads HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\nx" % (limit + 1))
    assert b" 413 " in await asyncio.wait_for(reader.readline(), 20)
    writer.close()


async def test_a_part_can_be_asked_for(own: httpx.AsyncClient) -> None:
    """By Range as browsers and curl -C do, or by offset and length; not behind the end."""
    content = bytes(range(256)) * 3000
    path = f"{PATH}/{check_ok(await own.post(PATH, content=content), 201)['payload_ref']}"
    part = await own.get(path, headers={"range": "bytes=300000-"})
    assert (part.status_code, part.content) == (206, content[300_000:])
    assert part.headers["content-range"] == "bytes 300000-767999/768000"
    part = await own.get(path, params={"offset": 300_000, "length": 7})
    assert (part.status_code, part.content) == (200, content[300_000:300_007])
    check_error(await own.get(path, params={"offset": 768_001}), 422, "VALIDATION_ERROR", "offset")
    check_error(await own.get(path, params={"offset": 0.5}), 422, "VALIDATION_ERROR", "offset")
    check_error(await own.get(f"{PATH}/nonsense"), 422, "VALIDATION_ERROR", "payload_ref")
    check_error(await own.get(f"{PATH}/{UNKNOWN}"), 404, "NOT_FOUND")
    check_error(await own.get(f"{PATH}/{UNKNOWN}/metadata"), 404, "NOT_FOUND")
    nothing = await own.head(f"{PATH}/{UNKNOWN}", headers={"x-millstream-head": "1"})
    assert (nothing.status_code, nothing.content) == (404, b"")
    whole = await own.get(path, headers={"x-millstream-head": "1"})
    assert whole.content == content, "the proxy's own header was believed"


async def test_rest_carries_what_no_process_could_hold(stack: Stack, own: httpx.AsyncClient) -> None:
    """Memory of servers and proxy is bounded, whatever the size, and however slowly the client reads."""
    memory = Memory(stack.proxy.pid, *(server.pid for server in stack.servers))
    made = check_ok(await own.post(PATH, content=sent(LARGE), timeout=120), 201)
    assert made["payload_ref"] == ref_of(*blocks(LARGE))
    digest, size = hashlib.sha256(), 0
    async with own.stream("GET", f"{PATH}/{made['payload_ref']}", timeout=120) as found:
        assert found.status_code == 200
        async for piece in found.aiter_raw():
            digest.update(piece)
            size += len(piece)
    assert (size, f"sha256:{digest.hexdigest()}") == (LARGE * MIB, made["payload_ref"])
    assert max(memory.grown_mib()) <= BOUND, memory.grown_mib()


async def test_grpc_carries_it_too_and_takes_up_a_download_where_it_broke_off(
    stack: Stack, through_proxy: grpc.aio.Channel, tenant: str
) -> None:
    """An interrupted download goes on at its offset, at any server."""
    stub: Any = PayloadServiceStub(through_proxy)
    memory = Memory(stack.proxy.pid, *(server.pid for server in stack.servers))

    async def requests() -> AsyncIterator[UploadPayloadRequest]:
        for number, each in enumerate(blocks(LARGE)):
            kind = "video/mp4" if number == 0 else ""
            yield UploadPayloadRequest(content=HttpBody(data=each, content_type=kind))

    made: UploadPayloadResponse = await stub.UploadPayload(requests(), metadata=as_tenant(tenant), timeout=120)
    assert (made.payload_ref, made.size_bytes) == (ref_of(*blocks(LARGE)), LARGE * MIB)
    digest, size = hashlib.sha256(), 0
    for most in (10 * MIB, LARGE * MIB):
        request = DownloadPayloadRequest(payload_ref=made.payload_ref, offset=size)
        call = stub.DownloadPayload(request, metadata=as_tenant(tenant), timeout=120)
        async for body in call:
            assert body.content_type == "video/mp4"
            digest.update(body.data)
            size += len(body.data)
            if size >= most:
                call.cancel()
                break
    assert (size, f"sha256:{digest.hexdigest()}") == (LARGE * MIB, made.payload_ref)
    assert max(memory.grown_mib()) <= BOUND, memory.grown_mib()


async def test_the_sdk_holds_little_of_a_file(stack: Stack, tmp_path: Path) -> None:
    """Up from a file and down to one: the client's memory is bounded, too."""
    film, copy = tmp_path / "film", tmp_path / "copy"
    with film.open("wb") as file:
        file.writelines(blocks(LARGE))
    async with Client(stack.target) as client:
        memory = Memory(os.getpid(), stack.proxy.pid, *(server.pid for server in stack.servers))
        stored = await client.payloads.upload(film)
        assert await client.payloads.download_to(stored.ref, copy) == LARGE * MIB
        assert max(memory.grown_mib()) <= BOUND, memory.grown_mib()
    with film.open("rb") as sent_file, copy.open("rb") as got:
        assert all(each == got.read(MIB) for each in iter(lambda: sent_file.read(MIB), b""))


async def test_a_client_that_reads_nothing_fills_no_memory_and_stops_no_other(
    stack: Stack, own: httpx.AsyncClient, tenant: str
) -> None:
    """Twelve downloads that nobody reads: other calls, and other downloads, go on."""
    made = check_ok(await own.post(PATH, content=sent(LARGE), timeout=120), 201)
    memory = Memory(stack.proxy.pid, *(server.pid for server in stack.servers))
    idle = []
    for _ in range(12):
        reader, writer = await asyncio.open_connection(stack.proxy.host, stack.proxy.port, limit=4096)
        head = f"GET {PATH}/{made['payload_ref']} HTTP/1.1\r\nhost: x\r\nx-tenant: {tenant}\r\n\r\n"
        writer.write(head.encode())
        assert b" 200 " in await asyncio.wait_for(reader.readline(), 20)
        idle.append(writer)
    part = await own.get(f"{PATH}/{made['payload_ref']}", params={"length": 4 * MIB})
    assert part.content == b"".join(blocks(4))
    published = check_ok(await own.post("/api/v1/artifacts", json={"type": "Note"}))
    assert published["status"] == "accepted"
    assert max(memory.grown_mib()) <= BOUND, memory.grown_mib()
    for writer in idle:
        writer.transport.abort()


async def test_an_interrupted_upload_leaves_nothing_that_can_be_read(
    stack: Stack, own: httpx.AsyncClient, tenant: str, database: asyncpg.Connection[asyncpg.Record]
) -> None:
    """Its chunks wait for the sweep, and no payload was made of them."""
    whole = b"".join(blocks(3))
    _, writer = await asyncio.open_connection(stack.proxy.host, stack.proxy.port)
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\nx-tenant: {tenant}\r\ncontent-length: {len(whole)}\r\n\r\n"
    writer.write(head.encode() + whole[: 2 * MIB])
    await writer.drain()
    state = "SELECT count(*) FROM payload_upload u JOIN payload_chunk c USING (blob) WHERE tenant = $1 AND touched_us"

    async def arrived() -> bool:
        return bool(await database.fetchval(f"{state} > 0", tenant) >= 4)

    async def left() -> bool:
        return bool(await database.fetchval(f"{state} = 0", tenant) >= 4)

    await eventually(arrived, "the first chunks")
    writer.transport.abort()
    await eventually(left, "that the chunks are left to the sweep")
    assert await database.fetchval("SELECT count(*) FROM payload WHERE tenant = $1", tenant) == 0
    check_error(await own.get(f"{PATH}/{ref_of(whole)}"), 404, "NOT_FOUND")
    check_error(await own.get(f"{PATH}/{ref_of(whole[: 2 * MIB])}"), 404, "NOT_FOUND")


async def test_an_artifact_refers_to_a_payload_in_every_way_of_publishing(own: httpx.AsyncClient) -> None:
    """Single, sync and in a batch; and one that is large by itself is moved outside."""
    ref = check_ok(await own.post(PATH, content=b'{"n":1}', headers={"content-type": "application/json"}), 201)[
        "payload_ref"
    ]
    single = check_ok(await own.post("/api/v1/artifacts", json={"type": "Note", "payload_ref": ref}))
    artifact = check_ok(await own.get(f"/api/v1/artifacts/{single['artifact_id']}"))
    assert (artifact["payload"], artifact["payload_ref"], artifact["payload_bytes"]) == ({}, ref, 7)
    assert set(artifact) == ARTIFACT | {"payload_ref", "payload_bytes"}
    sync = check_ok(await own.post("/api/v1/artifacts/sync", json={"type": "Note", "payload_ref": ref}))
    assert [each["payload_ref"] for each in sync["artifacts"]] == [ref]
    items: list[dict[str, Any]] = [
        {"type": "Note", "payload_ref": ref},
        {"type": "Note", "payload_ref": UNKNOWN},
        {"type": "Note", "payload_ref": ref, "payload": {"a": 1}},
        {"type": "Note", "payload_ref": "nonsense"},
        {"type": "Note", "payload": {"text": "ö" * 200_000}},
    ]
    batch = check_ok(await own.post("/api/v1/artifacts/batch", json={"artifacts": items}))
    assert [each["status"] for each in batch["results"]] == ["accepted", "failed", "failed", "failed", "accepted"]
    fields = [each["error"]["details"][0]["field"] for each in batch["results"][1:4]]
    assert fields == [f"artifacts[{n}].payload_ref" for n in (1, 2, 3)]
    moved = check_ok(await own.get("/api/v1/artifacts", params={"limit": 1}))["items"][0]
    assert moved["payload"] == {}
    content = await own.get(f"{PATH}/{moved['payload_ref']}")
    assert content.headers["content-type"] == "application/x-protobuf; message=google.protobuf.Struct"
    assert dict(Struct.FromString(content.content)) == {"text": "ö" * 200_000}
    assert len(content.content) == moved["payload_bytes"]
    whole = check_ok(await own.get(f"/api/v1/artifacts/{moved['id']}"))
    assert whole == moved | {"payload": {"text": "ö" * 200_000}}


async def test_a_body_over_the_inline_limit_says_what_to_do(own: httpx.AsyncClient) -> None:
    """It names field, limit and fix."""
    answer = await own.post("/api/v1/artifacts", json={"type": "Note", "payload": {"text": "x" * MIB}})
    body = check_error(answer, 413, "PAYLOAD_TOO_LARGE")
    assert "payload" in body["message"]
    assert "1,048,576" in body["message"]
    assert "upload" in body["message"]


async def test_a_payload_is_nobody_elses(stack: Stack, locked: Stack) -> None:
    """Its uploader, who sees an artifact of it, and the admin; to others, and other tenants, it is not there."""
    names = ("operator", "second-operator", "worker", "named", "stranger", "viewer", "admin", "other")
    clients = {name: await locked.rest(authorization=f"Bearer {name}-key") for name in names}

    async def readers(ref: str) -> set[str]:
        found = set()
        for name, client in clients.items():
            answer = await client.get(f"{PATH}/{ref}")
            told = await client.get(f"{PATH}/{ref}/metadata")
            if answer.status_code == 200:
                assert told.status_code == 200
                found.add(name)
            else:
                nothing = check_error(await client.get(f"{PATH}/{UNKNOWN}"), 404, "NOT_FOUND")
                refused = check_error(answer, 404, "NOT_FOUND")
                check_error(told, 404, "NOT_FOUND")
                assert refused["message"].replace(ref, "") == nothing["message"].replace(UNKNOWN, "")
        return found

    check_ok(await clients["admin"].post("/api/v1/artifact-types", json={"name": "Secret"}), 201)
    ref = check_ok(await clients["worker"].post(PATH, content=b"secret"), 201)["payload_ref"]
    assert await readers(ref) == {"worker", "admin"}
    stolen = await clients["stranger"].post("/api/v1/artifacts", json={"type": "Secret", "payload_ref": ref})
    check_error(stolen, 404, "NOT_FOUND", "payload_ref")
    private = {"type": "Secret", "payload_ref": ref, "visibility": {"kind": "Private", "agents": ["named"]}}
    check_ok(await clients["worker"].post("/api/v1/artifacts", json=private))
    assert await readers(ref) == {"worker", "admin", "named", "operator", "second-operator", "viewer"}
    check_error(await clients["viewer"].post(PATH, content=b"x"), 403, "FORBIDDEN")
    nobody = await locked.rest()
    check_error(await nobody.post(PATH, content=b"x"), 401, "UNAUTHENTICATED")
    check_error(await nobody.get(f"{PATH}/{ref}"), 401, "UNAUTHENTICATED")


async def test_a_download_outlasts_the_server_that_gave_it() -> None:
    """kill -9 in its midst: the SDK goes on at the other server, and what comes is the payload."""
    async with running_stack({"auth_mode": "developer"}, servers=2) as stack, Client(stack.target) as client:
        stored = await client.payloads.upload(sent(LARGE))
        digest, size = hashlib.sha256(), 0
        async for piece in client.payloads.download(stored.ref):
            if size == 0:
                serving = [number for number in range(2) if await downloads(stack, number)]
                assert len(serving) == 1
                await stack.servers[serving[0]].kill()
            digest.update(piece)
            size += len(piece)
        assert (size, f"sha256:{digest.hexdigest()}") == (LARGE * MIB, stored.ref)
        # Of bytes, which the SDK can send again: the proxy may not have noticed yet which server is gone.
        again = await client.payloads.upload(bytes(MIB))
        assert again.size_bytes == MIB


async def downloads(stack: Stack, number: int) -> int:
    """How many downloads one server is giving."""
    stub: Any = SystemServiceStub(await stack.channel(stack.native(number)))
    text = (await stub.GetMetrics(GetMetricsRequest())).data.decode()
    found = re.search(
        r'^millstream_requests_in_flight\{rpc="PayloadService/DownloadPayload"\} (\d+)', text, re.MULTILINE
    )
    return int(found[1]) if found else 0


class Document(BaseModel):
    """Too large to stand in its row."""

    text: str


class Echoed(BaseModel):
    """A Document again."""

    text: str


async def test_an_agent_does_not_notice_where_its_payloads_are(locked: Stack, tmp_path: Path) -> None:
    """What is large goes outside and comes back by itself, for a worker whose key sees none of it otherwise; what is
    no JSON it downloads, and publishes by reference."""
    worker = Worker(locked.target, name="echo", api_key="worker-key")
    cut = tmp_path / "cut"

    @worker.agent(consumes=Document, publishes=Echoed)
    async def echo(document: Document) -> Echoed:
        return Echoed(text=document.text + "!")

    @worker.agent(consumes="Film", publishes="Film", from_agents=["external"])
    async def cutter(film: dict[str, Any], ctx: Context) -> None:
        assert film == {}
        await ctx.payloads.download_to(ctx.artifacts[0].payload_ref, cut)
        stored = await ctx.payloads.upload(cut.read_bytes()[:1000], media_type="video/mp4")
        ctx.publish("Film", payload_ref=stored.ref, visibility=PRIVATE)

    async with Client(locked.target, api_key="admin-key") as admin:
        await admin.types.create("Film")
    async with Client(locked.target, api_key="publisher-key") as client, worker:
        text = "ö" * 300_000
        result = await client.publish_sync(Document(text=text), visibility=PRIVATE)
        assert (result.completed, result.failures) == (True, ())
        assert [each.payload for each in result.artifacts] == [{}, {}]
        made = await client.artifacts.get(result.artifacts[1].id)
        assert made.as_model(Echoed).text == text + "!"
        assert (await client.payloads.load(result.artifacts[0])).payload == {"text": text}
        film = b"".join(blocks(2))
        stored = await client.payloads.upload(film, media_type="video/mp4")
        result = await client.publish_sync("Film", payload_ref=stored.ref, visibility=PRIVATE)
        assert (result.completed, result.failures) == (True, ())
        assert cut.read_bytes() == film
        ran = await client.agents.run("cutter", NewArtifact("Film", payload_ref=stored.ref))
        assert (ran.completed, ran.failures) == (True, ())
    async with Client(locked.target, api_key="admin-key") as admin:
        short = await admin.artifacts.list(produced_by="cutter").all()
        assert [each.payload_ref for each in short] == [ref_of(film[:1000])] * 2
        assert await admin.payloads.read(short[0].payload_ref) == film[:1000]


async def test_the_command_line_carries_files_both_ways(stack: Stack, tmp_path: Path) -> None:
    film, copy = tmp_path / "film.mp4", tmp_path / "copy.mp4"
    film.write_bytes(b"".join(blocks(3)))
    upload = await stack.command("payloads", "upload", str(film), "--json")
    ref = ref_of(*blocks(3))
    await upload.line(ref)
    download = await stack.command("payloads", "download", ref, "-o", str(copy))
    assert await download.ended() == 0
    assert copy.read_bytes() == film.read_bytes()


@pytest.mark.parametrize("method", ["PUT", "DELETE", "GET"])
async def test_other_methods_are_refused_as_everywhere(stack: Stack, method: str) -> None:
    async with rest_client(stack.url) as client:
        answer = await client.request(method, PATH)
    assert answer.headers["allow"] == "OPTIONS, POST"
    check_error(answer, 405, "METHOD_NOT_ALLOWED")
