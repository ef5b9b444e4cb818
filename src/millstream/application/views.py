"""What use cases take and give, beside the domain's own values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from millstream.application.code_views import ActivationAnswer
from millstream.domain.agents import Agent, AgentSpec, Pause
from millstream.domain.artifacts import Artifact, NewArtifact, size_bytes
from millstream.domain.bounds import UNBOUND, Bounds
from millstream.domain.code import Activation, History
from millstream.domain.errors import MillstreamError
from millstream.domain.promises import PromiseState
from millstream.domain.retry import DEFAULT_RETRY, DEFAULT_TIMEOUTS, RetryPolicy, Timeouts
from millstream.domain.runs import Failure, Run, Task, TaskStatus
from millstream.domain.workers import KindSpec, ServingWorker


@dataclass(frozen=True, slots=True)
class Key:
    """An idempotency key of a call.

    Attributes:
        value: 1 to 255 printable ASCII characters.
        rpc: Name of the RPC, its scope beside tenant and principal.
        fingerprint: 16 bytes that tell this request from others.
    """

    value: str
    rpc: str
    fingerprint: bytes


STRUCT_TYPE = "application/x-protobuf; message=google.protobuf.Struct"
"""Of payloads that came within requests, and were checked there: nobody may upload what claims to be one."""


@dataclass(frozen=True, slots=True)
class StoredPayload:
    """A payload outside the hot tables.

    Attributes:
        blob: Id of its chunks.
        size_bytes: Of the whole content.
        media_type: As its first uploader named it.
        created_us: When it was stored, microseconds since the epoch.
    """

    blob: str
    size_bytes: int
    media_type: str
    created_us: int = 0


@dataclass(frozen=True, slots=True)
class Published:
    """Where an artifact went."""

    artifact_id: str
    correlation_id: str
    replayed: bool = False
    notice: str = ""
    """That its type is deprecated, and what to use in its place."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Outcomes of a batch call in request order."""

    results: "Sequence[Published | CreatedTask | RunResult | MillstreamError]"
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What a cascade made; `next_page_token` is set where it was truncated."""

    correlation_id: str
    artifacts: list[Artifact]
    completed: bool
    duration_ms: float
    failures: list[Failure]
    next_page_token: str = ""
    replayed: bool = False
    notice: str = ""


@dataclass(frozen=True, slots=True)
class ArtifactQuery:
    """Which artifacts; "" and 0 are "any". Times are microseconds, from inclusive, to exclusive."""

    type: str = ""
    produced_by: str = ""
    correlation_id: str = ""
    tag: str = ""
    from_us: int = 0
    to_us: int = 0
    visibility: str = ""


@dataclass(frozen=True, slots=True)
class Sent:
    """An artifact of a stream, and what a caller who has it goes on with; None: the cursor alone."""

    artifact: Artifact | None
    cursor: str


@dataclass(frozen=True, slots=True)
class Consumption:
    """That an agent consumed an artifact."""

    artifact_id: str
    consumer: str
    run_id: str
    consumed_us: int


@dataclass(frozen=True, slots=True)
class ListedArtifact:
    """An artifact of a list; `consumptions` is None unless asked for."""

    artifact: Artifact
    consumptions: list[Consumption] | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts of artifacts. Times are microseconds, 0 where there is none."""

    total: int
    by_type: dict[str, int]
    by_producer: dict[str, int]
    by_visibility: dict[str, int]
    tag_counts: dict[str, int]
    earliest_us: int
    latest_us: int


@dataclass(frozen=True, slots=True)
class CorrelationStatus:
    """Where a cascade stands: state "active", "completed", "failed" or "not_found". Times are microseconds, 0 where
    there is none; artifacts are counted for the reader."""

    correlation_id: str
    state: str = "not_found"
    has_pending_work: bool = False
    artifact_count: int = 0
    artifact_count_is_estimate: bool = False
    error_count: int = 0
    started_us: int = 0
    last_activity_us: int = 0


