"""Runs, tasks, attempts and events: the state the engine keeps.

The numbers of the enums are those of the contract, so that nothing maps them. Times are microseconds since the
epoch, 0 meaning "not yet". Run and Task are mutable: a batch decides thousands of commands over the same
rows, and a copy per step was a third of its time; a batch that fails drops them and reads them again.
"""

from dataclasses import dataclass, field
from enum import IntEnum

from millstream.domain.bounds import UNBOUND, Bounds
from millstream.domain.retry import DEFAULT_RETRY, DEFAULT_TIMEOUTS, RetryPolicy, Timeouts

DAY_US = 86_400_000_000
NEVER_US = 253_370_764_800_000_000
"""The first of January 9999."""
UNLEASED = "~"
"""How the queues begin whose tasks no worker is given; see settling. A client's queue never does."""
TIMER_QUEUE = "~timer"
"""Pauses: scheduled, and over when they are due."""
PROMISE_QUEUE = "~promise"
"""Promises: pending until somebody resolves them."""
CHILD_QUEUE = "~child"
"""Child runs: pending until theirs has ended."""


class RunKind(IntEnum):
    """What planned a run."""

    CASCADE = 1
    SINGLE = 2
    GRAPH = 3
    CODE = 4


class RunStatus(IntEnum):
    """Where a run stands."""

    RUNNING = 1
    CANCELLING = 2
    COMPLETED = 3
    FAILED = 4
    CANCELLED = 5


class TaskStatus(IntEnum):
    """Where a task stands. IN_LINE is the engine's own: PENDING to all others, it waits in a line; see bounds."""

    IN_LINE = 0
    SCHEDULED = 1
    PENDING = 2
    RUNNING = 3
    COMPLETED = 4
    FAILED = 5
    CANCELLED = 6


class AttemptStatus(IntEnum):
    """Where an attempt stands."""

    RUNNING = 1
    COMPLETED = 2
    FAILED = 3
    TIMED_OUT = 4
    LOST = 5
    CANCELLED = 6


class EventType(IntEnum):
    """What happened in a run."""

    RUN_CREATED = 1
    ARTIFACT_PUBLISHED = 2
    TASK_CREATED = 3
    TASK_STARTED = 4
    TASK_COMPLETED = 5
    TASK_RETRY = 6
    TASK_FAILED = 7
    TASK_CANCELLED = 8
    TASK_RELEASED = 9
    RUN_COMPLETED = 10
    RUN_FAILED = 11
    RUN_CANCELLING = 12
    RUN_CANCELLED = 13
    RUN_REOPENED = 14
    CASCADE_LIMIT = 15
    TASK_CANCELLING = 16
    TASK_READY = 17
    GATE_WAITING = 18
    GATE_FIRED = 19
    GATE_EXPIRED = 20
    STEP_SKIPPED = 21
    STEP_FAILED = 22
    RETRY_REQUESTED = 30
    RUN_PAUSED = 31
    RUN_RESUMED = 32
    RUN_TIMED_OUT = 33
    PROMISE_RESOLVED = 45
    PROMISE_REJECTED = 46
    TASK_DROPPED = 40
    TASK_PROGRESS = 41
    SIGNALLED = 50
    CONTINUED_AS_NEW = 51


@dataclass(slots=True)
class Run:
    """State of a run.

    Attributes:
        day: Day of its creation, days since the epoch; leads the keys of rows dropped by time.
        cancel_by_us: While CANCELLING, when it is ended by force.
        keep_until_us: Retention leaves it alone until then (a live idempotency key needs it).
        waiters: Lanes of replicas where a caller waits for its end.
        open_gates: Buffers in which artifacts of it wait for others, which keeps it open.
        parents: Runs whose artifacts opened the gate that made this one.
        workflow, workflow_version: Of a graph or code run, the definition that it follows to its end.
        plan: Its planner's own state: of a graph run where its steps stand, see domain.graph; of a code run how far its
            code has looked, see domain.code; of a cascade how often it was reopened, "" for never.
        redone: How often it was retried by hand, which what was decided before does not survive.
        due_us: Since when somebody has to look at it: a step of it is due, or its parent is to be told; 0: nobody.
        parent_id, parent_task: The run and the task of it that began this one, or "".
        paused_us: Since when nothing new of it starts; 0: it is not paused.
        timeout_us: How long it may take in all, from its creation, or from its latest retry by hand; 0: for ever.
        deadline_us: When it is ended by that; 0 where it has none, or has ended.
        rerun_of: The run that it repeats, or "".
        queue, priority: Of its tasks that name none; "" and 0 for those of the service.
        trace: The context of the call that began it, see domain.tracing, or "".
        stored_us: Its updated_us as last read or stored.
        running_share: Of its tasks that run, the shares done, summed; where somebody asked for it. Not stored.
        running_words: What the worker said of them, of that which began last. Not stored either.
    """

    id: str
    tenant: str
    kind: RunKind
    created_us: int
    created_by: str = ""
    status: RunStatus = RunStatus.RUNNING
    updated_us: int = 0
    finished_us: int = 0
    last_seq: int = 0
    open_tasks: int = 0
    task_count: int = 0
    failed_tasks: int = 0
    artifact_count: int = 0
    cancel_by_us: int = 0
    keep_until_us: int = 0
    labels: str = ""
    error_code: str = ""
    error_message: str = ""
    waiters: tuple[str, ...] = ()
    open_gates: int = 0
    parents: tuple[str, ...] = ()
    workflow: str = ""
    workflow_version: str = ""
    plan: str = ""
    redone: int = 0
    due_us: int = 0
    parent_id: str = ""
    parent_task: str = ""
    paused_us: int = 0
    timeout_us: int = 0
    deadline_us: int = 0
    rerun_of: str = ""
    queue: str = ""
    priority: int = 0
    trace: str = ""
    stored_us: int = 0
    running_share: float = 0.0
    running_words: str = ""

    @property
    def ends_before(self) -> int:
        """How often it ended and went on."""
        return self.redone + (int(self.plan or 0) if self.kind is RunKind.CASCADE else 0)

    @property
    def day(self) -> int:
        """Day of its creation, days since the epoch."""
        return self.created_us // DAY_US


