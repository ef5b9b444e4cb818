"""Runs: read and cancelled."""

from datetime import datetime

from millstream.sdk.artifacts import stamp
from millstream.sdk.calls import Area, Listing, choice
from millstream.sdk.payload import from_struct
from millstream.sdk.results import Run, RunEvent, Task, when
from millstream.v1 import run_pb2
from millstream.v1 import run_service_pb2 as wire


class Runs(Area):
    """Reads runs, and cancels them."""

    def list(
        self,
        *,
        status: str = "",
        kind: str = "",
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        page_size: int = 100,
    ) -> Listing[Run]:
        """Lists runs, newest first; `status` such as "FAILED", `kind` "CASCADE" or "SINGLE".

        Raises:
            ValueError: there is no such status or kind.
        """
        wanted = choice(run_pb2.Run.Status, status)
        of_kind = choice(run_pb2.RunKind.Kind, kind)

        async def fetch(cursor: str | None) -> tuple[list[Run], str | None]:
            request = wire.ListRunsRequest(
                status=wanted,
                kind=of_kind,
                created_after=stamp(created_after),
                created_before=stamp(created_before),
                page_size=page_size,
                page_token=cursor or "",
            )
            page = await self._calls.read("RunService/ListRuns", request, wire.ListRunsResponse)
            return [Run.from_wire(item) for item in page.items], page.pagination.next_page_token

        return Listing(fetch)

    async def get(self, run_id: str) -> Run:
        """Gets a run."""
        request = wire.GetRunRequest(run_id=run_id)
        return Run.from_wire(await self._calls.read("RunService/GetRun", request, wire.GetRunResponse))

    def events(self, run_id: str, *, after_sequence: int = 0, page_size: int = 500) -> Listing[RunEvent]:
        """Lists the events of a run so far, in order."""

        async def fetch(cursor: int | None) -> tuple[list[RunEvent], int | None]:
            request = wire.ListRunEventsRequest(run_id=run_id, after_sequence=cursor or after_sequence, limit=page_size)
            page = await self._calls.read("RunService/ListRunEvents", request, wire.ListRunEventsResponse)
            return [_event(item) for item in page.items], page.next_after_sequence

        return Listing(fetch)

    def tasks(self, run_id: str, *, status: str = "", page_size: int = 100) -> Listing[Task]:
        """Lists the tasks of a run, in the order they were made.

        Raises:
            ValueError: there is no such status.
        """
        wanted = choice(run_pb2.Task.Status, status)

        async def fetch(cursor: str | None) -> tuple[list[Task], str | None]:
            request = wire.ListRunTasksRequest(
                run_id=run_id, status=wanted, page_size=page_size, page_token=cursor or ""
            )
            page = await self._calls.read("RunService/ListRunTasks", request, wire.ListRunTasksResponse)
            return [Task.from_wire(item) for item in page.items], page.pagination.next_page_token

        return Listing(fetch)

    async def cancel(self, run_id: str, reason: str = "") -> Run:
        """Cancels a run and returns it as it stands: running tasks are told, and have 10 s to end."""
        request = wire.CancelRunRequest(run_id=run_id, reason=reason)
        answer = await self._calls.write("RunService/CancelRun", request, wire.CancelRunResponse)
        return Run.from_wire(answer.message)


def _event(message: run_pb2.RunEvent) -> RunEvent:
    return RunEvent(
        sequence=message.sequence,
        type=run_pb2.RunEvent.Type.Name(message.type),
        created_at=when(message, "created_at"),
        task_id=message.task_id,
        artifact_id=message.artifact_id,
        attempt=message.attempt,
        data=from_struct(message.data),
    )
