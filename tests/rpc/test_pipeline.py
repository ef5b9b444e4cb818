"""What every call passes: credentials, permissions, rules, limits; and how each error comes out on both doors."""

import asyncio
import json
import math
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct
from google.rpc import error_details_pb2, status_pb2
from tests.rpc.conftest import PROXY_TOKEN, Answer, Service
from tests.rpc.fakes import OTHER

from millstream.domain.errors import (
    BadRequest,
    Conflict,
    FieldFault,
    Forbidden,
    IdempotencyConflict,
    LeaseLost,
    MillstreamError,
    NotFound,
    NotImplementedHere,
    PayloadTooLarge,
    RateLimited,
    TimedOut,
    Unauthenticated,
    Unavailable,
    ValidationFailed,
)
from millstream.domain.struct_wire import encode_struct
from millstream.transport import idempotency
from millstream.transport.errors import STATUSES
from millstream.v1.agent_service_pb2 import ListAgentsRequest
from millstream.v1.artifact_pb2 import Visibility
from millstream.v1.artifact_service_pb2 import (
    ListArtifactsRequest,
    PublishBatchRequest,
    PublishRequest,
    PublishSyncRequest,
)
from millstream.v1.task_service_pb2 import CreateTaskRequest
from millstream.wire.v1 import artifact_service_pb2 as wire

_PUBLISH = "ArtifactService/Publish"
_ORDER = PublishRequest(type="Order").SerializeToString()


def _status(answer: Answer) -> tuple[str, str, list[tuple[str, str, str]], float | None]:
    """Reason, correlation id, fields and retry delay of a gRPC error."""
    status = status_pb2.Status.FromString(answer.metadata["grpc-status-details-bin"])
    reason, label, fields, wait = "", "", [], None
    for packed in status.details:
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if packed.Unpack(info):
            assert info.domain == "millstream"
            reason, label = info.reason, info.metadata["correlation_id"]
        elif packed.Unpack(bad):
            fields = [(v.field, v.description, v.reason) for v in bad.field_violations]
        elif packed.Unpack(retry):
            wait = retry.retry_delay.ToMilliseconds() / 1000
    assert answer.error is not None
    assert status.code == answer.error.code().value[0]
    return reason, label, fields, wait


def _body(answer: Answer) -> dict[str, Any]:
    out: dict[str, Any] = json.loads(answer.metadata["x-error-body"])
    return out


# ---- who may call


@pytest.mark.parametrize("key", [None, "", "nobody"])
async def test_without_a_known_key_nobody_gets_in(service: Service, key: str | None) -> None:
    """WM-9"""
    answer = await service.call(_PUBLISH, _ORDER, key=key)
    assert _status(answer)[0] == "UNAUTHENTICATED"
    assert service.fakes.artifacts.calls == []


async def test_a_key_may_stand_in_x_api_key(service: Service) -> None:
    answer = await service.call(_PUBLISH, _ORDER, key=None, x_api_key="maker")
    assert answer.error is None


async def test_roles_bound_what_a_caller_may_do(service: Service) -> None:
    """WM-9"""
    answer = await service.call(_PUBLISH, _ORDER, key="reader")
    assert _status(answer)[0] == "FORBIDDEN"
    assert "artifacts.publish" in str(answer.error and answer.error.details())
    assert (await service.call("AgentService/ListAgents", key="reader")).error is None


async def test_nothing_is_parsed_for_who_may_not_call(service: Service) -> None:
    assert _status(await service.call(_PUBLISH, b"\xff\xff", key=None))[0] == "UNAUTHENTICATED"
    assert _status(await service.call(_PUBLISH, b"\xff\xff", key="reader"))[0] == "FORBIDDEN"


async def test_health_asks_for_no_credentials(service: Service) -> None:
    assert (await service.call("SystemService/GetHealth", key=None)).error is None


# ---- errors on both doors

_ERRORS: list[MillstreamError] = [
    BadRequest("bad"),
    ValidationFailed.of("type", "is odd", "INVALID"),
    Unauthenticated("who"),
    Forbidden("no"),
    NotFound("where"),
    Conflict("ended"),
    IdempotencyConflict("another"),
    LeaseLost("late"),
    PayloadTooLarge("big"),
    RateLimited("full", retry_after_s=2.5),
    Unavailable("away"),
    TimedOut("late"),
    NotImplementedHere("what"),
]


