"""Streams of runs: over gRPC as messages, over REST as events or as lines; each encoded once for all readers."""

import json
from typing import Any

import orjson
import pytest
from google.api.httpbody_pb2 import HttpBody
from google.protobuf import json_format
from tests.rpc.answers import status_of
from tests.rpc.conftest import Service
from tests.rpc.fakes import ID
from tests.rpc.test_streams import refused, watch

from millstream.application.run_topics import RunSent
from millstream.application.views.reports import Streamed
from millstream.domain.errors import RateLimited, ValidationFailed
from millstream.domain.runs import Event, EventType
from millstream.domain.struct_wire import encode_value
from millstream.transport.mapping.run_streams import NAMES, of_execution, of_run
from millstream.transport.mapping.runs import put_event
from millstream.transport.mapping.workflow_executions import put_event as put_execution_event
from millstream.v1.execution_pb2 import WorkflowExecutionEvent
from millstream.v1.run_pb2 import RunEvent
from millstream.v1.run_service_pb2 import WatchRunRequest, WatchRunResponse, WatchRunTasksRequest
from millstream.v1.stream_service_pb2 import (
    StreamRunRequest,
    StreamRunTasksRequest,
    StreamWorkflowExecutionRequest,
    StreamWorkflowExecutionTasksRequest,
    StreamWorkflowExecutionTreeRequest,
)
from millstream.wire.v1 import execution_pb2, run_pb2

EVENTS = (
    Event(ID, 0, 7, EventType.TASK_RETRY, 1_500_000, ID, "", 2, '{"code":"X","next_attempt_in_ms":10,"message":"é"}'),
    Event(ID, 0, 1, EventType.ARTIFACT_PUBLISHED, 1_700_000_000_123_456, "", ID),
)

AFTER = "after_sequence"


async def all_of(call: Any) -> list[bytes]:
    """The text of a stream."""
    return [HttpBody.FromString(raw).data async for raw in call]


@pytest.mark.parametrize("rpc", ["RunService/WatchRun", "RunService/WatchRunTasks"])
async def test_a_run_is_watched_over_grpc(service: Service, rpc: str) -> None:
    request = WatchRunRequest(run_id=ID.upper(), after_sequence=5)
    call = watch(service, rpc, request.SerializeToString())
    found = [WatchRunResponse.FromString(raw) async for raw in call]
    assert [(each.cursor, each.HasField("event"), each.ended) for each in found] == [
        ("6", False, False),
        ("7", True, False),
        ("7", False, True),
    ]
    assert (found[1].run_id, found[1].event.sequence, found[1].event.type) == (ID, 7, RunEvent.TASK_RETRY)
    assert dict(found[1].event.data) == {"code": "X", "next_attempt_in_ms": 10.0}
    _, _, *asked = service.fakes.run_watching.calls[0]
    assert asked == [ID, "5", False, rpc.endswith("Tasks")]


