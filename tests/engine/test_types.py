"""Artifact types: versions that take what was valid, what they say beside their schema, and who is told."""

import json
from collections.abc import Mapping

import pytest
from tests.engine.servers import Start
from tests.engine.world import ROOT, key, made, register

from millstream.application.views import Published, TypeChange, TypeSpec
from millstream.domain.errors import NotFound, ValidationFailed
from millstream.wiring import Service

OPEN = {"type": "object", "properties": {"a": {"type": "string"}}}
WIDER = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}}
STRICTER = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


async def create(service: Service, schema: Mapping[str, object], **more: object) -> int:
    """Register the type Note with a schema; its version."""
    spec = TypeSpec("Note", json.dumps(schema), **more)  # type: ignore[arg-type]
    return (await service.types.create(ROOT, spec, None))[0].version


async def test_a_new_version_takes_what_the_one_before_took(start: Start) -> None:
    """Backward is the default; a refusal names each place, and changes nothing."""
    here, there = await start()
    assert await create(here, OPEN) == 1
    assert await create(there, WIDER) == 2
    with pytest.raises(ValidationFailed) as refused:
        await create(there, STRICTER)
    assert [(fault.field, fault.code) for fault in refused.value.details] == [
        ("schema.required", "INCOMPATIBLE"), ("schema.properties.a.type", "INCOMPATIBLE"),
    ]  # fmt: skip
    assert (await here.types.get(ROOT, "Note", None)).version == 2


async def test_a_worker_cannot_register_what_breaks_either(start: Start) -> None:
    """The types that workers bring pass the same check."""
    here, _ = await start()
    await create(here, OPEN)
    with pytest.raises(ValidationFailed):
        await here.workers._registering.register(ROOT, [TypeSpec("Note", json.dumps(STRICTER))], [])


async def test_a_type_may_let_some_breaks_pass_or_all(start: Start) -> None:
    """Compatibility "rules" and "none" are given with the version they are for, and stay."""
    here, there = await start()
    await create(here, OPEN)
    with pytest.raises(ValidationFailed) as refused:
        await create(here, STRICTER, compatibility="rules", allowed_changes=("REQUIRED",))
    assert [fault.field for fault in refused.value.details] == ["schema.properties.a.type"]
    assert await create(here, STRICTER, compatibility="rules", allowed_changes=("REQUIRED", "TYPE")) == 2
    assert await create(there, {**STRICTER, "required": ["a", "b"]}) == 3
    await there.types.update(ROOT, TypeChange("Note", compatibility="none"), None)
    assert await create(here, {"type": "array"}) == 4


async def test_a_deprecated_type_works_and_tells(start: Start) -> None:
    """Whoever publishes it is told what to use; other versions are not touched, and a new one begins without."""
    here, there = await start()
    await create(here, OPEN)
    await register(here, ("Memo",))
    assert (await here.artifacts.publish(ROOT, made("Note"), None)).notice == ""
    change = TypeChange("Note", deprecated=True, deprecation="use Memo")
    changed, replayed = await there.types.update(ROOT, change, key("k", "UpdateArtifactType"))
    assert (changed.version, changed.options.deprecated, replayed) == (1, True, False)
    assert (await there.types.update(ROOT, change, key("k", "UpdateArtifactType")))[1]
    for service in (there, here):
        assert (await service.artifacts.publish(ROOT, made("Note"), None)).notice == "use Memo"
        assert (await service.artifacts.publish_sync(ROOT, made("Note"), None, 10)).notice == "use Memo"
        batch = await service.artifacts.publish_batch(ROOT, [made("Memo"), made("Note")], [None, None], None)
        assert [isinstance(each, Published) and each.notice for each in batch.results] == ["", "use Memo"]
    await create(here, WIDER)
    assert (await here.artifacts.publish(ROOT, made("Note"), None)).notice == ""
    assert (await here.types.get(ROOT, "Note", 1)).options.deprecation == "use Memo"
    await here.types.update(ROOT, TypeChange("Note", version=1, deprecated=False), None)
    assert not (await there.types.get(ROOT, "Note", 1)).options.deprecated
    for missing in (TypeChange("Nothing"), TypeChange("Note", version=9)):
        with pytest.raises(NotFound):
            await here.types.update(ROOT, missing, None)


async def test_examples_must_satisfy_the_schema(start: Start) -> None:
    """They are checked as payloads are, and come back as they were given."""
    here, _ = await start()
    with pytest.raises(ValidationFailed) as refused:
        await create(here, OPEN, examples=('{"a":"x"}', '{"a":1}'))
    assert refused.value.details[0].field == "examples[1].a"
    await create(here, OPEN, examples=('{"a":"x"}',), retention_days=3)
    found = await here.types.get(ROOT, "Note", None)
    assert (found.options.examples, found.options.retention_days) == (('{"a":"x"}',), 3)
    await create(here, WIDER)
    assert (await here.types.get(ROOT, "Note", None)).options.retention_days == 3


async def test_an_artifact_keeps_the_version_it_was_checked_with(start: Start) -> None:
    """Artifacts are checked with the latest version; older ones stay as they are."""
    here, there = await start()
    await create(here, OPEN)
    old = await here.artifacts.publish(ROOT, made("Note", a="x"), None)
    await create(there, WIDER)
    new = await here.artifacts.publish(ROOT, made("Note", a="x", b=1), None)
    versions = [(await there.artifacts.get(ROOT, each.artifact_id)).version for each in (old, new)]
    assert versions == [1, 2]
