"""What the use cases of steps of a graph run give."""

from dataclasses import dataclass

from millstream.domain.runs import Task, TaskStatus


@dataclass(frozen=True, slots=True)
class StepEnd:
    """How a step's task ended, or an item's. `output`: google.protobuf.Value in wire form."""

    step: int
    item: int
    status: TaskStatus
    output: bytes
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class ItemCounts:
    """How many items of a map there are, and how many of them ended, and failed."""

    made: int
    ended: int
    failed: int


@dataclass(frozen=True, slots=True)
class StepView:
    """A step of a run.

    Attributes:
        status: WAITING for what it needs, PENDING, RUNNING, COMPLETED, SKIPPED, FAILED or CANCELLED.
        task: Its task, the latest; None where it has none.
        input, output: google.protobuf.Value in wire form; the output as later steps see it.
        items: Of a map.
        child_run_id: The run that it has begun, or "".
        error: Code and message of one that failed without a task; else "", and the task has them.
    """

    id: str
    kind: str
    status: str
    needs: tuple[str, ...]
    task: Task | None
    input: bytes
    output: bytes
    items: ItemCounts | None = None
    child_run_id: str = ""
    error: tuple[str, str] = ("", "")
