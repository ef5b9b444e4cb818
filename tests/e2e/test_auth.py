"""Who may call, and what a tenant can see of another: API keys, roles, and two tenants on one service."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2, status_pb2
from tests.e2e.answers import check_error, check_ok
from tests.e2e.simple_worker import SimpleWorker
from tests.e2e.stack import READY_S, Stack

from millstream.application.paging import encode_token
from millstream.v1 import worker_service_pb2, worker_service_pb2_grpc

Client = httpx.AsyncClient
ROLES = ("viewer", "operator", "worker", "admin")
MISSING = str(uuid.uuid4())


@pytest.fixture
async def clients(locked: Stack) -> dict[str, Client]:
    """A REST client for each role of the tenant acme, and "other", an administrator of another tenant."""
    found = {name: await locked.rest(authorization=f"Bearer {name}-key") for name in (*ROLES, "other")}
    for name in ("operator", "other"):
        check_ok(await found[name].post("/api/v1/artifact-types", json={"name": "Note"}), 201)
    return found


async def test_without_a_key_nobody_is_let_in(locked: Stack) -> None:
    """WM-9, FL-10: 401 on every path of the contract but health and metrics, whatever stands in the request."""
    client = await locked.rest()
    for path in ("artifacts", f"artifacts/{MISSING}", "runs", "runs/abc", "tasks", "agents", "artifact-types/Nope"):
        check_error(await client.get(f"/api/v1/{path}"), 401, "UNAUTHENTICATED")
    for path in ("artifacts", "artifacts/sync", "artifacts/batch", "tasks", "agents", f"runs/{MISSING}/cancel"):
        check_error(await client.post(f"/api/v1/{path}", json={}), 401, "UNAUTHENTICATED")
    for path in ("/health", "/health/ready", "/_/health"):
        check_ok(await client.get(path))
    for path in ("/metrics", "/_/metrics"):
        assert (await client.get(path)).status_code == 200


BAD_CREDENTIALS = [
    {"authorization": "Bearer nonsense"},
    {"authorization": "Bearer"},
    {"authorization": "Bearer admin-key x"},
    {"authorization": "Basic YWRtaW46YWRtaW4="},
    {"authorization": "admin-key"},
    {"authorization": "Bearer ADMIN-KEY"},
    {"x-api-key": "nonsense"},
    {"x-api-key": ""},
    {"x-api-key": "admin-key, admin-key"},
    {"x-api-key": "x" * 10_000},
    {"x-api-key": "x" * 50_000},
    {"x-tenant": "acme"},
    {"x-millstream-proxy": "what-only-the-proxy-knows"},
]


@pytest.mark.parametrize("headers", BAD_CREDENTIALS, ids=[str(each)[:50] for each in BAD_CREDENTIALS])
async def test_with_a_bad_key_nobody_is_let_in(locked: Stack, headers: dict[str, str]) -> None:
    """WM-9: an unknown key, another scheme, another spelling, or something else altogether."""
    client = await locked.rest()
    check_error(await client.get("/api/v1/runs", headers=headers), 401, "UNAUTHENTICATED")


async def test_a_key_is_shown_in_either_header(locked: Stack) -> None:
    """WM-9: authorization: Bearer, in any case of the scheme's name, or x-api-key."""
    client = await locked.rest()
    for headers in ({"authorization": "Bearer viewer-key"}, {"authorization": "bearer viewer-key"},
                    {"x-api-key": "viewer-key"}):  # fmt: skip
        check_ok(await client.get("/api/v1/runs", headers=headers))


