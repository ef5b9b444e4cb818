"""Operating the service: health, readiness, metrics, and what happens without the database."""

from __future__ import annotations

import asyncio
import functools
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from tests.e2e.answers import check_error, check_ok
from tests.e2e.conftest import SHORT
from tests.e2e.stack import Process, Stack, running_stack
from tests.e2e.test_commands import run
from tests.engine.servers import eventually

from millstream.bootstrap import version_of
from millstream.store import migrations
from millstream.v1 import artifact_service_pb2_grpc, run_service_pb2_grpc, system_service_pb2_grpc
from millstream.v1.artifact_service_pb2 import PublishSyncRequest
from millstream.v1.run_service_pb2 import GetRunRequest
from millstream.v1.system_service_pb2 import GetMetricsRequest

Client = httpx.AsyncClient
SERIES = [
    "millstream_requests_total", "millstream_request_seconds_bucket", "millstream_requests_in_flight",
    "millstream_queue_commands", "millstream_tasks_ready", "millstream_oldest_ready_task_seconds",
    "millstream_batch_commands_bucket", "millstream_commit_seconds_bucket", "millstream_leases", "millstream_waiters",
    "millstream_workers_connected", "millstream_worker_slots", "millstream_artifacts_total",
    "millstream_database_connections",
    "millstream_database_connections_busy", "millstream_database_seconds_bucket",
    "millstream_events_total", "millstream_batches_undone_total", "millstream_task_wait_seconds_bucket",
    "millstream_attempt_seconds_bucket", "millstream_streams_open", "millstream_stream_messages_total",
    "millstream_stream_delay_seconds_bucket", "millstream_streams_too_slow_total", "millstream_log_lines_total",
    "millstream_log_waiting_bytes", "millstream_log_batches_passed_over_total",
]  # fmt: skip


def values(exposition: str) -> dict[str, float]:
    """The samples of a Prometheus text, by name and labels."""
    found = {}
    for line in exposition.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            found[name] = float(value)
    return found


async def test_health_tells_version_and_plugins(rest: Client) -> None:
    """WM-12, FV-1: on both of its paths, to anyone."""
    for path in ("/health", "/_/health"):
        body = check_ok(await rest.get(path))
        assert body == {"status": "ok", "version": version_of(), "plugins": []}


async def test_readiness_names_what_was_checked(rest: Client) -> None:
    """WM-12: the database, its tables, and the parts of the server, each with how it is."""
    body = check_ok(await rest.get("/health/ready"))
    names = ["database", "migrations", "engine", "queue", "server"]
    assert (body["status"], body["checks"]) == ("ready", dict.fromkeys(names, "ok"))
    found = {each["name"]: (each["ok"], each["detail"]) for each in body["results"]}
    assert found == {name: (True, f"at {migrations.head()}" if name == "migrations" else "") for name in names}


async def test_readiness_names_tables_that_are_behind(doomed: Stack) -> None:
    """WM-12: over REST as a 503, and as NOT_SERVING to whoever watches the health; both take it back."""
    client, head = await doomed.rest(), migrations.head()
    stub = health_pb2_grpc.HealthStub(await doomed.channel(doomed.native()))
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=""))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    connection = await asyncpg.connect(doomed.database.url)
    await connection.execute("UPDATE schema_version SET version_num = '0001'")
    async with asyncio.timeout(20):
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    body = check_error(await client.get("/health/ready"), 503, "UNAVAILABLE", "migrations")
    assert body["details"][0]["message"] == f"at 0001, this server needs {head}: run `millstream migrate up`"
    await connection.execute("UPDATE schema_version SET version_num = $1", head)
    await connection.close()
    async with asyncio.timeout(20):
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()
    async with asyncio.timeout(20):
        # The proxy asks at its own times.
        while (await client.get("/api/v1/runs")).status_code != 200:
            pass


async def test_metrics_have_the_promised_series(rest: Client, orders: Process, servers: list[grpc.aio.Channel]) -> None:
    """WM-12, FV-1: requests, latency and errors; queue, oldest ready task, batches, commits, leases and waiters."""
    for channel in servers:  # whichever the proxy asks has something to tell
        order = PublishSyncRequest(type="Order")
        order.payload.update({"order_id": "m", "amount": 1, "items": []})
        assert (await artifact_service_pb2_grpc.ArtifactServiceStub(channel).PublishSync(order)).completed
    check_error(await rest.get("/api/v1/agents/nobody"), 404, "NOT_FOUND")
    shown = [
        (await system_service_pb2_grpc.SystemServiceStub(channel).GetMetrics(GetMetricsRequest())).data.decode()
        for channel in servers
    ]
    ended = {sample for text in shown for sample in values(text)}  # by whichever server committed it
    assert 'millstream_attempts_total{outcome="COMPLETED"}' in ended
    assert 'millstream_runs_ended_total{status="COMPLETED"}' in ended
    for path in ("/metrics", "/_/metrics"):
        response = await rest.get(path)
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        found = values(response.text)
        for name in SERIES:
            assert any(sample.partition("{")[0] == name for sample in found), name


