"""Queues: what stands in them, what goes through them, pausing and resuming them."""

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from millstream.sdk.calls import Area, Listing
from millstream.sdk.results import when
from millstream.v1 import queue_service_pb2 as wire


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue as it stands; counts are exact up to 10,000, and never more than 10,001."""

    queue: str
    ready: int
    """Tasks that wait for a worker."""
    in_line: int
    """Tasks that wait for their turn by a concurrency key or a rate."""
    scheduled: int
    """Tasks that wait for their time."""
    running: int
    oldest_ready_at: datetime | None
    """Since when the longest waiting of the ready tasks is ready."""
    paused: bool
    paused_at: datetime | None
    paused_by: str
    pause_reason: str

    @classmethod
    def from_wire(cls, message: Any) -> "Queue":
        """The value of a Queue, or of a response with a queue's fields."""
        return cls(
            queue=message.queue,
            ready=message.ready,
            in_line=message.in_line,
            scheduled=message.scheduled,
            running=message.running,
            oldest_ready_at=when(message, "oldest_ready_at"),
            paused=message.paused,
            paused_at=when(message, "paused_at"),
            paused_by=message.paused_by,
            pause_reason=message.pause_reason,
        )


@dataclass(frozen=True, slots=True)
class Throughput:
    """What ended within the last `window_s` seconds, at all servers; up to 5 s late."""

    window_s: int
    tasks_completed: int
    tasks_failed: int
    """Finally."""
    tasks_retried: int
    """Attempts that failed, and others follow."""
    tasks_cancelled: int
    runs_completed: int
    runs_failed: int
    runs_cancelled: int

    @classmethod
    def from_wire(cls, message: wire.GetThroughputResponse) -> "Throughput":
        """The value of a response."""
        return cls(**{each.name: getattr(message, each.name) for each in fields(cls)})


class Queues(Area):
    """Shows queues and how much work ends, and pauses and resumes queues."""

    def list(self, *, page_size: int = 100) -> Listing[Queue]:
        """Lists the queues in which something waits or runs, that a worker serves, or that are paused, by name."""

        async def fetch(cursor: str | None) -> tuple[list[Queue], str | None]:
            request = wire.ListQueuesRequest(page_size=page_size, page_token=cursor or "")
            page = await self._calls.read("QueueService/ListQueues", request, wire.ListQueuesResponse)
            return [Queue.from_wire(item) for item in page.items], page.pagination.next_page_token

        return Listing(fetch)

    async def throughput(self) -> Throughput:
        """Tells how much work of the tenant has ended within the last minute."""
        return Throughput.from_wire(
            await self._calls.read(
                "QueueService/GetThroughput", wire.GetThroughputRequest(), wire.GetThroughputResponse
            )
        )

    async def pause(self, queue: str, reason: str = "") -> Queue:
        """Pauses a queue on all servers: its tasks wait until it is resumed; what runs goes on."""
        request = wire.PauseQueueRequest(queue=queue, reason=reason)
        answer = await self._calls.write("QueueService/PauseQueue", request, wire.PauseQueueResponse)
        return Queue.from_wire(answer.message)

    async def resume(self, queue: str) -> Queue:
        """Resumes a paused queue: what waits goes to its workers."""
        request = wire.ResumeQueueRequest(queue=queue)
        answer = await self._calls.write("QueueService/ResumeQueue", request, wire.ResumeQueueResponse)
        return Queue.from_wire(answer.message)
