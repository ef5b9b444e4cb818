"""Standalone tasks over REST, through Envoy and both servers: bounds, keys of their own, dead letters, queues."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import grpc
import httpx
import pytest
from tests.e2e.answers import check_error, check_ok
from tests.e2e.simple_worker import SimpleWorker

Client = httpx.AsyncClient
ONCE = {"max_attempts": 1}


@pytest.fixture
def workers(servers: list[grpc.aio.Channel], tenant: str) -> tuple[SimpleWorker, SimpleWorker]:
    """Workers of the test's own tenant, one at each server, that do what they are told."""
    return SimpleWorker(servers[0], tenant), SimpleWorker(servers[1], tenant)


async def create(client: Client, **fields: Any) -> dict[str, Any]:
    """A standalone task."""
    response = await client.post("/api/v1/tasks", json={"kind": "k", "retry": ONCE} | fields)
    task: dict[str, Any] = check_ok(response, 201)
    return task


async def get(client: Client, task_id: str) -> dict[str, Any]:
    """A task."""
    task: dict[str, Any] = check_ok(await client.get(f"/api/v1/tasks/{task_id}"))
    return task


async def test_a_concurrency_key_bounds_what_runs_at_both_servers(
    own: Client, workers: tuple[SimpleWorker, SimpleWorker]
) -> None:
    """FV-5: of many tasks two run at once, whoever asks; others of their kind do not wait for them."""
    bound = {"key": "shop", "limit": 2}
    tasks = check_ok(await own.post("/api/v1/tasks/batch", json={"tasks": [{"kind": "k", "concurrency": bound}] * 5}))[
        "results"
    ]
    first = await workers[0].poll("k", tasks=5)
    leases = [*first, *(await workers[1].poll("k", tasks=5, wait=0.5))]
    if len(leases) < 2:
        leases += await workers[0].poll("k", tasks=5)
    assert len(leases) == 2
    waiting = await get(own, tasks[4]["task_id"])
    assert (waiting["status"], waiting["waiting_for"], waiting["concurrency"]) == ("PENDING", "concurrency:shop", bound)
    free = await create(own)
    assert [lease.task_id for lease in await workers[1].poll("k", tasks=5)] == [free["task_id"]]
    done: list[str] = []
    while leases:
        lease = leases.pop()
        done.append(lease.task_id)
        await workers[0].complete(lease)
        if len(done) + len(leases) < 5:
            leases += await workers[len(done) % 2].poll("k", tasks=5)
        assert len(leases) <= 2
    assert sorted(done) == sorted(task["task_id"] for task in tasks)
    listed = check_ok(await own.get("/api/v1/tasks", params={"status": "COMPLETED", "sort_order": "asc"}))["items"]
    assert [task["task_id"] for task in listed] == [task["task_id"] for task in tasks]


async def test_a_rate_lets_the_next_start_when_its_period_is_over(
    own: Client, workers: tuple[SimpleWorker, SimpleWorker]
) -> None:
    """FV-5: over both servers; who waits is woken, and says what it waits for."""
    bound = {"key": "mail", "limit": 1, "period": "4s"}
    for _ in range(2):
        last = await create(own, rate_limit=bound)
    (first,) = await workers[0].poll("k", tasks=5)
    waiting = await get(own, last["task_id"])
    assert (waiting["waiting_for"], waiting["rate_limit"]) == ("rate:mail", {**bound, "period": "4s"})
    await workers[0].complete(first)
    (second,) = await workers[1].poll("k", tasks=5)
    starts = [(await get(own, lease.task_id))["started_at"] for lease in (first, second)]
    assert starts[0] < starts[1]
    await workers[1].complete(second)


async def test_a_task_is_made_once_for_its_key(own: Client, workers: tuple[SimpleWorker, SimpleWorker]) -> None:
    """FV-3, FL-8: a duplicate is answered with the task that stands; one that failed frees the key."""
    fields: dict[str, Any] = {"deduplication_key": "order-7", "deduplication_ttl": "3600s"}
    first = await create(own, **fields, input=1)
    response = await own.post("/api/v1/tasks", json={"kind": "k", "input": 2} | fields)
    assert response.headers["idempotency-replayed"] == "true"
    assert response.json()["task_id"] == first["task_id"]
    batch = check_ok(await own.post("/api/v1/tasks/batch", json={"tasks": [{"kind": "k"} | fields]}))
    assert [(each["status"], each["task_id"]) for each in batch["results"]] == [("duplicate", first["task_id"])]
    (lease,) = await workers[0].poll("k")
    await workers[0].fail(lease, "DECLINED", "no cover")
    again = await create(own, **fields)
    assert again["task_id"] != first["task_id"]


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"concurrency": {"key": "shop"}}, "concurrency.limit"),
        ({"concurrency": {"key": "~shop", "limit": 1}}, "concurrency.key"),
        ({"concurrency": {"key": "shop", "limit": 1, "most": 2}}, "concurrency.most"),
        ({"rate_limit": {"key": "mail", "limit": 1}}, "rate_limit.period"),
        ({"rate_limit": {"key": "mail", "limit": 1, "period": "0.01s"}}, "rate_limit.period"),
        ({"deduplication_key": "k" * 256}, "deduplication_key"),
    ],
)
async def test_bad_bounds_are_refused_by_their_field(own: Client, fields: dict[str, Any], fault: str) -> None:
    """FL-10"""
    check_error(await own.post("/api/v1/tasks", json={"kind": "k"} | fields), 422, "VALIDATION_ERROR", fault)


