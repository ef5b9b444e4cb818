"""Lists of runs by what they have and were, and what is stuck."""

import pytest
from tests.engine.database import Database
from tests.engine.servers import Roles, Start
from tests.engine.workers import Worker
from tests.engine.world import AT_ONCE, FOREVER, ROOT, key, principal, seconds

from millstream.application.paging import PageRequest
from millstream.application.views.runs import RunQuery, StuckQuery
from millstream.application.views.tasks import NewTask
from millstream.domain.errors import NotFound, ValidationFailed
from millstream.domain.retry import RetryPolicy
from millstream.domain.runs import RunStatus, TaskStatus
from millstream.store import run_lists
from millstream.wiring import Service

ONCE = RetryPolicy(initial_us=0, jitter=0.0, max_attempts=1)


def labelled(labels: str, kind: str = "sums") -> NewTask:
    """A task with labels, which is tried once."""
    return NewTask(kind, retry=ONCE, timeouts=FOREVER, labels=labels)


async def ids_of(service: Service, query: RunQuery, page_size: int = 50) -> list[str]:
    """All that a list has, page by page; its first page tells how many these are."""
    found: list[str] = []
    first = await service.runs.list(ROOT, query, PageRequest(page_size=page_size))
    page, request = first, PageRequest(page_size=page_size)
    while True:
        found += [run.id for run in page.items]
        if not page.info.next_page_token:
            break
        request = PageRequest(page_size=page_size, page_token=page.info.next_page_token)
        page = await service.runs.list(ROOT, query, request)
    assert (first.info.total, first.info.total_is_estimate) == (len(found), None)
    assert len(set(found)) == len(found)
    return found


@pytest.fixture
async def runs(spread: Roles, database: Database) -> tuple[Service, list[str]]:
    """Six runs, ten seconds apart: failed, completed, running, cancelled, failed, running."""
    service = spread.publisher
    made: list[str] = []
    async with Worker(spread.worker, kinds=["sums"]) as worker:
        for n, what in enumerate(("fail", "complete", "", "cancel", "fail", "")):
            await database.pass_time(10)
            labels = f'{{"env":"prod","n":"{n}"}}' if n % 2 else '{"env":"test \\"x\\""}'
            new = labelled(labels, "sums" if what else "no")
            made.append((await service.tasks.create(ROOT, new, None)).task.run_id)
            lease = await worker.take() if what else None
            if lease is not None and what == "fail":
                await worker.fail(lease, "DECLINED", retryable=False)
            elif lease is not None and what == "complete":
                await worker.complete(lease)
            elif lease is not None:
                await service.runs.cancel(ROOT, made[-1], "no more", None)
                await worker.fail(lease)
    await service.tasks.create(principal(tenant="other"), labelled('{"env":"prod"}'), None)
    return spread.worker, made


async def test_runs_are_listed_by_several_statuses(runs: tuple[Service, list[str]]) -> None:
    """WM-5: those that ended badly by an index of their own, all others on the way."""
    service, made = runs
    fail, cancel = RunStatus.FAILED, RunStatus.CANCELLED
    for size in (1, 50):
        assert await ids_of(service, RunQuery((fail,)), size) == [made[4], made[0]]
        assert await ids_of(service, RunQuery((fail, cancel)), size) == [made[4], made[3], made[0]]
        assert await ids_of(service, RunQuery((fail, cancel), ascending=True), size) == [made[0], made[3], made[4]]
        assert await ids_of(service, RunQuery((RunStatus.RUNNING, fail)), size) == [made[5], made[4], made[2], made[0]]
        assert await ids_of(service, RunQuery(ascending=True), size) == made