@pytest.mark.parametrize("error", _ERRORS, ids=lambda error: error.code)
async def test_an_error_over_grpc(service: Service, error: MillstreamError) -> None:
    service.fakes.artifacts.error = error
    answer = await service.call(_PUBLISH, _ORDER, x_correlation_id="label-1")
    assert answer.error is not None
    assert answer.error.code() is STATUSES[error.code].grpc
    assert answer.error.details() == error.message
    reason, label, fields, wait = _status(answer)
    assert (reason, label, answer.metadata["x-correlation-id"]) == (error.code, "label-1", "label-1")
    assert fields == [(f.field, f.message, f.code) for f in error.details]
    assert wait == {"RATE_LIMITED": 2.5, "UNAVAILABLE": 1.0}.get(error.code)
    assert "x-error-body" not in answer.metadata


@pytest.mark.parametrize("error", _ERRORS, ids=lambda error: error.code)
async def test_an_error_over_rest(service: Service, error: MillstreamError) -> None:
    """FL-10"""
    service.fakes.artifacts.error = error
    answer = await service.call(_PUBLISH, _ORDER, x_envoy_original_path="/api/v1/artifacts", x_correlation_id="label-1")
    assert _body(answer) == {
        "code": error.code,
        "message": error.message,
        "correlation_id": "label-1",
        "retryable": error.retryable,
        "details": [{"field": f.field, "message": f.message, "code": f.code} for f in error.details],
    }
    assert answer.metadata["x-http-status"] == str(STATUSES[error.code].http)
    assert answer.metadata["x-correlation-id"] == "label-1"
    waits = {"RATE_LIMITED": "2", "UNAVAILABLE": "1"}
    assert answer.metadata.get("retry-after") == waits.get(error.code)


def test_the_table_and_the_errors_agree_on_what_is_worth_a_retry() -> None:
    for error in _ERRORS:
        assert STATUSES[error.code].retryable == error.retryable


