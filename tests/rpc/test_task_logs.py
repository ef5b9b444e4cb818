"""Logs of tasks over the wire: how lines come, how far they are acknowledged, and how they are read (DC-6)."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.api.httpbody_pb2 import HttpBody
from tests.rpc.conftest import Service
from tests.rpc.fakes import AT_US, ID, OTHER
from tests.rpc.test_services import _ask, _refused
from tests.rpc.test_work_stream import HELLO, connected
from tests.rpc.test_workflow_executions import ask

from millstream.application.paging import PageRequest
from millstream.application.views.task_logs import LogQuery
from millstream.domain.struct_wire import decode_struct
from millstream.domain.task_logs import LogAck, LogLine
from millstream.transport.mapping.task_logs import by_task
from millstream.v1 import stream_service_pb2 as streams_wire
from millstream.v1 import task_log_service_pb2 as logs_wire
from millstream.v1.task_log_pb2 import LogBatch
from millstream.v1.task_log_pb2 import LogLine as WireLine
from millstream.v1.worker_pb2 import Completion
from millstream.v1.worker_service_pb2 import StreamLogsRequest, StreamLogsResponse

AT = "2023-11-14T22:13:20.123456Z"
ENTRY = {
    "sequence": 5, "run_id": OTHER, "task_id": ID, "attempt": 2, "offset": 7, "level": "WARN", "message": "odd",
    "fields": {"n": 1}, "timestamp": AT, "logger": "shop",
}  # fmt: skip


def batch(*lines: WireLine, offset: int = 1) -> LogBatch:
    return LogBatch(task_id=ID.upper(), attempt=2, offset=offset, lines=lines or [WireLine(message="hello")])


def line(**fields: Any) -> WireLine:
    found = WireLine(level=WireLine.WARN, message="odd", logger="shop", **fields)
    found.fields.update({"n": 1})
    found.time.FromMicroseconds(7)
    return found


@contextlib.asynccontextmanager
async def streaming(service: Service) -> AsyncIterator[Any]:
    method: Any = service.channel.stream_stream(
        "/millstream.v1.WorkerService/StreamLogs",
        request_serializer=StreamLogsRequest.SerializeToString,
        response_deserializer=StreamLogsResponse.FromString,
    )
    call = method(metadata=(("authorization", "Bearer root"),))
    try:
        yield call
    finally:
        call.cancel()


async def test_lines_of_a_worker_are_acknowledged_by_themselves(service: Service) -> None:
    """DC-6: the message's own acknowledgement does not wait for them."""
    async with connected(service, HELLO) as worker:
        first = await worker.hear()
        assert first.welcome.log_window_bytes == 1024 * 1024
        ended = Completion(task_id=ID, attempt=2, log_offset=2)
        await worker.say(number=2, logs=[batch(line(), line(cut=3))], completions=[ended])
        heard = await worker.hear_until(lambda answer: answer.log_acks)
        (ack,) = heard[-1].log_acks
        assert (ack.task_id, ack.attempt, ack.offset, ack.again, ack.HasField("error")) == (ID, 2, 2, False, False)
        (found,) = service.fakes.log_intake.batches
        assert (found.task_id, found.attempt, found.offset) == (ID, 2, 1)
        assert found.lines[0] == LogLine(3, "odd", 7, "shop", found.lines[0].fields)
        assert decode_struct(found.lines[0].fields) == {"n": 1}
        assert found.lines[1].cut == 3
        assert (service.fakes.log_intake.tasks, service.fakes.log_intake.ends) == ([ID], [(ID, 2, 2)])


