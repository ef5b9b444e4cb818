"""What the use cases of artifact types take."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TypeSpec:
    """A type to register; `schema` is a JSON Schema as JSON text, "" for anything.

    Attributes:
        compatibility: "" and allowed_changes (): as the version before, else backward.
        retention_days: None: as the version before, else the server's.
        examples: Payloads as JSON text; () with the schema of the version before: as there.
    """

    name: str
    schema: str = ""
    description: str = ""
    compatibility: str = ""
    allowed_changes: tuple[str, ...] = ()
    retention_days: int | None = None
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TypeChange:
    """What to change of a type beside its schema; None: leave it. Version None: the latest, which alone says how long
    artifacts are kept and what the next version must be."""

    name: str
    version: int | None = None
    description: str | None = None
    deprecated: bool | None = None
    deprecation: str | None = None
    retention_days: int | None = None
    compatibility: str | None = None
    allowed_changes: tuple[str, ...] = ()
    examples: tuple[str, ...] | None = None