@dataclass(slots=True)
class Task:
    """State of a task.

    Attributes:
        attempt: Number of the latest lease, the fence; it only grows.
        tries: Attempts that counted, that is, whose lease arrived.
        depth: Steps from the cascade's first artifact.
        limited: Its agent bounds how many run at once, so it is never handed off past the count.
        owner: Lane of the server that holds the lease, or "".
        worker_id: The worker's own id, or "".
        lease_until_us: The lease is reclaimed then: the earliest of its renewal, deadline and heartbeat.
        deadline_us: End of the attempt by start_to_close, or 0.
        beat_by_us: The next sign of life is due by then, or 0.
        delivered: The worker has acknowledged the lease, so the attempt counts.
        input: google.protobuf.Value in wire form.
        labels: JSON object as text, or "".
        step: Of a graph run the number of its step, of a code run that of its command, from 1; else 0.
        item: Of a step for many items, the number of its item, from 1; of a code run's child that goes on when nobody
            waits for it any more, -1; else 0.
        promise_key: Of a promise: its key in the tenant, or "".
        held_us: Its run is paused: the time that stood in run_at_us, which is never then; 0: it is not held.
        bounds: How many run at once, or start in a while, of those with its keys.
        waits_for: The line that it waits in, or waited in until there was room for it; "" once it started.
        dropped: Failed finally, and nobody wants to see it among the dead letters any more.
        trace: The context of what made it, see domain.tracing, or "".
    """

    id: str
    run_id: str
    tenant: str
    kind: str
    queue: str
    created_us: int
    day: int
    status: TaskStatus = TaskStatus.PENDING
    priority: int = 0
    run_at_us: int = 0
    start_by_us: int = 0
    attempt: int = 0
    tries: int = 0
    started_us: int = 0
    finished_us: int = 0
    lease_until_us: int = 0
    deadline_us: int = 0
    beat_by_us: int = 0
    owner: str = ""
    worker_id: str = ""
    worker_name: str = ""
    delivered: bool = False
    cancelling: bool = False
    depth: int = 1
    limited: bool = False
    agent: str = ""
    artifact_ids: tuple[str, ...] = ()
    input: bytes = b""
    retry: RetryPolicy = DEFAULT_RETRY
    timeouts: Timeouts = DEFAULT_TIMEOUTS
    labels: str = ""
    error_code: str = ""
    error_message: str = ""
    progress: float = 0.0
    progress_message: str = ""
    step: int = 0
    item: int = 0
    promise_key: str = ""
    held_us: int = 0
    bounds: Bounds = UNBOUND
    waits_for: str = ""
    dropped: bool = False
    trace: str = ""

    @property
    def open(self) -> bool:
        """It has not ended."""
        return self.status <= TaskStatus.RUNNING

    @property
    def shown_status(self) -> TaskStatus:
        """Its status as all but the engine see it."""
        return self.status or TaskStatus.PENDING

    @property
    def leads(self) -> bool:
        """It is a code run's own task, which runs its code."""
        return self.id == self.run_id


class PayloadKind(IntEnum):
    """What a run keeps beside its row."""

    INPUT = 1
    OUTPUT = 2


@dataclass(slots=True)
class Attempt:
    """One try at a task."""

    task_id: str
    number: int
    day: int
    status: AttemptStatus
    started_us: int
    finished_us: int
    worker_name: str = ""
    error_code: str = ""
    error_message: str = ""
    output: bytes = b""


@dataclass(slots=True)
class Event:
    """Something that happened in a run; `data` is a JSON object as text, or ""."""

    run_id: str
    day: int
    seq: int
    type: EventType
    at_us: int
    task_id: str = ""
    artifact_id: str = ""
    attempt: int = 0
    data: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """A finally failed task of a cascade, as callers are told."""

    agent: str
    task_id: str
    code: str
    message: str
    attempts: int = 0
    artifact_ids: tuple[str, ...] = field(default_factory=tuple)
