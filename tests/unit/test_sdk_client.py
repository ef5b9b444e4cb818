"""The client against a scripted service: what it sends, how it repeats, what it makes of answers."""

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from pydantic import BaseModel
from tests.unit.scripted import Abort, ScriptedService, start

from millstream.sdk import (
    Client,
    ConflictError,
    ConnectError,
    DeadlineError,
    InvalidRequestError,
    NewArtifact,
    NewTask,
    NotFoundError,
    PayloadError,
    RetryPolicy,
    ServiceError,
    Timeouts,
    Visibility,
    Worker,
)
from millstream.sdk import calls as calls_module
from millstream.sdk.payload import fill_struct, from_struct, from_value
from millstream.v1 import agent_pb2, agent_service_pb2, artifact_service_pb2, run_pb2, run_service_pb2, task_service_pb2


class Order(BaseModel):
    order_id: str
    amount: float = 0


UNAVAILABLE = Abort(grpc.StatusCode.UNAVAILABLE, "starting", "UNAVAILABLE")
CONFLICT = Abort(grpc.StatusCode.FAILED_PRECONDITION, "used with another request", "IDEMPOTENCY_CONFLICT")
PUBLISHED = artifact_service_pb2.PublishResponse(status="accepted", artifact_id="a", correlation_id="c")


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedService]:
    monkeypatch.setattr(calls_module, "FIRST_PAUSE_S", 0.001)
    service = ScriptedService()
    stop = start(service)
    yield service
    stop()


@pytest.fixture
async def client(service: ScriptedService) -> AsyncIterator[Client]:
    async with Client(service.target, api_key="secret") as client:
        yield client


# -- publishing -----------------------------------------------------------------------------------------------


async def test_publish_sends_the_model_under_its_bare_name(service: ScriptedService, client: Client) -> None:
    service.answer("ArtifactService/Publish", PUBLISHED)
    visibility = Visibility(kind="After", ttl=1.5, then=Visibility(kind="Private", agents=["a"]))
    published = await client.publish(
        Order(order_id="o", amount=2.5), tags=["vip"], partition_key="p", correlation_id="x", visibility=visibility
    )
    assert (published.artifact_id, published.correlation_id, published.replayed) == ("a", "c", False)
    request = service.calls[0].request
    assert (request.type, list(request.tags), request.partition_key, request.correlation_id) == (
        "Order", ["vip"], "p", "x",
    )  # fmt: skip
    assert from_struct(request.payload) == {"order_id": "o", "amount": 2.5}
    assert request.visibility.ttl.ToMilliseconds() == 1500
    assert list(request.visibility.then.agents) == ["a"]
    assert service.calls[0].metadata["authorization"] == "Bearer secret"


async def test_a_type_may_be_named_and_an_empty_payload_is_an_object(service: ScriptedService, client: Client) -> None:
    service.answer("ArtifactService/Publish", PUBLISHED)
    await client.publish(("Ping", {}))
    assert service.calls[0].request.type == "Ping"
    assert service.calls[0].request.HasField("payload")


async def test_publish_sync_returns_typed_artifacts_and_failures(service: ScriptedService, client: Client) -> None:
    response = artifact_service_pb2.PublishSyncResponse(
        correlation_id="c", completed=True, duration_ms=3.5, truncated=True, next_page_token="n"
    )
    artifact = response.artifacts.add(id="a", type="Order", produced_by="external", visibility_kind="Public")
    fill_struct(artifact.payload, {"order_id": "o", "amount": 3})
    response.failures.add(agent="payments", code="PAYMENT_DECLINED", message="no", attempts=2, artifact_ids=["a"])
    service.answer("ArtifactService/PublishSync", response)
    service.trailing = (("idempotency-replayed", "true"),)
    result = await client.publish_sync(Order(order_id="o"), timeout=7, type_names=[Order, "X"], produced_by=["p"])
    assert (result.completed, result.duration_ms, result.truncated, result.replayed) == (True, 3.5, True, True)
    assert result.of(Order) == [Order(order_id="o", amount=3)]
    assert (result.failures[0].code, result.failures[0].attempts) == ("PAYMENT_DECLINED", 2)
    call = service.calls[0]
    assert (call.request.timeout, call.request.fail_on_timeout) == (7, False)
    assert (list(call.request.filters.type_names), list(call.request.filters.produced_by)) == (["Order", "X"], ["p"])
    assert call.remaining_s is not None
    assert 15 < call.remaining_s < 20


