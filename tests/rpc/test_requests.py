"""Requests that are refused: malformed, against a rule, too large, or with payloads that JSON cannot hold."""

import math
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct
from tests.rpc.answers import publish_payload, status_of
from tests.rpc.conftest import PROXY_TOKEN, Service

from millstream.v1.agent_service_pb2 import ListAgentsRequest
from millstream.v1.artifact_pb2 import Visibility
from millstream.v1.artifact_service_pb2 import (
    ListArtifactsRequest,
    PublishBatchRequest,
    PublishRequest,
    PublishSyncRequest,
)
from millstream.v1.task_service_pb2 import CreateTaskRequest

PUBLISH = "ArtifactService/Publish"
ORDER = PublishRequest(type="Order").SerializeToString()


# ---- requests that cannot be read


@pytest.mark.parametrize("raw", [b"\xff\xff", b"\x0a\x05ab", b"\x0a\x02\xc3\x28"])
async def test_what_is_no_request_is_a_bad_request(service: Service, raw: bytes) -> None:
    """FL-10"""
    answer = await service.call(PUBLISH, raw)
    assert status_of(answer)[0] == "BAD_REQUEST"
    said = str(answer.error and answer.error.details())
    assert "malformed" in said
    assert "pb2" not in said
    assert "PublishRequest" not in said


async def test_every_field_at_fault_is_named(service: Service) -> None:
    """FL-10"""
    request = PublishRequest(type="", tags=["a", "a"], correlation_id="x", visibility=Visibility(kind="Odd"))
    fields = status_of(await service.call(PUBLISH, request.SerializeToString()))[2]
    assert [(name, code) for name, _, code in fields] == [
        ("type", "REQUIRED"),
        ("visibility.kind", "INVALID"),
        ("tags", "DUPLICATE"),
        ("correlation_id", "INVALID"),
    ]


async def test_what_a_name_may_be_is_said_in_words(service: Service) -> None:
    """FL-10: no pattern to decipher."""
    request = PublishRequest(type="9 lives", tags=["a", "a"]).SerializeToString()
    fields = status_of(await service.call(PUBLISH, request))[2]
    assert fields == [
        ("type", "must begin with a letter or _; letters, digits, and _ . - follow", "INVALID"),
        ("tags", "holds a value twice; leave the second out", "DUPLICATE"),
    ]


@pytest.mark.parametrize("seconds", [0, -1, 301, 1e300, math.inf, math.nan])
async def test_a_timeout_out_of_range_is_a_field_error(service: Service, seconds: float) -> None:
    """FL-3"""
    request = PublishSyncRequest(type="Order", timeout=seconds).SerializeToString()
    fields = status_of(await service.call("ArtifactService/PublishSync", request))[2]
    assert [(name, code) for name, _, code in fields] == [("timeout", "OUT_OF_RANGE")]


async def test_a_field_is_named_as_rest_documents_it(service: Service) -> None:
    request = ListArtifactsRequest()
    request.created_from.seconds = 10**15
    fields = status_of(await service.call("ArtifactService/ListArtifacts", request.SerializeToString()))[2]
    assert fields[0][0] == "from"


async def test_styles_of_paging_do_not_mix(service: Service) -> None:
    request = ListArtifactsRequest(page=1, limit=2).SerializeToString()
    assert status_of(await service.call("ArtifactService/ListArtifacts", request))[0] == "VALIDATION_ERROR"


async def test_an_unknown_enum_number_is_a_field_error(service: Service) -> None:
    request = ListAgentsRequest(status=77).SerializeToString()  # type: ignore[arg-type]
    assert status_of(await service.call("AgentService/ListAgents", request))[2][0][0] == "status"


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
    assert status_of(await service.call(PUBLISH, request_.SerializeToString()))[2][0][0] == field


async def test_nul_characters_in_labels_are_refused(service: Service) -> None:
    request = CreateTaskRequest(kind="k", labels={"a": "\0"}).SerializeToString()
    assert status_of(await service.call("TaskService/CreateTask", request))[2][0][0] == "labels"


async def test_nul_characters_in_payloads_are_data(service: Service) -> None:
    request = PublishRequest(type="Order", payload=json_format.ParseDict({"a\0": "\0"}, Struct()))
    assert (await service.call(PUBLISH, request.SerializeToString())).error is None


async def test_a_visibility_says_what_its_kind_needs(service: Service) -> None:
    deep = Visibility(kind="After", ttl=Duration(seconds=1))
    for _ in range(20):
        deep = Visibility(kind="After", ttl=Duration(seconds=1), then=deep)
    for visibility, field in [
        (Visibility(kind="Private"), "visibility.agents"),
        (Visibility(kind="Labelled"), "visibility.required_labels"),
        (Visibility(kind="After"), "visibility.ttl"),
        (deep, "visibility.then"),
    ]:
        request = PublishRequest(type="Order", visibility=visibility).SerializeToString()
        assert status_of(await service.call(PUBLISH, request))[2][0][0] == field


UNUSED = {
    "agents": (Visibility(agents=["hr"]), "Private"),
    "required_labels": (Visibility(required_labels=["eu"]), "Labelled"),
    "tenant_id": (Visibility(tenant_id="acme"), "Tenant"),
    "ttl": (Visibility(ttl=Duration(seconds=60)), "After"),
    "then": (Visibility(then=Visibility(kind="Private", agents=["hr"])), "After"),
}
NEEDED = {"Private": {"agents": ["a"]}, "Labelled": {"required_labels": ["a"]}, "After": {"ttl": Duration(seconds=1)}}


