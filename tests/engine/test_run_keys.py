"""A run's own key, and the queue and urgency of its tasks, for runs of definitions and of code, over two servers."""

import asyncio
from typing import Any

import pytest
from tests.engine.database import Database
from tests.engine.servers import Roles
from tests.engine.test_graph_runs import define, step
from tests.engine.workers import Worker
from tests.engine.world import AT_ONCE, ROOT, check_all, key, principal, seconds

from millstream.application.workflow_runs import NewRun
from millstream.domain.errors import NotFound
from millstream.domain.runs import RunStatus


def keyed(**fields: Any) -> NewRun:
    """A run with a key of its own."""
    return NewRun("w", business_key="order 7", **fields)


async def test_a_run_with_the_key_of_one_that_stands_is_that_one(roles: Roles, database: Database) -> None:
    """FV-3: over both servers, whoever asks; a call's own key is looked at first, and tells whether it had begun it."""
    define(roles, step("a"))
    here, there = roles.publisher.workflow_runs, roles.worker.workflow_runs
    first = await here.execute(ROOT, keyed(), key("call"))
    assert (first.replayed, first.existing) == (False, False)
    for server, who in ((here, ROOT), (there, principal("somebody else"))):
        again = await server.execute(who, keyed(), None)
        assert (again.run.id, again.replayed, again.existing) == (first.run.id, False, True)
    replayed = await there.execute(ROOT, keyed(), key("call"))
    assert (replayed.run.id, replayed.replayed, replayed.existing) == (first.run.id, True, False)
    late = await there.execute(ROOT, keyed(), key("other call"))
    assert (late.run.id, late.replayed, late.existing) == (first.run.id, False, True)
    late = await here.execute(ROOT, keyed(), key("other call"))
    assert (late.run.id, late.replayed, late.existing) == (first.run.id, True, True)
    assert await database.value("SELECT count(*) FROM run") == 1
    assert (await here.execute(ROOT, NewRun("w", business_key="order 8"), None)).run.id != first.run.id
    await check_all(database)


async def test_many_at_once_begin_one_run(roles: Roles, database: Database) -> None:
    """FV-3"""
    define(roles, step("a"))
    servers = (roles.publisher, roles.worker) * 5
    begun = await asyncio.gather(*(server.workflow_runs.execute(ROOT, keyed(), None) for server in servers))
    assert len({each.run.id for each in begun}) == 1
    assert sum(not each.existing for each in begun) == 1
    await check_all(database)


@pytest.mark.parametrize("ending", ["failed", "cancelled", "completed"])
async def test_a_run_that_failed_or_was_cancelled_frees_its_key(roles: Roles, database: Database, ending: str) -> None:
    """FV-3: while the key of the call that began it keeps replaying."""
    define(roles, step("a", retry=AT_ONCE))
    here, there = roles.publisher, roles.worker
    async with Worker(there, kinds=["a"]) as worker:
        first = (await here.workflow_runs.execute(ROOT, keyed(), key("call"))).run
        lease = await worker.take()
        if ending == "failed":
            await worker.fail(lease, retryable=False)
        elif ending == "cancelled":
            await here.runs.cancel(ROOT, first.id, "", None)
            await worker.fail(lease)
        else:
            await worker.complete(lease)
        ended = await here.workflow_runs.result(ROOT, first.id, 5)
        assert ended.run.status is RunStatus[ending.upper()]
        again = (await there.workflow_runs.execute(ROOT, keyed(), None)).run
        assert (again.id == first.id) == (ending == "completed")
        assert (await there.workflow_runs.execute(ROOT, keyed(), key("call"))).run.id == first.id
    await check_all(database)


async def test_a_key_holds_for_its_time(roles: Roles, database: Database) -> None:
    """FV-3"""
    define(roles, step("a"))
    runs = roles.publisher.workflow_runs
    first = (await runs.execute(ROOT, keyed(business_ttl_us=seconds(60)), None)).run
    await database.pass_time(59)
    assert (await runs.execute(ROOT, keyed(), None)).run.id == first.id
    await database.pass_time(2)
    assert (await runs.execute(ROOT, keyed(), None)).run.id != first.id


async def test_tasks_that_name_no_queue_take_that_of_their_run(roles: Roles, database: Database) -> None:
    """FV-3: and its urgency; those that name theirs keep it."""
    define(roles, step("a"), step("b", queue="own", priority=3))
    run = (await roles.publisher.workflow_runs.execute(ROOT, NewRun("w", queue="fast", priority=9), None)).run
    rows = await database.rows("SELECT kind, queue, -urgency AS priority FROM task ORDER BY kind")
    assert [tuple(row.values()) for row in rows] == [("a", "fast", 9), ("b", "own", 3)]
    assert await database.value(f"SELECT queue FROM run WHERE id = '{run.id}'") == "fast"


async def test_there_must_be_a_workflow_or_code_of_the_name(roles: Roles) -> None:
    """FV-3"""
    with pytest.raises(NotFound, match="there is no workflow 'nothing'"):
        await roles.publisher.workflow_runs.execute(ROOT, NewRun("nothing", business_key="k"), None)
