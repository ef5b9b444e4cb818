"""What Python's SDK sends of what tasks log: `ctx.log`, logging, threads, failures, workflows as code (DC-6)."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from tests.e2e.answers import check_ok
from tests.e2e.stack import Stack
from tests.e2e.test_commands import run

from millstream.sdk import Client, Context, RetryPolicy, TaskLogHandler, Worker, WorkflowContext

QUEUE = "task-logs"
_LIBRARY = logging.getLogger("task_logs.library")


@pytest.fixture
async def worker(stack: Stack) -> AsyncIterator[Worker]:
    """A worker of the default tenant that keeps no run in memory: each activation is led through its history."""
    worker = Worker(stack.native(0), name="logger", queues=[QUEUE], live_runs=0)

    @worker.task("task-logs.say")
    async def say(given: dict[str, Any], ctx: Context) -> None:
        ctx.log.info("begins", extra={"order": given["order"]})
        _LIBRARY.warning("told by a library")
        await asyncio.to_thread(_LIBRARY.error, "told in a thread")

    @worker.task("task-logs.sync")
    def sync(given: None, ctx: Context) -> None:
        for n in range(2500):
            ctx.log.info("line %d", n)

    @worker.task("task-logs.steps")
    async def steps(given: None, ctx: Context) -> None:
        for n in range(20):
            ctx.log.info("step %d", n)
            await asyncio.sleep(0.02)

    @worker.task("task-logs.fail")
    async def fail(given: None, ctx: Context) -> None:
        ctx.log.info("attempt %d", ctx.attempt)
        if ctx.attempt == 1:
            raise LookupError("it is gone")

    @worker.workflow("task-logs.flow")
    async def flow(ctx: WorkflowContext, given: None) -> None:
        for n in range(3):
            ctx.log.info("before %d", n)
            _LIBRARY.info("library %d", n)
            await ctx.sleep(0.01)
        ctx.log.info("after")

    handler = TaskLogHandler()
    _LIBRARY.addHandler(handler)
    _LIBRARY.setLevel(logging.INFO)
    async with worker:
        yield worker
    _LIBRARY.removeHandler(handler)


async def logged(rest: httpx.AsyncClient, path: str, count: int) -> list[dict[str, Any]]:
    """The lines, once there are so many: what a task logs is stored a moment after its end."""
    async with asyncio.timeout(20):
        while True:
            page = check_ok(await rest.get(f"{path}/logs", params={"page_size": 1000}))
            if page["pagination"]["total"] >= count:
                return list(page["items"])
            await asyncio.sleep(0.02)


async def test_what_a_task_logs_is_sent_with_its_fields(rest: httpx.AsyncClient, worker: Worker, stack: Stack) -> None:
    """DC-6: by its own logger, by others with the handler, from its thread."""
    async with Client(stack.target) as client:
        task = await client.tasks.create("task-logs.say", {"order": "o-1"}, queue=QUEUE)
    lines = await logged(rest, f"/api/v1/tasks/{task.task_id}", 3)
    assert [(each["level"], each["message"], each["logger"]) for each in lines] == [
        ("INFO", "begins", "millstream.task"),
        ("WARN", "told by a library", "task_logs.library"),
        ("ERROR", "told in a thread", "task_logs.library"),
    ]
    assert [each["fields"] for each in lines] == [{"order": "o-1"}, {}, {}]


async def test_a_sync_handler_that_logs_much_loses_nothing(
    rest: httpx.AsyncClient, worker: Worker, stack: Stack
) -> None:
    """DC-6: more than is on its way at a time."""
    async with Client(stack.target) as client:
        task = await client.tasks.create("task-logs.sync", None, queue=QUEUE)
    lines = await logged(rest, f"/api/v1/tasks/{task.task_id}", 2500)
    assert [each["message"] for each in lines] == [f"line {n}" for n in range(1000)]
    assert [each["offset"] for each in lines] == [*range(1, 1001)]


async def test_a_failure_is_in_the_log_of_its_attempt(rest: httpx.AsyncClient, worker: Worker, stack: Stack) -> None:
    """DC-6: with the traceback, which the error of the attempt has no room for."""
    async with Client(stack.target) as client:
        task = await client.tasks.create("task-logs.fail", None, queue=QUEUE, retry=RetryPolicy(initial_interval=0.001))
    lines = await logged(rest, f"/api/v1/tasks/{task.task_id}", 3)
    assert [(each["attempt"], each["offset"], each["message"]) for each in lines] == [
        (1, 1, "attempt 1"), (1, 2, "LookupError: it is gone"), (2, 1, "attempt 2"),
    ]  # fmt: skip
    assert "in fail" in lines[1]["fields"]["exception"]


async def test_code_that_is_led_through_its_history_says_things_once(
    rest: httpx.AsyncClient, worker: Worker, stack: Stack
) -> None:
    """DC-6, FV-18: a run logs in its own task, whichever activation it is."""
    async with Client(stack.target) as client:
        run = await client.runs.start("task-logs.flow", queue=QUEUE, wait=20)
    lines = await logged(rest, f"/api/v1/runs/{run.run_id}", 7)
    assert [each["message"] for each in lines] == [
        "before 0", "library 0", "before 1", "library 1", "before 2", "library 2", "after",
    ]  # fmt: skip
    assert len({each["attempt"] for each in lines}) > 1


async def test_a_log_is_followed_while_the_task_runs(worker: Worker, stack: Stack) -> None:
    """DC-6, FV-14: by the client and by the command line, to its end, with nothing left out."""
    async with Client(stack.target) as client:
        task = await client.tasks.create("task-logs.steps", None, queue=QUEUE)
        command = [
            sys.executable,
            "-m",
            "millstream.cli",
            "tasks",
            "logs",
            task.task_id,
            "-f",
            "--target",
            stack.target,
        ]
        shown = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        async with asyncio.timeout(30):
            watch = client.logs.watch_task(task.task_id)
            found = [entry.message async for entry in watch]
            assert found == [f"step {n}" for n in range(20)]
            again = client.logs.watch_run(task.run_id, level="INFO", cursor=watch.cursor)
            assert [entry async for entry in again] == []
            out, _ = await shown.communicate()
    assert [line.rpartition("  ")[2] for line in out.decode().splitlines()] == found


async def test_a_task_of_another_run_is_not_shown_for_a_run(worker: Worker, stack: Stack) -> None:
    """FV-14: listed or followed, it is refused, and what is the matter is said."""
    async with Client(stack.target) as client:
        one, other = [await client.tasks.create("task-logs.steps", None, queue=QUEUE) for _ in range(2)]
    for follow in ((), ("-f",)):
        code, out, error = await run(
            "runs", "logs", one.run_id, "--task", other.task_id, *follow, "--target", stack.target
        )
        assert (code, out) == (1, "")
        assert f"run {one.run_id} has no task {other.task_id}" in error.replace("\n", " ")


async def test_a_log_is_streamed_over_rest(rest: httpx.AsyncClient, worker: Worker, stack: Stack) -> None:
    """DC-6: as server-sent events, resumed by Last-Event-ID, to an event that says the end."""
    async with Client(stack.target) as client:
        task = await client.tasks.create("task-logs.steps", None, queue=QUEUE)
    path = f"/api/v1/runs/{task.run_id}/logs/stream"
    seen, last = 0, ""
    async with asyncio.timeout(30), rest.stream("GET", path) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        async for line in answer.aiter_lines():
            last = line.removeprefix("id: ") if line.startswith("id: ") else last
            seen += line == "event: log"
            if seen == 7:
                break
    async with asyncio.timeout(30), rest.stream("GET", path, headers={"last-event-id": last}) as answer:
        text = (await answer.aread()).decode()
    assert (text.count("event: log\n"), text.count("event: end\n")) == (13, 1)
