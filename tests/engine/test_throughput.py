"""What ended within the last minute: of a tenant, over all servers, up to what they noted."""

from collections.abc import Mapping, Sequence

import pytest
from tests.engine.database import Database
from tests.engine.servers import Roles, Start, eventually
from tests.engine.workers import Worker
from tests.engine.world import ROOT, principal

from millstream.application import throughput
from millstream.application.throughput import WINDOW_S
from millstream.application.views.queues import Ends
from millstream.application.views.tasks import NewTask
from millstream.domain.errors import Unavailable
from millstream.domain.principals import Principal
from millstream.domain.retry import RetryPolicy
from millstream.wiring import Service

OTHER = principal(tenant="globex")


@pytest.fixture(autouse=True)
def _noted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "NOTED_EVERY_S", 0.0)


async def told(service: Service, expected: Ends, who: Principal = ROOT) -> None:
    """Return when this is what a server tells."""

    async def so() -> bool:
        return await service.queues.throughput(who) == expected

    await eventually(so, f"{expected}")


async def test_what_ends_at_any_server_is_told_by_all(spread: Roles) -> None:
    """Tasks completed, failed, tried again and cancelled, and their runs; of the caller's tenant alone."""
    here, there = spread.publisher, spread.worker
    async with Worker(there, kinds=["sums"]) as worker, Worker(here, kinds=["sums"], who=OTHER) as others:
        for _ in range(2):
            await here.tasks.create(ROOT, NewTask("sums"), None)
            await worker.complete(await worker.take())
        await here.tasks.create(ROOT, NewTask("sums", retry=RetryPolicy(max_attempts=1)), None)
        await worker.fail(await worker.take())
        again = (await there.tasks.create(ROOT, NewTask("sums"), None)).task
        await worker.fail(await worker.take())
        await here.tasks.cancel(ROOT, again.id, "enough", None)
        await here.tasks.create(OTHER, NewTask("sums"), None)
        await others.complete(await others.take())
    for service in (here, there):
        await told(service, Ends(2, 1, 1, 1, 2, 1, 1))
        await told(service, Ends(tasks_completed=1, runs_completed=1), OTHER)
        assert await service.queues.throughput(principal(tenant="nobodys")) == Ends()


async def ended(service: Service) -> None:
    """A task ends."""
    task = (await service.tasks.create(ROOT, NewTask("nobodys"), None)).task
    await service.tasks.cancel(ROOT, task.id, "", None)


async def test_what_ended_is_told_for_a_minute(start: Start, database: Database) -> None:
    """And kept little longer, whatever came of its server."""
    here, there = await start()
    await ended(here)
    await told(there, Ends(tasks_cancelled=1, runs_cancelled=1))
    await database.pass_time(WINDOW_S - 20)
    await ended(there)
    await told(here, Ends(tasks_cancelled=2, runs_cancelled=2))
    await database.pass_time(30)
    assert await here.queues.throughput(ROOT) == Ends(tasks_cancelled=1, runs_cancelled=1)
    await database.pass_time(WINDOW_S)
    assert await here.queues.throughput(ROOT) == Ends()
    assert await database.value("SELECT count(*) FROM throughput") > 0
    await database.pass_time(WINDOW_S)
    await there.loops.sweep()
    assert await database.value("SELECT count(*) FROM throughput") == 0


async def test_what_was_noted_without_an_answer_counts_once(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends meanwhile is noted after it."""
    here, there = await start()
    note, tries = here.core.stores.throughput.note, list[int]()

    async def unheard(lane: str, at_us: int, ends: Mapping[str, Sequence[int]]) -> None:
        await note(lane, at_us, ends)
        tries.append(at_us)
        if len(tries) == 1:
            await ended(here)
            raise Unavailable("the connection was lost")

    monkeypatch.setattr(here.core.stores.throughput, "note", unheard)
    await ended(here)

    async def repeated() -> bool:
        return len(tries) > 2

    await eventually(repeated, "that the rest is noted")
    assert tries[0] == tries[1]
    await told(there, Ends(tasks_cancelled=2, runs_cancelled=2))
