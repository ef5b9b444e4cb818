"""Visibility: to whom an artifact is delivered, and who reads it."""

import asyncio

import pytest
from tests.engine.database import Database
from tests.engine.servers import Roles, Start
from tests.engine.workers import Worker, done
from tests.engine.world import ROOT, agent, blind, made, order, register, seconds, types

from millstream.application.paging import PageRequest
from millstream.application.views.artifacts import ArtifactQuery, Published
from millstream.application.views.leases import Lease
from millstream.application.views.reports import Completion
from millstream.domain.artifacts import NewArtifact, Visibility
from millstream.domain.errors import NotFound, ValidationFailed
from millstream.domain.principals import Principal
from millstream.domain.runs import RunStatus
from millstream.wiring import Service

PLAIN = agent("plain", "Order")
CLEARED = agent("cleared", "Order", labels=("secret", "eu"))
HALF = agent("half", "Order", labels=("secret",))

PRIVATE = Visibility("Private", agents=("half",))
LABELLED = Visibility("Labelled", required_labels=("eu", "secret"))
OURS = Visibility("Tenant")
NAMED = Visibility("Tenant", tenant_id="acme")
THEIRS = Visibility("Private", agents=("somebody else",))
FOREIGN = Visibility("Tenant", tenant_id="other")


@pytest.mark.parametrize(
    ("visibility", "expected"),
    [
        (Visibility(), {"plain", "cleared", "half"}),
        (PRIVATE, {"half"}),
        (LABELLED, {"cleared"}),
        (OURS, {"plain", "cleared", "half"}),
        (NAMED, {"plain", "cleared", "half"}),
        (THEIRS, set()),
    ],
)
async def test_an_artifact_goes_to_the_agents_that_may_see_it(
    start: Start, visibility: Visibility, expected: set[str]
) -> None:
    """FL-6: Public, Private, Labelled and Tenant hold in delivery."""
    here, there = await start()
    async with Worker(there, agents=[PLAIN, CLEARED, HALF], known=types("Order"), handler=done) as worker:
        result = await here.artifacts.publish_sync(ROOT, order(visibility=visibility), None, 10)
    assert result.completed
    assert {lease.task.agent for lease in worker.seen} == expected


async def test_after_delays_delivery_and_keeps_the_run_open(spread: Roles, database: Database) -> None:
    """FL-6, rule 13: hidden for its ttl the artifact is not delivered, then it is; meanwhile the run stays open."""
    later = Visibility("After", ttl_us=seconds(60), then=PRIVATE)
    async with Worker(spread.worker, agents=[PLAIN, HALF], known=types("Order"), handler=done) as worker:
        published = await spread.publisher.artifacts.publish(ROOT, order(visibility=later), None)
        run = await spread.worker.runs.get(ROOT, published.correlation_id)
        assert (run.status, run.open_tasks) == (RunStatus.RUNNING, 1)
        await spread.worker.loops.poll()
        assert worker.seen == []
        waiting = asyncio.create_task(
            spread.publisher.artifacts.publish_sync(ROOT, order(correlation_id=run.id, visibility=THEIRS), None, 10)
        )
        await database.pass_time(61)
        await spread.publisher.loops.poll()
        assert (await waiting).completed
    assert [lease.task.agent for lease in worker.seen] == ["half"]


READERS: dict[str, Principal] = {
    "nobody": blind("nobody"),
    "plain": blind("plain", agent="plain"),
    "half": blind("half", agent="half", labels=["secret"]),
    "cleared": blind("cleared", agent="cleared", labels=["secret", "eu", "more"]),
    "all": ROOT,
}


async def seen(service: Service, who: Principal) -> tuple[set[str], int, dict[str, int]]:
    """What a principal's list, its total and its summary show, by partition key."""
    page = await service.artifacts.list(who, ArtifactQuery(), PageRequest(), False)
    summary = await service.artifacts.summarize(who, ArtifactQuery())
    assert sum(summary.by_type.values()) == summary.total
    return {item.artifact.partition_key for item in page.items}, page.info.total or 0, summary.by_visibility


