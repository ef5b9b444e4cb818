"""Watching and exporting through Envoy: events and lines as they come, resumed, and a server killed under a watch."""

from __future__ import annotations

import asyncio
import json
import signal
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.e2e.answers import ARTIFACT, check_error, check_ok
from tests.e2e.stack import READY_S, Stack, rest_client, running_stack
from tests.e2e.test_commands import run
from tests.e2e.test_rest_correlations import KINDS, VISIBLE

from millstream.sdk import Client
from millstream.v1 import system_service_pb2, system_service_pb2_grpc

PATH = "/api/v1/artifacts/stream"
LINES = {"accept": "application/x-ndjson"}


async def publish(client: httpx.AsyncClient, count: int = 1, **fields: Any) -> list[str]:
    """Publish so many notes; their ids."""
    made = []
    for n in range(count):
        item = {"type": "Note", "payload": {"n": n}, **fields}
        made.append(check_ok(await client.post("/api/v1/artifacts", json=item))["artifact_id"])
    return made


@asynccontextmanager
async def streaming(
    client: httpx.AsyncClient, headers: dict[str, str] | None = None, **params: Any
) -> AsyncIterator[httpx.Response]:
    """A stream of REST that was answered with 200."""
    async with client.stream("GET", PATH, params=params, headers=headers or {}, timeout=READY_S) as response:
        assert response.status_code == 200, await response.aread()
        yield response


async def events(response: httpx.Response) -> AsyncIterator[dict[str, str]]:
    """Server-sent events, as an EventSource reads them."""
    event: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line:
            name, _, value = line.partition(": ")
            event[name] = value
        elif event:
            yield event
            event = {}


async def test_artifacts_come_as_events_while_they_are_stored(own: httpx.AsyncClient) -> None:
    """FL-17: an EventSource's stream: id, event, retry; each event at once; resumed by Last-Event-ID."""
    async with streaming(own) as response:
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-correlation-id"]
        found = events(response)
        assert await anext(found) == {"retry": "1000"}
        first = await anext(found)
        assert (first["event"], first["data"]) == ("heartbeat", "{}")
        ids = []
        for _ in range(3):
            # Each is read before the next is published: nothing waits for a buffer to be full.
            ids += await publish(own)
            event = await anext(found)
            shown = json.loads(event["data"])
            assert (event["event"], shown["id"]) == ("artifact", ids[-1])
            assert shown == check_ok(await own.get(f"/api/v1/artifacts/{ids[-1]}"))
            assert set(shown) == ARTIFACT
    missed = await publish(own, 2)
    async with streaming(own, {"last-event-id": event["id"]}, cursor=first["id"]) as response:
        found = events(response)
        again = [event async for event in _first(found, 4) if event.get("event") == "artifact"]
    assert [json.loads(event["data"])["id"] for event in again] == missed


async def _first(found: AsyncIterator[Any], count: int) -> AsyncIterator[Any]:
    for _ in range(count):
        yield await anext(found)


async def test_artifacts_come_as_lines_where_they_are_asked_for(own: httpx.AsyncClient) -> None:
    check_ok(await own.post("/api/v1/artifact-types", json={"name": "Other"}), 201)
    check_ok(await own.post("/api/v1/artifact-types", json={"name": "Third"}), 201)
    async with streaming(own, LINES, types=["Note", "Third"], tags="x") as response:
        assert response.headers["content-type"] == "application/x-ndjson"
        lines = response.aiter_lines()
        assert set(json.loads(await anext(lines))) == {"cursor"}
        await publish(own, tags=["y"])
        await publish(own, type="Other", tags=["x"])
        (wanted,) = await publish(own, type="Third", tags=["y", "x"])
        line = json.loads(await anext(lines))
    assert line["id"] == wanted
    assert set(line) == {*ARTIFACT, "cursor"}


async def test_what_cannot_be_watched_is_an_error_of_its_own(own: httpx.AsyncClient) -> None:
    """FL-10"""
    check_error(await own.get(PATH, params={"cursor": "odd"}), 422, "VALIDATION_ERROR", "cursor")
    check_error(await own.get(PATH, headers={"last-event-id": "odd"}), 422, "VALIDATION_ERROR", "cursor")
    check_error(await own.get(PATH, params={"correlation_id": "odd"}), 422, "VALIDATION_ERROR", "correlation_id")
    check_error(await own.get(PATH, params={"wat": "1"}), 422, "VALIDATION_ERROR", "wat")
    check_error(await own.post(PATH), 405, "METHOD_NOT_ALLOWED")