async def test_a_run_of_an_agent_tells_that_it_was_cut_and_what_is_deprecated(
    service: ScriptedService, client: Client
) -> None:
    response = agent_service_pb2.RunAgentResponse(
        correlation_id="c", completed=True, truncated=True, next_page_token="n", deprecation="Order: use Sale"
    )
    service.answer("AgentService/RunAgent", response)
    result = await client.agents.run("maker", Order(order_id="o"))
    assert (result.truncated, result.next_page_token, result.deprecation) == (True, "n", "Order: use Sale")


async def test_a_batch_goes_in_chunks_and_its_outcomes_come_in_order(service: ScriptedService, client: Client) -> None:
    def outcome(request: Any) -> Any:
        response = artifact_service_pb2.PublishBatchResponse()
        for index, item in enumerate(request.artifacts):
            failed = item.payload.fields["amount"].number_value == 1001
            result = response.results.add(index=index, status="failed" if failed else "accepted", artifact_id="a")
            if failed:
                result.error.code, result.error.message = "NOT_FOUND", "no such type"
        return response

    service.answer("ArtifactService/PublishBatch", outcome)
    items: list[Any] = [Order(order_id="o", amount=n) for n in range(1_500)]
    items[3] = NewArtifact(("Other", {"amount": 0}), idempotency_key="mine", tags=["t"])
    outcomes = await client.publish_batch(iter(items))
    assert [len(call.request.artifacts) for call in service.calls] == [1_000, 500]
    assert [o.index for o in outcomes] == list(range(1_500))
    assert [o.index for o in outcomes if o.error] == [1001]
    assert isinstance(outcomes[1001].error, NotFoundError)
    assert service.calls[0].request.artifacts[3].idempotency_key == "mine"
    assert len({call.metadata["x-idempotency-key"] for call in service.calls}) == 2


async def test_a_batch_is_split_by_bytes_too(service: ScriptedService, client: Client) -> None:
    service.answer("ArtifactService/PublishBatch", artifact_service_pb2.PublishBatchResponse())
    await client.publish_batch(("Blob", {"x": "y" * 900_000}) for _ in range(5))
    assert [len(call.request.artifacts) for call in service.calls] == [2, 2, 1]


async def test_a_later_batch_that_fails_does_not_lose_the_outcomes_before_it(
    service: ScriptedService, client: Client
) -> None:
    stored = artifact_service_pb2.PublishBatchResponse()
    for index in range(1_000):
        stored.results.add(index=index, status="accepted")
    service.answer("ArtifactService/PublishBatch", stored, CONFLICT)
    outcomes = await client.publish_batch([Order(order_id="o")] * 1_001)
    assert [o.status for o in outcomes[-2:]] == ["accepted", "failed"]
    assert isinstance(outcomes[-1].error, ConflictError)


@pytest.mark.parametrize(
    ("payload", "path"),
    [
        ({"a": {"b": [1, 2**53]}}, "a.b[1]: integers beyond"),
        ({"a": float("inf")}, "a: JSON has no"),
        ({"a": [{"b": object()}]}, "a[0].b: object is no JSON"),
        ({1: 2}, "keys must be strings"),
    ],
)
async def test_what_json_cannot_hold_is_refused_here_by_its_path(client: Client, payload: Any, path: str) -> None:
    with pytest.raises(PayloadError) as caught:
        await client.publish(("Order", payload))
    assert path in str(caught.value)


# -- repeating ------------------------------------------------------------------------------------------------


async def test_a_repeated_write_carries_the_same_key_and_another_call_another(
    service: ScriptedService, client: Client
) -> None:
    service.answer("ArtifactService/Publish", UNAVAILABLE, UNAVAILABLE, PUBLISHED)
    await client.publish(Order(order_id="o"))
    await client.publish(Order(order_id="o"))
    keys = [call.metadata["x-idempotency-key"] for call in service.calls]
    assert len(keys) == 4
    assert len(set(keys[:3])) == 1
    assert keys[3] != keys[0]


