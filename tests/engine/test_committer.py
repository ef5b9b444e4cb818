"""The committer: bounded, fair to neighbours, without convoys, gaps or losses."""

import asyncio
from collections import Counter

import pytest
from tests.engine.database import Database
from tests.engine.servers import Start, eventually
from tests.engine.workers import CHAIN_HANDLER, Worker, chain_worker, done
from tests.engine.world import (
    CHAIN,
    CHAIN_AGENTS,
    ROOT,
    agent,
    check_all,
    events_of,
    key,
    made,
    order,
    principal,
    register,
    types,
)

from millstream.application.engine import committer
from millstream.application.ids import new_id
from millstream.application.ports import Disconnected
from millstream.application.views.artifacts import Published
from millstream.application.views.tasks import CreatedTask, NewTask
from millstream.domain.errors import MillstreamError, RateLimited, Unavailable
from millstream.domain.runs import RunStatus
from millstream.store.lane import PostgresLane


async def test_a_full_queue_says_so_at_once(start: Start, database: Database) -> None:
    """Invariant: nothing without a bound: RATE_LIMITED, retryable, with a time to wait; what was taken is done."""
    here, _ = await start(queue_max_commands=10)
    await register(here, ("Order",))
    async with database.other() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("LOCK TABLE artifact IN SHARE MODE")
        calls = [asyncio.create_task(here.artifacts.publish(ROOT, order(n), None)) for n in range(60)]

        async def some_are_refused() -> bool:
            return sum(call.done() for call in calls) > 5

        await eventually(some_are_refused)
        await transaction.rollback()
    results = await asyncio.gather(*calls, return_exceptions=True)
    refused = [result for result in results if isinstance(result, RateLimited)]
    published = [result for result in results if isinstance(result, Published)]
    assert refused
    assert len(refused) + len(published) == 60
    assert (refused[0].retryable, refused[0].retry_after_s) == (True, 1.0)
    assert await database.value("SELECT count(*) FROM artifact") == len(published)
    assert not (await here.artifacts.publish(ROOT, order(), None)).replayed


async def test_bytes_are_bounded_too(start: Start, database: Database) -> None:
    """Invariant: nothing without a bound."""
    here, _ = await start(queue_max_bytes=1 << 20, large_payload_bytes=1 << 20)
    await register(here, ("Order",))
    large = [made("Order", text="x" * 400_000) for _ in range(8)]
    results = await asyncio.gather(
        *(here.artifacts.publish(ROOT, item, None) for item in large), return_exceptions=True
    )
    assert {type(result) for result in results} == {Published, RateLimited}
    assert await database.value("SELECT count(*) FROM artifact") == sum(
        isinstance(result, Published) for result in results
    )


async def test_results_of_work_are_taken_though_the_queue_is_full(start: Start, database: Database) -> None:
    """Engine: refusing what would unload the server would not unload it."""
    here, _ = await start(queue_max_commands=1)
    async with Worker(here, kinds=["sums"]) as worker:
        await here.tasks.create(ROOT, NewTask("sums"), None)
        lease = await worker.take()
        async with database.other() as connection:
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute("LOCK TABLE run IN SHARE MODE")
            calls = [asyncio.create_task(here.tasks.create(ROOT, NewTask("other"), None)) for _ in range(5)]
            completing = asyncio.create_task(worker.complete(lease))
            await asyncio.sleep(0)
            await transaction.rollback()
        assert (await completing).error is None
        await asyncio.gather(*calls, return_exceptions=True)