async def test_a_fault_of_ours_tells_nothing_but_its_label(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    """WM-10"""
    service.fakes.artifacts.error = RuntimeError("password=secret")
    answer = await service.call(_PUBLISH, _ORDER, x_correlation_id="label-2", x_envoy_original_path="/")
    assert _body(answer)["message"] == "internal error"
    assert answer.error is not None
    assert answer.error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(answer.metadata) + str(answer.error.details())
    logged = capsys.readouterr()
    assert "label-2" in logged.out + logged.err
    assert "password=secret" in logged.out + logged.err


async def test_a_timeout_below_becomes_timeout(service: Service) -> None:
    service.fakes.artifacts.error = TimeoutError()
    assert _status(await service.call(_PUBLISH, _ORDER))[0] == "TIMEOUT"


async def test_a_huge_error_fits_into_metadata(service: Service) -> None:
    faults = [FieldFault(f"tags[{i}]", "ü" * 100) for i in range(1000)]
    service.fakes.artifacts.error = ValidationFailed("é" * 20_000, faults)
    over_rest = await service.call(_PUBLISH, _ORDER, x_envoy_original_path="/")
    assert len(over_rest.metadata["x-error-body"]) <= 7 * 1024
    assert _body(over_rest)["code"] == "VALIDATION_ERROR"
    over_grpc = await service.call(_PUBLISH, _ORDER)
    reason, _, fields, _ = _status(over_grpc)
    assert reason == "VALIDATION_ERROR"
    assert 0 < len(fields) < 1000


async def test_a_method_nobody_has_is_an_error_of_the_contract(service: Service) -> None:
    for path in ("ArtifactService/Nothing", "NoService/Publish"):
        answer = await service.call(path, b"\xff")
        assert answer.error is not None
        assert answer.error.code() is grpc.StatusCode.UNIMPLEMENTED
        assert _status(answer)[0] == "NOT_IMPLEMENTED"


async def test_a_cancelled_call_is_counted(service: Service) -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    service.fakes.artifacts.gate = hang
    method: Any = service.channel.unary_unary("/millstream.v1.ArtifactService/Publish")
    call = method(_ORDER, metadata=(("authorization", "Bearer root"),))
    await started.wait()
    call.cancel()
    async with asyncio.timeout(5):
        await ended.wait()
    wanted = b'millstream_requests_total{code="CANCELLED",rpc="ArtifactService/Publish"} 1.0'
    assert wanted in service.metrics.exposition()
    assert b'millstream_requests_in_flight{rpc="ArtifactService/Publish"} 0.0' in service.metrics.exposition()


# ---- requests that cannot be read


@pytest.mark.parametrize("raw", [b"\xff\xff", b"\x0a\x05ab", b"\x0a\x02\xc3\x28"])
async def test_what_is_no_request_is_a_bad_request(service: Service, raw: bytes) -> None:
    """FL-10"""
    answer = await service.call(_PUBLISH, raw)
    assert _status(answer)[0] == "BAD_REQUEST"
    said = str(answer.error and answer.error.details())
    assert "malformed" in said
    assert "pb2" not in said
    assert "PublishRequest" not in said


async def test_every_field_at_fault_is_named(service: Service) -> None:
    """FL-10"""
    request = PublishRequest(type="", tags=["a", "a"], correlation_id="x", visibility=Visibility(kind="Odd"))
    fields = _status(await service.call(_PUBLISH, request.SerializeToString()))[2]
    assert [(name, code) for name, _, code in fields] == [
        ("type", "REQUIRED"),
        ("visibility.kind", "INVALID"),
        ("tags", "INVALID"),
        ("correlation_id", "INVALID"),
    ]


@pytest.mark.parametrize("seconds", [0, -1, 301, 1e300, math.inf, math.nan])
async def test_a_timeout_out_of_range_is_a_field_error(service: Service, seconds: float) -> None:
    """FL-3"""
    request = PublishSyncRequest(type="Order", timeout=seconds).SerializeToString()
    fields = _status(await service.call("ArtifactService/PublishSync", request))[2]
    assert [(name, code) for name, _, code in fields] == [("timeout", "OUT_OF_RANGE")]


async def test_a_field_is_named_as_rest_documents_it(service: Service) -> None:
    request = ListArtifactsRequest()
    request.created_from.seconds = 10**15
    fields = _status(await service.call("ArtifactService/ListArtifacts", request.SerializeToString()))[2]
    assert fields[0][0] == "from"


async def test_styles_of_paging_do_not_mix(service: Service) -> None:
    request = ListArtifactsRequest(page=1, limit=2).SerializeToString()
    assert _status(await service.call("ArtifactService/ListArtifacts", request))[0] == "VALIDATION_ERROR"


async def test_an_unknown_enum_number_is_a_field_error(service: Service) -> None:
    request = ListAgentsRequest(status=77).SerializeToString()  # type: ignore[arg-type]
    assert _status(await service.call("AgentService/ListAgents", request))[2][0][0] == "status"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (PublishRequest(type="Order", tags=["ok", "a\0b"]), "tags[1]"),
        (PublishRequest(type="Order", partition_key="\0"), "partition_key"),
        (
            PublishRequest(type="Order", visibility=Visibility(kind="Private", agents=["\0"])),
            "visibility.agents[0]",
        ),
    ],
)
async def test_nul_characters_are_refused(service: Service, request_: PublishRequest, field: str) -> None:
    assert _status(await service.call(_PUBLISH, request_.SerializeToString()))[2][0][0] == field


async def test_nul_characters_in_labels_are_refused(service: Service) -> None:
    request = CreateTaskRequest(kind="k", labels={"a": "\0"}).SerializeToString()
    assert _status(await service.call("TaskService/CreateTask", request))[2][0][0] == "labels"


async def test_nul_characters_in_payloads_are_data(service: Service) -> None:
    request = PublishRequest(type="Order", payload=json_format.ParseDict({"a\0": "\0"}, Struct()))
    assert (await service.call(_PUBLISH, request.SerializeToString())).error is None


async def test_a_visibility_says_what_its_kind_needs(service: Service) -> None:
    deep = Visibility(kind="After", ttl=Duration(seconds=1))
    for _ in range(20):
        deep = Visibility(kind="After", ttl=Duration(seconds=1), then=deep)
    for visibility, field in [
        (Visibility(kind="Private"), "visibility.agents"),
        (Visibility(kind="Labelled"), "visibility.required_labels"),
        (Visibility(kind="After"), "visibility.ttl"),
        (Visibility(then=Visibility()), "visibility.then"),
        (deep, "visibility.then"),
    ]:
        request = PublishRequest(type="Order", visibility=visibility).SerializeToString()
        assert _status(await service.call(_PUBLISH, request))[2][0][0] == field


# ---- sizes and payloads


async def test_a_payload_over_its_limit_is_refused_by_name(service: Service) -> None:
    payload = json_format.ParseDict({"text": "x" * (1024 * 1024)}, Struct())
    request = PublishRequest(type="Order", payload=payload).SerializeToString()
    for more in ({}, {"x_millstream_proxy": PROXY_TOKEN}):
        answer = await service.call(_PUBLISH, request, **more)
        assert _status(answer)[0] == "PAYLOAD_TOO_LARGE"
        assert "1,048,576 bytes" in str(answer.error and answer.error.details())


