"""TaskService: submitting tasks, reading and cancelling them."""

from google.protobuf.message import Message

from millstream.application.views.tasks import NewTask, TaskView
from millstream.transport.context import Context
from millstream.transport.mapping import tasks as mapping
from millstream.transport.mapping.batches import Items, put_outcomes
from millstream.transport.mapping.dead_letters import bulk_wanted, dead_letter_query, put_bulk
from millstream.transport.mapping.pages import page_of, pagination
from millstream.transport.reading import Reader
from millstream.transport.use_cases import DeadLetters, Tasks
from millstream.wire.v1 import task_service_pb2 as wire

DEFAULT_ATTEMPTS = 100
DEFAULT_STUCK = 50


class TaskService:
    """Tasks over the wire; `item` reads a task of a batch as CreateTask reads its request."""

    def __init__(self, tasks: Tasks, dead_letters: DeadLetters, item: Reader) -> None:
        self._tasks = tasks
        self._dead_letters = dead_letters
        self._items: Items[wire.CreateTaskBatchRequest.Item, NewTask] = Items("CreateTask", item, mapping.new_task)

    async def create_task(self, request: wire.CreateTaskRequest, context: Context) -> Message:
        """Create a task."""
        created = await self._tasks.create(context.principal, mapping.new_task(request), context.key)
        context.replayed(created.replayed)
        return mapping.task_view(TaskView(created.task))

    async def create_task_batch(self, request: wire.CreateTaskBatchRequest, context: Context) -> Message:
        """Create tasks, each with an outcome of its own."""
        items, keys = self._items.read(request.tasks, context.trusted)
        batch = await self._tasks.create_batch(context.principal, items, keys, context.key)
        context.replayed(batch.replayed)
        out = wire.CreateTaskBatchResponse()
        put_outcomes(out, batch.results, "tasks", context.correlation_id)
        return out

    async def list_tasks(self, request: wire.ListTasksRequest, context: Context) -> Message:
        """List tasks."""
        page = await self._tasks.list(context.principal, mapping.task_query(request), page_of(request))
        out = wire.ListTasksResponse(pagination=pagination(page.info))
        for task in page.items:
            mapping.put_task(out.items.add(), task)
        return out

    async def list_stuck_tasks(self, request: wire.ListStuckTasksRequest, context: Context) -> Message:
        """List what is stuck."""
        size = request.page_size if request.HasField("page_size") else DEFAULT_STUCK
        found, following = await self._tasks.stuck(
            context.principal, mapping.stuck_query(request), size, request.page_token
        )
        out = wire.ListStuckTasksResponse(next_page_token=following or None)
        for stuck in found:
            mapping.put_stuck(out.items.add(), stuck)
        return out

    async def get_task(self, request: wire.GetTaskRequest, context: Context) -> Message:
        """Get a task with its input and output."""
        return mapping.task_view(await self._tasks.get(context.principal, request.task_id.lower()))

    async def cancel_task(self, request: wire.CancelTaskRequest, context: Context) -> Message:
        """Cancel a task."""
        view = await self._tasks.cancel(context.principal, request.task_id.lower(), request.reason, context.key)
        context.replayed(view.replayed)
        return mapping.task_view(view)

    async def list_dead_letters(self, request: wire.ListDeadLettersRequest, context: Context) -> Message:
        """List finally failed tasks."""
        page = await self._dead_letters.list(context.principal, dead_letter_query(request), page_of(request))
        out = wire.ListDeadLettersResponse(pagination=pagination(page.info))
        for task in page.items:
            mapping.put_task(out.items.add(), task)
        return out

    async def retry_dead_letters(self, request: wire.RetryDeadLettersRequest, context: Context) -> Message:
        """Try finally failed tasks again."""
        done = await self._dead_letters.retry(context.principal, bulk_wanted(request), context.key)
        context.replayed(done.replayed)
        return put_bulk(wire.RetryDeadLettersResponse(), done, context.correlation_id)

    async def drop_dead_letters(self, request: wire.DropDeadLettersRequest, context: Context) -> Message:
        """Take finally failed tasks out of the dead letters."""
        done = await self._dead_letters.drop(context.principal, bulk_wanted(request), context.key)
        context.replayed(done.replayed)
        return put_bulk(wire.DropDeadLettersResponse(), done, context.correlation_id)

    async def list_task_attempts(self, request: wire.ListTaskAttemptsRequest, context: Context) -> Message:
        """List the attempts of a task."""
        limit = request.limit if request.HasField("limit") else DEFAULT_ATTEMPTS
        attempts, following = await self._tasks.attempts(
            context.principal, request.task_id.lower(), request.after_attempt, limit
        )
        out = wire.ListTaskAttemptsResponse(next_after_attempt=following)
        for attempt in attempts:
            mapping.put_attempt(out.items.add(), attempt)
        return out
