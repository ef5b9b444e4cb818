"""The generated stubs as a user of plain, synchronous gRPC has them, on grpcio-testing's channel double."""

import threading

import grpc
import grpc_testing  # type: ignore[import-untyped]
import pytest

from millstream.v1 import artifact_service_pb2 as messages
from millstream.v1.artifact_service_pb2_grpc import ArtifactServiceStub

_SERVICE = messages.DESCRIPTOR.services_by_name["ArtifactService"]
_METHOD = _SERVICE.methods_by_name["Publish"]


def _publish(channel: grpc.Channel, answers: list[object]) -> None:
    stub = ArtifactServiceStub(channel)
    request = messages.PublishRequest(type="Order")
    request.payload.update({"order_id": "o-1"})
    try:
        answers.append(stub.Publish(request, timeout=5))
    except grpc.RpcError as error:
        answers.append(error)


@pytest.mark.parametrize("code", [grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND])
def test_a_synchronous_client_publishes_with_the_generated_stub(code: grpc.StatusCode) -> None:
    """DC-4, DC-6: no asyncio and nothing of ours but the contract; answers and errors arrive as gRPC's own."""
    channel = grpc_testing.channel([_SERVICE], grpc_testing.strict_real_time())
    answers: list[object] = []
    caller = threading.Thread(target=_publish, args=(channel, answers))
    caller.start()
    _, request, call = channel.take_unary_unary(_METHOD)
    call.send_initial_metadata(())
    response = messages.PublishResponse(status="accepted", artifact_id="a", correlation_id="c")
    call.terminate(response if code is grpc.StatusCode.OK else None, (), code, "")
    caller.join(timeout=5)
    assert (request.type, request.payload["order_id"]) == ("Order", "o-1")
    [answer] = answers
    if code is grpc.StatusCode.OK:
        assert answer == response
    else:
        assert isinstance(answer, grpc.RpcError)
        assert answer.code() is code
