"""Gates: AND gates, joins and batches, over correlations, servers, time-outs and crashes (engine-rules 5)."""

import asyncio

import pytest
from tests.engine.database import Database
from tests.engine.servers import Roles, Start, eventually, killed, server
from tests.engine.workers import Worker, done
from tests.engine.world import (
    ROOT,
    agent,
    blind,
    check_all,
    data_of,
    events_of,
    kinds_of,
    made,
    payload_of,
    register,
    seconds,
)

from millstream.application.ids import new_id
from millstream.application.paging import PageRequest
from millstream.application.views.artifacts import ArtifactQuery
from millstream.application.views.leases import Lease
from millstream.domain.agents import AgentSpec, Collect, Join, Subscription
from millstream.domain.artifacts import NewArtifact, Visibility
from millstream.domain.errors import ValidationFailed
from millstream.domain.runs import EventType, RunStatus
from millstream.domain.struct_wire import encode_struct
from millstream.wiring import Service

TYPES = ("Order", "Payment", "Label", "Parcel")
PAIR = agent("packer", ("Order", "Payment"), "Parcel", counts=(("Order", 1), ("Payment", 1)))


async def put(service: Service, type_name: str, correlation_id: str = "", **fields: object) -> str:
    """Publish an artifact; returns its correlation."""
    published = await service.artifacts.publish(ROOT, made(type_name, correlation_id, **fields), None)
    return published.correlation_id


def given(lease: Lease) -> list[str]:
    """Types of the artifacts of a lease, in order."""
    return [item.type for item in lease.artifacts]


async def waiting_of(service: Service, name: str) -> list[dict[str, int]]:
    """What waits in the gates of an agent."""
    found = (await service.agents.get(ROOT, name)).agent
    return [gate.have for gate in (await service.agents.detail(ROOT, found)).waiting.gates]


async def due(service: Service) -> None:
    """The server does what its timers would."""
    await service.loops.poll()


async def status_of(service: Service, run_id: str) -> RunStatus:
    """Where a run stands."""
    return (await service.runs.get(ROOT, run_id)).status


async def test_an_and_gate_hands_over_one_of_each(roles: Roles, database: Database) -> None:
    """FL-14: nothing starts before both are there; then one task has both, and the run goes on from it."""
    await register(roles.publisher, TYPES, PAIR)
    async with Worker(roles.worker, agents=[PAIR], handler=lambda lease: done(lease, made("Parcel"))) as worker:
        run_id = await put(roles.publisher, "Order")
        assert await status_of(roles.publisher, run_id) is RunStatus.RUNNING
        assert await waiting_of(roles.worker, "packer") == [{"Order": 1}]
        assert not worker.seen
        result = await roles.publisher.artifacts.publish_sync(ROOT, made("Payment", run_id), None, 10)
    assert [item.type for item in result.artifacts] == ["Order", "Payment", "Parcel"]
    assert [given(lease) for lease in worker.seen] == [["Order", "Payment"]]
    assert await waiting_of(roles.publisher, "packer") == []
    assert await kinds_of(roles.publisher, run_id) == [
        "RUN_CREATED", "ARTIFACT_PUBLISHED", "GATE_WAITING", "ARTIFACT_PUBLISHED", "GATE_FIRED", "TASK_CREATED",
        "TASK_STARTED", "TASK_COMPLETED", "ARTIFACT_PUBLISHED", "RUN_COMPLETED",
    ]  # fmt: skip
    events = {event.type: data_of(event) for event in await events_of(roles.publisher, run_id)}
    assert events[EventType.GATE_WAITING] == {
        "agent": "packer", "have": {"Order": 1}, "need": {"Order": 1, "Payment": 1}
    }  # fmt: skip
    assert events[EventType.GATE_FIRED] == {
        "agent": "packer", "parts": {"Order": 1, "Payment": 1}, "reason": "COMPLETE"
    }  # fmt: skip
    await check_all(database)