async def test_requests_and_errors_are_counted_by_method_and_code(locked: Stack) -> None:
    """WM-12: each call once, under its code; one server, so that what is counted is seen."""
    client = await locked.rest(x_api_key="viewer-key")
    ok = 'millstream_requests_total{code="OK",rpc="RunService/ListRuns"}'
    refused = 'millstream_requests_total{code="FORBIDDEN",rpc="TaskService/CreateTask"}'
    seconds = 'millstream_request_seconds_count{rpc="RunService/ListRuns"}'
    before = values((await client.get("/metrics")).text)
    for _ in range(3):
        check_ok(await client.get("/api/v1/runs"))
        check_error(await client.post("/api/v1/tasks", json={"kind": "k"}), 403, "FORBIDDEN")
    after = values((await client.get("/metrics")).text)
    for name in (ok, refused, seconds):
        assert after[name] - before.get(name, 0) == 3, name


async def test_the_backlog_and_the_workers_show(locked: Stack) -> None:
    """WM-12: tasks that wait, for how long, and who is connected."""
    client = await locked.rest(x_api_key="operator-key")
    made = check_ok(await client.post("/api/v1/tasks", json={"kind": "nobody-serves-it"}), 201)
    found = values((await client.get("/metrics")).text)
    assert found["millstream_tasks_ready"] >= 1
    assert found["millstream_oldest_ready_task_seconds"] >= 0
    check_ok(await client.post(f"/api/v1/tasks/{made['task_id']}/cancel", json={}))


async def test_streams_show(locked: Stack) -> None:
    """WM-12: what was sent in them, by their kind, and that none is open when it has ended."""
    client = await locked.rest(x_api_key="operator-key")
    made = check_ok(await client.post("/api/v1/tasks", json={"kind": "nobody-serves-it"}), 201)
    check_ok(await client.post(f"/api/v1/tasks/{made['task_id']}/cancel", json={}))
    sent = 'millstream_stream_messages_total{message="item",stream="run"}'
    before = values((await client.get("/metrics")).text)
    stream = await client.get(f"/api/v1/runs/{made['run_id']}/stream", headers={"accept": "application/x-ndjson"})
    events = [each for each in map(json.loads, stream.text.splitlines()) if set(each) - {"cursor", "end"}]
    assert len(events) > 2

    async def shown() -> bool:
        # What the other server has counted is seen a few seconds later.
        after = values((await client.get("/metrics")).text)
        return (
            after.get(sent, 0) - before.get(sent, 0) >= len(events)
            and after['millstream_streams_open{stream="run"}'] == 0
        )

    await eventually(shown, "that the events are counted, and no stream is open")


async def refused(channel: grpc.aio.Channel, label: str) -> None:
    """A call that a server refuses, which it tells in its log at level info, under this label."""
    stub = run_service_pb2_grpc.RunServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.GetRun(GetRunRequest(run_id=str(uuid.uuid4())), metadata=(("x-correlation-id", label),))


async def test_the_level_of_the_logs_changes_on_all_servers_while_they_run(
    stack: Stack, rest: Client, servers: list[grpc.aio.Channel]
) -> None:
    """Operations: over REST, through one server; then back, and with a time after which it goes back by itself."""
    path = "/api/v1/system/log-level"
    assert check_ok(await rest.get(path)) == {"default_level": "info", "level": "info", "levels": []}
    body = check_ok(await rest.put(path, json={"level": "warning", "logger": "millstream.rpc"}))
    assert body["levels"] == [{"logger": "millstream.rpc", "level": "warning"}]
    for server in stack.servers:
        await server.line("log levels from now on: all=info millstream.rpc=warning")
    for number, channel in enumerate(servers):
        await refused(channel, f"quiet-{number}")
    body = check_ok(await rest.put(path, json={"level": "debug", "logger": "millstream.rpc", "for_seconds": 1}))
    assert body["levels"][0]["until"]
    for server in stack.servers:
        await server.line("log levels from now on: all=info millstream.rpc=debug")
        await server.line('log levels from now on: all=info"')
    for number, (server, channel) in enumerate(zip(stack.servers, servers, strict=True)):
        await refused(channel, f"told-{number}")
        assert '"logger":"millstream.rpc"' in await server.line(f"told-{number}")
        assert not any("quiet-" in line for line in server.lines)
    body = check_error(await rest.put(path, json={"level": "loud"}), 422, "VALIDATION_ERROR", "level")
    assert all(word in body["details"][0]["message"] for word in ("debug", "info", "warning", "error", "default"))
    check_error(await rest.put(path, json={}), 422, "VALIDATION_ERROR", "level")


