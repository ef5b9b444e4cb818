"""Definitions of workflows in versions: saved, read and deleted, over two servers on one database."""

import asyncio
from typing import Any

import pytest
from tests.engine.database import Database
from tests.engine.servers import Start, eventually
from tests.engine.workers import Worker
from tests.engine.world import ROOT, TENANT, agent, key, principal, register

from millstream.application.paging import PageRequest
from millstream.application.views.runs import RunQuery, RunResult
from millstream.application.views.workflows import WorkflowDetail, WorkflowQuery
from millstream.application.workflow_runs import NewRun
from millstream.domain.errors import Conflict, IdempotencyConflict, NotFound, ValidationFailed
from millstream.domain.runs import RunStatus
from millstream.domain.struct_wire import Json, encode_value
from millstream.domain.workflows import Definition
from millstream.wiring import Service


def task(name: str, *needs: str, **fields: Any) -> dict[str, Any]:
    """A step that is a task of its own name."""
    return {"id": name, "kind": "task", "task": name, "needs": [*needs]} | fields


def order(*steps: dict[str, Any], name: str = "order", **fields: Any) -> dict[str, Any]:
    """A definition."""
    return {"name": name, "steps": [*(steps or (task("pay"),))]} | fields


async def created(at: Service, given: dict[str, Any]) -> WorkflowDetail:
    return (await at.workflows.create(ROOT, given, None))[0]


async def updated(at: Service, given: dict[str, Any], expected: int | None = None) -> WorkflowDetail:
    return (await at.workflows.update(ROOT, given["name"], given, expected, None))[0]


async def latest(at: Service, name: str, version: str = "") -> Definition:
    """What a run begun there would follow."""
    return (await at.workflows.current(TENANT, name, version))[0]


async def names(at: Service, **query: Any) -> list[str]:
    page = await at.workflows.list(ROOT, WorkflowQuery(**query), PageRequest())
    return [head.name for head in page.items]


async def test_a_workflow_is_read_as_it_was_given(start: Start) -> None:
    """WM-2: by id and by name, on every server."""
    here, there = await start()
    given = order(task("pay", input={"z": "${input.amount}", "a": [1, None, 2.5]}), description="takes orders")
    made = await created(here, given)
    for wanted in ("order", made.head.id, made.head.id.upper()):
        found = await there.workflows.get(ROOT, wanted)
        assert (found.head, found.version) == (made.head, made.version)
    assert (made.head.version, made.head.description, made.head.created_by) == (1, "takes orders", "root")
    assert list((await latest(there, made.head.id)).steps[0].input) == ["z", "a"]  # type: ignore[arg-type]


async def test_each_change_makes_a_version_that_stays(start: Start) -> None:
    """WM-2: an equal definition makes none."""
    here, there = await start()
    await created(here, order())
    second = await updated(there, order(task("pay"), task("ship", "pay")), expected=1)
    same = await updated(here, order(task("pay"), task("ship", "pay")))
    assert (second.head.version, same.head, same.version) == (2, second.head, second.version)
    page = await here.workflows.versions(ROOT, "order", PageRequest())
    assert [each.version for each in page.items] == [2, 1]
    assert (
        await here.workflows.version(ROOT, "order", 1)
    ).document == '{"name":"order","steps":[{"id":"pay","kind":"task","task":"pay","needs":[]}]}'
    with pytest.raises(Conflict, match="has version 2, not 1"):
        await updated(here, order(), expected=1)
    with pytest.raises(ValidationFailed, match=r"definition\.name: must be 'order'"):
        await here.workflows.update(ROOT, "order", order(name="other"), None, None)


async def test_versions_of_changes_that_race_have_no_gap_and_no_double(start: Start) -> None:
    """WM-2: of two that expect the same version, one is refused."""
    here, there = await start()
    await created(here, order())
    many = [updated(at, order(task(f"pay{n}"))) for n in range(10) for at in (here, there)]
    made = await asyncio.gather(*many)
    last = max(each.head.version for each in made)
    page = await there.workflows.versions(ROOT, "order", PageRequest(page_size=100))
    assert [each.version for each in page.items] == [*range(last, 0, -1)]
    both = await asyncio.gather(
        updated(here, order(task("a")), last), updated(there, order(task("b")), last), return_exceptions=True
    )
    assert sorted(type(each).__name__ for each in both) == ["Conflict", "WorkflowDetail"]


async def test_only_one_of_two_creations_that_race_makes_the_workflow(start: Start) -> None:
    here, there = await start()
    both = await asyncio.gather(created(here, order()), created(there, order()), return_exceptions=True)
    assert sorted(type(each).__name__ for each in both) == ["Conflict", "WorkflowDetail"]


