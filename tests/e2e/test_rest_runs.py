"""Runs, tasks, events and attempts over REST; cancelling them; and a worker that dies."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import grpc
import httpx
import pytest
from tests.e2e.answers import check_error, check_ok
from tests.e2e.conftest import AGENTS
from tests.e2e.simple_worker import SimpleWorker
from tests.e2e.stack import Process, Stack

Client = httpx.AsyncClient
RUN = {
    "run_id", "kind", "status", "created_at", "updated_at", "finished_at", "task_count", "open_tasks", "failed_tasks",
    "artifact_count", "last_sequence", "open_gates", "parent_run_ids", "created_by", "labels", "retry_attempt",
    "rerun_of", "workflow", "workflow_version", "parent_run_id", "parent_task_id",
    "progress",
}  # fmt: skip


@pytest.fixture
def worker(servers: list[grpc.aio.Channel], tenant: str) -> SimpleWorker:
    """A worker of the test's own tenant that does what it is told, on the second server."""
    return SimpleWorker(servers[1], tenant)


async def events(client: Client, run_id: str, **params: Any) -> list[dict[str, Any]]:
    """The events of a run."""
    found: list[dict[str, Any]] = check_ok(await client.get(f"/api/v1/runs/{run_id}/events", params=params))["items"]
    return found


async def test_a_cascade_is_a_run_with_tasks_and_events(rest: Client, orders: Process) -> None:
    """DC-1, FV-4 as far as /api/v1: the run's counts, its tasks in the order made, its events without a gap."""
    order = {"type": "Order", "payload": {"order_id": "run", "amount": 1, "items": []}}
    run_id = check_ok(await rest.post("/api/v1/artifacts/sync", json=order))["correlation_id"]
    run = check_ok(await rest.get(f"/api/v1/runs/{run_id}"))
    assert set(run) == RUN
    assert {name: run[name] for name in ("kind", "status", "task_count", "open_tasks", "failed_tasks")} == {
        "kind": "CASCADE", "status": "COMPLETED", "task_count": 3, "open_tasks": 0, "failed_tasks": 0,
    }  # fmt: skip
    assert (run["artifact_count"], run["created_by"]) == (4, "developer")
    tasks = check_ok(await rest.get(f"/api/v1/runs/{run_id}/tasks"))["items"]
    assert [(task["kind"], task["agent"], task["status"]) for task in tasks] == [
        ("agent:payments", "payments", "COMPLETED"),
        ("agent:shipping", "shipping", "COMPLETED"),
        ("agent:notifier", "notifier", "COMPLETED"),
    ]
    assert len({task["worker"] for task in tasks}) == 1
    found = await events(rest, run_id)
    assert [event["sequence"] for event in found] == list(range(1, run["last_sequence"] + 1))
    assert [event["type"] for event in found] == [
        "RUN_CREATED", "ARTIFACT_PUBLISHED",
        *["TASK_CREATED", "TASK_STARTED", "TASK_COMPLETED", "ARTIFACT_PUBLISHED"] * 3,
        "RUN_COMPLETED",
    ]  # fmt: skip
    assert found[1]["data"] == {"type": "Order", "produced_by": "external"}


async def test_events_are_paged_by_sequence(rest: Client, orders: Process) -> None:
    """FV-4: after_sequence and limit; next_after_sequence until the last page."""
    order = {"type": "Order", "payload": {"order_id": "pages", "amount": 1, "items": []}}
    run_id = check_ok(await rest.post("/api/v1/artifacts/sync", json=order))["correlation_id"]
    whole = await events(rest, run_id)
    found: list[dict[str, Any]] = []
    after: int | None = 0
    pages = 0
    while after is not None:
        params = {"after_sequence": after, "limit": 4}
        body = check_ok(await rest.get(f"/api/v1/runs/{run_id}/events", params=params))
        found += body["items"]
        after = body.get("next_after_sequence")
        pages += 1
    assert found == whole
    assert pages == 4
    assert await events(rest, run_id, after_sequence=4294967295) == []
    for params in ({"limit": 0}, {"limit": 1001}):
        response = await rest.get(f"/api/v1/runs/{run_id}/events", params=params)
        check_error(response, 422, "VALIDATION_ERROR", "limit")


