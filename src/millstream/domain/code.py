"""Code-first runs: what a run's code is told, what it says, and how far it has looked.

The run has a task of its own, whose id is the run's: a worker leases it to run the code, and answers it; in between it
sleeps. Everything that happens to the run is an event; those that the code is told of are its history, together with
the commands that it gave. The code has looked at the events up to `seen`; whenever there are more, its task is ready.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeAlias

from millstream.domain.retry import RetryPolicy, Timeouts

LEAD = "workflow:"
"""How the kinds of runs' own tasks begin; the workflow and its version follow."""
LEAD_RETRY = RetryPolicy(initial_us=1_000_000, maximum_us=60_000_000, max_attempts=10)
"""For an activation that its workers do not survive; each answer begins it anew."""
LEAD_TIMEOUTS = Timeouts(start_to_close_us=120_000_000)
DISOWNED = "cancelled by its workflow"
"""Message of tasks that the code itself cancelled: it is not told of their end."""
CLOSED = "its run has ended"
"""Message of tasks that the code left open: nobody is told of their end, and a retry of the run begins them again."""
ABANDONED = -1
"""Item of a child's task whose run goes on when nobody waits for it any more."""


def lead_kind(workflow: str, version: str) -> str:
    """Kind of the own task of a run: with it, a run goes only to workers that have its version."""
    return f"{LEAD}{workflow}@{version}"


class EntryType(IntEnum):
    """What the code is told; the numbers are those of the contract."""

    STARTED = 1
    COMPLETED = 2
    FAILED = 3
    SIGNALLED = 4
    CANCELLING = 5


class CommandType(IntEnum):
    """What the code did; the numbers are those of the contract. KEPT rows carry what events do not: the values of
    signals, and the inputs of runs that began anew."""

    TASK = 1
    TIMER = 2
    CHILD = 3
    PROMISE = 4
    PUBLISH = 5
    RECORD = 6
    PATCH = 7
    STATE = 8
    CANCEL = 9
    KEPT = 100


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that the code is told, with values as google.protobuf.Value in wire form."""

    seq: int
    type: EntryType
    at_us: int
    step: int = 0
    name: str = ""
    value: bytes = b""
    code: str = ""
    message: str = ""

    @property
    def size_bytes(self) -> int:
        """About what it takes, in memory and on the wire."""
        return 100 + len(self.name) + len(self.value) + len(self.message)


@dataclass(frozen=True, slots=True)
class Recorded:
    """A command as the history has it: its number, the event it was given at, what it was."""

    number: int
    after: int
    type: CommandType
    name: str = ""
    value: bytes = b""
    code: str = ""
    message: str = ""

    @property
    def size_bytes(self) -> int:
        """About what it takes, in memory and on the wire."""
        return 60 + len(self.name) + len(self.value) + len(self.message)


@dataclass(frozen=True, slots=True)
class StartTask:
    """A task for a worker; queue "" stands for the run's."""

    kind: str
    input: bytes
    queue: str
    priority: int
    delay_us: int
    retry: RetryPolicy
    timeouts: Timeouts
    labels: str


@dataclass(frozen=True, slots=True)
class StartTimer:
    """A pause."""

    delay_us: int


@dataclass(frozen=True, slots=True)
class StartChild:
    """A run of another workflow."""

    workflow: str
    version: str
    input: bytes
    abandon: bool
    labels: str


@dataclass(frozen=True, slots=True)
class OpenPromise:
    """Something that somebody outside will say."""

    name: str
    key: str
    timeout_us: int


@dataclass(frozen=True, slots=True)
class PublishItem:
    """An artifact: its place among what the answer publishes."""

    type: str
    place: int


@dataclass(frozen=True, slots=True)
class Note:
    """What is recorded and nothing else: a side effect, a patch, a piece of state."""

    type: CommandType
    name: str
    value: bytes = b""
    code: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class CancelStep:
    """Cancel what a command began."""

    step: int


What: TypeAlias = StartTask | StartTimer | StartChild | OpenPromise | PublishItem | Note | CancelStep


@dataclass(frozen=True, slots=True)
class Given:
    """A command of the code, with an id for the task that it may make."""

    number: int
    after: int
    what: What
    task_id: str = ""


class EndType(IntEnum):
    """How the code ended."""

    COMPLETED = 1
    FAILED = 2
    CANCELLED = 3
    CONTINUED = 4


@dataclass(frozen=True, slots=True)
class End:
    """The end of the code: its output, or the input that it begins anew with, and the signals that it did not take."""

    type: EndType
    value: bytes = b""
    code: str = ""
    message: str = ""
    signals: Sequence[tuple[str, bytes]] = ()


@dataclass(slots=True)
class Standing:
    """How far the code has looked; the run keeps it in its row.

    Attributes:
        since: The event that it began with, or began anew.
        first: Commands given before that.
        seen: The last event of an accepted answer.
        last: The last event that the code is to be told of.
        count: Commands so far.
        answered: The attempt whose answer was accepted last; a worker's copy of the run is as of this one. 0: none.
        acted, acted_us: At which event, and when, it gave its last command.
    """

    since: int = 1
    first: int = 0
    seen: int = 0
    last: int = 1
    count: int = 0
    answered: int = 0
    acted_us: int = 0
    acted: int = 0

    @classmethod
    def of(cls, plan: str) -> "Standing":
        """What a run keeps, read."""
        return cls(*map(int, plan.split(":")))

    @property
    def plan(self) -> str:
        """What a run keeps."""
        numbers = (
            self.since, self.first, self.seen, self.last, self.count, self.answered, self.acted_us, self.acted,
        )  # fmt: skip
        return ":".join(map(str, numbers))


@dataclass(frozen=True, slots=True)
class Activation:
    """What a worker is told when it leases a run's own task.

    Attributes:
        base: The last event that it is told of.
        after: The event behind which its history begins.
        token: The attempt that the worker's copy is as of; 0 where it gets the whole history.
    """

    run_id: str
    day: int
    workflow: str
    version: str
    since: int
    first: int
    seen: int
    base: int
    after: int
    count: int
    token: int


@dataclass(frozen=True, slots=True)
class History:
    """A piece of a history in order: entries, each with the commands given at it behind it."""

    items: Sequence[Entry | Recorded] = field(default_factory=tuple)
    more: bool = False