async def test_only_an_admin_has_to_do_with_the_logs(locked: Stack) -> None:
    """WM-9"""
    for key in ("viewer-key", "operator-key", "worker-key"):
        client = await locked.rest(x_api_key=key)
        check_error(await client.get("/api/v1/system/log-level"), 403, "FORBIDDEN")
        check_error(await client.put("/api/v1/system/log-level", json={"level": "info"}), 403, "FORBIDDEN")
    client = await locked.rest(x_api_key="admin-key")
    assert check_ok(await client.get("/api/v1/system/log-level"))["level"] == "info"


async def test_the_level_of_the_logs_from_the_shell(stack: Stack) -> None:
    """`millstream logs level`: shown, set, taken back; for machines as JSON."""
    command = functools.partial(run, "logs", "level", MILLSTREAM_TARGET=stack.target)
    code, output, errors = await command("error", "--logger", "millstream.work", "--for", "3600")
    assert (code, errors) == (0, "")
    assert "millstream.work=error until " in output
    code, output, _ = await command("--json")
    shown = json.loads(output)
    assert (shown["default"], shown["level"], shown["set"][0]["logger"]) == ("info", "info", "millstream.work")
    code, output, _ = await command("default", "--logger", "millstream.work")
    assert (code, "millstream.work" in output) == (0, False)
    code, _, errors = await command("loud")
    assert code == 1
    assert "level" in errors
    code, _, errors = await command("--for", "3")
    assert code == 2
    assert "say which level" in errors


@pytest.fixture(scope="module")
async def doomed() -> AsyncIterator[Stack]:
    """A stack of its own, whose second server and whose database are taken away, in this order."""
    async with running_stack({"auth_mode": "developer", **SHORT}, servers=2) as running:
        yield running


async def test_a_server_that_ends_lets_calls_finish_and_leaves(doomed: Stack) -> None:
    """WM-12: SIGTERM: a call under way is answered, the exit code is 0, and the other server takes over."""
    client, leaving = await doomed.rest(), doomed.servers[1]
    check_ok(await client.post("/api/v1/artifact-types", json={"name": "Held"}), 201)
    agent = {"name": "nobody", "subscriptions": [{"types": ["Held"]}]}
    check_ok(await client.post("/api/v1/agents", json=agent), 201)
    stub = artifact_service_pb2_grpc.ArtifactServiceStub(await doomed.channel(doomed.native(1)))
    waiting = asyncio.ensure_future(stub.PublishSync(PublishSyncRequest(type="Held", timeout=2)))
    async with asyncio.timeout(10):
        while not check_ok(await client.get("/api/v1/runs"))["items"]:
            pass
    stopping = asyncio.create_task(leaving.stop())
    await leaving.line('"event":"draining"')
    for _ in range(20):
        check_ok(await client.get("/api/v1/runs"))
    assert (await waiting).completed is False
    await stopping
    assert leaving.code == 0
    await leaving.line('"event":"ended"')
    assert not doomed.faults()
    for _ in range(20):
        check_ok(await client.get("/api/v1/runs"))


async def test_without_its_database_the_service_says_so_and_nothing_else_breaks(doomed: Stack) -> None:
    """WM-12, FL-10, WM-10: a fault of the server is a 500 that tells nothing and a line of the log that tells all; with
    the database gone, readiness is 503 naming it, health and metrics answer, and every call is UNAVAILABLE."""
    client = await doomed.rest()
    check_ok(await client.post("/api/v1/artifact-types", json={"name": "Note"}), 201)

    connection = await asyncpg.connect(doomed.database.url)
    await connection.execute("ALTER TABLE task RENAME TO task_away")
    error = check_error(await client.get("/api/v1/tasks"), 500, "INTERNAL")
    assert error["message"] == "internal error"
    line = await doomed.servers[0].line(error["correlation_id"])
    assert json.loads(line)["rpc"] == "ListTasks"
    assert "UndefinedTable" in line
    await connection.execute("ALTER TABLE task_away RENAME TO task")
    await connection.close()
    check_ok(await client.get("/api/v1/tasks"))

    stub = health_pb2_grpc.HealthStub(await doomed.channel(doomed.native()))
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=""))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    doomed.database.kill()
    async with asyncio.timeout(20):
        # The server has seen it; the proxy will within two of its checks.
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()
    said = ""
    async with asyncio.timeout(20):
        while said != "the server cannot be reached":
            body = check_error(await client.get("/health/ready"), 503, "UNAVAILABLE", "database")
            assert "database" in body["message"]
            assert check_ok(await client.get("/health"))["status"] == "ok"
            assert values((await client.get("/metrics")).text)
            # By and by the proxy takes the server out of its list; all of this must stay true.
            said = check_error(await client.get("/api/v1/runs"), 503, "UNAVAILABLE")["message"]
            await asyncio.sleep(0.05)
    check_error(await client.get("/health/ready"), 503, "UNAVAILABLE", "database")
    for path, request in (("artifacts", {"type": "Note"}), ("tasks", {"kind": "k"})):
        check_error(await client.post(f"/api/v1/{path}", json=request), 503, "UNAVAILABLE")
    native = await doomed.channel(doomed.native())
    call: Any = native.unary_unary("/millstream.v1.RunService/ListRuns")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
