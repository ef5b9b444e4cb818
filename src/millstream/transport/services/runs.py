"""RunService: reading runs, and cancelling them."""

from google.protobuf.message import Message

from millstream.transport.context import Context
from millstream.transport.mapping import runs as mapping
from millstream.transport.mapping.pages import page_of, pagination
from millstream.transport.mapping.steps import put_step
from millstream.transport.mapping.tasks import put_task, task_query
from millstream.transport.use_cases import Runs, RunSteps
from millstream.wire.v1 import run_pb2
from millstream.wire.v1 import run_service_pb2 as wire

DEFAULT_EVENTS = 100


class RunService:
    """Runs over the wire."""

    def __init__(self, runs: Runs, steps: RunSteps) -> None:
        self._runs = runs
        self._steps = steps

    async def list_runs(self, request: wire.ListRunsRequest, context: Context) -> Message:
        """List runs."""
        page = await self._runs.list(context.principal, mapping.run_query(request), page_of(request))
        out = wire.ListRunsResponse(pagination=pagination(page.info))
        for run in page.items:
            mapping.put_run(out.items.add(), run)
        return out

    async def get_run(self, request: wire.GetRunRequest, context: Context) -> Message:
        """Get a run."""
        run = await self._runs.get(context.principal, request.run_id.lower())
        return mapping.put_run(run_pb2.Run(), run)

    async def list_run_events(self, request: wire.ListRunEventsRequest, context: Context) -> Message:
        """List the events of a run."""
        limit = request.limit if request.HasField("limit") else DEFAULT_EVENTS
        events, following = await self._runs.events(
            context.principal, request.run_id.lower(), request.after_sequence, limit
        )
        out = wire.ListRunEventsResponse(next_after_sequence=following)
        for event in events:
            mapping.put_event(out.items.add(), event)
        return out

    async def list_run_tasks(self, request: wire.ListRunTasksRequest, context: Context) -> Message:
        """List the tasks of a run."""
        query = task_query(request, run_id=request.run_id)
        page = await self._runs.tasks(context.principal, query, page_of(request))
        out = wire.ListRunTasksResponse(pagination=pagination(page.info))
        for task in page.items:
            put_task(out.items.add(), task)
        return out

    async def list_run_steps(self, request: wire.ListRunStepsRequest, context: Context) -> Message:
        """List the steps of a run."""
        page = await self._steps.list(context.principal, request.run_id.lower(), page_of(request))
        out = wire.ListRunStepsResponse(pagination=pagination(page.info))
        for step in page.items:
            put_step(out.items.add(), step)
        return out

    async def cancel_run(self, request: wire.CancelRunRequest, context: Context) -> Message:
        """Cancel a run."""
        run, replayed = await self._runs.cancel(context.principal, request.run_id.lower(), request.reason, context.key)
        context.replayed(replayed)
        return mapping.put_run(run_pb2.Run(), run)