async def test_a_deleted_workflow_begins_no_run_and_its_versions_stay(start: Start) -> None:
    """WM-2: soft delete; one made again has another id, and goes on with the numbers."""
    here, there = await start()
    first = await created(here, order())
    before = await latest(there, "order")
    await here.workflows.delete(ROOT, "order", None)

    async def refused() -> bool:
        try:
            await latest(there, "order")
        except NotFound:
            return True
        return False

    await eventually(refused, "that the other server hears of the deletion")
    assert await there.workflows.pinned(TENANT, "order", "1") == before
    assert (await there.workflows.get(ROOT, "order")).head.deleted_us > 0
    assert (await names(there), await names(there, deleted=True)) == ([], ["order"])
    for call in (here.workflows.delete(ROOT, "order", None), updated(here, order(task("x")))):
        with pytest.raises(NotFound, match="it was deleted"):
            await call
    again = await created(there, order(task("other")))
    assert again.head.id != first.head.id
    assert again.head.version == 2
    assert (await latest(here, "order")).steps[0].id == "other"
    assert await there.workflows.pinned(TENANT, "order", 1) == before
    with pytest.raises(NotFound):
        await here.workflows.get(ROOT, first.head.id)


async def test_what_runs_follow_is_read_once(start: Start, database: Database) -> None:
    """Its versions never change, and whether there is a newer one is known from the registry's version."""
    here, there = await start()
    await created(here, order())
    first = await latest(there, "order")
    await database.execute("DELETE FROM workflow_version")
    await database.execute("UPDATE workflow SET version = 7")
    assert await latest(there, "order") is first
    _, seen = await there.workflows.current(TENANT, "order")
    await database.execute("UPDATE registry SET version = version + 1")
    with pytest.raises(NotFound, match="has no version 7"):
        await there.workflows.current(TENANT, "order", fresh=True)
    assert seen > 0


async def test_a_wake_up_that_is_lost_delays_a_change_by_two_seconds(start: Start, database: Database) -> None:
    """WM-2: an update and a deletion are seen by every server, whatever happens to messages."""
    here, there = await start()
    here.wakeups.send = lambda *_: None  # type: ignore[method-assign]
    here.core.peers.send = lambda *_: None
    await created(here, order())
    assert (await latest(there, "order")).version == 1
    await updated(here, order(task("x")))
    await database.pass_time(2.1)
    assert (await latest(there, "order")).version == 2
    await here.workflows.delete(ROOT, "order", None)
    await database.pass_time(2.1)
    with pytest.raises(NotFound, match="it was deleted"):
        await latest(there, "order")


async def test_a_version_is_pinned(start: Start) -> None:
    here, there = await start()
    await created(here, order())
    await updated(here, order(task("other")))
    assert (await latest(there, "order", "1")).steps[0].id == "pay"
    assert (await latest(there, "order")).version == 2
    for version in ("3", "0", "-1", "x", "1.0", "\u0661", str(1 << 40)):
        with pytest.raises(NotFound):
            await latest(there, "order", version)
    with pytest.raises(NotFound):
        await there.workflows.current("other", "order")


async def test_the_input_of_a_run_is_checked_with_the_schema(start: Start) -> None:
    """WM-3: every fault by its field; a costly schema in the process of its own."""
    here, _ = await start()
    schema = {"type": "object", "required": ["amount"], "properties": {"amount": {"type": "number"}}}
    await created(here, order(input_schema=schema, output_schema={"type": "array"}))
    found = await latest(here, "order")
    await here.workflows.check_input(found, {"amount": 1}, 10)
    await here.workflows.check_output(found, [], 2)
    for size_bytes in (10, 1 << 24):
        with pytest.raises(ValidationFailed) as refused:
            await here.workflows.check_input(found, {"amount": "much"}, size_bytes)
        assert [each.field for each in refused.value.details] == ["input.amount"]
    with pytest.raises(ValidationFailed, match="output"):
        await here.workflows.check_output(found, {}, 2)