async def test_an_and_gate_counts_and_keeps_what_is_left_over(roles: Roles, database: Database) -> None:
    """FL-14: two orders and a payment, the oldest first; a third order waits for the next."""
    spec = agent("packer", ("Order", "Payment"), counts=(("Order", 2),))
    await register(roles.publisher, TYPES, spec)
    async with Worker(roles.worker, agents=[spec]) as worker:
        run_id = await put(roles.publisher, "Order", n=1)
        for number in (2, 3):
            await put(roles.publisher, "Order", run_id, n=number)
        await put(roles.publisher, "Payment", run_id, n=4)
        lease = await worker.take()
        assert [payload_of(item)["n"] for item in lease.artifacts] == [1, 2, 4]
        assert await waiting_of(roles.publisher, "packer") == [{"Order": 1}]
        await worker.complete(lease)
        assert await status_of(roles.publisher, run_id) is RunStatus.RUNNING
        await put(roles.publisher, "Order", run_id, n=5)
        await put(roles.publisher, "Payment", run_id, n=6)
        lease = await worker.take()
        assert [payload_of(item)["n"] for item in lease.artifacts] == [3, 5, 6]
        await worker.complete(lease)
    assert await status_of(roles.publisher, run_id) is RunStatus.COMPLETED
    await check_all(database)


async def test_a_gate_of_the_correlation_takes_nothing_of_another(spread: Roles, database: Database) -> None:
    """FL-14, engine-rules 5: each cascade fills its own gate, and stays open while something waits in it."""
    await register(spread.publisher, TYPES, PAIR)
    async with Worker(spread.worker, agents=[PAIR]) as worker:
        first = await put(spread.publisher, "Order")
        second = await put(spread.publisher, "Payment")
        assert await waiting_of(spread.publisher, "packer") == [{"Order": 1}, {"Payment": 1}]
        assert not worker.seen
    for run_id in (first, second):
        run = await spread.publisher.runs.get(ROOT, run_id)
        assert (run.status, run.open_gates, run.open_tasks) == (RunStatus.RUNNING, 1, 0)
    await check_all(database)


async def test_a_gate_of_the_tenant_starts_a_run_with_its_parents(roles: Roles, database: Database) -> None:
    """FL-14, engine-rules 5: the cascades do not wait for each other; what they open together is a run of its own."""
    spec = agent("packer", ("Order", "Payment"), "Parcel", counts=(("Order", 1),), scope="tenant")
    await register(roles.publisher, TYPES, spec)
    async with Worker(roles.worker, agents=[spec]) as worker:
        first = await put(roles.publisher, "Order")
        assert await status_of(roles.publisher, first) is RunStatus.COMPLETED
        second = await put(roles.worker, "Payment")
        lease = await worker.take()
        assert given(lease) == ["Order", "Payment"]
        await worker.complete(lease, made("Parcel"))
    run = await roles.publisher.runs.get(ROOT, lease.task.run_id)
    assert run.parents == (first, second)
    assert run.created_by == "gate:packer"
    assert run.status is RunStatus.COMPLETED
    assert await kinds_of(roles.publisher, run.id) == [
        "RUN_CREATED", "GATE_FIRED", "TASK_CREATED", "TASK_STARTED", "TASK_COMPLETED", "ARTIFACT_PUBLISHED",
        "RUN_COMPLETED",
    ]  # fmt: skip
    await check_all(database)


async def test_a_join_brings_together_what_has_one_key(roles: Roles, database: Database) -> None:
    """FL-14: by the value of a CEL expression; what has no key is not taken."""
    spec = agent("packer", ("Order", "Payment"), join=Join("payload.id", within_us=seconds(60)))
    await register(roles.publisher, TYPES, spec)
    async with Worker(roles.worker, agents=[spec]) as worker:
        run_id = await put(roles.publisher, "Order", id="a")
        await put(roles.publisher, "Order", run_id, id="b")
        await put(roles.publisher, "Payment", run_id, other=1)
        await put(roles.publisher, "Payment", run_id, id="b")
        lease = await worker.take()
        assert [payload_of(item) for item in lease.artifacts] == [{"id": "b"}, {"id": "b"}]
        await worker.complete(lease)
        await put(roles.worker, "Payment", run_id, id="a")
        lease = await worker.take()
        assert {payload_of(item)["id"] for item in lease.artifacts} == {"a"}
        await worker.complete(lease)
        assert len(worker.seen) == 2
    assert await status_of(roles.publisher, run_id) is RunStatus.COMPLETED
    await check_all(database)


