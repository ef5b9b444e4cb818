"""Promises through the client and the command line, against a scripted service; and their rules alone."""

import json
from collections.abc import Callable, Iterator

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from tests.unit.scripted import Abort, ScriptedService, start
from typer.testing import CliRunner, Result

from millstream.cli.app import app
from millstream.sdk import Client, ConflictError, Fault
from millstream.sdk.payload import fill_value, from_value
from millstream.v1 import promise_pb2
from millstream.v1 import promise_service_pb2 as wire

Run = Callable[..., Result]
ID = "0190f5e2-0000-7000-8000-000000000001"


@pytest.fixture
def service() -> Iterator[ScriptedService]:
    service = ScriptedService()
    stop = start(service)
    yield service
    stop()


@pytest.fixture
def run(service: ScriptedService) -> Run:
    def invoke(*args: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, ["promises", *args], input=stdin, env={"MILLSTREAM_TARGET": service.target})

    return invoke


def promise(state: str = "PENDING", value: object = None) -> promise_pb2.Promise:
    out = promise_pb2.Promise(
        promise_id=ID,
        run_id="r",
        name="approval",
        key="order-1",
        state=promise_pb2.Promise.State.Value(state),
        created_at=Timestamp(seconds=1_700_000_000),
        expires_at=Timestamp(seconds=1_700_000_060),
        labels={"team": "x"},
    )
    fill_value(out.input, {"amount": 12})
    if state == "RESOLVED":
        out.settled_by = "ann"
        fill_value(out.value, value)
    if state == "REJECTED":
        out.error.code, out.error.message = "DECLINED", "too expensive"
    return out


async def test_the_client_makes_settles_and_awaits_promises(service: ScriptedService) -> None:
    """FV-17: a method for each operation; a promise is named as the contract names it."""
    yes = {"approved": True}
    for rpc, answer in (
        ("Create", promise()),
        ("Get", promise()),
        ("Resolve", promise("RESOLVED", yes)),
        ("Reject", promise("REJECTED")),
        ("Cancel", promise("CANCELLED")),
        ("Await", promise("RESOLVED", yes)),
    ):
        service.answer(f"PromiseService/{rpc}Promise", answer)
    async with Client(service.target) as client:
        made = await client.promises.create(
            "approval", key="order-1", input={"amount": 12}, timeout=60, labels={"team": "x"}, idempotency_key="k"
        )
        got = await client.promises.get("key:order-1")
        resolved = await client.promises.resolve(ID, yes)
        rejected = await client.promises.reject(ID, "DECLINED", "too expensive")
        cancelled = await client.promises.cancel(ID, "enough")
        awaited = await client.promises.wait(ID, timeout=2.5, fail_on_timeout=True)
    assert got == made
    assert (made.promise_id, made.name, made.key, made.state, made.settled) == (
        ID,
        "approval",
        "order-1",
        "PENDING",
        False,
    )
    assert (made.input, made.value, made.labels) == ({"amount": 12}, None, {"team": "x"})
    assert made.created_at is not None
    assert made.expires_at is not None
    assert (resolved.state, resolved.value, resolved.settled_by, resolved.settled) == ("RESOLVED", yes, "ann", True)
    assert (rejected.state, rejected.error) == ("REJECTED", Fault("DECLINED", "too expensive"))
    assert cancelled.state == "CANCELLED"
    assert awaited.value == yes
    create, get, resolve, reject, cancel, wait = [call.request for call in service.calls]
    assert (create.name, create.key, create.timeout) == ("approval", "order-1", Duration(seconds=60))
    assert (from_value(create.input), dict(create.labels)) == ({"amount": 12}, {"team": "x"})
    assert service.calls[0].metadata["x-idempotency-key"] == "k"
    assert get.promise_id == "key:order-1"
    assert (resolve.promise_id, from_value(resolve.value)) == (ID, yes)
    assert (reject.code, reject.message, cancel.reason) == ("DECLINED", "too expensive", "enough")
    assert (wait.timeout, wait.fail_on_timeout) == (2.5, True)
    remaining = service.calls[-1].remaining_s
    assert remaining is not None
    assert remaining > 2.5