async def test_a_request_over_its_limit_is_refused_by_name(service: Service) -> None:
    answer = await service.call(_PUBLISH, b"\0" * (4 * 1024 * 1024 + 1))
    assert _status(answer)[0] == "PAYLOAD_TOO_LARGE"
    assert "4,194,304 bytes" in str(answer.error and answer.error.details())


def _nested(levels: int, of: type = dict) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"k": value} if of is dict else [value]
    return value


async def _publish(service: Service, payload: dict[str, Any], **more: str) -> Answer:
    # Written by hand: protobuf itself refuses what is too deep.
    request = wire.PublishRequest(type="Order", payload=encode_struct(payload))
    return await service.call(_PUBLISH, request.SerializeToString(), **more)


@pytest.mark.parametrize(
    ("payload", "ok"),
    [
        (_nested(30), True),
        (_nested(31), False),
        ({"k": _nested(29, list)}, True),
        ({"k": _nested(30, list)}, False),
        ({"k": _nested(60, list)}, False),
        (_nested(40), False),
        ({"text": "2*" * 5000}, True),
        ({"many": [{"a": [1, 2]}] * 100}, True),
    ],
)
async def test_a_payload_is_at_most_30_levels_deep(service: Service, payload: dict[str, Any], ok: bool) -> None:
    answer = await _publish(service, payload)
    if ok:
        assert answer.error is None
    else:
        assert _status(answer)[0] == "VALIDATION_ERROR"
        assert "30 levels" in str(answer.error and answer.error.details())


@pytest.mark.parametrize("number", [math.nan, -math.nan, math.inf, -math.inf])
async def test_json_has_no_nan_and_no_infinity(service: Service, number: float) -> None:
    payload = Struct()
    payload.fields["ok"].number_value = 1.5
    payload.fields["deep"].list_value.values.add().struct_value.fields["n"].number_value = number
    request = PublishRequest(type="Order", payload=payload).SerializeToString()
    assert _status(await service.call(_PUBLISH, request))[2][0][0] == "payload.deep[0].n"


async def test_an_odd_number_with_an_overlong_tag_is_found_too(service: Service) -> None:
    value = b"\x91\x00\x00\x00\x00\x00\x00\x00\xf8\x7f"
    entry = b"\x0a\x01k\x12" + bytes([len(value)]) + value
    struct = b"\x0a" + bytes([len(entry)]) + entry
    request = _ORDER + b"\x12" + bytes([len(struct)]) + struct
    assert _status(await service.call(_PUBLISH, request))[2][0][0] == "payload.k"


@pytest.mark.parametrize("struct", [b"\xff", b"\x0a\x05\x0a\x01", b"\x0a\x05\x0a\x03\xff\xff\xff"])
async def test_a_payload_that_is_no_struct_is_a_field_error(service: Service, struct: bytes) -> None:
    request = _ORDER + b"\x12" + bytes([len(struct)]) + struct
    assert _status(await service.call(_PUBLISH, request))[2][0][0] == "payload"


async def test_a_value_is_checked_as_well(service: Service) -> None:
    request = CreateTaskRequest(kind="k")
    request.input.number_value = math.nan
    assert _status(await service.call("TaskService/CreateTask", request.SerializeToString()))[2][0][0] == "input"


async def test_payloads_of_batch_items_are_checked(service: Service) -> None:
    batch = PublishBatchRequest()
    batch.artifacts.add(type="Order").payload.fields["n"].number_value = math.inf
    answer = await service.call("ArtifactService/PublishBatch", batch.SerializeToString())
    assert answer.error is None
    assert b"artifacts[0].payload.n" in answer.body


async def test_the_proxy_has_checked_what_it_sends(service: Service) -> None:
    request = _ORDER + b"\x12\x01\xff"
    answer = await service.call(_PUBLISH, request, x_millstream_proxy=PROXY_TOKEN)
    assert answer.error is None
    answer = await service.call(_PUBLISH, request, x_millstream_proxy="guessed")
    assert _status(answer)[0] == "VALIDATION_ERROR"


# ---- idempotency keys and labels