async def test_parts_of_a_join_that_came_too_late_are_given_up(spread: Roles, database: Database) -> None:
    """FL-14: within a duration of the first; the run is told, and ends."""
    spec = agent("packer", ("Order", "Payment"), join=Join("payload.id", within_us=seconds(60)))
    await register(spread.publisher, TYPES, spec)
    run_id = await put(spread.publisher, "Order", id="a")
    await database.pass_time(59)
    await due(spread.worker)
    assert await status_of(spread.publisher, run_id) is RunStatus.RUNNING
    await database.pass_time(2)
    await due(spread.worker)
    assert (await kinds_of(spread.publisher, run_id))[-2:] == ["GATE_EXPIRED", "RUN_COMPLETED"]
    assert await waiting_of(spread.publisher, "packer") == []
    await put(spread.publisher, "Payment", run_id, id="a")
    assert await waiting_of(spread.publisher, "packer") == [{"Payment": 1}]
    await check_all(database)


async def test_a_join_by_count_looks_at_so_many_artifacts(roles: Roles, database: Database) -> None:
    """FL-14: within a count: the parts of a key are among so many artifacts that the subscription takes."""
    spec = agent("packer", ("Order", "Payment"), join=Join("payload.id", within_count=3))
    await register(roles.publisher, TYPES, spec)
    async with Worker(roles.worker, agents=[spec]) as worker:
        run_id = await put(roles.publisher, "Order", id="a")
        await put(roles.publisher, "Order", run_id, id="b")
        await put(roles.publisher, "Order", run_id, id="c")
        # The fourth: the first has left the window, the second has not.
        await put(roles.publisher, "Payment", run_id, id="b")
        lease = await worker.take()
        assert [payload_of(item)["id"] for item in lease.artifacts] == ["b", "b"]
        await worker.complete(lease)
        assert "GATE_EXPIRED" in await kinds_of(roles.publisher, run_id)
        assert await waiting_of(roles.publisher, "packer") == [{"Order": 1}]
        await put(roles.worker, "Payment", run_id, id="c")
        lease = await worker.take()
        await worker.complete(lease)
    assert await status_of(roles.publisher, run_id) is RunStatus.COMPLETED
    expired = [event for event in await events_of(roles.publisher, run_id) if event.type is EventType.GATE_EXPIRED]
    assert [data_of(event) for event in expired] == [{"agent": "packer", "reason": "WINDOW_PASSED"}]
    await check_all(database)


async def test_a_batch_is_handed_over_when_it_is_full(roles: Roles, database: Database) -> None:
    """FL-14: over all cascades of the tenant, on any server, in the order they came."""
    spec = agent("packer", "Order", batch=Collect(3, seconds(60)), scope="tenant")
    await register(roles.publisher, TYPES, spec)
    async with Worker(roles.worker, agents=[spec]) as worker:
        runs = [await put(service, "Order") for service in (roles.publisher, roles.worker, roles.publisher)]
        lease = await worker.take()
        assert given(lease) == ["Order"] * 3
        assert [item.run_id for item in lease.artifacts] == runs
        await worker.complete(lease)
        assert await waiting_of(roles.publisher, "packer") == []
    assert (await roles.publisher.runs.get(ROOT, lease.task.run_id)).parents == tuple(runs)
    await check_all(database)


async def test_a_list_tells_what_a_gate_of_the_tenant_took(roles: Roles) -> None:
    """FL-12, FL-14: the consumption is in another cascade than the artifact, and is told all the same."""
    spec = agent("packer", "Order", batch=Collect(2, seconds(60)), scope="tenant")
    await register(roles.publisher, TYPES, spec)
    async with Worker(roles.worker, agents=[spec]) as worker:
        runs = {await put(roles.publisher, "Order") for _ in range(2)}
        await worker.take()
    page = await roles.publisher.artifacts.list(ROOT, ArtifactQuery(), PageRequest(), True)
    taken = [found for item in page.items for found in item.consumptions or ()]
    assert {found.artifact_id for found in taken} == {item.artifact.id for item in page.items}
    assert [found.consumer for found in taken] == ["packer", "packer"]
    assert {found.run_id for found in taken}.isdisjoint(runs)


