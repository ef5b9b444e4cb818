"""Cascades: published artifacts activate agents, whose artifacts activate agents, until nothing is left to do."""

import asyncio

import pytest
from tests.engine.database import Database
from tests.engine.servers import Roles, Start
from tests.engine.workers import CHAIN_HANDLER, Worker, chain_worker, done, failed
from tests.engine.world import (
    AT_ONCE,
    CHAIN,
    CHAIN_AGENTS,
    ROOT,
    agent,
    check_all,
    data_of,
    events_of,
    kinds_of,
    made,
    order,
    payload_of,
    principal,
    register,
    types,
)

from millstream.application.ids import new_id
from millstream.application.paging import PageRequest
from millstream.application.views.artifacts import ArtifactQuery
from millstream.application.views.tasks import NewTask
from millstream.application.views.types import TypeSpec
from millstream.domain.errors import Conflict, NotFound, ValidationFailed
from millstream.domain.retry import RetryPolicy
from millstream.domain.runs import EventType, RunKind, RunStatus


async def test_three_agents_make_four_artifacts(roles: Roles, database: Database) -> None:
    """FL-2, FL-5: the answer has the whole cascade in order, the input included, of one correlation."""
    async with chain_worker(roles.worker):
        result = await roles.publisher.artifacts.publish_sync(ROOT, order(7), None, 10)
    assert result.completed
    assert not result.failures
    assert [item.type for item in result.artifacts] == [*CHAIN]
    assert [item.produced_by for item in result.artifacts] == ["external", "payments", "shipping", "notifier"]
    assert {item.run_id for item in result.artifacts} == {result.correlation_id}
    assert payload_of(result.artifacts[0]) == {"order_id": "7"}
    assert result.duration_ms > 0
    await check_all(database)


async def test_every_step_of_a_cascade_is_an_event(roles: Roles) -> None:
    """Invariant: state and event are one; numbered 1, 2, 3, ... without gaps; the run's end is the last."""
    async with chain_worker(roles.worker):
        result = await roles.publisher.artifacts.publish_sync(ROOT, order(), None, 10)
    step = ["TASK_CREATED", "TASK_STARTED", "TASK_COMPLETED", "ARTIFACT_PUBLISHED"]
    assert await kinds_of(roles.publisher, result.correlation_id) == [
        "RUN_CREATED", "ARTIFACT_PUBLISHED", *step, *step, *step, "RUN_COMPLETED",
    ]  # fmt: skip
    events = await events_of(roles.publisher, result.correlation_id)
    assert [data_of(event) for event in events if event.type is EventType.ARTIFACT_PUBLISHED] == [
        {"type": item.type, "produced_by": item.produced_by} for item in result.artifacts
    ]
    assert [event.seq for event in events if event.type is EventType.ARTIFACT_PUBLISHED] == [
        item.seq for item in result.artifacts
    ]
    assert sorted(event.at_us for event in events) == [event.at_us for event in events]


async def test_a_run_counts_what_is_in_it(roles: Roles) -> None:
    """DC-1: the run's counters, status and times agree with its rows; the run's id is the correlation id."""
    async with chain_worker(roles.worker):
        result = await roles.publisher.artifacts.publish_sync(ROOT, order(), None, 10)
    run = await roles.worker.runs.get(ROOT, result.correlation_id)
    assert (run.kind, run.status, run.created_by) == (RunKind.CASCADE, RunStatus.COMPLETED, "root")
    assert (run.task_count, run.open_tasks, run.failed_tasks, run.artifact_count) == (3, 0, 0, 4)
    assert run.created_us == result.artifacts[0].created_us
    assert result.duration_ms == pytest.approx((run.finished_us - run.created_us) / 1000)


async def test_a_cascade_without_subscribers_ends_at_once(roles: Roles) -> None:
    """FL-7: the answer is the input alone."""
    await register(roles.publisher, ("Order",))
    result = await roles.publisher.artifacts.publish_sync(ROOT, order(), None, 10)
    assert result.completed
    assert [item.type for item in result.artifacts] == ["Order"]
    assert await kinds_of(roles.worker, result.correlation_id) == [
        "RUN_CREATED", "ARTIFACT_PUBLISHED", "RUN_COMPLETED",
    ]  # fmt: skip


