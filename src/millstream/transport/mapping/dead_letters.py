"""Dead letters."""

from typing import Any, TypeVar

from millstream.application.views.dead_letters import BulkDone, BulkWanted, DeadLetterQuery
from millstream.transport.mapping.errors import body
from millstream.transport.mapping.times import us
from millstream.wire.v1 import task_service_pb2 as wire

BulkT = TypeVar("BulkT", wire.RetryDeadLettersResponse, wire.DropDeadLettersResponse)


def dead_letter_query(request: Any) -> DeadLetterQuery:
    """Which dead letters a filter, or a list's request, asks for. Raises ValidationFailed."""
    return DeadLetterQuery(
        kind=request.kind,
        queue=request.queue,
        error_code=request.error_code,
        since_us=us(request.since, "since") if request.HasField("since") else 0,
        until_us=us(request.until, "until") if request.HasField("until") else 0,
    )


def bulk_wanted(request: Any) -> BulkWanted:
    """Which dead letters a call is about. Raises ValidationFailed."""
    query = dead_letter_query(request.filter) if request.HasField("filter") else None
    ids = tuple(task_id.lower() for task_id in request.task_ids)
    return BulkWanted(ids, query, request.dry_run, request.note)


def put_bulk(out: BulkT, done: BulkDone, correlation_id: str) -> BulkT:
    """Write what became of them."""
    for task_id, error in done.results:
        result = out.results.add(task_id=task_id, status="failed" if error else "done")
        if error is not None:
            result.error.CopyFrom(body(error, correlation_id))
    out.matched = done.matched
    out.failed = sum(error is not None for _, error in done.results)
    out.done = len(done.results) - out.failed
    out.more = done.more
    return out
