"""Agents through Envoy: changed, deleted, paused, run by name, with a real worker process and two servers."""

from __future__ import annotations

import asyncio
import re
import uuid
from typing import Any

import httpx
from tests.e2e.answers import ARTIFACT, check_error, check_ok
from tests.e2e.simple_worker import SimpleWorker
from tests.e2e.stack import READY_S, Process, Stack

from millstream.v1.artifact_pb2 import Visibility
from millstream.v1.worker_pb2 import ProducedArtifact

Client = httpx.AsyncClient


async def test_an_agent_is_updated_and_deleted(own: Client) -> None:
    """WM-1: PUT makes the next version, DELETE answers 204 and frees the name."""
    made = check_ok(await own.post("/api/v1/agents", json={"name": "a", "subscriptions": [{"types": ["Note"]}]}), 201)
    body = {"description": "new", "expected_version": 1}
    changed = check_ok(await own.put("/api/v1/agents/a", json=body))
    assert (changed["id"], changed["version"], changed["description"]) == (made["id"], 2, "new")
    assert changed["subscriptions"] == []
    check_error(await own.put("/api/v1/agents/a", json=body), 409, "CONFLICT")
    check_error(await own.put("/api/v1/agents/a", json={"name": "b"}), 422, "VALIDATION_ERROR", "name")
    gone = await own.delete(f"/api/v1/agents/{made['id']}")
    assert (gone.status_code, gone.content) == (204, b"")
    check_error(await own.get("/api/v1/agents/a"), 404, "NOT_FOUND")
    check_error(await own.delete("/api/v1/agents/a"), 404, "NOT_FOUND")
    assert check_ok(await own.get("/api/v1/agents"))["items"] == []
    (listed,) = check_ok(await own.get("/api/v1/agents", params={"status": "deleted"}))["items"]
    assert (listed["id"], listed["status"], "deleted_at" in listed) == (made["id"], "DELETED", True)
    again = check_ok(await own.post("/api/v1/agents", json={"name": "a"}), 201)
    assert (again["version"], again["id"] != made["id"]) == (1, True)


async def test_a_deletion_is_replayed_by_its_key(own: Client) -> None:
    """FL-8: the same 204, and nothing else is deleted."""
    check_ok(await own.post("/api/v1/agents", json={"name": "a"}), 201)
    key = {"x-idempotency-key": uuid.uuid4().hex}
    assert (await own.delete("/api/v1/agents/a", headers=key)).status_code == 204
    check_ok(await own.post("/api/v1/agents", json={"name": "a"}), 201)
    replayed = await own.delete("/api/v1/agents/a", headers=key)
    assert (replayed.status_code, replayed.headers["idempotency-replayed"]) == (204, "true")
    check_ok(await own.get("/api/v1/agents/a"))