@dataclass(frozen=True, slots=True)
class NewTask:
    """A standalone task as its creator gave it.

    Attributes:
        input: google.protobuf.Value in wire form, b"" for null.
        run_at_us: Not before this time, microseconds since the epoch; 0 for now.
        delay_us: Not before this long from now; 0 for now.
        labels: JSON object as text, or "".
        run_timeout_us: How long it may take in all, delays and retries included; 0 for ever.
        business_key: While a task of this kind and key stands, it is the answer; "" for none.
        business_ttl_us: How long the key holds, 0 for the server's time.
    """

    kind: str
    input: bytes = b""
    queue: str = "default"
    priority: int = 0
    run_at_us: int = 0
    delay_us: int = 0
    retry: RetryPolicy = DEFAULT_RETRY
    timeouts: Timeouts = DEFAULT_TIMEOUTS
    labels: str = ""
    run_timeout_us: int = 0
    bounds: Bounds = UNBOUND
    business_key: str = ""
    business_ttl_us: int = 0


@dataclass(frozen=True, slots=True)
class CreatedTask:
    """A task just made."""

    task: Task
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class TaskView:
    """A task with its output (google.protobuf.Value in wire form, b"" for none)."""

    task: Task
    output: bytes = b""
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class TaskQuery:
    """Which tasks; None, "", () and 0 are "any". `statuses`: in one of these; `labels`: a JSON object as text, all of
    which a task has; `oldest_first` None: as the list does, those of a run the oldest first, and others the newest;
    `standalone`: only those that are no part of a cascade or workflow."""

    status: TaskStatus | None = None
    statuses: tuple[TaskStatus, ...] = ()
    standalone: bool = False
    kind: str = ""
    queue: str = ""
    run_id: str = ""
    created_after_us: int = 0
    created_before_us: int = 0
    agent: str = ""
    worker: str = ""
    labels: str = ""
    oldest_first: bool | None = None


@dataclass(frozen=True, slots=True)
class DeadLetterQuery:
    """Which dead letters; "" and 0 are "any". Times are microseconds, from inclusive, to exclusive."""

    kind: str = ""
    queue: str = ""
    error_code: str = ""
    since_us: int = 0
    until_us: int = 0


@dataclass(frozen=True, slots=True)
class BulkWanted:
    """Which dead letters a call is about: those with these ids, or (query) all that match.

    Attributes:
        note: Why, for the runs' events.
    """

    task_ids: tuple[str, ...] = ()
    query: DeadLetterQuery | None = None
    dry_run: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class BulkDone:
    """What became of them: how many matched, and the error of each, None where there is none."""

    matched: int
    results: tuple[tuple[str, MillstreamError | None], ...] = ()
    more: bool = False
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class QueueState:
    """A queue as it stands; counts end at 10,001."""

    queue: str
    ready: int = 0
    in_line: int = 0
    scheduled: int = 0
    running: int = 0
    oldest_us: int = 0
    pause: Pause | None = None


@dataclass(frozen=True, slots=True)
class PromiseRef:
    """Which promise: by its id, or by its key."""

    id: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class PromiseView:
    """A promise (its task) with its value (google.protobuf.Value in wire form, b"" for none)."""

    task: Task
    value: bytes = b""
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class PromiseQuery:
    """Which promises; None and "" are "any"."""

    state: PromiseState | None = None
    key: str = ""
    name: str = ""
    run_id: str = ""


@dataclass(frozen=True, slots=True)
class AgentState:
    """An agent and how it stands: "ONLINE", "OFFLINE", "PAUSED" or "DELETED"."""

    agent: Agent
    status: str
    pause: Pause | None = None


@dataclass(frozen=True, slots=True)
class AgentDetail:
    """What is shown of one agent alone: what waits in its gates, and who serves it."""

    waiting: "Waiting"
    workers: tuple[ServingWorker, ...] = ()
    worker_count: int = 0


