"""The working set of one transaction: rows loaded, rows changed, and what must be told afterwards."""

from collections.abc import Callable, Set
from dataclasses import dataclass, field

from millstream.domain.artifacts import Artifact
from millstream.domain.bounds import Line, LineKey
from millstream.domain.code import Activation, Entry
from millstream.domain.gates import Buffer
from millstream.domain.runs import Attempt, EventType, PayloadKind, Run, Task
from millstream.domain.tracing import with_trace

EventRow = tuple[int, str, int, int, int, str, str, int, str]
"""An event as it is written: day, run, number, type, time, task, artifact, attempt, data. A plain tuple, because a task
makes three and an object for each was a tenth of a batch."""

JournalRow = tuple[int, str, int, int, int, str, bytes, str, str]
"""A row of a code run's journal; see Batch.journal."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that planners hold. Times are microseconds."""

    max_depth: int = 50
    max_tasks: int = 10_000
    lease_us: int = 30_000_000
    cancel_grace_us: int = 10_000_000
    max_gates: int = 10_000
    max_commands: int = 50_000


@dataclass(frozen=True, slots=True)
class Claim:
    """A connected worker that takes a task: its connection and who it is.

    Attributes:
        arrived: What it leases counts as delivered (the answer of a poll is the delivery).
    """

    session_id: str
    worker_id: str
    worker_name: str
    arrived: bool = False


BUSINESS = "~"
"""How the "RPC" of business keys begins: they hold for a tenant and a kind, whoever calls."""


@dataclass(frozen=True, slots=True)
class KeyClaim:
    """An idempotency key claimed with the effect it guards; `response` is what a replay needs, as JSON text.

    A business key has no principal and no fingerprint, and its response is a list that ends with a run's id: it is free
    again once that run ends FAILED or CANCELLED.
    """

    tenant: str
    principal: str
    rpc: str
    key: str
    fingerprint: bytes
    response: str
    expires_us: int

    @property
    def id(self) -> tuple[str, str, str, str]:
        """Its primary key."""
        return (self.tenant, self.principal, self.rpc, self.key)


@dataclass(frozen=True, slots=True)
class Handoff:
    """A lease to push after the commit; of a code run's own task with what its code is to look at."""

    session_id: str
    task: Task
    attempt: int
    activation: Activation | None = None


