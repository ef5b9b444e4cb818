"""Artifacts whose payload is kept outside: published by reference or moved there, seen by whom they may be seen."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

import pytest
from tests.engine.database import Database
from tests.engine.servers import Roles, Start
from tests.engine.workers import Worker, done, ref
from tests.engine.world import ROOT, TENANT, agent, blind, check_all, key, made, order, principal, register

from millstream.application.paging import PageRequest
from millstream.application.payloads import Expected
from millstream.application.turns import Turns
from millstream.application.views.artifacts import ArtifactQuery
from millstream.application.views.leases import LeaseRef
from millstream.application.views.payloads import STRUCT_TYPE
from millstream.application.views.types import TypeSpec
from millstream.domain.artifacts import Artifact, NewArtifact, Visibility
from millstream.domain.errors import MillstreamError, NotFound, RateLimited, ValidationFailed
from millstream.domain.principals import Principal
from millstream.domain.struct_wire import encode_struct
from millstream.wiring import Service

LARGE = 2000
"""The bound of these tests, in bytes."""
PLAIN = agent("plain", "Order", "Payment")
DAY_S = 86_400


async def uploaded(
    service: Service, content: bytes | dict[str, Any], media_type: str = "", who: Principal = ROOT
) -> bytes:
    """The digest of a payload just uploaded; an object goes as JSON."""

    async def pieces() -> AsyncIterator[bytes]:
        yield content if isinstance(content, bytes) else json.dumps(content).encode()

    given = media_type or ("application/json" if isinstance(content, dict) else "application/octet-stream")
    return (await service.payloads.upload(who, pieces(), given, Expected())).sha256


async def content_of(service: Service, digest: bytes, who: Principal = ROOT, lease: LeaseRef | None = None) -> bytes:
    """What somebody downloads."""
    found = await service.payloads.get(who, digest, lease)
    return b"".join([chunk async for chunk in service.payloads.read(found)])


def referring(digest: bytes, name: str = "Order", **fields: Any) -> NewArtifact:
    """An artifact to publish by reference."""
    return NewArtifact(name, payload_digest=digest, **fields)


def large(**fields: Any) -> NewArtifact:
    """An Order over the bound."""
    return NewArtifact("Order", encode_struct({"text": "x" * LARGE, "n": 1.5, "ö": [None, True]}), **fields)


def outside(artifact: Artifact) -> tuple[bytes, bytes, int]:
    """What an artifact has of its payload."""
    return artifact.payload, artifact.payload_digest, artifact.payload_bytes


async def test_who_publishes_by_reference_and_who_is_given_it_see_the_reference(roles: Roles) -> None:
    """The artifact, the lease on any server, and lists carry reference and size, and not the payload."""
    await register(roles.publisher, ("Order", "Payment"))
    digest = await uploaded(roles.publisher, b"x" * 300_000)
    async with Worker(roles.worker, agents=[PLAIN], handler=done) as worker:
        result = await roles.publisher.artifacts.publish_sync(ROOT, referring(digest), None, 10)
    assert result.completed
    expected = (b"", digest, 300_000)
    assert [outside(each) for each in result.artifacts] == [expected]
    assert [outside(each) for each in worker.seen[0].artifacts] == [expected]
    listed = await roles.worker.artifacts.list(ROOT, ArtifactQuery(), PageRequest(), False)
    assert [outside(each.artifact) for each in listed.items] == [expected]
    assert await content_of(roles.worker, digest) == b"x" * 300_000


async def test_a_payload_over_the_bound_is_moved_outside(start: Start, database: Database, owner_path: bool) -> None:
    """Read alone, its artifact has it; one at the bound stays. The same again is stored once."""
    here, there = await start(large_payload_bytes=LARGE, owner_path=owner_path)
    await register(here, ("Order",))
    for _ in range(2):
        published = await here.artifacts.publish(ROOT, large(), None)
    found = await there.artifacts.get(ROOT, published.artifact_id)
    content = large().payload
    assert outside(found) == (content, hashlib.sha256(content).digest(), len(content))
    assert await content_of(there, found.payload_digest) == content
    assert (await there.payloads.get(ROOT, found.payload_digest)).media_type == STRUCT_TYPE
    listed = await there.artifacts.list(ROOT, ArtifactQuery(), PageRequest(), False)
    assert {outside(each.artifact) for each in listed.items} == {(b"", found.payload_digest, len(content))}
    assert await database.value("SELECT count(*) FROM payload_chunk") == 1
    payload = encode_struct({"text": "x" * (LARGE - 15)})
    assert len(payload) == LARGE
    published = await here.artifacts.publish(ROOT, NewArtifact("Order", payload), None)
    kept = await there.artifacts.get(ROOT, published.artifact_id)
    assert outside(kept) == (payload, b"", 0)
    await check_all(database)


async def test_in_a_batch_and_a_run_by_name_it_is_moved_too(start: Start) -> None:
    """FL-11, FL-13: and a reference that is not there fails its item alone."""
    here, there = await start(large_payload_bytes=LARGE)
    await register(here, ("Order", "Payment"))
    digest = await uploaded(here, {"n": 1})
    items = [large(), order(), referring(b"\0" * 32), referring(digest)]
    batch = await here.artifacts.publish_batch(ROOT, items, [None] * 4, None)
    errors = [each for each in batch.results if isinstance(each, MillstreamError)]
    assert [each.details[0].field for each in errors] == ["payload_ref"]
    assert isinstance(batch.results[2], NotFound)
    listed = await there.artifacts.list(ROOT, ArtifactQuery(), PageRequest(), False)
    assert [bool(each.artifact.payload_digest) for each in reversed(listed.items)] == [True, False, True]
    async with Worker(there, agents=[PLAIN], handler=done) as worker:
        result = await there.agents.run(ROOT, "plain", [large(), referring(digest)], None, 10)
    assert result.completed
    assert [each.payload for each in worker.seen[-1].artifacts] == [b"", b""]
    assert worker.seen[-1].artifacts[1].payload_digest == digest


async def test_conditions_and_schemas_see_what_was_moved_or_referred_to(start: Start) -> None:
    """JSON up to the limit of a payload within a request is checked as if it stood in the artifact."""
    here, there = await start(large_payload_bytes=LARGE)
    schema = '{"type":"object","required":["text"],"properties":{"text":{"type":"string"}}}'
    await here.types.create(ROOT, TypeSpec("Order", schema), None)
    await register(here, ("Payment",))
    choosy = agent("choosy", "Order", "Payment", where='payload.text.startsWith("x")')
    good, bad = await uploaded(here, {"text": "x"}), await uploaded(here, {"text": 1})
    async with Worker(there, agents=[choosy], handler=done) as worker:
        for new in (large(), referring(good)):
            assert (await here.artifacts.publish_sync(ROOT, new, None, 10)).completed
        assert len(worker.seen) == 2
        passed_on = hashlib.sha256(large().payload).digest()
        assert (await here.artifacts.publish_sync(ROOT, referring(passed_on), None, 10)).completed
        assert len(worker.seen) == 3
        other = await uploaded(here, {"text": "y" * LARGE})
        assert (await here.artifacts.publish_sync(ROOT, referring(other), None, 10)).completed
        assert len(worker.seen) == 3
    with pytest.raises(ValidationFailed) as refused:
        await here.artifacts.publish(ROOT, referring(bad), None)
    assert refused.value.details[0].field == "payload.text"
    inputs = NewArtifact("Order", encode_struct({"no": "x" * LARGE}))
    with pytest.raises(ValidationFailed):
        await here.artifacts.publish(ROOT, inputs, None)


async def test_what_was_uploaded_before_it_was_sent_is_known_as_sent(start: Start) -> None:
    """Whoever uploads the bytes of a payload first does not keep it from its artifact."""
    here, there = await start(large_payload_bytes=LARGE)
    await register(here, ("Order",))
    digest = await uploaded(here, large().payload, "text/plain", who=EVE)
    published = await here.artifacts.publish(ROOT, large(), None)
    found = await there.artifacts.get(ROOT, published.artifact_id)
    assert (found.payload_digest, found.payload) == (digest, large().payload)
    await uploaded(here, large().payload, "text/plain")
    assert (await there.artifacts.get(ROOT, published.artifact_id)).payload == large().payload


async def test_what_is_no_json_or_too_large_is_known_by_its_size_alone(start: Start) -> None:
    """Documented: it satisfies any schema, and conditions see {}."""
    here, there = await start(large_payload_bytes=LARGE, max_payload_bytes=2 * LARGE)
    schema = '{"type":"object","required":["text"]}'
    await here.types.create(ROOT, TypeSpec("Order", schema), None)
    await register(here, ("Payment",))
    blindly = agent("blindly", "Order", "Payment", where="size(payload) == 0")
    image = await uploaded(here, b"\x89PNG", "image/png")
    huge = await uploaded(here, {"wrong": "x" * 2 * LARGE}, "application/vnd.orders+json; charset=utf-8")
    async with Worker(there, agents=[blindly], handler=done) as worker:
        for digest in (image, huge):
            assert (await here.artifacts.publish_sync(ROOT, referring(digest), None, 10)).completed
    assert len(worker.seen) == 2


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"[1]", "is no object"),
        (b'{"a":', "is no JSON"),
        (b'{"a":"\xff"}', "is no UTF-8"),
        (b'{"a":NaN}', "has NaN"),
        (b'{"a":' + b"[" * 30 + b"]" * 30 + b"}", "deeper than 30"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deeper than 30"),
    ],
    ids=lambda value: str(value)[:20],
)
async def test_what_says_that_it_is_json_must_be_it(start: Start, content: bytes, fault: str) -> None:
    here, _ = await start()
    await register(here, ("Order",))
    digest = await uploaded(here, content, "application/json")
    with pytest.raises(ValidationFailed, match=fault) as refused:
        await here.artifacts.publish(ROOT, referring(digest), None)
    assert refused.value.details[0].field == "payload_ref"


async def test_thirty_levels_are_taken(start: Start) -> None:
    here, _ = await start()
    await register(here, ("Order",))
    digest = await uploaded(here, b'{"a":' + b"[" * 29 + b"]" * 29 + b"}", "application/json")
    published = await here.artifacts.publish(ROOT, referring(digest), None)
    assert published.artifact_id


async def test_payload_and_reference_together_are_refused(start: Start) -> None:
    here, _ = await start()
    await register(here, ("Order",))
    digest = await uploaded(here, b"x")
    with pytest.raises(ValidationFailed, match="together with payload"):
        await here.artifacts.publish(ROOT, NewArtifact("Order", encode_struct({"a": 1}), payload_digest=digest), None)


# Who may read, and refer.

ANN, BOB, EVE = blind("ann"), blind("bob"), blind("eve")
NAMED = blind("named", agent="half")
VIEWER = principal("viewer", TENANT, "viewer")
OTHER = principal("root", "other")


async def sees(service: Service, digest: bytes, who: Principal) -> bool:
    """Whether somebody may read a payload, and, which is the same, refer to it."""
    refused = await refusal(service, digest, who)
    if refused is None:
        return True
    nothing = await refusal(service, b"\1" * 32, who)
    assert nothing is not None
    assert refused.message.replace(digest.hex(), "") == nothing.message.replace("01" * 32, "")
    assert refused.details == nothing.details
    return False


async def refusal(service: Service, digest: bytes, who: Principal) -> NotFound | None:
    """What somebody who asks for a payload is refused with."""
    try:
        await service.payloads.get(who, digest)
    except NotFound as error:
        return error
    return None


async def readers(service: Service, digest: bytes) -> set[str]:
    """Names of those who may read it; the other tenant's admin is "other"."""
    everybody = {"ann": ANN, "bob": BOB, "eve": EVE, "named": NAMED, "viewer": VIEWER, "root": ROOT, "other": OTHER}
    return {name for name, who in everybody.items() if await sees(service, digest, who)}


