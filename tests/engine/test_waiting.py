"""Waiting for the end of a run, over servers, with and without wake-ups."""

import asyncio

import pytest
from tests.engine.database import Database
from tests.engine.servers import Roles, Start, eventually, killed
from tests.engine.workers import Worker, chain_worker
from tests.engine.world import CHAIN, CHAIN_AGENTS, ROOT, agent, made, order, register, types

from millstream.application.views.artifacts import SyncResult
from millstream.store.wakeups import channel
from millstream.wiring import Service


async def waiting_for(service: Service, count: int = 1) -> None:
    """Return when so many callers wait."""

    async def waits() -> bool:
        return len(service.engine.waiters) == count

    await eventually(waits, "that a caller waits")


async def deaf(service: Service) -> None:
    """The server hears no wake-up any more."""
    receiver = service._background[3]
    assert receiver.get_coro().__qualname__ == "Wakeups.run_receiver"  # type: ignore[union-attr]
    receiver.cancel()
    await asyncio.gather(receiver, return_exceptions=True)


async def test_the_end_wakes_a_caller_on_another_server_at_once(start: Start) -> None:
    """Rule 8, FL-2: by a wake-up, not by the poll of a second."""
    here, there = await start()
    async with chain_worker(there):
        loop = asyncio.get_running_loop()
        began = loop.time()
        for n in range(5):
            assert (await here.artifacts.publish_sync(ROOT, order(n), None, 10)).completed
        assert loop.time() - began < 0.9


async def test_a_lost_wake_up_is_found_by_the_safety_poll(start: Start) -> None:
    """Rule 8: the end of a run, though the listener is gone."""
    here, there = await start()
    async with Worker(there, agents=CHAIN_AGENTS[:1], known=types(*CHAIN)) as worker:
        await deaf(here)
        call = asyncio.create_task(here.artifacts.publish_sync(ROOT, order(), None, 30))
        await worker.complete(await worker.take())
        await here.loops.poll()
        await here.loops.poll()
        result = await asyncio.wait_for(call, 1)
    assert result.completed


async def test_waiting_work_without_a_wake_up_is_found_by_the_safety_poll(start: Start) -> None:
    """Rule 8: tasks that another server made."""
    here, there = await start()
    async with Worker(there, agents=CHAIN_AGENTS[:1], known=types(*CHAIN)) as worker:
        await deaf(there)
        await here.artifacts.publish(ROOT, order(), None)
        await there.loops.poll()
        await asyncio.wait_for(worker.leases.get(), 0.5)


async def test_a_cancellation_without_a_wake_up_still_ends(start: Start, database: Database) -> None:
    """Rule 8: the worker is not told, but the renewal finds that its lease is gone."""
    here, there = await start(cancel_grace_s=10)
    async with Worker(there, agents=CHAIN_AGENTS[:1], known=types(*CHAIN)) as worker:
        published = await here.artifacts.publish(ROOT, order(), None)
        await worker.take()
        await deaf(there)
        await here.runs.cancel(ROOT, published.correlation_id, "", None)
        await database.pass_time(11)
        await here.loops.poll()
        await there.loops.renew()
        assert (await worker.told()).reason == "LEASE_LOST"


async def test_a_listener_that_lost_its_connection_listens_again(start: Start, database: Database) -> None:
    """Rule 8."""
    here, there = await start()
    async with chain_worker(there):
        listening = "SELECT pid FROM pg_stat_activity WHERE query = $1 AND pid <> pg_backend_pid()"
        query = f'LISTEN "{channel(here.engine.lane_id)}"'
        rows = await database.rows("SELECT pid, query FROM pg_stat_activity WHERE query ILIKE 'listen%'")
        mine = [row["pid"] for row in rows if channel(here.engine.lane_id) in row["query"]]
        assert len(mine) == 1, (rows, query, listening)
        await database.execute("SELECT pg_terminate_backend($1)", mine[0])

        async def again() -> bool:
            rows = await database.rows("SELECT pid, query FROM pg_stat_activity WHERE query ILIKE 'listen%'")
            return any(channel(here.engine.lane_id) in row["query"] and row["pid"] != mine[0] for row in rows)

        await eventually(again, "that it listens again")
        assert (await asyncio.wait_for(here.artifacts.publish_sync(ROOT, order(), None, 10), 0.9)).completed


async def test_many_callers_wait_for_one_cascade(spread: Roles) -> None:
    """FL-2: on both servers; all get the same."""
    await register(spread.publisher, ("Order", "Payment"), agent("payments", "Order"))
    async with Worker(spread.worker, kinds=["agent:payments"]) as worker:
        first = asyncio.create_task(spread.publisher.artifacts.publish_sync(ROOT, order(), None, 10))
        lease = await worker.take()
        run_id = lease.task.run_id
        others = [
            asyncio.create_task(service.artifacts.publish_sync(ROOT, made("Payment", run_id), None, 10))
            for service in (spread.publisher, spread.worker) * 3
        ]

        async def all_in() -> bool:
            return (await spread.publisher.runs.get(ROOT, run_id)).artifact_count == 7

        await eventually(all_in)
        assert not any(other.done() for other in others)
        await worker.complete(lease)
        results: list[SyncResult] = await asyncio.gather(first, *others)
    assert all(result.completed for result in results)
    assert {len(result.artifacts) for result in results} == {7}


async def test_nothing_is_left_of_a_wait(start: Start) -> None:
    """Invariant: nothing without a bound: answered, timed out, failed and cancelled waits are forgotten."""
    here, there = await start()
    await register(here, ("Order", "Payment"), agent("payments", "Payment"))
    assert (await here.artifacts.publish_sync(ROOT, order(), None, 5)).completed
    assert not (await here.artifacts.publish_sync(ROOT, made("Payment"), None, 0.01)).completed
    with pytest.raises(Exception, match="no artifact type"):
        await here.artifacts.publish_sync(ROOT, made("Nothing"), None, 5)
    call = asyncio.create_task(here.artifacts.publish_sync(ROOT, made("Payment"), None, 5))
    await waiting_for(here)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert len(here.engine.waiters) == 0
    assert len(there.engine.waiters) == 0


async def test_a_server_that_goes_answers_who_still_waits(start: Start, database: Database) -> None:
    """FV-19: nobody hangs on a server that ends; the run itself goes on elsewhere."""
    here, there = await start()
    await register(here, ("Order",), agent("payments", "Order"))
    async with database.other() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("LOCK TABLE artifact IN SHARE MODE")
        call = asyncio.create_task(here.artifacts.publish(ROOT, order(), None))

        async def blocked() -> bool:
            return bool(await database.value("SELECT count(*) FROM pg_locks WHERE NOT granted"))

        await eventually(blocked)
        closing = asyncio.create_task(here.close())
        with pytest.raises(Exception, match="shutting down"):
            await asyncio.wait_for(call, 5)
        await transaction.rollback()
        await closing
    assert (await there.artifacts.publish_sync(ROOT, order(), None, 0.05)).completed is False


async def test_a_cascade_outlives_the_server_it_was_published_on(start: Start) -> None:
    """Invariant: an acknowledged publish is finished by the others."""
    here, there = await start()
    async with Worker(there, agents=CHAIN_AGENTS[:2], known=types(*CHAIN)) as worker:
        published = await here.artifacts.publish(ROOT, order(), None)
        lease = await worker.take()
        await killed(here)
        await worker.complete(lease, made("Payment"))
        await worker.complete(await worker.take(), made("Shipment"))
    run = await there.runs.get(ROOT, published.correlation_id)
    assert (run.finished_us > 0, run.artifact_count) == (True, 3)