async def test_what_a_definition_names_must_be_there(start: Start) -> None:
    """WM-2: agents, types, workflows and their versions are faults; a kind that nobody serves is a warning."""
    here, there = await start()
    await register(here, ("Order",), agent("maker", "Order"))
    await created(here, order(name="child"))
    await created(here, order(name="gone"))
    await here.workflows.delete(ROOT, "gone", None)
    steps = (
        {"id": "a", "kind": "agent", "agent": "maker"},
        {"id": "b", "kind": "agent", "agent": "nobody"},
        {"id": "c", "kind": "publish", "type": "Order"},
        {"id": "d", "kind": "publish", "type": "Nothing"},
        {"id": "e", "kind": "workflow", "workflow": "child", "version": 1},
        {"id": "f", "kind": "workflow", "workflow": "child", "version": 2},
        {"id": "g", "kind": "workflow", "workflow": "gone"},
        {"id": "h", "kind": "workflow", "workflow": "order"},
        {"id": "i", "kind": "map", "over": "input", "each": {"kind": "agent", "agent": "no"}},
        task("pay"),
    )
    expected = [
        ("definition.steps[1].agent", "NOT_FOUND"), ("definition.steps[3].type", "NOT_FOUND"),
        ("definition.steps[5].version", "NOT_FOUND"), ("definition.steps[6].workflow", "NOT_FOUND"),
        ("definition.steps[8].each.agent", "NOT_FOUND"),
    ]  # fmt: skip
    found = await there.workflows.validate(ROOT, order(*steps))
    assert [(each.field, each.code) for each in found.faults] == expected
    assert [(each.field, each.code) for each in found.warnings] == [("definition.steps[9].task", "NOT_SERVED")]
    with pytest.raises(ValidationFailed) as refused:
        await created(there, order(*steps))
    assert [(each.field, each.code) for each in refused.value.details] == expected
    fine = await created(there, order(*(steps[number] for number in (0, 2, 4, 7, 9))))
    assert [each.field for each in fine.warnings] == ["definition.steps[4].task"]


async def test_keys_are_replayed_whatever_became_of_the_workflow(start: Start) -> None:
    """FL-8: deleted, made anew by another, or no longer valid."""
    here, there = await start()
    await register(here, ("Order",), agent("maker", "Order"))
    steps = ({"id": "a", "kind": "agent", "agent": "maker"},)
    guard = key("k", "CreateWorkflow")
    first, replayed = await here.workflows.create(ROOT, order(*steps), guard)
    assert not replayed
    await here.agents.delete(ROOT, "maker", None)
    assert await there.workflows.create(ROOT, order(*steps), guard) == (first, True)
    gone = key("g", "DeleteWorkflow")
    assert not await here.workflows.delete(ROOT, "order", gone)
    assert await there.workflows.delete(ROOT, "order", gone)
    await created(here, order())
    assert await there.workflows.delete(ROOT, "order", gone)
    again, replayed = await there.workflows.create(ROOT, order(*steps), guard)
    assert (again.head.id, again.version, replayed) == (first.head.id, first.version, True)
    assert again.head.deleted_us > 0
    with pytest.raises(IdempotencyConflict):
        await here.workflows.create(ROOT, order(), key("k", "CreateWorkflow", "another"))


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("sort", ["name", "created_at", "updated_at"])
async def test_lists_are_sorted_and_paged(start: Start, sort: str, descending: bool) -> None:
    """WM-11: by number and by token, the same items in the same order."""
    here, there = await start()
    for name in ("b", "d", "a", "c"):
        await created(here, order(name=name))
    await updated(here, order(task("x"), name="a"))
    expected = {"name": "abcd", "created_at": "bdac", "updated_at": "bdca"}[sort]
    query = WorkflowQuery(sort=sort, descending=descending)
    wanted = [*expected[::-1]] if descending else [*expected]
    by_number, by_token, token = [], [], ""
    for number in (1, 2):
        page = await there.workflows.list(ROOT, query, PageRequest(page=number, page_size=2))
        by_number += [head.name for head in page.items]
        assert (page.info.total, page.info.total_pages) == (4, 2)
        page = await there.workflows.list(ROOT, query, PageRequest(page_token=token, page_size=2))
        token = page.info.next_page_token or ""
        by_token += [head.name for head in page.items]
    assert (by_number, by_token, token) == (wanted, wanted, "")
    other = WorkflowQuery(sort=sort, descending=not descending)
    first = await there.workflows.list(ROOT, query, PageRequest(page_size=1))
    with pytest.raises(ValidationFailed, match="page_token"):
        await there.workflows.list(ROOT, other, PageRequest(page_token=first.info.next_page_token))
    assert await names(there, name="c") == ["c"]


async def test_versions_are_paged(start: Start) -> None:
    here, there = await start()
    await created(here, order(task("s0")))
    for number in range(1, 5):
        await updated(here, order(task(f"s{number}")))
    found, token = [], ""
    for _ in range(3):
        page = await there.workflows.versions(ROOT, "order", PageRequest(page_size=2, page_token=token))
        found += [each.version for each in page.items]
        token = page.info.next_page_token or ""
    assert (found, token) == ([5, 4, 3, 2, 1], "")
    page = await there.workflows.versions(ROOT, "order", PageRequest(page=2, page_size=2))
    assert ([each.version for each in page.items], page.info.total) == ([3, 2], 5)