async def test_only_the_latest_acknowledgement_of_an_attempt_is_told_but_for_a_refusal(service: Service) -> None:
    async with connected(service, HELLO) as worker:
        await worker.hear_until(lambda answer: answer.ack == 1)
        bad = batch(WireLine(message="x" * 32769), offset=3)
        await worker.say(number=2, logs=[batch(), batch(offset=2), bad, batch(offset=4)])
        heard = await worker.hear_until(lambda answer: answer.log_acks)
        (ack,) = heard[-1].log_acks
        assert ack.error.code == "VALIDATION_ERROR"
        assert ack.error.details[0].field == "lines[0].message"
        assert "at most 32,768 bytes" in ack.error.details[0].message
        service.fakes.log_intake.sources[-1].told([LogAck(ID, 2, 2), LogAck(ID, 2, 5, again=True)])
        (ack,) = (await worker.hear_until(lambda answer: answer.log_acks))[-1].log_acks
        assert (ack.offset, ack.again) == (5, True)


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (WireLine(message="ä" * 16385), "lines[0].message"),
        (WireLine(logger="x" * 129), "lines[0].logger"),
    ],
)
async def test_a_line_that_is_too_long_is_refused_by_name(service: Service, bad: WireLine, field: str) -> None:
    async with streaming(service) as call:
        await call.write(StreamLogsRequest(batches=[batch(bad)]))
        (ack,) = (await call.read()).acks
        assert (ack.error.code, ack.error.details[0].field) == ("VALIDATION_ERROR", field)


async def test_fields_that_are_too_large_are_refused_by_name(service: Service) -> None:
    large = WireLine()
    large.fields.update({"text": "x" * 33000})
    async with streaming(service) as call:
        await call.write(StreamLogsRequest(batches=[batch(large)]))
        (ack,) = (await call.read()).acks
        assert "lines[0].fields has 33" in ack.error.message


async def test_lines_may_come_by_a_stream_of_their_own(service: Service) -> None:
    """DC-6: level, time and NUL characters are made to fit; what is sent before the end is acknowledged."""
    async with streaming(service) as call:
        await call.write(StreamLogsRequest(batches=[batch(WireLine(message="a\0b", level=99))]))  # type: ignore[arg-type]
        await call.done_writing()
        (ack,) = (await call.read()).acks
        assert (ack.task_id, ack.offset) == (ID, 1)
        assert await call.read() is grpc.aio.EOF
        assert service.fakes.log_intake.batches[0].lines == [LogLine(2, "a\ufffdb", AT_US)]
    assert service.fakes.log_intake.sources[-1].closed


def test_batches_are_told_apart_by_their_task_as_they_came() -> None:
    """Fields may come in any order: what does not begin with the task waits with others of the kind."""
    usual = batch().SerializeToString()
    odd = LogBatch(attempt=2).SerializeToString() + LogBatch(task_id=ID).SerializeToString()
    upper = LogBatch(task_id=ID.upper()).SerializeToString()
    assert by_task([usual, odd, upper]) == [(ID, usual), ("", odd), (ID, upper)]


@pytest.mark.parametrize("task_id", ["", "nonsense"])
async def test_a_batch_that_names_no_attempt_is_refused(service: Service, task_id: str) -> None:
    async with streaming(service) as call:
        await call.write(StreamLogsRequest(batches=[LogBatch(task_id=task_id, attempt=1, offset=1)]))
        (ack,) = (await call.read()).acks
        assert (ack.error.code, ack.error.details[0].field) == ("VALIDATION_ERROR", "task_id")


async def test_a_stream_of_lines_ends_where_the_server_goes(service: Service) -> None:
    async with streaming(service) as call:
        await call.write(StreamLogsRequest(batches=[batch()]))
        await call.read()
        service.fakes.log_intake.drained.set()
        async with asyncio.timeout(5):
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await call.read()
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_logs_of_a_task_and_a_run(service: Service) -> None:
    """WM-5: by attempt, level, text and time."""
    calls = service.fakes.task_logs.calls
    asked = {
        "task_id": ID.upper(), "level": "warn,ERROR", "text": "od", "attempt": 2, "since": AT, "until": AT,
        "newest_first": True, "page_size": 1000,
    }  # fmt: skip
    wanted = LogQuery("", ID, 2, (3, 4), "od", AT_US, AT_US, newest_first=True)
    assert (await _ask(service, "TaskLogService/ListTaskLogs", asked))["items"] == [ENTRY]
    assert calls[-1][2:] == (wanted, PageRequest(page_size=1000), "")
    assert (await _ask(service, "TaskLogService/ListRunLogs", {"run_id": OTHER}))["items"] == [ENTRY]
    assert calls[-1][2:] == (LogQuery(OTHER), PageRequest(page_size=100))
    for bad in ("LOUD", "INFO,LOUD"):
        assert await _refused(service, "TaskLogService/ListTaskLogs", {"task_id": ID, "level": bad}) == "level"


