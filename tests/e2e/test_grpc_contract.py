"""The contract over gRPC: native, through Envoy, and as gRPC-Web."""

from __future__ import annotations

import asyncio
import base64
import struct
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc  # type: ignore[import-untyped]
from tests.e2e.answers import check_ok
from tests.e2e.simple_worker import SimpleWorker
from tests.e2e.stack import Process, Stack

from millstream.v1 import (
    agent_service_pb2,
    agent_service_pb2_grpc,
    artifact_service_pb2,
    artifact_service_pb2_grpc,
    run_pb2,
    run_service_pb2,
    run_service_pb2_grpc,
    task_service_pb2,
    task_service_pb2_grpc,
    worker_service_pb2,
    worker_service_pb2_grpc,
)
from millstream.v1.artifact_service_pb2 import PublishRequest, PublishResponse, PublishSyncRequest

SERVICES = [
    f"millstream.v1.{name}Service"
    for name in (
        "Artifact",
        "Payload",
        "Queue",
        "Workflow",
        "Correlation",
        "Agent",
        "Run",
        "Task",
        "TaskLog",
        "Promise",
        "Queue",
        "Worker",
        "Stream",
        "Tenant",
        "WorkflowExecution",
        "Workflow",
        "Documentation",
        "System",
    )
]


@pytest.fixture(params=["native", "through the proxy"])
def channel(
    request: pytest.FixtureRequest, servers: list[grpc.aio.Channel], through_proxy: grpc.aio.Channel
) -> grpc.aio.Channel:
    """A server itself, and the proxy."""
    return servers[0] if request.param == "native" else through_proxy


def as_tenant(tenant: str, **metadata: str) -> tuple[tuple[str, str], ...]:
    """Metadata of a call in a tenant; `_` stands for `-`."""
    return (("x-tenant", tenant), *((name.replace("_", "-"), value) for name, value in metadata.items()))


async def reflected(channel: grpc.aio.Channel, **asked: str) -> Any:
    """The answer of the reflection service."""
    request = reflection_pb2.ServerReflectionRequest(**asked)
    async for answer in reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request])):
        return answer
    raise AssertionError("reflection said nothing")


