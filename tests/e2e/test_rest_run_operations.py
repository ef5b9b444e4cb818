"""What operators do to runs, over REST: retry, rerun, pause, time out, find them, one or many."""

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
def worker(servers: list[grpc.aio.Channel], tenant: str) -> SimpleWorker:
    """A worker of the test's own tenant that does what it is told, on the second server."""
    return SimpleWorker(servers[1], tenant)


async def create(client: Client, **fields: Any) -> dict[str, Any]:
    """A standalone task."""
    task: dict[str, Any] = check_ok(await client.post("/api/v1/tasks", json={"kind": "k", "retry": ONCE} | fields), 201)
    return task


async def run_of(client: Client, run_id: str) -> dict[str, Any]:
    """A run."""
    run: dict[str, Any] = check_ok(await client.get(f"/api/v1/runs/{run_id}"))
    return run


async def until_failed(client: Client, run_id: str) -> dict[str, Any]:
    """Wait until the run has failed: nothing of REST tells of it yet, so it is asked."""
    async with asyncio.timeout(20):
        while True:
            run = await run_of(client, run_id)
            if run["status"] == "FAILED":
                return run
            await asyncio.sleep(0.05)


async def types(client: Client, run_id: str) -> list[str]:
    """Types of a run's events."""
    return [each["type"] for each in check_ok(await client.get(f"/api/v1/runs/{run_id}/events"))["items"]]


async def failed(client: Client, worker: SimpleWorker, **fields: Any) -> str:
    """The run of a task that failed."""
    made = await create(client, **fields)
    (lease,) = await worker.poll("k")
    await worker.fail(lease, "DECLINED", "no cover")
    return str(made["run_id"])


async def test_a_failed_run_is_retried(own: Client, worker: SimpleWorker) -> None:
    """FV-9, WM-4: only from FAILED; counts, clears the error, tells who and why, exceeds the automatic maximum."""
    run_id = await failed(own, worker)
    path = f"/api/v1/runs/{run_id}/retry"
    key = {"x-idempotency-key": str(uuid.uuid4())}
    response = await own.post(path, json={"note": "card replaced"}, headers=key)
    retried = check_ok(response)
    assert (retried["status"], retried["retry_attempt"], "error" in retried) == ("RUNNING", 1, False)
    (lease,) = await worker.poll("k")
    assert lease.attempt == 2
    check_error(await own.post(path, json={}), 409, "CONFLICT")
    await worker.complete(lease, "done")
    assert (await run_of(own, run_id))["status"] == "COMPLETED"
    events = check_ok(await own.get(f"/api/v1/runs/{run_id}/events"))["items"]
    asked = next(each for each in events if each["type"] == "RETRY_REQUESTED")
    assert asked["data"] == {"note": "card replaced", "by": "developer", "retry_attempt": 1, "tasks": 1}
    again = await own.post(path, json={"note": "card replaced"}, headers=key)
    assert again.headers["idempotency-replayed"] == "true"
    assert check_ok(again)["retry_attempt"] == 1
    check_error(await own.post(path, json={"from_step": "pay"}), 409, "CONFLICT")
    check_error(await own.post(path, json={"step": "pay"}), 422, "VALIDATION_ERROR", "step")
    check_error(await own.post(f"/api/v1/runs/{uuid.uuid4()}/retry", json={}), 404, "NOT_FOUND")


async def test_a_run_is_repeated(own: Client, worker: SimpleWorker) -> None:
    """FV-9: 201 with the new run, which names the one that it repeats."""
    run_id = await failed(own, worker, input={"n": 1}, labels={"env": "prod"}, run_timeout="3600s")
    rerun = check_ok(await own.post(f"/api/v1/runs/{run_id}/rerun", json={}), 201)
    assert (rerun["rerun_of"], rerun["labels"], rerun["timeout"]) == (run_id, {"env": "prod"}, "3600s")
    (lease,) = await worker.poll("k")
    assert (lease.run_id, lease.input.struct_value.fields["n"].number_value) == (rerun["run_id"], 1)
    published = check_ok(await own.post("/api/v1/artifacts", json={"type": "Note", "payload": {"n": 1}}))
    again = check_ok(await own.post(f"/api/v1/runs/{published['correlation_id']}/rerun", json={}), 201)
    items = check_ok(await own.get("/api/v1/artifacts", params={"correlation_id": again["run_id"]}))["items"]
    assert [each["payload"] for each in items] == [{"n": 1}]
    bad = await own.post(f"/api/v1/runs/{run_id}/rerun", json={"version": "2"})
    check_error(bad, 422, "VALIDATION_ERROR", "version")


