"""Bounds, keys, filters, dead letters and queues: requests as use cases take them, results as callers see them."""

from typing import Any

import pytest
from tests.rpc.conftest import Service
from tests.rpc.fakes import AT_US, ID, OTHER, task
from tests.rpc.test_services import _ask, _refused

from millstream.application.views.dead_letters import BulkWanted, DeadLetterQuery
from millstream.application.views.tasks import CreatedTask, TaskQuery, TaskView
from millstream.domain.bounds import Bounds
from millstream.domain.runs import TaskStatus

BOUNDS = {
    "concurrency": {"key": "shop", "limit": 3},
    "rate_limit": {"key": "mail", "limit": 10, "period": "60s"},
}


async def test_a_task_with_bounds_and_a_key_of_its_own(service: Service) -> None:
    """FV-3, FV-5"""
    wanted = BOUNDS | {"kind": "resize", "deduplication_key": "order 7", "deduplication_ttl": "3600s"}
    await _ask(service, "TaskService/CreateTask", wanted)
    new = service.fakes.tasks.calls[0][2]
    assert new.bounds == Bounds("shop", 3, "mail", 10, 60_000_000)
    assert (new.business_key, new.business_ttl_us) == ("order 7", 3_600_000_000)
    out = await _ask(service, "TaskService/CreateTaskBatch", {"tasks": [wanted, {"kind": "resize"}]})
    assert out["accepted"] == 2
    items = service.fakes.tasks.calls[1][2]
    assert (items[0].bounds, items[0].business_key) == (new.bounds, "order 7")
    assert (items[1].bounds, items[1].business_key) == (Bounds(), "")


async def test_a_task_shows_what_it_waits_for(service: Service) -> None:
    """FV-5: to everybody it is PENDING; a planner's own bound is shown to nobody."""
    found = task(TaskStatus.IN_LINE)
    found.bounds = Bounds("shop", 3, "mail", 10, 60_000_000)
    found.waits_for = "c:shop"
    service.fakes.tasks.answer = TaskView(found)
    out = await _ask(service, "TaskService/GetTask", {"task_id": ID})
    assert (out["status"], out["waiting_for"]) == ("PENDING", "concurrency:shop")
    assert {name: out[name] for name in BOUNDS} == BOUNDS
    found.waits_for = "r:mail"
    assert (await _ask(service, "TaskService/GetTask", {"task_id": ID}))["waiting_for"] == "rate:mail"
    found.bounds, found.waits_for, found.status = Bounds("~run/2", 5), "", TaskStatus.PENDING
    out = await _ask(service, "TaskService/GetTask", {"task_id": ID})
    assert {"concurrency", "rate_limit", "waiting_for", "dropped"} & set(out) == set()


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("concurrency", {"key": "", "limit": 1}, "concurrency.key"),
        ("concurrency", {"key": "~mine", "limit": 1}, "concurrency.key"),
        ("concurrency", {"key": "x" * 256, "limit": 1}, "concurrency.key"),
        ("concurrency", {"key": "x"}, "concurrency.limit"),
        ("concurrency", {"key": "x", "limit": 100_001}, "concurrency.limit"),
        ("rate_limit", {"key": "~mine", "limit": 1, "period": "1s"}, "rate_limit.key"),
        ("rate_limit", {"key": "x", "limit": 0, "period": "1s"}, "rate_limit.limit"),
        ("rate_limit", {"key": "x", "limit": 1}, "rate_limit.period"),
        ("rate_limit", {"key": "x", "limit": 1, "period": "0.05s"}, "rate_limit.period"),
        ("rate_limit", {"key": "x", "limit": 1, "period": "2678401s"}, "rate_limit.period"),
        ("deduplication_key", "x" * 256, "deduplication_key"),
        ("deduplication_ttl", "0.5s", "deduplication_ttl"),
        ("deduplication_ttl", "2592001s", "deduplication_ttl"),
    ],
)
async def test_bad_bounds_are_refused_by_their_field(service: Service, field: str, value: Any, fault: str) -> None:
    """FL-10: alone, and as an item that fails alone."""
    wanted = {"kind": "resize", field: value}
    assert await _refused(service, "TaskService/CreateTask", wanted) == fault
    out = await _ask(service, "TaskService/CreateTaskBatch", {"tasks": [wanted, {"kind": "resize"}]})
    assert [each["status"] for each in out["results"]] == ["failed", "accepted"]
    assert out["results"][0]["error"]["details"][0]["field"] == f"tasks[0].{fault}"