@pytest.mark.parametrize(
    ("rpc", "request_", "asked"),
    [
        ("StreamService/StreamRun", StreamRunRequest(run_id=ID, after_sequence=5), ("5", False, False)),
        (
            "StreamService/StreamRun",
            StreamRunRequest(run_id=ID, cursor="c", include_descendants=True),
            ("c", True, False),
        ),
        ("StreamService/StreamRunTasks", StreamRunTasksRequest(run_id=ID), ("", False, True)),
        (
            "StreamService/StreamWorkflowExecution",
            StreamWorkflowExecutionRequest(tenant="default", workflow_execution_id=ID, after_sequence=2),
            ("2", False, False),
        ),
        (
            "StreamService/StreamWorkflowExecutionTree",
            StreamWorkflowExecutionTreeRequest(tenant="default", workflow_execution_id=ID, cursor="x"),
            ("x", True, False),
        ),
        (
            "StreamService/StreamWorkflowExecutionTasks",
            StreamWorkflowExecutionTasksRequest(tenant="default", workflow_execution_id=ID),
            ("", False, True),
        ),
    ],
)
async def test_a_run_is_watched_over_rest(
    service: Service, rpc: str, request_: Any, asked: tuple[str, bool, bool]
) -> None:
    """FV-7, FV-13: as events that a browser resumes by itself, or as lines."""
    raw = request_.SerializeToString()
    shown = (of_execution if "Execution" in rpc else of_run)(EVENTS[0])
    shown["data"] = {"code": "X", "next_attempt_in_ms": 10}
    first, *events = await all_of(watch(service, rpc, raw))
    assert first == b"retry: 1000\n\n"
    assert events[0] == b"id: 6\nevent: heartbeat\ndata: {}\n\n"
    head, data = events[1].split(b"data: ")
    assert head == b"id: 7\nevent: task_retry\n"
    assert json.loads(data) == shown
    assert events[2] == b"id: 7\nevent: end\ndata: {}\n\n"
    lines = await all_of(watch(service, rpc, raw, accept="application/x-ndjson"))
    assert [json.loads(line) for line in lines] == [
        {"cursor": "6"},
        {**shown, "cursor": "7"},
        {"end": True, "cursor": "7"},
    ]
    await all_of(watch(service, rpc, raw, last_event_id="9"))
    given = [call[3:] for call in service.fakes.run_watching.calls]
    assert given == [asked, asked, ("9", *asked[1:])]


async def test_what_a_task_streams_has_no_id(service: Service) -> None:
    """So that who comes back goes on behind the last event."""
    token = RunSent("7", streamed=Streamed(ID, 2, 5, encode_value({"text": "é"})), run_id=ID)
    service.fakes.run_watching.items = [token]
    request = StreamRunRequest(run_id=ID).SerializeToString()
    _, event = await all_of(watch(service, "StreamService/StreamRun", request))
    name, data = event.splitlines()[:2]
    assert name == b"event: stream"
    shown = {"run_id": ID, "task_id": ID, "attempt": 2, "index": 5, "value": {"text": "é"}}
    assert json.loads(data.removeprefix(b"data: ")) == shown
    (line,) = await all_of(watch(service, "StreamService/StreamRun", request, accept="application/x-ndjson"))
    assert json.loads(line) == {"stream": shown}
    tenant = StreamWorkflowExecutionRequest(tenant="default", workflow_execution_id=ID).SerializeToString()
    camel = await all_of(watch(service, "StreamService/StreamWorkflowExecution", tenant, accept="application/x-ndjson"))
    assert set(json.loads(camel[0])["stream"]) == {
        "workflowExecutionId",
        "taskExecutionId",
        "attempt",
        "index",
        "value",
    }
    call = watch(service, "RunService/WatchRun", WatchRunRequest(run_id=ID).SerializeToString())
    (found,) = [WatchRunResponse.FromString(raw) async for raw in call]
    assert (found.run_id, found.streamed.index, found.streamed.value.struct_value["text"]) == (ID, 5, "é")
    assert not found.HasField("event")


async def test_an_event_is_encoded_once_for_all_readers(service: Service) -> None:
    sent = RunSent("7", EVENTS[1])
    service.fakes.run_watching.items = [sent]
    request = StreamRunRequest(run_id=ID).SerializeToString()
    await all_of(watch(service, "StreamService/StreamRun", request))
    forms = dict(sent.forms)
    assert len(forms) == 1
    await all_of(watch(service, "StreamService/StreamRun", request))
    assert all(sent.forms[key] is value for key, value in forms.items())
    await all_of(watch(service, "StreamService/StreamRun", request, accept="application/x-ndjson"))
    assert len(sent.forms) == 2


