"""What a type must be: a JSON Schema within its bound, with examples that satisfy it, and takes what its last version
took."""

import json
from collections.abc import Sequence
from dataclasses import replace

from millstream.application.catalog import Catalogs, Check
from millstream.application.ports import Costly
from millstream.application.views.types import TypeChange, TypeSpec
from millstream.domain.agents import DEFAULT_OPTIONS, ArtifactType, TypeOptions
from millstream.domain.compatibility import TooInvolved, breaks
from millstream.domain.errors import FieldFault, ValidationFailed

SCHEMA_BYTES_MOST = 256 * 1024


async def check_schema(catalogs: Catalogs, spec: TypeSpec) -> None:
    """Raise ValidationFailed unless the schema is a JSON Schema within its bound, and the examples satisfy it."""
    if len(spec.schema) > SCHEMA_BYTES_MOST:
        raise ValidationFailed.of("schema", f"must be at most {SCHEMA_BYTES_MOST} bytes of JSON", "TOO_LARGE")
    if not spec.schema:
        return
    try:
        if not catalogs.schemas.is_quick_to_read(spec.schema):
            await catalogs.sandbox.read(spec.schema)
        check = catalogs.schemas.compile(spec.schema)
    except ValueError as error:
        raise ValidationFailed.of("schema", f"is not a JSON Schema: {error}") from error
    await _check_examples(catalogs, spec.schema, check, spec.examples)


async def check_examples(catalogs: Catalogs, schema: str, examples: Sequence[str]) -> None:
    """Raise ValidationFailed unless the examples satisfy the schema of a registered type."""
    if schema:
        await _check_examples(catalogs, schema, catalogs.schemas.compile(schema), examples)


async def _check_examples(catalogs: Catalogs, schema: str, check: Check, examples: Sequence[str]) -> None:
    for index, example in enumerate(examples):
        value, field = json.loads(example), f"examples[{index}]"
        try:
            faults = check(value, field, len(example))
        except Costly:
            faults = await catalogs.sandbox.faults(schema, value, field)
        if faults:
            raise ValidationFailed(f"{faults[0].field}: {faults[0].message}", faults)


def check_next(found: ArtifactType, spec: TypeSpec) -> None:
    """Raise ValidationFailed where a new version refuses what the one before took, unless the type lets that pass."""
    options = options_after(found, spec)
    if options.compatibility == "none":
        return
    try:
        broken = breaks(found.schema, spec.schema)
    except TooInvolved:
        raise ValidationFailed.of(
            "schema",
            "is too involved to be compared with the version before; publish it under another name, or with "
            "compatibility none",
            "INCOMPATIBLE",
        ) from None
    if options.compatibility == "rules":
        broken = [each for each in broken if each.kind not in options.allowed_changes]
    if broken:
        faults = [
            FieldFault(f"schema.{each.path}".rstrip("."), f"{each.message} ({each.kind})", "INCOMPATIBLE")
            for each in broken
        ]
        raise ValidationFailed(
            f"version {found.version} of {found.name!r} took payloads that this schema refuses, at {faults[0].field}: "
            f"{faults[0].message}; mend that, use another name, or compatibility rules or none",
            faults,
        )


def options_after(found: ArtifactType | None, spec: TypeSpec) -> TypeOptions:
    """The options of a new version: what is not given is as it was; a new version is not deprecated."""
    before = found.options if found else DEFAULT_OPTIONS
    return TypeOptions(
        compatibility=spec.compatibility or before.compatibility,
        allowed_changes=spec.allowed_changes if spec.compatibility else before.allowed_changes,
        retention_days=before.retention_days if spec.retention_days is None else spec.retention_days,
        examples=spec.examples,
    )


def asked_for(spec: TypeSpec) -> TypeChange:
    """What a registration says beside its schema, as a change of the version that has this schema already."""
    return TypeChange(
        spec.name,
        description=spec.description or None,
        retention_days=spec.retention_days,
        compatibility=spec.compatibility or None,
        allowed_changes=spec.allowed_changes,
        examples=spec.examples or None,
    )


def check_latest(change: TypeChange, latest: ArtifactType) -> None:
    """Raise ValidationFailed where an older version is to say what only the latest decides."""
    if change.version in (None, latest.version):
        return
    given = {"retention_days": change.retention_days, "compatibility": change.compatibility}
    text = f"is the type's, which its latest version, {latest.version}, says; leave version out to change it"
    faults = [FieldFault(name, text) for name, value in given.items() if value is not None]
    if faults:
        raise ValidationFailed(f"{faults[0].field}: {text}", faults)


def changed(found: ArtifactType, change: TypeChange) -> ArtifactType:
    """A version with the change made."""
    options = found.options
    if change.deprecated is not None:
        options = replace(options, deprecated=change.deprecated, deprecation="")
    if change.deprecation is not None:
        options = replace(options, deprecation=change.deprecation)
    if change.retention_days is not None:
        options = replace(options, retention_days=change.retention_days)
    if change.compatibility is not None:
        options = replace(options, compatibility=change.compatibility, allowed_changes=change.allowed_changes)
    if change.examples is not None:
        options = replace(options, examples=change.examples)
    description = found.description if change.description is None else change.description
    return replace(found, options=options, description=description)
