"""Dead letters: tasks that failed finally are listed, tried again, dropped."""

import pytest
from tests.engine.database import Database
from tests.engine.servers import Start
from tests.engine.workers import Worker, failed
from tests.engine.world import (
    AT_ONCE,
    FOREVER,
    ROOT,
    agent,
    check_all,
    data_of,
    events_of,
    key,
    kinds_of,
    order,
    principal,
    types,
)

from millstream.application.paging import PageRequest
from millstream.application.views.dead_letters import BulkWanted, DeadLetterQuery
from millstream.application.views.tasks import NewTask
from millstream.domain.bounds import Bounds
from millstream.domain.errors import IdempotencyConflict, ValidationFailed
from millstream.domain.retry import RetryPolicy
from millstream.domain.runs import RunStatus, Task, TaskStatus
from millstream.wiring import Service

TWICE = RetryPolicy(initial_us=0, jitter=0.0, max_attempts=2)


async def bury(here: Service, worker: Worker, count: int = 1, code: str = "BROKEN", **fields: object) -> list[Task]:
    """Tasks that failed finally at their first attempt."""
    made = []
    for _ in range(count):
        new = NewTask("sums", retry=AT_ONCE, timeouts=FOREVER, **fields)  # type: ignore[arg-type]
        made.append((await here.tasks.create(ROOT, new, None)).task)
        await worker.fail(await worker.take(), code, retryable=False)
    return made


async def listed(service: Service, query: DeadLetterQuery | None = None) -> list[str]:
    """Ids of dead letters."""
    page = await service.dead_letters.list(ROOT, query or DeadLetterQuery(), PageRequest())
    return [task.id for task in page.items]


async def test_what_failed_finally_is_listed_the_latest_first(start: Start, database: Database) -> None:
    """With filters and pages; what is retried by its policy, cancelled or done is none, and other tenants see none."""
    here, there = await start()
    async with Worker(there, kinds=["sums"], queues=["default", "slow"]) as worker:
        first = await bury(here, worker, 2)
        await database.pass_time(60)
        since_us = await database.now_us()
        second = await bury(here, worker, 1, "DECLINED", queue="slow")
        await here.tasks.create(ROOT, NewTask("sums"), None)
        await worker.complete(await worker.take())
        await here.tasks.create(ROOT, NewTask("sums", retry=RetryPolicy(initial_us=10**9)), None)
        await worker.fail(await worker.take())
    ids = [task.id for task in reversed(first + second)]
    assert await listed(there) == ids
    assert await listed(here, DeadLetterQuery(queue="slow")) == ids[:1]
    assert await listed(here, DeadLetterQuery(error_code="BROKEN")) == ids[1:]
    assert await listed(here, DeadLetterQuery(kind="sums", since_us=since_us)) == ids[:1]
    assert await listed(here, DeadLetterQuery(until_us=since_us)) == ids[1:]
    assert await listed(here, DeadLetterQuery(kind="other")) == []
    page = await here.dead_letters.list(ROOT, DeadLetterQuery(), PageRequest(page_size=2))
    assert page.info.total == 3
    request = PageRequest(page_size=2, page_token=page.info.next_page_token)
    rest = await here.dead_letters.list(ROOT, DeadLetterQuery(), request)
    assert [task.id for task in [*page.items, *rest.items]] == ids
    strangers = await here.dead_letters.list(principal(tenant="globex"), DeadLetterQuery(), PageRequest())
    assert strangers.items == []


