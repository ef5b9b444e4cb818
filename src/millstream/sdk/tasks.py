"""Standalone tasks: created, read, cancelled."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TypeVar

from millstream.sdk.artifacts import failed_chunk, stamp
from millstream.sdk.calls import Area, Calls, Listing, choice, chunks
from millstream.sdk.dead_letters import DeadLetterCalls
from millstream.sdk.errors import ServiceError
from millstream.sdk.payload import JsonValue, fill_value, from_value
from millstream.sdk.policies import Concurrency, RateLimit, RetryPolicy, Seconds, Timeouts, duration
from millstream.sdk.results import BatchOutcome, item_error, when
from millstream.sdk.run_results import Attempt, Fault, Task
from millstream.v1 import run_pb2
from millstream.v1 import task_service_pb2 as wire

DraftT = TypeVar("DraftT", wire.CreateTaskRequest, wire.CreateTaskBatchRequest.Item)


@dataclass(frozen=True, slots=True)
class NewTask:
    """A standalone task to create."""

    kind: str
    input: JsonValue = None
    """JSON, or a model."""
    queue: str = ""
    """Default "default"."""
    priority: int = 0
    """-100 to 100, the higher the sooner."""
    run_at: datetime | None = None
    """Not before this time. At most one of `run_at` and `delay`."""
    delay: Seconds | None = None
    """Not before this long from now."""
    retry: RetryPolicy | None = None
    timeouts: Timeouts | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    idempotency_key: str = ""
    """Of the call: the same key again makes nothing and gives the first answer."""
    run_timeout: Seconds | None = None
    """How long it may take in all, delays, waiting and retries included."""
    deduplication_key: str = ""
    """Of the task in its kind: while a task with it stands (not failed, not cancelled), that one is the answer."""
    deduplication_ttl: Seconds | None = None
    """How long the deduplication key holds. Default 24 h."""
    concurrency: Concurrency | None = None
    rate_limit: RateLimit | None = None

    def fill(self, draft: DraftT) -> DraftT:
        """Puts it into a request.

        Raises:
            PayloadError: the input is not JSON.
        """
        draft.kind = self.kind
        fill_value(draft.input, self.input)
        draft.queue = self.queue
        draft.priority = self.priority
        draft.labels.update(self.labels)
        if (run_at := stamp(self.run_at)) is not None:
            draft.run_at.CopyFrom(run_at)
        if self.delay is not None:
            draft.delay.CopyFrom(duration(self.delay))
        if self.retry is not None:
            draft.retry.CopyFrom(self.retry.to_wire())
        if self.timeouts is not None:
            draft.timeouts.CopyFrom(self.timeouts.to_wire())
        if self.run_timeout is not None:
            draft.run_timeout.CopyFrom(duration(self.run_timeout))
        draft.deduplication_key = self.deduplication_key
        if self.deduplication_ttl is not None:
            draft.deduplication_ttl.CopyFrom(duration(self.deduplication_ttl))
        if self.concurrency is not None:
            draft.concurrency.CopyFrom(self.concurrency.to_wire())
        if self.rate_limit is not None:
            draft.rate_limit.CopyFrom(self.rate_limit.to_wire())
        return draft


@dataclass(frozen=True, slots=True)
class StuckTask:
    """A task that does not get on; of those that wait, the one of its queue and kind that waits the longest."""

    task: Task
    since: datetime | None
    """Its first failure, or the time from which it could have started."""
    next_attempt_at: datetime | None = None
    waiting: int = 0
    """Of those that wait: how many of its queue and kind do, counted to 1,000."""
    served: bool = False
    """A worker is connected that takes it."""


class Tasks(Area):
    """Creates standalone tasks, and reads and cancels any task.

    Attributes:
        dead: Finally failed tasks: list, retry, drop.
    """

    def __init__(self, calls: Calls) -> None:
        super().__init__(calls)
        self.dead = DeadLetterCalls(calls)

    async def create(
        self,
        kind: str,
        input: JsonValue = None,  # noqa: A002  (the contract's name)
        *,
        queue: str = "",
        priority: int = 0,
        run_at: datetime | None = None,
        delay: Seconds | None = None,
        retry: RetryPolicy | None = None,
        timeouts: Timeouts | None = None,
        labels: Mapping[str, str] | None = None,
        idempotency_key: str = "",
        run_timeout: Seconds | None = None,
        deduplication_key: str = "",
        deduplication_ttl: Seconds | None = None,
        concurrency: Concurrency | None = None,
        rate_limit: RateLimit | None = None,
    ) -> Task:
        """Creates a standalone task. See `NewTask` for what the arguments mean."""
        new = NewTask(
            kind, input, queue, priority, run_at, delay, retry, timeouts, labels or {},
            deduplication_key=deduplication_key, deduplication_ttl=deduplication_ttl, concurrency=concurrency,
            rate_limit=rate_limit, run_timeout=run_timeout,
        )  # fmt: skip
        return await self.create_one(replace(new, idempotency_key=idempotency_key))

    async def create_one(self, new: NewTask) -> Task:
        """Creates a standalone task."""
        answer = await self._calls.write(
            "TaskService/CreateTask",
            new.fill(wire.CreateTaskRequest()),
            wire.CreateTaskResponse,
            key=new.idempotency_key,
        )
        return Task.from_wire(answer.message)

    async def create_batch(self, tasks: Iterable[NewTask]) -> list[BatchOutcome]:
        """Creates any number of tasks, each with an outcome of its own, in their order.

        They go in batches; an error of a whole batch is raised if it is the first, and stands in the outcomes of its
        tasks otherwise.
        """
        drafts = (task.fill(wire.CreateTaskBatchRequest.Item(idempotency_key=task.idempotency_key)) for task in tasks)
        outcomes: list[BatchOutcome] = []
        for chunk in chunks(drafts):
            outcomes += await self._create_chunk(chunk, len(outcomes))
        return outcomes

    async def _create_chunk(self, chunk: list[wire.CreateTaskBatchRequest.Item], before: int) -> list[BatchOutcome]:
        try:
            answer = await self._calls.write(
                "TaskService/CreateTaskBatch",
                wire.CreateTaskBatchRequest(tasks=chunk),
                wire.CreateTaskBatchResponse,
            )
        except ServiceError as error:
            if not before:
                raise
            return failed_chunk(error, before, len(chunk))
        return [
            BatchOutcome(
                before + result.index,
                result.status,
                result.task_id,
                result.run_id,
                item_error(result.error) if result.HasField("error") else None,
            )
            for result in answer.message.results
        ]

    def list(
        self,
        *,
        status: str = "",
        kind: str = "",
        queue: str = "",
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        run_id: str = "",
        agent: str = "",
        worker: str = "",
        labels: Mapping[str, str] | None = None,
        oldest_first: bool = False,
        page_size: int = 100,
    ) -> Listing[Task]:
        """Lists tasks, newest first unless asked otherwise, without input and output.

        Args:
            status: such as "FAILED".
            worker: name of the worker that has, or had, it.
            labels: which it has, all of them.

        Raises:
            ValueError: there is no such status.
        """
        wanted = choice(run_pb2.Task.Status, status)

        async def fetch(cursor: str | None) -> tuple[list[Task], str | None]:
            request = wire.ListTasksRequest(
                status=wanted,
                kind=kind,
                queue=queue,
                created_after=stamp(created_after),
                created_before=stamp(created_before),
                run_id=run_id,
                agent=agent,
                worker=worker,
                labels=[f"{name}={value}" for name, value in (labels or {}).items()],
                sort_order="asc" if oldest_first else "",
                page_size=page_size,
                page_token=cursor or "",
            )
            page = await self._calls.read("TaskService/ListTasks", request, wire.ListTasksResponse)
            return [Task.from_wire(item) for item in page.items], page.pagination.next_page_token

        return Listing(fetch)

    def stuck(
        self,
        *,
        waiting: bool = False,
        kind: str = "",
        queue: str = "",
        for_at_least: Seconds = 0,
        unserved: bool = False,
        page_size: int = 100,
    ) -> Listing[StuckTask]:
        """Lists what is stuck: tasks that are retried, the oldest first; or, `waiting`, by queue and kind what waits
        for a worker the longest, with `unserved` only where none is connected that takes it."""
        why = wire.ListStuckTasksRequest.WAITING if waiting else wire.ListStuckTasksRequest.RETRYING

        async def fetch(cursor: str | None) -> tuple[list[StuckTask], str | None]:
            request = wire.ListStuckTasksRequest(
                why=why,
                kind=kind,
                queue=queue,
                for_at_least=duration(for_at_least),
                unserved=unserved,
                page_size=page_size,
                page_token=cursor or "",
            )
            page = await self._calls.read("TaskService/ListStuckTasks", request, wire.ListStuckTasksResponse)
            return [_stuck(item) for item in page.items], page.next_page_token

        return Listing(fetch)

    async def get(self, task_id: str) -> Task:
        """Gets a task with its input and output."""
        request = wire.GetTaskRequest(task_id=task_id)
        return Task.from_wire(await self._calls.read("TaskService/GetTask", request, wire.GetTaskResponse))

    async def cancel(self, task_id: str, reason: str = "") -> Task:
        """Cancels a task and returns it as it stands: one that runs is told, and has 10 s to end."""
        request = wire.CancelTaskRequest(task_id=task_id, reason=reason)
        answer = await self._calls.write("TaskService/CancelTask", request, wire.CancelTaskResponse)
        return Task.from_wire(answer.message)

    def attempts(self, task_id: str, *, page_size: int = 100) -> Listing[Attempt]:
        """Lists the attempts of a task, the running one included."""

        async def fetch(cursor: int | None) -> tuple[list[Attempt], int | None]:
            request = wire.ListTaskAttemptsRequest(task_id=task_id, after_attempt=cursor or 0, limit=page_size)
            page = await self._calls.read("TaskService/ListTaskAttempts", request, wire.ListTaskAttemptsResponse)
            return [_attempt(item) for item in page.items], page.next_after_attempt

        return Listing(fetch)


def _stuck(message: wire.ListStuckTasksResponse.Item) -> StuckTask:
    return StuckTask(
        Task.from_wire(message.task),
        when(message, "since"),
        when(message, "next_attempt_at"),
        message.waiting,
        message.served,
    )


def _attempt(message: run_pb2.Attempt) -> Attempt:
    return Attempt(
        attempt=message.attempt,
        status=run_pb2.Attempt.Status.Name(message.status),
        started_at=when(message, "started_at"),
        finished_at=when(message, "finished_at"),
        duration_ms=message.duration_ms,
        worker=message.worker,
        error=Fault.of(message),
        output=from_value(message.output),
    )
