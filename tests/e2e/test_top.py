"""`millstream top`, and what it shows of throughput, through Envoy and both servers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from tests.e2e.answers import check_ok
from tests.e2e.stack import READY_S, Stack
from tests.e2e.test_commands import run

from millstream.sdk import Client

LEFT = "\x1b[?1049l"
"""What a terminal is told when its screen is given back."""


async def ended(own: httpx.AsyncClient, wanted: int) -> dict[str, Any]:
    """The throughput, once so many tasks were cancelled."""
    async with asyncio.timeout(READY_S):
        while True:
            found = check_ok(await own.get("/api/v1/throughput"))
            if found["tasks_cancelled"] >= wanted:
                return dict(found)
            await asyncio.sleep(0.05)


async def test_what_ends_at_both_servers_is_told_of_the_tenant_alone(own: httpx.AsyncClient) -> None:
    """FV-14: at whichever server it is asked for."""
    assert set(check_ok(await own.get("/api/v1/throughput")).values()) == {0, 60}
    for _ in range(4):
        task = check_ok(await own.post("/api/v1/tasks", json={"kind": "nobodys"}), 201)
        check_ok(await own.post(f"/api/v1/tasks/{task['task_id']}/cancel", json={}))
    found = await ended(own, 4)
    assert {name: count for name, count in found.items() if count} == {
        "window_s": 60, "tasks_cancelled": 4, "runs_cancelled": 4,
    }  # fmt: skip
    assert check_ok(await own.get("/api/v1/throughput")) == found


@asynccontextmanager
async def terminal(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, asyncio.StreamReader]]:
    """A command on a terminal of its own, and what it shows there."""
    shown, its = os.openpty()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MILLSTREAM_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "millstream.cli", *arguments, stdin=its, stdout=its, stderr=its, start_new_session=True,
        env=inherited | {"TERM": "xterm", "COLUMNS": "160", "LINES": "300"},
    )  # fmt: skip
    os.close(its)
    reader = asyncio.StreamReader()
    pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(shown, "rb", buffering=0)
    )
    try:
        yield process, reader
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        pipe.close()


async def test_the_screen_is_drawn_anew_until_ctrl_c(stack: Stack) -> None:
    """FV-14: and given back as it was."""
    queue = f"top-{uuid.uuid4().hex[:8]}"
    to = ("--target", stack.target)
    async with Client(stack.target) as client:
        task = (await client.tasks.create("nobodys", queue=queue)).task_id
        async with terminal("top", "-n", "100", "--interval", "0.1", *to) as (process, shown), asyncio.timeout(READY_S):
            await shown.readuntil(queue.encode())
            await client.queues.pause(queue, "redrawn")
            await shown.readuntil(b"redrawn")
            process.send_signal(signal.SIGINT)
            await shown.readuntil(LEFT.encode())
            assert await process.wait() == 0
        code, output, _ = await run("top", "--once", "--json", "-n", "100", *to)
        await client.queues.resume(queue)
        await client.tasks.cancel(task)
    assert code == 0
    found = next(each for each in json.loads(output)["queues"] if each["queue"] == queue)
    assert (found["ready"], found["paused"], found["pause_reason"]) == (1, True, "redrawn")