async def test_a_payload_is_read_by_its_uploaders_and_by_those_who_see_an_artifact_of_it(
    start: Start, database: Database
) -> None:
    """And by the tenant's admin; to all others it is as one that there is not."""
    here, there = await start()
    await register(here, ("Order",))
    await register(here, ("Order",), tenant="other")
    digest = await uploaded(here, b"content", who=ANN)
    assert await readers(there, digest) == {"ann", "root"}
    private = Visibility("Private", agents=("half",))
    await here.artifacts.publish(ANN, referring(digest, visibility=private), None)
    assert await readers(there, digest) == {"ann", "root", "named", "viewer"}
    for who in (EVE, OTHER):
        with pytest.raises(NotFound):
            await there.artifacts.publish(who, referring(digest), None)
    assert await database.value("SELECT count(*) FROM artifact") == 1
    await uploaded(there, b"content", who=BOB)
    assert await readers(here, digest) == {"ann", "root", "named", "viewer", "bob"}
    await here.artifacts.publish(NAMED, referring(digest), None)
    assert await readers(there, digest) == {"ann", "root", "named", "viewer", "bob", "eve"}
    await uploaded(here, b"content", who=OTHER)
    assert await sees(here, digest, OTHER)


async def test_what_is_hidden_for_a_while_is_read_after_it(start: Start, database: Database) -> None:
    """FL-6: After."""
    here, _ = await start()
    await register(here, ("Order",))
    digest = await uploaded(here, b"content", who=ANN)
    await here.artifacts.publish(ANN, referring(digest, visibility=Visibility("After", ttl_us=60_000_000)), None)
    assert not await sees(here, digest, EVE)
    await database.pass_time(61)
    assert await sees(here, digest, EVE)