@pytest.mark.parametrize("poison", ["\0", "\ud800", "a\0b"])
async def test_poison_fails_alone(start: Start, database: Database, owner_path: bool, poison: str) -> None:
    """Architecture: what the database cannot hold is refused; its neighbours in the batch succeed."""
    here, _ = await start(owner_path=owner_path)
    await register(here, ("Order",))
    items = [order(n, partition_key=poison if n in (3, 17) else "fine") for n in range(40)]
    results = await asyncio.gather(
        *(here.artifacts.publish(ROOT, item, None) for item in items), return_exceptions=True
    )
    refused = [n for n, result in enumerate(results) if isinstance(result, MillstreamError)]
    assert refused == [3, 17]
    assert {result.code for result in results if isinstance(result, MillstreamError)} == {"BAD_REQUEST"}
    assert await database.value("SELECT count(*) FROM artifact") == 38
    await check_all(database)


async def test_a_poisonous_result_fails_alone(start: Start, owner_path: bool) -> None:
    """Architecture: for reports of workers, too; the task is not lost, and can still be ended."""
    here, there = await start(owner_path=owner_path)
    async with Worker(there, agents=[agent("payments", "Order")], known=types("Order", "Payment")) as worker:
        published = await here.artifacts.publish(ROOT, order(1), None)
        other = await here.artifacts.publish(ROOT, order(2), None)
        bad, good = await worker.take_many(2)
        bad_payment = made("Payment")
        bad_payment.partition_key = "\0"
        answers = await worker.report(completions=(done(bad, bad_payment), done(good, made("Payment"))))
        assert [answer.error.code if answer.error else "" for answer in answers] == ["BAD_REQUEST", ""]
        assert (await worker.fail(bad, retryable=False)).error is None
    assert (await here.runs.get(ROOT, other.correlation_id)).status is RunStatus.COMPLETED
    assert (await here.runs.get(ROOT, published.correlation_id)).status is RunStatus.FAILED


async def hold(connection: "object", run_id: str) -> None:
    """Lock a run's row, as a server that was stopped in its transaction."""
    await connection.execute("SELECT 1 FROM run WHERE id = $1::text::uuid FOR UPDATE", run_id)  # type: ignore[attr-defined]


async def test_a_locked_run_does_not_stop_others(start: Start, database: Database, owner_path: bool) -> None:
    """Rule 2: no convoy: others go on at once, and what waits for the lock succeeds when it is gone."""
    here, there = await start(owner_path=owner_path)
    await register(here, ("Order",))
    locked = (await here.artifacts.publish(ROOT, order(), None)).correlation_id
    loop = asyncio.get_running_loop()
    async with database.other() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await hold(connection, locked)
        waiting = [
            asyncio.create_task(service.artifacts.publish(ROOT, order(n, correlation_id=locked), None))
            for n, service in enumerate((here, there, here))
        ]
        began = loop.time()
        for n in range(20):
            service = (here, there)[n % 2]
            await service.artifacts.publish(ROOT, order(n), None)
            await service.artifacts.publish(ROOT, order(n, correlation_id=new_id()), None)
            await service.tasks.create(ROOT, NewTask("sums"), None)
        assert loop.time() - began < 2
        assert not any(call.done() for call in waiting)
        await transaction.rollback()
    await asyncio.gather(*waiting)
    assert (await here.runs.get(ROOT, locked)).artifact_count == 4
    await check_all(database)


async def test_a_locked_run_does_not_stop_the_loops(start: Start, database: Database) -> None:
    """Rule 2: timers and leases of others are looked after meanwhile."""
    here, _ = await start()
    async with Worker(here, kinds=["sums"]) as worker:
        tasks = [(await here.tasks.create(ROOT, NewTask("sums", delay_us=60_000_000), None)).task for _ in range(2)]
        here.engine.cache.clear()
        async with database.other() as connection:
            transaction = connection.transaction()
            await transaction.start()
            await hold(connection, tasks[0].run_id)
            await database.pass_time(61)
            await asyncio.wait_for(here.loops.poll(), 3)
            assert (await worker.take()).task.id == tasks[1].id
            await asyncio.wait_for(here.loops.poll(), 3)
            await transaction.rollback()
        assert (await worker.take()).task.id == tasks[0].id
        assert worker.leases.empty()


