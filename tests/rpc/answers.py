"""Reading answers, and asking for them."""

import json
from typing import Any

from google.rpc import error_details_pb2, status_pb2
from tests.rpc.conftest import Answer, Service

from millstream.domain.struct_wire import encode_struct
from millstream.v1.artifact_service_pb2 import (
    PublishRequest,
)
from millstream.wire.v1 import artifact_service_pb2 as wire

PUBLISH = "ArtifactService/Publish"
ORDER = PublishRequest(type="Order").SerializeToString()


def status_of(answer: Answer) -> tuple[str, str, list[tuple[str, str, str]], float | None]:
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


def body_of(answer: Answer) -> dict[str, Any]:
    out: dict[str, Any] = json.loads(answer.metadata["x-error-body"])
    return out


async def publish_payload(service: Service, payload: dict[str, Any], **more: str) -> Answer:
    # Written by hand: protobuf itself refuses what is too deep.
    request = wire.PublishRequest(type="Order", payload=encode_struct(payload))
    return await service.call(PUBLISH, request.SerializeToString(), **more)