# Calls by the permission they need: method, path, body, and what one that is allowed gets.
CALLS: dict[str, tuple[str, str, Any, int]] = {
    "artifacts.read": ("GET", "artifacts", None, 200),
    "artifacts.read summary": ("GET", "artifacts/summary", None, 200),
    "types.read": ("GET", "artifact-types", None, 200),
    "agents.read": ("GET", "agents", None, 200),
    "runs.read": ("GET", "runs", None, 200),
    "tasks.read": ("GET", "tasks", None, 200),
    "artifacts.publish": ("POST", "artifacts", {"type": "Note"}, 200),
    "artifacts.publish sync": ("POST", "artifacts/sync", {"type": "Note"}, 200),
    "artifacts.publish batch": ("POST", "artifacts/batch", {"artifacts": [{"type": "Note"}]}, 200),
    "types.write": ("POST", "artifact-types", {"name": "Note"}, 201),
    "agents.write": ("POST", "agents", {"name": "AGENT"}, 201),
    "tasks.create": ("POST", "tasks", {"kind": "k"}, 201),
    "tasks.create batch": ("POST", "tasks/batch", {"tasks": [{"kind": "k"}]}, 200),
    "tasks.cancel": ("POST", f"tasks/{MISSING}/cancel", {}, 404),
    "runs.cancel": ("POST", f"runs/{MISSING}/cancel", {}, 404),
}
READS = {"artifacts.read", "types.read", "agents.read", "runs.read", "tasks.read"}
MAY = {
    "viewer": READS,
    "operator": READS | {
        "artifacts.publish", "types.write", "agents.write", "tasks.create", "tasks.cancel", "runs.cancel",
    },
    "worker": READS | {"artifacts.publish", "types.write", "agents.write", "tasks.create", "worker.serve"},
}  # fmt: skip
MAY["admin"] = MAY["operator"] | MAY["worker"]


@pytest.mark.parametrize("role", ROLES)
async def test_a_role_may_do_what_it_is_for_and_no_more(clients: dict[str, Client], role: str) -> None:
    """WM-9: the matrix of roles and permissions over REST: 403 FORBIDDEN names the permission."""
    for name, (method, path, body, status) in CALLS.items():
        permission = name.split()[0]
        if path == "agents" and body:
            body = {"name": f"{role}-{uuid.uuid4().hex[:8]}"}
        response = await clients[role].request(method, f"/api/v1/{path}", json=body)
        if permission in MAY[role]:
            assert response.status_code == status, (role, name, response.text)
        else:
            error = check_error(response, 403, "FORBIDDEN")
            assert f"{permission!r}" in error["message"]


@pytest.mark.parametrize("role", ROLES)
async def test_only_workers_serve(locked: Stack, role: str) -> None:
    """WM-9, DC-6: the worker protocol, its stream and its unary twins, over gRPC."""
    worker = SimpleWorker(await locked.channel(), "acme", x_api_key=f"{role}-key")
    metadata = (("x-api-key", f"{role}-key"),)
    hello = worker_service_pb2.WorkRequest()
    hello.hello.protocol, hello.hello.worker_id, hello.hello.slots = 1, MISSING, 1

    stub = worker_service_pb2_grpc.WorkerServiceStub(await locked.channel())
    stream: Any = stub.Work(metadata=metadata, timeout=READY_S)
    if role in ("worker", "admin"):
        assert await worker.poll("nothing", wait=0) == []
        await stream.write(hello)
        assert (await stream.read()).welcome.session_id
        return
    # Who is refused says no hello: one that came too late gRPC's client would take for an error of its own.
    for call in (worker.poll("nothing", wait=0), worker.heartbeat((MISSING, 1)), stream.read()):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        trailers: Any = dict(caught.value.trailing_metadata())
        status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        assert info.reason == "FORBIDDEN"


async def test_a_bad_request_is_not_read_for_who_may_not_call(clients: dict[str, Client], locked: Stack) -> None:
    """WM-9: 401 and 403 come before anything is told of the request."""
    bad = {"type": 5}
    nobody = await locked.rest()
    # The proxy scans JSON before it knows anyone; the rules of the fields are the server's.
    check_error(await nobody.post("/api/v1/artifacts", json={"type": "!"}), 401, "UNAUTHENTICATED")
    check_error(await clients["viewer"].post("/api/v1/artifacts", json={"type": "!"}), 403, "FORBIDDEN")
    check_error(await clients["operator"].post("/api/v1/artifacts", json=bad), 422, "VALIDATION_ERROR", "type")


