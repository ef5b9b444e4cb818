"""Whatever callers write comes back as it was: alone in a batch, where a value travels plainly, and among others."""

import asyncio

import pytest
from tests.engine.servers import Start
from tests.engine.workers import Worker
from tests.engine.world import ROOT, key, made, payload_of, register

from millstream.application.views.reports import AttemptFailure, Completion
from millstream.application.views.tasks import NewTask
from millstream.domain.artifacts import NewArtifact, Visibility
from millstream.domain.struct_wire import decode_value, encode_struct, encode_value

NASTY = [
    "NULL",
    '"',
    "\\",
    '\\"',
    "{}",
    "{a,b}",
    ",",
    "'",
    "''; DROP TABLE run; --",
    " ",
    "\n\t\r",
    "ü€😀",
    "$1",
    "\\x00",
    "x" * 200,
]


def nasty(text: str) -> NewArtifact:
    """An artifact with a text wherever one may stand."""
    return NewArtifact(
        "Order",
        encode_struct({text: [text, {"deep": text}]}),
        Visibility("Private", agents=(text,)),
        (text, "", f"{text},{text}"),
        text,
    )


@pytest.mark.parametrize("together", [True, False])
async def test_texts_of_artifacts_come_back(start: Start, owner_path: bool, together: bool) -> None:
    """FL-17, architecture: payload, tags, partition key, visibility and keys, over both paths."""
    here, there = await start(owner_path=owner_path)
    await register(here, ("Order",))
    if together:
        published = await asyncio.gather(*(here.artifacts.publish(ROOT, nasty(text), key(text)) for text in NASTY))
    else:
        published = [await here.artifacts.publish(ROOT, nasty(text), key(text)) for text in NASTY]
    for text, item in zip(NASTY, published, strict=True):
        found, wanted = await there.artifacts.get(ROOT, item.artifact_id), nasty(text)
        assert (found.payload, found.tags, found.partition_key) == (wanted.payload, wanted.tags, text)
        assert found.visibility == wanted.visibility
        assert payload_of(found) == {text: [text, {"deep": text}]}
        assert (await there.artifacts.publish(ROOT, nasty(text), key(text))).replayed


@pytest.mark.parametrize("together", [True, False])
async def test_texts_of_tasks_come_back(start: Start, owner_path: bool, together: bool) -> None:
    """FV-5, architecture: input, output, labels, errors, codes and progress."""
    here, there = await start(owner_path=owner_path)
    async with Worker(here, kinds=["sums"]) as worker:
        new = [NewTask("sums", encode_value(text), labels=f'{{"a":"{n}"}}') for n, text in enumerate(NASTY)]
        await here.tasks.create_batch(ROOT, new, [None] * len(new), None)
        leases = await worker.take_many(len(new))
        failures = tuple(
            AttemptFailure(
                lease.task.id,
                lease.attempt,
                str(decode_value(lease.task.input))[:100],
                f"{n} {decode_value(lease.task.input)}",
                False,
            )
            for n, lease in enumerate(leases)
            if n % 2
        )
        completions = tuple(
            Completion(lease.task.id, lease.attempt, lease.task.input) for n, lease in enumerate(leases) if not n % 2
        )
        for n, lease in enumerate(leases):
            await worker.progress(lease, n / len(leases), str(decode_value(lease.task.input)))
        if together:
            await worker.report(completions=completions, failures=failures)
        else:
            for completion in completions:
                await worker.report(completions=(completion,))
            for failure in failures:
                await worker.report(failures=(failure,))
    for n, lease in enumerate(leases):
        text = str(decode_value(lease.task.input))
        view = await there.tasks.get(ROOT, lease.task.id)
        assert decode_value(view.task.input) == text
        assert view.task.progress_message == text
        if n % 2:
            assert (view.task.error_code, view.task.error_message) == (text[:100], f"{n} {text}")
        else:
            assert decode_value(view.output) == text


async def test_an_empty_artifact_comes_back_empty(start: Start, owner_path: bool) -> None:
    """Contract: empty payload, no tags, no key; beside a full one in the same batch, too."""
    here, there = await start(owner_path=owner_path)
    await register(here, ("Order",))
    full = made("Order", a=1)
    full.tags, full.partition_key = ("x",), "k"
    for items in ([NewArtifact("Order")], [NewArtifact("Order"), full, NewArtifact("Order")]):
        published = await asyncio.gather(*(here.artifacts.publish(ROOT, item, None) for item in items))
        for item, wanted in zip(published, items, strict=True):
            found = await there.artifacts.get(ROOT, item.artifact_id)
            assert (found.payload, found.tags, found.partition_key) == (
                wanted.payload,
                wanted.tags,
                wanted.partition_key,
            )