async def test_a_retried_task_has_its_attempts_once_more_and_their_numbers_go_on(
    start: Start, database: Database, owner_path: bool
) -> None:
    """Engine rule 9: its run is RUNNING again, and says who asked for it and why."""
    here, there = await start(owner_path=owner_path)
    async with Worker(there, kinds=["sums"]) as worker:
        task = (await here.tasks.create(ROOT, NewTask("sums", retry=TWICE, timeouts=FOREVER), None)).task
        for _ in range(2):
            await worker.fail(await worker.take())
        assert (await here.runs.get(ROOT, task.run_id)).status is RunStatus.FAILED
        done = await here.dead_letters.retry(ROOT, BulkWanted((task.id,), note="mended"), None)
        assert done.results == ((task.id, None),)
        run = await there.runs.get(ROOT, task.run_id)
        assert (run.status, run.failed_tasks, run.open_tasks, run.finished_us, run.error_code) == (
            RunStatus.RUNNING, 0, 1, 0, "",
        )  # fmt: skip
        assert await listed(here) == []
        for number in (3, 4):
            lease = await worker.take()
            assert (lease.attempt, lease.tries) == (number, number - 2)
            await worker.fail(lease)
        assert await listed(here) == [task.id]
        await there.dead_letters.retry(ROOT, BulkWanted((task.id,)), None)
        await worker.complete(await worker.take())
    found = (await here.tasks.get(ROOT, task.id)).task
    assert (found.status, found.attempt, found.error_code) == (TaskStatus.COMPLETED, 5, "")
    asked = [event for event in await events_of(here, task.run_id) if event.type.name == "RETRY_REQUESTED"]
    assert [data_of(event).get("note") for event in asked if event.task_id] == ["mended", ""]
    assert {data_of(event)["by"] for event in asked} == {"root"}
    assert (await kinds_of(here, task.run_id))[-2:] == ["TASK_COMPLETED", "RUN_COMPLETED"]
    attempts, _ = await here.tasks.attempts(ROOT, task.id, 0, 10)
    assert [attempt.number for attempt in attempts] == [1, 2, 3, 4, 5]
    await check_all(database)


async def test_an_agents_task_is_retried_in_its_cascade(start: Start, database: Database) -> None:
    """FL-14: with the artifacts that it was given, and what it publishes goes on from there."""
    here, there = await start()
    specs = (agent("pay", "Order", "Payment", retry=AT_ONCE), agent("ship", "Payment"))
    async with Worker(there, agents=specs, known=types("Order", "Payment")) as worker:
        published = await here.artifacts.publish(ROOT, order(), None)
        lease = await worker.take()
        await worker.fail(lease, retryable=False)
        done = await here.dead_letters.retry(ROOT, BulkWanted(query=DeadLetterQuery(kind="agent:pay")), None)
        assert done.results == ((lease.task.id, None),)
        again = await worker.take()
        assert [artifact.id for artifact in again.artifacts] == [published.artifact_id]
        await worker.complete(again)
    assert (await here.runs.get(ROOT, published.correlation_id)).status is RunStatus.COMPLETED
    await check_all(database)


@pytest.mark.parametrize("verb", ["retry", "drop"])
async def test_a_bulk_call_tells_of_each_task(start: Start, database: Database, verb: str) -> None:
    """By ids: what is no dead letter, another's or unknown fails alone; a dry run changes nothing."""
    here, there = await start()
    async with Worker(there, kinds=["sums"]) as worker:
        first, second = await bury(here, worker, 2)
        await here.tasks.create(ROOT, NewTask("sums", timeouts=FOREVER), None)
        lease = await worker.take()
        call = getattr(here.dead_letters, verb)
        ids = (first.id, lease.task.id, "0190f5e2-0000-7000-8000-000000000001", second.id, first.id)
        dry = await call(ROOT, BulkWanted(ids, dry_run=True), None)
        assert (dry.matched, dry.results) == (4, ())
        assert len(await listed(there)) == 2
        done = await call(ROOT, BulkWanted(ids), None)
        assert [(task_id, error and error.code) for task_id, error in done.results] == [
            (first.id, None), (lease.task.id, "CONFLICT"), (ids[2], "NOT_FOUND"), (second.id, None),
        ]  # fmt: skip
        assert await listed(there) == []
        strangers = await call(principal(tenant="globex"), BulkWanted((first.id,)), None)
        assert strangers.results[0][1].code == "NOT_FOUND"
        for wanted in (BulkWanted(), BulkWanted((first.id,), DeadLetterQuery())):
            with pytest.raises(ValidationFailed):
                await call(ROOT, wanted, None)
    await check_all(database)


