"""A task's own key: while a task with it stands in its kind, that one is the answer, whoever asks."""

import asyncio

import pytest
from tests.engine.database import Database
from tests.engine.servers import Start
from tests.engine.workers import Worker
from tests.engine.world import ROOT, check_all, key, principal, seconds

from millstream.application.views.tasks import CreatedTask, NewTask
from millstream.domain.runs import TaskStatus
from millstream.domain.struct_wire import encode_value


def order(number: int = 7, kind: str = "sums", **fields: object) -> NewTask:
    """A task with a key of its own."""
    return NewTask(kind, business_key=f"order {number}", **fields)  # type: ignore[arg-type]


async def test_a_task_with_the_key_of_one_that_stands_is_that_one(start: Start, database: Database) -> None:
    """FV-3: over both servers, whoever asks and whatever else the request says; kinds and tenants have keys of their
    own."""
    here, there = await start()
    first = await here.tasks.create(ROOT, order(), None)
    for server, who in ((here, ROOT), (there, principal("somebody else"))):
        again = await server.tasks.create(who, order(input=encode_value("other"), priority=3), None)
        assert again.replayed
        assert again.task.id == first.task.id
    others = (
        await there.tasks.create(ROOT, order(8), None),
        await there.tasks.create(ROOT, order(kind="products"), None),
        await there.tasks.create(principal(tenant="globex"), order(), None),
    )
    assert not any(other.replayed for other in others)
    assert await database.value("SELECT count(*) FROM task") == 4
    await check_all(database)


async def test_many_at_once_make_one(start: Start, database: Database) -> None:
    """FV-3: concurrent calls on both servers, alone and in batches, with call keys and without."""
    here, there = await start()
    keys = [key(f"k{n}") if n % 2 else None for n in range(10)]
    made = await asyncio.gather(
        *(server.tasks.create(ROOT, order(), each) for each in keys for server in (here, there))
    )
    batch = await here.tasks.create_batch(ROOT, [order()] * 5, [None] * 5, None)
    assert all(isinstance(result, CreatedTask) and result.replayed for result in batch.results)
    assert len({created.task.id for created in made}) == 1
    assert sum(not created.replayed for created in made) == 1
    await check_all(database)


@pytest.mark.parametrize("ending", ["failed", "cancelled", "completed"])
async def test_a_task_that_failed_or_was_cancelled_frees_its_key(start: Start, database: Database, ending: str) -> None:
    """FV-3: a completed one keeps it for as long as it holds."""
    here, there = await start()
    async with Worker(there, kinds=["sums"]) as worker:
        first = (await here.tasks.create(ROOT, order(), None)).task
        lease = await worker.take()
        if ending == "failed":
            await worker.fail(lease, retryable=False)
        elif ending == "cancelled":
            await here.tasks.cancel(ROOT, first.id, "", None)
            await worker.fail(lease)
        else:
            await worker.complete(lease)
        again = await asyncio.gather(*(server.tasks.create(ROOT, order(), None) for server in (here, there)))
        ids = {created.task.id for created in again}
        assert len(ids) == 1
        assert (ids == {first.id}) == (ending == "completed")
    await check_all(database)


async def test_a_key_holds_for_its_time(start: Start, database: Database) -> None:
    """FV-3: and what it answers with is kept so long."""
    here, there = await start(run_retention_days=1)
    async with Worker(there, kinds=["sums"]) as worker:
        first = (await here.tasks.create(ROOT, order(business_ttl_us=seconds(3 * 86_400)), None)).task
        await worker.complete(await worker.take())
        await database.pass_time(2 * 86_400)
        await here.loops.sweep()
        assert (await there.tasks.create(ROOT, order(), None)).task.id == first.id
        await database.pass_time(86_401)
        again = await there.tasks.create(ROOT, order(), None)
        assert again.task.id != first.id
        assert again.task.status is not TaskStatus.COMPLETED


async def test_the_key_of_the_call_is_looked_at_first(start: Start) -> None:
    """FV-3: a header key keeps giving its first answer, also when the task's own key is free again."""
    here, there = await start()
    first = await here.tasks.create(ROOT, order(), key("call", "CreateTask"))
    joined = await there.tasks.create(ROOT, order(), key("other call", "CreateTask"))
    assert joined.task.id == first.task.id
    await here.tasks.cancel(ROOT, first.task.id, "", None)
    for name in ("call", "other call"):
        again = await here.tasks.create(ROOT, order(), key(name, "CreateTask"))
        assert again.replayed
        assert again.task.id == first.task.id
    fresh = await here.tasks.create(ROOT, order(), None)
    assert fresh.task.id != first.task.id