async def test_a_batch_is_handed_over_at_its_time_out(spread: Roles, database: Database) -> None:
    """FL-14: whichever comes first; by the time since the first."""
    spec = agent("packer", "Order", batch=Collect(10, seconds(60)), scope="tenant")
    await register(spread.publisher, TYPES, spec)
    async with Worker(spread.worker, agents=[spec]) as worker:
        await put(spread.publisher, "Order")
        await database.pass_time(40)
        await put(spread.publisher, "Order")
        await database.pass_time(30)
        await due(spread.worker)
        lease = await worker.take()
        assert given(lease) == ["Order", "Order"]
        await worker.complete(lease)
    fired = [data_of(each) for each in await events_of(spread.publisher, lease.task.run_id) if each.seq == 2]
    assert fired == [{"agent": "packer", "parts": {"Order": 2}, "reason": "TIMEOUT"}]
    await check_all(database)


async def test_a_batch_of_the_correlation_keeps_it_open(spread: Roles, database: Database) -> None:
    """FL-14, engine-rules 5: its run ends after the batch was worked off."""
    spec = agent("packer", "Order", batch=Collect(10, seconds(60)), scope="correlation")
    await register(spread.publisher, TYPES, spec)
    async with Worker(spread.worker, agents=[spec]) as worker:
        run_id = await put(spread.publisher, "Order")
        assert await status_of(spread.publisher, run_id) is RunStatus.RUNNING
        await database.pass_time(61)
        await due(spread.publisher)
        lease = await worker.take()
        assert lease.task.run_id == run_id
        await worker.complete(lease)
    assert await status_of(spread.publisher, run_id) is RunStatus.COMPLETED
    await check_all(database)


async def test_a_batch_never_outgrows_a_message(spread: Roles, database: Database) -> None:
    """FL-14: 4 MiB of payloads are handed over, whatever their number."""
    spec = agent("packer", "Order", batch=Collect(1000, seconds(60)), scope="tenant")
    await register(spread.publisher, TYPES, spec)
    async with Worker(spread.worker, agents=[spec]) as worker:
        for _ in range(17):
            await put(spread.publisher, "Order", text="x" * 250_000)
        assert given(await worker.take()) == ["Order"] * 17
    await check_all(database)


async def test_what_waits_survives_all_servers(start: Start, database: Database, owner_path: bool) -> None:
    """FL-14: kill -9 of every server while gates wait loses nothing: others go on with the rows."""
    first, second = await start(owner_path=owner_path)
    every = agent("boss", ("Order", "Payment"), counts=(("Order", 1),), scope="tenant")
    await register(first, TYPES, PAIR, every)
    run_id = await put(first, "Order")
    await killed(first)
    await killed(second)
    async with server(database, owner_path=owner_path) as third:
        assert await waiting_of(third, "packer") == [{"Order": 1}]
        async with Worker(third, agents=[PAIR, every]) as worker:
            await put(third, "Payment", run_id)
            leases = [await worker.take(), await worker.take()]
        assert sorted(lease.task.agent for lease in leases) == ["boss", "packer"]
        assert all(given(lease) == ["Order", "Payment"] for lease in leases)
    await check_all(database)


async def test_gates_of_two_servers_lose_and_double_nothing(start: Start, database: Database, owner_path: bool) -> None:
    """FL-14: hundreds of publishes at once on two servers, into one gate of the tenant: each is handed over once."""
    first, second = await start(owner_path=owner_path)
    spec = agent("packer", "Order", batch=Collect(7, seconds(60)), scope="tenant")
    await register(first, TYPES, spec)
    async with Worker(second, agents=[spec], handler=done) as worker:
        await asyncio.gather(*(put((first, second)[n % 2], "Order", n=n) for n in range(210)))

        async def all_seen() -> bool:
            return len(worker.seen) == 30

        await eventually(all_seen)
        numbers = [payload_of(item)["n"] for lease in worker.seen for item in lease.artifacts]
    assert sorted(numbers) == [*range(210)]
    await check_all(database)