async def test_an_asynchronous_publish_returns_before_anything_is_done(roles: Roles) -> None:
    """FL-1: ids at once; the cascade goes on, and is found under its correlation id on every server."""
    async with Worker(roles.worker, agents=CHAIN_AGENTS, known=types(*CHAIN)) as worker:
        published = await roles.publisher.artifacts.publish(ROOT, order(), None)
        lease = await worker.take()
        assert [item.id for item in lease.artifacts] == [published.artifact_id]
        run = await roles.worker.runs.get(ROOT, published.correlation_id)
        assert (run.status, run.open_tasks) == (RunStatus.RUNNING, 1)


async def test_a_batch_of_artifacts_makes_a_cascade_each(roles: Roles, database: Database) -> None:
    """FL-11: results in request order; one bad item fails alone."""
    await register(roles.publisher, ("Order",))
    items = [order(1), made("Unknown"), order(2)]
    batch = await roles.publisher.artifacts.publish_batch(ROOT, items, [None] * 3, None)
    first, second, third = batch.results
    assert isinstance(second, NotFound)
    assert not isinstance(first, Exception)
    assert not isinstance(third, Exception)
    assert await database.value("SELECT count(*) FROM run") == 2
    await check_all(database)


async def test_an_unknown_type_is_not_found(roles: Roles, database: Database) -> None:
    """FL-10: a well-formed type that is not registered is NOT_FOUND, and nothing is stored."""
    with pytest.raises(NotFound, match="Order"):
        await roles.publisher.artifacts.publish(ROOT, order(), None)
    assert await database.value("SELECT count(*) FROM run") == 0


async def test_a_payload_that_breaks_its_schema_is_refused(start: Start) -> None:
    """FL-10: validation errors name the field; on a server that did not see the registration, too."""
    here, there = await start()
    schema = '{"type":"object","required":["amount"]}'
    await there.types.create(ROOT, TypeSpec("Order"), None)
    await here.artifacts.publish(ROOT, order(), None)
    await there.types.create(ROOT, TypeSpec("Order", schema, compatibility="none"), None)
    with pytest.raises(ValidationFailed, match="amount") as refused:
        await here.artifacts.publish(ROOT, order(), None)
    assert [fault.field for fault in refused.value.details] == ["payload"]


async def test_a_failing_agent_shows_in_failures_and_the_rest_goes_on(roles: Roles, database: Database) -> None:
    """Issue 2: after its retries a failed task stands in `failures` and in the run; others are not disturbed."""
    retry = RetryPolicy(initial_us=0, jitter=0, max_attempts=3)
    agents = (agent("breaks", "Order", retry=retry), *CHAIN_AGENTS)
    handler = CHAIN_HANDLER

    async with Worker(
        roles.worker,
        agents=agents,
        known=types(*CHAIN),
        handler=lambda lease: failed(lease, "CARD_DECLINED") if lease.task.agent == "breaks" else handler(lease),
    ):
        result = await roles.publisher.artifacts.publish_sync(ROOT, order(), None, 10)
    assert result.completed
    assert [item.type for item in result.artifacts] == [*CHAIN]
    (failure,) = result.failures
    assert (failure.agent, failure.code, failure.attempts) == ("breaks", "CARD_DECLINED", 3)
    assert failure.message == "CARD_DECLINED it is"
    assert failure.artifact_ids == (result.artifacts[0].id,)
    run = await roles.publisher.runs.get(ROOT, result.correlation_id)
    assert (run.status, run.failed_tasks) == (RunStatus.FAILED, 1)
    kinds = await kinds_of(roles.publisher, result.correlation_id)
    assert kinds.count("TASK_RETRY") == 2
    assert kinds.count("TASK_FAILED") == 1
    assert kinds[-1] == "RUN_FAILED"
    await check_all(database)


async def test_an_artifact_that_the_agent_may_not_publish_fails_its_task(roles: Roles) -> None:
    """Issue 2: a task never hangs on a result that cannot be stored; the worker is told why."""
    async with Worker(roles.worker, agents=CHAIN_AGENTS, known=types(*CHAIN)) as worker:
        published = await roles.publisher.artifacts.publish(ROOT, order(), None)
        told = await worker.complete(await worker.take(), made("Shipment"))
        assert told.error is not None
        assert told.error.code == "FORBIDDEN"
    run = await roles.publisher.runs.get(ROOT, published.correlation_id)
    assert (run.status, run.artifact_count) == (RunStatus.FAILED, 1)


