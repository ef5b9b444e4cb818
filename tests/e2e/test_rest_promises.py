"""Promises over REST, through the proxy and two servers: an approval by hand, timeouts, keys, refusals."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import grpc
import httpx
import pytest
from tests.e2e.answers import check_error, check_ok
from tests.e2e.test_grpc_contract import as_tenant

from millstream.v1 import promise_service_pb2 as wire
from millstream.v1.promise_service_pb2_grpc import PromiseServiceStub

Client = httpx.AsyncClient
PROMISE = {"promise_id", "run_id", "name", "key", "state", "created_at", "expires_at", "settled_by", "labels"}
YES = {"approved": True, "note": None, "by": ["ann"]}


async def made(client: Client, **given: Any) -> dict[str, Any]:
    """A promise that was just made."""
    promise: dict[str, Any] = check_ok(await client.post("/api/v1/promises", json={"name": "approval", **given}), 201)
    return promise


async def test_an_approval_is_asked_for_given_and_seen(own: Client) -> None:
    """FV-17: made with a key, awaited, resolved by the key, once; the run ends with it."""
    promise = await made(own, key="order-1", input={"amount": 12.5}, timeout="60s", labels={"team": "red"})
    assert set(promise) == PROMISE | {"input"}
    assert {name: promise[name] for name in ("name", "key", "state", "input", "labels", "settled_by")} == {
        "name": "approval", "key": "order-1", "state": "PENDING", "input": {"amount": 12.5}, "labels": {"team": "red"},
        "settled_by": "",
    }  # fmt: skip
    path = f"/api/v1/promises/{promise['promise_id']}"
    waiting = asyncio.create_task(own.get(f"{path}/await", params={"timeout": 30}))
    resolved = check_ok(await own.post("/api/v1/promises/key:order-1/resolve", json={"value": YES}))
    assert (resolved["state"], resolved["value"], resolved["settled_by"]) == ("RESOLVED", YES, "developer")
    assert resolved["settled_at"] >= resolved["created_at"]
    assert check_ok(await waiting) == resolved
    for named in (promise["promise_id"], f"id:{promise['promise_id'].upper()}", "key:order-1", "key%3Aorder-1"):
        assert check_ok(await own.get(f"/api/v1/promises/{named}")) == resolved
    run = check_ok(await own.get(f"/api/v1/runs/{promise['run_id']}"))
    assert (run["kind"], run["status"], run["labels"]) == ("SINGLE", "COMPLETED", {"team": "red"})
    events = check_ok(await own.get(f"/api/v1/runs/{promise['run_id']}/events"))["items"]
    assert [event["type"] for event in events] == [
        "RUN_CREATED", "TASK_CREATED", "PROMISE_RESOLVED", "TASK_COMPLETED", "RUN_COMPLETED",
    ]  # fmt: skip
    assert events[2]["data"] == {"name": "approval", "key": "order-1", "by": "developer"}


@pytest.mark.parametrize("value", [YES, {}, [], "yes", 0, 12.5, False, None], ids=str)
async def test_a_promise_is_resolved_with_any_json_once(own: Client, value: Any) -> None:
    """FV-17: an equal value again succeeds, another is a CONFLICT."""
    path = f"/api/v1/promises/id:{(await made(own))['promise_id']}"
    assert check_ok(await own.post(f"{path}/resolve", json={"value": value}))["value"] == value
    assert check_ok(await own.post(f"{path}/resolve", json={"value": value}))["value"] == value
    check_error(await own.post(f"{path}/resolve", json={"value": "another"}), 409, "CONFLICT")
    check_error(await own.post(f"{path}/reject", json={}), 409, "CONFLICT")
    check_error(await own.post(f"{path}/cancel", json={}), 409, "CONFLICT")
    assert check_ok(await own.get(path))["value"] == value


async def test_a_promise_is_rejected_with_a_code_and_a_message(own: Client) -> None:
    """FV-17: or with none; its run fails with them."""
    promise = await made(own)
    path = f"/api/v1/promises/{promise['promise_id']}"
    why = {"code": "DECLINED", "message": "too expensive"}
    rejected = check_ok(await own.post(f"{path}/reject", json=why))
    assert (rejected["state"], rejected["error"], "value" in rejected) == ("REJECTED", why, False)
    assert check_ok(await own.post(f"{path}/reject", json=why)) == rejected
    check_error(await own.post(f"{path}/reject", json={"code": "OTHER"}), 409, "CONFLICT")
    run = check_ok(await own.get(f"/api/v1/runs/{promise['run_id']}"))
    assert (run["status"], run["error"]) == ("FAILED", why)
    plain = await made(own)
    answer = check_ok(await own.post(f"/api/v1/promises/{plain['promise_id']}/reject", json={}))
    assert answer["error"] == {"code": "REJECTED", "message": ""}


async def test_a_promise_times_out_and_frees_its_key(own: Client) -> None:
    """FV-17: PROMISE_TIMEOUT to whoever waits; the key may be used again."""
    promise = await made(own, key="order-1", timeout="0.05s")
    check_error(await own.post("/api/v1/promises", json={"name": "approval", "key": "order-1"}), 409, "CONFLICT")
    found = check_ok(await own.get("/api/v1/promises/key:order-1/await", params={"timeout": 30}))
    assert (found["promise_id"], found["state"]) == (promise["promise_id"], "REJECTED")
    assert found["error"] == {"code": "PROMISE_TIMEOUT", "message": "nobody settled it within 0.05 s"}
    assert found["settled_at"] >= found["expires_at"]
    again = await made(own, key="order-1")
    assert check_ok(await own.get("/api/v1/promises/key:order-1"))["promise_id"] == again["promise_id"]


async def test_waiting_ends_with_its_time(own: Client) -> None:
    """FV-17: the promise as it stands, or 504 where that is asked for."""
    path = f"/api/v1/promises/{(await made(own))['promise_id']}"
    for params in ({"timeout": 0}, {"timeout": 0.01}):
        assert check_ok(await own.get(f"{path}/await", params=params))["state"] == "PENDING"
    slow = await own.get(f"{path}/await", params={"timeout": 0.01, "fail_on_timeout": True})
    check_error(slow, 504, "TIMEOUT")
    assert check_ok(await own.post(f"{path}/cancel", json={"reason": "enough"}))["state"] == "CANCELLED"
    assert check_ok(await own.get(f"{path}/await"))["error"] == {"code": "CANCELLED", "message": "enough"}


async def test_promises_are_listed_by_what_is_asked(own: Client) -> None:
    """FV-17: state, key, name, run; in pages; without input and value."""
    first = await made(own, key="order-1", input=1)
    second = await made(own, name="payment")
    await own.post("/api/v1/promises/key:order-1/resolve", json={"value": 1})
    filters: list[tuple[dict[str, str], list[str]]] = [
        ({}, [second["promise_id"], first["promise_id"]]),
        ({"state": "resolved"}, [first["promise_id"]]),
        ({"state": "PENDING"}, [second["promise_id"]]),
        ({"key": "order-1"}, [first["promise_id"]]),
        ({"name": "payment", "run_id": second["run_id"]}, [second["promise_id"]]),
        ({"state": "CANCELLED"}, []),
    ]
    for params, expected in filters:
        body = check_ok(await own.get("/api/v1/promises", params=params))
        assert [each["promise_id"] for each in body["items"]] == expected, params
        assert body["pagination"]["total"] == len(expected)
    (one,) = check_ok(await own.get("/api/v1/promises", params={"page_size": 1, "page": 2}))["items"]
    assert set(one) == PROMISE | {"settled_at"}


async def test_of_many_callers_one_settles_a_promise(own: Client) -> None:
    """FV-17: through both servers at once."""
    path = f"/api/v1/promises/{(await made(own))['promise_id']}"
    answers = await asyncio.gather(*(own.post(f"{path}/resolve", json={"value": n}) for n in range(12)))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 11
    won = next(answer.json() for answer in answers if answer.status_code == 200)
    assert check_ok(await own.get(path)) == won


async def test_an_idempotency_key_makes_one_promise(own: Client) -> None:
    """FL-8: and is told so."""
    key = {"x-idempotency-key": uuid.uuid4().hex}
    request = {"name": "approval", "key": "order-1"}
    first = await own.post("/api/v1/promises", json=request, headers=key)
    again = await own.post("/api/v1/promises", json=request, headers=key)
    assert check_ok(again, 201) == check_ok(first, 201)
    assert again.headers["idempotency-replayed"] == "true"
    other = await own.post("/api/v1/promises", json={"name": "payment"}, headers=key)
    check_error(other, 409, "IDEMPOTENCY_CONFLICT")


async def test_what_is_odd_is_refused_by_field(own: Client) -> None:
    """FL-10, DC-9"""
    for request, field in (
        ({}, "name"),
        ({"name": "a", "key": "a/b"}, "key"),
        ({"name": "a", "timeout": "0s"}, "timeout"),
        ({"name": "a", "nonsense": 1}, "nonsense"),
    ):
        check_error(await own.post("/api/v1/promises", json=request), 422, "VALIDATION_ERROR", field)
    check_error(await own.get("/api/v1/promises/order-1"), 422, "VALIDATION_ERROR", "promise_id")
    check_error(await own.get("/api/v1/promises/key:order-1"), 404, "NOT_FOUND")
    unknown = f"/api/v1/promises/{uuid.uuid4()}"
    check_error(await own.post(f"{unknown}/resolve", json={"value": 1}), 404, "NOT_FOUND")
    late = await own.get(f"{unknown}/await", params={"timeout": 301})
    check_error(late, 422, "VALIDATION_ERROR", "timeout")
    big = {"value": "x" * (1024 * 1024)}
    path = f"/api/v1/promises/{(await made(own))['promise_id']}"
    check_error(await own.post(f"{path}/resolve", json=big), 413, "PAYLOAD_TOO_LARGE")


async def test_what_one_server_makes_another_settles_and_a_third_call_awaits(
    servers: list[grpc.aio.Channel], tenant: str
) -> None:
    """FV-17, DC-1: natively, each server with its part."""
    stubs = [PromiseServiceStub(channel) for channel in servers]
    metadata = as_tenant(tenant)
    promise = await stubs[0].CreatePromise(wire.CreatePromiseRequest(name="approval", key="k"), metadata=metadata)
    asked = wire.AwaitPromiseRequest(promise_id=promise.promise_id, timeout=30)
    waiting = [asyncio.ensure_future(stub.AwaitPromise(asked, metadata=metadata)) for stub in stubs]
    request = wire.ResolvePromiseRequest(promise_id="key:k")
    request.value.string_value = "yes"
    await stubs[1].ResolvePromise(request, metadata=metadata)
    for answer in await asyncio.gather(*waiting):
        assert answer.value.string_value == "yes"