@pytest.mark.parametrize("who", VISIBLE)
async def test_a_key_watches_what_it_may_see_and_no_more(locked: Stack, who: str) -> None:
    """FL-6, WM-9: every kind of artifact, for each kind of reader; other tenants get nothing of it."""
    publisher = await locked.rest(authorization="Bearer publisher-key")
    client = await locked.rest(authorization=f"Bearer {who}-key")
    probing = await locked.rest(authorization="Bearer other-key") if who == "other" else publisher
    for each in (publisher, probing):
        made = await each.post("/api/v1/artifact-types", json={"name": "Note"})
        assert made.status_code in (200, 201), made.text
    names = set()
    async with streaming(client, LINES) as response:
        lines = response.aiter_lines()
        await anext(lines)
        for name, visibility in KINDS.items():
            await publish(publisher, visibility=visibility, partition_key=name)
        probe = uuid.uuid4().hex
        await publish(probing, partition_key=probe)
        while probe not in names:
            names.add(json.loads(await anext(lines)).get("partition_key"))
    assert names - {None} == VISIBLE[who] | {probe}


# ---- servers that go


async def serving(stack: Stack, rpc: str) -> int:
    """The number of the server that answers the only stream of a method."""
    async with asyncio.timeout(READY_S):
        while True:
            for number, server in enumerate(stack.servers):
                if server.code is None:
                    stub = system_service_pb2_grpc.SystemServiceStub(await stack.channel(stack.native(number)))
                    metrics = (await stub.GetMetrics(system_service_pb2.GetMetricsRequest())).data.decode()
                    if f'millstream_requests_in_flight{{rpc="{rpc}"}} 1.0' in metrics:
                        return number


async def test_a_watch_outlasts_the_server_that_serves_it() -> None:
    """kill -9 of the server under the watch while many publish, then a drain of another: each artifact once, by gRPC
    through the proxy; over REST the last event tells of the drain."""
    async with (
        running_stack({"auth_mode": "developer", "drain_timeout_s": "3"}, servers=3) as stack,
        Client(stack.target) as client,
    ):
        await client.types.create("Note")
        stored: list[str] = []
        enough = asyncio.Event()

        async def publishing(number: int) -> None:
            n = 0
            while not enough.is_set():
                published = await client.publish(("Note", {"publisher": number, "n": n}))
                stored.append(published.artifact_id)
                n += 1

        watch = client.artifacts.watch(types=["Note"])
        found: list[str] = []
        async with aclosing(watch.messages()) as messages, asyncio.timeout(150):
            await anext(messages)
            first = await serving(stack, "ArtifactService/WatchArtifacts")
            tasks = [asyncio.create_task(publishing(number)) for number in range(4)]

            async def read(count: int) -> None:
                while len(found) < count:
                    _, artifact = await anext(messages)
                    if artifact is not None:
                        found.append(artifact.id)

            try:
                await read(200)
                await stack.servers[first].kill()
                await read(len(stored) + 200)
                second = await serving(stack, "ArtifactService/WatchArtifacts")
                assert second != first
                await _drained(stack, second)
                await read(len(stored) + 200)
            finally:
                enough.set()
                await asyncio.gather(*tasks)
            await read(len(stored))
        assert Counter(found) == Counter(stored)


async def _drained(stack: Stack, number: int) -> None:
    """SIGTERM to a server; a stream of REST that it serves ends with an event that tells so, and where to go on."""
    async with rest_client(stack.url) as client:
        while True:
            async with streaming(client) as response:
                found = events(response)
                first = [await anext(found) for _ in range(2)][1]
                if await serving(stack, "StreamService/StreamArtifacts") != number:
                    continue
                await stack.servers[number].stop()
                last = first
                async for event in found:
                    last = event
                assert last["event"] == "error"
                error = json.loads(last["data"])
                assert (error["code"], error["retryable"]) == ("UNAVAILABLE", True)
                assert last["id"]
                return


# ---- commands


