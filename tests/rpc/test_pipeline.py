"""What every call passes: credentials, permissions, rules, limits; and how each error comes out on both doors."""

import asyncio
from typing import Any

import grpc
import pytest
import structlog
from tests.rpc.answers import body_of, publish_payload, status_of
from tests.rpc.conftest import Service
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
from millstream.transport import idempotency
from millstream.transport.errors import STATUSES
from millstream.v1.artifact_service_pb2 import (
    PublishRequest,
)
from millstream.v1.task_service_pb2 import CreateTaskRequest

PUBLISH = "ArtifactService/Publish"
ORDER = PublishRequest(type="Order").SerializeToString()


# ---- who may call


@pytest.mark.parametrize("key", [None, "", "nobody"])
async def test_without_a_known_key_nobody_gets_in(service: Service, key: str | None) -> None:
    """WM-9"""
    answer = await service.call(PUBLISH, ORDER, key=key)
    assert status_of(answer)[0] == "UNAUTHENTICATED"
    assert service.fakes.artifacts.calls == []


async def test_a_key_may_stand_in_x_api_key(service: Service) -> None:
    answer = await service.call(PUBLISH, ORDER, key=None, x_api_key="maker")
    assert answer.error is None


async def test_roles_bound_what_a_caller_may_do(service: Service) -> None:
    """WM-9"""
    answer = await service.call(PUBLISH, ORDER, key="reader")
    assert status_of(answer)[0] == "FORBIDDEN"
    assert "artifacts.publish" in str(answer.error and answer.error.details())
    assert (await service.call("AgentService/ListAgents", key="reader")).error is None


async def test_nothing_is_parsed_for_who_may_not_call(service: Service) -> None:
    assert status_of(await service.call(PUBLISH, b"\xff\xff", key=None))[0] == "UNAUTHENTICATED"
    assert status_of(await service.call(PUBLISH, b"\xff\xff", key="reader"))[0] == "FORBIDDEN"


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
    answer = await service.call(PUBLISH, ORDER, x_correlation_id="label-1")
    assert answer.error is not None
    assert answer.error.code() is STATUSES[error.code].grpc
    assert answer.error.details() == error.message
    reason, label, fields, wait = status_of(answer)
    assert (reason, label, answer.metadata["x-correlation-id"]) == (error.code, "label-1", "label-1")
    assert fields == [(f.field, f.message, f.code) for f in error.details]
    assert wait == {"RATE_LIMITED": 2.5, "UNAVAILABLE": 1.0}.get(error.code)
    assert "x-error-body" not in answer.metadata


