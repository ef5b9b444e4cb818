"""Bodies that the transcoder alone would accept, round or misread (contract.md, "Strict JSON")."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from tests.rest.conftest import Stub, check_error

from millstream.v1.agent_service_pb2 import CreateAgentRequest
from millstream.v1.artifact_service_pb2 import PublishBatchRequest, PublishRequest, PublishSyncRequest
from millstream.v1.task_service_pb2 import CreateTaskRequest

PUBLISH = "/api/v1/artifacts"
SYNC = "/api/v1/artifacts/sync"
BATCH = "/api/v1/artifacts/batch"
TASKS = "/api/v1/tasks"
AGENTS = "/api/v1/agents"
JSON_TYPE = {"content-type": "application/json"}


def nested(levels: int) -> str:
    return '{"a":' * levels + "1" + "}" * levels


def payload(value: str) -> str:
    return '{"type":"T","payload":{"x":' + value + "}}"


async def post(client: httpx.AsyncClient, path: str, body: str | bytes) -> httpx.Response:
    content = body if isinstance(body, bytes) else body.encode()
    return await client.post(path, content=content, headers=JSON_TYPE)


SOUND: list[tuple[str, type[Message], str]] = [
    (PUBLISH, PublishRequest, '{"type":"Order","payload":{"amount":12.5,"ok":true,"none":null,"items":[1,[],{}]}}'),
    (PUBLISH, PublishRequest, ' \r\n\t{ "type" : "Order" , "tags" : [ "a" , "b" ] } \n'),
    (PUBLISH, PublishRequest, "{}"),
    (PUBLISH, PublishRequest, '{"type":"T","partitionKey":"k","correlationId":"c"}'),
    (PUBLISH, PublishRequest, '{"type":"T","payload":null,"visibility":null,"tags":null,"partition_key":null}'),
    (PUBLISH, PublishRequest, '{"type":"T","visibility":{"kind":"After","ttl":"1.5s","then":{"kind":"Public"}}}'),
    (PUBLISH, PublishRequest, '{"\\u0074ype":"\\u00e4\\ud83d\\ude00\\n\\"\\/"}'),
    (PUBLISH, PublishRequest, '{"type":"жук 😀 \x7f"}'),
    (PUBLISH, PublishRequest, payload("[0,-0,0.5,-1.25e-3,1E+2,9007199254740991,-9007199254740991,1e300]")),
    (PUBLISH, PublishRequest, payload('{"":{"":0}}')),
    (PUBLISH, PublishRequest, payload('{"a":{"a":1},"b":{"a":1}}')),
    (PUBLISH, PublishRequest, '{"type":"T","payload":' + nested(30) + "}"),
    (SYNC, PublishSyncRequest, '{"type":"T","timeout":12,"failOnTimeout":true,"filters":{"typeNames":["A"]}}'),
    (BATCH, PublishBatchRequest, '{"artifacts":[{"type":"A"},{"type":"B","payload":{}}]}'),
    (TASKS, CreateTaskRequest, '{"kind":"k","input":"text","labels":{"a":"b","c":""}}'),
    (TASKS, CreateTaskRequest, '{"kind":"k","input":[null,1],"priority":-100,"retry":{"max_attempts":4294967295}}'),
    (TASKS, CreateTaskRequest, '{"kind":"k","priority":1.0,"retry":{"factor":2,"jitter":5e-1}}'),
    (TASKS, CreateTaskRequest, '{"kind":"k","run_at":"2028-02-29T23:59:59.123456789Z","delay":"-0.000000001s"}'),
    (TASKS, CreateTaskRequest, '{"kind":"k","runAt":"2026-01-31T12:00:00+02:00","delay":"3600s"}'),
    (AGENTS, CreateAgentRequest, '{"name":"n","subscriptions":[{"types":["A"],"fromAgents":[]}],"maxConcurrency":1}'),
]


@pytest.mark.parametrize(("path", "message", "body"), SOUND, ids=range(len(SOUND)))
async def test_sound_json_reaches_the_server_as_proto_json_reads_it(
    client: httpx.AsyncClient, stub: Stub, path: str, message: type[Message], body: str
) -> None:
    response = await post(client, path, body)
    assert response.status_code == 200, response.text
    assert message.FromString(stub.last.request) == json_format.Parse(body, message())


MALFORMED: list[tuple[str | bytes, int]] = [
    ("{", 1),
    ("   ", 3),
    ('{"type"', 7),
    ('{"type":', 8),
    ('{"type":"T"', 11),
    ('{"type":"T', 10),
    ('{"type":"T",}', 12),
    ('{"type":"T"}}', 12),
    ('{"type":"T"} x', 13),
    ('{"type":"T"}{"type":"T"}', 12),
    ('{type:"T"}', 1),
    ("{'type':'T'}", 1),
    ("{\"type\":'T'}", 8),
    ('{"type" "T"}', 8),
    ('{"type":"T" "tags":[]}', 12),
    ('{"tags":["a" "b"]}', 13),
    ('{"tags":["a",]}', 13),
    ('{"tags":[,"a"]}', 9),
    ('{"tags":["a"}', 12),
    ('{"type":"T"]', 11),
    ('{"type":tru}', 8),
    ('{"type":True}', 8),
    ('{"type":truex}', 12),
    ('{"type":undefined}', 8),
    ("[1,2", 4),
    ("not json", 0),
    ("\ufeff{}", 0),
    ('{"type":"T"/* why */}', 11),
    ('// why\n{"type":"T"}', 0),
    (payload("NaN"), 27),
    (payload("Infinity"), 27),
    (payload("-Infinity"), 28),
    (payload("01"), 27),
    (payload("-01"), 28),
    (payload("1."), 29),
    (payload(".5"), 27),
    (payload("+1"), 27),
    (payload("1e"), 29),
    (payload("0x10"), 28),
    (payload("-"), 28),
    (payload('"\\ud800"'), 28),
    (payload('"\\ud800\\u0041"'), 28),
    (payload('"\\udc00\\ud800"'), 28),
    (payload('"\\u12g4"'), 28),
    (payload('"\\x"'), 28),
    (payload('"a\tb"'), 29),
    (payload('"a\nb"'), 29),
    (b'{"type":"\xff"}', 9),
    (b'{"type":"\xc3"}', 9),
    (b'{"type":"\xc0\xaf"}', 9),
    (b'{"type":"\xed\xa0\x80"}', 9),
    (b'{"type":"\xf4\x90\x80\x80"}', 9),
    (b'{"type":"a\x00b"}', 10),
    (b'{"type":"T"}\x00', 12),
    (b'{"\xe9":1}', 2),
]


@pytest.mark.parametrize(("body", "offset"), MALFORMED, ids=range(len(MALFORMED)))
async def test_malformed_json_is_a_bad_request_that_names_the_byte(
    client: httpx.AsyncClient, stub: Stub, body: str | bytes, offset: int
) -> None:
    error = check_error(await post(client, PUBLISH, body), 400, "BAD_REQUEST")
    assert error["message"].startswith(f"malformed JSON at byte {offset}: ")
    assert error["details"] == []
    assert not stub.calls


FAULTY: list[tuple[str, str, list[tuple[str, str]]]] = [
    (PUBLISH, '{"type":"T","paylod":{}}', [("paylod", "UNKNOWN_FIELD")]),
    (PUBLISH, '{"type":"T","visibility":{"knd":1}}', [("visibility.knd", "UNKNOWN_FIELD")]),
    (PUBLISH, '{"Type":"T"}', [("Type", "UNKNOWN_FIELD")]),
    (BATCH, '{"artifacts":[{},{"x":{"y":[1]}}]}', [("artifacts[1].x", "UNKNOWN_FIELD")]),
    (PUBLISH, '{"type":"T","type":"U"}', [("type", "DUPLICATE_FIELD")]),
    (PUBLISH, '{"type":"T","\\u0074ype":"U"}', [("type", "DUPLICATE_FIELD")]),
    (PUBLISH, '{"partition_key":"a","partitionKey":"b"}', [("partitionKey", "DUPLICATE_FIELD")]),
    (PUBLISH, payload('{"a":1,"b":2,"a":3}'), [("payload.x.a", "DUPLICATE_FIELD")]),
    (PUBLISH, payload('[{"a":1},{"a":1,"a":2}]'), [("payload.x[1].a", "DUPLICATE_FIELD")]),
    (TASKS, '{"kind":"k","labels":{"a":"1","a":"2"}}', [("labels.a", "DUPLICATE_FIELD")]),
    (PUBLISH, '{"type":5}', [("type", "WRONG_TYPE")]),
    (PUBLISH, '{"type":true}', [("type", "WRONG_TYPE")]),
    (PUBLISH, '{"type":{}}', [("type", "WRONG_TYPE")]),
    (PUBLISH, '{"type":["T"]}', [("type", "WRONG_TYPE")]),
    (PUBLISH, '{"payload":[]}', [("payload", "WRONG_TYPE")]),
    (PUBLISH, '{"payload":"x"}', [("payload", "WRONG_TYPE")]),
    (PUBLISH, '{"tags":"a"}', [("tags", "WRONG_TYPE")]),
    (PUBLISH, '{"tags":{}}', [("tags", "WRONG_TYPE")]),
    (
        PUBLISH,
        '{"tags":["a",1,null,[]]}',
        [("tags[1]", "WRONG_TYPE"), ("tags[2]", "WRONG_TYPE"), ("tags[3]", "WRONG_TYPE")],
    ),
    (PUBLISH, '{"visibility":"Public"}', [("visibility", "WRONG_TYPE")]),
    (PUBLISH, '{"visibility":[]}', [("visibility", "WRONG_TYPE")]),
    (BATCH, '{"artifacts":{}}', [("artifacts", "WRONG_TYPE")]),
    (BATCH, '{"artifacts":[1,"x",null]}', [(f"artifacts[{i}]", "WRONG_TYPE") for i in range(3)]),
    (SYNC, '{"timeout":"12"}', [("timeout", "WRONG_TYPE")]),
    (SYNC, '{"fail_on_timeout":"true"}', [("fail_on_timeout", "WRONG_TYPE")]),
    (SYNC, '{"fail_on_timeout":1}', [("fail_on_timeout", "WRONG_TYPE")]),
    (TASKS, '{"labels":[]}', [("labels", "WRONG_TYPE")]),
    (TASKS, '{"labels":{"a":1,"b":null}}', [("labels.a", "WRONG_TYPE"), ("labels.b", "WRONG_TYPE")]),
    (TASKS, '{"priority":"5"}', [("priority", "WRONG_TYPE")]),
    (TASKS, '{"priority":1.5}', [("priority", "WRONG_TYPE")]),
    (TASKS, '{"priority":2147483648}', [("priority", "OUT_OF_RANGE")]),
    (TASKS, '{"priority":-2147483649}', [("priority", "OUT_OF_RANGE")]),
    (TASKS, '{"retry":{"max_attempts":-1}}', [("retry.max_attempts", "OUT_OF_RANGE")]),
    (TASKS, '{"retry":{"max_attempts":4294967296}}', [("retry.max_attempts", "OUT_OF_RANGE")]),
    (TASKS, '{"run_at":1}', [("run_at", "WRONG_TYPE")]),
    (TASKS, '{"run_at":"tomorrow"}', [("run_at", "INVALID")]),
    (TASKS, '{"run_at":"2026-02-29T00:00:00Z"}', [("run_at", "INVALID")]),
    (TASKS, '{"run_at":"2026-01-31T12:00:00"}', [("run_at", "INVALID")]),
    (TASKS, '{"run_at":"2026-01-31 12:00:00Z"}', [("run_at", "INVALID")]),
    (TASKS, '{"run_at":"2026-01-31T12:00:00.Z"}', [("run_at", "INVALID")]),
    (TASKS, '{"run_at":"0000-01-31T12:00:00Z"}', [("run_at", "INVALID")]),
    (TASKS, '{"delay":5}', [("delay", "WRONG_TYPE")]),
    (TASKS, '{"delay":{"seconds":5}}', [("delay", "WRONG_TYPE")]),
    (TASKS, '{"delay":"5"}', [("delay", "INVALID")]),
    (TASKS, '{"delay":"5m"}', [("delay", "INVALID")]),
    (TASKS, '{"delay":"1.s"}', [("delay", "INVALID")]),
    (TASKS, '{"delay":"0.0000000001s"}', [("delay", "INVALID")]),
    (TASKS, '{"delay":"315576000001s"}', [("delay", "INVALID")]),
    (PUBLISH, payload("9007199254740992"), [("payload.x", "OUT_OF_RANGE")]),
    (PUBLISH, payload("-9007199254740993"), [("payload.x", "OUT_OF_RANGE")]),
    (PUBLISH, payload("[1,12345678901234567890]"), [("payload.x[1]", "OUT_OF_RANGE")]),
    (PUBLISH, payload("1e400"), [("payload.x", "OUT_OF_RANGE")]),
    (PUBLISH, '{"type":"a\\u0000b"}', [("type", "INVALID")]),
    (TASKS, '{"labels":{"a\\u0000":"b"}}', [("labels.a\0", "INVALID")]),
    (PUBLISH, "[]", [("", "WRONG_TYPE")]),
    (PUBLISH, "null", [("", "WRONG_TYPE")]),
    (PUBLISH, '"text"', [("", "WRONG_TYPE")]),
]


@pytest.mark.parametrize(("path", "body", "expected"), FAULTY, ids=range(len(FAULTY)))
async def test_json_of_another_shape_is_a_validation_error_that_names_each_field(
    client: httpx.AsyncClient, stub: Stub, path: str, body: str, expected: list[tuple[str, str]]
) -> None:
    error = check_error(await post(client, path, body), 422, "VALIDATION_ERROR")
    assert [(detail["field"], detail["code"]) for detail in error["details"]] == expected
    assert not stub.calls


@pytest.mark.parametrize("levels", [31, 40, 100, 100_000])
async def test_a_payload_deeper_than_30_levels_is_refused(client: httpx.AsyncClient, levels: int) -> None:
    body = '{"type":"T","payload":' + nested(levels) + "}"
    error = check_error(await post(client, PUBLISH, body), 422, "VALIDATION_ERROR")
    assert [detail["code"] for detail in error["details"]] == ["TOO_DEEP"]
    assert error["details"][0]["field"] == "payload" + ".a" * 30


async def test_a_message_within_itself_is_bounded_like_a_payload(client: httpx.AsyncClient) -> None:
    body = '{"visibility":' + '{"then":' * 40 + "{}" + "}" * 41
    error = check_error(await post(client, PUBLISH, body), 422, "VALIDATION_ERROR")
    assert [detail["code"] for detail in error["details"]] == ["TOO_DEEP"]


async def test_several_faults_are_told_at_once_and_at_most_20(client: httpx.AsyncClient) -> None:
    body = json.dumps({"artifacts": [{"type": 1, "x": 2}] * 50})
    error = check_error(await post(client, BATCH, body), 422, "VALIDATION_ERROR")
    assert len(error["details"]) == 20
    assert [detail["field"] for detail in error["details"][:3]] == [
        "artifacts[0].type",
        "artifacts[0].x",
        "artifacts[1].type",
    ]
    assert error["message"] == "artifacts[0].type: must be a string (and 19 more)"


async def test_a_fault_before_malformed_json_is_still_malformed(client: httpx.AsyncClient) -> None:
    check_error(await post(client, PUBLISH, '{"type":1,'), 400, "BAD_REQUEST")


async def test_a_long_name_is_cut_between_characters(client: httpx.AsyncClient) -> None:
    error = check_error(
        await post(client, PUBLISH, json.dumps({"ж" * 5000: 1}, ensure_ascii=False)), 422, "VALIDATION_ERROR"
    )
    assert error["details"][0]["field"] == "ж" * 150 + "..."


async def test_a_name_with_quotes_and_control_characters_comes_back_as_it_was(client: httpx.AsyncClient) -> None:
    name = 'a"b\\c\n\u2028</script>'
    error = check_error(await post(client, PUBLISH, json.dumps({name: 1})), 422, "VALIDATION_ERROR")
    assert error["details"][0]["field"] == name


async def test_nul_in_a_payload_passes_because_payloads_are_bytes(client: httpx.AsyncClient, stub: Stub) -> None:
    assert (await post(client, PUBLISH, payload('"a\\u0000b"'))).status_code == 200
    assert PublishRequest.FromString(stub.last.request).payload["x"] == "a\0b"


async def test_an_empty_body_is_an_empty_object(client: httpx.AsyncClient, stub: Stub) -> None:
    for headers in ({}, JSON_TYPE):
        response = await client.post(PUBLISH, headers=headers)
        assert response.status_code == 200
        assert stub.last.request == b""


async def test_a_body_comes_in_chunks_too(client: httpx.AsyncClient, stub: Stub) -> None:
    async def chunks() -> Any:
        for byte in b'{"type":"T","payload":{"a":1}}':
            yield bytes([byte])

    response = await client.post(PUBLISH, content=chunks(), headers=JSON_TYPE)
    assert response.status_code == 200
    assert PublishRequest.FromString(stub.last.request).type == "T"


async def test_a_large_sound_body_passes(client: httpx.AsyncClient, stub: Stub) -> None:
    rows = [{"id": i, "text": "some text", "ok": True} for i in range(25_000)]
    body = json.dumps({"type": "T", "payload": {"rows": rows}})
    assert len(body) > 1_000_000
    assert (await post(client, PUBLISH, body)).status_code == 200
    assert len(PublishRequest.FromString(stub.last.request).payload.fields["rows"].list_value.values) == len(rows)


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/json; charset=utf-8", "application/x+json", None]
)
async def test_json_types_are_taken(client: httpx.AsyncClient, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    assert (await client.post(PUBLISH, content=b"{}", headers=headers)).status_code in {200}


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain", "application/xml", "a=b"])
async def test_a_body_of_another_type_is_refused_and_told_which_to_send(
    client: httpx.AsyncClient, content_type: str
) -> None:
    response = await client.post(PUBLISH, content=b"{}", headers={"content-type": content_type})
    error = check_error(response, 415, "BAD_REQUEST")
    assert "Content-Type: application/json" in error["message"]


async def test_a_compressed_body_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post(PUBLISH, content=b"\x1f\x8b", headers={**JSON_TYPE, "content-encoding": "gzip"})
    check_error(response, 415, "BAD_REQUEST")


async def test_a_body_where_none_belongs_is_refused(client: httpx.AsyncClient) -> None:
    check_error(await client.request("GET", "/health", content=b"{}"), 400, "BAD_REQUEST")
