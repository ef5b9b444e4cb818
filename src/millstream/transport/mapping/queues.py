"""Queues."""

from millstream.application.views.queues import QueueState
from millstream.transport.mapping.times import put
from millstream.wire.v1.queue_service_pb2 import Queue


def put_queue(out: Queue, state: QueueState) -> Queue:
    """Write a queue."""
    out.queue = state.queue
    out.ready = state.ready
    out.in_line = state.in_line
    out.scheduled = state.scheduled
    out.running = state.running
    put(out.oldest_ready_at, state.oldest_us)
    if state.pause is not None:
        out.paused = True
        put(out.paused_at, state.pause.paused_us)
        out.paused_by = state.pause.paused_by
        out.pause_reason = state.pause.reason
    return out