async def test_a_run_notes_who_began_it(clients: dict[str, Client]) -> None:
    """WM-9: by the name of the key."""
    for name in ("operator", "admin"):
        published = check_ok(await clients[name].post("/api/v1/artifacts", json={"type": "Note"}))
        run = check_ok(await clients[name].get(f"/api/v1/runs/{published['correlation_id']}"))
        assert run["created_by"] == f"{name}-key"


async def test_callers_have_idempotency_keys_of_their_own(clients: dict[str, Client], locked: Stack) -> None:
    """FL-8: by tenant and by caller: the same key of a colleague or of a stranger is another call."""
    second = await locked.rest(x_api_key="second-operator-key")
    ids = set()
    key = {"x-idempotency-key": f"shared-{uuid.uuid4()}"}
    for client in (clients["operator"], second, clients["other"]):
        for replayed in (False, True):
            response = await client.post("/api/v1/artifacts", json={"type": "Note"}, headers=key)
            ids.add(check_ok(response)["artifact_id"])
            assert ("idempotency-replayed" in response.headers) is replayed
    assert len(ids) == 3


async def test_a_tenant_cannot_read_what_is_another_s(clients: dict[str, Client]) -> None:
    """FL-6, WM-9: by id, in lists, in counts, by filter: there is nothing, as if it did not exist."""
    ours, theirs = clients["operator"], clients["other"]
    published = check_ok(await ours.post("/api/v1/artifacts", json={"type": "Note", "tags": ["secret"]}))
    task = check_ok(await ours.post("/api/v1/tasks", json={"kind": "secret-kind"}), 201)
    name = f"secret-{uuid.uuid4().hex[:8]}"
    agent = check_ok(await ours.post("/api/v1/agents", json={"name": name}), 201)
    check_ok(await ours.post("/api/v1/artifact-types", json={"name": "Secret"}), 201)
    run_id, task_id = published["correlation_id"], task["task_id"]
    for path in (
        f"artifacts/{published['artifact_id']}", f"runs/{run_id}", f"runs/{run_id}/events", f"runs/{run_id}/tasks",
        f"runs/{task['run_id']}", f"tasks/{task_id}", f"tasks/{task_id}/attempts", f"agents/{agent['id']}",
        f"agents/{name}", "artifact-types/Secret", "artifact-types/Secret/versions",
    ):  # fmt: skip
        check_ok(await ours.get(f"/api/v1/{path}"))
        error = check_error(await theirs.get(f"/api/v1/{path}"), 404, "NOT_FOUND")
        # Word for word what they get for an id that was never given.
        stranger = path.replace(published["artifact_id"], MISSING).replace(run_id, MISSING).replace(task_id, MISSING)
        stranger = stranger.replace(task["run_id"], MISSING).replace(agent["id"], MISSING)
        never = (await theirs.get(f"/api/v1/{stranger}")).json()["message"]
        used = {published["artifact_id"], run_id, task_id, task["run_id"], agent["id"]}
        message = error["message"]
        for each in used:
            message = message.replace(each, MISSING)
        assert message == never
    for path in ("artifacts", "runs", "tasks", "agents", "artifact-types"):
        body = (await theirs.get(f"/api/v1/{path}", params={"page_size": 500})).text
        for each in (published["artifact_id"], run_id, task_id, agent["id"], "secret", "Secret"):
            assert each not in body
    for params in ({"correlation_id": run_id}, {"tag": "secret"}):
        assert check_ok(await theirs.get("/api/v1/artifacts", params=params))["pagination"]["total"] == 0
        summary = check_ok(await theirs.get("/api/v1/artifacts/summary", params=params))["summary"]
        assert summary["total"] == 0


