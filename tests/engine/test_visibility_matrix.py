"""The matrix of visibility: every kind, for every reader, on every way by which something of an artifact is read."""

import dataclasses

import pytest
from tests.engine.database import Database
from tests.engine.servers import Roles, Start
from tests.engine.workers import Worker, done
from tests.engine.world import ROOT, TENANT, agent, blind, made, order, principal, register, seconds, types

from millstream.application.paging import PageRequest
from millstream.application.views.artifacts import ArtifactQuery
from millstream.application.views.runs import RunQuery
from millstream.application.views.tasks import TaskQuery
from millstream.domain.artifacts import Artifact, NewArtifact, Visibility
from millstream.domain.errors import NotFound
from millstream.domain.principals import Principal
from millstream.domain.runs import Event, EventType
from millstream.domain.struct_wire import encode_value
from millstream.wiring import Service

TTL_US = seconds(60)
PUBLIC = Visibility()
PRIVATE = Visibility("Private", agents=("named",))
LABELLED = Visibility("Labelled", required_labels=("eu", "secret"))
OURS = Visibility("Tenant")
NAMED = Visibility("Tenant", tenant_id=TENANT)
THEIRS = Visibility("Private", agents=("somebody else",))


def after(then: Visibility | None) -> Visibility:
    """Hidden for a minute, then as told."""
    return Visibility("After", ttl_us=TTL_US, then=then)


KINDS = {
    "public": PUBLIC,
    "private": PRIVATE,
    "labelled": LABELLED,
    "ours": OURS,
    "named": NAMED,
    "theirs": THEIRS,
    "after": after(None),
    "after-public": after(PUBLIC),
    "after-private": after(PRIVATE),
    "after-labelled": after(LABELLED),
    "after-ours": after(OURS),
    "after-theirs": after(THEIRS),
    "after-after-private": after(after(PRIVATE)),
}
PUBLISHER = dataclasses.replace(blind("publisher"), permissions=frozenset({"artifacts.publish", "artifacts.read"}))
ALL = frozenset(KINDS)
ANYONE = frozenset({"public", "ours", "named"})
LATER = frozenset({"after", "after-public", "after-ours"})


def reader(name: str, **fields: object) -> Principal:
    """One who may read all that a worker may, and sees what visibility lets it."""
    return dataclasses.replace(
        principal(name, TENANT, "worker"),
        agent=str(fields.get("agent", "")),
        labels=frozenset(fields.get("labels", ())),  # type: ignore[call-overload]
    )


READERS: dict[str, tuple[Principal, tuple[frozenset[str], ...]]] = {
    # Who, and what it sees at once, after one minute and after two.
    "publisher": (reader("publisher"), (ALL, ALL, ALL)),
    "named agent": (
        reader("w1", agent="named"),
        (
            ANYONE | {"private"},
            ANYONE | LATER | {"private", "after-private"},
            ANYONE | LATER | {"private", "after-private", "after-after-private"},
        ),
    ),
    "labelled agent": (
        reader("w2", agent="labelled", labels=("eu", "secret", "x")),
        (ANYONE | {"labelled"}, *[ANYONE | LATER | {"labelled", "after-labelled"}] * 2),
    ),
    "half labelled": (reader("w3", agent="half", labels=("eu",)), (ANYONE, ANYONE | LATER, ANYONE | LATER)),
    "other agent": (reader("w4", agent="idle"), (ANYONE, ANYONE | LATER, ANYONE | LATER)),
    "one called as clients are": (reader("w5", agent="external"), (ANYONE, ANYONE | LATER, ANYONE | LATER)),
    "another tenant": (principal("spy", "other"), (frozenset(),) * 3),
    "administrator": (ROOT, (ALL, ALL, ALL)),
}