async def test_the_command_watches(stack: Stack, rest: httpx.AsyncClient) -> None:
    """A line each, as text or JSON with its cursor; Ctrl-C ends it without a word; a cursor goes on."""
    name = f"Line{uuid.uuid4().hex[:8]}"
    check_ok(await rest.post("/api/v1/artifact-types", json={"name": name}), 201)
    text = await stack.command("artifacts", "watch", "--type", name)
    lines = await stack.command("artifacts", "watch", "--type", name, "--json")
    for process in (text, lines):
        await process.line("watching")
    ids = await publish(rest, 2, type=name, payload={"a": "[red]b"})
    for artifact_id in ids:
        assert name in await text.line(artifact_id)
        shown = json.loads(await lines.line(artifact_id))
        assert shown["payload"] == {"a": "[red]b"}
    assert "[red]b" in await text.line(ids[0])
    for process in (text, lines):
        assert process._process is not None
        process._process.send_signal(signal.SIGINT)
        async with asyncio.timeout(READY_S):
            assert await process._process.wait() == 0
        assert not [line for line in process.lines if "Traceback" in line or "Abort" in line]
    first = json.loads(await lines.line(ids[0]))
    args = ("--type", name, "--json", "--cursor", first["cursor"], "--limit", "1", "--target", stack.target)
    code, output, _ = await run("artifacts", "watch", *args)
    assert (code, json.loads(output)["id"]) == (0, ids[1])


async def test_the_command_exports_and_goes_on(stack: Stack, rest: httpx.AsyncClient, tmp_path: Path) -> None:
    """A file that was cut in the midst of a line is the same as a whole one after --resume; later artifacts follow."""
    name = f"Line{uuid.uuid4().hex[:8]}"
    check_ok(await rest.post("/api/v1/artifact-types", json={"name": name}), 201)
    cascade = str(uuid.uuid4())
    items = [{"type": name, "payload": {"n": n, "text": "x" * 2000}, "correlation_id": cascade} for n in range(500)]
    assert check_ok(await rest.post("/api/v1/artifacts/batch", json={"artifacts": items}))["failed"] == 0
    whole, cut = tmp_path / "whole.ndjson", tmp_path / "cut.ndjson"
    to = ("--target", stack.target)
    code, _, errors = await run("correlations", "export", cascade, "--output", str(whole), *to)
    assert (code, errors.strip()) == (0, "500 artifacts")
    assert [json.loads(line)["payload"]["n"] for line in whole.read_text().splitlines()] == [*range(500)]
    cut.write_bytes(whole.read_bytes()[:700_123])
    resumed = ("correlations", "export", cascade, "--output", str(cut), "--resume", *to)
    assert (await run(*resumed))[0] == 0
    assert cut.read_bytes() == whole.read_bytes()
    await publish(rest, type=name, correlation_id=cascade)
    code, _, errors = await run(*resumed)
    assert (code, errors.strip()) == (0, "1 artifacts")
    assert len(cut.read_text().splitlines()) == 501
    code, output, _ = await run("correlations", "export", cascade.upper(), *to)
    assert (code, output) == (0, cut.read_text())
    other = ("correlations", "export", str(uuid.uuid4()), "--output", str(cut))
    for arguments, told in ((other, "is there already"), ((*other, "--resume"), "an export of the cascade")):
        code, _, errors = await run(*arguments, *to)
        assert (code, told in " ".join(errors.split()).replace("│ ", "").replace(" │", "")) == (2, True), errors
    assert (await run("correlations", "export", str(uuid.uuid4()), *to))[0] == 1


async def test_the_sdk_exports_and_watches(stack: Stack, rest: httpx.AsyncClient) -> None:
    name = f"Line{uuid.uuid4().hex[:8]}"
    check_ok(await rest.post("/api/v1/artifact-types", json={"name": name}), 201)
    cascade = str(uuid.uuid4())
    async with Client(stack.target) as client:
        watch = client.artifacts.watch(types=[name])
        async with aclosing(watch.messages()) as messages:
            await anext(messages)
            ids = await publish(rest, 3, type=name, correlation_id=cascade)
            watched = [artifact async for _, artifact in _first(messages, 3)]
        exported = [each async for each in client.correlations.export(cascade)]
        assert [each.item for each in exported] == watched
        assert [each.item.id for each in exported] == ids
        rest_of = [each.item.id async for each in client.correlations.export(cascade, exported[0].cursor)]
        assert rest_of == ids[1:]


async def test_a_watch_is_bounded_per_tenant() -> None:
    """RESOURCE_EXHAUSTED, in words that name the setting; over REST 429."""
    settings = {"auth_mode": "developer", "max_streams_per_tenant": "1"}
    async with running_stack(settings) as stack, rest_client(stack.url) as client, streaming(client):
        refused = await client.get(PATH)
        body = check_error(refused, 429, "RATE_LIMITED")
        assert "max_streams_per_tenant" in body["message"]
        assert refused.headers["retry-after"] == "5"
        async with rest_client(stack.url, x_tenant="other") as other, streaming(other):
            pass