@dataclass(slots=True)
class Batch:
    """What one transaction reads and writes.

    Attributes:
        now_us: The database's time, read once.
        lane: Lane of this server, the owner of leases made here.
        limits: Bounds.
        offer: Finds a connected worker for a task that just became ready and takes its credit; None where there is
            none, or where older work waits.
        assign: The same for the oldest waiting task of its dispatch key.
        chance: Random numbers from 0 to 1, for jitter.
        runs, tasks, buffers: What is loaded, by id.
        gone_payloads: (tenant, SHA-256) of payloads that the commands refer to and that are not there any more.
        full: (tenant, fingerprint) of subscriptions that keep as many buffers for a tenant as they may.
        claims: Keys claimed, by primary key.
        ready: Dispatch keys (tenant, queue, kind) that got work no worker was offered.
        waiting: Tasks that became ready and were offered in vain.
        freed: Dispatch keys of limited tasks that left a worker, so that another may start.
        room: How many more tasks of a limited dispatch key may start.
        lines: Lines that are locked here, as they stand.
        looks: Lines to look at after the commit: a task came, or left room.
        ended: Runs that ended here.
        reopened: Ended runs that go on.
        due_runs: Runs that somebody has to look at after the commit.
        payloads: What runs were given and answer: day, run, PayloadKind, google.protobuf.Value in wire form.
        journal: Commands of code runs, and values that go with events: day, run, number (of an event: negative), the
            event it was given at, CommandType, name, value, error's code and message.
        entries: What the code of runs is to be told of, by run.
        cancelled: Tasks whose worker is asked to stop, with the attempt and the owner's lane.
        lost: Tasks whose worker lost them, likewise: it is told, and its reports are refused from here on.
        open_promises: Ids of open promises by tenant and key, of the keys that the commands name.
        unsure: A command found the state other than what it came for. From a kept copy that proves nothing: the
            copy may be outdated, and what is not written is not fenced.
        trace: The context of what is being decided, see domain.tracing: runs and tasks that it makes go on from it.
        scheduled_us: Earliest time at which a task or a gate of this batch is due, or waits in vain; 0 for none.
    """

    now_us: int
    lane: str
    limits: Limits
    offer: Callable[[Task], Claim | None]
    assign: Callable[[Task], Claim | None]
    chance: Callable[[], float]
    runs: dict[str, Run] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    buffers: dict[str, Buffer] = field(default_factory=dict)
    dirty_buffers: dict[str, Buffer] = field(default_factory=dict)
    gone_payloads: Set[tuple[str, bytes]] = frozenset()
    full: Set[tuple[str, str]] = frozenset()
    dirty_runs: dict[str, Run] = field(default_factory=dict)
    dirty_tasks: dict[str, Task] = field(default_factory=dict)
    new_runs: set[str] = field(default_factory=set)
    new_tasks: set[str] = field(default_factory=set)
    artifacts: list[Artifact] = field(default_factory=list)
    events: list[EventRow] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    claims: dict[tuple[str, str, str, str], KeyClaim] = field(default_factory=dict)
    handoffs: list[Handoff] = field(default_factory=list)
    ready: set[tuple[str, str, str]] = field(default_factory=set)
    waiting: list[Task] = field(default_factory=list)
    freed: set[tuple[str, str, str]] = field(default_factory=set)
    room: dict[tuple[str, str], int] = field(default_factory=dict)
    lines: dict[LineKey, Line] = field(default_factory=dict)
    looks: set[LineKey] = field(default_factory=set)
    ended: dict[str, Run] = field(default_factory=dict)
    reopened: set[str] = field(default_factory=set)
    due_runs: set[str] = field(default_factory=set)
    payloads: list[tuple[int, str, int, bytes]] = field(default_factory=list)
    journal: list[JournalRow] = field(default_factory=list)
    entries: dict[str, list[Entry]] = field(default_factory=dict)
    cancelled: list[tuple[str, int, str]] = field(default_factory=list)
    lost: list[tuple[str, int, str]] = field(default_factory=list)
    open_promises: dict[tuple[str, str], str] = field(default_factory=dict)
    unsure: bool = False
    trace: str = ""
    scheduled_us: int = 0

    def add_run(self, run: Run, data: str = "") -> None:
        """A run that is new in this transaction; `data` is its first event's."""
        self.runs[run.id] = run
        self.new_runs.add(run.id)
        self.dirty_runs[run.id] = run
        parent = self.tasks.get(run.parent_task) if run.parent_task else None
        run.trace = run.trace or (self.trace if parent is None else parent.trace)
        if run.trace:
            data = with_trace(data, run.trace)
        self.record(run, EventType.RUN_CREATED, data=data)

    def touch(self, run: Run, task: Task | None = None) -> None:
        """Mark rows as changed. A run's updated_us tells its states apart, so it grows with each."""
        run.updated_us = max(self.now_us, run.stored_us + 1)
        self.dirty_runs[run.id] = run
        if task is not None:
            self.dirty_tasks[task.id] = task

    def record(
        self,
        run: Run,
        kind: EventType,
        task_id: str = "",
        artifact_id: str = "",
        attempt: int = 0,
        data: str = "",
    ) -> int:
        """Append an event to the run and return its number."""
        run.last_seq = seq = run.last_seq + 1
        self.events.append((run.day, run.id, seq, int(kind), self.now_us, task_id, artifact_id, attempt, data))
        return seq

    def keep(self, run: Run, kind: PayloadKind, value: bytes) -> None:
        """Keep what a run was given, or answers."""
        self.payloads.append((run.day, run.id, int(kind), value))

    def attend(self, run: Run) -> None:
        """Have somebody look at the run after the commit."""
        run.due_us = self.now_us
        self.due_runs.add(run.id)
        self.touch(run)

    def attended(self, run: Run) -> None:
        """Somebody has."""
        run.due_us = 0
        self.due_runs.discard(run.id)
        self.touch(run)

    def schedule(self, at_us: int) -> None:
        """Something is due then."""
        if self.scheduled_us == 0 or at_us < self.scheduled_us:
            self.scheduled_us = at_us

    @property
    def empty(self) -> bool:
        """There is nothing to write."""
        return not (self.dirty_runs or self.claims or self.dirty_buffers)
