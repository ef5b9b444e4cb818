"""What the rendered configuration says, and what Envoy does with it: routes, methods, headers, gRPC, servers."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from tests.proxy import Proxy, running_proxy
from tests.rest.conftest import TOKEN, Stub, check_error, native, raw_http, start_stub

from millstream.adapters.envoy import DEVELOPMENT_ORIGINS, command, render
from millstream.v1.artifact_service_pb2 import GetArtifactResponse
from millstream.v1.run_service_pb2 import GetRunRequest

RUN = "/millstream.v1.RunService/GetRun"
PUBLISH = "/api/v1/artifacts"


def rendered(**options: Any) -> Any:
    arguments: dict[str, Any] = {
        "listen_host": "127.0.0.1",
        "listen_port": 8080,
        "servers": [("127.0.0.1", 50051), ("127.0.0.1", 50052)],
        "admin_socket": "/tmp/admin.sock",
        **options,
    }
    return json.loads(render(**arguments))


def listener(config: Any) -> Any:
    return config["static_resources"]["listeners"][0]


def manager(config: Any) -> Any:
    return listener(config)["filter_chains"][0]["filters"][0]["typed_config"]


def routes(config: Any) -> list[Any]:
    found: list[Any] = manager(config)["route_config"]["virtual_hosts"][0]["routes"]
    return found


# ---- what it says


@pytest.mark.parametrize(
    "options", [{}, {"cors_origins": DEVELOPMENT_ORIGINS, "proxy_token": TOKEN, "access_log": "/dev/null"}]
)
def test_envoy_takes_the_configuration(tmp_path: Path, options: dict[str, Any]) -> None:
    config = tmp_path / "envoy.json"
    config.write_text(json.dumps(rendered(**options)))
    done = subprocess.run([*command(config), "--mode", "validate"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "no warning, such as that of a deprecated field"


def test_two_processes_cannot_share_the_port_in_silence() -> None:
    assert listener(rendered())["enable_reuse_port"] is False


def test_the_paths_of_tenants_and_no_others_answer_in_camel_case() -> None:
    """FV: a transcoder of their own, which is off elsewhere."""
    config = rendered()
    filters = {each["name"]: each for each in manager(config)["http_filters"]}
    camel, plain = filters["millstream.camel_case_transcoder"], filters["envoy.filters.http.grpc_json_transcoder"]
    assert camel["disabled"] is True
    kept = [each["typed_config"]["print_options"]["preserve_proto_field_names"] for each in (camel, plain)]
    assert kept == [False, True]
    doors = [route for route in routes(config) if "/api/" in json.dumps(route["match"]) and "headers" in route["match"]]
    for route in doors:
        turned = route.get("typed_per_filter_config", {})
        of_tenants = "/api/tenants" in json.dumps(route["match"]).replace("\\", "")
        assert ("millstream.camel_case_transcoder" in turned) == of_tenants, route["match"]
        assert ("envoy.filters.http.grpc_json_transcoder" in turned) == of_tenants, route["match"]


def test_the_admin_interface_is_a_private_unix_socket() -> None:
    assert rendered()["admin"]["address"] == {"pipe": {"path": "/tmp/admin.sock", "mode": 0o600}}


@pytest.mark.parametrize(
    ("path", "timeout"),
    [("/api/v1/artifacts/sync", "315s"), ("/api/v1/artifacts/batch", "45s"), ("/api/v1/artifacts", "15s")],
)
def test_a_route_times_out_15_s_after_the_longest_wait_of_its_policy(path: str, timeout: str) -> None:
    (route,) = [
        route
        for route in routes(rendered())
        if route["match"].get("path") == path
        and route["match"].get("headers", [{}])[0].get("string_match") == {"exact": "POST"}
    ]
    assert route["route"]["timeout"] == timeout


def test_paths_without_variables_come_before_those_that_would_match_them() -> None:
    shown = [
        route["match"].get("path") or route["match"].get("safe_regex", {}).get("regex") for route in routes(rendered())
    ]
    assert shown.index("/api/v1/artifacts/summary") < shown.index("/api/v1/artifacts/[^/]+")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"servers": []}, "at least one server"),
        ({"listen_host": "localhost"}, "an IP address"),
        ({"admin_socket": "/" + "x" * 200}, "at most"),
        ({"proxy_token": 'a"b'}, "letters, digits"),
    ],
)
def test_arguments_that_envoy_would_not_take_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rendered(**options)


def test_servers_may_have_names() -> None:
    def cluster(host: str) -> Any:
        return rendered(servers=[(host, 1), ("127.0.0.1", 2)])["static_resources"]["clusters"][0]["type"]

    assert (cluster("::1"), cluster("millstream-0.example")) == ("STATIC", "STRICT_DNS")


# ---- methods


async def test_head_answers_like_get_without_a_body(proxy: Proxy, stub: Stub) -> None:
    head = b"HEAD /health HTTP/1.1\r\nHost: t\r\n\r\n"
    last = b"GET /health HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"
    answers = (await raw_http(proxy, head + head + last)).split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert len(answers) == 3
    bodies = [answer.partition(b"\r\n\r\n")[2] for answer in answers]
    assert bodies[:2] == [b"", b""]
    lengths = [re.search(rb"content-length: (\d+)", answer) for answer in answers]
    assert {length[1] for length in lengths if length} == {str(len(bodies[2])).encode()}


async def test_head_of_an_error_has_its_status(client: httpx.AsyncClient, stub: Stub) -> None:
    for path, status in (("/nope", 404), ("/api/v1/artifacts/sync", 405), ("/api/v1/artifacts?wat=1", 422)):
        response = await client.head(path)
        assert response.status_code == status
        assert response.content == b""
        assert response.headers["x-correlation-id"]


async def test_options_lists_the_methods(client: httpx.AsyncClient) -> None:
    response = await client.options("/api/v1/artifacts")
    assert response.status_code == 204
    assert response.headers["allow"] == "GET, HEAD, OPTIONS, POST"
    assert response.headers["x-correlation-id"]


# ---- pages of other origins


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1:5173"])
async def test_a_page_of_an_allowed_origin_may_call(client: httpx.AsyncClient, origin: str) -> None:
    asked = {"origin": origin, "access-control-request-method": "POST"}
    preflight = await client.options(PUBLISH, headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == origin
    assert "x-idempotency-key" in preflight.headers["access-control-allow-headers"]
    assert preflight.headers["x-correlation-id"]
    for path, status in (("/health", 200), ("/nope", 404), ("/api/v1/artifacts?wat=1", 422)):
        response = await client.get(path, headers={"origin": origin})
        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == origin
        assert "x-correlation-id" in response.headers["access-control-expose-headers"]


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://localhost.evil.example", "https://localhost:1", "null"]
)
async def test_a_page_of_another_origin_may_not(client: httpx.AsyncClient, stub: Stub, origin: str) -> None:
    asked = {"origin": origin, "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in (await client.options(PUBLISH, headers=asked)).headers
    assert "access-control-allow-origin" not in (await client.get("/health", headers={"origin": origin})).headers


# ---- headers


async def test_the_label_of_the_caller_is_kept_and_an_unfit_one_replaced(client: httpx.AsyncClient, stub: Stub) -> None:
    for fit in ("a", "A-b_c.9", "x" * 128):
        response = await client.get("/health", headers={"x-correlation-id": fit})
        assert response.headers["x-correlation-id"] == stub.last.metadata["x-correlation-id"] == fit
    for unfit in ("", "a b", "a,b", "x" * 129, "<script>"):
        response = await client.get("/health", headers={"x-correlation-id": unfit})
        label = response.headers["x-correlation-id"]
        assert re.fullmatch(r"[0-9a-f-]{36}", label)
        assert stub.last.metadata["x-correlation-id"] == label


async def test_two_requests_have_two_labels(client: httpx.AsyncClient, stub: Stub) -> None:
    labels = {(await client.get(path)).headers["x-correlation-id"] for path in ("/health", "/health", "/nope", "/nope")}
    assert len(labels) == 4


async def test_the_server_sees_the_token_the_path_the_key_and_the_deadline(
    client: httpx.AsyncClient, stub: Stub
) -> None:
    headers = {"idempotency-key": "k-1", "x-idempotency-key": "k-1", "authorization": "Bearer b", "grpc-timeout": "1H"}
    await client.post("/api/v1/artifacts/sync", json={}, headers=headers)
    seen = stub.last.metadata
    assert seen["x-millstream-proxy"] == TOKEN
    assert seen["x-envoy-original-path"] == "/api/v1/artifacts/sync"
    assert (seen["idempotency-key"], seen["x-idempotency-key"]) == ("k-1", "k-1")
    assert seen["authorization"] == "Bearer b"
    assert stub.last.time_remaining is not None
    assert 310 < stub.last.time_remaining < 316


FORGED = {
    "x-millstream-proxy": TOKEN,
    "x-envoy-original-path": "/forged",
    "x-envoy-original-method": "PUT",
    "x-http-status": "201",
    "x-error-body": "{}",
    "x-local-reply": "1",
    "x-millstream-refused": "1",
    "x-envoy-upstream-rq-timeout-ms": "1",
    "x-envoy-internal": "true",
}


async def test_headers_of_the_proxy_cannot_be_forged_over_rest(client: httpx.AsyncClient, stub: Stub) -> None:
    response = await client.get("/health", headers={**FORGED, "x-millstream-proxy": "wrong"})
    assert response.status_code == 200
    seen = stub.last.metadata
    assert seen["x-millstream-proxy"] == TOKEN
    assert seen["x-envoy-original-path"] == "/health"
    assert not {"x-http-status", "x-error-body", "x-local-reply", "x-millstream-refused"} & set(seen)
    check_error(await client.get("/nope", headers=FORGED), 404, "NOT_FOUND")


async def test_without_a_token_nothing_claims_that_the_json_was_checked(stub: Stub) -> None:
    async with (
        running_proxy([("127.0.0.1", stub.port)]) as proxy,
        httpx.AsyncClient(base_url=proxy.url) as client,
    ):
        await client.get("/health", headers={"x-millstream-proxy": "forged"})
    assert "x-millstream-proxy" not in stub.last.metadata


async def test_headers_of_the_proxy_cannot_be_forged_over_grpc(proxy: Proxy, stub: Stub) -> None:
    async with grpc.aio.insecure_channel(proxy.target) as channel:
        await native(channel, RUN)(b"", metadata=tuple(FORGED.items()))
    assert not set(FORGED) & set(stub.last.metadata)


async def test_large_json_is_compressed_for_who_takes_it(client: httpx.AsyncClient, stub: Stub) -> None:
    async def answer(_: bytes, context: Any) -> bytes:
        return GetArtifactResponse(id="i" * 5000).SerializeToString()

    stub.answer = answer
    path = "/api/v1/artifacts/1"
    async with client.stream("GET", path, headers={"accept-encoding": "gzip"}) as response:
        raw = b"".join([chunk async for chunk in response.aiter_raw()])
    assert response.headers["content-encoding"] == "gzip"
    assert json.loads(gzip.decompress(raw))["id"] == "i" * 5000
    assert "content-encoding" not in (await client.get(path, headers={"accept-encoding": "identity"})).headers
    stub.answer = None
    assert "content-encoding" not in (await client.get(path, headers={"accept-encoding": "gzip"})).headers


# ---- gRPC on the same port


async def test_native_grpc_passes_untouched(proxy: Proxy, stub: Stub) -> None:
    async with grpc.aio.insecure_channel(proxy.target) as channel:
        call = native(channel, RUN)(GetRunRequest(run_id="r").SerializeToString(), timeout=30)
        assert await call == b""
        headers = dict(await call.initial_metadata() or ())
    assert stub.last.rpc == RUN
    assert GetRunRequest.FromString(stub.last.request).run_id == "r"
    assert "x-millstream-proxy" not in stub.last.metadata
    assert "x-envoy-original-path" not in stub.last.metadata
    assert stub.last.time_remaining is not None
    assert 25 < stub.last.time_remaining < 31
    assert headers["x-correlation-id"] == stub.last.metadata["x-correlation-id"]


async def test_native_grpc_keeps_a_fit_label_and_loses_an_unfit_one(proxy: Proxy, stub: Stub) -> None:
    async with grpc.aio.insecure_channel(proxy.target) as channel:
        for label, kept in (("fit-1", True), ("not fit", False)):
            call = native(channel, RUN)(b"", metadata=(("x-correlation-id", label),))
            await call
            headers = dict(await call.initial_metadata() or ())
            assert (headers["x-correlation-id"] == label) is kept
            assert headers["x-correlation-id"] == stub.last.metadata["x-correlation-id"]


@pytest.mark.parametrize("label", ["fit", "not fit"])
async def test_native_grpc_errors_pass_untouched(proxy: Proxy, stub: Stub, label: str) -> None:
    async def answer(_: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such run", (("x-any", "1"),))
        return b""

    stub.answer = answer
    async with grpc.aio.insecure_channel(proxy.target) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await native(channel, RUN)(b"", metadata=(("x-correlation-id", label),))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert ("x-any", "1") in tuple(caught.value.trailing_metadata())
    assert caught.value.details() == "no such run"


async def test_a_native_deadline_is_the_callers(proxy: Proxy, stub: Stub) -> None:
    async def answer(_: bytes, context: Any) -> bytes:
        await asyncio.sleep(5)
        return b""

    stub.answer = answer
    async with grpc.aio.insecure_channel(proxy.target) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await native(channel, RUN)(b"", timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_grpc_web_answers_with_a_trailers_frame(client: httpx.AsyncClient, stub: Stub) -> None:
    frame = b"\0\0\0\0\0"
    response = await client.post(RUN, content=frame, headers={"content-type": "application/grpc-web+proto"})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/grpc-web+proto"
    assert response.headers["x-correlation-id"]
    assert response.content.startswith(frame + b"\x80")
    assert b"grpc-status:0" in response.content
    assert stub.last.rpc == RUN


# ---- servers


async def _answers(client: httpx.AsyncClient, status: int) -> None:
    # The proxy's health checks tell nobody when they change their mind.
    while (await client.get("/api/v1/runs/0")).status_code != status:  # noqa: ASYNC110
        await asyncio.sleep(0.1)


async def test_two_servers_both_get_calls_and_a_draining_one_gets_no_new_ones() -> None:
    (one, first), (two, second) = [await start_stub() for _ in range(2)]
    ports = [("127.0.0.1", one.port), ("127.0.0.1", two.port)]
    async with running_proxy(ports) as proxy, httpx.AsyncClient(base_url=proxy.url) as client:
        async with asyncio.timeout(10):
            while not (one.calls and two.calls):
                assert (await client.get("/api/v1/runs/0")).status_code == 200
        one.serving = False
        async with asyncio.timeout(10):
            calls = -1
            while calls != len(one.calls):
                calls = len(one.calls)
                # A health check comes every second: what happens in less says nothing.
                await asyncio.sleep(1.2)
                for _ in range(20):
                    assert (await client.get("/api/v1/runs/0")).status_code == 200
                    # Which may end in the middle of the answer.
                    assert (await client.get("/health")).status_code == 200
        two.serving = False
        async with asyncio.timeout(10):
            await _answers(client, 503)
        # How they are can be asked all the same.
        assert (await client.get("/health/ready")).status_code == 200
        one.serving = True
        async with asyncio.timeout(10):
            await _answers(client, 200)
    await first.stop(None)
    await second.stop(None)


async def test_a_server_that_went_away_costs_no_call() -> None:
    (one, first), (two, second) = [await start_stub() for _ in range(2)]
    ports = [("127.0.0.1", one.port), ("127.0.0.1", two.port)]
    async with running_proxy(ports) as proxy, httpx.AsyncClient(base_url=proxy.url) as client:
        async with asyncio.timeout(10):
            while not (one.calls and two.calls):
                await client.get("/health")
        await first.stop(None)
        for _ in range(50):
            assert (await client.post(PUBLISH, json={})).status_code == 200
    await second.stop(None)