async def publish_all(service: Service) -> tuple[str, dict[str, str]]:
    """One artifact of each kind in one cascade: its id, and their ids by kind, which is partition key and tag, too."""
    await register(service, ("Order",), agent("idle", "Order"))
    run_id, ids = "", {}
    for name, visibility in KINDS.items():
        new = order(name, visibility=visibility, partition_key=name, tags=(name,), correlation_id=run_id)
        published = await service.artifacts.publish(PUBLISHER, new, None)
        run_id, ids[name] = published.correlation_id, published.artifact_id
    return run_id, ids


async def lists(service: Service, who: Principal, run_id: str) -> list[tuple[str, set[str]]]:
    """What lists, totals, summary and counts show, each as a set of kinds (or of as many as it counts)."""
    found = []
    for title, query in (("list", ArtifactQuery()), ("by correlation", ArtifactQuery(correlation_id=run_id))):
        page = await service.artifacts.list(who, query, PageRequest(), True)
        names = {item.artifact.partition_key for item in page.items}
        assert page.info.total == len(names), title
        summary = await service.artifacts.summarize(who, query)
        assert summary.total == sum(summary.by_type.values()) == sum(summary.by_visibility.values()) == len(names)
        assert sum(summary.by_producer.values()) == len(names)
        assert all(taken.artifact_id == item.artifact.id for item in page.items for taken in item.consumptions or ())
        found += [(title, names), (f"tags of {title}", set(summary.tag_counts))]
    names = set()
    for kind in KINDS:
        page = await service.artifacts.list(who, ArtifactQuery(tag=kind), PageRequest(limit=1), False)
        assert page.info.total == len(page.items)
        names |= {item.artifact.partition_key for item in page.items}
    found.append(("by tag", names))
    names = set()
    try:
        async for sent in service.correlations.export(who, run_id, ""):
            names |= {each.artifact.partition_key for each in sent if each.artifact is not None}
    except NotFound:
        assert who.tenant != TENANT
    found.append(("export", names))
    names, token = set(), ""
    while True:
        page = await service.artifacts.list(who, ArtifactQuery(), PageRequest(page_size=2, page_token=token), False)
        names |= {item.artifact.partition_key for item in page.items}
        token = page.info.next_page_token or ""
        assert len(page.items) == 2 or not token, "hidden artifacts take places of a page"
        if not token:
            return [*found, ("by token", names)]


async def traces(service: Service, who: Principal, run_id: str, ids: dict[str, str]) -> list[tuple[str, set[str]]]:
    """What runs, events and tasks show of artifacts. Those of another tenant are not found."""
    try:
        run = await service.runs.get(who, run_id)
    except NotFound:
        assert who.tenant != TENANT
        assert (await service.runs.list(who, RunQuery(), PageRequest())).items == []
        return []
    by_id = {artifact_id: name for name, artifact_id in ids.items()}
    events, _ = await service.runs.events(who, run_id, 0, 1000)
    assert [event.seq for event in events] == [*range(1, len(events) + 1)]
    shown = {by_id[event.artifact_id] for event in events if event.artifact_id}
    assert sum("produced_by" in event.data for event in events) == len(shown)
    (listed,) = (await service.runs.list(who, RunQuery(), PageRequest())).items
    assert run.artifact_count == listed.artifact_count == len(shown)
    given = set()
    for query in (TaskQuery(run_id=run_id), TaskQuery()):
        page = await (service.tasks.list if not query.run_id else service.runs.tasks)(who, query, PageRequest())
        for task in page.items:
            assert (await service.tasks.get(who, task.id)).task.artifact_ids == task.artifact_ids
            given |= {by_id[each] for each in task.artifact_ids}
    # The agent idle gets what it may see, or will: what it is never given stands in no task.
    return [("events", shown), ("tasks", given | (shown - DELIVERED))]


DELIVERED = ANYONE | LATER