async def test_a_stalled_server_loses_its_locks(start: Start, database: Database) -> None:
    """Rule 2: a process that is stopped within a transaction is cut off by the database after 2 s."""
    here, _ = await start()
    lane = here.engine.committer.lane
    assert isinstance(lane, PostgresLane)
    settings = await lane._live().fetchrow(
        "SELECT current_setting('idle_in_transaction_session_timeout'), current_setting('lock_timeout')"
    )
    assert settings is not None
    assert tuple(settings) == ("2s", "500ms")


@pytest.mark.parametrize("turns", ["strictly", "at once"])
async def test_two_servers_that_write_one_run_leave_no_gap(
    start: Start, database: Database, owner_path: bool, turns: str
) -> None:
    """Invariant, owner path: a copy that another server has written past is found out and dropped."""
    here, there = await start(owner_path=owner_path)
    await register(here, ("Order", "Payment"), agent("payments", "Order"))
    run_id = (await here.artifacts.publish(ROOT, order(), None)).correlation_id
    calls = [(here, there)[n % 2].artifacts.publish(ROOT, made("Payment", run_id), None) for n in range(20)]
    if turns == "at once":
        await asyncio.gather(*calls)
    else:
        for call in calls:
            await call
    run = await here.runs.get(ROOT, run_id)
    assert (run.artifact_count, run.open_tasks) == (21, 1)
    assert len(await events_of(there, run_id)) == run.last_seq
    await check_all(database)


async def test_two_hundred_publishes_into_ten_runs_lose_nothing(
    start: Start, database: Database, owner_path: bool
) -> None:
    """Invariants: from both servers at once, with agents at work: no gap, no loss, no double."""
    here, there = await start(owner_path=owner_path)
    runs = [new_id() for _ in range(10)]
    async with (
        chain_worker(here),
        chain_worker(there, agents=(), known=(), kinds=[f"agent:{spec.name}" for spec in CHAIN_AGENTS]),
    ):
        calls = [
            (here, there)[n % 2].artifacts.publish(ROOT, order(n, correlation_id=runs[n % 10]), None)
            for n in range(200)
        ]
        published = await asyncio.gather(*calls)

        async def all_ended() -> bool:
            return bool(await database.value("SELECT count(*) FROM run WHERE status = 3") == 10)

        await eventually(all_ended, "that all runs end")
    assert Counter(item.correlation_id for item in published) == Counter(dict.fromkeys(runs, 20))
    rows = await database.rows("SELECT type, count(*) AS n FROM artifact GROUP BY type")
    assert {row["type"]: row["n"] for row in rows} == dict.fromkeys(CHAIN, 200)
    stored = {str(row["id"]) for row in await database.rows("SELECT id FROM artifact WHERE type = 'Order'")}
    assert stored == {item.artifact_id for item in published}
    await check_all(database)


async def test_a_key_that_two_servers_claim_at_once_is_claimed_once(start: Start, database: Database) -> None:
    """FL-8, rule 1: many keys in many batches of both servers, crosswise: no deadlock, no double."""
    here, there = await start()
    await register(here, ("Order",))
    keys = [key(f"k{n}") for n in range(60)]
    calls = [here.artifacts.publish(ROOT, order(), one) for one in keys]
    calls += [there.artifacts.publish(ROOT, order(), one) for one in reversed(keys)]
    answers = await asyncio.gather(*calls)
    assert len({answer.artifact_id for answer in answers}) == 60
    assert sum(answer.replayed for answer in answers) == 60
    await check_all(database)


async def test_a_chosen_id_that_two_servers_begin_at_once_is_one_run(start: Start, database: Database) -> None:
    """FL-5: joined by whoever comes second."""
    here, there = await start()
    await register(here, ("Order",))
    runs = [new_id() for _ in range(20)]
    await asyncio.gather(
        *(
            service.artifacts.publish(ROOT, order(correlation_id=run_id), None)
            for run_id in runs
            for service in (here, there)
        )
    )
    assert await database.value("SELECT count(*) FROM run") == 20
    assert await database.value("SELECT count(*) FROM artifact") == 40
    await check_all(database)


