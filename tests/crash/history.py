"""What the clients did and were told, one JSON line an event, as in the histories that Jepsen checks.

Events of an operation: `invoke`, any number of `retry`, then one of `ok`, `fail` (refused: it must have had no effect)
and `unknown` (no answer until the deadline: it may have had its effect, once).
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["", "ok", "fail", "unknown"]


@dataclass(slots=True)
class Stored:
    """What an answer says was stored for one order: the ids of its artifact, or task, and of its run."""

    order: str
    id: str
    run: str


@dataclass(slots=True)
class Op:
    """One operation as recorded.

    Attributes:
        kind: publish, sync, join, batch or task.
        orders: The orders (or the one task) it is to store, each with an idempotency key of its own.
        run: The cascade that the caller chose, or "".
        stored: What its answers acknowledged; of a batch without an end, a part.
        cascade: Ids of the artifacts that a completed sync publish returned.
    """

    number: int
    kind: str
    door: str
    orders: list[str]
    run: str = ""
    outcome: Outcome = ""
    stored: list[Stored] = field(default_factory=list)
    cascade: list[str] = field(default_factory=list)
    error: str = ""


class History:
    """The record of one scenario, kept in a file as it happens.

    Attributes:
        errors: How often each error was met on the way to an answer.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.errors: Counter[str] = Counter()
        self.acknowledged = 0
        self._file = path.open("a", buffering=1)
        self._count = 0

    def invoke(self, kind: str, door: str, orders: list[str], run: str = "") -> Op:
        """An operation begins."""
        self._count += 1
        op = Op(self._count, kind, door, orders, run)
        self._note(op, "invoke", kind=kind, door=door, orders=orders, run=run)
        return op

    def retry(self, op: Op, error: str) -> None:
        """A try failed in a way that another one may mend."""
        self.errors[error] += 1
        self._note(op, "retry", error=error)

    def end(self, op: Op, outcome: Outcome, error: str = "") -> None:
        """An operation ends."""
        op.outcome, op.error = outcome, error
        if outcome != "ok":
            self.errors[f"{outcome}: {error}"] += 1
        self.acknowledged += len(op.stored)
        stored = [[each.order, each.id, each.run] for each in op.stored]
        self._note(op, outcome, stored=stored, cascade=op.cascade, error=error)

    def fault(self, what: str) -> None:
        """A fault was injected."""
        self._file.write(json.dumps({"at": time.time(), "event": "fault", "what": what}) + "\n")

    async def aclose(self) -> None:
        """No more."""
        self._file.close()

    def _note(self, op: Op, event: str, **fields: Any) -> None:
        self._file.write(json.dumps({"at": time.time(), "op": op.number, "event": event, **fields}) + "\n")


def read(path: Path) -> list[Op]:
    """The operations of a recorded history, those without an end as unknown."""
    ops: dict[int, Op] = {}
    for line in path.read_text().splitlines():
        fields = json.loads(line)
        number = fields.get("op")
        if number is None:
            continue
        if fields["event"] == "invoke":
            ops[number] = Op(number, fields["kind"], fields["door"], fields["orders"], fields["run"], "unknown")
        elif fields["event"] != "retry":
            op = ops[number]
            op.outcome, op.error, op.cascade = fields["event"], fields["error"], fields["cascade"]
            op.stored = [Stored(*each) for each in fields["stored"]]
    return list(ops.values())
