"""Streams of runs through Envoy, as a browser's EventSource reads them: resumed by itself, wherever it may."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.e2e.answers import check_error, check_ok
from tests.e2e.simple_worker import SimpleWorker
from tests.e2e.stack import Stack, rest_client, running_stack
from tests.e2e.test_commands import run
from tests.e2e.test_watching import events

from millstream.sdk import Client, RunHappening

PATIENCE_S = 60.0
WATCHERS = 50


class EventSource:
    """What a browser has: it reads events, remembers the last id, and comes back with it, until the page closes it."""

    def __init__(self, url: str, path: str, **headers: str) -> None:
        self.url = url
        self.path = path
        self.headers = headers
        self.last = ""
        self.retry_s = 3.0
        self.connections = 0
        self.connected = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        while True:
            try:
                async for each in self._connection():
                    yield each
            except httpx.HTTPError:
                pass
            await asyncio.sleep(self.retry_s / 10)

    async def _connection(self) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        headers = {"accept": "text/event-stream", **({"last-event-id": self.last} if self.last else {})}
        async with (
            rest_client(self.url, **self.headers) as client,
            client.stream("GET", self.path, headers=headers, timeout=PATIENCE_S) as response,
        ):
            # A browser gives up at any other.
            assert response.status_code == 200, await response.aread()
            assert response.headers["content-type"] == "text/event-stream"
            self.connections += 1
            self.connected.set()
            async for event in events(response):
                self.retry_s = float(event.get("retry", self.retry_s * 1000)) / 1000
                self.last = event.get("id", self.last)
                if event.get("event") not in ("error", None):
                    yield event["event"], json.loads(event["data"])


async def watched(source: EventSource, found: list[tuple[str, dict[str, Any]]]) -> None:
    """Collect events to the end."""
    async with asyncio.timeout(PATIENCE_S * 2):
        async for name, data in source:
            if name == "end":
                return
            if name != "heartbeat":
                found.append((name, data))


async def stored(client: httpx.AsyncClient, run_id: str) -> dict[str, list[dict[str, Any]]]:
    """Events of a run and of all its descendants, as they are listed."""
    listed = check_ok(await client.get(f"/api/v1/runs/{run_id}/events", params={"limit": 1000}))["items"]
    found = {run_id: [{**each, "run_id": run_id} for each in listed]}
    for child in check_ok(await client.get(f"/api/v1/runs/{run_id}/children"))["items"]:
        found |= await stored(client, child["run_id"])
    return found


def by_run(found: list[tuple[str, dict[str, Any]]], key: str = "run_id") -> dict[str, list[dict[str, Any]]]:
    """Events by the run that they are of."""
    out: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for name, data in found:
        assert name == data["type"].lower()
        out[data[key]].append(data)
    return dict(out)


async def define(client: httpx.AsyncClient, name: str, *steps: dict[str, Any]) -> None:
    check_ok(await client.post("/api/v1/workflows", json={"definition": {"name": name, "steps": [*steps]}}), 201)


async def start(client: httpx.AsyncClient, name: str) -> str:
    """Execute a workflow; its run."""
    done = check_ok(await client.post(f"/api/v1/workflows/{name}/execute", json={}))
    return str(done["run_id"])


async def family(client: httpx.AsyncClient, rounds: int) -> None:
    """A workflow whose children come one after the other, each with a child of its own."""
    await define(client, "leaf", {"id": "c", "kind": "task", "task": "watched-leaf"})
    leaf = {"id": "leaf", "kind": "workflow", "workflow": "leaf", "needs": ["b"]}
    await define(client, "child", {"id": "b", "kind": "task", "task": "watched-leaf"}, leaf)
    steps: list[dict[str, Any]] = []
    for n in range(rounds):
        before = [f"child{n - 1}"] if n else []
        steps.append({"id": f"child{n}", "kind": "workflow", "workflow": "child", "needs": before})
    await define(client, "parent", *steps)


async def test_a_run_is_streamed_as_it_goes(stack: Stack, own: httpx.AsyncClient, tenant: str) -> None:
    """FV-7, FV-13: each event when it happens, by its documented name; then the end."""
    await define(own, "one", {"id": "a", "kind": "task", "task": "watched-one"})
    run_id = await start(own, "one")
    paths = {
        f"/api/v1/runs/{run_id}/stream": "run_id",
        f"/api/v1/runs/{run_id}/stream?include_descendants=true": "run_id",
        f"/api/v1/runs/{run_id}/tasks/stream": "run_id",
        f"/api/tenants/{tenant}/stream/workflows/{run_id}": "workflowExecutionId",
        f"/api/tenants/{tenant}/stream/workflows/{run_id}/consolidated": "workflowExecutionId",
        f"/api/tenants/{tenant}/workflow-executions/{run_id}/tasks/stream": "workflowExecutionId",
    }
    found: dict[str, list[tuple[str, dict[str, Any]]]] = {path: [] for path in paths}
    async with asyncio.TaskGroup() as group:
        for path in paths:
            group.create_task(watched(EventSource(stack.url, path, x_tenant=tenant), found[path]))
        worker = SimpleWorker(await stack.channel(), tenant)
        (lease,) = await worker.poll("watched-one")
        await worker.complete(lease, 1)
    listed = (await stored(own, run_id))[run_id]
    for path, key in paths.items():
        shown = by_run(found[path], key)[run_id]
        wanted = [each for each in listed if "tasks" not in path or each["type"].startswith("TASK_")]
        assert [each["sequence"] for each in shown] == [each["sequence"] for each in wanted]
        if key == "run_id":
            assert shown == wanted
        else:
            path = f"/api/tenants/{tenant}/workflow-executions/{run_id}/events"
            camel = {each["sequence"]: each for each in check_ok(await own.get(path))["events"]}
            assert shown == [{**camel[each["sequence"]], key: run_id} for each in shown]
    assert {name for name, _ in found[f"/api/v1/runs/{run_id}/tasks/stream"]} == {
        "task_created", "task_started", "task_completed",
    }  # fmt: skip


async def test_a_stream_of_a_run_goes_on_behind_a_number(stack: Stack, own: httpx.AsyncClient) -> None:
    """By after_sequence, by the cursor, by Last-Event-ID; as events and as lines."""
    check_ok(await own.post("/api/v1/artifacts", json={"type": "Note", "payload": {}}))
    run_id = check_ok(await own.get("/api/v1/runs"))["items"][0]["run_id"]
    path = f"/api/v1/runs/{run_id}/stream"
    lines = {"accept": "application/x-ndjson"}
    for params, headers in (
        ({"after_sequence": "2"}, lines),
        ({"cursor": "2"}, lines),
        ({}, {**lines, "last-event-id": "2"}),
        ({"cursor": "1"}, {**lines, "last-event-id": "2"}),
        ({"after_sequence": "1"}, {**lines, "last-event-id": "2"}),
    ):
        answer = await own.get(path, params=params, headers=headers)
        assert answer.headers["content-type"] == "application/x-ndjson"
        shown = [json.loads(line) for line in answer.text.splitlines()]
        assert [each.get("sequence") for each in shown] == [None, 3, None]
        assert [each["cursor"] for each in shown] == ["2", "3", "3"]
        assert shown[-1] == {"end": True, "cursor": "3"}


async def test_what_cannot_be_streamed_is_an_error_of_its_own(own: httpx.AsyncClient, tenant: str) -> None:
    """FL-10: before the stream begins it is a status; other tenants' runs are not found."""
    check_ok(await own.post("/api/v1/artifacts", json={"type": "Note", "payload": {}}))
    run_id = check_ok(await own.get("/api/v1/runs"))["items"][0]["run_id"]
    none = str(uuid.uuid4())
    check_error(await own.get(f"/api/v1/runs/{none}/stream"), 404, "NOT_FOUND")
    check_error(await own.get("/api/v1/runs/x/stream"), 422, "VALIDATION_ERROR", "run_id")
    path = f"/api/v1/runs/{run_id}/stream"
    check_error(await own.get(path, params={"cursor": "odd"}), 422, "VALIDATION_ERROR", "cursor")
    check_error(await own.get(path, params={"after_sequence": "99"}), 422, "VALIDATION_ERROR", "cursor")
    both = {"after_sequence": "1", "include_descendants": "true"}
    check_error(await own.get(path, params=both), 422, "VALIDATION_ERROR", "after_sequence")
    # Whoever has a cursor had a run: it is said to be gone, whoever asks.
    gone = check_error(
        await own.get(f"/api/v1/runs/{none}/stream", params={"cursor": "2"}), 422, "VALIDATION_ERROR", "cursor"
    )
    assert gone["details"][0]["code"] == "EXPIRED"
    other = f"/api/tenants/other/stream/workflows/{run_id}"
    check_error(await own.get(other), 404, "NOT_FOUND")
    check_error(await own.get(f"/api/tenants/{tenant}/stream/workflows/{none}"), 404, "NOT_FOUND")