async def test_runs_are_filtered_by_status_kind_and_time(own: Client) -> None:
    """FV-4, WM-5 as far as built: in any case of the names; times from inclusive, to exclusive."""
    cascade = check_ok(await own.post("/api/v1/artifacts/sync", json={"type": "Note"}))["correlation_id"]
    single = check_ok(await own.post("/api/v1/tasks", json={"kind": "k"}), 201)["run_id"]
    created_at = check_ok(await own.get(f"/api/v1/runs/{single}"))["created_at"]
    filters: list[tuple[dict[str, str], list[str]]] = [
        ({}, [single, cascade]),
        ({"status": "running"}, [single]),
        ({"status": "COMPLETED"}, [cascade]),
        ({"kind": "Cascade"}, [cascade]),
        ({"kind": "SINGLE", "status": "FAILED"}, []),
        ({"created_after": created_at}, [single]),
        ({"created_before": created_at}, [cascade]),
    ]
    for params, expected in filters:
        body = check_ok(await own.get("/api/v1/runs", params=params))
        assert [run["run_id"] for run in body["items"]] == expected, params
        assert body["pagination"]["total"] == len(expected)


async def test_a_task_keeps_all_it_was_given(own: Client) -> None:
    """DC-1: 201 with the task; a get gives the same, a list the same without its input."""
    given = {
        "kind": "resize:v1.2", "input": {"b": [1, None, {"a": ""}], "a": 2.5}, "queue": "images", "priority": -100,
        "delay": "3600s", "labels": {"team": "red"},
        "retry": {
            "initial_interval": "2s", "factor": 3, "maximum_interval": "20s", "jitter": 0.5, "max_attempts": 9,
            "non_retryable_codes": ["NO"],
        },
        "timeouts": {"schedule_to_start": "60s", "start_to_close": "30s", "heartbeat": "5s"},
    }  # fmt: skip
    made = check_ok(await own.post("/api/v1/tasks", json=given), 201)
    assert {name: made[name] for name in given if name != "delay"} == {
        name: value for name, value in given.items() if name != "delay"
    }
    assert (made["status"], made["attempt"], made["max_attempts"]) == ("SCHEDULED", 0, 9)
    assert made["run_at"] > made["created_at"]
    assert check_ok(await own.get(f"/api/v1/tasks/{made['task_id']}")) == made
    (listed,) = check_ok(await own.get("/api/v1/tasks"))["items"]
    assert listed == {name: value for name, value in made.items() if name != "input"}
    run = check_ok(await own.get(f"/api/v1/runs/{made['run_id']}"))
    assert (run["kind"], run["labels"]) == ("SINGLE", {"team": "red"})


async def test_tasks_are_filtered_by_status_kind_queue_and_time(own: Client) -> None:
    """FV-5 as far as /api/v1."""
    ids = []
    for kind, queue, delay in (("a", "", ""), ("b", "slow", ""), ("b", "", "60s")):
        request = {"kind": kind} | ({"queue": queue} if queue else {}) | ({"delay": delay} if delay else {})
        ids.append(check_ok(await own.post("/api/v1/tasks", json=request), 201)["task_id"])
    created_at = check_ok(await own.get(f"/api/v1/tasks/{ids[1]}"))["created_at"]
    filters: list[tuple[dict[str, str], list[str]]] = [
        ({}, ids[::-1]),
        ({"status": "pending"}, [ids[1], ids[0]]),
        ({"status": "SCHEDULED"}, [ids[2]]),
        ({"kind": "b"}, [ids[2], ids[1]]),
        ({"queue": "slow"}, [ids[1]]),
        ({"queue": "default", "kind": "b"}, [ids[2]]),
        ({"created_after": created_at}, [ids[2], ids[1]]),
        ({"created_before": created_at}, [ids[0]]),
    ]
    for params, expected in filters:
        body = check_ok(await own.get("/api/v1/tasks", params=params))
        assert [task["task_id"] for task in body["items"]] == expected, params
        assert body["pagination"]["total"] == len(expected)


async def test_a_task_is_done_and_shows_its_output(own: Client, worker: SimpleWorker) -> None:
    """DC-1, DC-6: created over REST, leased, reported and completed over gRPC on another server."""
    made = check_ok(await own.post("/api/v1/tasks", json={"kind": "k", "input": {"n": 1}}), 201)
    (lease,) = await worker.poll("k")
    assert (lease.task_id, lease.attempt, lease.input.struct_value.fields["n"].number_value) == (made["task_id"], 1, 1)
    running = check_ok(await own.get(f"/api/v1/tasks/{made['task_id']}"))
    assert (running["status"], running["worker"], running["attempt"]) == ("RUNNING", "simple", 1)
    await worker.progress(lease, 0.7, "most of it")
    halfway = check_ok(await own.get(f"/api/v1/tasks/{made['task_id']}"))
    assert (halfway["progress"], halfway["progress_message"]) == (0.7, "most of it")
    await worker.complete(lease, {"sum": 3, "parts": [1, 2], "none": None})
    done = check_ok(await own.get(f"/api/v1/tasks/{made['task_id']}"))
    assert (done["status"], done["output"]) == ("COMPLETED", {"sum": 3, "parts": [1, 2], "none": None})
    (attempt,) = check_ok(await own.get(f"/api/v1/tasks/{made['task_id']}/attempts"))["items"]
    assert (attempt["status"], attempt["worker"], attempt["output"]) == ("COMPLETED", "simple", done["output"])
    assert attempt["duration_ms"] > 0