async def test_the_worker_that_was_given_it_reads_it_by_its_lease(start: Start) -> None:
    """And passes it on in what it publishes, though it is no agent's own key; not before, not after, not with another
    task."""
    here, there = await start()
    await register(here, ("Order", "Payment"))
    server = principal("server", TENANT, "worker")
    digest = await uploaded(here, b"content", who=ANN)
    async with Worker(there, agents=[agent("half", "Order", "Payment")], who=server) as worker:
        published = await here.artifacts.publish(
            ANN, referring(digest, visibility=Visibility("Private", agents=("half",))), None
        )
        lease = await worker.take()
        fence = ref(lease)
        assert await content_of(there, digest, server, fence) == b"content"
        refused = (
            (server, None),
            (server, LeaseRef(fence.task_id, fence.attempt + 1)),
            (server, LeaseRef(published.artifact_id, 1)),
            (EVE, fence),
            (principal("server", "other", "worker"), fence),
        )
        for who, given in refused:
            with pytest.raises(NotFound):
                await there.payloads.get(who, digest, given)
        own = referring(digest, "Payment", visibility=Visibility("Private", agents=("nobody",)))
        assert (await worker.complete(lease, own)).error is None
        with pytest.raises(NotFound):
            await there.payloads.get(server, digest, fence)
    run = await here.runs.get(ROOT, published.correlation_id)
    assert (run.artifact_count, run.failed_tasks) == (2, 0)


