"""What a committer is set up with, and a batch between its decision and its write."""

from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Any

from millstream.application.engine.queue import Item, Outcome
from millstream.domain.batch import Batch, Claim
from millstream.domain.runs import Task

Assign = Callable[[Task], Claim | None]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bounds of one batch, and whether the owner path is on."""

    commands: int = 500
    bytes: int = 8 * 1024 * 1024
    owner_path: bool = True


@dataclass(frozen=True, slots=True)
class Decided:
    """A batch decided but not written; no statement where it changes nothing."""

    items: list[Item]
    batch: Batch
    outcomes: list[Outcome]
    statement: Any
    started: float


@dataclass(slots=True)
class Hooks:
    """What the committer calls: to offer work while deciding, and what follows a commit or its failure.

    Attributes:
        full: (tenant, fingerprint) of subscriptions for which no more keys may wait.
    """

    offer: Assign
    assign: Assign
    committed: Callable[[Batch], None]
    undone: Callable[[Batch], None]
    observed: Callable[[int, float, str], None]
    full: Set[tuple[str, str]] = frozenset()