async def outlasting(watchers: int) -> None:
    """Every stored event reaches every watcher exactly once, though a server is killed under them."""
    settings = {"auth_mode": "developer", "lease_s": "2", "reconnect_grace_s": "0.2"}
    async with running_stack(settings, servers=2) as stack, rest_client(stack.url) as client:
        await family(client, 4)
        run_id = await start(client, "parent")
        deep, alone = f"/api/v1/runs/{run_id}/stream?include_descendants=true", f"/api/v1/runs/{run_id}/stream"
        sources = [EventSource(stack.url, deep if n % 2 else alone) for n in range(watchers)]
        found: list[list[tuple[str, dict[str, Any]]]] = [[] for _ in sources]
        async with asyncio.TaskGroup() as group:
            for source, each in zip(sources, found, strict=True):
                group.create_task(watched(source, each))
            worker = SimpleWorker(await stack.channel(), "")
            for n in range(8):
                (lease,) = await worker.poll("watched-leaf")
                await worker.complete(lease, n)
                if n == 3:
                    # Whoever is served by it watches by then.
                    await until_connected(sources)
                    await stack.servers[0].kill()
                    worker = SimpleWorker(await stack.channel(), "")
        listed = await stored(client, run_id)
    assert len(listed) == 9
    for source, each in zip(sources, found, strict=True):
        assert by_run(each) == (listed if "descendants" in source.path else {run_id: listed[run_id]})
    assert sum(source.connections > 1 for source in sources) > watchers // 10


