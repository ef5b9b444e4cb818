"""Artifact types: versions that take what was valid, what they say beside their schema, and who is told."""

import json
from collections.abc import Mapping

import pytest
from tests.engine.servers import Start
from tests.engine.world import ROOT, key, made, register

from millstream.application.views.artifacts import Published
from millstream.application.views.types import TypeChange, TypeSpec
from millstream.domain.agents import TypeOptions
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


async def test_the_same_schema_with_other_options_changes_the_version(start: Start) -> None:
    """What is given holds from then on, on every server, and makes no version; what is not given stays."""
    here, there = await start()
    await create(here, OPEN, description="a note", retention_days=3, examples=('{"a":"x"}',))
    await here.types.update(ROOT, TypeChange("Note", deprecated=True), None)
    assert await create(there, OPEN, compatibility="none", examples=('{"a":"y"}',)) == 1
    found = await here.types.get(ROOT, "Note", None)
    assert (found.version, found.description) == (1, "a note")
    assert found.options == TypeOptions("none", (), 3, True, "", ('{"a":"y"}',))
    assert await create(there, OPEN, description="another note", retention_days=0) == 1
    found = await here.types.get(ROOT, "Note", None)
    assert (found.description, found.options.retention_days, found.options.compatibility) == ("another note", 0, "none")
    assert await create(here, STRICTER) == 2
    with pytest.raises(ValidationFailed) as refused:
        await create(here, STRICTER, examples=("{}",))
    assert refused.value.details[0].field == "examples[0]"


async def test_a_worker_leaves_what_a_type_says_beside_its_schema(start: Start) -> None:
    """It brings schemas; what people set stays when it connects again."""
    here, there = await start()
    spec = TypeSpec("Note", json.dumps(OPEN), "from the code")
    registering = here.workers._registering
    assert await registering.register(ROOT, [spec], [])
    await there.types.update(ROOT, TypeChange("Note", description="by hand", retention_days=3), None)
    assert not await registering.register(ROOT, [spec], [])
    # Together with something new, it is looked at again.
    assert await registering.register(ROOT, [spec, TypeSpec("Memo")], [])
    found = await there.types.get(ROOT, "Note", None)
    assert (found.description, found.options.retention_days) == ("by hand", 3)


async def test_what_is_the_type_s_is_not_said_by_an_older_version(start: Start) -> None:
    """FL-10: refused by field; what a version says of itself is taken."""
    here, there = await start()
    await create(here, OPEN)
    await create(here, WIDER)
    with pytest.raises(ValidationFailed) as refused:
        await there.types.update(ROOT, TypeChange("Note", 1, retention_days=3, compatibility="none"), None)
    assert [fault.field for fault in refused.value.details] == ["retention_days", "compatibility"]
    assert "version, 2" in refused.value.message
    assert (await here.types.get(ROOT, "Note", 1)).options == (await here.types.get(ROOT, "Note", 2)).options
    changed, _ = await there.types.update(ROOT, TypeChange("Note", 1, description="the first"), None)
    assert (changed.version, changed.description) == (1, "the first")
    changed, _ = await there.types.update(ROOT, TypeChange("Note", 2, retention_days=3), None)
    assert changed.options.retention_days == 3


async def test_examples_are_changed_without_a_version(start: Start) -> None:
    """They must satisfy the schema of the version they are of."""
    here, there = await start()
    await create(here, OPEN, examples=('{"a":"x"}',))
    await create(here, WIDER)
    for version, good, bad in ((None, '{"b":1}', '{"b":"x"}'), (1, '{"b":"x"}', '{"a":1}')):
        change = TypeChange("Note", version, examples=(good, bad))
        with pytest.raises(ValidationFailed) as refused:
            await there.types.update(ROOT, change, None)
        assert refused.value.details[0].field.startswith("examples[1].")
        changed, _ = await there.types.update(ROOT, TypeChange("Note", version, examples=(good,)), None)
        assert changed.options.examples == (good,)
        assert (await here.types.get(ROOT, "Note", version)).options.examples == (good,)
    kept, _ = await here.types.update(ROOT, TypeChange("Note", description="new"), None)
    assert kept.options.examples == ('{"b":1}',)
    with pytest.raises(NotFound):
        await here.types.update(ROOT, TypeChange("Nothing", examples=("{}",)), None)


async def test_examples_are_replayed_whatever_the_schema_is_by_then(start: Start) -> None:
    """FL-8: what the first call's key changed, though it would be refused now."""
    here, there = await start()
    await create(here, OPEN)
    change = TypeChange("Note", examples=('{"a":"x"}',))
    first, _ = await here.types.update(ROOT, change, key("k", "UpdateArtifactType"))
    await create(here, STRICTER, compatibility="none")
    assert await there.types.update(ROOT, change, key("k", "UpdateArtifactType")) == (first, True)
    with pytest.raises(ValidationFailed):
        await there.types.update(ROOT, change, None)
