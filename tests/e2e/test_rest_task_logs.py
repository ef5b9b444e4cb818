"""What tasks log, over REST: sent to one server by gRPC, read through Envoy from any (DC-6)."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest
from tests.e2e.answers import check_error, check_ok
from tests.e2e.simple_worker import SimpleWorker

from millstream.v1 import worker_pb2, worker_service_pb2_grpc
from millstream.v1.task_log_pb2 import LogAck, LogBatch, LogLine
from millstream.v1.worker_service_pb2 import StreamLogsRequest

Client = httpx.AsyncClient
KIND = "task-logs.talk"


@pytest.fixture
def worker(servers: list[grpc.aio.Channel], tenant: str) -> SimpleWorker:
    """A worker of the test's own tenant."""
    return SimpleWorker(servers[1], tenant)


def line(n: int, level: LogLine.Level.ValueType) -> LogLine:
    """A line of a level."""
    found = LogLine(level=level, message=f"line {n}", logger="shop")
    found.fields.update({"n": n, "deep": {"list": [None, True]}})
    found.time.FromMicroseconds(1_700_000_000_000_000 + n)
    return found


async def send(channel: grpc.aio.Channel, tenant: str, lease: worker_pb2.Lease, *lines: LogLine) -> LogAck:
    """Send lines, and hear how far they are stored."""

    async def batches() -> AsyncIterator[StreamLogsRequest]:
        batch = LogBatch(task_id=lease.task_id, attempt=lease.attempt, offset=1, lines=lines)
        yield StreamLogsRequest(batches=[batch])

    stub: Any = worker_service_pb2_grpc.WorkerServiceStub(channel)
    acks = [ack async for answer in stub.StreamLogs(batches(), metadata=(("x-tenant", tenant),)) for ack in answer.acks]
    found: LogAck = acks[-1]
    return found


async def test_what_a_task_logs_is_read_by_task_and_by_run(
    rest: Client, servers: list[grpc.aio.Channel], worker: SimpleWorker, tenant: str
) -> None:
    """WM-5, DC-6"""
    own = {"x-tenant": tenant}
    task = check_ok(await rest.post("/api/v1/tasks", json={"kind": KIND}, headers=own), 201)
    (lease,) = await worker.poll(KIND)
    levels = [LogLine.INFO, LogLine.WARN, LogLine.ERROR, LogLine.DEBUG]
    ack = await send(servers[0], tenant, lease, *(line(n, level) for n, level in enumerate(levels, 1)))
    assert (ack.offset, ack.again) == (4, False)
    path = f"/api/v1/tasks/{task['task_id']}/logs"
    page = check_ok(await rest.get(path, headers=own))
    assert page["pagination"] == {"total": 4, "page": 1, "page_size": 100, "total_pages": 1}
    assert page["items"][0] == {
        "sequence": 1, "run_id": task["run_id"], "task_id": task["task_id"], "attempt": 1, "offset": 1,
        "level": "INFO", "message": "line 1", "fields": {"n": 1, "deep": {"list": [None, True]}},
        "timestamp": "2023-11-14T22:13:20.000001Z", "logger": "shop", "cut": 0,
    }  # fmt: skip
    of_run = check_ok(await rest.get(f"/api/v1/runs/{task['run_id']}/logs", headers=own))
    assert of_run["items"] == page["items"]
    for params, wanted in (
        ({"level": "warn,ERROR"}, [2, 3]),
        ({"text": "4"}, [4]),
        ({"since": "2023-11-14T22:13:20.000002Z", "until": "2023-11-14T22:13:20.000004Z"}, [2, 3]),
        ({"newest_first": "true", "page_size": "1"}, [4]),
        ({"attempt": "2"}, []),
    ):
        items = check_ok(await rest.get(path, params=params, headers=own))["items"]
        assert [each["offset"] for each in items] == wanted, params
    check_error(await rest.get(path, params={"level": "LOUD"}, headers=own), 422, "VALIDATION_ERROR", "level")
    check_error(await rest.get(path, params={"level": "a b"}, headers=own), 422, "VALIDATION_ERROR", "level")
    check_error(await rest.get(path), 404, "NOT_FOUND")
    check_error(await rest.get(f"/api/v1/runs/{uuid.uuid4()}/logs", headers=own), 404, "NOT_FOUND")


async def test_the_documented_shape_below_the_path_of_a_tenant(
    rest: Client, servers: list[grpc.aio.Channel], worker: SimpleWorker, tenant: str
) -> None:
    """FV-12, to the letter: no field more, no field less."""
    own = {"x-tenant": tenant}
    task = check_ok(await rest.post("/api/v1/tasks", json={"kind": KIND}, headers=own), 201)
    (lease,) = await worker.poll(KIND)
    await send(servers[0], tenant, lease, *(line(n, LogLine.ERROR if n == 3 else LogLine.INFO) for n in range(1, 5)))
    path = f"/api/tenants/{tenant}/workflow-executions/{task['run_id']}/tasks/{task['task_id']}/logs"
    page = check_ok(await rest.get(path, headers=own))
    assert page == {
        "taskExecutionId": task["task_id"], "total": 4, "limit": 100, "offset": 0, "logs": page["logs"],
    }  # fmt: skip
    assert page["logs"][2] == {
        "id": f"{task['task_id']}-1-3", "level": "ERROR", "message": "line 3",
        "timestamp": "2023-11-14T22:13:20.000003Z",
    }  # fmt: skip
    page = check_ok(await rest.get(path, params={"level": "INFO", "limit": 2, "offset": 1}, headers=own))
    assert [each["message"] for each in page["logs"]] == ["line 2", "line 4"]
    assert (page["total"], page["limit"], page["offset"]) == (3, 2, 1)
    check_error(await rest.get(path, params={"limit": 1001}, headers=own), 422, "VALIDATION_ERROR", "limit")
    other = f"/api/tenants/{tenant}/workflow-executions/{uuid.uuid4()}/tasks/{task['task_id']}/logs"
    check_error(await rest.get(other, headers=own), 404, "NOT_FOUND")