async def test_reflection_lists_every_service_and_describes_its_messages(channel: grpc.aio.Channel) -> None:
    """DC-1, DC-2, DC-6: the services, health and reflection, and their messages."""
    listed = await reflected(channel, list_services="")
    names = {service.name for service in listed.list_services_response.service}
    assert names == {*SERVICES, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    for name in (*SERVICES, "millstream.v1.PublishRequest"):
        described = await reflected(channel, file_containing_symbol=name)
        assert described.file_descriptor_response.file_descriptor_proto
    unknown = await reflected(channel, file_containing_symbol="millstream.v1.Nonsense")
    assert unknown.HasField("error_response")


async def test_health_tells_of_the_server_and_of_each_service(channel: grpc.aio.Channel) -> None:
    """WM-12: grpc.health.v1, checked and watched."""
    stub = health_pb2_grpc.HealthStub(channel)
    for name in ("", *SERVICES):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=""))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(health_pb2.HealthCheckRequest(service="nonsense"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_cascade_over_grpc(channel: grpc.aio.Channel, orders: Process) -> None:
    """DC-2, FL-2, FL-5: a sync publish, and the cascade's id in the metadata."""
    request = PublishSyncRequest(type="Order", payload={"order_id": "g", "amount": 1, "items": []})  # type: ignore[arg-type]
    call = artifact_service_pb2_grpc.ArtifactServiceStub(channel).PublishSync(request)
    answer = await call
    assert [artifact.type for artifact in answer.artifacts] == ["Order", "Payment", "Shipment", "Notification"]
    told = dict(await call.initial_metadata() or ()) | dict(await call.trailing_metadata() or ())
    assert told["x-correlation-id"] == answer.correlation_id


async def test_an_idempotency_key_is_a_metadata_header(
    channel: grpc.aio.Channel, own: httpx.AsyncClient, tenant: str
) -> None:
    """DC-3, FL-8: x-idempotency-key; the replay says so; REST and gRPC share the key."""
    stub = artifact_service_pb2_grpc.ArtifactServiceStub(channel)
    metadata = as_tenant(tenant, x_idempotency_key="k")
    first = await stub.Publish(PublishRequest(type="Note"), metadata=metadata)
    call = stub.Publish(PublishRequest(type="Note"), metadata=metadata)
    assert await call == first
    assert dict(await call.trailing_metadata() or ())["idempotency-replayed"] == "true"
    over_rest = await own.post("/api/v1/artifacts", json={"type": "Note"}, headers={"x-idempotency-key": "k"})
    assert check_ok(over_rest)["artifact_id"] == first.artifact_id
    assert over_rest.headers["idempotency-replayed"] == "true"


async def test_the_areas_of_the_contract_answer_over_grpc(
    channel: grpc.aio.Channel, own: httpx.AsyncClient, tenant: str
) -> None:
    """DC-1, DC-2: publish, runs, tasks and agents, each with its own stub."""
    metadata = as_tenant(tenant)
    published = await artifact_service_pb2_grpc.ArtifactServiceStub(channel).Publish(
        PublishRequest(type="Note"), metadata=metadata
    )
    runs = run_service_pb2_grpc.RunServiceStub(channel)
    run = await runs.GetRun(run_service_pb2.GetRunRequest(run_id=published.correlation_id), metadata=metadata)
    assert (run.kind, run.status) == (run_pb2.RunKind.CASCADE, run_pb2.Run.COMPLETED)
    task = await task_service_pb2_grpc.TaskServiceStub(channel).CreateTask(
        task_service_pb2.CreateTaskRequest(kind="k"), metadata=metadata
    )
    assert task.status == run_pb2.Task.PENDING
    agents = await agent_service_pb2_grpc.AgentServiceStub(channel).ListAgents(
        agent_service_pb2.ListAgentsRequest(), metadata=metadata
    )
    assert list(agents.items) == []


async def test_a_worker_s_stream_goes_through_the_proxy(
    channel: grpc.aio.Channel, own: httpx.AsyncClient, tenant: str
) -> None:
    """DC-2, DC-6: the stream in both directions, without the SDK: hello, lease, delivery, completion, drain."""
    outgoing: asyncio.Queue[worker_service_pb2.WorkRequest | None] = asyncio.Queue()

    async def requests() -> AsyncIterator[worker_service_pb2.WorkRequest]:
        while (message := await outgoing.get()) is not None:
            yield message

    hello = worker_service_pb2.WorkRequest()
    hello.hello.protocol, hello.hello.worker_id, hello.hello.slots = 1, str(uuid.uuid4()), 1
    hello.hello.kinds.append("k")
    outgoing.put_nowait(hello)
    stream: Any = worker_service_pb2_grpc.WorkerServiceStub(channel).Work(requests(), metadata=as_tenant(tenant))
    welcome = (await stream.read()).welcome
    assert welcome.session_id
    assert welcome.lease.ToTimedelta().total_seconds() == 2
    task_id = check_ok(await own.post("/api/v1/tasks", json={"kind": "k", "input": "x"}), 201)["task_id"]
    lease = None
    while lease is None:
        message = await stream.read()
        lease = next(iter(message.leases), None)
    assert (lease.task_id, lease.attempt, lease.input.string_value) == (task_id, 1, "x")
    done = worker_service_pb2.WorkRequest(number=1)
    done.delivered.add(task_id=task_id, attempt=1)
    done.completions.add(task_id=task_id, attempt=1).output.string_value = "y"
    outgoing.put_nowait(done)
    while (await stream.read()).ack < 1:
        pass
    outgoing.put_nowait(None)
    assert await stream.read() is grpc.aio.EOF
    assert check_ok(await own.get(f"/api/v1/tasks/{task_id}"))["output"] == "y"


async def test_what_is_wrong_comes_as_rich_errors(channel: grpc.aio.Channel, own: Any, tenant: str) -> None:
    """FL-10: google.rpc.Status with ErrorInfo, BadRequest for fields; the correlation id in both places."""
    cases: list[tuple[str, Any, grpc.StatusCode, str, list[str]]] = [
        ("Publish", PublishRequest(type="Nope"), grpc.StatusCode.NOT_FOUND, "NOT_FOUND", []),
        ("Publish", PublishRequest(), grpc.StatusCode.INVALID_ARGUMENT, "VALIDATION_ERROR", ["type"]),
        (
            "PublishSync", PublishSyncRequest(type="Note", timeout=0.5, tags=["a", "a"]),
            grpc.StatusCode.INVALID_ARGUMENT, "VALIDATION_ERROR", ["tags", "timeout"],
        ),
    ]  # fmt: skip
    stub = artifact_service_pb2_grpc.ArtifactServiceStub(channel)
    for method, request, code, reason, fields in cases:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await getattr(stub, method)(request, metadata=as_tenant(tenant, x_correlation_id="label-1"))
        assert caught.value.code() is code
        trailers: Any = dict(caught.value.trailing_metadata())
        assert trailers["x-correlation-id"] == "label-1"
        status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        assert status.details[0].Unpack(info)
        assert (info.reason, info.domain, info.metadata["correlation_id"]) == (reason, "millstream", "label-1")
        if fields:
            assert status.details[1].Unpack(bad)
        assert [violation.field for violation in bad.field_violations] == fields


async def test_a_deadline_is_kept(channel: grpc.aio.Channel, own: httpx.AsyncClient, tenant: str) -> None:
    """FL-3: the caller's own deadline ends the call, whatever the request's timeout says; the artifact is stored."""
    agent = {"name": "nobody", "subscriptions": [{"types": ["Note"]}]}
    check_ok(await own.post("/api/v1/agents", json=agent), 201)
    stub = artifact_service_pb2_grpc.ArtifactServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.PublishSync(PublishSyncRequest(type="Note", timeout=30), metadata=as_tenant(tenant), timeout=0.5)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert check_ok(await own.get("/api/v1/artifacts"))["pagination"]["total"] == 1


async def test_a_method_that_there_is_not_is_unimplemented(channel: grpc.aio.Channel) -> None:
    """FL-10: NOT_IMPLEMENTED, in our form."""
    call: Any = channel.unary_unary("/millstream.v1.ArtifactService/Nonsense")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    trailers: Any = dict(caught.value.trailing_metadata())
    assert "grpc-status-details-bin" in trailers


def frame(message: bytes, flags: int = 0) -> bytes:
    """A message of gRPC-Web."""
    return struct.pack(">BI", flags, len(message)) + message


def frames(body: bytes) -> list[tuple[int, bytes]]:
    """The messages and trailers of gRPC-Web."""
    found = []
    while body:
        flags, size = struct.unpack(">BI", body[:5])
        found.append((flags, body[5 : 5 + size]))
        body = body[5 + size :]
    return found


@pytest.mark.parametrize("text", [False, True], ids=["binary", "text"])
async def test_a_browser_speaks_grpc_web(own: httpx.AsyncClient, text: bool) -> None:
    """DC-6: a publish and an error through Envoy as application/grpc-web(-text)+proto."""
    path = "/millstream.v1.ArtifactService/Publish"
    kind = "application/grpc-web-text+proto" if text else "application/grpc-web+proto"
    for name, status in (("Note", b"0"), ("Nope", b"5")):
        body = frame(PublishRequest(type=name).SerializeToString())
        headers = {"content-type": kind, "accept": kind, "x-grpc-web": "1"}
        response = await own.post(path, content=base64.b64encode(body) if text else body, headers=headers)
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(kind.removesuffix("+proto"))
        parts = frames(b"".join(map(base64.b64decode, _quads(response.content))) if text else response.content)
        if not parts:
            assert response.headers["grpc-status"].encode() == status
            continue
        assert parts[-1][0] == 0x80
        assert b"grpc-status:" + status in parts[-1][1].replace(b" ", b"")
        if name == "Note":
            assert PublishResponse.FromString(parts[0][1]).status == "accepted"


def _quads(body: bytes) -> list[bytes]:
    """Pieces of base64 that end with padding: text frames are joined, each with its own."""
    pieces, piece = [], b""
    for start in range(0, len(body), 4):
        piece += body[start : start + 4]
        if piece.endswith(b"="):
            pieces.append(piece)
            piece = b""
    return [*pieces, piece]


async def test_many_calls_share_a_connection(channel: grpc.aio.Channel, own: Any, tenant: str) -> None:
    """DC-2, FL-16: two hundred at once."""
    stub = artifact_service_pb2_grpc.ArtifactServiceStub(channel)
    calls = [stub.Publish(PublishRequest(type="Note"), metadata=as_tenant(tenant)) for _ in range(200)]
    answers = await asyncio.gather(*calls)
    assert len({answer.artifact_id for answer in answers}) == 200
    listed = await stub.ListArtifacts(
        artifact_service_pb2.ListArtifactsRequest(page_size=500), metadata=as_tenant(tenant)
    )
    assert listed.pagination.total == 200


async def test_polling_workers_share_the_work_over_both_servers(
    own: httpx.AsyncClient, servers: list[grpc.aio.Channel], tenant: str
) -> None:
    """DC-6, FV-19: tasks made through either server reach a worker of the other at once."""
    workers = [SimpleWorker(channel, tenant) for channel in servers]
    for worker in workers:
        waiting = asyncio.create_task(worker.poll("k"))
        made = check_ok(await own.post("/api/v1/tasks", json={"kind": "k"}), 201)
        async with asyncio.timeout(5):
            (lease,) = await waiting
        assert lease.task_id == made["task_id"]
        await worker.complete(lease)


async def test_the_stack_is_one_service(stack: Stack, own: httpx.AsyncClient, tenant: str) -> None:
    """DC-2: what one server stores the other reads at once."""
    stubs = [
        artifact_service_pb2_grpc.ArtifactServiceStub(await stack.channel(stack.native(number))) for number in (0, 1)
    ]
    for writer, reader in ((0, 1), (1, 0)):
        made = await stubs[writer].Publish(PublishRequest(type="Note"), metadata=as_tenant(tenant))
        request = artifact_service_pb2.GetArtifactRequest(artifact_id=made.artifact_id)
        assert (await stubs[reader].GetArtifact(request, metadata=as_tenant(tenant))).id == made.artifact_id


async def test_no_message_to_a_worker_outgrows_what_clients_take(
    servers: list[grpc.aio.Channel], own: httpx.AsyncClient, tenant: str
) -> None:
    """DC-6: five hundred leases whose artifacts have a visibility of 13 KB each, in messages below 4 MiB."""
    agent = {"name": "taker", "subscriptions": [{"types": ["Note"]}]}
    check_ok(await own.post("/api/v1/agents", json=agent), 201)
    readers = ["taker", *(f"{number:0128}" for number in range(99))]
    item = {"type": "Note", "visibility": {"kind": "Private", "agents": readers}}
    for _ in range(2):
        body = check_ok(await own.post("/api/v1/artifacts/batch", json={"artifacts": [item] * 250}))
        assert body["accepted"] == 250
    hello = worker_service_pb2.WorkRequest()
    hello.hello.protocol, hello.hello.worker_id, hello.hello.slots = 1, str(uuid.uuid4()), 1000
    hello.hello.kinds.append("agent:taker")

    async def requests() -> AsyncIterator[worker_service_pb2.WorkRequest]:
        yield hello
        await asyncio.Event().wait()

    stream: Any = worker_service_pb2_grpc.WorkerServiceStub(servers[0]).Work(requests(), metadata=as_tenant(tenant))
    leased: set[str] = set()
    async with asyncio.timeout(20):
        while len(leased) < 500:
            message = await stream.read()
            leased |= {lease.task_id for lease in message.leases}
    stream.cancel()


async def test_no_poll_brings_more_than_clients_take(
    servers: list[grpc.aio.Channel], own: httpx.AsyncClient, tenant: str
) -> None:
    """DC-6: thirty tasks of 900 KB, asked for at once: they come in answers below 4 MiB, and none costs an attempt."""
    batch = {"tasks": [{"kind": "k", "input": "x" * 900_000, "retry": {"max_attempts": 1}}] * 3}
    for _ in range(10):
        assert check_ok(await own.post("/api/v1/tasks/batch", json=batch))["accepted"] == 3
    worker = SimpleWorker(servers[0], tenant)
    done = 0
    while done < 30:
        for lease in await worker.poll("k", tasks=100):
            assert lease.tries == 1
            await worker.complete(lease)
            done += 1
    listed = check_ok(await own.get("/api/v1/tasks", params={"status": "COMPLETED"}))
    assert listed["pagination"]["total"] == 30


async def test_a_worker_with_room_for_much_is_sent_much(
    servers: list[grpc.aio.Channel], own: httpx.AsyncClient, tenant: str
) -> None:
    """DC-6: 27 MB of tasks that waited, on one stream, to one worker that reads them in its own time."""
    batch = {"tasks": [{"kind": "k", "input": "x" * 900_000}] * 3}
    for _ in range(10):
        assert check_ok(await own.post("/api/v1/tasks/batch", json=batch))["accepted"] == 3
    hello = worker_service_pb2.WorkRequest()
    hello.hello.protocol, hello.hello.worker_id, hello.hello.slots = 1, str(uuid.uuid4()), 100
    hello.hello.kinds.append("k")

    async def requests() -> AsyncIterator[worker_service_pb2.WorkRequest]:
        yield hello
        await asyncio.Event().wait()

    stream: Any = worker_service_pb2_grpc.WorkerServiceStub(servers[0]).Work(requests(), metadata=as_tenant(tenant))
    leased: set[str] = set()
    async with asyncio.timeout(20):
        while len(leased) < 30:
            leased |= {lease.task_id for lease in (await stream.read()).leases}
    stream.cancel()