async def test_what_an_agent_publishes_is_moved_outside_or_refused_with_its_field(start: Start) -> None:
    """A reference that the worker may not read ends the task, as any output that breaks a rule."""
    here, there = await start(large_payload_bytes=LARGE)
    await register(here, ("Order", "Payment"))
    digest = await uploaded(here, b"content", who=ANN)
    server = principal("server", TENANT, "worker")
    async with Worker(there, agents=[PLAIN], who=server) as worker:
        published = await here.artifacts.publish(ANN, order(), None)
        lease = await worker.take()
        assert (await worker.complete(lease, made("Payment", text="x" * LARGE))).error is None
        found = await here.artifacts.list(ROOT, ArtifactQuery(type="Payment"), PageRequest(), False)
        digest_of_it = found.items[0].artifact.payload_digest
        assert await content_of(here, digest_of_it) == made("Payment", text="x" * LARGE).payload
        second = await here.artifacts.publish(ANN, order(), None)
        lease = await worker.take()
        error = (await worker.complete(lease, referring(digest, "Payment"))).error
        assert isinstance(error, NotFound)
        assert error.details[0].field == "artifacts[0].payload_ref"
    assert (await here.runs.get(ROOT, published.correlation_id)).failed_tasks == 0
    assert (await here.runs.get(ROOT, second.correlation_id)).failed_tasks == 1


# What keeps a payload, and what drops it.


