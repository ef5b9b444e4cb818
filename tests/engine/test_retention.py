"""Retention: what is finished goes when its days have passed, and nothing else does."""

import pytest
from tests.engine.database import Database
from tests.engine.servers import Roles, Start, server
from tests.engine.workers import Worker, chain_worker
from tests.engine.world import ROOT, agent, check_all, key, made, order, register, seconds

from millstream.application.views.tasks import NewTask
from millstream.application.views.types import TypeSpec
from millstream.domain.agents import Collect
from millstream.domain.errors import NotFound
from millstream.domain.runs import RunStatus
from millstream.store import lane

DAY_S = 86_400
TABLES = ("run", "task", "attempt", "event", "artifact")


async def counts(database: Database) -> dict[str, int]:
    """Rows by table."""
    return {table: await database.value(f"SELECT count(*) FROM {table}") for table in TABLES}


async def test_finished_runs_go_with_all_that_is_theirs(spread: Roles, database: Database) -> None:
    """Rule 15: tasks, attempts and events go with their run; artifacts have days of their own."""
    async with chain_worker(spread.worker):
        result = await spread.publisher.artifacts.publish_sync(ROOT, order(), None, 10)
    await database.pass_time(7 * DAY_S - 60)
    await spread.worker.loops.sweep()
    assert await counts(database) == {"run": 1, "task": 3, "attempt": 3, "event": 15, "artifact": 4}
    await database.pass_time(120)
    await spread.worker.loops.sweep()
    assert await counts(database) == {"run": 0, "task": 0, "attempt": 0, "event": 0, "artifact": 4}
    assert (await spread.publisher.artifacts.get(ROOT, result.artifacts[3].id)).type == "Notification"
    await database.pass_time(23 * DAY_S)
    await spread.publisher.loops.sweep()
    assert await counts(database) == dict.fromkeys(TABLES, 0)


async def test_what_is_open_stays(start: Start, database: Database) -> None:
    """Rule 15: a run that still runs, or ended lately, is never dropped, however old."""
    here, there = await start(run_retention_days=1)
    await register(here, ("Order",), agent("plain", "Order"))
    open_run = (await here.artifacts.publish(ROOT, order(), None)).correlation_id
    waiting = (await here.tasks.create(ROOT, NewTask("nobody"), None)).task
    await database.pass_time(10 * DAY_S)
    for service in (here, there):
        await service.loops.poll()
        await service.loops.sweep()
    assert (await here.runs.get(ROOT, open_run)).status is RunStatus.RUNNING
    assert (await there.tasks.get(ROOT, waiting.id)).task.id == waiting.id
    async with Worker(there, kinds=["agent:plain"]) as worker:
        await worker.complete(await worker.take())
    await there.loops.sweep()
    assert (await here.runs.get(ROOT, open_run)).status is RunStatus.COMPLETED
    await check_all(database)


async def test_artifacts_stay_their_days(start: Start, database: Database) -> None:
    """Rule 15: artifact_retention_days count from publication; a younger one of an old cascade stays."""
    here, there = await start()
    await register(here, ("Order", "Payment"))
    first = await here.artifacts.publish(ROOT, order(), None)
    await database.pass_time(20 * DAY_S)
    await here.loops.poll()
    await here.artifacts.publish(ROOT, made("Payment", first.correlation_id), None)
    await database.pass_time(11 * DAY_S)
    await there.loops.sweep()
    assert await database.rows("SELECT type FROM artifact") == [{"type": "Payment"}]


async def test_a_type_keeps_its_artifacts_for_days_of_its_own(start: Start, database: Database) -> None:
    """Rule 15: shorter or longer than the server's setting; what an open run's tasks were given stays."""
    here, there = await start()
    for name, days in (("Brief", 2), ("Long", 100), ("Usual", 0), ("Waiting", 2)):
        await here.types.create(ROOT, TypeSpec(name, retention_days=days), None)
        await here.artifacts.publish(ROOT, made(name), None)
    await register(here, (), agent("idle", "Waiting"))
    held = await here.artifacts.publish(ROOT, made("Waiting"), None)
    left = []
    for passing in (1.9, 0.2, 28.0, 80.0):
        await database.pass_time(passing * DAY_S)
        for _ in range(2):
            await there.loops.sweep()
        left.append([row["type"] for row in await database.rows("SELECT type FROM artifact ORDER BY type")])
    assert left == [
        ["Brief", "Long", "Usual", "Waiting", "Waiting"], ["Long", "Usual", "Waiting"], ["Long", "Waiting"],
        ["Waiting"],
    ]  # fmt: skip
    assert (await here.artifacts.get(ROOT, held.artifact_id)).type == "Waiting"


async def test_a_gate_of_the_tenant_keeps_what_it_holds(start: Start, database: Database) -> None:
    """Rule 15, FL-14: what waits, though its own cascade has ended, and then what its task was given."""
    here, there = await start(artifact_retention_days=1)
    batch = Collect(2, seconds(20 * DAY_S))
    await register(here, ("Order",), agent("packer", "Order", batch=batch, scope="tenant"))

    async def after_days(days: float) -> int:
        await database.pass_time(days * DAY_S)
        for _ in range(2):
            await there.loops.sweep()
        return len(await database.rows("SELECT id FROM artifact"))

    await here.artifacts.publish(ROOT, order(), None)
    assert await after_days(3) == 1
    await here.artifacts.publish(ROOT, order(), None)
    assert await after_days(3) == 2
    async with Worker(there, kinds=["agent:packer"]) as worker:
        lease = await worker.take()
        assert len(lease.artifacts) == 2
        await worker.complete(lease)
    assert await after_days(3) == 0