async def test_the_same_call_is_the_same_bytes_from_any_process() -> None:
    # The order of a dict, or of a hash table, must not make another request of it: keys are compared by bytes.
    keys = [f"key{n}" for n in range(50)]
    orders = (keys, keys[::-1], sorted(keys, key=hash))
    drafts = [
        NewArtifact(("Order", dict.fromkeys(order, 1))).fill(artifact_service_pb2.PublishRequest()) for order in orders
    ]
    assert len({calls_module._serialize(draft) for draft in drafts}) == 1


async def test_a_given_key_is_used(service: ScriptedService, client: Client) -> None:
    service.answer("ArtifactService/Publish", PUBLISHED)
    await client.publish(Order(order_id="o"), idempotency_key="k-1")
    assert service.calls[0].metadata["x-idempotency-key"] == "k-1"


async def test_reads_are_repeated_without_a_key(service: ScriptedService, client: Client) -> None:
    service.answer(
        "RunService/GetRun",
        UNAVAILABLE,
        run_service_pb2.GetRunResponse(run_id="r", status=run_pb2.Run.CANCELLING, kind=run_pb2.RunKind.CASCADE),
    )
    run = await client.runs.get("r")
    assert (run.run_id, run.status, run.kind) == ("r", "CANCELLING", "CASCADE")
    assert "x-idempotency-key" not in service.calls[0].metadata