async def test_a_failing_task_shows_each_attempt(own: Client, worker: SimpleWorker) -> None:
    """FV-5, FV-11 as far as /api/v1: code and message of every one, and of the run; paged by number."""
    request = {"kind": "k", "retry": {"max_attempts": 3, "initial_interval": "0s"}}
    made = check_ok(await own.post("/api/v1/tasks", json=request), 201)
    for number in range(1, 4):
        (lease,) = await worker.poll("k")
        assert (lease.attempt, lease.tries, lease.idempotency_token) == (number, number, made["task_id"])
        await worker.fail(lease, "FLAKY", f"attempt {number}")
    attempts = check_ok(await own.get(f"/api/v1/tasks/{made['task_id']}/attempts"))["items"]
    assert [(each["attempt"], each["status"], each["error"]["message"]) for each in attempts] == [
        (number, "FAILED", f"attempt {number}") for number in (1, 2, 3)
    ]
    path = f"/api/v1/tasks/{made['task_id']}/attempts"
    page = check_ok(await own.get(path, params={"limit": 2}))
    assert ([each["attempt"] for each in page["items"]], page["next_after_attempt"]) == ([1, 2], 2)
    page = check_ok(await own.get(path, params={"after_attempt": 2}))
    assert ([each["attempt"] for each in page["items"]], "next_after_attempt" in page) == ([3], False)
    run = check_ok(await own.get(f"/api/v1/runs/{made['run_id']}"))
    assert (run["status"], run["error"]) == ("FAILED", {"code": "FLAKY", "message": "attempt 3"})
    kinds = [event["type"] for event in await events(own, made["run_id"])]
    assert kinds.count("TASK_RETRY") == 2
    assert kinds[-2:] == ["TASK_FAILED", "RUN_FAILED"]


async def test_a_waiting_task_is_cancelled_at_once(own: Client) -> None:
    """FV-5 as far as /api/v1: 200 with the task; its run ends with it; the reason is kept."""
    made = check_ok(await own.post("/api/v1/tasks", json={"kind": "k"}), 201)
    cancelled = check_ok(await own.post(f"/api/v1/tasks/{made['task_id']}/cancel", json={"reason": "no need"}))
    assert (cancelled["status"], cancelled["error"]) == ("CANCELLED", {"code": "CANCELLED", "message": "no need"})
    assert check_ok(await own.get(f"/api/v1/runs/{made['run_id']}"))["status"] == "CANCELLED"
    assert check_ok(await own.get(f"/api/v1/tasks/{made['task_id']}"))["status"] == "CANCELLED"


async def test_a_cancelled_cascade_ends_its_tasks_and_wakes_who_waits(
    rest: Client, stack: Stack, agents: Process
) -> None:
    """FV-4 as far as /api/v1: the worker is told over its stream, and the sync publish comes back."""
    said = len(agents.lines)
    waiting = asyncio.create_task(rest.post("/api/v1/artifacts/sync", json={"type": "Patient"}))
    run_id = (await agents.line("waiting ", after=said)).split()[1]
    response = await rest.post(f"/api/v1/runs/{run_id}/cancel", json={"reason": "enough"})
    assert check_ok(response)["status"] in ("CANCELLING", "CANCELLED")
    body = check_ok(await waiting)
    assert (body["completed"], len(body["artifacts"])) == (True, 1)
    run = check_ok(await rest.get(f"/api/v1/runs/{run_id}"))
    assert (run["status"], run["error"]) == ("CANCELLED", {"code": "CANCELLED", "message": "enough"})
    kinds = [event["type"] for event in await events(rest, run_id)]
    assert kinds[-4:] == ["RUN_CANCELLING", "TASK_CANCELLING", "TASK_CANCELLED", "RUN_CANCELLED"]