async def test_a_live_key_keeps_what_its_replay_needs(start: Start, database: Database) -> None:
    """Contract: retention never removes what a live key needs: the run, and the artifacts of the answer."""
    here, there = await start(run_retention_days=1, artifact_retention_days=1, idempotency_ttl_s=5 * DAY_S)
    async with chain_worker(there):
        first = await here.artifacts.publish_sync(ROOT, order(), key("k"), 10)
        await here.artifacts.publish_sync(ROOT, order(), None, 10)
    task = (await here.tasks.create(ROOT, NewTask("sums"), None)).task
    await here.tasks.cancel(ROOT, task.id, "", key("c", "CancelTask"))
    run = await here.artifacts.publish(ROOT, made("Notification"), None)
    hanging = await here.artifacts.publish(ROOT, order(), None)
    await here.runs.cancel(ROOT, hanging.correlation_id, "", key("c", "CancelRun"))
    await database.pass_time(4 * DAY_S)
    await there.loops.sweep()
    again = await there.artifacts.publish_sync(ROOT, order(), key("k"), 10)
    assert [item.id for item in again.artifacts] == [item.id for item in first.artifacts]
    assert (await there.tasks.cancel(ROOT, task.id, "", key("c", "CancelTask"))).replayed
    assert (await there.runs.cancel(ROOT, hanging.correlation_id, "", key("c", "CancelRun")))[1]
    with pytest.raises(NotFound):
        await there.runs.get(ROOT, run.correlation_id)
    await database.pass_time(2 * DAY_S)
    await there.loops.sweep()
    assert await counts(database) == dict.fromkeys(TABLES, 0)


async def test_a_reopened_cascade_begins_its_days_anew(spread: Roles, database: Database) -> None:
    """Rules 15, 24: days count from the last end."""
    await register(spread.publisher, ("Order",))
    first = await spread.publisher.artifacts.publish(ROOT, order(), None)
    await database.pass_time(6 * DAY_S)
    await spread.worker.loops.poll()
    await spread.worker.artifacts.publish(ROOT, order(correlation_id=first.correlation_id), None)
    await database.pass_time(6 * DAY_S)
    await spread.publisher.loops.sweep()
    assert (await spread.publisher.runs.get(ROOT, first.correlation_id)).artifact_count == 2


async def test_publishing_into_a_cascade_that_is_gone_begins_it_anew(spread: Roles, database: Database) -> None:
    """Rule 24: reopening is within retention; afterwards the id is free."""
    await register(spread.publisher, ("Order",))
    first = await spread.publisher.artifacts.publish(ROOT, order(), None)
    await database.pass_time(8 * DAY_S)
    await spread.worker.loops.sweep()
    await spread.publisher.artifacts.publish(ROOT, order(correlation_id=first.correlation_id), None)
    run = await spread.worker.runs.get(ROOT, first.correlation_id)
    assert (run.status, run.artifact_count) == (RunStatus.COMPLETED, 1)


async def test_a_run_in_use_is_not_dropped(start: Start, database: Database) -> None:
    """Invariant: an acknowledged write is never lost: a run that somebody just opens again is left alone."""
    here, _ = await start()
    await register(here, ("Order",), agent("plain", "Order"))
    await here.artifacts.publish(ROOT, order(), None)
    done = (await here.tasks.create(ROOT, NewTask("sums"), None)).task
    await here.tasks.cancel(ROOT, done.id, "", None)
    await database.pass_time(8 * DAY_S)
    async with database.other() as connection, connection.transaction():
        await connection.execute("SELECT 1 FROM run WHERE id = $1::text::uuid FOR UPDATE", done.run_id)
        await here.loops.sweep()
        assert await database.value("SELECT count(*) FROM run") == 2
    await here.loops.sweep()
    assert await database.value("SELECT count(*) FROM run") == 1


async def test_a_server_that_left_leaves_nothing(start: Start, database: Database) -> None:
    """Rule 3: sealed lanes are dropped with their batches, both of a server's; those of live servers stay."""
    here, there = await start()
    await register(here, ("Order",))
    async with server(database) as third:
        await third.artifacts.publish(ROOT, order(), None)
        lanes = {third.engine.lane_id, third.engine._blocked.lane.id}
        assert await database.value("SELECT count(*) FROM commit_batch WHERE lane = ANY($1::text[]::uuid[])", lanes)
    assert third.engine.lane_id not in (await here.core.stores.maintenance.peers(here.engine.lane_id, 1))[0]
    await here.loops.sweep()
    assert {str(row["id"]) for row in await database.rows("SELECT id FROM lane")} == {
        each.engine.lane_id for each in (here, there)
    } | {each.engine._blocked.lane.id for each in (here, there)}
    left = "SELECT count(*) FROM commit_batch WHERE lane = ANY($1::text[]::uuid[])"
    assert await database.value(f"{left} AND artifacts = ''", lanes) == 0
    # What it stored is the feed of those who watch, and kept as long as they may resume.
    await database.pass_time(3600 + 301)
    await here.loops.sweep()
    assert await database.value(left, lanes) == 0


async def test_a_lane_keeps_few_numbers(
    start: Start, database: Database, owner_path: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 3: a lane's old batch numbers are dropped while it lives, on both paths, but for those of artifacts."""
    monkeypatch.setattr(lane, "_KEPT_BATCHES", 10)
    here, _ = await start(owner_path=owner_path)
    await register(here, ("Order",))
    for _ in range(35):
        await here.tasks.create(ROOT, NewTask("k"), None)
    for _ in range(10):
        await here.artifacts.publish(ROOT, order(), None)
    lane_id = here.engine.lane_id
    kept = "SELECT count(*) FROM commit_batch WHERE lane = $1::text::uuid AND artifacts"
    assert await database.value(f"{kept} = ''", lane_id) <= 10
    assert await database.value(f"{kept} <> ''", lane_id) == 10
