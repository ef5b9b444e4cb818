"""What is done to many runs, and what became of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from millstream.sdk.artifacts import stamp
from millstream.sdk.calls import choice
from millstream.sdk.errors import ServiceError
from millstream.sdk.results import item_error
from millstream.v1 import run_pb2
from millstream.v1 import run_service_pb2 as wire


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """What became of one run: `status` is "accepted", "duplicate", "failed", or in a dry run "matched"."""

    run_id: str
    status: str
    error: ServiceError | None = None


@dataclass(frozen=True, slots=True)
class RunsDone:
    """What became of many runs."""

    results: tuple[RunOutcome, ...]
    accepted: int
    failed: int
    matched: int
    """How many there were; an estimate beyond 10,000."""
    left: int
    """How many of them this call did not come to."""
    next_page_token: str = ""
    """Goes on with what is left."""
    replayed: bool = False

    @classmethod
    def from_wire(cls, message: wire.RetryRunsResponse | wire.CancelRunsResponse, replayed: bool) -> "RunsDone":
        """The value of a response."""
        results = tuple(
            RunOutcome(each.run_id, each.status, item_error(each.error) if each.HasField("error") else None)
            for each in message.results
        )
        return cls(
            results, message.accepted, message.failed, message.matched, message.left, message.next_page_token, replayed
        )


def labels_asked(labels: Mapping[str, str] | None) -> list[str]:
    """Labels as a list of runs asks for them."""
    return [f"{name}={value}" for name, value in (labels or {}).items()]


def filter_of(
    *,
    kind: str = "",
    created_after: datetime | None = None,
    created_before: datetime | None = None,
    workflow: str = "",
    labels: Mapping[str, str] | None = None,
    text: str = "",
    parent: str = "",
) -> wire.RunFilter | None:
    """The runs that have all that is said; None where nothing is.

    Raises:
        ValueError: there is no such kind.
    """
    said: dict[str, Any] = {
        "kind": choice(run_pb2.RunKind.Kind, kind),
        "created_after": stamp(created_after),
        "created_before": stamp(created_before),
        "workflow_id": workflow,
        "labels": labels_asked(labels),
        "text": text,
        "parent_run_id": parent,
    }
    found = wire.RunFilter(**said)
    return found if found.ByteSize() else None