async def publish_one_of_each(service: Service) -> dict[str, str]:
    """An artifact of every visibility; ids by partition key."""
    await register(service, ("Order",))
    wanted = {
        "public": Visibility(),
        "private": PRIVATE,
        "labelled": LABELLED,
        "ours": OURS,
        "theirs": THEIRS,
        "later": Visibility("After", ttl_us=seconds(60), then=PRIVATE),
        "much later": Visibility("After", ttl_us=seconds(60), then=Visibility("After", ttl_us=seconds(60))),
    }
    ids = {}
    for name, visibility in wanted.items():
        ids[name] = (
            await service.artifacts.publish(ROOT, order(visibility=visibility, partition_key=name), None)
        ).artifact_id
    return ids


EVERYONE = {"public", "ours"}
VISIBLE = {
    "nobody": EVERYONE,
    "plain": EVERYONE,
    "half": EVERYONE | {"private"},
    "cleared": EVERYONE | {"labelled"},
    "all": {"public", "private", "labelled", "ours", "theirs", "later", "much later"},
}


async def test_reads_show_what_the_reader_may_see(start: Start) -> None:
    """FL-6: list, its total, summary and get agree, for every kind of reader, on any server."""
    here, there = await start()
    ids = await publish_one_of_each(here)
    for name, who in READERS.items():
        for service in (here, there):
            listed, total, by_visibility = await seen(service, who)
            assert listed == VISIBLE[name], name
            assert total == len(VISIBLE[name]), name
            assert sum(by_visibility.values()) == len(VISIBLE[name]), name
    for name, who in READERS.items():
        for artifact, artifact_id in ids.items():
            if artifact in VISIBLE[name]:
                assert (await there.artifacts.get(who, artifact_id)).partition_key == artifact
            else:
                with pytest.raises(NotFound):
                    await there.artifacts.get(who, artifact_id)


async def test_an_artifact_appears_when_its_time_has_come(start: Start, database: Database) -> None:
    """FL-6, rule 13: After is judged when read, then as `then` says, over several levels."""
    here, there = await start()
    await publish_one_of_each(here)
    await database.pass_time(61)
    await there.loops.poll()
    assert (await seen(there, READERS["half"]))[:2] == (VISIBLE["half"] | {"later"}, 4)
    assert (await seen(there, READERS["nobody"]))[:2] == (EVERYONE, 2)
    await database.pass_time(60)
    await there.loops.poll()
    assert (await seen(there, READERS["nobody"]))[:2] == (EVERYONE | {"much later"}, 3)


async def test_pages_of_what_one_may_see_are_full(start: Start) -> None:
    """FL-12, FL-6: hidden artifacts take no places of a page."""
    here, _ = await start()
    await register(here, ("Order",))
    hidden = Visibility("After", ttl_us=seconds(3600))
    for n in range(6):
        await here.artifacts.publish(ROOT, order(n, visibility=hidden if n % 2 else Visibility()), None)
    page = await here.artifacts.list(READERS["nobody"], ArtifactQuery(), PageRequest(limit=3), False)
    assert len(page.items) == 3


async def test_the_answer_of_a_sync_publish_hides_what_the_caller_may_not_see(spread: Roles) -> None:
    """FL-6: the input is the publisher's own and always shown; what agents made for others is not."""
    secretive = agent("half", "Order", "Payment")
    caller = blind("caller")

    def answer(lease: object) -> object:
        return done(lease, NewArtifact("Payment", visibility=PRIVATE), made("Payment"))  # type: ignore[arg-type]

    async with Worker(spread.worker, agents=[secretive], known=types("Order", "Payment"), handler=answer):  # type: ignore[arg-type]
        mine = order(visibility=PRIVATE)
        result = await spread.publisher.artifacts.publish_sync(caller, mine, None, 10)
        all_of_it = await spread.publisher.artifacts.publish_sync(ROOT, mine, None, 10)
    assert [(item.type, item.visibility.kind) for item in result.artifacts] == [
        ("Order", "Private"), ("Payment", "Public"),
    ]  # fmt: skip
    assert len(all_of_it.artifacts) == 3


