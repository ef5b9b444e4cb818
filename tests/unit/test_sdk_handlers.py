"""How functions become agents and tasks: signatures, names, types."""

import datetime as dt
import enum
import uuid
from collections.abc import Callable
from typing import Any, cast

import pytest
from google.protobuf.struct_pb2 import Struct, Value
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from millstream.sdk import Context, RetryPolicy, Subscription, Timeouts, Worker
from millstream.sdk.handlers import AgentHandler, TaskHandler, inspect_call, type_spec
from millstream.sdk.payload import fill_struct, fill_value, from_struct, from_value


class Order(BaseModel):
    """What a customer
    asks for.

    And more.
    """

    order_id: str


class Payment(BaseModel):
    amount: int = Field(alias="amountCents")


CONTEXT = cast("Context", object())


def by_annotation(ctx: Context, order: Order) -> tuple[Any, Any]:
    return order, ctx


def by_place(order: Order, anything: Any) -> tuple[Any, Any]:
    return order, anything


def by_keyword(order: Order, *, ctx: Context) -> tuple[Any, Any]:
    return order, ctx


def input_only(order: Order) -> tuple[Any, Any]:
    return order, CONTEXT


def context_only(*, ctx: Context) -> tuple[Any, Any]:
    return 1, ctx


@pytest.mark.parametrize("function", [by_annotation, by_place, by_keyword, input_only, context_only])
def test_the_context_comes_by_annotation_or_second(function: Callable[..., Any]) -> None:
    assert inspect_call(function)(1, CONTEXT) == (1, CONTEXT)


def test_an_annotation_that_cannot_be_resolved_is_refused_at_once() -> None:
    def handler(value: "Nowhere") -> None:  # type: ignore[name-defined]  # noqa: F821
        pass

    with pytest.raises(TypeError, match="Nowhere"):
        Worker().task("k")(handler)


def test_an_agent_registers_subscriptions_policies_and_types() -> None:
    worker = Worker()

    @worker.agent(
        consumes=[Order, "Parcel", Subscription([Payment], where="true", priority=3)],
        publishes=["Note", Payment],
        name="clerk",
        tags=["vip"],
        delivery="exclusive",
        max_concurrency=4,
        queue="slow",
        retry=RetryPolicy(max_attempts=7),
        timeouts=Timeouts(heartbeat=dt.timedelta(seconds=2)),
    )
    async def handle(item: Any) -> None: ...

    handler = worker._registry.handlers["agent:clerk"]
    assert isinstance(handler, AgentHandler)
    first, second = handler.spec.subscriptions
    assert (list(first.types), list(first.tags), first.delivery) == (["Order", "Parcel"], ["vip"], "exclusive")
    assert (list(second.types), second.where, second.priority, second.delivery) == (
        ["Payment"],
        "true",
        3,
        "broadcast",
    )
    assert (list(handler.spec.outputs), handler.spec.queue) == (["Note", "Payment"], "slow")
    assert (handler.spec.max_concurrency, handler.spec.retry.max_attempts) == (4, 7)
    assert handler.spec.timeouts.heartbeat.seconds == 2
    assert handler.consumes == {"Order": Order, "Parcel": None, "Payment": Payment}
    # Types known by name alone are another's to register.
    assert set(worker._registry.models) == {"Order", "Payment"}


def test_a_types_spec_is_the_models_name_docstring_and_schema() -> None:
    spec = type_spec(Order)
    assert (spec.name, spec.description) == ("Order", "What a customer asks for.")
    assert from_struct(spec.schema)["properties"]["order_id"]["type"] == "string"
    assert "amountCents" in from_struct(type_spec(Payment).schema)["properties"]
    assert type_spec(Payment).description == ""


def test_names_that_are_taken_or_none_are_refused() -> None:
    worker = Worker()
    worker.task("k")(lambda: None)
    with pytest.raises(ValueError, match="registered already"):
        worker.task("k")(lambda: None)
    with pytest.raises(ValueError, match="the server's"):
        worker.task("agent:x")(lambda: None)
    with pytest.raises(ValueError, match="cannot name an artifact type"):
        worker.agent(consumes="no name")(input_only)
    worker.agent(consumes=Order)(input_only)
    other = type("Order", (BaseModel,), {})
    with pytest.raises(ValueError, match="two models are called 'Order'"):
        worker.agent(consumes=other)(by_place)
    with pytest.raises(ValueError, match="slots"):
        Worker(slots=0)


def test_heartbeats_are_automatic_for_async_code_only() -> None:
    worker = Worker()

    async def beat(value: Any) -> None: ...

    worker.task("async")(beat)
    worker.task("sync")(lambda: None)
    worker.task("asked", auto_heartbeat=True)(lambda: None)
    found = {kind: handler.auto_heartbeat for kind, handler in worker._registry.handlers.items()}
    assert found == {"async": True, "sync": False, "asked": True}
    assert all(isinstance(handler, TaskHandler) for handler in worker._registry.handlers.values())


# -- payloads -------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)


@given(JSON)
def test_json_comes_back_as_it_went_in(data: Any) -> None:
    value = Value()
    fill_value(value, data)
    assert from_value(Value.FromString(value.SerializeToString())) == data


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), JSON))
def test_objects_come_back_as_they_went_in(data: dict[str, Any]) -> None:
    struct = Struct()
    fill_struct(struct, data)
    assert from_struct(Struct.FromString(struct.SerializeToString())) == data


def test_a_whole_number_that_is_no_exact_integer_comes_as_the_float_that_it_is() -> None:
    for number in (1e300, -(2.0**53)):
        found = from_value(Value(number_value=number))
        assert type(found) is float
        fill_value(Value(), found)
    assert type(from_value(Value(number_value=2.0**53 - 1))) is int


def test_models_dates_and_the_like_become_json() -> None:
    class Color(enum.StrEnum):
        RED = "red"

    at, key = dt.datetime(2026, 1, 1, tzinfo=dt.UTC), uuid.uuid4()
    value = Value()
    fill_value(value, {"at": at, "key": key, "color": Color.RED, "models": (Payment(amountCents=1),)})
    assert from_value(value) == {
        "at": "2026-01-01T00:00:00Z",
        "key": str(key),
        "color": "red",
        "models": [{"amountCents": 1}],
    }
    assert type(from_value(Value(number_value=3.0))) is int
    assert from_value(Value()) is None


def test_a_kind_tells_no_schema_that_cannot_be_said_or_is_too_long() -> None:
    """FV-6: it is for people, and no reason to refuse a worker."""
    worker = Worker()

    async def odd(given: Any) -> Any:
        raise NotImplementedError

    many = enum.Enum("many", {f"n{n}": f"{'x' * 100}{n}" for n in range(2000)})  # type: ignore[misc]  # made here
    odd.__annotations__ = {"given": Callable[[], None], "return": many}
    worker.task("odd")(odd)
    handler = worker._registry.handlers["odd"]
    assert isinstance(handler, TaskHandler)
    assert not handler.spec.HasField("input_schema")
    assert not handler.spec.HasField("output_schema")


def test_a_version_is_one_word() -> None:
    with pytest.raises(ValueError, match="a version is at most 64 letters"):
        Worker().task("kind", version="1 2")(lambda: None)