@pytest.mark.parametrize(
    ("aborted", "tries", "error"),
    [
        (UNAVAILABLE, 8, ServiceError),
        (CONFLICT, 1, ConflictError),
        (Abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", "RATE_LIMITED", retry_after_s=0.001), 8, ServiceError),
        (Abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too large"), 1, ServiceError),
        (Abort(grpc.StatusCode.DEADLINE_EXCEEDED, "late", "TIMEOUT"), 1, DeadlineError),
        (Abort(grpc.StatusCode.INTERNAL, "oops", "INTERNAL"), 1, ServiceError),
    ],
)
async def test_only_what_may_pass_is_repeated(
    service: ScriptedService, client: Client, aborted: Abort, tries: int, error: type[ServiceError]
) -> None:
    service.answer("ArtifactService/Publish", aborted)
    with pytest.raises(error):
        await client.publish(Order(order_id="o"))
    assert len(service.calls) == tries


async def test_no_try_begins_after_the_deadline(service: ScriptedService) -> None:
    service.answer("ArtifactService/Publish", Abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "f", "RATE_LIMITED", (), 60))
    async with Client(service.target, timeout=5) as client:
        with pytest.raises(ServiceError) as caught:
            await client.publish(Order(order_id="o"))
    assert caught.value.retry_after == 60
    assert len(service.calls) == 1


async def test_an_unreachable_service_is_a_connect_error() -> None:
    async with Client("127.0.0.1:1", retries=0) as client:
        with pytest.raises(ConnectError) as caught:
            await client.runs.get("r")
    assert (caught.value.code, caught.value.retryable) == ("UNAVAILABLE", True)


# -- errors ---------------------------------------------------------------------------------------------------


async def test_an_error_names_its_fields_and_its_correlation_id(service: ScriptedService, client: Client) -> None:
    fields = (("timeout", "must be between 1 and 300", "OUT_OF_RANGE"),)
    refused = Abort(grpc.StatusCode.INVALID_ARGUMENT, "timeout: no", "VALIDATION_ERROR", fields, None, "corr-1")
    service.answer("ArtifactService/PublishSync", refused)
    with pytest.raises(InvalidRequestError) as caught:
        await client.publish_sync(Order(order_id="o"), timeout=301)
    error = caught.value
    assert (error.code, error.message, error.retryable) == ("VALIDATION_ERROR", "timeout: no", False)
    assert [(d.field, d.message, d.code) for d in error.details] == list(fields)
    assert error.correlation_id == "corr-1"


async def test_a_proxys_bare_status_becomes_an_error_of_the_same_tree(service: ScriptedService, client: Client) -> None:
    service.answer("RunService/GetRun", Abort(grpc.StatusCode.NOT_FOUND, "nothing here"))
    with pytest.raises(NotFoundError, match="NOT_FOUND: nothing here"):
        await client.runs.get("r")


# -- reading --------------------------------------------------------------------------------------------------


async def test_lists_follow_their_pages_as_they_are_read(service: ScriptedService, client: Client) -> None:
    def page(request: Any) -> Any:
        number = int(request.page_token or 0)
        response = artifact_service_pb2.ListArtifactsResponse()
        response.items.add(id=f"{number}a", created_at={"seconds": 60})
        response.items.add(id=f"{number}b")
        if number < 2:
            response.pagination.next_page_token = str(number + 1)
        return response

    service.answer("ArtifactService/ListArtifacts", page)
    since = datetime(2026, 1, 1, tzinfo=UTC)
    listing = client.artifacts.list(type=Order, tag="t", created_from=since, page_size=2)
    assert [a.id async for a in listing] == ["0a", "0b", "1a", "1b", "2a", "2b"]
    request = service.calls[0].request
    assert (request.type, request.tag, request.page_size, request.page_token) == ("Order", "t", 2, "")
    assert request.HasField("page_token")
    assert request.created_from.ToDatetime(UTC) == since
    service.calls.clear()
    first = await listing.first(3)
    assert [a.id for a in first] == ["0a", "0b", "1a"]
    assert len(service.calls) == 2
    assert first[0].created_at == datetime(1970, 1, 1, 0, 1, tzinfo=UTC)


async def test_events_and_attempts_follow_their_numbers(service: ScriptedService, client: Client) -> None:
    def events(request: Any) -> Any:
        response = run_service_pb2.ListRunEventsResponse()
        sequence = request.after_sequence + 1
        event = response.items.add(sequence=sequence, type=run_pb2.RunEvent.TASK_CREATED, task_id="t")
        fill_struct(event.data, {"kind": "k"})
        if sequence < 3:
            response.next_after_sequence = sequence
        return response

    service.answer("RunService/ListRunEvents", events)
    found = await client.runs.events("r").all()
    assert [(e.sequence, e.type, e.data) for e in found] == [(n, "TASK_CREATED", {"kind": "k"}) for n in (1, 2, 3)]

    attempts = task_service_pb2.ListTaskAttemptsResponse()
    attempt = attempts.items.add(attempt=1, status=run_pb2.Attempt.FAILED, duration_ms=2.5)
    attempt.error.code = "X"
    service.answer("TaskService/ListTaskAttempts", attempts)
    [one] = await client.tasks.attempts("t").all()
    assert (one.status, one.duration_ms, one.error and one.error.code) == ("FAILED", 2.5, "X")


async def test_agents_types_summary_and_runs_are_read(service: ScriptedService, client: Client) -> None:
    agent = agent_service_pb2.GetAgentResponse(name="payments", status=agent_pb2.Agent.ONLINE, outputs=["Payment"])
    agent.subscriptions.add(types=["Order"], where="true", delivery="exclusive")
    service.answer("AgentService/GetAgent", agent)
    found = await client.agents.get("payments")
    assert (found.status, found.subscriptions[0].types, found.subscriptions[0].delivery) == (
        "ONLINE", ("Order",), "exclusive",
    )  # fmt: skip
    listed = agent_service_pb2.ListAgentsResponse()
    listed.items.add(name="a")
    service.answer("AgentService/ListAgents", listed)
    assert [a.name for a in await client.agents.list(status="online").all()] == ["a"]
    summary = artifact_service_pb2.SummarizeArtifactsResponse()
    summary.summary.total, summary.summary.by_type["Order"] = 2, 2
    service.answer("ArtifactService/SummarizeArtifacts", summary)
    assert (await client.artifacts.summary()).by_type == {"Order": 2}
    service.answer("RunService/CancelRun", run_service_pb2.CancelRunResponse(run_id="r", status=run_pb2.Run.CANCELLING))
    assert (await client.runs.cancel("r", "why")).status == "CANCELLING"
    assert service.calls[-1].request.reason == "why"
    with pytest.raises(ValueError, match="'nowhere' is none of RUNNING"):
        client.runs.list(status="nowhere")


async def test_a_model_registers_its_own_schema(service: ScriptedService, client: Client) -> None:
    def created(request: Any) -> Any:
        return artifact_service_pb2.CreateArtifactTypeResponse(name=request.name, schema=request.schema, version=1)

    service.answer("ArtifactService/CreateArtifactType", created)
    made = await client.types.create(Order)
    assert (made.name, made.schema["required"]) == ("Order", ["order_id"])
    assert (await client.types.create("Any", {"type": "object"})).schema == {"type": "object"}


async def test_a_type_s_examples_are_changed(service: ScriptedService, client: Client) -> None:
    """Those given, and where none are the contract says that they stay."""
    asked: list[list[dict[str, Any]]] = []

    def updated(request: Any) -> Any:
        asked.append([json_format.MessageToDict(each) for each in request.examples])
        return artifact_service_pb2.UpdateArtifactTypeResponse(name=request.name, version=1, examples=request.examples)

    service.answer("ArtifactService/UpdateArtifactType", updated)
    made = await client.types.update("Order", examples=[{"order_id": "o"}])
    await client.types.update("Order", description="an order")
    assert made.name == "Order"
    assert asked == [[{"order_id": "o"}], []]


# -- tasks ----------------------------------------------------------------------------------------------------


async def test_tasks_carry_their_input_and_their_policies(service: ScriptedService, client: Client) -> None:
    service.answer(
        "TaskService/CreateTask",
        task_service_pb2.CreateTaskResponse(task_id="t", run_id="r", status=run_pb2.Task.PENDING),
    )
    made = await client.tasks.create(
        "resize",
        {"width": 3, "order": Order(order_id="o")},
        priority=5,
        delay=2,
        retry=RetryPolicy(initial_interval=0.5, max_attempts=4, non_retryable_codes=["X"]),
        timeouts=Timeouts(start_to_close=60),
        labels={"a": "b"},
    )
    assert (made.task_id, made.status, made.input) == ("t", "PENDING", None)
    request = service.calls[0].request
    assert from_value(request.input) == {"width": 3, "order": {"order_id": "o", "amount": 0}}
    assert (request.priority, request.delay.seconds, dict(request.labels)) == (5, 2, {"a": "b"})
    assert request.retry.initial_interval.ToMilliseconds() == 500
    assert (request.retry.max_attempts, request.retry.HasField("factor")) == (4, False)
    assert (request.timeouts.start_to_close.seconds, request.timeouts.HasField("heartbeat")) == (60, False)


async def test_task_batches_have_an_outcome_each(service: ScriptedService, client: Client) -> None:
    response = task_service_pb2.CreateTaskBatchResponse()
    response.results.add(index=0, status="accepted", task_id="t", run_id="r")
    response.results.add(index=1, status="failed").error.code = "VALIDATION_ERROR"
    service.answer("TaskService/CreateTaskBatch", response)
    good, bad = await client.tasks.create_batch([NewTask("a", 1, idempotency_key="k"), NewTask("", None)])
    assert (good.id, good.run_id) == ("t", "r")
    assert isinstance(bad.error, InvalidRequestError)
    assert service.calls[0].request.tasks[0].idempotency_key == "k"


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1:8080",
        "[::1]:8080",
        "millstream.example.com:443",
        "my_host:1",
        "unix:/run/m.sock",
        "dns:///m.example:80",
    ],
)
async def test_a_target_is_host_and_port_or_a_name_of_grpcs(target: str) -> None:
    await Client(target).close()


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("garbage", "is not host:port"), ("", "is not host:port"), (":8080", "is not host:port"),
        ("host:port", "is not host:port"), ("host:0", "is not host:port"), ("host:65536", "is not host:port"),
        ("::1:8080", "is not host:port"), ("a b:80", "is not host:port"), ("host:80/path", "is not host:port"),
        ("http://m.example:8080/", "leave out what is around it: m.example:8080"),
    ],
)  # fmt: skip
async def test_what_is_no_target_is_refused_before_a_call(target: str, why: str) -> None:
    """gRPC would fail on it later, and tell of its own insides."""
    with pytest.raises(ValueError, match=why):
        Client(target)
    with pytest.raises(ValueError, match=why):
        Worker(target)