async def test_runs_are_listed_by_labels_and_text(runs: tuple[Service, list[str]]) -> None:
    """WM-5: all labels asked for; a text in an error, a label's value, or at the beginning of an id."""
    service, made = runs
    assert await ids_of(service, RunQuery(labels=(("env", "prod"),)), 2) == made[5::-2]
    assert await ids_of(service, RunQuery(labels=(("env", "prod"), ("n", "3")))) == [made[3]]
    assert await ids_of(service, RunQuery(labels=(("env", "prod"), ("env", "test")))) == []
    assert await ids_of(service, RunQuery((RunStatus.FAILED,), labels=(("env", 'test "x"'),))) == [made[4], made[0]]
    assert await ids_of(service, RunQuery(text="declined"), 1) == [made[4], made[0]]
    assert await ids_of(service, RunQuery(text='test "x"')) == made[4::-2]
    assert await ids_of(service, RunQuery((RunStatus.CANCELLED,), text="no more")) == [made[3]]
    assert await ids_of(service, RunQuery(text=made[2])) == [made[2]]
    assert made[2] in await ids_of(service, RunQuery(text=made[2][:18]))
    assert await ids_of(service, RunQuery(text=made[2][:4])) == made[::-1]
    # What stands for anything in a pattern is itself here, and a label's name is no value.
    assert await ids_of(service, RunQuery(text="%")) == []
    assert await ids_of(service, RunQuery(text="env")) == []
    middle_us = (await service.runs.get(ROOT, made[2])).created_us
    assert await ids_of(service, RunQuery(text="declined", created_after_us=middle_us)) == [made[4]]


async def test_runs_are_listed_by_workflow_and_parent(runs: tuple[Service, list[str]], database: Database) -> None:
    """FV-10, WM-5"""
    service, made = runs
    for run_id in made[:3]:
        await database.execute(
            "UPDATE run SET workflow = 'billing', parent_id = $2::text::uuid WHERE id = $1::text::uuid", run_id, made[3]
        )
    assert await ids_of(service, RunQuery(workflow="billing"), 2) == made[2::-1]
    assert await ids_of(service, RunQuery((RunStatus.FAILED,), workflow="billing")) == [made[0]]
    assert await ids_of(service, RunQuery(parent_id=made[3]), 2) == made[2::-1]
    assert await ids_of(service, RunQuery(text="ILLIN".lower())) == made[2::-1]
    page = await service.runs.children(ROOT, made[3], PageRequest())
    assert [run.id for run in page.items] == made[2::-1]
    assert (await service.runs.children(ROOT, made[0], PageRequest())).items == []
    with pytest.raises(NotFound):
        await service.runs.children(principal(tenant="other"), made[3], PageRequest())


async def test_runs_are_sorted_by_what_happened_last(runs: tuple[Service, list[str]], database: Database) -> None:
    """WM-5: in both directions, and page by page; a token goes with its sorting."""
    service, made = runs
    await database.pass_time(10)
    await service.run_operations.pause(ROOT, made[2], "", None)
    by_update = [made[2], made[5], made[4], made[3], made[1], made[0]]
    for size in (2, 50):
        assert await ids_of(service, RunQuery(by_updated=True), size) == by_update
        assert await ids_of(service, RunQuery(by_updated=True, ascending=True), size) == by_update[::-1]
    page = await service.runs.list(ROOT, RunQuery(by_updated=True), PageRequest(page_size=2))
    with pytest.raises(ValidationFailed, match="page_token"):
        await service.runs.list(ROOT, RunQuery(), PageRequest(page_token=page.info.next_page_token))