async def test_dead_letters_are_listed_retried_and_dropped(
    own: Client, workers: tuple[SimpleWorker, SimpleWorker]
) -> None:
    """By filter and by ids, a dry run first; each with its outcome."""
    worker = workers[1]
    tasks = [await create(own, labels={"team": "x"}) for _ in range(3)]
    for code in ("DECLINED", "DECLINED", "BROKEN"):
        (lease,) = await worker.poll("k")
        await worker.fail(lease, code, "no cover")
    listed = check_ok(await own.get("/api/v1/dead-letters", params={"kind": "k", "page_size": 2}))
    assert [task["task_id"] for task in listed["items"]] == [tasks[2]["task_id"], tasks[1]["task_id"]]
    assert listed["pagination"]["total"] == 3
    token = listed["pagination"]["next_page_token"]
    rest = check_ok(await own.get("/api/v1/dead-letters", params={"kind": "k", "page_token": token}))
    assert [task["task_id"] for task in rest["items"]] == [tasks[0]["task_id"]]
    chosen = {"filter": {"error_code": "DECLINED"}, "note": "mended"}
    dry = check_ok(await own.post("/api/v1/dead-letters/retry", json=chosen | {"dry_run": True}))
    assert (dry["matched"], dry["results"]) == (2, [])
    key = {"x-idempotency-key": str(uuid.uuid4())}
    done = check_ok(await own.post("/api/v1/dead-letters/retry", json=chosen, headers=key))
    assert (done["matched"], done["done"], done["failed"], done["more"]) == (2, 2, 0, False)
    for _ in range(2):
        (lease,) = await worker.poll("k")
        assert lease.attempt == 2
        await worker.complete(lease)
    again = await own.post("/api/v1/dead-letters/retry", json=chosen, headers=key)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["done"] == 2
    assert (await get(own, tasks[0]["task_id"]))["status"] == "COMPLETED"
    ids = {"task_ids": [tasks[2]["task_id"], tasks[0]["task_id"]]}
    done = check_ok(await own.post("/api/v1/dead-letters/drop", json=ids))
    assert [each["status"] for each in done["results"]] == ["done", "failed"]
    assert done["results"][1]["error"]["code"] == "CONFLICT"
    assert check_ok(await own.get("/api/v1/dead-letters"))["items"] == []
    assert (await get(own, tasks[2]["task_id"]))["dropped"] is True
    found = check_ok(await own.get("/api/v1/tasks", params={"labels": "team=x", "status": "FAILED"}))["items"]
    assert [task["task_id"] for task in found] == [tasks[2]["task_id"]]
    check_error(await own.post("/api/v1/dead-letters/drop", json={}), 422, "VALIDATION_ERROR", "task_ids")


async def test_a_queue_is_paused_and_resumed(own: Client, workers: tuple[SimpleWorker, SimpleWorker]) -> None:
    """Through whichever server; the list says so, and what waits there."""
    request = worker_poll(workers[1])
    paused = check_ok(await own.post("/api/v1/queues/slow/pause", json={"reason": "a move"}))
    assert (paused["queue"], paused["paused"], paused["pause_reason"]) == ("slow", True, "a move")
    task = await create(own, queue="slow")
    listed = check_ok(await own.get("/api/v1/queues"))["items"]
    shown = {queue["queue"]: queue for queue in listed}["slow"]
    assert (shown["ready"], shown["paused_by"]) == (1, "developer")
    assert "oldest_ready_at" in shown
    assert await request(wait=1.2) == []
    resumed = check_ok(await own.post("/api/v1/queues/slow/resume", json={}))
    assert resumed["paused"] is False
    (lease,) = await request()
    assert lease.task_id == task["task_id"]
    await workers[1].complete(lease)
    check_error(await own.post("/api/v1/queues/~timer/pause", json={}), 422, "VALIDATION_ERROR", "queue")
    check_error(await own.post("/api/v1/queues/slow/pause", json={"why": "x"}), 422, "VALIDATION_ERROR", "why")


def worker_poll(worker: SimpleWorker) -> Any:
    """How a worker asks for tasks of the queue "slow"."""
    from millstream.v1 import worker_service_pb2

    async def poll(wait: float = 20.0) -> list[Any]:
        request = worker_service_pb2.PollRequest(
            worker_id=worker.worker_id, name="simple", kinds=["k"], queues=["slow"], max_tasks=1, wait=wait
        )
        async with asyncio.timeout(30):
            return list((await worker._stub.Poll(request, metadata=worker._metadata)).leases)

    return poll
