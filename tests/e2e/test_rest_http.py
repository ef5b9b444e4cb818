"""HTTP itself, through Envoy to real servers: methods, content, CORS, and JSON that comes back as it went in."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import string
from typing import Any

import httpx
import pytest
from tests.e2e.answers import check_error, check_ok
from tests.e2e.simple_worker import SimpleWorker
from tests.e2e.stack import Stack

PUBLISH = "/api/v1/artifacts"
ORIGIN = "https://app.example"
Client = httpx.AsyncClient


async def test_head_is_get_without_a_body(own: Client) -> None:
    """DC-3: the same status and length, for resources as for errors, whoever makes them."""
    plain = {"accept-encoding": "identity"}
    for path, status in (
        ("/api/v1/artifact-types/Note", 200), ("/health", 200), ("/health/ready", 200),
        ("/api/v1/artifact-types/Nope", 404), ("/api/v1/runs/abc", 422), ("/api/v1/artifacts?odd=1", 422),
        ("/api/v1/artifacts?limit=0", 422), ("/api/v1/artifacts?limit=x", 422), ("/api/v1/artifacts?tag=%00", 422),
        ("/nonsense", 404), ("/api/v1/artifacts/sync", 405),
    ):  # fmt: skip
        head, get = [await own.request(method, path, headers=plain) for method in ("HEAD", "GET")]
        assert (head.status_code, get.status_code, head.content) == (status, status, b""), path
        assert head.headers["content-type"] == get.headers["content-type"] == "application/json"
        if status == 200:
            assert head.headers["content-length"] == str(len(get.content))
    for _ in range(2):
        assert (await own.request("HEAD", PUBLISH, json={"a": 1}, headers=plain)).status_code == 400


async def test_options_lists_the_methods(own: Client) -> None:
    """DC-3: 204 with Allow; nothing for a path that there is not."""
    response = await own.options(PUBLISH)
    assert (response.status_code, response.headers["allow"]) == (204, "GET, HEAD, OPTIONS, POST")
    check_error(await own.options("/nonsense"), 404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("DELETE", PUBLISH, "GET, HEAD, OPTIONS, POST"),
        ("GET", f"{PUBLISH}/sync", "OPTIONS, POST"),
        ("DELETE", "/api/v1/runs", "GET, HEAD, OPTIONS, POST"),
        ("PATCH", "/api/v1/agents/a", "DELETE, GET, HEAD, OPTIONS, PUT"),
        ("PATCH", "/api/v1/tasks/1/cancel", "OPTIONS, POST"),
        ("POST", "/health", "GET, HEAD, OPTIONS"),
    ],
)
async def test_another_method_is_refused_with_those_there_are(own: Client, method: str, path: str, allow: str) -> None:
    """DC-3, FL-10: 405 and Allow."""
    response = await own.request(method, path)
    check_error(response, 405, "METHOD_NOT_ALLOWED")
    assert response.headers["allow"] == allow


async def test_a_page_of_an_allowed_origin_may_call_and_read(own: Client) -> None:
    """DC-3: preflight, and the headers of the answer, of an error's too; another origin gets none."""
    asked = {
        "origin": ORIGIN, "access-control-request-method": "POST",
        "access-control-request-headers": "content-type,x-idempotency-key",
    }  # fmt: skip
    preflight = await own.options(PUBLISH, headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    assert "x-idempotency-key" in preflight.headers["access-control-allow-headers"]
    assert "POST" in preflight.headers["access-control-allow-methods"]
    for body, status in (({"type": "Note"}, 200), ({"type": "Nope"}, 404)):
        response = await own.post(PUBLISH, json=body, headers={"origin": ORIGIN})
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (status, ORIGIN)
        assert "x-correlation-id" in response.headers["access-control-expose-headers"]
    for other in ("https://evil.example", "https://app.example.evil", "null"):
        response = await own.post(PUBLISH, json={"type": "Note"}, headers={"origin": other})
        assert "access-control-allow-origin" not in response.headers


async def test_a_long_answer_is_compressed_for_who_takes_it(own: Client) -> None:
    """DC-3: gzip over 1 KiB, plain otherwise."""
    check_ok(await own.post(PUBLISH, json={"type": "Note", "payload": {"text": "tea " * 2000}}))
    compressed = await own.get(PUBLISH, headers={"accept-encoding": "gzip"})
    assert compressed.headers["content-encoding"] == "gzip"
    plain = await own.get(PUBLISH, headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert check_ok(compressed) == check_ok(plain)
    assert compressed.num_bytes_downloaded < len(plain.content) / 5


async def test_a_compressed_body_or_another_kind_of_body_is_refused(own: Client) -> None:
    """DC-3, FL-10: 415 in the error body."""
    body = b'{"type":"Note"}'
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    check_error(await own.post(PUBLISH, content=gzip.compress(body), headers=headers), 415, "BAD_REQUEST")
    for kind in ("text/plain", "application/xml", "application/x-www-form-urlencoded", "multipart/form-data"):
        check_error(await own.post(PUBLISH, content=body, headers={"content-type": kind}), 415, "BAD_REQUEST")
    for kind in ("application/json", "application/json; charset=utf-8", "application/vnd.a+json", "APPLICATION/JSON"):
        check_ok(await own.post(PUBLISH, content=body, headers={"content-type": kind}))


async def test_headers_have_a_limit(own: Client) -> None:
    """FL-10: 431 with the limit; what is below it reaches the server, every time."""
    for size in (7_000, 9_000, 12_000, 20_000, 50_000):
        for _ in range(5):
            check_ok(await own.get("/api/v1/artifacts", headers={"cookie": "y" * size}))
    error = check_error(await own.get("/health", headers={"x-large": "y" * 70_000}), 431, "PAYLOAD_TOO_LARGE")
    assert "60 KiB" in error["message"]


@pytest.mark.parametrize("name", ["x!a", "$3r^|", "~", "x-any-bin", "grpc-encoding", "grpc-timeout", "grpc-status"])
async def test_a_header_that_means_nothing_here_does_no_harm(own: Client, name: str) -> None:
    """DC-3: names that HTTP knows and gRPC does not, and those that mean something to gRPC alone."""
    check_ok(await own.get("/api/v1/queues", headers={name: "a*b"}))
    check_ok(await own.post(PUBLISH, json={"type": "Note"}, headers={name: "a*b"}))


async def test_a_read_takes_no_body(own: Client) -> None:
    """DC-3: 400 rather than a body that nobody reads."""
    check_error(await own.request("GET", PUBLISH, json={"limit": 1}), 400, "BAD_REQUEST")


async def test_a_connection_serves_many_requests(stack: Stack, tenant: str) -> None:
    """DC-3: successes, errors of the server and errors of the proxy, one after another, on one connection."""
    one = httpx.Limits(max_connections=1)
    async with Client(base_url=stack.url, limits=one, headers={"x-tenant": tenant}, verify=False) as client:
        for _ in range(5):
            check_ok(await client.post("/api/v1/artifact-types", json={"name": "Note"}), 201)
            check_error(await client.post(PUBLISH, content=b"{"), 400, "BAD_REQUEST")
            check_error(await client.post(PUBLISH, json={"type": "Nope"}), 404, "NOT_FOUND")
            check_error(await client.get("/nonsense"), 404, "NOT_FOUND")
            assert (await client.head("/health")).status_code == 200


# ---- JSON that comes back as it went in

PAYLOADS: dict[str, str] = {
    "order": '{"z":1,"a":{"y":2,"b":3},"m":[{"k":1,"c":2}],"":"empty"}',
    "empty": '{"o":{},"l":[],"s":"","deep":{"o":{"o":{}},"l":[[],[[]],{}]}}',
    "nulls": '{"n":null,"l":[null,null],"o":{"n":null},"t":true,"f":false,"lf":[false]}',
    "integers": '{"a":0,"b":-1,"c":9007199254740991,"d":-9007199254740991,"e":4294967296}',
    "doubles": '{"a":0.1,"b":1.7976931348623157e+308,"c":5e-324,"d":-1.5e-10,"e":123456789.12345679,"f":1e+21}',
    "text": '{"a":"\\"\\\\/\\b\\f\\n\\r\\t","b":"é ü 漢 😀","c":"a\\u0000b","d":"\\u2028","e":"</script>"}',
    "keys": '{"a.b":1,"a b":2,"é":3,"\\"":4,"@type":"x","__proto__":5,"fields":{"value":1}}',
    "depth": '{"a":' * 29 + "{}" + "}" * 29,
}  # fmt: skip


@pytest.mark.parametrize("text", PAYLOADS.values(), ids=list(PAYLOADS))
async def test_a_payload_comes_back_as_it_went_in(own: Client, text: str) -> None:
    """DC-1, DC-3: order of keys, nulls, nesting, empty containers, and numbers as JSON doubles; in every answer."""
    given = json.loads(text)
    request = b'{"type":"Note","payload":' + text.encode() + b"}"
    headers = {"content-type": "application/json"}
    body = check_ok(await own.post(f"{PUBLISH}/sync", content=request, headers=headers))
    (artifact,) = body["artifacts"]
    got = check_ok(await own.get(f"{PUBLISH}/{artifact['id']}"))["payload"]
    listed = check_ok(await own.get(PUBLISH))["items"][0]["payload"]
    for payload in (artifact["payload"], got, listed):
        # As text: dicts compare without their order, and 1 equals True.
        assert json.dumps(payload) == json.dumps(given)


def scramble(chance: random.Random, depth: int) -> Any:
    """A random JSON value; numbers are such that a double holds them."""
    kind = chance.randrange(8 if depth else 5)
    if kind == 0:
        return None
    if kind == 1:
        return chance.random() < 0.5
    if kind == 2:
        return chance.choice([chance.randrange(-(2**53) + 1, 2**53), chance.randrange(100), -chance.randrange(100)])
    if kind == 3:
        return chance.choice([chance.uniform(-1e6, 1e6), chance.random() * 10.0 ** chance.randrange(-300, 300)])
    if kind == 4:
        return "".join(chance.choices(string.printable + "éß漢😀\x00\x7f", k=chance.randrange(20)))
    if kind == 5:
        return [scramble(chance, depth - 1) for _ in range(chance.randrange(5))]
    return {
        "".join(chance.choices(string.printable + "é😀", k=chance.randrange(8))): scramble(chance, depth - 1)
        for _ in range(chance.randrange(5))
    }


async def test_two_hundred_random_payloads_come_back_as_they_went_in(own: Client) -> None:
    """DC-1, DC-3: whatever JSON there is."""
    chance = random.Random(20261120)
    payloads = [{"value": scramble(chance, 5)} for _ in range(200)]
    items = [{"type": "Note", "payload": payload} for payload in payloads]
    results = check_ok(await own.post(f"{PUBLISH}/batch", json={"artifacts": items}))["results"]
    reads = [own.get(f"{PUBLISH}/{result['artifact_id']}") for result in results]
    for payload, response in zip(payloads, await asyncio.gather(*reads), strict=True):
        got = check_ok(response)["payload"]
        assert got == payload
        assert [*walk(got)] == [*walk(payload)]


def walk(value: Any) -> Any:
    """The keys of a value in their order, and the kinds of its scalars."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from walk(item)
    elif isinstance(value, list):
        for item in value:
            yield from walk(item)
    else:
        yield isinstance(value, bool)


INPUTS = ["null", "true", "0", "-1.5", '""', '"text"', "[]", "{}", '[null,{"a":[]}]', '{"b":1,"a":null}']


async def test_any_json_value_is_a_task_s_input_and_output(own: Client, servers: list[Any], tenant: str) -> None:
    """DC-1: through REST to a gRPC worker and back."""
    worker = SimpleWorker(servers[0], tenant)
    for text in INPUTS:
        request = b'{"kind":"k","input":' + text.encode() + b"}"
        response = await own.post("/api/v1/tasks", content=request, headers={"content-type": "application/json"})
        task_id = check_ok(response, 201)["task_id"]
        (lease,) = await worker.poll("k")
        await worker.complete(lease, json.loads(text))
        task = check_ok(await own.get(f"/api/v1/tasks/{task_id}"))
        # The worker's own map of members has no order.
        assert json.dumps(task.get("input")) == json.dumps(json.loads(text))
        assert json.dumps(task.get("output"), sort_keys=True) == json.dumps(json.loads(text), sort_keys=True)