@pytest.mark.parametrize("name", READERS)
async def test_every_read_shows_what_the_reader_may_see_and_no_more(
    start: Start, database: Database, name: str
) -> None:
    """FL-6: list, total, pages, tags, summary, export, get, status, runs, events and tasks, as time passes."""
    here, there = await start()
    run_id, ids = await publish_all(here)
    who, expected = READERS[name]
    for minute, visible in enumerate(expected):
        if minute:
            await database.pass_time(61)
            await there.loops.poll()
        shown = await lists(there, who, run_id) + await traces(there, who, run_id, ids)
        for title, found in shown:
            assert found == visible, (title, minute)
        for kind, artifact_id in ids.items():
            if kind in visible:
                assert (await there.artifacts.get(who, artifact_id)).partition_key == kind
            else:
                with pytest.raises(NotFound):
                    await there.artifacts.get(who, artifact_id)
        status = await there.correlations.status(who, run_id)
        assert status.artifact_count == len(visible)


@pytest.mark.parametrize("kind", KINDS)
async def test_an_artifact_goes_to_those_who_may_see_it_when_they_may(
    spread: Roles, database: Database, kind: str
) -> None:
    """FL-6, rule 13: delivery, of each kind, as time passes."""
    agents = [agent("named", "Order"), agent("labelled", "Order", labels=("eu", "secret")), agent("idle", "Order")]
    async with Worker(spread.worker, agents=agents, known=types("Order"), handler=done) as worker:
        joined = await spread.publisher.artifacts.publish(ROOT, order(visibility=KINDS[kind]), None)
        for minute in range(3):
            if minute:
                await database.pass_time(61)
                await spread.publisher.loops.poll()
                await spread.worker.loops.poll()
            # It is idle, or waits for its time alone, once another cascade has passed the same worker.
            await spread.publisher.artifacts.publish_sync(ROOT, order("probe", visibility=NAMED), None, 10)
            given = {lease.task.agent for lease in worker.seen if lease.task.run_id == joined.correlation_id}
            for name, title in (("named", "named agent"), ("labelled", "labelled agent"), ("idle", "other agent")):
                visible = READERS[title][1]
                # What After hides goes to those whom its end names.
                assert (name in given) == (kind in visible[minute]), (name, minute)


async def test_the_answer_of_a_sync_publish_names_nothing_hidden(spread: Roles) -> None:
    """FL-2, FL-6: its artifacts, and those that its failures are about; the input is the caller's own."""
    await register(spread.publisher, ("Order", "Payment"))
    secret = made("Payment")
    secret.visibility = THEIRS

    def answer(lease: object) -> object:
        return done(lease, secret) if lease.task.agent == "maker" else None  # type: ignore[attr-defined, arg-type]

    maker, refuser = agent("maker", "Order", "Payment"), agent("other", "Payment")
    async with Worker(spread.worker, agents=[maker, refuser], handler=answer):  # type: ignore[arg-type]
        result = await spread.publisher.artifacts.publish_sync(PUBLISHER, order(visibility=PRIVATE), None, 10)
    assert [item.type for item in result.artifacts] == ["Order"]


async def test_the_rest_of_a_truncated_answer_is_pages_of_what_one_may_see(start: Start) -> None:
    """FL-2, FL-6: hidden artifacts take no places of its pages, and no token tells of them."""
    here, _ = await start()
    await register(here, ("Order",))
    first = await here.artifacts.publish(ROOT, order(), None)
    items: list[NewArtifact] = [
        order(n, correlation_id=first.correlation_id, visibility=PRIVATE if n % 2 else PUBLIC) for n in range(2200)
    ]
    for begin in range(0, len(items), 1000):
        chunk = items[begin : begin + 1000]
        await here.artifacts.publish_batch(ROOT, [*chunk], [None] * len(chunk), None)
    caller = reader("caller")
    result = await here.artifacts.publish_sync(caller, order("mine", correlation_id=first.correlation_id), None, 10)
    assert (len(result.artifacts), bool(result.next_page_token)) == (1000, True)
    rest: list[Artifact] = []
    token: str | None = result.next_page_token
    while token:
        query = ArtifactQuery(correlation_id=first.correlation_id)
        page = await here.artifacts.list(caller, query, PageRequest(page_size=50, page_token=token), False)
        rest += [item.artifact for item in page.items]
        token = page.info.next_page_token
        assert len(page.items) == 50 or not token
    assert len(result.artifacts) + len(rest) == 1 + 1100 + 1
    assert {item.visibility.kind for item in rest} == {"Public"}