async def test_a_key_reaches_the_use_case(service: Service) -> None:
    """FL-8"""
    answer = await service.call(_PUBLISH, _ORDER, x_idempotency_key="again")
    assert answer.metadata["idempotency-replayed"] == "true"
    key = service.fakes.artifacts.calls[0][3]
    assert (key.value, key.rpc, len(key.fingerprint)) == ("again", "Publish", 16)


async def test_both_names_of_the_header_are_taken(service: Service) -> None:
    await service.call(_PUBLISH, _ORDER, idempotency_key="k")
    await service.call(_PUBLISH, _ORDER, idempotency_key="k", x_idempotency_key="k")
    assert [call[3].value for call in service.fakes.artifacts.calls] == ["k", "k"]
    answer = await service.call(_PUBLISH, _ORDER, idempotency_key="k", x_idempotency_key="other")
    assert _status(answer)[0] == "BAD_REQUEST"


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there"])
async def test_what_is_no_key_is_a_field_error(service: Service, key: str) -> None:
    """FL-8"""
    if key.isprintable():
        fields = _status(await service.call(_PUBLISH, _ORDER, x_idempotency_key=key))[2]
        assert fields[0][0] == "x-idempotency-key"
    else:
        with pytest.raises(ValidationFailed):
            idempotency.checked(key, "x-idempotency-key")


async def test_a_longest_key_is_taken(service: Service) -> None:
    assert (await service.call(_PUBLISH, _ORDER, x_idempotency_key="x" * 255)).error is None


async def test_a_key_is_ignored_where_it_means_nothing(service: Service) -> None:
    answer = await service.call("AgentService/ListAgents", x_idempotency_key="x" * 300)
    assert answer.error is None


async def test_another_request_has_another_fingerprint(service: Service) -> None:
    """FL-8"""
    await _publish(service, {"a": 1, "b": {"c": 1, "d": 2}}, x_idempotency_key="k")
    await _publish(service, {"b": {"d": 2, "c": 1}, "a": 1}, x_idempotency_key="k")
    await _publish(service, {"a": 2, "b": {"c": 1, "d": 2}}, x_idempotency_key="k")
    first, same, other = (call[3].fingerprint for call in service.fakes.artifacts.calls)
    assert first == same
    assert first != other


async def test_the_cascade_is_named_in_the_header_of_a_publish(service: Service) -> None:
    """FL-5"""
    for rpc in ("Publish", "PublishSync"):
        answer = await service.call(f"ArtifactService/{rpc}", _ORDER, x_correlation_id="label")
        assert answer.metadata["x-correlation-id"] == OTHER


@pytest.mark.parametrize(("given", "kept"), [("Ab-1._z", True), ("x" * 129, False), ("a b", False), ("", False)])
async def test_a_sane_label_is_kept_and_another_replaced(service: Service, given: str, kept: bool) -> None:
    """FL-5"""
    answer = await service.call("AgentService/ListAgents", x_correlation_id=given)
    assert (answer.metadata["x-correlation-id"] == given) is kept
    assert answer.metadata["x-correlation-id"]


async def test_headers_of_rest_come_before_the_body(service: Service) -> None:
    """FL-5: trailing metadata would be no headers to the proxy."""
    method: Any = service.channel.unary_unary("/millstream.v1.ArtifactService/Publish")
    sent = (("authorization", "Bearer root"), ("x-envoy-original-path", "/"), ("x-idempotency-key", "again"))
    call = method(_ORDER, metadata=sent)
    headers = {str(name): value for name, value in await call.initial_metadata()}
    assert (headers["x-correlation-id"], headers["idempotency-replayed"]) == (OTHER, "true")
    await call


async def test_success_statuses_go_to_the_proxy_alone(service: Service) -> None:
    request = CreateTaskRequest(kind="k").SerializeToString()
    over_rest = await service.call("TaskService/CreateTask", request, x_envoy_original_path="/api/v1/tasks")
    assert over_rest.metadata["x-http-status"] == "201"
    assert "x-http-status" not in (await service.call("TaskService/CreateTask", request)).metadata


async def test_calls_are_counted_by_method_and_code(service: Service) -> None:
    """WM-12"""
    await service.call(_PUBLISH, _ORDER)
    await service.call(_PUBLISH, b"\xff")
    text = service.metrics.exposition().decode()
    assert 'millstream_requests_total{code="OK",rpc="ArtifactService/Publish"} 1.0' in text
    assert 'millstream_requests_total{code="BAD_REQUEST",rpc="ArtifactService/Publish"} 1.0' in text
    assert 'millstream_request_seconds_count{rpc="ArtifactService/Publish"} 2.0' in text