@pytest.mark.parametrize("error", _ERRORS, ids=lambda error: error.code)
async def test_an_error_over_rest(service: Service, error: MillstreamError) -> None:
    """FL-10"""
    service.fakes.artifacts.error = error
    answer = await service.call(PUBLISH, ORDER, x_envoy_original_path="/api/v1/artifacts", x_correlation_id="label-1")
    assert body_of(answer) == {
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
    answer = await service.call(PUBLISH, ORDER, x_correlation_id="label-2", x_envoy_original_path="/")
    assert body_of(answer)["message"] == "internal error"
    assert answer.error is not None
    assert answer.error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(answer.metadata) + str(answer.error.details())
    logged = capsys.readouterr()
    assert "label-2" in logged.out + logged.err
    assert "password=secret" in logged.out + logged.err


async def test_a_timeout_below_becomes_timeout(service: Service) -> None:
    service.fakes.artifacts.error = TimeoutError()
    assert status_of(await service.call(PUBLISH, ORDER))[0] == "TIMEOUT"


async def test_a_huge_error_fits_into_metadata(service: Service) -> None:
    faults = [FieldFault(f"tags[{i}]", "ü" * 100) for i in range(1000)]
    service.fakes.artifacts.error = ValidationFailed("é" * 20_000, faults)
    over_rest = await service.call(PUBLISH, ORDER, x_envoy_original_path="/")
    assert len(over_rest.metadata["x-error-body"]) <= 7 * 1024
    assert body_of(over_rest)["code"] == "VALIDATION_ERROR"
    over_grpc = await service.call(PUBLISH, ORDER)
    reason, _, fields, _ = status_of(over_grpc)
    assert reason == "VALIDATION_ERROR"
    assert 0 < len(fields) < 1000


async def test_a_refusal_leaves_a_line_with_its_label(service: Service) -> None:
    """FL-10: what a caller was told can be found in the logs, without what it sent."""
    service.fakes.artifacts.error = ValidationFailed("secret text", [FieldFault("payload.a", "is 'secret text'")])
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        await service.call(PUBLISH, ORDER, x_correlation_id="label-7")
    told = {"event": "call refused", "log_level": "info", "rpc": "Publish", "code": "VALIDATION_ERROR"}
    assert lines == [{**told, "correlation_id": "label-7"}]


async def test_a_line_names_the_trace_of_its_call(service: Service) -> None:
    """DC-6: what the servers log for a call is found by its trace; that of one without a trace names none."""
    service.fakes.artifacts.error = NotFound("gone")
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        await service.call(PUBLISH, ORDER, traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")
        await service.call(PUBLISH, ORDER)
    assert [line.get("trace_id") for line in lines] == ["0af7651916cd43dd8448eb211c80319c", None]


async def test_a_method_nobody_has_is_an_error_of_the_contract(service: Service) -> None:
    for path in ("ArtifactService/Nothing", "NoService/Publish"):
        answer = await service.call(path, b"\xff")
        assert answer.error is not None
        assert answer.error.code() is grpc.StatusCode.UNIMPLEMENTED
        assert status_of(answer)[0] == "NOT_IMPLEMENTED"


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
    call = method(ORDER, metadata=(("authorization", "Bearer root"),))
    await started.wait()
    call.cancel()
    async with asyncio.timeout(5):
        await ended.wait()
    wanted = b'millstream_requests_total{code="CANCELLED",rpc="ArtifactService/Publish"} 1.0'
    assert wanted in service.metrics.exposition()
    assert b'millstream_requests_in_flight{rpc="ArtifactService/Publish"} 0.0' in service.metrics.exposition()


# ---- idempotency keys and labels


async def test_a_key_reaches_the_use_case(service: Service) -> None:
    """FL-8"""
    answer = await service.call(PUBLISH, ORDER, x_idempotency_key="again")
    assert answer.metadata["idempotency-replayed"] == "true"
    key = service.fakes.artifacts.calls[0][3]
    assert (key.value, key.rpc, len(key.fingerprint)) == ("again", "Publish", 16)


async def test_both_names_of_the_header_are_taken(service: Service) -> None:
    await service.call(PUBLISH, ORDER, idempotency_key="k")
    await service.call(PUBLISH, ORDER, idempotency_key="k", x_idempotency_key="k")
    assert [call[3].value for call in service.fakes.artifacts.calls] == ["k", "k"]
    answer = await service.call(PUBLISH, ORDER, idempotency_key="k", x_idempotency_key="other")
    assert status_of(answer)[0] == "BAD_REQUEST"


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there"])
async def test_what_is_no_key_is_a_field_error(service: Service, key: str) -> None:
    """FL-8"""
    if key.isprintable():
        fields = status_of(await service.call(PUBLISH, ORDER, x_idempotency_key=key))[2]
        assert fields[0][0] == "x-idempotency-key"
    else:
        with pytest.raises(ValidationFailed):
            idempotency.checked(key, "x-idempotency-key")


async def test_a_longest_key_is_taken(service: Service) -> None:
    assert (await service.call(PUBLISH, ORDER, x_idempotency_key="x" * 255)).error is None


async def test_a_key_is_ignored_where_it_means_nothing(service: Service) -> None:
    answer = await service.call("AgentService/ListAgents", x_idempotency_key="x" * 300)
    assert answer.error is None


async def test_another_request_has_another_fingerprint(service: Service) -> None:
    """FL-8"""
    await publish_payload(service, {"a": 1, "b": {"c": 1, "d": 2}}, x_idempotency_key="k")
    await publish_payload(service, {"b": {"d": 2, "c": 1}, "a": 1}, x_idempotency_key="k")
    await publish_payload(service, {"a": 2, "b": {"c": 1, "d": 2}}, x_idempotency_key="k")
    first, same, other = (call[3].fingerprint for call in service.fakes.artifacts.calls)
    assert first == same
    assert first != other


async def test_the_cascade_is_named_in_the_header_of_a_publish(service: Service) -> None:
    """FL-5"""
    for rpc in ("Publish", "PublishSync"):
        answer = await service.call(f"ArtifactService/{rpc}", ORDER, x_correlation_id="label")
        assert answer.metadata["x-correlation-id"] == OTHER


@pytest.mark.parametrize(("given", "kept"), [("Ab-1._z", True), ("x" * 129, False), ("a b", False), ("", False)])
async def test_a_sane_label_is_kept_and_another_replaced(service: Service, given: str, kept: bool) -> None:
    """FL-5"""
    answer = await service.call("AgentService/ListAgents", x_correlation_id=given)
    assert (answer.metadata["x-correlation-id"] == given) is kept
    assert answer.metadata["x-correlation-id"]


async def test_what_goes_with_an_answer_is_in_its_trailers(service: Service) -> None:
    """FL-5: the proxy shows them as headers; initial metadata would be a write of their own."""
    method: Any = service.channel.unary_unary("/millstream.v1.ArtifactService/Publish")
    sent = (("authorization", "Bearer root"), ("x-envoy-original-path", "/"), ("x-idempotency-key", "again"))
    call = method(ORDER, metadata=sent)
    await call
    headers = {str(name): value for name, value in await call.trailing_metadata()}
    assert (headers["x-correlation-id"], headers["idempotency-replayed"]) == (OTHER, "true")


async def test_success_statuses_go_to_the_proxy_alone(service: Service) -> None:
    request = CreateTaskRequest(kind="k").SerializeToString()
    over_rest = await service.call("TaskService/CreateTask", request, x_envoy_original_path="/api/v1/tasks")
    assert over_rest.metadata["x-http-status"] == "201"
    assert "x-http-status" not in (await service.call("TaskService/CreateTask", request)).metadata


async def test_calls_are_counted_by_method_and_code(service: Service) -> None:
    """WM-12"""
    await service.call(PUBLISH, ORDER)
    await service.call(PUBLISH, b"\xff")
    text = service.metrics.exposition().decode()
    assert 'millstream_requests_total{code="OK",rpc="ArtifactService/Publish"} 1.0' in text
    assert 'millstream_requests_total{code="BAD_REQUEST",rpc="ArtifactService/Publish"} 1.0' in text
    assert 'millstream_request_seconds_count{rpc="ArtifactService/Publish"} 2.0' in text