async def until_connected(sources: list[EventSource]) -> None:
    """Return when all are connected."""
    async with asyncio.timeout(PATIENCE_S * 2):
        for source in sources:
            await source.connected.wait()


async def test_watchers_outlast_the_server_that_serves_them() -> None:
    """FV-7: kill -9 of a server under many EventSources, some of one run and some with its descendants, of which some
    begin after: each has every stored event exactly once, in the order of its run."""
    await outlasting(WATCHERS)


@pytest.mark.soak
async def test_a_thousand_watchers_outlast_the_server_that_serves_them() -> None:
    """FV-7: the same with 1,000."""
    await outlasting(1000)


TELLING = """
import asyncio
import os
from typing import Any

from millstream.sdk import Context, Worker

worker = Worker(os.environ["MILLSTREAM_TARGET"], name=os.environ["WORKER_NAME"])


@worker.task("KIND")
async def told(_: Any, ctx: Context) -> str:
    for n in range(20):
        ctx.stream(f"token {n}")
    ctx.progress(0.5, "half of it")
    # An attempt that is over has no more events.
    await asyncio.sleep(2)
    return "done"


worker.run_forever()
"""


async def test_progress_and_what_a_task_streams_reach_client_and_commands(
    stack: Stack, rest: httpx.AsyncClient, tmp_path: Path
) -> None:
    """FV-13, FV-14: `client.runs.watch`, `runs watch`, `workflow watch-tasks`, and an EventSource."""
    kind = f"told-{uuid.uuid4().hex[:8]}"
    program = tmp_path / "telling.py"
    program.write_text(TELLING.replace("KIND", kind))
    task = check_ok(await rest.post("/api/v1/tasks", json={"kind": kind}), 201)
    run_id = task["run_id"]
    to = ("--target", stack.target)
    source = EventSource(stack.url, f"/api/v1/runs/{run_id}/tasks/stream")
    found: list[tuple[str, dict[str, Any]]] = []
    async with Client(stack.target) as client, asyncio.TaskGroup() as group:
        reading = group.create_task(collected(client, run_id))
        group.create_task(watched(source, found))
        commands = [
            group.create_task(run("runs", "watch", run_id, "--json", *to)),
            group.create_task(run("runs", "watch", run_id, *to)),
            group.create_task(run("workflow", "watch-tasks", run_id, *to)),
        ]
        await source.connected.wait()
        await stack.worker(program, "telling")
    listed = [each["type"] for each in check_ok(await rest.get(f"/api/v1/runs/{run_id}/events"))["items"]]
    assert "TASK_PROGRESS" in listed
    happenings = reading.result()
    assert [each.event.type for each in happenings if each.event] == listed
    tokens = [each.streamed.value for each in happenings if each.streamed]
    assert tokens == [f"token {n}" for n in range(20)][20 - len(tokens) :]
    assert [name for name, _ in found if name != "stream"] == [
        each.lower() for each in listed if each.startswith("TASK_")
    ]
    told = next(data for name, data in found if name == "task_progress")
    assert told["data"] == {"fraction": 0.5, "message": "half of it"}
    (code, lines, _), (text_code, text, _), (tasks_code, tasks, _) = [each.result() for each in commands]
    assert (code, text_code, tasks_code) == (0, 0, 0)
    shown = [json.loads(line) for line in lines.splitlines()]
    assert [each["event"]["type"] for each in shown if each["event"]] == listed
    assert shown[-1]["ended"]
    assert all(each in text for each in listed)
    assert "TASK_PROGRESS" in tasks
    assert "RUN_COMPLETED" not in tasks
    assert check_ok(await rest.get(f"/api/v1/runs/{run_id}"))["progress"] == 1


