"""Bad input over gRPC, native and through Envoy: what no JSON scanner has seen."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from tests.e2e.answers import check_ok
from tests.e2e.simple_worker import SimpleWorker
from tests.e2e.stored import Stored

from millstream.v1 import agent_service_pb2, artifact_pb2, worker_service_pb2, worker_service_pb2_grpc
from millstream.v1.agent_service_pb2 import CreateAgentRequest
from millstream.v1.artifact_service_pb2 import (
    CreateArtifactTypeRequest,
    ListArtifactsRequest,
    PublishBatchRequest,
    PublishBatchResponse,
    PublishRequest,
    PublishSyncRequest,
)
from millstream.v1.run_service_pb2 import GetRunRequest, ListRunEventsRequest, ListRunsRequest
from millstream.v1.task_service_pb2 import CreateTaskBatchRequest, CreateTaskRequest
from millstream.v1.worker_service_pb2 import CompleteRequest, FailRequest, HeartbeatRequest, PollRequest

INVALID = grpc.StatusCode.INVALID_ARGUMENT
ID = str(uuid.uuid4())


@dataclass(frozen=True)
class Bad:
    """A call and what it must get."""

    rpc: str
    request: Message | bytes
    field: str = ""
    reason: str = "VALIDATION_ERROR"
    key: str | bytes | None = None

    @property
    def raw(self) -> bytes:
        """The request as it is sent."""
        return self.request if isinstance(self.request, bytes) else self.request.SerializeToString()


def made(message: Any, change: Callable[[Any], object]) -> Any:
    """A message with something done to it that its constructor does not take."""
    change(message)
    return message


def publish(change: Callable[[Any], object]) -> Any:
    """A publish of a Note with something done to its payload."""
    return made(PublishRequest(type="Note"), lambda request: change(request.payload))


def deep(depth: int) -> Callable[[Any], object]:
    """Fill a payload so many levels deep."""

    def fill(payload: Any) -> None:
        for _ in range(depth - 1):
            payload = payload.fields["a"].struct_value
        payload.fields["a"].number_value = 1

    return fill


def deep_list(depth: int) -> Callable[[Any], object]:
    """The same with lists."""

    def fill(payload: Any) -> None:
        value = payload.fields["a"]
        for _ in range(depth - 1):
            value = value.list_value.values.add()
        value.number_value = 1

    return fill


def after(seconds: int) -> artifact_pb2.Visibility:
    """Hidden for a while."""
    visibility = artifact_pb2.Visibility(kind="After")
    visibility.ttl.seconds = seconds
    return visibility


def chain(levels: int) -> artifact_pb2.Visibility:
    """After, then after, then after."""
    out = after(1)
    for _ in range(levels - 1):
        outer = after(1)
        outer.then.CopyFrom(out)
        out = outer
    return out


def task(change: Callable[[Any], object]) -> Any:
    """A task with something done to it."""
    return made(CreateTaskRequest(kind="k"), change)


def text(size: int) -> Any:
    """A publish of a long text."""
    return publish(lambda payload: payload.update({"a": "x" * size}))


NAN, INF = math.nan, math.inf
PUBLISH, SYNC, TASK = "ArtifactService/Publish", "ArtifactService/PublishSync", "TaskService/CreateTask"
LIST = "ArtifactService/ListArtifacts"
COMPLETE, FAIL, BEAT = "WorkerService/Complete", "WorkerService/Fail", "WorkerService/Heartbeat"
LARGE = "PAYLOAD_TOO_LARGE"
TEXT_KEY = "x-idempotency-key"

CASES: dict[str, Bad] = {
    # -- bytes that are no message
    "no protobuf": Bad(PUBLISH, b"\xff\xff\xff\xff", reason="BAD_REQUEST"),
    "half a message": Bad(PUBLISH, b"\x0a\x10Note", reason="BAD_REQUEST"),
    "a name that is not UTF-8": Bad(PUBLISH, b"\x0a\x01\xff", reason="BAD_REQUEST"),
    "a surrogate in UTF-8": Bad(PUBLISH, b"\x0a\x03\xed\xa0\x80", reason="BAD_REQUEST"),
    "another wire type": Bad(PUBLISH, b"\x08\x05", "type"),
    "a payload that is none": Bad(PUBLISH, b"\x0a\x04Note\x12\x02\xff\xff", "payload"),
    "a name in a payload that is not UTF-8": Bad(
        PUBLISH, b"\x0a\x04Note\x12\x09\x0a\x07\x0a\x01\xff\x12\x02\x08\x00", "payload"
    ),
    # -- odd numbers
    "NaN": Bad(PUBLISH, publish(lambda p: p.update({"a": NAN})), "payload.a"),
    "infinity": Bad(PUBLISH, publish(lambda p: p.update({"a": {"b": [1, INF]}})), "payload.a.b[1]"),
    "minus infinity": Bad(TASK, task(lambda t: t.input.struct_value.update({"a": -INF})), "input.a"),
    "NaN timeout": Bad(SYNC, PublishSyncRequest(type="Note", timeout=NAN), "timeout"),
    "infinite timeout": Bad(SYNC, PublishSyncRequest(type="Note", timeout=INF), "timeout"),
    "negative timeout": Bad(SYNC, PublishSyncRequest(type="Note", timeout=-1), "timeout"),
    "huge timeout": Bad(SYNC, PublishSyncRequest(type="Note", timeout=1e308), "timeout"),
    "NaN factor": Bad(TASK, task(lambda t: setattr(t.retry, "factor", NAN)), "retry.factor"),
    "NaN jitter": Bad(TASK, task(lambda t: setattr(t.retry, "jitter", NAN)), "retry.jitter"),
    "priority": Bad(TASK, CreateTaskRequest(kind="k", priority=-(2**31)), "priority"),
    # -- times
    "a time after all": Bad(TASK, task(lambda t: setattr(t.run_at, "seconds", 2**62)), "run_at"),
    "a time before all": Bad(TASK, task(lambda t: setattr(t.run_at, "seconds", -(2**62))), "run_at"),
    "negative nanos": Bad(TASK, task(lambda t: setattr(t.run_at, "nanos", -1)), "run_at"),
    "a huge delay": Bad(TASK, task(lambda t: setattr(t.delay, "seconds", 2**62)), "delay"),
    "a negative delay": Bad(TASK, task(lambda t: setattr(t.delay, "seconds", -(2**62))), "delay"),
    "a huge ttl": Bad(PUBLISH, PublishRequest(type="Note", visibility=after(2**62)), "visibility.ttl"),
    "a list before all": Bad(LIST, made(ListArtifactsRequest(), lambda q: setattr(q.created_to, "nanos", -1)), "to"),
    # -- depth
    "depth 31": Bad(PUBLISH, publish(deep(31)), "payload" + ".a" * 30),
    "depth 40": Bad(PUBLISH, publish(deep(40)), "payload"),
    "depth 100": Bad(PUBLISH, publish(deep(100)), "payload"),
    "depth 31 of lists": Bad(PUBLISH, publish(deep_list(31)), "payload.a" + "[0]" * 29),
    "visibility of nine": Bad(PUBLISH, PublishRequest(type="Note", visibility=chain(9)), "visibility.then"),
    # -- enums, ids, keys
    "an unknown status": Bad("RunService/ListRuns", ListRunsRequest(status=99), "status"),  # type: ignore[arg-type]
    "a negative status": Bad("RunService/ListRuns", ListRunsRequest(status=-1), "status"),  # type: ignore[arg-type]
    "an unknown kind": Bad("RunService/ListRuns", ListRunsRequest(kind=99), "kind"),  # type: ignore[arg-type]
    "an unknown agent status": Bad("AgentService/ListAgents", agent_service_pb2.ListAgentsRequest(status=9), "status"),  # type: ignore[arg-type]
    "no UUID": Bad("RunService/GetRun", GetRunRequest(run_id="abc"), "run_id"),
    "no id": Bad("RunService/GetRun", GetRunRequest(), "run_id"),
    "no page": Bad(LIST, ListArtifactsRequest(page_size=0), "page_size"),
    "events of none": Bad("RunService/ListRunEvents", ListRunEventsRequest(run_id=ID, limit=1001), "limit"),
    "an empty key": Bad(PUBLISH, PublishRequest(type="Note"), TEXT_KEY, key=""),
    "a key of 256": Bad(PUBLISH, PublishRequest(type="Note"), TEXT_KEY, key="k" * 256),
    "a batch of none": Bad("ArtifactService/PublishBatch", PublishBatchRequest(), "artifacts"),
    "a batch of 1001": Bad(
        "TaskService/CreateTaskBatch", CreateTaskBatchRequest(tasks=[{"kind": "k"}] * 1001), "tasks"  # type: ignore[list-item]
    ),
    # -- text
    "NUL in a name": Bad("AgentService/CreateAgent", CreateAgentRequest(name="a\0"), "name"),
    "NUL in a label": Bad(TASK, CreateTaskRequest(kind="k", labels={"a": "\0"}), "labels"),
    "NUL in a tag": Bad(PUBLISH, PublishRequest(type="Note", tags=["a", "\0"]), "tags[1]"),
    # -- sizes
    "a payload of 1.1 MB": Bad(PUBLISH, text(1_100_000), reason=LARGE),
    "a request of 5 MB": Bad(PUBLISH, text(5_000_000), reason=LARGE),
    "a request of 10 MB": Bad(PUBLISH, text(10_000_000), reason=LARGE),
    "a schema of 300 KB": Bad(
        "ArtifactService/CreateArtifactType", CreateArtifactTypeRequest(name="A", schema={"title": "x" * 300_000}),  # type: ignore[arg-type]
        reason=LARGE,
    ),
    "a schema that is none": Bad(
        "ArtifactService/CreateArtifactType", CreateArtifactTypeRequest(name="A", schema={"type": 5}), "schema",  # type: ignore[arg-type]
    ),
    # -- workers
    "a worker without an id": Bad("WorkerService/Poll", PollRequest(kinds=["k"]), "worker_id"),
    "a worker of no kinds": Bad("WorkerService/Poll", PollRequest(worker_id=ID), "kinds"),
    "a wait of NaN": Bad("WorkerService/Poll", PollRequest(worker_id=ID, kinds=["k"], wait=NAN), "wait"),
    "nothing to complete": Bad(COMPLETE, CompleteRequest(), "completions"),
    "a completion of no task": Bad(
        COMPLETE, made(CompleteRequest(), lambda c: c.completions.add(attempt=1)), "completions[0].task_id"
    ),
    "attempt 0": Bad(BEAT, made(HeartbeatRequest(), lambda h: h.leases.add(task_id=ID)), "leases[0].attempt"),
    "a code of 129": Bad(
        FAIL,
        made(FailRequest(), lambda f: f.failures.add(task_id=ID, attempt=1, code="x" * 129)),
        "failures[0].code",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bad", CASES.values(), ids=list(CASES))
async def test_bad_input_is_told_and_not_stored(
    own: httpx.AsyncClient,
    stored: Stored,
    tenant: str,
    servers: list[grpc.aio.Channel],
    through_proxy: grpc.aio.Channel,
    bad: Bad,
) -> None:
    """Issue 2, FL-10: status, reason and the field; nothing is stored; the same natively and through Envoy."""
    before = await stored.counts()
    metadata = [("x-tenant", tenant)]
    if bad.key is not None:
        metadata.append((TEXT_KEY, str(bad.key)))
    for channel in (servers[0], through_proxy):
        call: Any = channel.unary_unary(f"/millstream.v1.{bad.rpc}")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(bad.raw, metadata=tuple(metadata), timeout=20)
        assert caught.value.code() is INVALID, caught.value
        trailers: Any = dict(caught.value.trailing_metadata())
        status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
        info, fields = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        assert status.details[0].Unpack(info)
        assert info.reason == bad.reason, caught.value
        if bad.field:
            assert status.details[1].Unpack(fields)
        assert [violation.field for violation in fields.field_violations] == ([bad.field] if bad.field else [])
        assert sum(len(str(value)) for value in trailers.values()) < 8192
    assert await stored.counts() == before


async def test_over_16_mb_grpc_itself_refuses(servers: list[grpc.aio.Channel]) -> None:
    """Issue 2: before it is ours to answer; nothing else suffers."""
    call: Any = servers[0].unary_unary("/millstream.v1.ArtifactService/Publish")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"\0" * 17_000_000)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_bad_item_of_a_batch_fails_alone(
    own: httpx.AsyncClient, servers: list[grpc.aio.Channel], tenant: str
) -> None:
    """FL-11: natively too, where nothing was scanned before."""
    request = PublishBatchRequest()
    request.artifacts.add(type="Note")
    request.artifacts.add(type="Note").payload.update({"a": NAN})
    request.artifacts.add(type="Note", visibility=after(2**62))
    request.artifacts.add(type="Note", tags=["\0"])
    deep(31)(request.artifacts.add(type="Note").payload)
    request.artifacts.add(type="Note", payload={"b": 1})
    call: Any = servers[0].unary_unary("/millstream.v1.ArtifactService/PublishBatch")
    raw = await call(request.SerializeToString(), metadata=(("x-tenant", tenant),))
    results = PublishBatchResponse.FromString(raw).results
    assert [result.status for result in results] == ["accepted", "failed", "failed", "failed", "failed", "accepted"]
    fields = [detail.field for result in results for detail in result.error.details]
    assert fields == [
        "artifacts[1].payload.a", "artifacts[2].visibility.ttl", "artifacts[3].tags[0]",
        "artifacts[4].payload" + ".a" * 30,
    ]  # fmt: skip


async def test_a_bad_report_fails_alone(own: httpx.AsyncClient, servers: list[grpc.aio.Channel], tenant: str) -> None:
    """DC-6: of three reports the good one is stored; outcomes stand in the order of the request."""
    worker = SimpleWorker(servers[0], tenant)
    made_task = check_ok(await own.post("/api/v1/tasks", json={"kind": "k"}), 201)
    (lease,) = await worker.poll("k")
    results = await worker.heartbeat(
        (lease.task_id, 1), (ID, 1), (lease.task_id, 7), (lease.task_id, 4294967295), (lease.task_id, 1)
    )
    assert [(result.task_id, result.attempt, result.error.code) for result in results] == [
        (made_task["task_id"], 1, ""),
        (ID, 1, "NOT_FOUND"),
        (made_task["task_id"], 7, "LEASE_LOST"),
        (made_task["task_id"], 4294967295, "LEASE_LOST"),
        (made_task["task_id"], 1, ""),
    ]
    # A bad one ends its task, so it is another's.
    check_ok(await own.post("/api/v1/tasks", json={"kind": "k"}), 201)
    (other,) = await worker.poll("k")
    request = CompleteRequest()
    request.completions.add(task_id=ID, attempt=1)
    request.completions.add(task_id=other.task_id, attempt=1).output.number_value = NAN
    request.completions.add(task_id=lease.task_id, attempt=2)
    request.completions.add(task_id=lease.task_id, attempt=1).output.number_value = 5
    stub = worker_service_pb2_grpc.WorkerServiceStub(servers[0])
    answer = await stub.Complete(request, metadata=(("x-tenant", tenant),))
    assert [result.error.code for result in answer.results] == ["NOT_FOUND", "VALIDATION_ERROR", "LEASE_LOST", ""]
    assert check_ok(await own.get(f"/api/v1/tasks/{lease.task_id}"))["output"] == 5


BAD_HELLOS: dict[str, tuple[dict[str, Any], str]] = {
    "no hello": ({}, "hello"),
    "another protocol": ({"protocol": 2, "worker_id": ID, "slots": 1}, "hello.protocol"),
    "no id": ({"protocol": 1, "slots": 1}, "hello.worker_id"),
    "no slots": ({"protocol": 1, "worker_id": ID}, "hello.slots"),
    "too many slots": ({"protocol": 1, "worker_id": ID, "slots": 10001}, "hello.slots"),
    "an agent without a name": ({"protocol": 1, "worker_id": ID, "slots": 1, "agents": [{}]}, "hello.agents[0].name"),
    "a NUL": ({"protocol": 1, "worker_id": ID, "slots": 1, "name": "a\0"}, "hello.name"),
    "an empty kind": ({"protocol": 1, "worker_id": ID, "slots": 1, "kinds": [""]}, "hello.kinds[0]"),
}


@pytest.mark.parametrize(("hello", "field"), BAD_HELLOS.values(), ids=list(BAD_HELLOS))
async def test_a_bad_hello_ends_the_stream_with_its_field(
    servers: list[grpc.aio.Channel], tenant: str, hello: dict[str, Any], field: str
) -> None:
    """DC-6, FL-10: as any bad request."""
    message = worker_service_pb2.WorkRequest(hello=hello) if hello else worker_service_pb2.WorkRequest(credit=1)  # type: ignore[arg-type]

    async def requests() -> Any:
        yield message
        await asyncio.Event().wait()

    call: Any = worker_service_pb2_grpc.WorkerServiceStub(servers[0]).Work(requests(), metadata=(("x-tenant", tenant),))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is INVALID
    trailers: Any = dict(caught.value.trailing_metadata())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    fields = error_details_pb2.BadRequest()
    assert status.details[1].Unpack(fields)
    assert [violation.field for violation in fields.field_violations] == [field]
