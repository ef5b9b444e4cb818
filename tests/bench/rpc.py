"""gRPC calls with requests encoded once, and checks of their answers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any

import grpc
from tests.bench.load import ensure

from millstream.v1.artifact_service_pb2 import (
    PublishBatchRequest,
    PublishBatchResponse,
    PublishResponse,
    PublishSyncRequest,
    PublishSyncResponse,
)
from millstream.v1.task_service_pb2 import CreateTaskBatchRequest, CreateTaskBatchResponse, CreateTaskResponse

PUBLISH = "/millstream.v1.ArtifactService/Publish"
SYNC = "/millstream.v1.ArtifactService/PublishSync"
BATCH = "/millstream.v1.ArtifactService/PublishBatch"
CREATE_TASK = "/millstream.v1.TaskService/CreateTask"
CREATE_TASKS = "/millstream.v1.TaskService/CreateTaskBatch"
TIMEOUT_S = 60.0

Method = Callable[[bytes], Awaitable[bytes]]


@contextlib.asynccontextmanager
async def method(port: int, path: str, metadata: Sequence[tuple[str, str]] = ()) -> AsyncIterator[Method]:
    """A method of the server on a port, as a function of bytes, on a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        await channel.channel_ready()
        call: Any = channel.unary_unary(path)

        async def ask(request: bytes) -> bytes:
            answer: bytes = await call(request, timeout=TIMEOUT_S, metadata=tuple(metadata))
            return answer

        yield ask


def sync_request(type_name: str, payload: dict[str, Any]) -> bytes:
    """A sync publish."""
    request = PublishSyncRequest(type=type_name, timeout=30)
    request.payload.update(payload)
    return request.SerializeToString()


def batch_request(type_name: str, payload: dict[str, Any], count: int) -> bytes:
    """A publish of a batch of the same."""
    return each_request(type_name, [payload] * count)


def each_request(type_name: str, payloads: Iterable[dict[str, Any]]) -> bytes:
    """A publish of a batch."""
    request = PublishBatchRequest()
    for payload in payloads:
        request.artifacts.add(type=type_name).payload.update(payload)
    return request.SerializeToString()


def tasks_request(kind: str, task_input: dict[str, Any], count: int) -> bytes:
    """A creation of tasks."""
    request = CreateTaskBatchRequest()
    for _ in range(count):
        request.tasks.add(kind=kind).input.struct_value.update(task_input)
    return request.SerializeToString()


def published(raw: bytes) -> None:
    """Check the answer to a publish."""
    ensure(PublishResponse.FromString(raw).status == "accepted", "publish", raw)


def cascaded(raw: bytes) -> None:
    """Check the answer to a sync publish of an order: all four artifacts, and nothing failed."""
    answer = PublishSyncResponse.FromString(raw)
    ensure(answer.completed and len(answer.artifacts) == 4 and not answer.failures, "sync publish", answer)


def batched(raw: bytes, count: int) -> None:
    """Check the answer to a batch."""
    answer = PublishBatchResponse.FromString(raw)
    ensure(answer.accepted == count and not answer.failed, "batch", answer)


def tasks_created(raw: bytes, count: int) -> None:
    """Check the answer to a creation of tasks."""
    answer = CreateTaskBatchResponse.FromString(raw)
    ensure(len(answer.results) == count and not answer.failed, "tasks", answer)


def task_created(raw: bytes) -> None:
    """Check the answer to a creation of a task."""
    ensure(bool(CreateTaskResponse.FromString(raw).task_id), "task", raw)