async def test_a_tenant_cannot_touch_what_is_another_s(clients: dict[str, Client]) -> None:
    """WM-9, FL-5: cancel, join, wait: 404, and nothing happens to it."""
    ours, theirs = clients["operator"], clients["other"]
    name = f"nobody-{uuid.uuid4().hex[:8]}"
    check_ok(await ours.post("/api/v1/artifact-types", json={"name": "Held"}), 201)
    check_ok(await ours.post("/api/v1/agents", json={"name": name, "subscriptions": [{"types": ["Held"]}]}), 201)
    run_id = check_ok(await ours.post("/api/v1/artifacts", json={"type": "Held"}))["correlation_id"]
    task_id = check_ok(await ours.get(f"/api/v1/runs/{run_id}/tasks"))["items"][0]["task_id"]
    before = check_ok(await ours.get(f"/api/v1/runs/{run_id}"))
    check_error(await theirs.post(f"/api/v1/runs/{run_id}/cancel", json={}), 404, "NOT_FOUND")
    check_error(await theirs.post(f"/api/v1/tasks/{task_id}/cancel", json={}), 404, "NOT_FOUND")
    join = {"type": "Note", "correlation_id": run_id}
    check_error(await theirs.post("/api/v1/artifacts", json=join), 404, "NOT_FOUND")
    async with asyncio.timeout(5):
        # At once: to wait would tell that there is something to wait for.
        check_error(await theirs.post("/api/v1/artifacts/sync", json={**join, "timeout": 30}), 404, "NOT_FOUND")
    (result,) = check_ok(await theirs.post("/api/v1/artifacts/batch", json={"artifacts": [join]}))["results"]
    assert result["error"]["code"] == "NOT_FOUND"
    assert check_ok(await ours.get(f"/api/v1/runs/{run_id}")) == before
    check_ok(await ours.post(f"/api/v1/runs/{run_id}/cancel", json={}))


async def test_a_tenant_s_worker_cannot_take_or_report_another_s_task(
    clients: dict[str, Client], locked: Stack
) -> None:
    """WM-9, FV-19: not lease it, complete it, fail it, move its progress, renew its lease, or claim to hold it."""
    ours, theirs = [
        SimpleWorker(await locked.channel(locked.native()), "", x_api_key=f"{name}-key") for name in ("worker", "other")
    ]
    made = check_ok(await clients["operator"].post("/api/v1/tasks", json={"kind": "held"}), 201)
    assert await theirs.poll("held", wait=0.3) == []
    (lease,) = await ours.poll("held")
    assert await theirs.complete(lease, "stolen", refused=True) == "NOT_FOUND"
    assert await theirs.fail(lease, "X", "broken by a stranger", refused=True) == "NOT_FOUND"
    assert await theirs.progress(lease, 0.9, "moved by a stranger", refused=True) == "NOT_FOUND"
    (beat,) = await theirs.heartbeat((lease.task_id, lease.attempt))
    assert beat.error.code == "NOT_FOUND"
    hello = worker_service_pb2.WorkRequest()
    hello.hello.protocol, hello.hello.worker_id, hello.hello.slots = 1, ours.worker_id, 1
    hello.hello.held.add(task_id=lease.task_id, attempt=lease.attempt)

    async def requests() -> Any:
        yield hello
        await asyncio.Event().wait()

    stub = worker_service_pb2_grpc.WorkerServiceStub(await locked.channel(locked.native()))
    stream: Any = stub.Work(requests(), metadata=(("x-api-key", "other-key"),))
    assert list((await stream.read()).welcome.held) == []
    stream.cancel()
    task = check_ok(await clients["operator"].get(f"/api/v1/tasks/{made['task_id']}"))
    assert (task["status"], task["attempt"], task["progress"], task["progress_message"]) == ("RUNNING", 1, 0, "")
    await ours.complete(lease, "mine")
    task = check_ok(await clients["operator"].get(f"/api/v1/tasks/{made['task_id']}"))
    assert (task["status"], task["output"]) == ("COMPLETED", "mine")