async def test_the_client_lists_promises_page_by_page(service: ScriptedService) -> None:
    """FV-17"""
    first = wire.ListPromisesResponse(items=[promise()], pagination={"next_page_token": "t"})  # type: ignore[arg-type]
    service.answer("PromiseService/ListPromises", first, wire.ListPromisesResponse(items=[promise("CANCELLED")]))
    async with Client(service.target) as client:
        listing = client.promises.list(state="pending", key="k", name="n", run_id="r")
        assert [each.state for each in await listing.all()] == ["PENDING", "CANCELLED"]
        with pytest.raises(ValueError, match="is none of PENDING, RESOLVED, REJECTED, CANCELLED"):
            client.promises.list(state="open")
    asked = service.calls[0].request
    assert (asked.state, asked.key, asked.name, asked.run_id) == (1, "k", "n", "r")
    assert service.calls[1].request.page_token == "t"


async def test_a_promise_settled_otherwise_is_a_conflict(service: ScriptedService) -> None:
    """FV-17"""
    refusal = Abort(grpc.StatusCode.FAILED_PRECONDITION, f"promise {ID} is REJECTED already", "CONFLICT")
    service.answer("PromiseService/ResolvePromise", refusal)
    async with Client(service.target) as client:
        with pytest.raises(ConflictError, match="is REJECTED already"):
            await client.promises.resolve(ID, 1)


def test_the_commands_make_and_show_a_promise(run: Run, service: ScriptedService) -> None:
    """FV-14, FV-17"""
    service.answer("PromiseService/CreatePromise", promise())
    made = run(
        "create", "approval", "--key", "order-1", "--input", '{"amount": 12}', "--timeout", "60", "--label", "team=x"
    )
    assert made.exit_code == 0
    assert all(text in made.stdout for text in (ID, "approval", "order-1", "PENDING", '"amount": 12'))
    asked = service.calls[0].request
    assert (asked.key, from_value(asked.input), asked.timeout.seconds) == ("order-1", {"amount": 12}, 60)
    assert dict(asked.labels) == {"team": "x"}
    assert run("create", "approval", "--label", "team").exit_code == 2
    assert run("create", "approval", "--input", "{").exit_code == 2
    service.answer("PromiseService/GetPromise", promise("REJECTED"))
    shown = run("get", "key:order-1")
    assert "DECLINED: too expensive" in shown.stdout
    assert "expires" not in shown.stdout
    as_json = json.loads(run("get", "key:order-1", "--json").stdout)
    assert (as_json["promise_id"], as_json["error"]["code"]) == (ID, "DECLINED")
    service.answer("PromiseService/ListPromises", wire.ListPromisesResponse(items=[promise()]))
    listed = run("list", "--state", "pending", "--name", "approval")
    assert ID in listed.stdout
    assert run("list", "--state", "open").exit_code == 2


def test_the_commands_settle_and_await_a_promise(run: Run, service: ScriptedService) -> None:
    """FV-14, FV-17: any JSON, from stdin too; the exit code of await tells whether it was resolved."""
    service.answer("PromiseService/ResolvePromise", promise("RESOLVED", "yes"))
    assert '"yes"' in run("resolve", ID, '"yes"', "--json").stdout
    run("resolve", ID, "-", stdin="[1, null]")
    run("resolve", ID)
    given = [from_value(call.request.value) for call in service.calls]
    assert given == ["yes", [1, None], None]
    service.answer("PromiseService/RejectPromise", promise("REJECTED"))
    assert run("reject", ID, "--code", "DECLINED", "--message", "too expensive").exit_code == 0
    assert service.calls[-1].request.code == "DECLINED"
    service.answer("PromiseService/CancelPromise", promise("CANCELLED"))
    assert run("cancel", ID, "--reason", "enough").exit_code == 0
    for state, code in (("RESOLVED", 0), ("REJECTED", 4), ("CANCELLED", 4), ("PENDING", 4)):
        service.answer("PromiseService/AwaitPromise", promise(state, 1))
        assert run("await", ID, "--timeout", "0.5").exit_code == code
    assert service.calls[-1].request.timeout == 0.5
    service.answer("PromiseService/AwaitPromise", Abort(grpc.StatusCode.NOT_FOUND, "there is no promise", "NOT_FOUND"))
    assert run("await", ID).exit_code == 1