PARTS = ALL - {"theirs", "after-theirs"}
COLLECTOR = agent("named", "Order", labels=("eu", "secret"), counts=(("Order", len(PARTS) + 1),))
GATE_READERS = READERS | {
    "the agent": (
        reader("w6", agent="named", labels=("eu", "secret")),
        (ANYONE | {"private", "labelled"}, PARTS - {"after-after-private"}, PARTS),
    )
}


@pytest.mark.parametrize("name", GATE_READERS)
async def test_gates_show_what_the_reader_may_see_and_no_more(start: Start, database: Database, name: str) -> None:
    """FL-6, FL-14: artifacts of every kind wait in one gate: who reads the agent, or the run's events, is told of those
    that it may see; what the gate had when it opened is told to those who may see all of it."""
    here, there = await start()
    await register(here, ("Order",), COLLECTOR)
    run_id, ids = "", {}
    for kind in sorted(PARTS):
        published = await here.artifacts.publish(
            PUBLISHER, order(kind, visibility=KINDS[kind], partition_key=kind, correlation_id=run_id), None
        )
        run_id, ids[kind] = published.correlation_id, published.artifact_id
    who, expected = GATE_READERS[name]
    for minute, kinds in enumerate(expected):
        if minute:
            await database.pass_time(61)
            await there.loops.poll()
        if who.tenant != TENANT:
            with pytest.raises(NotFound):
                await there.agents.get(who, "named")
            continue
        waiting = (await there.agents.detail(who, (await there.agents.get(who, "named")).agent)).waiting
        (gate,) = waiting.gates
        visible = kinds & PARTS
        assert (waiting.total, gate.have) == (1, {"Order": len(visible)})
        assert set(gate.artifact_ids) == {ids[kind] for kind in visible}
        waits, _ = await gate_events(there, who, run_id)
        assert {event.artifact_id for event in waits if event.artifact_id} == {ids[kind] for kind in visible}
        assert sum("named" in event.data for event in waits) == len(visible)
        assert all(("have" in event.data) == (name == "administrator") for event in waits)
    await here.artifacts.publish(PUBLISHER, order(correlation_id=run_id), None)
    if who.tenant == TENANT:
        _, (fired,) = await gate_events(there, who, run_id)
        assert ("parts" in fired.data) == (expected[-1] >= PARTS)


async def gate_events(service: Service, who: Principal, run_id: str) -> tuple[list[Event], list[Event]]:
    """What a run tells of what waited in gates, and of those that opened."""
    events, _ = await service.runs.events(who, run_id, 0, 1000)
    return (
        [event for event in events if event.type is EventType.GATE_WAITING],
        [event for event in events if event.type is EventType.GATE_FIRED],
    )


async def test_what_a_task_made_of_hidden_artifacts_is_not_shown_to_others(spread: Roles) -> None:
    """FL-6: its output, in the task and its attempts; of what the reader may see it is shown."""
    async with Worker(
        spread.worker, agents=[agent("named", "Order")], known=types("Order"),
        handler=lambda lease: done(lease, output=encode_value("what it was")),
    ):  # fmt: skip
        for visibility, expected in ((PRIVATE, b""), (PUBLIC, encode_value("what it was"))):
            made = await spread.publisher.artifacts.publish_sync(PUBLISHER, order(visibility=visibility), None, 10)
            who = reader("w4", agent="idle")
            (task,) = (
                await spread.publisher.runs.tasks(who, TaskQuery(run_id=made.correlation_id), PageRequest())
            ).items
            assert (await spread.publisher.tasks.get(who, task.id)).output == expected
            (attempt,), _ = await spread.publisher.tasks.attempts(who, task.id, 0, 10)
            assert attempt.output == expected
            (whole,), _ = await spread.publisher.tasks.attempts(ROOT, task.id, 0, 10)
            assert whole.output == encode_value("what it was")