@pytest.mark.parametrize("kind", ["", "Public", "Private", "Labelled", "Tenant", "After"])
@pytest.mark.parametrize("name", UNUSED)
async def test_a_field_that_its_visibility_does_not_use_is_refused(service: Service, kind: str, name: str) -> None:
    """FL-6: what was to be hidden is never shown to everyone because a kind is missing or another; also in `then`."""
    fault, owner = UNUSED[name]
    if kind == owner:
        kind = ""
    found = Visibility(kind=kind, **NEEDED.get(kind, {}))  # type: ignore[arg-type]  # by the names of its fields
    found.MergeFrom(fault)
    nested = Visibility(kind="After", ttl=Duration(seconds=1), then=found)
    for visibility, field in ((found, f"visibility.{name}"), (nested, f"visibility.then.{name}")):
        request = PublishRequest(type="Order", visibility=visibility).SerializeToString()
        fields = status_of(await service.call(PUBLISH, request))[2]
        assert fields[0][0] == field
        assert f'set kind to "{owner}"' in fields[0][1]


@pytest.mark.parametrize("visibility", [Visibility(), Visibility(kind="Public"), Visibility(kind="Tenant")])
async def test_a_visibility_that_says_nothing_more_than_its_kind_is_taken(
    service: Service, visibility: Visibility
) -> None:
    """FL-6: an empty one means Public."""
    request = PublishRequest(type="Order", visibility=visibility).SerializeToString()
    assert (await service.call(PUBLISH, request)).error is None


# ---- sizes and payloads


async def test_a_payload_over_its_limit_is_refused_by_name(service: Service) -> None:
    payload = json_format.ParseDict({"text": "x" * (1024 * 1024)}, Struct())
    request = PublishRequest(type="Order", payload=payload).SerializeToString()
    for more in ({}, {"x_millstream_proxy": PROXY_TOKEN}):
        answer = await service.call(PUBLISH, request, **more)
        assert status_of(answer)[0] == "PAYLOAD_TOO_LARGE"
        assert "1,048,576 bytes" in str(answer.error and answer.error.details())


async def test_a_request_over_its_limit_is_refused_by_name(service: Service) -> None:
    answer = await service.call(PUBLISH, b"\0" * (4 * 1024 * 1024 + 1))
    assert status_of(answer)[0] == "PAYLOAD_TOO_LARGE"
    assert "4,194,304 bytes" in str(answer.error and answer.error.details())


def _nested(levels: int, of: type = dict) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"k": value} if of is dict else [value]
    return value


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
    answer = await publish_payload(service, payload)
    if ok:
        assert answer.error is None
    else:
        assert status_of(answer)[0] == "VALIDATION_ERROR"
        assert "30 levels" in str(answer.error and answer.error.details())


@pytest.mark.parametrize("number", [math.nan, -math.nan, math.inf, -math.inf])
async def test_json_has_no_nan_and_no_infinity(service: Service, number: float) -> None:
    payload = Struct()
    payload.fields["ok"].number_value = 1.5
    payload.fields["deep"].list_value.values.add().struct_value.fields["n"].number_value = number
    request = PublishRequest(type="Order", payload=payload).SerializeToString()
    assert status_of(await service.call(PUBLISH, request))[2][0][0] == "payload.deep[0].n"


async def test_an_odd_number_with_an_overlong_tag_is_found_too(service: Service) -> None:
    value = b"\x91\x00\x00\x00\x00\x00\x00\x00\xf8\x7f"
    entry = b"\x0a\x01k\x12" + bytes([len(value)]) + value
    struct = b"\x0a" + bytes([len(entry)]) + entry
    request = ORDER + b"\x12" + bytes([len(struct)]) + struct
    assert status_of(await service.call(PUBLISH, request))[2][0][0] == "payload.k"


@pytest.mark.parametrize("struct", [b"\xff", b"\x0a\x05\x0a\x01", b"\x0a\x05\x0a\x03\xff\xff\xff"])
async def test_a_payload_that_is_no_struct_is_a_field_error(service: Service, struct: bytes) -> None:
    request = ORDER + b"\x12" + bytes([len(struct)]) + struct
    assert status_of(await service.call(PUBLISH, request))[2][0][0] == "payload"


async def test_a_value_is_checked_as_well(service: Service) -> None:
    request = CreateTaskRequest(kind="k")
    request.input.number_value = math.nan
    assert status_of(await service.call("TaskService/CreateTask", request.SerializeToString()))[2][0][0] == "input"


async def test_payloads_of_batch_items_are_checked(service: Service) -> None:
    batch = PublishBatchRequest()
    batch.artifacts.add(type="Order").payload.fields["n"].number_value = math.inf
    answer = await service.call("ArtifactService/PublishBatch", batch.SerializeToString())
    assert answer.error is None
    assert b"artifacts[0].payload.n" in answer.body


async def test_the_proxy_has_checked_what_it_sends(service: Service) -> None:
    request = ORDER + b"\x12\x01\xff"
    answer = await service.call(PUBLISH, request, x_millstream_proxy=PROXY_TOKEN)
    assert answer.error is None
    answer = await service.call(PUBLISH, request, x_millstream_proxy="guessed")
    assert status_of(answer)[0] == "VALIDATION_ERROR"