async def test_a_payload_dropped_before_the_commit_fails_the_publish(
    start: Start, database: Database, owner_path: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at it and the transaction the sweep may come: then nothing is stored that refers to nothing."""
    here, there = await start(owner_path=owner_path)
    await register(here, ("Order",))
    digest = await uploaded(here, b"content")
    examine = here.artifacts._referring.examine

    async def swept_after(*arguments: Any, **more: Any) -> Any:
        found = await examine(*arguments, **more)
        await database.pass_time(2 * DAY_S)
        await there.loops.sweep()
        return found

    monkeypatch.setattr(here.artifacts._referring, "examine", swept_after)
    batch = await here.artifacts.publish_batch(ROOT, [order(), referring(digest)], [None, None], None)
    assert isinstance(batch.results[1], NotFound)
    assert "payload_ref" in batch.results[1].message
    assert not isinstance(batch.results[0], MillstreamError), "it took its neighbour with it"
    assert await database.value("SELECT count(*) FROM artifact") == 1
    assert await database.value("SELECT count(*) FROM payload_chunk") == 0


async def test_to_refer_to_a_payload_keeps_it_from_then_on(start: Start, database: Database, owner_path: bool) -> None:
    """It is touched in the very transaction, so no sweep that looked before takes it."""
    here, _ = await start(owner_path=owner_path)
    await register(here, ("Order",))
    digest = await uploaded(here, b"content")
    before = await database.value("SELECT touched_us FROM payload")
    await database.pass_time(DAY_S - 10)
    batch = await here.artifacts.publish_batch(ROOT, [referring(digest)] * 3, [None] * 3, None)
    assert len(batch.results) == 3
    assert await database.value("SELECT touched_us FROM payload") >= before + (DAY_S - 10) * 1_000_000
    await database.execute("DELETE FROM artifact")
    await database.pass_time(20)
    await here.loops.sweep()
    assert await content_of(here, digest) == b"content"
    await database.pass_time(DAY_S)
    await here.loops.sweep()
    assert not await sees(here, digest, ROOT)


async def test_retention_of_the_last_artifact_drops_its_payload(start: Start, database: Database) -> None:
    """FL-15, rule 15: with its chunks and its holders, on whichever server sweeps."""
    here, there = await start(large_payload_bytes=LARGE, artifact_retention_days=3, run_retention_days=1)
    await register(here, ("Order",))
    published = await here.artifacts.publish(ROOT, large(), None)
    digest = (await here.artifacts.get(ROOT, published.artifact_id)).payload_digest
    for _ in range(2):
        await database.pass_time(1.2 * DAY_S)
        await there.loops.sweep()
        assert await sees(here, digest, ROOT), "it was dropped before its artifact"
    for _ in range(2):
        await database.pass_time(1.2 * DAY_S)
        await there.loops.sweep()
    tables = ("artifact", "payload", "payload_chunk", "payload_holder", "payload_upload")
    left = [await database.value(f"SELECT count(*) FROM {table}") for table in tables]
    assert left == [0] * len(tables)


async def test_an_upload_that_its_server_left_is_swept(start: Start, database: Database) -> None:
    here, there = await start()

    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 600_000
        raise ConnectionError("the client went away")

    with pytest.raises(ConnectionError):
        await here.payloads.upload(ROOT, broken(), "text/plain", Expected())
    assert await database.value("SELECT count(*) FROM payload_chunk") == 2
    assert await database.value("SELECT count(*) FROM payload") == 0
    await there.loops.sweep()
    assert await database.value("SELECT count(*) FROM payload_chunk") == 0


async def test_a_key_gives_the_first_answer_though_the_payload_is_gone(start: Start, database: Database) -> None:
    """FL-8"""
    here, there = await start(idempotency_ttl_s=30 * DAY_S)
    await register(here, ("Order",))
    digest = await uploaded(here, b"content")
    first = await here.artifacts.publish(ROOT, referring(digest), key("k"))
    await database.execute("DELETE FROM artifact")
    await database.pass_time(2 * DAY_S)
    await here.loops.sweep()
    again = await there.artifacts.publish(ROOT, referring(digest), key("k"))
    assert (again.artifact_id, again.replayed) == (first.artifact_id, True)


async def test_a_small_publish_asks_nothing_of_the_payloads(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hot path has no statement more."""
    here, _ = await start()
    await register(here, ("Order",))

    class Nothing:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"{name} was asked of the payloads")

    monkeypatch.setattr(here.payloads, "_store", Nothing())
    published = await here.artifacts.publish(ROOT, order(), None)
    assert published.artifact_id
    with pytest.raises(AssertionError):
        await here.artifacts.publish(ROOT, referring(b"\1" * 32), None)


async def test_large_payloads_that_wait_are_bounded_in_bytes(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: nothing without a bound. What an agent has made is taken though."""
    here, _ = await start(large_payload_bytes=LARGE)
    await register(here, ("Order", "Payment"))
    monkeypatch.setattr(here.artifacts._referring, "_turns", Turns(2, 6 * LARGE))
    results = await asyncio.gather(
        *(here.artifacts.publish(ROOT, large(), None) for _ in range(5)), return_exceptions=True
    )
    assert [type(each) for each in results].count(RateLimited) == 3
    async with Worker(here, agents=[PLAIN]) as worker:
        await here.artifacts.publish(ROOT, order(), None)
        made_by_it = [made("Payment", text="x" * 4 * LARGE)] * 2
        assert (await worker.complete(await worker.take(), *made_by_it)).error is None
    again = await here.artifacts.publish(ROOT, large(), None)
    assert again.artifact_id


async def test_transfers_are_bounded_for_each_tenant_and_in_all(start: Start) -> None:
    """A tenant that takes all of its places leaves others theirs."""
    here, _ = await start()
    with ExitStack() as places:
        for _ in range(32):
            places.enter_context(here.payloads.transfer(ROOT))
        with pytest.raises(RateLimited):
            here.payloads.transfer(ROOT).__enter__()
        for _ in range(32):
            places.enter_context(here.payloads.transfer(OTHER))
        with pytest.raises(RateLimited):
            here.payloads.transfer(principal("root", "third")).__enter__()
    with here.payloads.transfer(ROOT):
        pass
