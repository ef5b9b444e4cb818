"""Two servers behind one Envoy for the whole session, with the example's worker; and a smaller stack with API keys."""

from __future__ import annotations

import json
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from hashlib import sha256
from pathlib import Path

import asyncpg
import grpc
import httpx
import pytest
from tests.e2e.stack import ORDERS, Process, Stack, rest_client, running_stack
from tests.e2e.stored import Stored

AGENTS = Path(__file__).with_name("agents.py")

# Leases and graces are short, so that a worker that was killed is missed within a second.
SHORT = {"lease_s": "2", "reconnect_grace_s": "0.2", "cancel_grace_s": "0.5"}

# What each key may do, and where; the key itself is its id.
KEYS = [
    {"id": "viewer-key", "roles": ["viewer"], "tenant": "acme"},
    {"id": "operator-key", "roles": ["operator"], "tenant": "acme"},
    {"id": "worker-key", "roles": ["worker"], "tenant": "acme"},
    {"id": "admin-key", "roles": ["admin"], "tenant": "acme"},
    {"id": "second-operator-key", "roles": ["operator"], "tenant": "acme"},
    {"id": "publisher-key", "roles": ["worker"], "tenant": "acme"},
    {"id": "named-key", "roles": ["worker"], "tenant": "acme", "agent": "named"},
    {"id": "labelled-key", "roles": ["worker"], "tenant": "acme", "agent": "labelled", "labels": ["eu", "secret"]},
    {"id": "stranger-key", "roles": ["worker"], "tenant": "acme", "agent": "stranger", "labels": ["eu"]},
    {"id": "other-key", "roles": ["admin"], "tenant": "umbrella"},
]


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """Commands that are started here end at Ctrl-C: a shell that runs the tests in the background has them ignore
    SIGINT, and whatever they start would inherit that."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
async def stack() -> AsyncIterator[Stack]:
    """PostgreSQL, two servers in developer mode, Envoy."""
    async with running_stack({"auth_mode": "developer", **SHORT}, servers=2) as running:
        yield running
    assert not running.faults()


@pytest.fixture(scope="session")
async def orders(stack: Stack) -> Process:
    """examples/orders.py as a worker of the default tenant, through the proxy."""
    return await stack.worker(ORDERS, "orders")


@pytest.fixture(scope="session")
async def agents(stack: Stack) -> Process:
    """The agents of agents.py, in one process."""
    return await stack.worker(AGENTS, "agents")


@pytest.fixture(scope="session")
async def rest(stack: Stack) -> httpx.AsyncClient:
    """A REST client of the default tenant, where the workers are."""
    return await stack.rest()


@pytest.fixture
def tenant() -> str:
    """A tenant that is nobody else's."""
    return f"tenant-{uuid.uuid4().hex[:12]}"


@pytest.fixture
async def own(stack: Stack, tenant: str) -> AsyncIterator[httpx.AsyncClient]:
    """A REST client of the test's own tenant, which has the type Note."""
    async with rest_client(stack.url, x_tenant=tenant) as client:
        made = await client.post("/api/v1/artifact-types", json={"name": "Note"})
        assert made.status_code == 201, made.text
        yield client


@pytest.fixture
def stored(database: asyncpg.Connection[asyncpg.Record], tenant: str) -> Stored:
    """What the database holds of the test's own tenant."""
    return Stored(database, tenant)


@pytest.fixture(scope="session")
async def database(stack: Stack) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A connection to the stack's database."""
    connection = await asyncpg.connect(stack.database.url)
    yield connection
    await connection.close()


@pytest.fixture(scope="session")
async def through_proxy(stack: Stack) -> grpc.aio.Channel:
    """A gRPC channel through Envoy."""
    return await stack.channel()


@pytest.fixture(scope="session")
async def servers(stack: Stack) -> list[grpc.aio.Channel]:
    """A gRPC channel to each server itself."""
    return [await stack.channel(stack.native(number)) for number in range(len(stack.ports))]


@pytest.fixture(scope="session")
async def locked() -> AsyncIterator[Stack]:
    """One server that wants API keys, and whose queue is full with one command."""
    keys = [{**key, "sha256": sha256(str(key["id"]).encode()).hexdigest()} for key in KEYS]
    settings = {"api_keys": json.dumps(keys), "queue_max_commands": "1", "batch_max_commands": "1"}
    async with running_stack({**SHORT, **settings}) as running:
        yield running
    assert not running.faults()
