"""What use cases of runs take and give, beside the domain's own values."""

from dataclasses import dataclass

from millstream.domain.errors import MillstreamError
from millstream.domain.runs import Run, RunKind, RunStatus, Task


@dataclass(frozen=True, slots=True)
class RunQuery:
    """Which runs; None, "", () and 0 are "any".

    Attributes:
        statuses: In one of these.
        labels: All of these, by key.
        of_workflows: Only runs that follow a workflow.
        text: In its id, workflow, error message or a label's value, in lower case.
        by_updated: Sorted by when something last happened in them, else by when they began.
        ascending: The oldest first.
    """

    statuses: tuple[RunStatus, ...] = ()
    kind: RunKind | None = None
    created_after_us: int = 0
    created_before_us: int = 0
    workflow: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    text: str = ""
    parent_id: str = ""
    of_workflows: bool = False
    by_updated: bool = False
    ascending: bool = False

    @property
    def sorting(self) -> str:
        """Its order, for page tokens."""
        return f"{'updated' if self.by_updated else 'created'} {'up' if self.ascending else 'down'}"


@dataclass(frozen=True, slots=True)
class RunView:
    """A run with what it was given and answers, google.protobuf.Value in wire form, b"" for none."""

    run: Run
    input: bytes = b""
    output: bytes = b""


@dataclass(frozen=True, slots=True)
class ManyRuns:
    """Runs to do the same to.

    Attributes:
        ids: These, or else those of the query.
        why: For their events.
        dry_run: Change nothing.
        limit: Runs at most.
        page_token: Where an earlier call ended, or "".
    """

    ids: tuple[str, ...] = ()
    query: RunQuery | None = None
    why: str = ""
    dry_run: bool = False
    limit: int = 1000
    page_token: str = ""


@dataclass(frozen=True, slots=True)
class DoneRuns:
    """What became of many runs.

    Attributes:
        outcomes: Their ids, with "accepted", "duplicate" or "matched", or why it failed.
        matched: How many there were.
        left: Of these, how many were not come to.
    """

    outcomes: list[tuple[str, str | MillstreamError]]
    matched: int
    left: int = 0
    next_page_token: str = ""
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class FoundRuns:
    """Runs of a page, and where to go on: the time (created or updated, as they are sorted) and id of the last one that
    was looked at; None at the end."""

    runs: list[Run]
    after: tuple[int, str] | None


@dataclass(frozen=True, slots=True)
class StuckQuery:
    """Which tasks do not get on; "" is "any". Times are microseconds.

    Attributes:
        waiting: Those that wait for a worker, by queue and kind; else those that are retried.
        for_us: Stuck for so long, or longer.
        unserved: Of those that wait, only where no worker takes them.
    """

    waiting: bool = False
    kind: str = ""
    queue: str = ""
    for_us: int = 0
    unserved: bool = False


@dataclass(frozen=True, slots=True)
class StuckTask:
    """A task that does not get on.

    Attributes:
        since_us: Its first failure, or the time from which it could have started.
        waiting: Of those that wait: how many of its queue and kind do, counted to 1,000.
        served: A worker is connected that takes it.
    """

    task: Task
    since_us: int
    waiting: int = 0
    served: bool = False


@dataclass(frozen=True, slots=True)
class RunResult:
    """A run, and what it answered where it has completed (google.protobuf.Value in wire form).

    Attributes:
        replayed: It is the answer of an earlier call with the same idempotency key.
        existing: It was there, with the same key of its own, when that call (or this one) came.
    """

    run: Run
    output: bytes = b""
    replayed: bool = False
    existing: bool = False

    @property
    def completed(self) -> bool:
        """It has ended."""
        return self.run.finished_us > 0


@dataclass(frozen=True, slots=True)
class OpenChild:
    """A run that goes on, and the task of its parent that began it. `ended`: the task has."""

    run_id: str
    task_id: str
    tries: int
    ended: bool
