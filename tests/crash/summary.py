"""The counts of the suite: a table at the end of the run, and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from tests.crash.checker import Verdict

_COLUMNS = (
    "faults", "operations", "acknowledged", "unknown", "losses", "duplicates", "gaps", "unfinished", "others", "runs",
    "events", "executions", "re_executed", "seconds",
)  # fmt: skip


@dataclass(slots=True)
class Row:
    """One scenario: faults injected, what the clients did, what the checker found.

    Attributes:
        errors: What the clients met before they were answered, by kind.
    """

    scenario: str
    faults: int = 0
    operations: int = 0
    acknowledged: int = 0
    unknown: int = 0
    losses: int = 0
    duplicates: int = 0
    gaps: int = 0
    unfinished: int = 0
    others: int = 0
    runs: int = 0
    events: int = 0
    executions: int = 0
    re_executed: int = 0
    seconds: float = 0.0
    errors: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, scenario: str, faults: int, verdict: Verdict, errors: dict[str, int], seconds: float) -> Self:
        """The counts of a verdict."""
        return cls(
            scenario, faults, verdict.operations, verdict.acknowledged, verdict.unknown, len(verdict.losses),
            len(verdict.duplicates), len(verdict.gaps), len(verdict.unfinished), len(verdict.others), verdict.runs,
            verdict.events, verdict.executions, verdict.re_executed, round(seconds, 1), errors,
        )  # fmt: skip

    def add(self, other: Row) -> None:
        """Add another's counts."""
        for name in _COLUMNS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for error, count in other.errors.items():
            self.errors[error] = self.errors.get(error, 0) + count


def total(rows: Sequence[Row]) -> Row:
    """The sum."""
    found = Row("total")
    for row in rows:
        found.add(row)
    return found


def table(rows: Sequence[Row]) -> list[str]:
    """The lines of the table, the sum last."""
    cells = [["scenario", *(name.replace("_", "-") for name in _COLUMNS)]]
    for row in [*rows, total(rows)]:
        values = [getattr(row, name) for name in _COLUMNS]
        cells.append([row.scenario, *(f"{value:.1f}" if isinstance(value, float) else str(value) for value in values)])
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return [
        "  ".join(
            cell.ljust(width) if not n else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]


def write(rows: Sequence[Row], path: Path) -> None:
    """Write the rows and their sum as JSON."""
    path.write_text(json.dumps([asdict(row) for row in [*rows, total(rows)]], indent=1) + "\n")