@pytest.mark.parametrize("point", ["before write", "after write"])
async def test_a_connection_lost_at_the_commit_neither_loses_nor_repeats(
    start: Start, database: Database, owner_path: bool, point: str
) -> None:
    """Rule 3: the batch's row tells what became of it; callers get their answer, and everything is there once."""
    here, _ = await start(owner_path=owner_path)
    await register(here, ("Order",))
    lane = here.engine.committer.lane
    assert isinstance(lane, PostgresLane)
    point = {"before write": "before write" if owner_path else "inside transaction", "after write": "after write"}[
        point
    ]

    def cut(at: str) -> None:
        if at == point:
            here.engine.committer.at = lambda at: None
            lane._live().terminate()

    here.engine.committer.at = cut
    published = await asyncio.gather(*(here.artifacts.publish(ROOT, order(n), key(f"k{n}")) for n in range(20)))
    assert await database.value("SELECT count(*) FROM artifact") == 20
    again = await asyncio.gather(*(here.artifacts.publish(ROOT, order(n), key(f"k{n}")) for n in range(20)))
    assert [item.artifact_id for item in again] == [item.artifact_id for item in published]
    assert all(item.replayed for item in again)
    await check_all(database)


async def test_a_commit_whose_answer_was_lost_is_not_repeated(
    start: Start, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 3: the statement was committed, the connection broke before the answer came."""
    here, _ = await start()
    await register(here, ("Order",))
    lane = here.engine.committer.lane
    assert isinstance(lane, PostgresLane)
    write = lane.write

    async def lose_the_answer(statement: object) -> int:
        await write(statement)  # type: ignore[arg-type]
        monkeypatch.setattr(lane, "write", write)
        lane._live().terminate()
        raise Disconnected

    monkeypatch.setattr(lane, "write", lose_the_answer)
    published = await asyncio.gather(*(here.artifacts.publish(ROOT, order(n), None) for n in range(5)))
    assert {str(row["id"]) for row in await database.rows("SELECT id FROM artifact")} == {
        item.artifact_id for item in published
    }
    await check_all(database)


async def test_a_database_that_stays_away_is_unavailable(
    start: Start, monkeypatch: pytest.MonkeyPatch, database: Database
) -> None:
    """FL-10: UNAVAILABLE, retryable; nothing hangs; afterwards the server works as before."""
    here, _ = await start()
    await register(here, ("Order",))
    await here.artifacts.publish(ROOT, order(), None)
    lane = here.engine.committer.lane
    assert isinstance(lane, PostgresLane)
    url = lane._url
    monkeypatch.setattr(committer, "SETTLE_S", 0.2)
    lane._url = "postgresql:///nowhere?host=/nowhere"
    lane._live().terminate()
    with pytest.raises(Unavailable) as refused:
        await asyncio.wait_for(here.artifacts.publish(ROOT, order(), None), 5)
    assert refused.value.retryable
    lane._url = url
    await here.artifacts.publish(ROOT, order(), None)
    assert await database.value("SELECT count(*) FROM artifact") == 2
    await check_all(database)


async def test_a_full_disk_is_unavailable(start: Start, database: Database, owner_path: bool) -> None:
    """FL-10: UNAVAILABLE, retryable, not INTERNAL: the request is not at fault, and there may be room again."""
    here, _ = await start(owner_path=owner_path)
    await register(here, ("Order",))
    await database.execute(
        """CREATE FUNCTION warp.full() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'no space left' USING ERRCODE = '53100'; END $$;
        CREATE TRIGGER full_disk BEFORE INSERT ON artifact FOR EACH ROW EXECUTE FUNCTION warp.full()"""
    )
    with pytest.raises(Unavailable) as refused:
        await asyncio.wait_for(here.artifacts.publish(ROOT, order(), None), 10)
    assert refused.value.retryable
    await database.execute("DROP TRIGGER full_disk ON artifact")
    await here.artifacts.publish(ROOT, order(), None)
    await check_all(database)


async def test_large_batches_are_cut_to_size(start: Start, database: Database, owner_path: bool) -> None:
    """Architecture: capped by count and bytes; everything arrives."""
    here, there = await start(owner_path=owner_path, batch_max_commands=7, batch_max_bytes=3000)
    await register(here, ("Order",))
    items = [made("Order", text="x" * (n % 40) * 20) for n in range(100)]
    batch = await here.artifacts.publish_batch(ROOT, items, [None] * 100, None)
    assert all(isinstance(result, Published) for result in batch.results)
    made_tasks = await there.tasks.create_batch(ROOT, [NewTask("sums")] * 50, [None] * 50, None)
    assert all(isinstance(result, CreatedTask) for result in made_tasks.results)
    assert await database.value("SELECT count(*) FROM commit_batch") > 20
    await check_all(database)


async def test_many_at_once_share_few_transactions(start: Start, database: Database, owner_path: bool) -> None:
    """Architecture: group commit: what waits while one batch is written is the next one."""
    here, _ = await start(owner_path=owner_path)
    await register(here, ("Order",))
    before = await database.value("SELECT count(*) FROM commit_batch")
    await asyncio.gather(*(here.artifacts.publish(ROOT, order(n), None) for n in range(300)))
    assert await database.value("SELECT count(*) FROM commit_batch") - before < 15
    await check_all(database)


async def test_one_tenants_registration_does_not_disturb_anothers_publishes(start: Start) -> None:
    """Rule 4: versions are the tenant's own."""
    here, there = await start()
    await register(here, ("Order",))
    await register(here, ("Order",), tenant="other")
    stranger = principal("root", "other")
    calls = []
    for n in range(20):
        calls.append(here.artifacts.publish(ROOT, order(n), None))
        calls.append(here.artifacts.publish(stranger, order(n), None))
        if n % 5 == 0:
            calls.append(there.agents.create(stranger, agent(f"agent{n}", "Order"), None))  # type: ignore[arg-type]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [result for result in results if isinstance(result, BaseException)] == []


async def test_what_is_decided_while_another_batch_is_written_stands(
    start: Start, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariants, owner path: batches overlap; one that fails in the middle takes nobody with it."""
    monkeypatch.setattr(committer, "OVERLAP_FROM", 2)
    here, there = await start(batch_max_commands=10)
    agents = [*CHAIN_AGENTS]
    async with Worker(here, agents=agents, known=types(*CHAIN), handler=CHAIN_HANDLER, slots=50):
        runs = [new_id() for _ in range(4)]
        calls = []
        for n in range(150):
            new = order(n, correlation_id=runs[n % 4] if n % 3 else "", partition_key="\0" if n % 25 == 7 else "")
            calls.append((here, there)[n % 5 == 0].artifacts.publish(ROOT, new, key(f"k{n % 120}")))
        results = await asyncio.gather(*calls, return_exceptions=True)

        async def all_ended() -> bool:
            return not await database.value("SELECT count(*) FROM run WHERE finished_us = 0")

        await eventually(all_ended, "that all runs end")
    refused = [n for n, result in enumerate(results) if isinstance(result, BaseException)]
    assert [n % 25 for n in refused] == [7] * len(refused)
    good = [result for result in results if isinstance(result, Published)]
    rows = await database.rows("SELECT type, count(*) AS n FROM artifact GROUP BY type")
    assert {row["type"]: row["n"] for row in rows} == dict.fromkeys(CHAIN, len({item.artifact_id for item in good}))
    await check_all(database)