async def test_a_tenant_s_agents_see_its_artifacts_only(clients: dict[str, Client]) -> None:
    """FL-14, FL-6: the same type, another tenant: not delivered, whatever the visibility says."""
    name = f"spy-{uuid.uuid4().hex[:8]}"
    spy = {"name": name, "subscriptions": [{"types": ["Note"]}], "labels": ["all"]}
    check_ok(await clients["other"].post("/api/v1/agents", json=spy), 201)
    for visibility in (
        {"kind": "Public"}, {"kind": "Tenant", "tenant_id": "acme"}, {"kind": "Private", "agents": [name]},
        {"kind": "Labelled", "required_labels": ["all"]},
    ):  # fmt: skip
        request = {"type": "Note", "visibility": visibility, "timeout": 5}
        body = check_ok(await clients["operator"].post("/api/v1/artifacts/sync", json=request))
        assert (body["completed"], len(body["artifacts"])) == (True, 1)
    tasks = check_ok(await clients["other"].get("/api/v1/tasks", params={"kind": f"agent:{name}"}))["items"]
    assert tasks == []
    foreign = {"type": "Note", "visibility": {"kind": "Tenant", "tenant_id": "umbrella"}}
    response = await clients["operator"].post("/api/v1/artifacts", json=foreign)
    check_error(response, 422, "VALIDATION_ERROR", "visibility.tenant_id")


async def test_a_page_token_opens_no_other_tenant_s_cascade(clients: dict[str, Client]) -> None:
    """FL-12, WM-9: tokens hold ids, and ids open nothing."""
    run_id = check_ok(await clients["operator"].post("/api/v1/artifacts", json={"type": "Note"}))["correlation_id"]
    token = encode_token("run", run_id, 0)
    params = {"page_token": token}
    assert len(check_ok(await clients["operator"].get("/api/v1/artifacts", params=params))["items"]) == 1
    check_error(await clients["other"].get("/api/v1/artifacts", params=params), 404, "NOT_FOUND")


async def test_a_key_cannot_choose_its_tenant(clients: dict[str, Client]) -> None:
    """WM-9: the tenant is the key's: naming another in x-tenant is refused, its own is fine."""
    for tenant, status in (("acme", 200), ("umbrella", 403), ("nonsense", 403)):
        response = await clients["operator"].get("/api/v1/runs", headers={"x-tenant": tenant})
        assert response.status_code == status, response.text
    check_error(await clients["admin"].get("/api/v1/runs", headers={"x-tenant": "umbrella"}), 403, "FORBIDDEN")


async def test_in_developer_mode_the_tenant_is_what_x_tenant_says(own: Client, rest: Client, tenant: str) -> None:
    """WM-9: one developer, any tenant; without the header, the default one; an odd name is refused."""
    check_ok(await own.post("/api/v1/artifacts", json={"type": "Note"}))
    mine = {"x-tenant": tenant}
    assert check_ok(await rest.get("/api/v1/artifacts", headers=mine))["pagination"]["total"] == 1
    other = {"x-tenant": f"{tenant}-2"}
    assert check_ok(await rest.get("/api/v1/artifacts", headers=other))["pagination"]["total"] == 0
    for odd in ("x" * 129, "é", "a\tb"):
        response = await rest.get("/api/v1/artifacts", headers=[(b"x-tenant", odd.encode())])
        check_error(response, 401, "UNAUTHENTICATED")


async def test_a_header_that_only_the_proxy_may_say_is_not_believed(own: Client) -> None:
    """DC-3: a client's own is dropped: no status, no error body, no trust comes from it."""
    forged = {
        "x-millstream-proxy": "guess", "x-http-status": "500", "x-error-body": "{}", "x-envoy-original-path": "/x",
        "x-local-reply": "x", "x-millstream-refused": "1",
    }  # fmt: skip
    check_ok(await own.post("/api/v1/artifacts", json={"type": "Note"}, headers=forged))
    check_error(await own.post("/api/v1/artifacts", json={"type": "Nope"}, headers=forged), 404, "NOT_FOUND")