@pytest.mark.parametrize("happened", EVENTS)
def test_an_event_is_as_its_list_shows_it(happened: Event) -> None:
    """With the run that it is of."""
    twin = run_pb2.RunEvent()
    put_event(twin, happened)
    public = RunEvent.FromString(twin.SerializeToString())
    shown = json_format.MessageToDict(
        public, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    assert _plain(of_run(happened)) == {**shown, "run_id": ID}
    camel = execution_pb2.WorkflowExecutionEvent()
    put_execution_event(camel, happened)
    event = WorkflowExecutionEvent.FromString(camel.SerializeToString())
    shown = json_format.MessageToDict(event, always_print_fields_with_no_presence=True)
    assert _plain(of_execution(happened)) == {**shown, "workflowExecutionId": ID}


def _plain(shown: dict[str, Any]) -> Any:
    return json.loads(orjson.dumps(shown))


async def test_a_slow_reader_is_told_where_to_go_on(service: Service) -> None:
    """By the last event, whose id is the cursor: a browser goes on by itself."""
    service.fakes.run_watching.items = service.fakes.run_watching.items[:2]
    service.fakes.run_watching.fail = RateLimited("the reader is too slow for this stream", retry_after_s=1.0)
    request = StreamRunRequest(run_id=ID).SerializeToString()
    call = watch(service, "StreamService/StreamRun", request, x_envoy_original_path=f"/api/v1/runs/{ID}/stream")
    *_, last = [HttpBody.FromString(await call.read()).data for _ in range(4)]
    assert last.startswith(b"id: 7\nevent: error\ndata: {")
    told = json.loads(last.split(b"data: ")[1])
    assert (told["code"], told["retryable"]) == ("RATE_LIMITED", True)
    over_grpc = await refused(watch(service, "RunService/WatchRun", WatchRunRequest(run_id=ID).SerializeToString()))
    assert status_of(over_grpc)[0] == "RATE_LIMITED"
    assert over_grpc.metadata["x-resume-cursor"] == "7"


TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson"])
@pytest.mark.parametrize(
    ("rpc", "request_", "field"),
    [
        ("StreamRun", StreamRunRequest(run_id=ID), "after_sequence"),
        (
            "StreamWorkflowExecution",
            StreamWorkflowExecutionRequest(tenant="default", workflow_execution_id=ID),
            "afterSequence",
        ),
    ],
)
async def test_an_error_in_mid_stream_is_as_any_other(
    service: Service, accept: str, rpc: str, request_: Any, field: str
) -> None:
    """FL-1: it names its trace, and fields as its path does."""
    service.fakes.run_watching.items = service.fakes.run_watching.items[:2]
    service.fakes.run_watching.fail = ValidationFailed.of("after_sequence", "is odd")
    metadata = {"x_envoy_original_path": "/", "traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "accept": accept}
    call = watch(service, f"StreamService/{rpc}", request_.SerializeToString(), **metadata)
    *_, last = [HttpBody.FromString(await call.read()).data for _ in range(4 if "stream" in accept else 3)]
    told = json.loads(last.split(b"data: ")[-1])
    told = told.get("error", told)
    assert (told["trace_id"], told["message"], told["details"][0]["field"]) == (TRACE, f"{field}: is odd", field)


@pytest.mark.parametrize(
    ("rpc", "request_", "field"),
    [
        ("RunService/WatchRun", WatchRunRequest(run_id="x"), "run_id"),
        ("RunService/WatchRun", WatchRunRequest(run_id=ID, cursor="x" * 40_001), "cursor"),
        ("RunService/WatchRunTasks", WatchRunTasksRequest(run_id=ID, cursor="7", after_sequence=7), AFTER),
        (
            "RunService/WatchRun",
            WatchRunRequest(run_id=ID, after_sequence=7, include_descendants=True),
            "after_sequence",
        ),
        ("StreamService/StreamRun", StreamRunRequest(run_id="x"), "run_id"),
    ],
)
async def test_a_watch_of_a_run_has_rules(service: Service, rpc: str, request_: Any, field: str) -> None:
    refusal = status_of(await refused(watch(service, rpc, request_.SerializeToString())))
    assert refusal[0] == "VALIDATION_ERROR"
    assert [each[0] for each in refusal[2]] == [field]
    assert service.fakes.run_watching.calls == []


def test_every_type_of_event_has_a_name() -> None:
    """FV-13"""
    assert set(NAMES) == set(EventType)
    assert {"task_created", "task_started", "task_completed", "task_failed", "task_retry"} <= set(NAMES.values())