async def test_a_creation_is_replayed_after_its_agent_was_deleted(own: Client) -> None:
    """FL-8: the agent that the key made, deleted as it is; no other is made."""
    key = {"x-idempotency-key": uuid.uuid4().hex}
    made = check_ok(await own.post("/api/v1/agents", json={"name": "a"}, headers=key), 201)
    assert (await own.delete("/api/v1/agents/a")).status_code == 204
    for _ in range(2):
        replayed = await own.post("/api/v1/agents", json={"name": "a"}, headers=key)
        body = check_ok(replayed, replayed.status_code)
        assert (replayed.status_code // 100, replayed.headers["idempotency-replayed"]) == (2, "true")
        assert (body["id"], body["status"], "deleted_at" in body) == (made["id"], "DELETED", True)
        assert check_ok(await own.get("/api/v1/agents"))["items"] == []


async def test_changes_are_replayed_with_the_agent_they_were_of(own: Client) -> None:
    """FL-8: PUT, pause and resume, after the agent was deleted and its name given to another."""
    made = check_ok(await own.post("/api/v1/agents", json={"name": "a"}), 201)
    calls: list[tuple[str, str, dict[str, Any]]] = [
        ("PUT", "", {"description": "new"}),
        ("POST", "/pause", {"reason": "upkeep"}),
        ("POST", "/resume", {}),
    ]
    headers = {"x-idempotency-key": uuid.uuid4().hex}
    for method, path, body in calls:
        check_ok(await own.request(method, f"/api/v1/agents/a{path}", json=body, headers=headers))
    for then in ("deleted", "made anew"):
        if then == "deleted":
            assert (await own.delete("/api/v1/agents/a")).status_code == 204
        else:
            check_ok(await own.post("/api/v1/agents", json={"name": "a"}), 201)
        for method, path, body in calls:
            answer = await own.request(method, f"/api/v1/agents/a{path}", json=body, headers=headers)
            shown = check_ok(answer)
            assert (shown["id"], shown["status"], shown["description"]) == (made["id"], "DELETED", "new")
            assert answer.headers["idempotency-replayed"] == "true"
    found = check_ok(await own.get("/api/v1/agents/a"))
    assert (found["version"], found["status"], found["description"]) == (1, "OFFLINE", "")


async def test_an_agent_is_put_back_as_it_was_read(own: Client) -> None:
    """WM-1: unchanged it makes no version; changed, the version that was read guards it."""
    check_ok(await own.post("/api/v1/artifact-types", json={"name": "Memo"}), 201)
    subscriptions = [
        {"types": ["Note"], "where": "payload.n > 1", "tags": ["a"], "from_agents": ["external"], "priority": 3},
        {"types": ["Note", "Memo"], "counts": {"Note": 2}},
        {"types": ["Note", "Memo"], "join": {"by": "payload.id", "within": "60s"}},
        {"types": ["Note", "Memo"], "join": {"by": "payload.id", "within_count": 5}, "scope": "tenant"},
        {"types": ["Note"], "batch": {"size": 3}},
        {"types": ["Note"], "batch": {"timeout": "5s"}, "delivery": "exclusive"},
        {"types": ["Note"], "mode": "direct"},
    ]
    spec = {"name": "a", "subscriptions": subscriptions, "outputs": ["Memo"], "labels": ["x"], "max_concurrency": 2}
    check_ok(await own.post("/api/v1/agents", json=spec), 201)
    check_ok(await own.post("/api/v1/artifacts", json={"type": "Note", "payload": {"id": "1"}}))
    check_ok(await own.post("/api/v1/agents/a/pause", json={"reason": "upkeep"}))
    read = check_ok(await own.get("/api/v1/agents/a"))
    assert {"id", "version", "status", "created_at", "updated_at", "gates", "waiting_gates", "pause"} <= set(read)
    assert read["waiting_gates"] > 0
    assert check_ok(await own.put("/api/v1/agents/a", json=read))["version"] == 1
    changed = check_ok(await own.put("/api/v1/agents/a", json=read | {"description": "new"}))
    assert (changed["version"], changed["status"], changed["description"]) == (2, "PAUSED", "new")
    assert changed["subscriptions"] == read["subscriptions"]
    check_error(await own.put("/api/v1/agents/a", json=read | {"description": "old"}), 409, "CONFLICT")
    assert (await own.delete("/api/v1/agents/a")).status_code == 204
    check_ok(await own.post("/api/v1/agents", json={"name": "a"}), 201)
    check_error(await own.put("/api/v1/agents/a", json=read), 409, "CONFLICT")
    both = {"version": 2, "expected_version": 1}
    check_error(await own.put("/api/v1/agents/a", json=both), 422, "VALIDATION_ERROR", "expected_version")


async def test_a_paused_agent_waits_and_is_resumed(rest: Client, agents: Process) -> None:
    """FL-14: on both servers; a sync publish meanwhile is not completed, and is after."""
    paused = check_ok(await rest.post("/api/v1/agents/packer/pause", json={"reason": "upkeep"}))
    try:
        assert (paused["status"], paused["pause"]["reason"]) == ("PAUSED", "upkeep")
        (listed,) = check_ok(await rest.get("/api/v1/agents", params={"status": "PAUSED", "name": "packer"}))["items"]
        assert listed["pause"]["paused_by"] == paused["pause"]["paused_by"]
        request = {"type": "Parcel", "payload": {"note": "x"}, "timeout": 1}
        answers = await asyncio.gather(*(rest.post("/api/v1/artifacts/sync", json=request) for _ in range(4)))
        bodies = [check_ok(answer) for answer in answers]
        assert [body["completed"] for body in bodies] == [False] * 4
    finally:
        resumed = check_ok(await rest.post("/api/v1/agents/packer/resume", json={}))
    assert (resumed["status"], "pause" in resumed) == ("ONLINE", False)
    for body in bodies:
        assert (await _ended(rest, body["correlation_id"]))["status"] == "COMPLETED"


async def _ended(rest: Client, run_id: str) -> dict[str, Any]:
    async with asyncio.timeout(READY_S):
        while True:
            run: dict[str, Any] = check_ok(await rest.get(f"/api/v1/runs/{run_id}"))
            if "finished_at" in run:
                return run
            await asyncio.sleep(0.02)


async def test_an_agent_is_run_by_name(rest: Client, agents: Process) -> None:
    """FL-13: {artifacts} with what it made; the same key gives the same answer."""
    body = {"inputs": [{"type": "Parcel", "payload": {"note": "by name"}}]}
    key = {"x-idempotency-key": uuid.uuid4().hex}
    answer = await rest.post("/api/v1/agents/packer/run", json=body, headers=key)
    made = check_ok(answer)
    assert answer.headers["x-correlation-id"] == made["correlation_id"]
    (label,) = made["artifacts"]
    assert set(label) == ARTIFACT
    assert (label["type"], label["payload"], label["produced_by"]) == ("Label", {"note": "by name"}, "packer")
    assert (made["completed"], made["failures"]) == (True, [])
    # The courier goes on with the label, as ever; the archive was not told of the input.
    params = {"correlation_id": made["correlation_id"]}
    listed = check_ok(await rest.get("/api/v1/artifacts", params=params))["items"]
    assert sorted(item["type"] for item in listed) == ["Label", "Parcel", "Seen"]
    replayed = await rest.post("/api/v1/agents/packer/run", json=body, headers=key)
    assert replayed.headers["idempotency-replayed"] == "true"
    assert check_ok(replayed)["artifacts"] == made["artifacts"]


async def test_what_an_agent_cannot_be_run_with_is_told(rest: Client, agents: Process) -> None:
    """FL-10, FL-13: by field."""
    path = "/api/v1/agents/packer/run"
    sale = {"inputs": [{"type": "Sale", "payload": {"amount": 1}}]}
    check_error(await rest.post(path, json=sale), 422, "VALIDATION_ERROR", "inputs[0].type")
    check_error(await rest.post(path, json={"inputs": []}), 422, "VALIDATION_ERROR", "inputs")
    unknown = {"inputs": [{"type": "Nothing"}]}
    check_error(await rest.post(path, json=unknown), 422, "VALIDATION_ERROR", "inputs[0].type")
    wrong = {"inputs": [{"type": "Parcel", "payload": {"note": 5}}]}
    check_error(await rest.post(path, json=wrong), 422, "VALIDATION_ERROR", "inputs[0].payload.note")
    one = {"inputs": [{"type": "Parcel", "payload": {}}]}
    check_error(await rest.post("/api/v1/agents/nobody/run", json=one), 404, "NOT_FOUND")
    check_error(await rest.post(path, json=one | {"timeout": 301}), 422, "VALIDATION_ERROR", "timeout")


async def test_an_agent_shows_who_serves_it(rest: Client, agents: Process) -> None:
    """FL-13: the worker's name, its server, since when."""
    async with asyncio.timeout(READY_S):
        while True:
            found = check_ok(await rest.get("/api/v1/agents/packer"))
            if found["worker_count"]:
                break
            await asyncio.sleep(0.02)
    assert found["worker_count"] == len(found["served_by"]) == 1
    (worker,) = found["served_by"]
    assert set(worker) == {"worker_id", "name", "server", "connected_at", "last_seen_at"}
    assert worker["connected_at"] <= worker["last_seen_at"]
    assert re.fullmatch(r".+/\d+", worker["server"]), "servers of one machine are told apart"
    paused = check_ok(await rest.post("/api/v1/agents/packer/pause", json={}))
    resumed = check_ok(await rest.post("/api/v1/agents/packer/resume", json={}))
    for answer in (paused, resumed):
        assert (answer["worker_count"], len(answer["served_by"])) == (1, 1)
    listed = check_ok(await rest.get("/api/v1/agents", params={"name": "packer"}))["items"][0]
    assert not {"worker_count", "waiting_gates"} & set(listed), "no zeros where nothing was counted"


async def test_an_agent_s_history_is_counted(rest: Client, agents: Process) -> None:
    """FL-13: {agent_id, summary: {produced, consumed}}."""
    before = check_ok(await rest.get("/api/v1/agents/packer/history-summary"))
    check_ok(await rest.post("/api/v1/artifacts/sync", json={"type": "Parcel", "payload": {"note": "counted"}}))
    after = check_ok(await rest.get("/api/v1/agents/packer/history-summary"))
    agent = check_ok(await rest.get("/api/v1/agents/packer"))
    assert after["agent_id"] == agent["id"]
    for side, name in (("produced", "Label"), ("consumed", "Parcel")):
        counted = after["summary"][side]
        assert counted["by_type"][name] == before["summary"][side]["by_type"].get(name, 0) + 1
        assert counted["total"] == sum(counted["by_type"].values())


async def run_by_name(own: Client) -> asyncio.Task[httpx.Response]:
    """A run of a new agent that makes Parts out of an Order, under way."""
    for name in ("Order", "Part"):
        check_ok(await own.post("/api/v1/artifact-types", json={"name": name}), 201)
    spec = {"name": "maker", "subscriptions": [{"types": ["Order"]}], "outputs": ["Part"]}
    check_ok(await own.post("/api/v1/agents", json=spec), 201)
    old = {"deprecated": True, "deprecation_message": "use Sale"}
    check_ok(await own.patch("/api/v1/artifact-types/Order", json=old))
    request = own.post("/api/v1/agents/maker/run", json={"inputs": [{"type": "Order"}], "timeout": 20})
    return asyncio.create_task(request)


async def test_a_run_by_name_says_where_it_was_cut_and_what_is_deprecated(
    stack: Stack, own: Client, tenant: str
) -> None:
    """FL-13, FL-2: `truncated` with a token that lists the rest; the notice stands in body and header."""
    running, worker = await run_by_name(own), SimpleWorker(await stack.channel(), tenant)
    (lease,) = await worker.poll("agent:maker")
    parts = [ProducedArtifact(type="Part") for _ in range(20)]
    for part in parts:
        part.payload.update({"text": "x" * 180_000})
    await worker.complete(lease, produced=parts)
    response = await running
    body = check_ok(response)
    assert (body["completed"], body["truncated"], 0 < len(body["artifacts"]) < 20) == (True, True, True)
    assert body["deprecation"] == response.headers["x-deprecated"] == "Order: use Sale"
    params = {"page_token": body["next_page_token"], "produced_by": "maker"}
    rest = check_ok(await own.get("/api/v1/artifacts", params=params))["items"]
    assert len({item["id"] for item in body["artifacts"] + rest}) == 20


async def test_a_worker_s_answer_with_a_bad_visibility_fails_its_task(stack: Stack, own: Client, tenant: str) -> None:
    """FL-6: it is told which field, and nothing is published to everyone."""
    running, worker = await run_by_name(own), SimpleWorker(await stack.channel(), tenant)
    (lease,) = await worker.poll("agent:maker")
    secret = ProducedArtifact(type="Part", visibility=Visibility(agents=["hr"]))
    assert await worker.complete(lease, produced=[secret], refused=True) == "VALIDATION_ERROR"
    body = check_ok(await running)
    (failure,) = body["failures"]
    assert (body["completed"], body["artifacts"], failure["code"]) == (True, [], "INVALID_OUTPUT")
    assert failure["message"].startswith("artifacts[0].visibility.agents: belongs to the kind Private")