async def test_a_page_that_looked_far_enough_says_where_to_go_on(
    runs: tuple[Service, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FL-12: where few match, a page is short, and the next one goes on behind what was looked at; totals are estimates
    then."""
    service, made = runs
    monkeypatch.setattr(run_lists, "SCAN_MOST", 2)
    query = RunQuery((RunStatus.COMPLETED,))
    first = await service.runs.list(ROOT, query, PageRequest())
    assert (first.items, first.info.total_is_estimate) == ([], True)
    found: list[str] = []
    token, pages = first.info.next_page_token, 1
    while token:
        page = await service.runs.list(ROOT, query, PageRequest(page_token=token))
        found += [run.id for run in page.items]
        token, pages = page.info.next_page_token, pages + 1
    assert (found, pages) == ([made[1]], 4)


async def test_a_run_is_nobody_elses(runs: tuple[Service, list[str]]) -> None:
    """Architecture: another tenant learns nothing, whatever it asks for."""
    service, made = runs
    stranger = principal(tenant="stranger")
    for query in (
        RunQuery(text=made[0]), RunQuery(labels=(("env", "prod"),)), RunQuery((RunStatus.FAILED,)),
        RunQuery(by_updated=True), RunQuery(text="declined"),
    ):  # fmt: skip
        page = await service.runs.list(stranger, query, PageRequest())
        assert (page.items, page.info.total) == ([], 0)


# What is stuck.


async def test_what_is_retried_is_listed_with_its_first_failure(spread: Roles, database: Database) -> None:
    """FV-19: since when, and when it is tried next; the oldest first, page by page."""
    service = spread.publisher
    later = RetryPolicy(initial_us=seconds(60), maximum_us=seconds(300), jitter=0.0, max_attempts=5)
    async with Worker(spread.worker, kinds=["sums", "others"]) as worker:
        tasks = []
        for kind in ("sums", "others", "sums"):
            tasks.append((await service.tasks.create(ROOT, NewTask(kind, retry=later, timeouts=FOREVER), None)).task)
            await worker.fail(await worker.take())
            await database.pass_time(10)
        await service.tasks.create(ROOT, NewTask("nobody", timeouts=FOREVER), None)
        await database.pass_time(50)
        await service.loops.poll()
        await worker.fail(await worker.take())
        found, token = await service.tasks.stuck(ROOT, StuckQuery(), 2, "")
        assert [each.task.id for each in found] == [tasks[0].id, tasks[1].id]
        attempts, _ = await service.tasks.attempts(ROOT, tasks[0].id, 0, 10)
        assert found[0].since_us == attempts[0].finished_us
        assert found[0].task.run_at_us == attempts[1].finished_us + seconds(120)
        rest, token = await service.tasks.stuck(ROOT, StuckQuery(), 2, token)
        assert ([each.task.id for each in rest], token) == ([tasks[2].id], "")
        assert len((await service.tasks.stuck(ROOT, StuckQuery(kind="sums"), 9, ""))[0]) == 2
        assert (await service.tasks.stuck(ROOT, StuckQuery(queue="slow"), 9, ""))[0] == []
        long, _ = await service.tasks.stuck(ROOT, StuckQuery(for_us=seconds(65)), 9, "")
        assert [each.task.id for each in long] == [tasks[0].id, tasks[1].id]
        assert (await service.tasks.stuck(principal(tenant="other"), StuckQuery(), 9, ""))[0] == []
        assert (await service.tasks.stuck(ROOT, StuckQuery(), 9, ""))[0][0].task.status is TaskStatus.SCHEDULED


async def test_what_waits_is_told_by_queue_and_kind(spread: Roles, database: Database) -> None:
    """FV-19: the longest wait of each, how many wait, and whether anybody is there who would take it."""
    service = spread.publisher

    async def create(kind: str, queue: str = "default", priority: int = 0) -> str:
        await database.pass_time(10)
        new = NewTask(kind, queue=queue, priority=priority, retry=AT_ONCE, timeouts=FOREVER)
        return (await service.tasks.create(ROOT, new, None)).task.id

    async with Worker(spread.worker, kinds=["served"], slots=1) as worker:
        await create("served")
        await worker.take()
        oldest = await create("lonely", "slow", priority=-5)
        await create("lonely", "slow", priority=5)
        behind = await create("served")
        fresh = await create("lonely")
        found, token = await service.tasks.stuck(ROOT, StuckQuery(waiting=True), 9, "")
        assert [(each.task.id, each.waiting, each.served) for each in found] == [
            (oldest, 2, False), (behind, 1, True), (fresh, 1, False),
        ]  # fmt: skip
        assert found[0].since_us == found[0].task.run_at_us
        assert token == ""

        async def ids(query: StuckQuery) -> list[str]:
            return [each.task.id for each in (await service.tasks.stuck(ROOT, query, 9, ""))[0]]

        assert await ids(StuckQuery(waiting=True, unserved=True)) == [oldest, fresh]
        assert await ids(StuckQuery(waiting=True, queue="slow")) == [oldest]
        assert await ids(StuckQuery(waiting=True, kind="lonely")) == [oldest, fresh]
        assert await ids(StuckQuery(waiting=True, for_us=seconds(25))) == [oldest]
    for bad, field in ((StuckQuery(waiting=True), "page_token"), (StuckQuery(unserved=True), "unserved")):
        with pytest.raises(ValidationFailed, match=field):
            await service.tasks.stuck(ROOT, bad, 9, "t" if bad.waiting else "")


async def test_a_rerun_or_retry_is_found_by_its_key_alone(start: Start) -> None:
    """FL-8: keys of one operation are not those of another."""
    here, there = await start()
    run_id = (await here.tasks.create(ROOT, labelled(""), None)).task.run_id
    paused, _ = await here.run_operations.pause(ROOT, run_id, "", key("same", "PauseRun"))
    rerun, replayed = await there.run_operations.rerun(ROOT, run_id, "", key("same", "RerunRun"))
    assert (rerun.id != paused.id, replayed) == (True, False)
