"""Lists over REST: filters, three styles of pages, and what each refuses."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import grpc
import httpx
import pytest
from tests.e2e.answers import ARTIFACT, check_error, check_ok
from tests.e2e.stack import Process

from millstream.application.paging import encode_token as token
from millstream.v1 import (
    agent_service_pb2_grpc,
    artifact_service_pb2_grpc,
    run_service_pb2_grpc,
    task_service_pb2_grpc,
)
from millstream.v1.agent_service_pb2 import ListAgentsRequest
from millstream.v1.artifact_service_pb2 import ListArtifactsRequest, ListArtifactTypesRequest, PublishSyncRequest
from millstream.v1.run_service_pb2 import ListRunsRequest
from millstream.v1.task_service_pb2 import ListTasksRequest

LIST = "/api/v1/artifacts"
Client = httpx.AsyncClient


async def publish(client: Client, count: int, **more: Any) -> list[dict[str, Any]]:
    """Publish Notes numbered from 0, in order; their results."""
    items = [{"type": "Note", "payload": {"n": number}, **more} for number in range(count)]
    body = check_ok(await client.post(f"{LIST}/batch", json={"artifacts": items}))
    assert body["accepted"] == count
    results: list[dict[str, Any]] = body["results"]
    return results


async def walk(client: Client, path: str, **params: Any) -> list[list[dict[str, Any]]]:
    """All pages of a list, by page_token."""
    pages: list[list[dict[str, Any]]] = []
    token: str | None = ""
    while token is not None:
        body = check_ok(await client.get(path, params={**params, "page_token": token}))
        assert set(body["pagination"]) <= {"page_size", "next_page_token"}
        pages.append(body["items"])
        token = body["pagination"].get("next_page_token")
    return pages


def numbers(items: list[dict[str, Any]]) -> list[int]:
    """The numbers in the payloads."""
    return [item["payload"]["n"] for item in items]


async def test_a_list_is_newest_first_with_its_page(own: Client) -> None:
    """FL-12, FL-17: {items, pagination: {limit, offset, total}}, 50 items by default, each with the eleven keys."""
    await publish(own, 60)
    body = check_ok(await own.get(LIST))
    assert set(body) == {"items", "pagination"}
    assert body["pagination"] == {"limit": 50, "offset": 0, "total": 60}
    assert numbers(body["items"]) == list(range(59, 9, -1))
    assert all(set(item) == ARTIFACT for item in body["items"])


async def test_limit_and_offset_choose_the_page(own: Client) -> None:
    """FL-12: limit 1 to 500, offset from 0, past the end too."""
    await publish(own, 10)
    for limit, offset, expected in ((3, 0, [9, 8, 7]), (3, 8, [1, 0]), (500, 0, list(range(9, -1, -1))), (5, 10, [])):
        body = check_ok(await own.get(LIST, params={"limit": limit, "offset": offset}))
        assert body["pagination"] == {"limit": limit, "offset": offset, "total": 10}
        assert numbers(body["items"]) == expected
    assert check_ok(await own.get(LIST, params={"offset": 100000}))["items"] == []
    assert numbers(check_ok(await own.get(LIST, params={"offset": 8}))["items"]) == [1, 0]


async def test_page_and_page_size_choose_the_page(own: Client) -> None:
    """FL-12: {total, page, page_size, total_pages}, and a token to go on with."""
    await publish(own, 10)
    body = check_ok(await own.get(LIST, params={"page": 2, "page_size": 4}))
    token = body["pagination"].pop("next_page_token")
    assert body["pagination"] == {"total": 10, "page": 2, "page_size": 4, "total_pages": 3}
    assert numbers(body["items"]) == [5, 4, 3, 2]
    assert numbers(check_ok(await own.get(LIST, params={"page_token": token}))["items"]) == [1, 0]
    body = check_ok(await own.get(LIST, params={"page": 4, "page_size": 4}))
    assert (body["items"], body["pagination"]["total_pages"]) == ([], 3)


async def test_a_walk_by_token_finds_everything_once_while_more_is_published(own: Client) -> None:
    """FL-12: the token goes on behind the last item, whatever came in before the first."""
    await publish(own, 25)
    body = check_ok(await own.get(LIST, params={"page_token": "", "page_size": 10}))
    assert set(body["pagination"]) == {"page_size", "next_page_token"}
    await publish(own, 5)
    found = list(body["items"])
    while token := body["pagination"].get("next_page_token"):
        body = check_ok(await own.get(LIST, params={"page_token": token, "page_size": 10}))
        found += body["items"]
    assert numbers(found) == list(range(24, -1, -1))


@pytest.mark.parametrize(
    "path",
    [
        "artifacts",
        "artifact-types",
        "artifact-types/Note/versions",
        "agents",
        "runs",
        "tasks",
        "runs/{id}/tasks",
        "workflows",
        "workflows/nap-1/versions",
    ],
)
async def test_every_list_has_pages_and_tokens(own: Client, path: str) -> None:
    """FL-12, WM-11: page and page_size with totals, or a walk by tokens, of every list alike."""
    schema = {"name": "Note", "schema": {"required": ["n"]}, "compatibility": "none"}
    agent = {"subscriptions": [{"types": ["Note"]}]}
    check_ok(await own.post("/api/v1/artifact-types", json=schema), 201)
    for number in range(2):
        check_ok(await own.post("/api/v1/artifact-types", json={"name": f"Type{number}"}), 201)
    for number in range(3):
        check_ok(await own.post("/api/v1/agents", json={"name": f"agent-{number}", **agent}), 201)
        definition = {"name": f"nap-{number}", "steps": [{"id": "rest", "kind": "sleep", "seconds": number}]}
        check_ok(await own.post("/api/v1/workflows", json={"definition": definition}), 201)
    check_ok(await own.put("/api/v1/workflows/nap-1", json={"definition": definition | {"name": "nap-1"}}))
    results = await publish(own, 3)
    path = f"/api/v1/{path.replace('{id}', results[0]['correlation_id'])}"
    whole = check_ok(await own.get(path, params={"page_size": 500}))["items"]
    total = len(whole)
    assert total >= 2
    assert [item for page in await walk(own, path, page_size=1) for item in page] == whole
    assert len(await walk(own, path, page_size=1)) == total
    for number in range(1, total + 1):
        body = check_ok(await own.get(path, params={"page": number, "page_size": 1}))
        assert body["items"] == [whole[number - 1]]
        pagination = {**body["pagination"], "next_page_token": ""}
        assert pagination == {
            "total": total, "page": number, "page_size": 1, "total_pages": total, "next_page_token": "",
        }  # fmt: skip
        assert ("next_page_token" in body["pagination"]) is (number < total)


async def test_every_filter_holds_and_they_hold_together(own: Client) -> None:
    """FL-12: type, produced_by, correlation_id, tag, from, to, visibility."""
    check_ok(await own.post("/api/v1/artifact-types", json={"name": "Other"}), 201)
    cascade = str(uuid.uuid4())
    private = {"visibility": {"kind": "Private", "agents": ["a"]}}
    requests: list[dict[str, Any]] = [
        {"type": "Note", "payload": {"n": 0}, "tags": ["red", "blue"]},
        {"type": "Other", "payload": {"n": 1}, "tags": ["red"]},
        {"type": "Note", "payload": {"n": 2}, "correlation_id": cascade},
        {"type": "Other", "payload": {"n": 3}, **private},
    ]
    made = [check_ok(await own.post(LIST, json=request)) for request in requests]
    times = [check_ok(await own.get(f"{LIST}/{each['artifact_id']}"))["created_at"] for each in made]
    filters: list[tuple[dict[str, str], list[int]]] = [
        ({"type": "Note"}, [2, 0]),
        ({"type": "Nope"}, []),
        ({"produced_by": "external"}, [3, 2, 1, 0]),
        ({"produced_by": "nobody"}, []),
        ({"correlation_id": cascade}, [2]),
        ({"correlation_id": cascade.upper()}, [2]),
        ({"tag": "red"}, [1, 0]),
        ({"tag": "blue"}, [0]),
        ({"visibility": "Private"}, [3]),
        ({"visibility": "Labelled"}, []),
        ({"from": times[2]}, [3, 2]),
        ({"to": times[2]}, [1, 0]),
        ({"from": times[1], "to": times[3]}, [2, 1]),
        ({"type": "Note", "tag": "red", "to": times[1]}, [0]),
    ]
    for params, expected in filters:
        body = check_ok(await own.get(LIST, params=params))
        assert (numbers(body["items"]), body["pagination"]["total"]) == (expected, len(expected)), params
        walked = [item for page in await walk(own, LIST, page_size=1, **params) for item in page]
        assert numbers(walked) == expected, params
        assert check_ok(await own.get(f"{LIST}/summary", params=params))["summary"]["total"] == len(expected), params


STYLES: list[tuple[dict[str, Any], str]] = [
    ({"page": 1, "limit": 5}, "page"),
    ({"page": 1, "offset": 5}, "page"),
    ({"page_size": 5, "limit": 5}, "page"),
    ({"page_size": 5, "offset": 5}, "page"),
    ({"page": 1, "page_token": "TOKEN"}, "page_token"),
    ({"limit": 5, "page_token": "TOKEN"}, "page_token"),
    ({"offset": 5, "page_token": "TOKEN"}, "page_token"),
]


@pytest.mark.parametrize(("params", "field"), STYLES, ids=[str(params) for params, _ in STYLES])
async def test_two_styles_of_pages_at_once_are_an_error(own: Client, params: dict[str, Any], field: str) -> None:
    """FL-12: each way to mix them names a field."""
    await publish(own, 2)
    body = check_ok(await own.get(LIST, params={"page": 1, "page_size": 1}))
    token = body["pagination"]["next_page_token"]
    params = {name: token if value == "TOKEN" else value for name, value in params.items()}
    check_error(await own.get(LIST, params=params), 422, "VALIDATION_ERROR", field)


BOUNDS = [
    ("artifacts", "limit", (0, 501, 4294967295)),
    ("artifacts", "offset", (100001, 4294967295)),
    ("artifacts", "page", (0, 100001)),
    ("artifacts", "page_size", (0, 501)),
    ("runs", "page_size", (0, 501)),
    ("tasks", "page_size", (0, 501)),
    ("agents", "page", (0, 100001)),
    ("artifact-types", "page_size", (0, 501)),
]


@pytest.mark.parametrize(("path", "name", "values"), BOUNDS)
async def test_a_page_out_of_bounds_is_a_field_error(
    own: Client, path: str, name: str, values: tuple[int, ...]
) -> None:
    """FL-12: limit and page_size 1 to 500, offset to 100,000, page from 1."""
    for value in values:
        response = await own.get(f"/api/v1/{path}", params={name: value})
        check_error(response, 422, "VALIDATION_ERROR", name)


NIL = str(uuid.UUID(int=0))
TOKENS = [
    "!!!", "é", "AAAA=AAAA", token("abc"), token("1", "2", "3", "4"), token("id", "abc", "0"),
    token("id", NIL, "-1"), token("id", NIL, "²"), token("run", "abc", "1"), token("run", NIL, "9" * 30),
    token("nonsense", NIL, "1"), token("runs", "12", "abc"), token("runs", "9" * 30, NIL),
    token("runs", "²", NIL), token("tasks", "abc"), token("versions", "Note", "²"), "x" * 513, "x" * 5000,
]  # fmt: skip


@pytest.mark.parametrize(
    "path",
    [
        "artifacts",
        "runs",
        "tasks",
        "agents",
        "artifact-types",
        "artifact-types/Note/versions",
        "runs/{id}/tasks",
        "workflows",
        "workflows?sort=-created_at",
    ],
)
async def test_a_page_token_that_no_list_made_is_a_field_error(own: Client, path: str) -> None:
    """FL-12: whatever stands in it."""
    (result,) = await publish(own, 1)
    path = f"/api/v1/{path.replace('{id}', result['correlation_id'])}"
    answers = await asyncio.gather(*(own.get(path, params={"page_token": each}) for each in TOKENS))
    for response in answers:
        check_error(response, 422, "VALIDATION_ERROR", "page_token")


async def test_a_token_of_a_cascade_that_is_not_there_is_not_found(own: Client) -> None:
    """FL-12: nor one of another tenant."""
    for tenant in (own.headers["x-tenant"], "somebody-else"):
        (result,) = await publish(own, 1)
        params = {"page_token": token("run", result["correlation_id"] if tenant == "somebody-else" else NIL, "0")}
        check_error(await own.get(LIST, params=params, headers={"x-tenant": tenant}), 404, "NOT_FOUND")


async def test_embed_meta_tells_who_consumed_what(rest: Client, orders: Process) -> None:
    """FL-12: consumptions and consumed_by on every item, and on none without it."""
    order = {"type": "Order", "payload": {"order_id": "meta", "amount": 1, "items": []}}
    cascade = check_ok(await rest.post(f"{LIST}/sync", json=order))["correlation_id"]
    params: dict[str, Any] = {"correlation_id": cascade}
    plain = check_ok(await rest.get(LIST, params=params))["items"]
    items = check_ok(await rest.get(LIST, params={**params, "embed_meta": True}))["items"]
    assert [set(item) - ARTIFACT for item in items] == [{"consumptions", "consumed_by"}] * 4
    assert [{name: item[name] for name in ARTIFACT} for item in items] == plain
    assert [item["consumed_by"] for item in items] == [[], ["notifier"], ["shipping"], ["payments"]]
    (consumption,) = items[3]["consumptions"]
    assert consumption.pop("consumed_at").endswith("Z")
    assert consumption == {
        "artifact_id": items[3]["id"],
        "consumer": "payments",
        "run_id": cascade,
        "correlation_id": cascade,
    }


async def test_a_summary_counts_by_type_producer_visibility_and_tag(rest: Client, orders: Process) -> None:
    """FL-12: with the first and the last time; all of it of what the filters choose."""
    order = {"type": "Order", "payload": {"order_id": "sum", "amount": 1, "items": []}, "tags": ["a", "b"]}
    cascade = check_ok(await rest.post(f"{LIST}/sync", json=order))
    params = {"correlation_id": cascade["correlation_id"]}
    body = check_ok(await rest.get(f"{LIST}/summary", params=params))
    times = [artifact["created_at"] for artifact in cascade["artifacts"]]
    assert body == {
        "summary": {
            "total": 4,
            "by_type": {"Order": 1, "Payment": 1, "Shipment": 1, "Notification": 1},
            "by_producer": {"external": 1, "payments": 1, "shipping": 1, "notifier": 1},
            "by_visibility": {"Public": 4},
            "tag_counts": {"a": 1, "b": 1},
            "earliest_created_at": times[0],
            "latest_created_at": times[-1],
        }
    }


async def test_a_summary_of_nothing_is_zeros(own: Client) -> None:
    """FL-12: empty maps, and no times."""
    assert check_ok(await own.get(f"{LIST}/summary"))["summary"] == {
        "total": 0,
        "by_type": {},
        "by_producer": {},
        "by_visibility": {},
        "tag_counts": {},
    }


async def test_types_have_versions(own: Client) -> None:
    """FL-12: another schema makes the next version, the same one none; each can be had."""
    path = "/api/v1/artifact-types"
    for required, version in (("a", 2), ("b", 3), ("b", 3), ("a", 4)):
        new = {"name": "Note", "schema": {"required": [required]}, "compatibility": "none"}
        made = check_ok(await own.post(path, json=new), 201)
        assert made["version"] == version
    assert check_ok(await own.get(f"{path}/Note"))["version"] == 4
    assert check_ok(await own.get(f"{path}/Note", params={"version": 2}))["schema"] == {"required": ["a"]}
    versions = check_ok(await own.get(f"{path}/Note/versions"))["items"]
    assert [each["version"] for each in versions] == [4, 3, 2, 1]
    (listed,) = check_ok(await own.get(path))["items"]
    assert (listed["name"], listed["version"]) == ("Note", 4)


async def test_a_page_that_ends_at_its_bytes_says_how_to_go_on(own: Client) -> None:
    """FL-12: 20 of 225 KB do not fit into one page: the token goes on where the next offset would skip some."""
    for number in range(20):
        payload = {"n": number, "text": "x" * 225_000}
        check_ok(await own.post(LIST, json={"type": "Note", "payload": payload}))
    styles: list[dict[str, Any]] = [{"limit": 20}, {"page": 1, "page_size": 20}, {"page_token": "", "page_size": 20}]
    for params in styles:
        body = check_ok(await own.get(LIST, params=params))
        found = list(body["items"])
        assert len(found) == 13
        while token := body["pagination"].get("next_page_token"):
            body = check_ok(await own.get(LIST, params={"page_token": token, "page_size": 20}))
            found += body["items"]
        assert numbers(found) == [*range(19, -1, -1)]


async def test_no_page_outgrows_a_message(own: Client, servers: list[grpc.aio.Channel], tenant: str) -> None:
    """FL-12: types, agents, tasks and runs are paged by bytes too: a gRPC client takes 4 MiB, whatever it asks for."""
    for number in range(20):
        large = {"name": f"Large{number}", "schema": {"title": "x" * 250_000}}
        check_ok(await own.post("/api/v1/artifact-types", json=large), 201)
    where = "payload.n == 1 || " * 100 + "true"
    subscriptions = [{"types": ["Note"], "where": where, "from_agents": [f"{n:0128}" for n in range(100)]}] * 20
    for number in range(8):
        agent = {"name": f"a{number}", "subscriptions": subscriptions}
        check_ok(await own.post("/api/v1/agents", json=agent), 201)
    labels = {f"{number:0128}": "é" * 256 for number in range(32)}
    for _ in range(2):
        tasks = {"tasks": [{"kind": "k", "labels": labels}] * 120}
        assert check_ok(await own.post("/api/v1/tasks/batch", json=tasks))["accepted"] == 120
    for path, total in (("artifact-types", 21), ("agents", 8), ("tasks", 240), ("runs", 240)):
        pages = await walk(own, f"/api/v1/{path}", page_size=500)
        assert sum(map(len, pages)) == total
        assert len(pages) > 1
    metadata = (("x-tenant", tenant),)
    types = artifact_service_pb2_grpc.ArtifactServiceStub(servers[0])
    agents = agent_service_pb2_grpc.AgentServiceStub(servers[0])
    tasks_ = task_service_pb2_grpc.TaskServiceStub(servers[0])
    runs = run_service_pb2_grpc.RunServiceStub(servers[0])
    assert (await types.ListArtifactTypes(ListArtifactTypesRequest(page_size=500), metadata=metadata)).items
    assert (await agents.ListAgents(ListAgentsRequest(page_size=500), metadata=metadata)).items
    assert (await tasks_.ListTasks(ListTasksRequest(page_size=500), metadata=metadata)).items
    assert (await runs.ListRuns(ListRunsRequest(page_size=500), metadata=metadata)).items


async def test_what_stands_around_payloads_counts_too(
    own: Client, servers: list[grpc.aio.Channel], tenant: str
) -> None:
    """FL-2, FL-12: artifacts with a visibility of 13 KB and no payload, in a list, a sync answer and its rest."""
    visibility = {"kind": "Private", "agents": [f"{number:0128}" for number in range(100)]}
    large = {"type": "Note", "visibility": visibility, "correlation_id": str(uuid.uuid4())}
    for _ in range(4):
        body = check_ok(await own.post(f"{LIST}/batch", json={"artifacts": [large] * 200}))
        assert body["accepted"] == 200
    assert sum(map(len, await walk(own, LIST, page_size=500))) == 800
    stub = artifact_service_pb2_grpc.ArtifactServiceStub(servers[0])
    metadata = (("x-tenant", tenant),)
    assert (await stub.ListArtifacts(ListArtifactsRequest(page_size=500), metadata=metadata)).items
    request = PublishSyncRequest(type="Note", correlation_id=str(large["correlation_id"]))
    answer = await stub.PublishSync(request, metadata=metadata)
    assert answer.truncated
    found, token = len(answer.artifacts), answer.next_page_token
    while token:
        page = await stub.ListArtifacts(ListArtifactsRequest(page_size=500, page_token=token), metadata=metadata)
        found, token = found + len(page.items), page.pagination.next_page_token
    assert found == 801


async def test_a_page_token_of_another_list_is_refused(own: Client) -> None:
    """FL-10, FL-12: and so is a damaged one; an empty one is the first page."""
    check_ok(await own.post("/api/v1/artifact-types", json={"name": "Memo"}), 201)
    for name in ("a", "b"):
        check_ok(await own.post("/api/v1/agents", json={"name": name}), 201)
    paths = ("/api/v1/agents", "/api/v1/artifact-types")
    first = {"page_size": "1", "page_token": ""}
    tokens = [check_ok(await own.get(path, params=first))["pagination"]["next_page_token"] for path in paths]
    for path, mine, other in zip(paths, tokens, reversed(tokens), strict=True):
        assert len(check_ok(await own.get(path, params={"page_token": mine}))["items"]) == 1
        for bad in (other, "eyJ", mine[:-4]):
            check_error(await own.get(path, params={"page_token": bad}), 422, "VALIDATION_ERROR", "page_token")
