"""Traces from a client through Envoy, servers and workers to a collector."""

from collections.abc import AsyncIterator

import pytest
from tests.collector import Collector, collecting
from tests.e2e.stack import ORDERS, Stack, running_stack

from millstream.sdk import Client

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
SPANS = {
    "ArtifactService/PublishSync", "run cascade", "task agent:payments", "task agent:shipping", "task agent:notifier",
}  # fmt: skip
ORDER = {"order_id": "o-1", "amount": 12.5, "items": ["tea"]}


@pytest.fixture(scope="module")
async def collector() -> AsyncIterator[Collector]:
    """Where the servers send their traces."""
    async with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
async def traced(collector: Collector) -> AsyncIterator[Stack]:
    """Two servers that export traces; of those that nobody else has begun, none."""
    settings = {"auth_mode": "developer", "otlp_endpoint": collector.endpoint, "trace_ratio": "0"}
    async with running_stack(settings, servers=2) as stack:
        worker = await stack.worker(ORDERS, "orders")
        await worker.line("serves")
        yield stack
    assert not stack.faults()


async def test_a_publish_is_one_trace_from_its_caller_to_the_last_task(traced: Stack, collector: Collector) -> None:
    """The call is below its caller's span, the run below the call, each task below what it follows from; what the
    answer is told by are its run and its tasks."""
    rest = await traced.rest(traceparent=f"00-{TRACE}-{CALLER}-01")
    answer = await rest.post("/api/v1/artifacts/sync", json={"type": "Order", "payload": ORDER})
    run = (await rest.get(f"/api/v1/runs/{answer.json()['correlation_id']}")).json()
    assert run["trace_id"] == TRACE
    spans = await collector.of(TRACE, lambda found: found.keys() >= SPANS)
    chain = ["ArtifactService/PublishSync", "run cascade", "task agent:payments", "task agent:shipping"]
    assert spans["ArtifactService/PublishSync"].parent_span_id.hex() == CALLER
    for above, below in zip(chain, [*chain[1:], "task agent:notifier"], strict=True):
        assert spans[below].parent_span_id == spans[above].span_id, below
    told = {each.key: each.value.string_value for each in spans["run cascade"].attributes}
    assert (told["millstream.run.id"], told["millstream.status"]) == (run["run_id"], "COMPLETED")


async def test_a_failure_is_told_by_its_code_alone(traced: Stack, collector: Collector) -> None:
    """The span has the error's code; the worker's own words stay here."""
    trace = TRACE.replace("0af7", "1111")
    rest = await traced.rest(traceparent=f"00-{trace}-{CALLER}-01")
    await rest.post("/api/v1/artifacts/sync", json={"type": "Order", "payload": {"order_id": "o-2", "amount": -1}})
    spans = await collector.of(trace, lambda found: "task agent:payments" in found)
    failed = spans["task agent:payments"]
    assert (failed.status.code, failed.status.message) == (2, "PAYMENT_DECLINED")
    assert b"cannot charge" not in failed.SerializeToString()


async def test_an_error_names_its_trace(traced: Stack, collector: Collector) -> None:
    """FL-1: over REST in the body, over gRPC in its details; without a trace nothing is said of one."""
    trace = TRACE.replace("0af7", "2222")
    rest = await traced.rest(traceparent=f"00-{trace}-{CALLER}-01")
    refused = await rest.get("/api/v1/runs/01a1fe45-8229-7372-8362-e2298d3cce96")
    assert (refused.status_code, refused.json()["trace_id"]) == (404, trace)
    span = (await collector.of(trace, lambda found: "RunService/GetRun" in found))["RunService/GetRun"]
    assert (span.status.code, span.status.message) == (2, "NOT_FOUND")
    plain = await (await traced.rest()).get("/api/v1/runs/01a1fe45-8229-7372-8362-e2298d3cce96")
    assert "trace_id" not in plain.json()


async def test_what_its_caller_does_not_record_is_not_exported(traced: Stack, collector: Collector) -> None:
    """It is carried on all the same, for those further on."""
    trace = TRACE.replace("0af7", "3333")
    rest = await traced.rest(traceparent=f"00-{trace}-{CALLER}-00")
    async with Client(traced.target) as client:
        done = await client.publish_sync(("Order", ORDER))  # of nobody's trace, and the ratio is 0
    answer = await rest.post("/api/v1/artifacts/sync", json={"type": "Order", "payload": ORDER})
    run = (await rest.get(f"/api/v1/runs/{answer.json()['correlation_id']}")).json()
    assert run["trace_id"] == trace
    assert "trace_id" not in (await rest.get(f"/api/v1/runs/{done.correlation_id}")).json()
    # What is exported comes in the order of its end: a call that came after all of them is the last.
    last = TRACE.replace("0af7", "4444")
    await (await traced.rest(traceparent=f"00-{last}-{CALLER}-01")).get("/api/v1/runs")
    await collector.of(last, lambda found: "RunService/ListRuns" in found)
    assert {span.trace_id.hex() for span in collector.spans} <= {
        TRACE, last, *(TRACE.replace("0af7", begin) for begin in ("1111", "2222")),
    }  # fmt: skip
