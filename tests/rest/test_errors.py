"""Every error over REST is the one error body with the right status, whoever made it (FL-10)."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import grpc
import httpx
import pytest
from tests.proxy import Proxy, free_port, running_proxy
from tests.rest.conftest import Stub, check_error, native, raw_http, start_stub

from millstream.adapters.envoy import routes
from millstream.v1.artifact_service_pb2 import ListArtifactsRequest, PublishResponse

PUBLISH = "/api/v1/artifacts"
RUN = "/api/v1/runs/0"


def server_error(code: str, message: str = "what is wrong", **more: Any) -> str:
    body = {"code": code, "message": message, "correlation_id": "c-1", "retryable": False, "details": []}
    return json.dumps({**body, **more})


def fail_with(status: grpc.StatusCode, metadata: tuple[tuple[str, str], ...], *, headers_first: bool = False) -> Any:
    async def answer(_: bytes, context: Any) -> bytes:
        if headers_first:
            await context.send_initial_metadata((("x-correlation-id", "c-1"),))
        await context.abort(status, "internal words of gRPC", metadata)
        return b""

    return answer


STATUSES = [
    (grpc.StatusCode.INVALID_ARGUMENT, 422, "VALIDATION_ERROR"),
    (grpc.StatusCode.INVALID_ARGUMENT, 400, "BAD_REQUEST"),
    (grpc.StatusCode.UNAUTHENTICATED, 401, "UNAUTHENTICATED"),
    (grpc.StatusCode.PERMISSION_DENIED, 403, "FORBIDDEN"),
    (grpc.StatusCode.NOT_FOUND, 404, "NOT_FOUND"),
    (grpc.StatusCode.ALREADY_EXISTS, 409, "CONFLICT"),
    (grpc.StatusCode.ABORTED, 409, "IDEMPOTENCY_CONFLICT"),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, 413, "PAYLOAD_TOO_LARGE"),
    (grpc.StatusCode.INTERNAL, 500, "INTERNAL"),
]


@pytest.mark.parametrize("headers_first", [False, True], ids=["trailers-only", "after-headers"])
@pytest.mark.parametrize(("grpc_status", "status", "code"), STATUSES, ids=[code for _, _, code in STATUSES])
async def test_an_error_of_the_server_comes_as_it_wrote_it(
    client: httpx.AsyncClient, stub: Stub, grpc_status: grpc.StatusCode, status: int, code: str, headers_first: bool
) -> None:
    sent = server_error(code, details=[{"field": "a.b", "message": "m \u00e9", "code": "INVALID"}])
    metadata = (("x-error-body", sent), ("x-http-status", str(status)), ("x-correlation-id", "c-1"))
    stub.answer = fail_with(grpc_status, metadata, headers_first=headers_first)
    response = await client.post(PUBLISH, json={})
    assert response.text == sent
    check_error(response, status, code)


@pytest.mark.parametrize("headers_first", [False, True], ids=["trailers-only", "after-headers"])
async def test_retry_after_is_passed_on(client: httpx.AsyncClient, stub: Stub, headers_first: bool) -> None:
    sent = server_error("RATE_LIMITED", retryable=True)
    metadata = (("x-error-body", sent), ("x-http-status", "429"), ("retry-after", "7"))
    stub.answer = fail_with(grpc.StatusCode.RESOURCE_EXHAUSTED, metadata, headers_first=headers_first)
    response = await client.get(RUN, headers={"x-correlation-id": "c-1"})
    check_error(response, 429, "RATE_LIMITED")
    assert response.headers["retry-after"] == "7"


async def test_an_error_body_of_8_kib_passes(client: httpx.AsyncClient, stub: Stub) -> None:
    sent = server_error("VALIDATION_ERROR", "m" * 7900)
    stub.answer = fail_with(grpc.StatusCode.INVALID_ARGUMENT, (("x-error-body", sent), ("x-http-status", "422")))
    response = await client.get(RUN, headers={"x-correlation-id": "c-1"})
    assert response.text == sent
    check_error(response, 422, "VALIDATION_ERROR")


GENERIC = [
    (grpc.StatusCode.INVALID_ARGUMENT, 400, "BAD_REQUEST"),
    (grpc.StatusCode.UNAUTHENTICATED, 401, "UNAUTHENTICATED"),
    (grpc.StatusCode.NOT_FOUND, 404, "NOT_FOUND"),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "RATE_LIMITED"),
    (grpc.StatusCode.CANCELLED, 503, "UNAVAILABLE"),
    (grpc.StatusCode.UNKNOWN, 500, "INTERNAL"),
    (grpc.StatusCode.UNIMPLEMENTED, 501, "NOT_IMPLEMENTED"),
    (grpc.StatusCode.UNAVAILABLE, 503, "UNAVAILABLE"),
    (grpc.StatusCode.DEADLINE_EXCEEDED, 504, "TIMEOUT"),
]


@pytest.mark.parametrize("headers_first", [False, True], ids=["trailers-only", "after-headers"])
@pytest.mark.parametrize(("grpc_status", "status", "code"), GENERIC, ids=[code for _, _, code in GENERIC])
async def test_an_error_without_a_body_gets_one_by_its_status(
    client: httpx.AsyncClient, stub: Stub, grpc_status: grpc.StatusCode, status: int, code: str, headers_first: bool
) -> None:
    stub.answer = fail_with(grpc_status, (), headers_first=headers_first)
    error = check_error(await client.get(RUN), status, code)
    assert "internal words" not in error["message"]


async def test_a_request_that_grows_over_the_limit_of_grpc_is_too_large_and_not_to_be_retried(
    client: httpx.AsyncClient, stub: Stub
) -> None:
    """JSON such as [0,0,0] is five times as large as protobuf; grpcio refuses it with a status of its own."""

    async def answer(_: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER: Received message larger than max (9 vs. 8)")
        return b""

    stub.answer = answer
    check_error(await client.post(PUBLISH, json={}), 413, "PAYLOAD_TOO_LARGE")


async def test_an_exception_of_the_server_leaks_nothing(client: httpx.AsyncClient, stub: Stub) -> None:
    async def answer(_: bytes, context: Any) -> bytes:
        raise RuntimeError("a secret")

    stub.answer = answer
    response = await client.get(RUN)
    check_error(response, 500, "INTERNAL")
    assert "secret" not in response.text
    assert "secret" not in str(response.headers)


@pytest.mark.parametrize("status", [201, 202])
async def test_a_success_may_have_a_status_of_its_own(client: httpx.AsyncClient, stub: Stub, status: int) -> None:
    async def answer(_: bytes, context: Any) -> bytes:
        await context.send_initial_metadata((("x-http-status", str(status)), ("idempotency-replayed", "true")))
        return PublishResponse(status="accepted").SerializeToString()

    stub.answer = answer
    response = await client.post(PUBLISH, json={})
    assert response.status_code == status
    assert response.json()["status"] == "accepted"
    assert response.headers["idempotency-replayed"] == "true"
    assert "x-http-status" not in response.headers


async def test_no_content_has_no_body_and_the_connection_goes_on(client: httpx.AsyncClient, stub: Stub) -> None:
    async def answer(_: bytes, context: Any) -> bytes:
        await context.send_initial_metadata((("x-http-status", "204"),))
        return b""

    stub.answer = answer
    for _ in range(2):
        response = await client.post(PUBLISH, json={})
        assert response.status_code == 204
        assert response.content == b""
        assert "content-type" not in response.headers


QUERIES = [
    ("/api/v1/artifacts?wat=1", "wat", "UNKNOWN_FIELD"),
    ("/api/v1/artifacts?pagination.page=1", "pagination", "UNKNOWN_FIELD"),
    ("/api/v1/artifacts?limit=many", "limit", "WRONG_TYPE"),
    ("/api/v1/artifacts?limit=-1", "limit", "WRONG_TYPE"),
    ("/api/v1/artifacts?limit=4294967296", "limit", "WRONG_TYPE"),
    ("/api/v1/artifacts?limit=1&limit=2", "limit", "DUPLICATE_FIELD"),
    ("/api/v1/artifacts?embed_meta=maybe", "embed_meta", "WRONG_TYPE"),
    ("/api/v1/artifacts?from=yesterday", "from", "WRONG_TYPE"),
    ("/api/v1/artifacts?tag=%ff", "tag", "INVALID"),
    ("/api/v1/artifacts?tag=a%00b", "tag", "INVALID"),
    ("/api/v1/artifacts/%c3%28", "", "INVALID"),
    ("/api/v1/runs?status=asleep", "status", "INVALID"),
]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/api/v1/agents?status=asleep", "status: must be one of ONLINE, OFFLINE, PAUSED, DELETED"),
        ("/api/v1/agents?page_size=-1", "page_size: must be an integer between 1 and 500"),
        ("/api/v1/agents?page_size=many", "page_size: must be an integer between 1 and 500"),
        (
            "/api/v1/tasks/00000000-0000-4000-8000-000000000000/logs?page_size=many",
            "page_size: must be an integer between 1 and 1000",
        ),
    ],
)
async def test_what_a_parameter_may_be_is_said(client: httpx.AsyncClient, path: str, message: str) -> None:
    """FL-10: the values, or the limits of the contract and not those of the wire."""
    assert check_error(await client.get(path), 422, "VALIDATION_ERROR")["message"] == message


async def test_the_limits_of_a_field_are_those_of_the_contract(client: httpx.AsyncClient) -> None:
    """FL-10"""
    error = check_error(await client.post("/api/v1/agents", json={"max_concurrency": -1}), 422, "VALIDATION_ERROR")
    assert error["message"] == "max_concurrency: must be between 0 and 10000"


@pytest.mark.parametrize(("path", "field", "code"), QUERIES, ids=[path for path, _, _ in QUERIES])
async def test_a_parameter_that_cannot_be_read_is_a_validation_error_of_it(
    client: httpx.AsyncClient, stub: Stub, path: str, field: str, code: str
) -> None:
    error = check_error(await client.get(path), 422, "VALIDATION_ERROR")
    assert [(detail["field"], detail["code"]) for detail in error["details"]] == [(field, code)]
    assert not stub.calls


async def test_from_and_to_are_parameters_of_the_list(client: httpx.AsyncClient, stub: Stub) -> None:
    response = await client.get("/api/v1/artifacts?from=2026-01-31T12:00:00Z&to=2026-02-01T12:00:00Z&page_token=")
    assert response.status_code == 200
    request = ListArtifactsRequest.FromString(stub.last.request)
    assert request.created_to.seconds - request.created_from.seconds == 86400
    assert request.HasField("page_token")


async def test_enums_are_read_in_any_case(client: httpx.AsyncClient, stub: Stub) -> None:
    for status in ("RUNNING", "running", "Running"):
        assert (await client.get("/api/v1/runs", params={"status": status})).status_code == 200


async def test_an_id_in_the_body_must_be_that_of_the_path(client: httpx.AsyncClient, stub: Stub) -> None:
    same = await client.post("/api/v1/tasks/1/cancel", json={"task_id": "1"})
    assert same.status_code == 200
    other = await client.post("/api/v1/tasks/1/cancel", json={"task_id": "2"})
    error = check_error(other, 422, "VALIDATION_ERROR")
    assert [detail["field"] for detail in error["details"]] == ["task_id"]


async def test_a_query_where_the_body_is_the_request_is_refused(client: httpx.AsyncClient) -> None:
    error = check_error(await client.post(PUBLISH + "?type=T", json={}), 422, "VALIDATION_ERROR")
    assert [detail["field"] for detail in error["details"]] == ["type"]


@pytest.mark.parametrize(
    "path", ["/", "/nope", "/api/v1/nope", "/api/v1/artifacts/", "/millstream.v1.RunService/GetRun"]
)
async def test_an_unknown_path_is_not_found(client: httpx.AsyncClient, path: str) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        check_error(await client.request(method, path), 404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/api/v1/artifacts", "GET, HEAD, OPTIONS, POST"),
        ("DELETE", "/api/v1/artifacts/1", "GET, HEAD, OPTIONS"),
        ("GET", "/api/v1/artifacts/sync", "OPTIONS, POST"),
        ("POST", "/metrics", "GET, HEAD, OPTIONS"),
        ("PATCH", "/api/v1/tasks/1/cancel", "OPTIONS, POST"),
        ("TRACE", "/health", "GET, HEAD, OPTIONS"),
    ],
)
async def test_a_method_that_a_path_does_not_have_is_told_which_it_has(
    client: httpx.AsyncClient, method: str, path: str, allow: str
) -> None:
    response = await client.request(method, path)
    check_error(response, 405, "METHOD_NOT_ALLOWED")
    assert response.headers["allow"] == allow


async def test_a_body_over_the_limit_is_refused_with_the_limit(client: httpx.AsyncClient, stub: Stub) -> None:
    limit = 4 * 1024 * 1024
    empty = len(b'{"payload":{"a":""}}')

    def body(size: int) -> bytes:
        return b'{"payload":{"a":"' + b"x" * (size - empty) + b'"}}'

    async def chunks(size: int) -> Any:
        whole = body(size)
        for start in range(0, size, 65536):
            yield whole[start : start + 65536]

    json_type = {"content-type": "application/json"}
    assert (await client.post(PUBLISH, content=body(limit), headers=json_type)).status_code == 200
    for content in (body(limit + 1), chunks(limit + 1), body(10 * 1024 * 1024)):
        error = check_error(await client.post(PUBLISH, content=content, headers=json_type), 413, "PAYLOAD_TOO_LARGE")
        assert str(limit) in error["message"]
    assert len(stub.calls) == 1


async def test_a_body_far_over_the_limit_is_not_read_to_its_end(proxy: Proxy) -> None:
    head = b"POST /api/v1/artifacts HTTP/1.1\r\nHost: test\r\nContent-Length: 100000000\r\n\r\n"
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    writer.write(head + b" " * (17 * 1024 * 1024))
    async with asyncio.timeout(5):
        answer = await reader.read(8192)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"PAYLOAD_TOO_LARGE"' in answer


async def test_headers_over_the_limit_are_refused_with_the_limit(client: httpx.AsyncClient) -> None:
    error = check_error(await client.get("/health", headers={"x-big": "y" * 70_000}), 431, "PAYLOAD_TOO_LARGE")
    assert "60 KiB" in error["message"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GARBAGE\r\n\r\n",
        b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: t\r\nContent-Length: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: t\r\nbad header\r\n\r\n",
        b"GET /health HTTP/9.9\r\nHost: t\r\n\r\n",
    ],
)
async def test_what_is_not_http_gets_the_error_body_too(proxy: Proxy, request_bytes: bytes) -> None:
    head, _, body = (await raw_http(proxy, request_bytes)).partition(b"\r\n\r\n")
    assert re.match(rb"HTTP/1.1 4(00|26) ", head), head
    error = json.loads(body)
    assert error["code"] == "BAD_REQUEST"
    assert f"x-correlation-id: {error['correlation_id']}".encode() in head
    assert b"x-local-reply" not in head


async def test_no_server_is_unavailable(proxy: Proxy) -> None:
    async with (
        running_proxy([("127.0.0.1", free_port())], wait_for_server=False) as alone,
        httpx.AsyncClient(base_url=alone.url) as client,
    ):
        check_error(await client.get("/health"), 503, "UNAVAILABLE")
        check_error(await client.post(PUBLISH, json={}), 503, "UNAVAILABLE")
        check_error(await client.get("/nope"), 404, "NOT_FOUND")
        async with grpc.aio.insecure_channel(alone.target) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await native(channel, "/millstream.v1.RunService/GetRun")(b"")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert caught.value.details() == "the server cannot be reached"


async def test_a_server_lost_in_mid_call_is_unavailable_and_the_call_is_not_sent_twice() -> None:
    stub, server = await start_stub()

    async def answer(_: bytes, context: Any) -> bytes:
        asyncio.get_running_loop().create_task(server.stop(None))
        await asyncio.sleep(30)
        return b""

    stub.answer = answer
    async with (
        running_proxy([("127.0.0.1", stub.port)]) as proxy,
        httpx.AsyncClient(base_url=proxy.url) as client,
    ):
        check_error(await client.post(PUBLISH, json={}), 503, "UNAVAILABLE")
    assert len(stub.calls) == 1


async def test_a_server_that_does_not_answer_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "_GRACE_S", 1)
    stub, server = await start_stub()

    async def answer(_: bytes, context: Any) -> bytes:
        await asyncio.sleep(30)
        return b""

    stub.answer = answer
    async with (
        running_proxy([("127.0.0.1", stub.port)]) as proxy,
        httpx.AsyncClient(base_url=proxy.url) as client,
    ):
        check_error(await client.get(RUN), 504, "TIMEOUT")
    await server.stop(None)


async def test_a_body_that_trickles_in_ends_as_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "_GRACE_S", 1)
    monkeypatch.setattr(routes, "_UPLOAD_S", 0)
    stub, server = await start_stub()
    async with running_proxy([("127.0.0.1", stub.port)]) as proxy:
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        writer.write(b"POST /api/v1/artifacts HTTP/1.1\r\nHost: test\r\nContent-Length: 1000\r\n\r\n{")
        async with asyncio.timeout(5):
            answer = await reader.readuntil(b"}\n")
        writer.close()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"TIMEOUT"' in answer
    assert not stub.calls
    await server.stop(None)
