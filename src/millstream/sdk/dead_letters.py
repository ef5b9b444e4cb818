"""Dead letters: tasks that failed finally, listed, tried again, or dropped."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from millstream.sdk.artifacts import stamp
from millstream.sdk.calls import Area, Listing
from millstream.sdk.errors import ServiceError
from millstream.sdk.results import item_error
from millstream.sdk.run_results import Task
from millstream.v1 import task_service_pb2 as wire


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """Which dead letters; what is not given matches all."""

    kind: str = ""
    queue: str = ""
    error_code: str = ""
    since: datetime | None = None
    """Failed at this time or later."""
    until: datetime | None = None
    """Failed before this time."""

    def fields(self) -> dict[str, Any]:
        """The fields of a filter, or of a list's request."""
        return {
            "kind": self.kind,
            "queue": self.queue,
            "error_code": self.error_code,
            "since": stamp(self.since),
            "until": stamp(self.until),
        }


@dataclass(frozen=True, slots=True)
class BulkOutcome:
    """What became of dead letters."""

    matched: int
    """How many match, those of this call included; exact up to 10,000."""
    done: int
    failed: int
    errors: dict[str, ServiceError]
    """Why those that failed did, by their ids."""
    more: bool
    """More match than one call takes (1,000): call again."""


class DeadLetterCalls(Area):
    """Lists finally failed tasks, tries them again, or drops them."""

    def list(self, wanted: DeadLetters | None = None, *, page_size: int = 100) -> Listing[Task]:
        """Lists dead letters, the latest first, without input and output."""
        chosen = wanted or DeadLetters()

        async def fetch(cursor: str | None) -> tuple[list[Task], str | None]:
            request = wire.ListDeadLettersRequest(**chosen.fields(), page_size=page_size, page_token=cursor or "")
            page = await self._calls.read("TaskService/ListDeadLetters", request, wire.ListDeadLettersResponse)
            return [Task.from_wire(item) for item in page.items], page.pagination.next_page_token

        return Listing(fetch)

    async def retry(self, wanted: DeadLetters | Sequence[str], *, note: str = "", dry_run: bool = False) -> BulkOutcome:
        """Tries dead letters again, by a filter or by their ids, at most 1,000 a call: their runs go on, and each has
        all its attempts once more. With `dry_run` it only says how many it would be."""
        request = _filled(wire.RetryDeadLettersRequest(note=note, dry_run=dry_run), wanted)
        answer = await self._calls.write("TaskService/RetryDeadLetters", request, wire.RetryDeadLettersResponse)
        return _outcome(answer.message)

    async def drop(self, wanted: DeadLetters | Sequence[str], *, note: str = "", dry_run: bool = False) -> BulkOutcome:
        """Drops dead letters from their list, by a filter or by their ids, at most 1,000 a call; the tasks stay
        FAILED. With `dry_run` it only says how many it would be."""
        request = _filled(wire.DropDeadLettersRequest(note=note, dry_run=dry_run), wanted)
        answer = await self._calls.write("TaskService/DropDeadLetters", request, wire.DropDeadLettersResponse)
        return _outcome(answer.message)


def _filled(request: Any, wanted: DeadLetters | Sequence[str]) -> Any:
    if isinstance(wanted, DeadLetters):
        request.filter.CopyFrom(wire.DeadLetterFilter(**wanted.fields()))
    else:
        request.task_ids.extend(wanted)
    return request


def _outcome(message: Any) -> BulkOutcome:
    errors = {each.task_id: item_error(each.error) for each in message.results if each.HasField("error")}
    return BulkOutcome(message.matched, message.done, message.failed, errors, message.more)