async def test_another_tenant_learns_nothing(start: Start) -> None:
    here, there = await start()
    made = await created(here, order())
    other = principal(tenant="other")
    for wanted in ("order", made.head.id):
        for call in (
            there.workflows.get(other, wanted),
            there.workflows.versions(other, wanted, PageRequest()),
            there.workflows.version(other, wanted, 1),
            there.workflows.update(other, wanted, order(), None, None),
            there.workflows.delete(other, wanted, None),
        ):
            with pytest.raises(NotFound):
                await call
    assert (await there.workflows.list(other, WorkflowQuery(), PageRequest())).items == []
    theirs, _ = await there.workflows.create(other, order(), None)
    assert theirs.head.version == 1


def deaf(*services: Service) -> None:
    """None of them tells the others anything."""
    for each in services:
        each.wakeups.send = lambda *_: None  # type: ignore[method-assign]
        each.core.peers.send = lambda *_: None


async def version_begun(at: Service, name: str = "order", given: Json = None) -> str:
    """The version that a new run follows."""
    return (await at.workflow_runs.execute(ROOT, NewRun(name, input=encode_value(given)), None)).run.workflow_version


def nap(*needs: str, **fields: Any) -> dict[str, Any]:
    """A step that is over at once."""
    return {"id": "nap", "kind": "sleep", "seconds": 0, "needs": [*needs]} | fields


async def test_a_run_begun_after_a_change_was_answered_follows_it(start: Start) -> None:
    """WM-2: on every server, whether or not it has heard of the change."""
    here, there = await start()
    deaf(here, there)
    await created(here, order())
    assert [await version_begun(at) for at in (here, there)] == ["1", "1"]
    for number in range(2, 5):
        await updated(here, order(task(f"pay{number}")))
        assert [await version_begun(at) for at in (there, here)] == [str(number)] * 2
    await here.workflows.delete(ROOT, "order", None)
    for at in (there, here):
        with pytest.raises(NotFound, match="it was deleted"):
            await version_begun(at)
    await created(here, order())
    assert [await version_begun(at) for at in (there, here)] == ["5", "5"]


async def test_many_runs_begun_after_a_change_follow_it(start: Start) -> None:
    """WM-3: each is given what the changed workflow takes, and only that refuses it."""
    here, there = await start()
    deaf(here, there)
    await created(here, order(input_schema={"type": "object"}))
    new = [NewRun("order", input=encode_value({})), NewRun("order", input=encode_value("text"))]
    first = await there.workflow_runs.execute_batch(ROOT, new, [None, None], None)
    assert isinstance(first.results[1], ValidationFailed)
    await updated(here, order(input_schema={"type": "string"}))
    then = await there.workflow_runs.execute_batch(ROOT, new, [None, None], None)
    assert isinstance(then.results[0], ValidationFailed)
    assert isinstance(then.results[1], RunResult)
    assert then.results[1].run.workflow_version == "2"


async def test_a_run_begun_while_the_registry_is_read_follows_what_was_saved_before(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WM-2: what was read of the registry before the change is not handed to who asks after it."""
    here, _ = await start()
    await created(here, order())
    assert await version_begun(here) == "1"
    catalogs = here.workflows._catalogs
    reading, go = asyncio.Event(), asyncio.Event()
    read = catalogs.registry.version

    async def slowly(tenant: str) -> int:
        found = await read(tenant)
        reading.set()
        await go.wait()
        return found

    monkeypatch.setattr(catalogs.registry, "version", slowly)
    look = asyncio.create_task(catalogs.get(TENANT, fresh=True))
    await reading.wait()
    await updated(here, order(task("x")))
    begun = asyncio.create_task(latest(here, "order"))
    # It waits for the look by now, if it is to.
    await asyncio.sleep(0)
    go.set()
    assert (await begun).version == 2
    await look


async def test_a_child_follows_a_change_that_its_server_has_not_heard_of(start: Start) -> None:
    """WM-2, FV-19: it is begun again of the present version, and its parent does not wait in vain."""
    here, there = await start()
    deaf(here, there)
    await created(here, order(nap()))
    assert await version_begun(there) == "1"
    sub = {"id": "sub", "kind": "workflow", "workflow": "order", "needs": ["first"]}
    await created(here, order(task("first"), sub, name="parent"))
    async with Worker(there, kinds=["first"]) as worker:
        running = asyncio.create_task(there.workflow_runs.execute_sync(ROOT, NewRun("parent"), None, 10))
        lease = await worker.take()
        await updated(here, order(nap(), nap("nap", id="again")))
        await worker.complete(lease)
        result = await running
    assert result.run.status is RunStatus.COMPLETED
    (child,) = (await here.runs.list(ROOT, RunQuery(parent_id=result.run.id), PageRequest())).items
    assert child.workflow_version == "2"
