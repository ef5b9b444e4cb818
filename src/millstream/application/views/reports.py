"""What a worker reports, and what became of it."""

from dataclasses import dataclass, field

from millstream.application.views.code_runs import ActivationAnswer
from millstream.application.views.leases import LeaseRef
from millstream.domain.artifacts import NewArtifact
from millstream.domain.errors import MillstreamError


@dataclass(slots=True)
class Completion:
    """A task done.

    Attributes:
        output: google.protobuf.Value in wire form.
        artifacts: What it publishes.
        fault: Why these cannot be taken, which fails the task.
        ahead: What the code of its run says to it; its `attempt` is the token of the worker's copy of the run.
    """

    task_id: str
    attempt: int
    output: bytes = b""
    artifacts: list[NewArtifact] = field(default_factory=list)
    fault: MillstreamError | None = None
    ahead: ActivationAnswer | None = None


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
class Streamed:
    """Something that a task streams while it works; `value` is google.protobuf.Value in wire form."""

    task_id: str
    attempt: int
    index: int
    value: bytes


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