async def test_the_logs_of_a_task_below_the_path_of_a_tenant(service: Service) -> None:
    """FV-12, to the letter."""
    path = "WorkflowExecutionService/ListWorkflowTaskLogs"
    out = await ask(service, path, workflowExecutionId=OTHER, taskId=ID, level="ERROR", limit=5, offset=2)
    assert out == {
        "taskExecutionId": ID, "total": 1, "limit": 5, "offset": 2,
        "logs": [{"id": f"{ID}-2-7", "level": "WARN", "message": "odd", "timestamp": AT}],
    }  # fmt: skip
    assert service.fakes.task_logs.calls[-1][2:] == (
        LogQuery("", ID, levels=(4,)),
        PageRequest(limit=5, offset=2),
        OTHER,
    )
    out = await ask(service, path, workflowExecutionId=OTHER, taskId=ID)
    assert out["limit"] == 100
    request = {"tenant": "default", "workflow_execution_id": OTHER, "task_id": ID, "limit": 1001}
    assert await _refused(service, path, request) == "limit"


async def watched(service: Service, path: str, request: Any, answer: Any, **metadata: str) -> list[Any]:
    method: Any = service.channel.unary_stream(
        f"/millstream.v1.{path}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=answer.FromString,
    )
    sent = [("authorization", "Bearer root"), *((name.replace("_", "-"), text) for name, text in metadata.items())]
    return [each async for each in method(request, metadata=tuple(sent), timeout=10)]


async def test_logs_are_watched_to_their_end(service: Service) -> None:
    """DC-6: each message with its cursor, the last of them saying so."""
    request = logs_wire.WatchTaskLogsRequest(task_id=ID.upper(), level="warn", text="od", attempt=2, cursor="c0")
    path = "TaskLogService/WatchTaskLogs"
    first, line_, last = await watched(service, path, request, logs_wire.WatchTaskLogsResponse)
    assert (first.cursor, first.HasField("entry"), first.ended) == ("c1", False, False)
    assert (line_.entry.message, line_.entry.sequence, line_.cursor) == ("odd", 5, "c2")
    assert (last.cursor, last.HasField("entry"), last.ended) == ("c2", False, True)
    assert service.fakes.log_watching.calls[-1][2:] == (LogQuery("", ID, 2, (3,), "od"), "c0")
    of_run = logs_wire.WatchRunLogsRequest(run_id=OTHER)
    found = await watched(service, "TaskLogService/WatchRunLogs", of_run, logs_wire.WatchRunLogsResponse)
    assert [each.cursor for each in found] == ["c1", "c2", "c2"]
    assert service.fakes.log_watching.calls[-1][2:] == (LogQuery(OTHER), "")


async def test_logs_are_streamed_as_events_and_as_lines(service: Service) -> None:
    """DC-6: as a browser's EventSource and readers of lines take them."""
    request = streams_wire.StreamTaskLogsRequest(task_id=ID)
    path = "StreamService/StreamTaskLogs"
    found = await watched(service, path, request, HttpBody, last_event_id="c0")
    text = b"".join(each.data for each in found).decode()
    assert service.fakes.log_watching.calls[-1][3] == "c0"
    retry, beat, event, end, rest = text.split("\n\n")
    assert (retry, rest) == ("retry: 1000", "")
    assert beat == "id: c1\nevent: heartbeat\ndata: {}"
    assert end == "id: c2\nevent: end\ndata: {}"
    head, _, data = event.partition("data: ")
    assert head == "id: c2\nevent: log\n"
    assert json.loads(data) == ENTRY | {"cut": 0}
    of_run = streams_wire.StreamRunLogsRequest(run_id=OTHER)
    found = await watched(service, "StreamService/StreamRunLogs", of_run, HttpBody, accept="application/x-ndjson")
    lines_ = [json.loads(each.data) for each in found]
    assert lines_ == [{"cursor": "c1"}, ENTRY | {"cut": 0, "cursor": "c2"}, {"end": True, "cursor": "c2"}]