async def test_a_deduplicated_task_says_so(service: Service) -> None:
    """FV-3: the header of a replay tells that nothing was made."""
    service.fakes.tasks.answer = CreatedTask(task(), True)
    await _ask(service, "TaskService/CreateTask", {"kind": "resize", "deduplication_key": "k"})


async def test_filters_of_tasks(service: Service) -> None:
    """FV-5, FV-10"""
    await _ask(service, "TaskService/ListTasks", {})
    assert service.fakes.tasks.calls[-1][2] == TaskQuery()
    wanted = {
        "status": "FAILED",
        "run_id": OTHER.upper(),
        "agent": "payments",
        "worker": "w",
        "labels": ["b=x=y", "a="],
        "created_after": "2023-11-14T22:13:20Z",
    }
    await _ask(service, "TaskService/ListTasks", wanted | {"sort_order": "asc"})
    assert service.fakes.tasks.calls[-1][2] == TaskQuery(
        status=TaskStatus.FAILED, run_id=OTHER, agent="payments", worker="w", labels='{"a":"","b":"x=y"}',
        created_after_us=1_700_000_000_000_000, oldest_first=True,
    )  # fmt: skip
    await _ask(service, "TaskService/ListTasks", {"run_id": OTHER})
    assert service.fakes.tasks.calls[-1][2].oldest_first is False
    assert await _refused(service, "TaskService/ListTasks", {"labels": ["nothing"]}) == "labels[0]"
    assert await _refused(service, "TaskService/ListTasks", {"labels": ["a=1", "a=2"]}) == "labels"
    assert await _refused(service, "TaskService/ListTasks", {"sort_order": "up"}) == "sort_order"
    assert await _refused(service, "TaskService/ListTasks", {"run_id": "1"}) == "run_id"


async def test_dead_letters(service: Service) -> None:
    """Listed, tried again and dropped, each with its outcome."""
    chosen = {"kind": "resize", "queue": "q", "error_code": "BOOM", "since": "2023-11-14T22:13:20Z"}
    query = DeadLetterQuery("resize", "q", "BOOM", 1_700_000_000_000_000)
    out = await _ask(service, "TaskService/ListDeadLetters", chosen)
    assert (out["items"][0]["task_id"], out["items"][0]["status"]) == (ID, "FAILED")
    assert service.fakes.dead_letters.calls[-1][2] == query
    out = await _ask(service, "TaskService/RetryDeadLetters", {"filter": chosen, "note": "fixed"})
    assert service.fakes.dead_letters.calls[-1][2] == BulkWanted(query=query, note="fixed")
    assert {name: out[name] for name in ("matched", "done", "failed", "more")} == {
        "matched": 3, "done": 1, "failed": 1, "more": True,
    }  # fmt: skip
    assert [(each["task_id"], each["status"]) for each in out["results"]] == [(ID, "done"), (OTHER, "failed")]
    assert out["results"][1]["error"]["code"] == "CONFLICT"
    out = await _ask(service, "TaskService/DropDeadLetters", {"task_ids": [ID.upper()], "dry_run": True})
    assert service.fakes.dead_letters.calls[-1][2] == BulkWanted((ID,), dry_run=True)
    assert out == {"matched": 2}
    assert await _refused(service, "TaskService/DropDeadLetters", {"task_ids": ["1"]}) == "task_ids[0]"


async def test_queues(service: Service) -> None:
    """Listed with what stands in them, paused and resumed."""
    out = await _ask(service, "QueueService/ListQueues", {"page_size": 5})
    assert out["items"] == [{"queue": "default", "running": 10_001}]
    assert await _ask(service, "QueueService/GetThroughput", {}) == {
        "window_s": 60, "tasks_completed": 7, "tasks_failed": 6, "tasks_retried": 5, "tasks_cancelled": 4,
        "runs_completed": 3, "runs_failed": 2, "runs_cancelled": 1,
    }  # fmt: skip
    out = await _ask(service, "QueueService/PauseQueue", {"queue": "slow", "reason": "a move"})
    assert service.fakes.queues.calls[-1][2:] == ("slow", "a move", None)
    at = "2023-11-14T22:13:20.123456Z"
    assert AT_US == 1_700_000_000_123_456
    assert out == {
        "queue": "slow", "ready": 1, "in_line": 2, "scheduled": 3, "running": 4, "oldest_ready_at": at,
        "paused": True, "paused_at": at, "paused_by": "root", "pause_reason": "a move",
    }  # fmt: skip
    assert await _ask(service, "QueueService/ResumeQueue", {"queue": "slow"}) == {"queue": "slow"}
    assert await _refused(service, "QueueService/PauseQueue", {"queue": "~timer"}) == "queue"
    assert await _refused(service, "QueueService/ResumeQueue", {"queue": ""}) == "queue"