async def test_dropped_ones_are_no_dead_letters_and_stay_failed(start: Start, database: Database) -> None:
    """The run tells who dropped it and why; a later retry of it is still possible."""
    here, there = await start()
    async with Worker(there, kinds=["sums"]) as worker:
        tasks = await bury(here, worker, 3)
        query = DeadLetterQuery(error_code="BROKEN")
        dry = await here.dead_letters.drop(ROOT, BulkWanted(query=query, dry_run=True), None)
        assert dry.matched == 3
        done = await here.dead_letters.drop(ROOT, BulkWanted(query=query, note="old"), None)
        assert [task_id for task_id, error in done.results if error is None] == [task.id for task in tasks]
        assert await listed(there) == []
        found = (await there.tasks.get(ROOT, tasks[0].id)).task
        assert (found.status, found.dropped) == (TaskStatus.FAILED, True)
        last = (await events_of(here, tasks[0].run_id))[-1]
        assert (last.type.name, last.task_id) == ("TASK_DROPPED", found.id)
        assert data_of(last) == {"note": "old", "by": "root"}
        await here.dead_letters.retry(ROOT, BulkWanted((tasks[0].id,)), None)
        await worker.fail(await worker.take(), retryable=False)
        assert await listed(there) == [tasks[0].id]
    await check_all(database)


async def test_a_repeated_call_with_its_key_does_nothing_again(start: Start, database: Database) -> None:
    """FL-8: what its first call chose is done, once; what failed since is not taken."""
    here, there = await start()
    async with Worker(there, kinds=["sums"]) as worker:
        await bury(here, worker, 2)
        wanted = BulkWanted(query=DeadLetterQuery())
        first = await here.dead_letters.retry(ROOT, wanted, key("bulk", "RetryDeadLetters"))
        assert not first.replayed
        for _ in range(2):
            await worker.fail(await worker.take(), retryable=False)
        again = await there.dead_letters.retry(ROOT, wanted, key("bulk", "RetryDeadLetters"))
        assert again.replayed
        assert (again.matched, again.results) == (first.matched, first.results)
        assert len(await listed(here)) == 2
        with pytest.raises(IdempotencyConflict):
            await here.dead_letters.retry(ROOT, wanted, key("bulk", "RetryDeadLetters", "another"))
    await check_all(database)


async def test_a_bound_holds_for_what_is_tried_again(start: Start, database: Database) -> None:
    """FV-5: retries by hand wait in the line of their key like all others."""
    here, there = await start()
    async with Worker(there, kinds=["sums"]) as worker:
        await bury(here, worker, 3, bounds=Bounds("shop", 1))
        await here.dead_letters.retry(ROOT, BulkWanted(query=DeadLetterQuery()), None)
        for _ in range(3):
            lease = await worker.take()
            assert await database.value("SELECT count(*) FROM task WHERE status = 3") == 1
            assert worker.leases.empty()
            await worker.complete(lease)
    await check_all(database)


async def test_nothing_of_a_cancelled_run_is_tried_again(start: Start, database: Database) -> None:
    """FV-4: cancelled means no later effect."""
    here, there = await start()
    specs = (agent("one", "Order", retry=AT_ONCE), agent("two", "Order", retry=AT_ONCE))
    async with Worker(there, agents=specs, known=types("Order")) as worker:
        published = await here.artifacts.publish(ROOT, order(), None)
        dead, running = await worker.take_many(2)
        await worker.fail(dead, retryable=False)
        await here.runs.cancel(ROOT, published.correlation_id, "", None)
        for _ in range(2):
            done = await here.dead_letters.retry(ROOT, BulkWanted((dead.task.id,)), None)
            assert done.results[0][1] is not None
            assert done.results[0][1].code == "CONFLICT"
            await worker.report(failures=(failed(running),))
    assert (await here.runs.get(ROOT, published.correlation_id)).status is RunStatus.CANCELLED
    await check_all(database)


async def test_a_task_whose_artifacts_are_gone_is_not_tried_again(start: Start, database: Database) -> None:
    """It would work on nothing: whoever asks is told, and may drop it."""
    here, there = await start(run_retention_days=30, artifact_retention_days=1)
    spec = agent("pay", "Order", retry=AT_ONCE)
    async with Worker(there, agents=(spec,), known=types("Order")) as worker:
        await here.artifacts.publish(ROOT, order(), None)
        await worker.fail(await worker.take(), retryable=False)
        [dead] = await listed(here)
        await database.pass_time(2 * 86_400)
        await here.loops.sweep()
        done = await here.dead_letters.retry(ROOT, BulkWanted((dead,)), None)
        assert done.results[0][1] is not None
        assert "gone" in done.results[0][1].message
        done = await here.dead_letters.drop(ROOT, BulkWanted((dead,)), None)
        assert done.results == ((dead, None),)