async def test_cancelling_a_run_gives_up_what_waits_in_it(spread: Roles, database: Database) -> None:
    """FL-14: the run ends, and its gates are empty."""
    await register(spread.publisher, TYPES, PAIR)
    run_id = await put(spread.publisher, "Order")
    await spread.worker.runs.cancel(ROOT, run_id, "enough", None)
    assert (await kinds_of(spread.publisher, run_id))[-3:] == ["RUN_CANCELLING", "GATE_EXPIRED", "RUN_CANCELLED"]
    assert await waiting_of(spread.publisher, "packer") == []
    await check_all(database)


async def test_what_waits_for_a_subscription_that_is_gone_is_given_up(start: Start, database: Database) -> None:
    """FL-14: the agent has another subscription now: at the time-out the run is told, and ends."""
    first, second = await start()
    await register(first, TYPES, PAIR)
    run_id = await put(first, "Order")
    async with Worker(second, agents=[agent("packer", "Label")]):
        await database.pass_time(3601)
        await due(second)
    expired = [each for each in await events_of(first, run_id) if each.type is EventType.GATE_EXPIRED]
    assert [data_of(each)["reason"] for each in expired] == ["SUBSCRIPTION_GONE"]
    assert await status_of(first, run_id) is RunStatus.COMPLETED
    await check_all(database)


async def test_parts_stay_while_an_agent_changes_otherwise(start: Start, database: Database) -> None:
    """FL-14: a new version of the agent with the same gate takes over what waits."""
    first, second = await start()
    await register(first, TYPES, PAIR)
    run_id = await put(first, "Order")
    urgent = agent("packer", ("Order", "Payment"), counts=(("Order", 1), ("Payment", 1)), priority=5)
    async with Worker(second, agents=[urgent]) as worker:
        await put(second, "Payment", run_id)
        lease = await worker.take()
        assert (given(lease), lease.task.priority) == (["Order", "Payment"], 5)
    await check_all(database)


async def test_keys_that_wait_are_bounded(start: Start, database: Database, owner_path: bool) -> None:
    """FL-14, invariant: nothing without a bound; beyond it the answer says so."""
    first, _ = await start(owner_path=owner_path, max_waiting_keys=2)
    spec = agent("packer", ("Order", "Payment"), join=Join("payload.id", within_us=seconds(60)))
    await register(first, TYPES, spec)
    run_id = await put(first, "Order", id=1)
    await put(first, "Order", run_id, id=2)
    await put(first, "Order", run_id, id=3)
    assert len(await waiting_of(first, "packer")) == 2
    assert "CASCADE_LIMIT" in await kinds_of(first, run_id)
    said = (await first.runs.get(ROOT, run_id)).error_message
    assert said.startswith("the limit of 2 keys (max_waiting_keys) whose artifacts wait is reached for agent packer")
    await check_all(database)


async def test_keys_of_the_tenant_that_wait_are_bounded(start: Start, database: Database) -> None:
    """FL-14: likewise over all cascades; the sweep notices."""
    first, _ = await start(max_waiting_keys=2)
    spec = agent("packer", ("Order", "Payment"), join=Join("payload.id", within_us=seconds(60)), scope="tenant")
    await register(first, TYPES, spec)
    for number in range(2):
        await put(first, "Order", id=number)
    await first.loops.sweep()
    run_id = await put(first, "Order", id=2)
    assert (await kinds_of(first, run_id))[-1] == "RUN_FAILED"
    await put(first, "Payment", id=1)
    assert len(await waiting_of(first, "packer")) == 1
    await check_all(database)


async def test_after_delays_what_a_gate_hands_over(spread: Roles, database: Database) -> None:
    """FL-6, FL-14: a part that may be seen later opens the gate, and the task waits until it may."""
    await register(spread.publisher, TYPES, PAIR)
    later = Visibility("After", ttl_us=seconds(60))
    async with Worker(spread.worker, agents=[PAIR]) as worker:
        new = NewArtifact("Order", encode_struct({}), visibility=later)
        run_id = (await spread.publisher.artifacts.publish(ROOT, new, None)).correlation_id
        await put(spread.publisher, "Payment", run_id)
        assert not worker.seen
        await database.pass_time(61)
        await due(spread.worker)
        assert given(await worker.take()) == ["Order", "Payment"]
    await check_all(database)


