"""What the crashes found, step by step: a server that goes on from an outdated copy, as one does that was stopped
between reading and writing; a run that cannot be written; a row that a stopped server holds (architecture.md, the owner
path; engine-rules 2, 9).

Services in this process, without their loops, so that each step comes when the test says so.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from tests.crash import checker
from tests.crash.processes import Postgres

from millstream.adapters.metrics import Metrics
from millstream.application.engine.commands import CancelTask, Due
from millstream.application.engine.sessions import Session
from millstream.application.views.leases import Lease
from millstream.application.views.tasks import NewTask
from millstream.application.views.types import TypeSpec
from millstream.config import Settings
from millstream.domain.agents import AgentSpec, Subscription
from millstream.domain.artifacts import NewArtifact
from millstream.domain.errors import Unavailable
from millstream.domain.principals import Principal, permissions_of
from millstream.domain.struct_wire import encode_value
from millstream.store import migrations
from millstream.wiring import Service, wire

pytestmark = [pytest.mark.crash]

CALLER = Principal("test", "default", permissions_of(["admin"]))
KIND = "crash.echo"


@contextlib.asynccontextmanager
async def serving(url: str) -> AsyncIterator[Service]:
    """A service whose engine runs, and nothing else of it."""
    settings = Settings(database_url=url, auth_mode="developer", pool_size=2)
    service = await wire(settings, Metrics())
    service.engine.clock.set(await service.core.stores.maintenance.now_us())
    running = asyncio.create_task(service.engine.run())
    try:
        yield service
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await service.close()


@pytest.fixture(scope="module")
async def url(postgres: Postgres) -> str:
    """A migrated database."""
    found = await postgres.create_database("outdated")
    await migrations.upgrade(found)
    return found


@pytest.fixture
async def servers(url: str) -> AsyncIterator[tuple[Service, Service]]:
    """Two servers on it."""
    async with serving(url) as first, serving(url) as second:
        yield first, second


def connect(service: Service, worker: str, kind: str = KIND) -> asyncio.Event:
    """Connect a worker with room; returns what is set when a lease arrives."""
    arrived = asyncio.Event()

    def push(leases: list[Lease], *_: Any) -> None:
        if leases:
            arrived.set()

    key = (CALLER.tenant, "default", kind)
    service.engine.connect(Session(f"session of {worker}", CALLER.tenant, worker, worker, (key,), push, credit=10))
    return arrived


async def test_a_timer_that_fires_late_does_not_take_a_running_task_back(
    servers: tuple[Service, Service], url: str
) -> None:
    owner, other = servers
    made = await owner.tasks.create(CALLER, NewTask(KIND, encode_value({"key": "k"}), delay_us=100_000), None)
    assert owner.engine.cache.task(made.task.id) is not None
    await asyncio.sleep(0.2)
    arrived = connect(other, "worker")
    await other.engine.submit_all([Due(task_ids=(made.task.id,))], urgent=True)
    async with asyncio.timeout(5):
        await arrived.wait()
    # The owner has not heard of it: its copy says that the task is scheduled still.
    await owner.engine.submit_all([Due(task_ids=(made.task.id,))], urgent=True)
    connection = await asyncpg.connect(url)
    try:
        row = await connection.fetchrow(
            "SELECT t.status, t.attempt, r.last_seq, (SELECT count(*) FROM event e WHERE e.run_id = r.id) AS events "
            "FROM task t JOIN run r ON r.id = t.run_id WHERE t.id = $1::text::uuid",
            made.task.id,
        )
    finally:
        await connection.close()
    assert row is not None
    assert (row["status"], row["attempt"], row["last_seq"], row["events"]) == (3, 1, 4, 4)
    assert not (await checker.check(url, [], None)).gaps


async def test_a_run_that_cannot_be_written_holds_no_other_up(servers: tuple[Service, Service], url: str) -> None:
    """Whatever made it so: what conflicts for ever is found by halves, and fails alone."""
    owner, other = servers
    new = NewTask(KIND, encode_value({"key": "k"}), delay_us=60_000_000)
    made = [(await owner.tasks.create(CALLER, new, None)).task for _ in range(9)]
    poison = made[4]
    connection = await asyncpg.connect(url)
    try:
        # Its next number is taken.
        await connection.execute(
            "INSERT INTO event SELECT day, run_id, 3, type, at_us FROM event WHERE run_id = $1::text::uuid AND seq = 2",
            poison.run_id,
        )
    finally:
        await connection.close()
    commands = [CancelTask(task_ids=(task.id,), locked=True, tenant=CALLER.tenant) for task in made]
    outcomes = await other.engine.submit_all(commands)
    assert [task.id for task, found in zip(made, outcomes, strict=True) if isinstance(found, Unavailable)] == [
        poison.id
    ]


async def test_a_limited_agent_whose_row_is_held_elsewhere_holds_nobody_up(
    servers: tuple[Service, Service], url: str
) -> None:
    """A server that stops while it leases for the agent holds its row for 2 s."""
    service, _ = servers
    await service.types.create(CALLER, TypeSpec("Gated"), None)
    spec = AgentSpec("gated", subscriptions=(Subscription(("Gated",)),), max_concurrency=1)
    await service.agents.create(CALLER, spec, None)
    arrived = connect(service, "worker", "agent:gated")
    connection = await asyncpg.connect(url)
    try:
        stopped = connection.transaction()
        await stopped.start()
        await connection.execute("SELECT FROM agent WHERE name = 'gated' FOR UPDATE")
        await service.artifacts.publish(CALLER, NewArtifact("Gated"), None)
        # A lock that is waited for costs half a second each time.
        for _ in range(10):
            async with asyncio.timeout(0.4):
                await service.tasks.create(CALLER, NewTask("other"), None)
        assert not arrived.is_set()
        await stopped.rollback()
    finally:
        await connection.close()
    async with asyncio.timeout(5):
        await arrived.wait()