async def test_a_paused_run_starts_nothing(own: Client, worker: SimpleWorker) -> None:
    """FV-5: through either server; another run of the same kind goes on."""
    held = await create(own)
    paused = check_ok(await own.post(f"/api/v1/runs/{held['run_id']}/pause", json={"reason": "look"}))
    assert "paused_at" in paused
    task = check_ok(await own.get(f"/api/v1/tasks/{held['task_id']}"))
    assert (task["status"], task["held"], task["run_at"]) == ("SCHEDULED", True, held["run_at"])
    other = await create(own)
    (lease,) = await worker.poll("k", tasks=2)
    assert lease.task_id == other["task_id"]
    assert await worker.poll("k", wait=0) == []
    resumed = check_ok(await own.post(f"/api/v1/runs/{held['run_id']}/resume", json={}))
    assert "paused_at" not in resumed
    (lease,) = await worker.poll("k")
    assert lease.task_id == held["task_id"]
    await worker.complete(lease)
    assert (await types(own, held["run_id"]))[2:4] == ["RUN_PAUSED", "RUN_RESUMED"]
    check_error(await own.post(f"/api/v1/runs/{held['run_id']}/pause", json={}), 409, "CONFLICT")


async def test_a_run_that_takes_too_long_fails(own: Client, worker: SimpleWorker) -> None:
    """FV-19: its worker is told, and after the grace it is ended, whatever that does."""
    made = await create(own, run_timeout="0.2s")
    (lease,) = await worker.poll("k")
    run = await until_failed(own, made["run_id"])
    assert run["error"] == {"code": "RUN_TIMEOUT", "message": "the run took longer than 0.2 s"}
    assert "RUN_TIMED_OUT" in await types(own, made["run_id"])
    assert await worker.complete(lease, 1, refused=True) == "LEASE_LOST"
    bad = await own.post("/api/v1/tasks", json={"kind": "k", "run_timeout": "0s"})
    check_error(bad, 422, "VALIDATION_ERROR", "run_timeout")


async def test_runs_are_found_by_what_they_have(own: Client, worker: SimpleWorker) -> None:
    """WM-5: statuses, labels, text, and sorted; bad filters name the field."""
    first = await failed(own, worker, labels={"env": "prod", "team": "a"})
    second = (await create(own, labels={"env": "prod"}))["run_id"]
    third = (await create(own))["run_id"]
    check_ok(await own.post(f"/api/v1/runs/{third}/cancel", json={"reason": "not needed"}))

    async def ids(**params: Any) -> list[str]:
        body = check_ok(await own.get("/api/v1/runs", params=params))
        assert body["pagination"]["total"] == len(body["items"])
        return [each["run_id"] for each in body["items"]]

    assert await ids(statuses=["failed", "CANCELLED"]) == [third, first]
    assert await ids(status="RUNNING", statuses=["FAILED"]) == [second, first]
    assert await ids(labels=["env=prod"]) == [second, first]
    assert await ids(labels=["env=prod", "team=a"]) == [first]
    assert await ids(text="COVER") == [first]
    spaced = check_ok(await own.get("/api/v1/runs?text=NO%20COVER"))
    assert [each["run_id"] for each in spaced["items"]] == [first]
    assert await ids(text="needed") == [third]
    assert await ids(text=second) == [second]
    assert await ids(sort_order="asc") == [first, second, third]
    assert await ids(sort_by="updated_at", sort_order="asc") == [first, second, third]
    for params, field in (
        ({"labels": "env"}, "labels[0]"), ({"sort_by": "id"}, "sort_by"), ({"parent_run_id": "1"}, "parent_run_id"),
    ):  # fmt: skip
        check_error(await own.get("/api/v1/runs", params=params), 422, "VALIDATION_ERROR", field)
    assert check_ok(await own.get(f"/api/v1/runs/{first}/children"))["items"] == []
    check_error(await own.get(f"/api/v1/runs/{uuid.uuid4()}/children"), 404, "NOT_FOUND")


async def test_many_runs_are_retried_and_cancelled(own: Client, worker: SimpleWorker) -> None:
    """Contract: the paths with a verb go through the proxy; a dry run first; each run has its outcome."""
    bad = [await failed(own, worker, labels={"env": "prod"}) for _ in range(2)]
    wanted = {"filter": {"labels": ["env=prod"]}, "note": "mended"}
    dry = check_ok(await own.post("/api/v1/runs:retry", json=wanted | {"dry_run": True}))
    assert [(each["run_id"], each["status"]) for each in dry["results"]] == [(each, "matched") for each in bad[::-1]]
    assert (dry["matched"], dry["accepted"]) == (2, 0)
    key = {"idempotency-key": str(uuid.uuid4())}
    done = check_ok(await own.post("/api/v1/runs:retry", json=wanted, headers=key))
    assert (done["accepted"], done["failed"], done["left"]) == (2, 0, 0)
    again = await own.post("/api/v1/runs:retry", json=wanted, headers=key)
    assert again.headers["idempotency-replayed"] == "true"
    assert {each["status"] for each in check_ok(again)["results"]} == {"duplicate"}
    request = {"run_ids": [*bad, str(uuid.uuid4())], "reason": "enough"}
    done = check_ok(await own.post("/api/v1/runs:cancel", json=request))
    assert [each["status"] for each in done["results"]] == ["accepted", "accepted", "failed"]
    assert done["results"][2]["error"]["code"] == "NOT_FOUND"
    assert {(await run_of(own, each))["status"] for each in bad} == {"CANCELLED"}
    check_error(await own.post("/api/v1/runs:cancel", json={}), 422, "VALIDATION_ERROR", "run_ids")
    check_error(await own.post("/api/v1/runs:cancel", json={"filter": {}}), 422, "VALIDATION_ERROR", "filter")
    check_error(await own.post("/api/v1/runs:drop", json={}), 404, "NOT_FOUND")
    refused = await own.get("/api/v1/runs:retry")
    check_error(refused, 405, "METHOD_NOT_ALLOWED")
    assert refused.headers["allow"] == "OPTIONS, POST"


