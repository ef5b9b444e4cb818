"""Runs that begin each other come to an end."""

import asyncio

from tests.engine.database import Database
from tests.engine.servers import Roles, Start
from tests.engine.test_graph_retries import ended
from tests.engine.test_graph_runs import define, execute, step
from tests.engine.workers import Worker
from tests.engine.world import ROOT, check_all, kinds_of

from millstream.application.paging import PageRequest
from millstream.application.views.runs import RunQuery
from millstream.domain.runs import RunStatus
from millstream.domain.workflows import OnFailure, StepKind

RUNS = "SELECT count(*) FROM run"


async def test_a_workflow_that_begins_itself_ends(start: Start, database: Database) -> None:
    """Engine-rule 6: there are max_depth runs, and each says why; a retry comes to the same."""
    here, there = await start(max_depth=4)
    define(Roles(here, there), step("again", kind=StepKind.WORKFLOW, target="w"))
    run = (await execute(here)).run
    assert (run.status, run.error_code) == (RunStatus.FAILED, "TOO_DEEP")
    assert run.error_message.endswith("4 runs have begun each other, which is the most (max_depth)")
    assert await database.value(RUNS) == 4
    await there.run_operations.retry(ROOT, run.id, "", "", None)
    assert (await ended(here, run.id)).error_code == "TOO_DEEP"
    assert (await kinds_of(there, run.id)).count("RUN_FAILED") == 2
    assert await database.value(RUNS) == 7
    await check_all(database)


async def test_who_begins_itself_is_cancelled_to_the_last(start: Start, database: Database) -> None:
    """WM-4: the cancellation reaches the last one, which no other follows."""
    here, there = await start(max_depth=4)
    define(
        Roles(here, there), step("again", kind=StepKind.WORKFLOW, target="w", on_failure=OnFailure.CONTINUE),
        step("last", "again"),
    )  # fmt: skip
    async with Worker(there, kinds=["last"]) as worker:
        running = asyncio.create_task(execute(here))
        lease = await worker.take()
        page = await here.runs.list(ROOT, RunQuery(), PageRequest())
        assert len(page.items) == 4
        first = page.items[-1].id
        await there.runs.cancel(ROOT, first, "enough", None)
        await worker.told()
        await worker.complete(lease)
        assert (await running).run.status is RunStatus.CANCELLED
        for each in page.items:
            assert (await ended(there, each.id)).status is RunStatus.CANCELLED
    assert await database.value(RUNS) == 4
    await check_all(database)