@dataclass(frozen=True, slots=True)
class AgentHistory:
    """Artifacts that an agent made and took up, by type; `truncated` where not all were looked at."""

    produced: dict[str, int]
    consumed: dict[str, int]
    truncated: bool


@dataclass(frozen=True, slots=True)
class WaitingGate:
    """What waits in a gate of an agent, as a reader may see it.

    Attributes:
        subscription: Its place in the agent; None where it is gone.
        have, need: Artifacts by type.
        size: Of a batch, what fills it.
        window: Of a join by count, among how many artifacts its parts must be; else 0.
        artifact_ids: The oldest of them.
    """

    subscription: int | None
    run_id: str
    key: str
    have: dict[str, int]
    need: tuple[tuple[str, int], ...]
    size: int
    window: int
    artifact_ids: tuple[str, ...]
    opened_us: int
    expires_us: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits in an agent's gates: the next to expire, and how many there are."""

    gates: tuple[WaitingGate, ...] = ()
    total: int = 0


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


@dataclass(frozen=True, slots=True)
class LeaseRef:
    """A lease by its fence."""

    task_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Hello:
    """Who a worker is and what it serves."""

    worker_id: str
    name: str
    kinds: tuple[str, ...]
    queues: tuple[str, ...]
    agents: tuple[AgentSpec, ...]
    types: tuple[TypeSpec, ...]
    held: tuple[LeaseRef, ...]
    slots: int
    specs: tuple[KindSpec, ...] = ()


@dataclass(slots=True)
class Completion:
    """A task done: its output (google.protobuf.Value in wire form) and what it publishes; or, with `fault`, why these
    cannot be taken, which fails the task."""

    task_id: str
    attempt: int
    output: bytes = b""
    artifacts: list[NewArtifact] = field(default_factory=list)
    fault: MillstreamError | None = None


@dataclass(frozen=True, slots=True)
class AttemptFailure:
    """An attempt failed; retryable None leaves it to the policy."""

    task_id: str
    attempt: int
    code: str
    message: str
    retryable: bool | None = None
    retry_after_us: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a task is."""

    task_id: str
    attempt: int
    fraction: float
    message: str


@dataclass(frozen=True, slots=True)
class Reports:
    """What a worker reports in one message; each kind may be empty."""

    completions: tuple[Completion, ...] = ()
    failures: tuple[AttemptFailure, ...] = ()
    progress: tuple[Progress, ...] = ()
    heartbeats: tuple[LeaseRef, ...] = ()
    delivered: tuple[LeaseRef, ...] = ()
    released: tuple[LeaseRef, ...] = ()
    answers: tuple[ActivationAnswer, ...] = ()


@dataclass(frozen=True, slots=True)
class ReportResult:
    """What became of a report; error None is "stored"."""

    task_id: str
    attempt: int
    error: MillstreamError | None = None
    cancel_requested: bool = False


@dataclass(frozen=True, slots=True)
class Lease:
    """A task for a worker with the artifacts it is given; of a code run's own task, what its code is to look at."""

    task: Task
    attempt: int
    artifacts: list[Artifact]
    tries: int
    activation: Activation | None = None
    history: History = field(default_factory=History)

    @property
    def size_bytes(self) -> int:
        """About what it takes on the wire, not less; 400 is an ordinary one without input and artifacts."""
        size = 400 + len(self.task.input) + sum(map(size_bytes, self.artifacts))
        return size + sum(item.size_bytes for item in self.history.items)


@dataclass(frozen=True, slots=True)
class Cancellation:
    """A lease to give up; reason "CANCELLED" or "LEASE_LOST"."""

    task_id: str
    attempt: int
    reason: str


Push = Callable[[list[Lease], list[Cancellation], bool], None]
"""How a worker's connection is told: leases, cancellations, and whether the server drains. Never blocks."""


@dataclass(frozen=True, slots=True)
class LogLevel:
    """From which level on a logger ("": all of the service) logs, until a time (0: for ever)."""

    logger: str
    level: str
    until_us: int = 0


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
