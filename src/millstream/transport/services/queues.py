"""QueueService: queues, what goes through them, and pausing them."""

from dataclasses import asdict

from google.protobuf.message import Message

from millstream.application.throughput import WINDOW_S
from millstream.transport.context import Context
from millstream.transport.mapping.pages import page_of, pagination
from millstream.transport.mapping.queues import put_queue
from millstream.transport.use_cases import Queues
from millstream.wire.v1 import queue_service_pb2 as wire


class QueueService:
    """Queues over the wire."""

    def __init__(self, queues: Queues) -> None:
        self._queues = queues

    async def list_queues(self, request: wire.ListQueuesRequest, context: Context) -> Message:
        """List queues."""
        page = await self._queues.list(context.principal, page_of(request))
        out = wire.ListQueuesResponse(pagination=pagination(page.info))
        for state in page.items:
            put_queue(out.items.add(), state)
        return out

    async def get_throughput(self, _: wire.GetThroughputRequest, context: Context) -> Message:
        """What ended lately."""
        return wire.GetThroughputResponse(window_s=WINDOW_S, **asdict(await self._queues.throughput(context.principal)))

    async def pause_queue(self, request: wire.PauseQueueRequest, context: Context) -> Message:
        """Pause a queue."""
        state, replayed = await self._queues.pause(context.principal, request.queue, request.reason, context.key)
        context.replayed(replayed)
        return put_queue(wire.Queue(), state)

    async def resume_queue(self, request: wire.ResumeQueueRequest, context: Context) -> Message:
        """Resume a queue."""
        state, replayed = await self._queues.resume(context.principal, request.queue, context.key)
        context.replayed(replayed)
        return put_queue(wire.Queue(), state)
