"""What the use cases of code-first runs take and give."""

from dataclasses import dataclass, field

from millstream.domain.artifacts import NewArtifact
from millstream.domain.code import End, Given, History
from millstream.domain.errors import MillstreamError
from millstream.domain.runs import Run


@dataclass(slots=True)
class ActivationAnswer:
    """What a run's code says: its commands, of which publications stand in `artifacts`; or, with `fault`, why these
    cannot be taken, which fails the activation."""

    task_id: str
    attempt: int
    base: int = 0
    commands: list[Given] = field(default_factory=list)
    end: End | None = None
    artifacts: list[NewArtifact] = field(default_factory=list)
    fault: MillstreamError | None = None
    size_bytes: int = 300


@dataclass(frozen=True, slots=True)
class NewCodeRun:
    """A code-first run as its creator gave it.

    Attributes:
        version: "": the latest that a worker has registered.
        input: google.protobuf.Value in wire form.
        run_id: "": a new one.
        labels: JSON object as text, or "".
        signal: Name and value of a signal to send with it, or None.
        priority: Urgency of its tasks that name none, the higher the sooner.
        timeout_us: How long it may take; 0: as long as it wants.
        rerun_of: The run that it repeats, or "".
    """

    workflow: str
    version: str = ""
    input: bytes = b""
    run_id: str = ""
    queue: str = "default"
    labels: str = ""
    signal: tuple[str, bytes] | None = None
    priority: int = 0
    timeout_us: int = 0
    rerun_of: str = ""


@dataclass(frozen=True, slots=True)
class StartedRun:
    """A run as it stands, with its output (google.protobuf.Value in wire form) where it has ended well."""

    run: Run
    output: bytes = b""
    started: bool = False
    replayed: bool = False

    @property
    def completed(self) -> bool:
        """It has ended."""
        return self.run.finished_us > 0


@dataclass(frozen=True, slots=True)
class RunHistory:
    """A page of what a run's code has seen and done.

    Attributes:
        first: Commands given before the history begins.
        seen: The last event that the code has looked at.
    """

    run: Run
    first: int
    seen: int
    history: History
