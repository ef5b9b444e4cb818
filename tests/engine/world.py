"""Who and what the engine's tests are about: principals, types, agents, and keys."""

import json
from typing import Any

from tests.engine.database import Database

from millstream.application.views.idempotency import Key
from millstream.application.views.types import TypeSpec
from millstream.domain.agents import AgentSpec, Subscription
from millstream.domain.artifacts import Artifact, NewArtifact
from millstream.domain.principals import Principal, permissions_of
from millstream.domain.retry import SECOND_US, RetryPolicy, Timeouts
from millstream.domain.runs import Event, EventType
from millstream.domain.struct_wire import decode_struct, encode_struct
from millstream.wiring import Service

TENANT = "acme"
AT_ONCE = RetryPolicy(initial_us=0, jitter=0.0)
FOREVER = Timeouts(start_to_close_us=0)


def principal(name: str = "root", tenant: str = TENANT, *roles: str, **fields: Any) -> Principal:
    """Somebody; an admin unless roles are given."""
    return Principal(name, tenant, permissions_of([*roles] or ["admin"]), **fields)


ROOT = principal()


def blind(name: str, **fields: Any) -> Principal:
    """Somebody who publishes and reads, but sees only what visibility lets him."""
    allowed = frozenset({"artifacts.publish", "artifacts.read"})
    return Principal(name, TENANT, allowed, fields.get("agent", ""), frozenset(fields.get("labels", ())))


def key(value: str, rpc: str = "Publish", request: str = "") -> Key:
    """An idempotency key; `request` stands for the body."""
    return Key(value, rpc, request.encode().ljust(16, b"\0")[:16])


def order(number: int | str = 1, **fields: Any) -> NewArtifact:
    """An Order to publish."""
    return NewArtifact("Order", encode_struct({"order_id": str(number)}), **fields)


def made(type_name: str, correlation_id: str = "", **fields: Any) -> NewArtifact:
    """Any artifact, with the fields of its payload."""
    return NewArtifact(type_name, encode_struct(fields), correlation_id=correlation_id)


def payload_of(artifact: Artifact) -> dict[str, Any]:
    """The payload of an artifact."""
    return decode_struct(artifact.payload)


def agent(name: str, consumes: str | tuple[str, ...], publishes: str = "", **fields: Any) -> AgentSpec:
    """An agent with one subscription; fields of Subscription and of AgentSpec, by their names."""
    wanted = {field: fields.pop(field) for field in [*fields] if field in Subscription.__slots__}
    outputs = (publishes,) if publishes else ()
    wanted_types = (consumes,) if isinstance(consumes, str) else consumes
    spec: dict[str, Any] = {"retry": AT_ONCE, "timeouts": FOREVER, "outputs": outputs} | fields
    return AgentSpec(name, subscriptions=(Subscription(wanted_types, **wanted),), **spec)


def types(*names: str) -> tuple[TypeSpec, ...]:
    """Types without a schema."""
    return tuple(TypeSpec(name) for name in names)


CHAIN = ("Order", "Payment", "Shipment", "Notification")
CHAIN_AGENTS = (
    agent("payments", "Order", "Payment"),
    agent("shipping", "Payment", "Shipment"),
    agent("notifier", "Shipment", "Notification"),
)
"""The example's cascade: three agents, four artifacts."""


async def register(service: Service, names: tuple[str, ...], *agents: AgentSpec, tenant: str = TENANT) -> None:
    """Register types and agents, as callers do."""
    who = principal(tenant=tenant)
    for name in names:
        await service.types.create(who, TypeSpec(name), None)
    for spec in agents:
        await service.agents.create(who, spec, None)


async def events_of(service: Service, run_id: str, tenant: str = TENANT) -> list[Event]:
    """A run's events, which are numbered 1, 2, 3, ... and agree with the run's own count."""
    run = await service.runs.get(principal(tenant=tenant), run_id)
    events, rest = await service.runs.events(principal(tenant=tenant), run_id, 0, 10_000)
    assert rest is None
    assert [event.seq for event in events] == [*range(1, run.last_seq + 1)]
    return events


async def kinds_of(service: Service, run_id: str) -> list[str]:
    """Names of a run's events in order."""
    return [EventType(event.type).name for event in await events_of(service, run_id)]


async def check_all(database: Database) -> None:
    """What holds for every run at any time: no gap, no double, and counters that agree with the rows."""
    numbering = await database.rows(
        """SELECT run.id::text, last_seq, count(seq) AS found, min(seq) AS first, max(seq) AS last FROM run
        LEFT JOIN event ON event.run_id = run.id GROUP BY run.id
        HAVING count(seq) <> last_seq OR min(seq) <> 1 OR max(seq) <> last_seq"""
    )
    assert numbering == []
    counters = await database.rows(
        """SELECT run.id::text FROM run WHERE
        task_count <> (SELECT count(*) FROM task WHERE run_id = run.id)
        OR open_tasks <> (SELECT count(*) FROM task WHERE run_id = run.id AND status <= 3)
        OR failed_tasks <> (SELECT count(*) FROM task WHERE run_id = run.id AND status = 5)
        OR open_gates <> (SELECT count(*) FROM buffer WHERE run_id = run.id)
        OR artifact_count <> (SELECT count(*) FROM artifact WHERE run_id = run.id)
        OR (finished_us > 0) <> (status > 2)"""
    )
    assert counters == []
    empty = await database.rows("SELECT id::text FROM buffer WHERE parts = '' OR waiting <= 0 OR expires_us = 0")
    assert empty == []


def data_of(event: Event) -> dict[str, Any]:
    """What an event tells."""
    return dict(json.loads(event.data)) if event.data else {}


def seconds(value: float) -> int:
    """Microseconds."""
    return int(value * SECOND_US)
