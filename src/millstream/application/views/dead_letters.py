"""What the use cases of dead letters take and give."""

from dataclasses import dataclass

from millstream.domain.errors import MillstreamError


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
