"""What the kit knows of what a worker's tasks logged, over all its connections."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from google.protobuf import json_format

from millstream.conformance.books import Fence
from millstream.conformance.rules import Violation
from millstream.v1 import error_pb2, task_log_pb2, worker_pb2

WINDOW_BYTES: Final = 1024 * 1024
"""Of lines that may be on their way at a time."""
LOST: Final = error_pb2.ErrorBody(code="LEASE_LOST", message="another attempt has logged", retryable=False)
Shown = tuple[str, str, object]
"""A line as the scenarios compare it: level, message and fields."""


@dataclass(slots=True)
class LogBooks:
    """The books of one worker's logs.

    Attributes:
        given: Leases whose lines it may send.
        lines: What came of each, by number from 1.
        acked: How far the worker was told that they are stored.
        said: The number of the last line, by the report of the attempt.
    """

    given: set[Fence] = field(default_factory=set)
    lines: dict[Fence, list[task_log_pb2.LogLine]] = field(default_factory=dict)
    acked: dict[Fence, int] = field(default_factory=dict)
    said: dict[Fence, int] = field(default_factory=dict)

    def take(self, batch: task_log_pb2.LogBatch) -> Fence:
        """Lines came; of which attempt. Raises Violation."""
        fence = Fence(batch.task_id, batch.attempt)
        if fence not in self.given:
            raise Violation("W18", f"lines name task {fence.task_id}, attempt {fence.attempt}, never given")
        known = self.lines.setdefault(fence, [])
        if batch.offset > len(known) + 1:
            raise Violation("W46", f"line {batch.offset} of an attempt came behind line {len(known)}")
        for number, line in enumerate(batch.lines, batch.offset):
            if number > len(known):
                known.append(line)
            elif line != known[number - 1]:
                raise Violation("W47", f"line {number} of an attempt came again, and is another one")
        return fence

    def report(self, items: Iterable[worker_pb2.Completion | worker_pb2.AttemptFailure]) -> None:
        """Attempts were reported."""
        for item in items:
            if item.HasField("log_offset"):
                self.said[Fence.of(item)] = item.log_offset

    def count(self, lease: worker_pb2.Lease) -> int:
        """How many lines of an attempt came."""
        return len(self.lines.get(Fence.of(lease), ()))

    def shown(self, lease: worker_pb2.Lease) -> list[Shown]:
        """The lines of an attempt."""
        return [
            (
                task_log_pb2.LogLine.Level.Name(line.level or task_log_pb2.LogLine.INFO),
                line.message,
                json_format.MessageToDict(line.fields),
            )
            for line in self.lines.get(Fence.of(lease), ())
        ]

    def ack(
        self, fence: Fence, offset: int | None = None, *, again: bool = False, lost: bool = False
    ) -> task_log_pb2.LogAck:
        """Tells how far lines are stored; by default all that came."""
        found = len(self.lines.get(fence, ())) if offset is None else offset
        self.acked[fence] = max(found, self.acked.get(fence, 0))
        out = task_log_pb2.LogAck(task_id=fence.task_id, attempt=fence.attempt, offset=found, again=again)
        if lost:
            out.error.CopyFrom(LOST)
        return out

    def check(self, lease: worker_pb2.Lease, wanted: Sequence[Shown]) -> None:
        """Raises Violation where an attempt logged, or says to have logged, something else than it was asked to."""
        found = self.shown(lease)
        if found != list(wanted):
            raise Violation("W46", f"the task logged {wanted!r:.300}; {found!r:.300} came")
        said = self.said.get(Fence.of(lease))
        if said != len(wanted):
            raise Violation("W49", f"the report names {said} as the last of {len(wanted)} lines")


def spans(numbers: list[int]) -> str:
    """Numbers for people: 1-5, 3-9."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(f"{first}-{last}" for first, last in found)
