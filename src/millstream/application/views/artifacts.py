"""What the use cases of artifacts and cascades take and give, beside the domain's own values."""

from dataclasses import dataclass

from millstream.domain.artifacts import Artifact
from millstream.domain.runs import Failure


@dataclass(frozen=True, slots=True)
class Published:
    """Where an artifact went."""

    artifact_id: str
    correlation_id: str
    replayed: bool = False
    notice: str = ""
    """That its type is deprecated, and what to use in its place."""


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
