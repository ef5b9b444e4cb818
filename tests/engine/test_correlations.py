"""Cascades as a whole: where one stands, told by rows alone, and all of its artifacts."""

import asyncio

import pytest
from tests.engine.database import Database
from tests.engine.servers import Start, killed
from tests.engine.workers import Worker, done, failed
from tests.engine.world import ROOT, agent, blind, order, payload_of, principal, register

from millstream.application import correlations
from millstream.application.ids import new_id
from millstream.application.views.artifacts import CorrelationStatus, Sent
from millstream.application.views.tasks import NewTask
from millstream.domain.artifacts import Visibility
from millstream.domain.errors import NotFound, ValidationFailed
from millstream.wiring import Service

HIDDEN = Visibility("Private", agents=("somebody",))


async def state_of(service: Service, run_id: str) -> tuple[str, bool, int, int]:
    """State, pending work, artifacts and errors, as an administrator sees them."""
    found = await service.correlations.status(ROOT, run_id)
    return found.state, found.has_pending_work, found.artifact_count, found.error_count


async def test_a_cascade_is_active_then_completed(start: Start) -> None:
    """FL-18: with its times, the same on every server."""
    here, there = await start()
    await register(here, ("Order",), agent("slow", "Order"))
    run_id = (await here.artifacts.publish(ROOT, order(), None)).correlation_id
    assert await state_of(there, run_id) == ("active", True, 1, 0)
    async with Worker(there, agents=[agent("slow", "Order")], handler=done):
        joined = order(2, correlation_id=run_id)
        assert (await here.artifacts.publish_sync(ROOT, joined, None, 10)).completed
    for service in (here, there):
        assert await state_of(service, run_id) == ("completed", False, 2, 0)
    found = await there.correlations.status(ROOT, run_id)
    run = await here.runs.get(ROOT, run_id)
    assert (found.started_us, found.last_activity_us) == (run.created_us, run.updated_us)
    assert found.started_us < found.last_activity_us


async def test_failed_tasks_are_counted_and_a_cancelled_cascade_is_failed(start: Start) -> None:
    """FL-18: errors are what failed finally; FL-18 has no word of its own for what was cancelled."""
    here, there = await start()

    await register(here, ("Order", "Idle"), agent("idle", "Idle"))
    async with Worker(there, agents=[agent("bad", "Order")], handler=lambda lease: failed(lease, retryable=False)):
        result = await here.artifacts.publish_sync(ROOT, order(), None, 10)
    assert await state_of(there, result.correlation_id) == ("failed", False, 1, 1)
    waiting = order()
    waiting.type = "Idle"
    run_id = (await here.artifacts.publish(ROOT, waiting, None)).correlation_id
    await here.runs.cancel(ROOT, run_id, "enough", None)
    assert await state_of(there, run_id) == ("failed", False, 1, 0)


async def test_what_is_no_cascade_of_the_tenant_is_not_found(start: Start) -> None:
    """FL-18: an unknown id, another tenant's, and another kind of run look alike, and are no error."""
    here, _ = await start()
    await register(here, ("Order",))
    run_id = (await here.artifacts.publish(ROOT, order(), None)).correlation_id
    single = (await here.tasks.create(ROOT, NewTask("k"), None)).task.run_id
    spy = principal("spy", "other")
    for who, asked in ((ROOT, new_id()), (spy, run_id), (ROOT, single)):
        assert await here.correlations.status(who, asked) == CorrelationStatus(asked)


async def test_a_reader_counts_only_what_it_may_see(start: Start) -> None:
    """FL-18, FL-6: the count tells nothing of hidden artifacts."""
    here, _ = await start()
    await register(here, ("Order",))
    run_id = (await here.artifacts.publish(ROOT, order(), None)).correlation_id
    for n in range(3):
        await here.artifacts.publish(ROOT, order(n, correlation_id=run_id, visibility=HIDDEN), None)
    for who, expected in ((ROOT, 4), (blind("x"), 1), (blind("y", agent="somebody"), 4)):
        assert (await here.correlations.status(who, run_id)).artifact_count == expected


async def test_the_state_is_true_after_a_crash(start: Start) -> None:
    """FL-18: the server that held the cascade is killed in the middle; another one tells what is stored."""
    here, there = await start()
    await register(here, ("Order",), agent("idle", "Order"))
    published = await asyncio.gather(*(here.artifacts.publish(ROOT, order(n), None) for n in range(20)))
    await killed(here)
    for each in published:
        assert await state_of(there, each.correlation_id) == ("active", True, 1, 0)


async def test_an_export_goes_on_behind_its_cursor_page_by_page(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """FL-18: in the order stored, at either server; what came later follows the last cursor."""
    monkeypatch.setattr(correlations, "EXPORT_PAGE", 3)
    here, there = await start()
    await register(here, ("Order",))
    cascade = (await here.artifacts.publish(ROOT, order(0), None)).correlation_id
    for n in range(1, 10):
        await (here, there)[n % 2].artifacts.publish(ROOT, order(n, correlation_id=cascade), None)

    async def export(service: Service, cursor: str = "") -> list[Sent]:
        pages = [page async for page in service.correlations.export(ROOT, cascade, cursor)]
        assert all(0 < len(page) <= 3 for page in pages)
        return [sent for page in pages for sent in page]

    whole = await export(here)
    assert [payload_of(sent.artifact)["order_id"] for sent in whole if sent.artifact] == [str(n) for n in range(10)]
    for place, sent in enumerate(whole):
        assert await export(there, sent.cursor) == whole[place + 1 :]
    await here.artifacts.publish(ROOT, order("late", correlation_id=cascade), None)
    (late,) = await export(there, whole[-1].cursor)
    assert late.artifact is not None
    assert payload_of(late.artifact) == {"order_id": "late"}


async def test_what_cannot_be_exported_is_refused(start: Start, database: Database) -> None:
    """An unknown cascade, another's cursor; but the artifacts of one that outlived their cascade are exported."""
    here, _ = await start()
    await register(here, ("Order",))
    cascade = (await here.artifacts.publish(ROOT, order(), None)).correlation_id
    ((sent,),) = [page async for page in here.correlations.export(ROOT, cascade, "")]
    with pytest.raises(NotFound):
        await anext(here.correlations.export(ROOT, new_id(), ""))
    with pytest.raises(NotFound):
        await anext(here.correlations.export(principal("spy", "other"), cascade, ""))
    with pytest.raises(ValidationFailed, match="is of an export of the cascade"):
        await anext(here.correlations.export(ROOT, new_id(), sent.cursor))
    with pytest.raises(ValidationFailed, match="cursor"):
        await anext(here.correlations.export(ROOT, cascade, "odd"))
    await database.execute("DELETE FROM run")
    assert [page async for page in here.correlations.export(ROOT, cascade, "")] == [[sent]]
