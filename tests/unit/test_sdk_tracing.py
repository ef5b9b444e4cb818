"""Traces in programs that use the SDK: with OpenTelemetry, and without."""

import contextvars
import sys
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from tests.unit.scripted import ScriptedService, start

from millstream.sdk import Client, tracing
from millstream.v1 import artifact_service_pb2, run_service_pb2

TASK = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CALLER = "00-11117651916cd43dd8448eb211c80319-a7ad6b7169203331-01"


def span_of(traceparent: str) -> trace.Span:
    """The span that a traceparent names."""
    _, trace_id, span_id, flags = traceparent.split("-")
    found = trace.SpanContext(int(trace_id, 16), int(span_id, 16), True, trace.TraceFlags(int(flags)))
    return trace.NonRecordingSpan(found)


@pytest.fixture
def service() -> Iterator[ScriptedService]:
    service = ScriptedService()
    service.answer("RunService/GetRun", run_service_pb2.GetRunResponse(run_id="r"))
    service.answer("ArtifactService/Publish", artifact_service_pb2.PublishResponse(status="accepted"))
    stop = start(service)
    yield service
    stop()


def test_what_a_task_does_is_in_its_trace_and_nothing_else_is() -> None:
    def in_task() -> None:
        tracing.enter(TASK)
        assert tracing.headers() == (("traceparent", TASK),)
        assert trace.get_current_span().get_span_context().trace_id == int(TASK[3:35], 16)

    contextvars.copy_context().run(in_task)
    tracing.enter("")
    assert tracing.headers() == ()


def test_without_opentelemetry_the_task_is_told_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_task() -> None:
        tracing.enter(TASK)
        assert tracing.headers() == (("traceparent", TASK),)

    monkeypatch.delitem(sys.modules, "opentelemetry.trace")
    contextvars.copy_context().run(in_task)


async def test_calls_carry_the_span_that_is_current(service: ScriptedService) -> None:
    """WM-12: the header of W3C Trace Context, with calls that read and with those that write."""
    async with Client(service.target) as client:
        with trace.use_span(span_of(CALLER)):
            await client.runs.get("r")
            await client.publish(("Order", {}))
        await client.runs.get("r")
    assert [call.metadata.get("traceparent") for call in service.calls] == [CALLER, CALLER, None]