async def test_a_joined_cascade_shows_its_first_artifact_only_to_those_who_may_see_it(spread: Roles) -> None:
    """FL-6: one's own input is shown, wherever in the cascade it stands; the first of another is not."""
    await register(spread.publisher, ("Order",))
    caller = blind("caller")
    first = await spread.publisher.artifacts.publish(ROOT, order(1, visibility=PRIVATE), None)
    mine = order(2, visibility=PRIVATE, correlation_id=first.correlation_id)
    result = await spread.publisher.artifacts.publish_sync(caller, mine, None, 10)
    assert result.completed
    assert [item.id == first.artifact_id for item in result.artifacts] == [False]


async def test_an_agent_reads_what_it_made(start: Start) -> None:
    """FL-6: the publisher always sees its artifact, whatever the visibility."""
    here, there = await start()
    maker = agent("maker", "Order", "Payment")
    async with Worker(
        there,
        agents=[maker],
        known=types("Order", "Payment"),
        handler=lambda lease: done(lease, NewArtifact("Payment", visibility=THEIRS)),
    ):
        result = await here.artifacts.publish_sync(ROOT, order(), None, 10)
    payment = result.artifacts[1].id
    assert (await here.artifacts.get(blind("w", agent="maker"), payment)).id == payment
    with pytest.raises(NotFound):
        await here.artifacts.get(blind("w", agent="plain"), payment)


@pytest.mark.parametrize(
    ("visibility", "field"),
    [
        (FOREIGN, "visibility.tenant_id"),
        (Visibility("After", ttl_us=1, then=FOREIGN), "visibility.then.tenant_id"),
    ],
)
async def test_a_visibility_for_another_tenant_is_refused(start: Start, visibility: Visibility, field: str) -> None:
    """FL-6: it could only hide the artifact from everyone. In a publish, in an item of a batch, and in a worker's
    answer, whose task fails with it."""
    here, there = await start()
    await register(here, ("Order", "Payment"))
    with pytest.raises(ValidationFailed) as refused:
        await here.artifacts.publish(ROOT, order(visibility=visibility), None)
    assert refused.value.details[0].field == field
    batch = await here.artifacts.publish_batch(ROOT, [order(), order(visibility=visibility)], [None, None], None)
    assert isinstance(batch.results[0], Published)
    assert isinstance(batch.results[1], ValidationFailed)
    async with Worker(
        there,
        agents=[agent("maker", "Order", "Payment")],
        handler=lambda lease: done(lease, made("Payment"), NewArtifact("Payment", visibility=visibility)),
    ):
        result = await here.artifacts.publish_sync(ROOT, order(), None, 10)
    (failure,) = result.failures
    assert (result.completed, failure.code, failure.attempts) == (True, "INVALID_OUTPUT", 1)
    assert failure.message.startswith(f"artifacts[1].{field}: must be 'acme'")
    assert [item.type for item in result.artifacts] == ["Order"]


async def test_what_was_stored_for_another_tenant_stays_hidden(start: Start, database: Database) -> None:
    """FL-6: as artifacts of earlier versions are."""
    here, there = await start()
    ids = await publish_one_of_each(here)
    stored = '{"kind":"Tenant","agents":[],"required_labels":[],"tenant_id":"other","ttl_us":0,"then":null}'
    await database.execute(
        "UPDATE artifact SET visibility_kind = 'Tenant', visibility = $1 WHERE id = $2::text::uuid", stored, ids["ours"]
    )
    assert (await seen(there, READERS["nobody"]))[:2] == ({"public"}, 1)
    with pytest.raises(NotFound):
        await there.artifacts.get(READERS["nobody"], ids["ours"])
    assert (await there.artifacts.get(ROOT, ids["ours"])).visibility == FOREIGN


async def test_an_answer_that_cannot_be_taken_fails_its_task_at_once(spread: Roles) -> None:
    """FL-6: what was wrong with it stands in the failure; the task does not wait for its deadline."""

    def answer(lease: Lease) -> Completion:
        fault = ValidationFailed.of("artifacts[0].visibility.agents", "belongs to the kind Private")
        return Completion(lease.task.id, lease.attempt, fault=fault)

    async with Worker(spread.worker, agents=[PLAIN], known=types("Order"), handler=answer):
        result = await spread.publisher.artifacts.publish_sync(ROOT, order(), None, 10)
    (failure,) = result.failures
    assert (result.completed, failure.code, failure.attempts) == (True, "INVALID_OUTPUT", 1)
    assert failure.message == "artifacts[0].visibility.agents: belongs to the kind Private"