@pytest.mark.parametrize("sync", [True, False])
async def test_a_correlation_id_of_the_callers_choice_begins_a_cascade(roles: Roles, sync: bool) -> None:
    """FL-5: any UUID may be given, and is the run's id."""
    await register(roles.publisher, ("Order",))
    chosen = new_id()
    artifacts = roles.publisher.artifacts
    if sync:
        assert (await artifacts.publish_sync(ROOT, order(correlation_id=chosen), None, 10)).correlation_id == chosen
    else:
        assert (await artifacts.publish(ROOT, order(correlation_id=chosen), None)).correlation_id == chosen
    assert (await roles.worker.runs.get(ROOT, chosen)).id == chosen


async def test_a_given_correlation_id_joins_an_open_cascade(roles: Roles, database: Database) -> None:
    """FL-5: both artifacts stand in one run, which ends when the work of both has."""
    async with Worker(roles.worker, agents=CHAIN_AGENTS[:1], known=types(*CHAIN)) as worker:
        first = await roles.publisher.artifacts.publish(ROOT, order(1), None)
        second = await roles.worker.artifacts.publish(ROOT, order(2, correlation_id=first.correlation_id), None)
        assert second.correlation_id == first.correlation_id
        one, two = await worker.take_many(2)
        await worker.complete(one)
        assert (await roles.publisher.runs.get(ROOT, first.correlation_id)).status is RunStatus.RUNNING
        await worker.complete(two)
    run = await roles.publisher.runs.get(ROOT, first.correlation_id)
    assert (run.status, run.artifact_count, run.task_count) == (RunStatus.COMPLETED, 2, 2)
    await check_all(database)


async def test_publishing_into_an_ended_cascade_reopens_it(roles: Roles, database: Database) -> None:
    """Rule 24: status RUNNING again, event RUN_REOPENED, then a second end; the answer has all artifacts."""
    async with chain_worker(roles.worker):
        first = await roles.publisher.artifacts.publish_sync(ROOT, order(1), None, 10)
        again = order(2, correlation_id=first.correlation_id)
        second = await roles.worker.artifacts.publish_sync(ROOT, again, None, 10)
    assert second.completed
    assert [item.type for item in second.artifacts] == [*CHAIN, *CHAIN]
    kinds = await kinds_of(roles.publisher, first.correlation_id)
    assert kinds.count("RUN_REOPENED") == 1
    assert kinds.count("RUN_COMPLETED") == 2
    assert kinds[-1] == "RUN_COMPLETED"
    await check_all(database)


async def test_a_reopened_cascade_is_running_until_its_new_work_is_done(roles: Roles) -> None:
    """Rule 24."""
    await register(roles.publisher, ("Order", "Payment"), agent("payments", "Payment"))
    first = await roles.publisher.artifacts.publish_sync(ROOT, order(), None, 10)
    await roles.publisher.artifacts.publish(ROOT, made("Payment", first.correlation_id), None)
    run = await roles.worker.runs.get(ROOT, first.correlation_id)
    assert (run.status, run.finished_us, run.open_tasks) == (RunStatus.RUNNING, 0, 1)


async def test_a_cascade_of_another_tenant_cannot_be_joined(roles: Roles) -> None:
    """Invariant: one tenant cannot read or guess another's; the id tells nothing of what it is."""
    await register(roles.publisher, ("Order",))
    await register(roles.publisher, ("Order",), tenant="other")
    mine = await roles.publisher.artifacts.publish(ROOT, order(), None)
    stranger = principal("spy", "other")
    for service in (roles.publisher, roles.worker):
        with pytest.raises(NotFound):
            await service.artifacts.publish(stranger, order(correlation_id=mine.correlation_id), None)
        with pytest.raises(NotFound):
            await service.artifacts.get(stranger, mine.artifact_id)
        with pytest.raises(NotFound):
            await service.runs.get(stranger, mine.correlation_id)


async def test_a_run_of_another_kind_cannot_be_joined(roles: Roles) -> None:
    """Contract: a correlation id that names a run of another kind is CONFLICT."""
    await register(roles.publisher, ("Order",))
    task = (await roles.publisher.tasks.create(ROOT, NewTask("sums"), None)).task
    for service in (roles.publisher, roles.worker):
        with pytest.raises(Conflict):
            await service.artifacts.publish(ROOT, order(correlation_id=task.run_id), None)


async def test_a_timeout_answers_with_what_there_is(roles: Roles) -> None:
    """FL-3: completed False and the artifacts so far; the cascade goes on."""
    async with Worker(roles.worker, agents=CHAIN_AGENTS, known=types(*CHAIN)) as worker:
        result = await roles.publisher.artifacts.publish_sync(ROOT, order(), None, 0.2)
        assert not result.completed
        assert [item.type for item in result.artifacts] == ["Order"]
        assert result.duration_ms >= 200
        lease = await worker.take()
        assert (await worker.complete(lease, made("Payment"))).error is None
    run = await roles.publisher.runs.get(ROOT, result.correlation_id)
    assert (run.status, run.artifact_count) == (RunStatus.RUNNING, 2)