async def collected(client: Client, run_id: str) -> list[RunHappening]:
    """All of a watch."""
    async with asyncio.timeout(PATIENCE_S):
        return [each async for each in client.runs.watch(run_id)]


async def test_an_event_source_comes_again_when_there_is_room() -> None:
    """FV-7: of a server with too many streams, too, who asks for events is answered a stream without them, which tells
    when to come again; others are refused."""
    settings = {"auth_mode": "developer", "max_streams_per_tenant": "1"}
    async with running_stack(settings) as stack, rest_client(stack.url) as client:
        run_id = (await client.post("/api/v1/tasks", json={"kind": "never"})).json()["run_id"]
        path = f"/api/v1/runs/{run_id}/stream"
        async with (
            asyncio.timeout(PATIENCE_S),
            client.stream("GET", path, headers={"accept": "text/event-stream"}) as first,
        ):
            lines = first.aiter_lines()  # kept: the stream is closed with it
            await anext(lines)
            full = await client.get(path, headers={"accept": "text/event-stream", "last-event-id": "1"})
            refused = await client.get(path, headers={"accept": "application/x-ndjson"})
        assert (full.status_code, full.headers["content-type"]) == (200, "text/event-stream")
        assert full.text == "retry: 5000\n\n"
        assert "retry-after" not in full.headers
        check_error(refused, 429, "RATE_LIMITED")
        assert refused.headers["retry-after"] == "5"


async def test_an_event_source_outlasts_that_no_server_is_there() -> None:
    """FV-7: a browser gives its EventSource up at any status but 200, so while nobody serves it is answered a stream
    without events, and comes again; who did not ask for events is told what is the matter."""
    async with running_stack({"auth_mode": "developer"}) as stack, rest_client(stack.url) as client:
        run_id = (await client.post("/api/v1/tasks", json={"kind": "never"})).json()["run_id"]
        path = f"/api/v1/runs/{run_id}/stream"
        await stack.servers[0].kill()
        away = await client.get(path, headers={"accept": "text/event-stream", "last-event-id": "1"})
        assert (away.status_code, away.headers["content-type"]) == (200, "text/event-stream")
        assert away.text == "retry: 1000\n\n"
        assert away.headers["cache-control"] == "no-store"
        check_error(await client.get(path, headers={"accept": "application/x-ndjson"}), 503, "UNAVAILABLE")
        check_error(await client.get("/api/v1/runs", headers={"accept": "text/event-stream"}), 503, "UNAVAILABLE")