async def test_gates_tell_artifacts_and_keys_to_those_who_may_see_them(start: Start) -> None:
    """FL-6: others are not told that anything waits; who sees some of it is told of that, and not the key."""
    first, _ = await start()
    spec = agent("packer", ("Order", "Payment"), join=Join("payload.id", within_us=seconds(60)))
    await register(first, TYPES, spec)
    new = NewArtifact("Order", encode_struct({"id": "secret"}), visibility=Visibility("Private", ("packer",)))
    artifact_id = (await first.artifacts.publish(ROOT, new, None)).artifact_id
    found = (await first.agents.get(ROOT, "packer")).agent
    hidden = (await first.agents.detail(blind("reader"), found)).waiting
    assert (hidden.gates, hidden.total) == ((), 0)
    for reader in (ROOT, blind("worker", agent="packer")):
        (shown,) = (await first.agents.detail(reader, found)).waiting.gates
        assert (shown.key, shown.artifact_ids) == ("secret", (artifact_id,))
    run_id = (await first.artifacts.get(ROOT, artifact_id)).run_id
    more = await first.artifacts.publish(ROOT, made("Order", run_id, id="secret"), None)
    (part,) = (await first.agents.detail(blind("reader"), found)).waiting.gates
    assert (part.have, part.key, part.artifact_ids) == ({"Order": 1}, "", (more.artifact_id,))
    (whole,) = (await first.agents.detail(ROOT, found)).waiting.gates
    assert (whole.have, whole.key, whole.artifact_ids) == ({"Order": 2}, "secret", (artifact_id, more.artifact_id))


async def test_a_large_gate_does_not_hide_what_waits_in_the_others(start: Start) -> None:
    """FL-14: of each gate the oldest artifacts are named, all are counted, and the key is told."""
    first, _ = await start()
    spec = agent("packer", ("Order", "Payment"), join=Join("payload.id", within_count=1000), scope="tenant")
    single = agent("single", ("Order", "Payment"), join=Join("payload.id", within_us=seconds(60)), scope="tenant")
    await register(first, TYPES, spec, single)
    items = [made("Order", id="large") for _ in range(900)] + [made("Order", id="small") for _ in range(2)]
    await first.artifacts.publish_batch(ROOT, [*items], [None] * len(items), None)
    for reader in (ROOT, blind("reader")):
        gates = (await first.agents.detail(reader, (await first.agents.get(ROOT, "single")).agent)).waiting.gates
        assert {(gate.key, gate.have["Order"], len(gate.artifact_ids), gate.window) for gate in gates} == {
            ("large", 900, 100, 0),
            ("small", 2, 2, 0),
        }
        (gate,) = (await first.agents.detail(reader, (await first.agents.get(ROOT, "packer")).agent)).waiting.gates
        assert (gate.have, gate.window) == ({"Order": 902}, 1000)


@pytest.mark.parametrize("mode", ["direct", "events", "both"])
async def test_a_direct_subscription_is_not_activated_by_what_is_published(start: Start, mode: str) -> None:
    """FL-14: "direct" holds only when the agent is run by name."""
    first, _ = await start()
    await register(first, TYPES, agent("packer", "Order", mode=mode))
    run = await first.runs.get(ROOT, await put(first, "Order"))
    assert run.task_count == (0 if mode == "direct" else 1)