async def test_what_is_stuck_is_told(own: Client, worker: SimpleWorker) -> None:
    """FV-19: what is retried, and what waits for a worker that is not there."""
    made = await create(own, retry={"max_attempts": 3, "initial_interval": "600s", "maximum_interval": "600s"})
    (lease,) = await worker.poll("k")
    await worker.fail(lease, "FLAKY", "again")
    (item,) = check_ok(await own.get("/api/v1/tasks/stuck"))["items"]
    assert (item["task"]["task_id"], item["task"]["error"]["code"]) == (made["task_id"], "FLAKY")
    assert item["since"] < item["next_attempt_at"]
    waits = await create(own, kind="nobody", queue="slow")
    body = check_ok(await own.get("/api/v1/tasks/stuck", params={"why": "waiting", "unserved": "true"}))
    assert [(each["task"]["task_id"], each["waiting"], each["served"]) for each in body["items"]] == [
        (waits["task_id"], 1, False)
    ]
    long = check_ok(await own.get("/api/v1/tasks/stuck", params={"for_at_least": "600s"}))
    assert long["items"] == []


async def test_a_workflows_run_is_retried_from_what_failed_or_a_step(own: Client, worker: SimpleWorker) -> None:
    """WM-4, FV-9: finished steps stay; from_step and what needs it run again; a rerun has the same input."""
    steps = [
        {"id": "pay", "kind": "task", "task": "pay", "input": "${input}", "retry": ONCE},
        {"id": "ship", "kind": "task", "task": "ship", "needs": ["pay"], "retry": ONCE},
    ]
    definition = {"name": "order", "steps": steps, "output": "${steps.ship.output}"}
    made = check_ok(await own.post("/api/v1/workflows", json={"definition": definition}), 201)
    execute = {"input": {"n": 1}, "labels": {"env": "prod"}, "run_timeout": "3600s"}
    run_id = check_ok(await own.post("/api/v1/workflows/order/execute", json=execute))["run_id"]

    async def work(kind: str, output: str = "") -> int:
        (lease,) = await worker.poll(kind)
        if output:
            await worker.complete(lease, output)
        else:
            await worker.fail(lease, "DECLINED", "no cover")
        return int(lease.input.struct_value.fields["n"].number_value)

    async def steps_of(run: str) -> dict[str, str]:
        items = check_ok(await own.get(f"/api/v1/runs/{run}/steps"))["items"]
        return {each["id"]: each["status"] for each in items}

    assert await work("pay", "paid") == 1
    await work("ship")
    failed_run = await until_failed(own, run_id)
    assert (failed_run["workflow"], failed_run["input"], failed_run["timeout"]) == ("order", {"n": 1}, "3600s")
    path = f"/api/v1/runs/{run_id}/retry"
    check_error(await own.post(path, json={"from_step": "pack"}), 422, "VALIDATION_ERROR", "from_step")
    retried = check_ok(await own.post(path, json={"note": "again"}))
    assert (retried["status"], retried["retry_attempt"]) == ("RUNNING", 1)
    await work("ship")
    await until_failed(own, run_id)
    check_ok(await own.post(path, json={"from_step": "pay"}))
    assert await work("pay", "paid twice") == 1
    await work("ship", "sent")
    result = check_ok(await own.get(f"/api/v1/runs/{run_id}/result"))
    assert (result["status"], result["output"]) == ("COMPLETED", "sent")
    assert await steps_of(run_id) == {"pay": "COMPLETED", "ship": "COMPLETED"}
    rerun = check_ok(await own.post(f"/api/v1/runs/{run_id}/rerun", json={"version": "latest"}), 201)
    assert (rerun["rerun_of"], rerun["labels"], rerun["workflow_version"]) == (run_id, {"env": "prod"}, "1")
    assert await work("pay", "paid") == 1
    for name in ("order", made["id"]):
        body = check_ok(await own.get("/api/v1/runs", params={"workflow_id": name}))
        assert [each["run_id"] for each in body["items"]] == [rerun["run_id"], run_id]
    done = check_ok(await own.post("/api/v1/runs:cancel", json={"filter": {"workflow_id": made["id"]}}))
    assert [each["run_id"] for each in done["results"]] == [rerun["run_id"]]