async def test_cancelling_twice_changes_nothing(own: Client, worker: SimpleWorker) -> None:
    """FV-4 as far as /api/v1: while it is being cancelled; once it has ended it is a conflict."""
    made = check_ok(await own.post("/api/v1/tasks", json={"kind": "k"}), 201)
    (lease,) = await worker.poll("k")
    path = f"/api/v1/runs/{made['run_id']}/cancel"
    for _ in range(2):
        assert check_ok(await own.post(path, json={"reason": "r"}))["status"] == "CANCELLING"
    assert await worker.cancel_requested(lease)
    await worker.fail(lease, "STOPPED", "as asked")
    assert check_ok(await own.get(f"/api/v1/runs/{made['run_id']}"))["status"] == "CANCELLED"
    check_error(await own.post(path, json={}), 409, "CONFLICT")


async def test_what_a_worker_ignores_is_ended_after_the_grace(own: Client, worker: SimpleWorker) -> None:
    """FV-19: the server enforces it: nothing stays RUNNING for ever."""
    made = check_ok(await own.post("/api/v1/tasks", json={"kind": "k"}), 201)
    (lease,) = await worker.poll("k")
    check_ok(await own.post(f"/api/v1/tasks/{made['task_id']}/cancel", json={}))
    await until_status(own, made["task_id"], "CANCELLED")
    error = await worker.complete(lease, 1, refused=True)
    assert error == "LEASE_LOST"


async def until_status(client: Client, task_id: str, status: str) -> dict[str, Any]:
    """Wait until the task has the status: nothing of REST tells of it yet, so it is asked."""
    async with asyncio.timeout(20):
        while True:
            task: dict[str, Any] = check_ok(await client.get(f"/api/v1/tasks/{task_id}"))
            if task["status"] == status:
                return task
            await asyncio.sleep(0.05)


async def test_timeouts_are_enforced_by_the_server(own: Client, worker: SimpleWorker) -> None:
    """FV-19: schedule_to_start, start_to_close and heartbeat, each with its code."""
    cases = [
        ("never", {"schedule_to_start": "0.2s"}, False, "SCHEDULE_TO_START_TIMEOUT"),
        ("slow", {"start_to_close": "0.2s"}, True, "START_TO_CLOSE_TIMEOUT"),
        ("silent", {"heartbeat": "0.2s"}, True, "HEARTBEAT_TIMEOUT"),
    ]
    tasks = []
    for kind, timeouts, leased, code in cases:
        request = {"kind": kind, "timeouts": timeouts, "retry": {"max_attempts": 1}}
        made = check_ok(await own.post("/api/v1/tasks", json=request), 201)
        if leased:
            await worker.poll(kind)
        tasks.append((made["task_id"], code))
    for task_id, code in tasks:
        task = await until_status(own, task_id, "FAILED")
        assert task["error"]["code"] == code


async def test_a_killed_worker_s_task_is_taken_by_another(stack: Stack, rest: Client) -> None:
    """FV-19: within its lease; the attempts tell who had it."""
    first = await stack.worker(AGENTS, "first-holder", AGENTS="holds")
    made = check_ok(await rest.post("/api/v1/tasks", json={"kind": "hold", "input": "held"}), 201)
    await first.line(f"holding {made['task_id']}")
    second = await stack.worker(AGENTS, "second-holder", AGENTS="holds", MILLSTREAM_TARGET=stack.native(1))
    try:
        await first.kill()
        done = await until_status(rest, made["task_id"], "COMPLETED")
    finally:
        await second.stop()
    assert (done["output"], done["worker"]) == ("held by second-holder", "second-holder")
    attempts = check_ok(await rest.get(f"/api/v1/tasks/{made['task_id']}/attempts"))["items"]
    assert [(each["status"], each["worker"]) for each in attempts] == [
        ("LOST", "first-holder"), ("COMPLETED", "second-holder"),
    ]  # fmt: skip


async def test_ids_are_uuids(own: Client) -> None:
    """FL-10: anything else in a path is a field error, not a 404 or a fault."""
    for path, field in (
        ("artifacts/abc", "artifact_id"), ("runs/abc", "run_id"), ("runs/abc/events", "run_id"),
        ("runs/abc/tasks", "run_id"), ("tasks/abc", "task_id"), ("tasks/abc/attempts", "task_id"),
        (f"tasks/{uuid.uuid4()}x", "task_id"), (f"runs/{uuid.uuid4().hex}", "run_id"),
    ):  # fmt: skip
        check_error(await own.get(f"/api/v1/{path}"), 422, "VALIDATION_ERROR", field)
    for path, field in (("runs/abc/cancel", "run_id"), ("tasks/abc/cancel", "task_id")):
        check_error(await own.post(f"/api/v1/{path}", json={}), 422, "VALIDATION_ERROR", field)