@pytest.mark.parametrize(
    ("subscription", "field"),
    [
        (Subscription(("Order",), counts=(("Payment", 1),)), "counts"),
        (Subscription(("Order",), counts=(("Order", 101),)), "counts"),
        (Subscription(("Order",), counts=(("Order", 2),), batch=Collect(2)), "batch"),
        (Subscription(("Order",), batch=Collect()), "batch"),
        (Subscription(("Order", "Payment"), join=Join("payload.id")), "join"),
        (Subscription(("Order", "Payment"), join=Join("payload.id", 5, 5)), "join"),
        (
            Subscription(("Order", "Payment"), counts=(("Order", 3),), join=Join("payload.id", 0, 3)),
            "join.within_count",
        ),
        (Subscription(("Order",), mode="direct", where="true"), "where"),
        (Subscription(("Order",), mode="direct", from_agents=("external",)), "from_agents"),
        (Subscription(("Order",), mode="direct", tags=("a",)), "tags"),
        (Subscription(("Order",), mode="direct", delivery="exclusive"), "delivery"),
        (Subscription(("Order",), mode="direct", counts=(("Order", 2),)), "counts"),
        (Subscription(("Order", "Payment"), mode="direct", join=Join("payload.id", 5)), "join"),
        (Subscription(("Order",), mode="direct", batch=Collect(2)), "batch"),
        (Subscription(("Order",), mode="direct", scope="tenant"), "scope"),
        (Subscription(("Order",), mode="direct", wait_us=5), "gate_timeout"),
        (Subscription(("Order",), join=Join("payload.id", 5)), "join"),
        (Subscription(("Order", "Payment"), join=Join("payload.", 5)), "join.by"),
        (Subscription(("Order", "Payment"), join=Join("[1]", 5)), "join.by"),
        (Subscription(("Order",), scope="tenant"), "scope"),
        (Subscription(("Order",), wait_us=5), "gate_timeout"),
        (Subscription(("Order",), batch=Collect(5), wait_us=5), "gate_timeout"),
    ],
)
async def test_what_a_gate_cannot_be_is_refused_by_field(start: Start, subscription: Subscription, field: str) -> None:
    """FL-14: an option without effect is refused, not accepted."""
    first, _ = await start()
    await register(first, TYPES)
    with pytest.raises(ValidationFailed) as refused:
        await first.agents.create(ROOT, AgentSpec("packer", subscriptions=(subscription,)), None)
    assert [fault.field for fault in refused.value.details] == [f"subscriptions[0].{field}"]


async def test_a_join_by_count_may_look_at_just_as_many_as_belong_together(start: Start) -> None:
    """FL-14: not one less; and a direct subscription has its priority."""
    first, _ = await start()
    await register(first, TYPES)
    join = Subscription(("Order", "Payment"), counts=(("Order", 3),), join=Join("payload.id", 0, 4))
    direct = Subscription(("Order",), mode="direct", priority=7)
    state, _ = await first.agents.create(ROOT, AgentSpec("packer", subscriptions=(join, direct)), None)
    assert state.agent.spec.subscriptions[1] == direct


async def test_who_runs_an_agent_chooses_its_inputs(start: Start) -> None:
    """FL-14: conditions and gates, of mode both, are for what is published; a run's inputs are taken as they are."""
    first, second = await start()
    subscription = Subscription(
        ("Order",), where="false", from_agents=("nobody",), tags=("none",), counts=(("Order", 5),), delivery="exclusive"
    )
    await register(first, TYPES)
    await first.agents.create(ROOT, AgentSpec("packer", subscriptions=(subscription,)), None)
    async with Worker(second, kinds=["agent:packer"], handler=done) as worker:
        assert (await first.agents.run(ROOT, "packer", [made("Order")], None, 10)).completed
        assert [len(lease.artifacts) for lease in worker.seen] == [1]


async def test_a_full_buffer_says_so(start: Start, database: Database) -> None:
    """FL-14: a thousand parts of one kind wait; the next is refused loudly, and nothing else suffers."""
    first, _ = await start()
    await register(first, TYPES, PAIR)
    run_id = new_id()
    items = [made("Order", run_id) for _ in range(1001)]
    await first.artifacts.publish_batch(ROOT, items[:500], [None] * 500, None)
    await first.artifacts.publish_batch(ROOT, items[500:], [None] * 501, None)
    assert await waiting_of(first, "packer") == [{"Order": 1000}]
    assert (await kinds_of(first, run_id)).count("CASCADE_LIMIT") == 1
    said = (await first.runs.get(ROOT, run_id)).error_message
    assert said.startswith("the limit of 1000 artifacts that wait in a gate is reached for agent packer")
    assert "make its gate open sooner" in said
    await check_all(database)
