"""No input is a fault of ours: whatever bytes come, the answer is one of the contract."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.rpc.fakes import ID, Fakes

from millstream.adapters.auth import DeveloperAuthenticator
from millstream.adapters.metrics import Metrics
from millstream.transport import contract
from millstream.transport.pipeline import Pipeline
from millstream.transport.reading import Limits
from millstream.transport.server import handlers
from millstream.v1.artifact_pb2 import Visibility
from millstream.v1.artifact_service_pb2 import (
    ListArtifactsRequest,
    PublishBatchRequest,
    PublishRequest,
    PublishSyncRequest,
)
from millstream.v1.task_service_pb2 import CreateTaskBatchRequest
from millstream.v1.worker_service_pb2 import CompleteRequest

_UNARY = [
    method for method in contract.methods() if not (method.streaming or method.answers_stream or method.takes_stream)
]


class _Call:
    """What gRPC gives a handler, without a network; `code` is how it ended."""

    code = "OK"

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("x-idempotency-key", "k"),)

    def time_remaining(self) -> None:
        return None

    def set_trailing_metadata(self, metadata: Any) -> None:
        assert metadata

    async def abort(self, code: Any, message: str, metadata: Any) -> None:
        self.code = code.name


def _seeds() -> dict[str, bytes]:
    deep = Visibility(kind="After", ttl={"seconds": 1})  # type: ignore[arg-type]
    for _ in range(95):
        deep = Visibility(kind="After", ttl={"seconds": 1}, then=deep)  # type: ignore[arg-type]
    shallow = Visibility(kind="Private", agents=["a"])
    sync = PublishSyncRequest(type="Order", timeout=5, visibility=shallow, tags=["a"], correlation_id=ID)
    sync.payload.fields["n"].list_value.values.add().number_value = 1.5
    listed = ListArtifactsRequest(limit=5, correlation_id=ID)
    listed.created_from.seconds = 1
    batch, tasks, done = PublishBatchRequest(), CreateTaskBatchRequest(), CompleteRequest()
    batch.artifacts.add(type="Order", idempotency_key="k").payload.fields["a"].string_value = "x"
    tasks.tasks.add(kind="resize", labels={"a": "b"}).input.struct_value.fields["a"].bool_value = True
    done.completions.add(task_id=ID, attempt=1).artifacts.add(type="Order").tags.append("a")
    return {
        "Publish": PublishRequest(type="Order", visibility=deep).SerializeToString(),
        "PublishSync": sync.SerializeToString(),
        "ListArtifacts": listed.SerializeToString(),
        "PublishBatch": batch.SerializeToString(),
        "CreateTaskBatch": tasks.SerializeToString(),
        "Complete": done.SerializeToString(),
    }


_SEEDS = _seeds()


@pytest.fixture
def served() -> dict[str, Any]:
    metrics = Metrics()
    return handlers(Pipeline(DeveloperAuthenticator(), metrics, Limits()), Fakes().use_cases(metrics.exposition), "1")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("method", _UNARY, ids=lambda method: method.name)
async def test_mutated_requests_are_answered_or_refused(
    served: dict[str, Any], method: contract.Method, data: st.DataObject
) -> None:
    raw = bytearray(_SEEDS.get(method.name, b"\x0a\x04name\x12\x03\x0a\x01a"))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
        raw = raw or bytearray(b"\0")
    call = _Call()
    await served[method.path].unary_unary(bytes(raw), call)
    assert call.code != "INTERNAL"