async def test_two_sync_publishes_do_not_wait_for_each_other(roles: Roles) -> None:
    """FL-16: one cascade hangs, the other answers."""
    async with Worker(roles.worker, agents=CHAIN_AGENTS[:1], known=types(*CHAIN)) as worker:
        slow = asyncio.create_task(roles.publisher.artifacts.publish_sync(ROOT, order(1), None, 30))
        hanging = await worker.take()
        quick = asyncio.create_task(roles.publisher.artifacts.publish_sync(ROOT, order(2), None, 30))
        await worker.complete(await worker.take())
        assert (await quick).completed
        assert not slow.done()
        await worker.complete(hanging)
        assert (await slow).completed


async def test_a_sync_publish_that_joins_waits_for_its_own_work(roles: Roles) -> None:
    """FL-2: an end of the cascade before one's own artifact was stored is not the end one waits for."""
    await register(roles.publisher, ("Order", "Payment"), agent("payments", "Payment"))
    run_id = new_id()
    async with Worker(roles.worker, kinds=["agent:payments"]) as worker:
        plain = [order(n, correlation_id=run_id) for n in range(5)]
        pay = made("Payment", run_id)
        calls = [roles.publisher.artifacts.publish_sync(ROOT, item, None, 10) for item in [*plain, pay, *plain]]
        answers = [asyncio.create_task(call) for call in calls]
        lease = await worker.take()
        assert not answers[5].done()
        await worker.complete(lease)
        results = await asyncio.gather(*answers)
    assert all(result.completed for result in results)
    assert "Payment" in [item.type for item in results[5].artifacts]
    assert (await roles.publisher.runs.get(ROOT, run_id)).artifact_count == 11


async def test_depth_is_bounded(start: Start) -> None:
    """Rule 6: deeper than max_depth is CASCADE_LIMIT in `failures`, never silence."""
    here, there = await start(max_depth=3)
    async with Worker(
        there,
        agents=[agent("loop", "Order", "Order")],
        known=types("Order"),
        handler=lambda lease: done(lease, order()),
    ):
        result = await here.artifacts.publish_sync(ROOT, order(), None, 10)
    assert len(result.artifacts) == 4
    (failure,) = result.failures
    assert (failure.agent, failure.code, failure.artifact_ids) == ("loop", "CASCADE_LIMIT", (result.artifacts[-1].id,))
    assert "3 steps" in failure.message
    run = await here.runs.get(ROOT, result.correlation_id)
    assert (run.status, run.error_code, run.task_count) == (RunStatus.FAILED, "CASCADE_LIMIT", 3)


async def test_the_number_of_tasks_is_bounded(start: Start) -> None:
    """Rule 6: more than max_tasks_per_run is CASCADE_LIMIT; what was made before goes on."""
    here, there = await start(max_tasks_per_run=5)
    many = [agent(f"agent{n}", "Order", retry=AT_ONCE) for n in range(8)]
    async with Worker(there, agents=many, known=types("Order"), handler=done):
        result = await here.artifacts.publish_sync(ROOT, order(), None, 10)
    assert result.completed
    assert [failure.code for failure in result.failures] == ["CASCADE_LIMIT"] * 3
    assert (await here.runs.get(ROOT, result.correlation_id)).task_count == 5


async def test_a_large_cascade_is_truncated_and_the_rest_can_be_listed(start: Start) -> None:
    """FL-2: beyond 1,000 items the answer is cut, and its token lists the rest, none twice and none missing."""
    here, there = await start()
    fan = agent("fan", "Order", "Payment")
    async with Worker(
        there,
        agents=[fan],
        known=types("Order", "Payment"),
        handler=lambda lease: done(lease, *[made("Payment", n=n) for n in range(1005)]),
    ):
        result = await here.artifacts.publish_sync(ROOT, order(), None, 20)
    assert result.completed
    assert len(result.artifacts) == 1000
    assert result.next_page_token
    page = await there.artifacts.list(ROOT, ArtifactQuery(), PageRequest(page_token=result.next_page_token), False)
    rest = [listed.artifact for listed in page.items]
    assert len({item.id for item in [*result.artifacts, *rest]}) == 1006
