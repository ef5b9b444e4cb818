"""Promises: tasks that are settled once, from outside, by their id or their key, or else by their time-out.

A promise is a task on a queue that no worker leases. It is PENDING until it is settled; its time-out is its
schedule_to_start. Its key is unique among the tenant's open promises: a command that makes one names its key
(`Command.promise_keys`), so that the batch knows who has it.
"""

from dataclasses import dataclass
from enum import IntEnum

from millstream.domain.batch import Batch
from millstream.domain.errors import Conflict
from millstream.domain.lifecycle import create, details
from millstream.domain.retry import RetryPolicy, Timeouts
from millstream.domain.runs import PROMISE_QUEUE, EventType, Run, Task, TaskStatus
from millstream.domain.settling import settle, settle_failed

DEFAULT_TIMEOUT_US = 30 * 86_400_000_000
TIMED_OUT = "PROMISE_TIMEOUT"
REJECTED = "REJECTED"
"""Code of a rejection that gives none."""
_ONCE = RetryPolicy(max_attempts=1)


class PromiseState(IntEnum):
    """Where a promise stands."""

    PENDING = 1
    RESOLVED = 2
    REJECTED = 3
    CANCELLED = 4


STATUSES = {
    PromiseState.PENDING: TaskStatus.PENDING,
    PromiseState.RESOLVED: TaskStatus.COMPLETED,
    PromiseState.REJECTED: TaskStatus.FAILED,
    PromiseState.CANCELLED: TaskStatus.CANCELLED,
}
_STATES = {status: state for state, status in STATUSES.items()}


@dataclass(frozen=True, slots=True)
class NewPromise:
    """A promise as its creator gave it.

    Attributes:
        key: Unique in the tenant while the promise is open; "" for none.
        input: google.protobuf.Value in wire form, b"" for null.
        timeout_us: When it is rejected, from its creation, microseconds.
        labels: JSON object as text, or "".
    """

    name: str
    key: str = ""
    input: bytes = b""
    timeout_us: int = DEFAULT_TIMEOUT_US
    labels: str = ""


@dataclass(frozen=True, slots=True)
class Resolution:
    """A value, google.protobuf.Value in wire form."""

    value: bytes


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a promise is not kept."""

    code: str
    message: str


def state_of(task: Task) -> PromiseState:
    """Where the promise stands."""
    return _STATES.get(task.status, PromiseState.PENDING)


def promise_task(run: Run, task_id: str, new: NewPromise, now_us: int) -> Task:
    """The task that stands for a promise in a run."""
    return Task(
        task_id,
        run.id,
        run.tenant,
        new.name,
        PROMISE_QUEUE,
        now_us,
        run.day,
        input=new.input,
        retry=_ONCE,
        timeouts=Timeouts(schedule_to_start_us=new.timeout_us, start_to_close_us=0),
        labels=new.labels,
        promise_key=new.key,
    )


def check_key(batch: Batch, tenant: str, key: str) -> None:
    """Raise Conflict where an open promise has the key."""
    if key and (holder := batch.open_promises.get((tenant, key))):
        raise Conflict(f"the key {key!r} is that of promise {holder}, which is open")


def create_promise(batch: Batch, run: Run, task: Task) -> None:
    """Make a promise of `promise_task` in a running run. Raises Conflict where an open one has its key."""
    check_key(batch, task.tenant, task.promise_key)
    create(batch, run, task)
    if task.promise_key:
        batch.open_promises[task.tenant, task.promise_key] = task.id


def settle_promise(batch: Batch, run: Run, task: Task, outcome: Resolution | Rejection, by: str) -> None:
    """Resolve or reject a promise. Raises Conflict where it was settled."""
    if not task.open:
        raise Conflict(f"promise {task.id} is {state_of(task).name} already")
    task.worker_name = by
    data = details(name=task.kind, key=task.promise_key, by=by)
    if isinstance(outcome, Resolution):
        batch.record(run, EventType.PROMISE_RESOLVED, task_id=task.id, data=data)
        settle(batch, run, task, outcome.value)
    else:
        batch.record(run, EventType.PROMISE_REJECTED, task_id=task.id, data=data)
        settle_failed(batch, run, task, outcome.code or REJECTED, outcome.message)


def time_out(batch: Batch, run: Run, task: Task) -> None:
    """Reject a promise whose time has passed."""
    if task.status is TaskStatus.PENDING and 0 < task.start_by_us <= batch.now_us:
        waited_s = task.timeouts.schedule_to_start_us / 1e6
        settle_failed(batch, run, task, TIMED_OUT, f"nobody settled it within {waited_s:g} s")
