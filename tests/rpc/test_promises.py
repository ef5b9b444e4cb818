"""Promises over the wire: how they are named, what they are settled with, and how they are shown."""

from typing import Any

import grpc
import pytest
from tests.rpc.conftest import Service
from tests.rpc.fakes import ID, OTHER
from tests.rpc.test_services import _ask, _refused

from millstream.application.paging import PageRequest
from millstream.application.views.promises import PromiseQuery, PromiseRef
from millstream.domain.promises import NewPromise, PromiseState, Rejection, Resolution
from millstream.domain.struct_wire import decode_value

_PENDING = {
    "promise_id": ID,
    "run_id": OTHER,
    "name": "approval",
    "key": "order-1",
    "state": "PENDING",
    "created_at": "2023-11-14T22:13:20.123456Z",
    "expires_at": "2023-11-14T22:14:20.123456Z",
    "input": {"n": 1.0},
    "labels": {"a": "b"},
}


async def test_create_promise(service: Service) -> None:
    """FV-17"""
    request = {
        "name": "approval",
        "key": "order-1",
        "input": {"n": 1},
        "timeout": "60s",
        "labels": {"b": "1", "a": "2"},
    }
    assert await _ask(service, "PromiseService/CreatePromise", request) == _PENDING
    new = service.fakes.promises.calls[-1][2]
    assert (new.name, new.key, new.timeout_us, new.labels) == ("approval", "order-1", 60_000_000, '{"a":"2","b":"1"}')
    assert decode_value(new.input) == {"n": 1}
    await _ask(service, "PromiseService/CreatePromise", {"name": "approval"})
    assert service.fakes.promises.calls[-1][2] == NewPromise("approval", timeout_us=30 * 86_400_000_000)


async def test_settle_a_promise(service: Service) -> None:
    """FV-17: with any JSON, or a code and a message; who did it is shown."""
    settled = {"settled_at": "2023-11-14T22:13:21.123456Z", "settled_by": "root"}
    values: list[Any] = [{"z": 1.0, "a": [None]}, "yes", 12.5, True, None, []]
    for value in values:
        out = await _ask(service, "PromiseService/ResolvePromise", {"promise_id": ID, "value": value})
        assert out == _PENDING | settled | {"state": "RESOLVED", "value": value}
        ref, outcome = service.fakes.promises.calls[-1][2:4]
        assert ref == PromiseRef(ID)
        assert decode_value(outcome.value) == value
    await _ask(service, "PromiseService/ResolvePromise", {"promise_id": ID})
    assert service.fakes.promises.calls[-1][3] == Resolution(b"")
    why = {"code": "DECLINED", "message": "too expensive"}
    out = await _ask(service, "PromiseService/RejectPromise", {"promise_id": ID, **why})
    assert out == _PENDING | settled | {"state": "REJECTED", "error": why}
    assert service.fakes.promises.calls[-1][3] == Rejection("DECLINED", "too expensive")
    out = await _ask(service, "PromiseService/CancelPromise", {"promise_id": ID, "reason": "enough"})
    assert out["state"] == "CANCELLED"
    assert service.fakes.promises.calls[-1][2:4] == (PromiseRef(ID), "enough")


async def test_await_get_and_list_promises(service: Service) -> None:
    """FV-17"""
    assert await _ask(service, "PromiseService/GetPromise", {"promise_id": ID}) == _PENDING
    assert await _ask(service, "PromiseService/AwaitPromise", {"promise_id": ID}) == _PENDING
    assert service.fakes.promises.calls[-1][2:] == (PromiseRef(ID), 30.0, False)
    await _ask(service, "PromiseService/AwaitPromise", {"promise_id": ID, "timeout": 0, "fail_on_timeout": True})
    assert service.fakes.promises.calls[-1][2:] == (PromiseRef(ID), 0.0, True)
    asked: dict[str, Any] = {"state": "REJECTED", "key": "k", "name": "n", "run_id": ID.upper(), "page": 2}
    out = await _ask(service, "PromiseService/ListPromises", asked)
    assert out["items"] == [{name: value for name, value in _PENDING.items() if name != "input"}]
    query, page = service.fakes.promises.calls[-1][2:]
    assert query == PromiseQuery(PromiseState.REJECTED, "k", "n", ID)
    assert page == PageRequest(page=2)


async def test_a_promise_is_named_by_id_or_key(service: Service) -> None:
    """FV-17: `id:` and `key:` prefixes; a key may have colons."""
    for named, ref in (
        (ID.upper(), PromiseRef(ID)),
        (f"id:{ID.upper()}", PromiseRef(ID)),
        ("key:order-1", PromiseRef(key="order-1")),
        (f"key:{ID}", PromiseRef(key=ID)),
        ("key:id:order:1", PromiseRef(key="id:order:1")),
    ):
        await _ask(service, "PromiseService/GetPromise", {"promise_id": named})
        assert service.fakes.promises.calls[-1][2] == ref
    for odd in ("", "order-1", "key:", "id:order-1", "name:order-1", "x" * 261):
        for rpc in ("GetPromise", "ResolvePromise", "RejectPromise", "CancelPromise", "AwaitPromise"):
            assert await _refused(service, f"PromiseService/{rpc}", {"promise_id": odd}) == "promise_id"


async def test_odd_promises_are_refused_by_field(service: Service) -> None:
    """FL-10"""
    for request, field in (
        ({}, "name"),
        ({"name": "1st"}, "name"),
        ({"name": "a", "key": "a/b"}, "key"),
        ({"name": "a", "key": "k" * 256}, "key"),
        ({"name": "a", "timeout": "0s"}, "timeout"),
        ({"name": "a", "timeout": "31622401s"}, "timeout"),
    ):
        assert await _refused(service, "PromiseService/CreatePromise", request) == field
    for code in ("declined", "A" * 129):
        assert await _refused(service, "PromiseService/RejectPromise", {"promise_id": ID, "code": code}) == "code"
    assert await _refused(service, "PromiseService/AwaitPromise", {"promise_id": ID, "timeout": 301}) == "timeout"
    assert await _refused(service, "PromiseService/ListPromises", {"run_id": "x"}) == "run_id"


@pytest.mark.parametrize("rpc", ["CreatePromise", "ResolvePromise", "RejectPromise", "CancelPromise"])
async def test_who_only_reads_settles_nothing(service: Service, rpc: str) -> None:
    """A viewer may read and await promises."""
    refused = (await service.call(f"PromiseService/{rpc}", b"", key="reader")).error
    assert refused is not None
    assert refused.code() is grpc.StatusCode.PERMISSION_DENIED
    assert service.fakes.promises.calls == []
