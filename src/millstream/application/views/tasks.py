"""What the use cases of tasks take and give, beside the domain's own values."""

from dataclasses import dataclass

from millstream.domain.bounds import UNBOUND, Bounds
from millstream.domain.retry import DEFAULT_RETRY, DEFAULT_TIMEOUTS, RetryPolicy, Timeouts
from millstream.domain.runs import Task, TaskStatus


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
