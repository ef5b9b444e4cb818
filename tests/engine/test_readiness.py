"""Readiness (WM-12): a server that cannot serve says which of its needs is not met, and what to do."""

import asyncio
import time
from typing import Any

import pytest
from tests.engine.database import Database
from tests.engine.servers import Start, eventually, killed, server, settings_of
from tests.engine.world import ROOT

from millstream.adapters.metrics import Metrics
from millstream.application import readiness
from millstream.application.engine import queue
from millstream.application.readiness import Check
from millstream.application.views.tasks import NewTask
from millstream.store import migrations
from millstream.wiring import Service, wire

NAMES = ["database", "migrations", "engine", "queue", "server"]


async def checks(service: Service) -> dict[str, Check]:
    """What the server says now, its last answer forgotten."""
    service.system.readiness._database.forget()
    return {check.name: check for check in await service.system.checks()}


async def faults(service: Service) -> dict[str, str]:
    """What is not as it has to be, and why; `ok` agrees."""
    found = {name: check.detail for name, check in (await checks(service)).items() if not check.ok}
    assert await service.system.readiness.ok() is (not found)
    return found


async def waits(service: Service) -> bool:
    """Whether a command waits."""
    return len(service.engine.queue) > 0


async def test_a_server_that_can_serve_says_so_of_every_check(start: Start) -> None:
    here, _ = await start()
    assert [*await checks(here)] == NAMES
    assert await faults(here) == {}


async def test_tables_that_are_behind_are_named_with_the_fix_and_newer_ones_are_served(
    start: Start, database: Database
) -> None:
    here, _ = await start()
    head = migrations.head()
    await database.execute("UPDATE schema_version SET version_num = '0001'")
    assert await faults(here) == {
        "migrations": f"at 0001, this server needs {head}: run `millstream migrate up`",
    }
    await database.execute("UPDATE schema_version SET version_num = '9999'")
    found = await checks(here)
    assert found["migrations"] == Check("migrations", True, f"at 9999, of a newer release; this one brings {head}")
    await database.execute("DELETE FROM schema_version")
    assert "it was never migrated" in (await faults(here))["migrations"]
    await database.execute("DROP TABLE schema_version")
    assert "it was never migrated" in (await faults(here))["migrations"]


async def test_a_database_that_does_not_answer_is_named_without_its_address(
    start: Start, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that hangs, and one that is gone."""
    here, _ = await start()
    monkeypatch.setattr(readiness, "ANSWER_S", 0.05)
    async with database.other() as other, other.transaction():
        await other.execute("LOCK TABLE schema_version IN ACCESS EXCLUSIVE MODE")
        assert await faults(here) == {"database": "it does not answer; see that it runs and can be reached"}
    monkeypatch.undo()
    assert await faults(here) == {}
    await here.core.stores.database.close()
    assert [*await faults(here)] == ["database"]
    assert [*await checks(here)] == ["database", "engine", "queue", "server"], "what depends on it is not known"


async def test_a_database_that_may_not_be_read_is_named(
    start: Start, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    here, _ = await start()
    await database.execute("ALTER TABLE schema_version RENAME COLUMN version_num TO other")
    assert await faults(here) == {"database": "it cannot be read; the server's log has why"}
    assert "UndefinedColumn" in caplog.text


async def test_a_part_that_ended_is_named(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever ends it; its text may be a secret, and stands in the log alone."""

    async def fails() -> None:
        raise RuntimeError("postgresql://u:secret@h/d")

    async def ends() -> None:
        return

    service = await wire(settings_of(database), Metrics())
    monkeypatch.setattr(service.loops, "run", fails)
    monkeypatch.setattr(service.core.pauses, "run", ends)
    await service.start()
    try:
        assert await faults(service) == {
            "engine": "parts ended: loops (RuntimeError), pauses (without an error); the log has why; "
            "start this server again"
        }
        assert "secret" in caplog.text
        assert service.broken.is_set()
    finally:
        await service.close()


async def test_a_full_queue_is_a_fault_only_where_it_does_not_move(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it moves, callers are told to come again; to send all of them to other servers would fill those."""
    now = time.monotonic()
    async with server(database, queue_max_commands=1) as here:
        await killed(here)
        waiting = asyncio.ensure_future(here.tasks.create(ROOT, NewTask("k"), None))
        await eventually(lambda: waits(here))
        assert (await checks(here))["queue"] == Check("queue", True, "full; callers are told to come again")
        assert await faults(here) == {}
        monkeypatch.setattr(queue, "monotonic", lambda: now + 60)
        assert "nothing was taken from it for" in (await faults(here))["queue"]
        here.engine.queue.take(1, 1)
        assert await faults(here) == {}
        monkeypatch.undo()
        waiting.cancel()


async def test_a_queue_that_was_idle_for_long_and_is_suddenly_full_moves(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    async with server(database, queue_max_commands=1) as here:
        await killed(here)
        monkeypatch.setattr(queue, "monotonic", lambda: now + 3600)
        waiting = asyncio.ensure_future(here.tasks.create(ROOT, NewTask("k"), None))
        await eventually(lambda: waits(here))
        assert await faults(here) == {}
        monkeypatch.undo()
        waiting.cancel()


async def test_a_server_that_drains_says_so_at_once(start: Start) -> None:
    """What the database said last stands; what is known here is never old."""
    here, _ = await start()
    assert await here.system.readiness.ok()
    here.system.readiness.draining = True
    assert not await here.system.readiness.ok()
    assert await faults(here) == {"server": "draining: it is about to end"}


async def test_the_database_is_asked_once_for_all_that_probe_within_a_second(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _ = await start()
    judge, asked = here.system.readiness, 0
    read = judge._reads.schema_revision

    async def counted() -> Any:
        nonlocal asked
        asked += 1
        return await read()

    monkeypatch.setattr(judge._reads, "schema_revision", counted)
    judge._database.forget()
    gone = asyncio.ensure_future(judge.checks())
    await asyncio.sleep(0)
    gone.cancel()  # who goes away takes nobody's answer along
    await asyncio.gather(*(judge.checks() for _ in range(50)))
    await judge.checks()
    assert asked == 1
    judge._database._until_s = 0.0
    await judge.checks()
    assert asked == 2
