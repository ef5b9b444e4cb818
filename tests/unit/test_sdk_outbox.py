"""The outbox: what goes into which message, and what goes again."""

from millstream.sdk.outbox import (
    MAX_BYTES,
    MAX_ITEMS,
    STREAMED_MOST,
    Fence,
    Outbox,
    Report,
    completion_report,
    frame,
)
from millstream.v1 import run_pb2, worker_pb2
from millstream.v1.worker_service_pb2 import WorkRequest


def report(task_id: str, text: str = "") -> Report:
    fence = Fence(task_id, 1)
    completion = worker_pb2.Completion(task_id=task_id, attempt=1)
    completion.output.string_value = text
    return completion_report(fence, completion)


def take(outbox: Outbox) -> WorkRequest:
    message = outbox.take()
    assert message is not None
    return WorkRequest.FromString(message)


async def test_everything_queued_goes_into_one_message() -> None:
    outbox = Outbox(max_unacked=10)
    outbox.report(report("t1", "x"), credit=1)
    outbox.delivered([Fence("t2", 1)])
    outbox.give_credit(2)
    outbox.heartbeat(Fence("t3", 1))
    outbox.progress(Fence("t3", 1), 0.1, "")
    outbox.progress(Fence("t3", 1), 0.2, "more")
    outbox.release([Fence("t4", 2)])
    outbox.drain()
    message = take(outbox)
    assert (message.number, message.credit, message.drain) == (1, 3, True)
    assert [c.output.string_value for c in message.completions] == ["x"]
    assert [(r.task_id, r.attempt) for r in message.delivered] == [("t2", 1)]
    assert [r.task_id for r in message.heartbeats] == ["t3"]
    assert [(p.fraction, p.message) for p in message.progress] == [(0.2, "more")]
    assert [(r.task_id, r.attempt) for r in message.released] == [("t4", 2)]
    assert outbox.take() is None


async def test_frames_of_any_size_are_what_protobuf_would_write() -> None:
    for size in (0, 1, 127, 128, 16_383, 16_384, 3_000_000):
        request = WorkRequest()
        request.completions.add(task_id="x" * size)
        [completion] = request.completions
        tag = WorkRequest.COMPLETIONS_FIELD_NUMBER << 3 | 2
        assert frame(tag, completion.SerializeToString()) == request.SerializeToString()


async def test_a_message_is_bounded_and_the_rest_follows() -> None:
    outbox = Outbox(max_unacked=MAX_ITEMS * 3)
    for n in range(MAX_ITEMS + 1):
        outbox.report(report(str(n)), credit=0)
    assert [len(take(outbox).completions), len(take(outbox).completions)] == [MAX_ITEMS, 1]
    for n in range(3):
        outbox.report(report(str(n), "x" * (MAX_BYTES - 1_000)), credit=0)
    assert len(take(outbox).completions) == 2
    await outbox.ready()
    assert len(take(outbox).completions) == 1


async def test_no_credit_is_given_while_too_much_is_unacknowledged() -> None:
    outbox = Outbox(max_unacked=1)
    for n in range(2):
        outbox.report(report(str(n)), credit=1)
    assert take(outbox).credit == 2
    outbox.report(report("2"), credit=1)
    assert take(outbox).credit == 0
    assert outbox.take() is None
    outbox.acknowledge(2)
    await outbox.ready()
    assert take(outbox).credit == 1


async def test_what_is_not_acknowledged_goes_again_before_what_is_new() -> None:
    outbox = Outbox(max_unacked=10)
    for n in range(3):
        outbox.report(report(str(n)), credit=1)
        outbox.delivered([Fence(str(n), 1)])
        take(outbox)
    outbox.acknowledge(1)
    outbox.report(report("3"), credit=1)
    assert [fence.task_id for fence in outbox.unsettled()] == ["1", "2", "3"]
    outbox.restart()
    outbox.forget([Fence("1", 1)])
    again = take(outbox)
    assert (again.number, again.credit) == (2, 0)
    assert [c.task_id for c in again.completions] == ["1", "2", "3"]
    assert [r.task_id for r in again.delivered] == ["2"]


async def test_it_is_settled_when_all_reports_are_acknowledged() -> None:
    outbox = Outbox(max_unacked=10)
    await outbox.settled()
    outbox.report(report("1"), credit=1)
    assert not outbox._settled.is_set()
    take(outbox)
    outbox.report(report("2"), credit=1)
    outbox.acknowledge(1)
    assert not outbox._settled.is_set()
    take(outbox)
    outbox.acknowledge(2)
    await outbox.settled()


async def test_an_idle_worker_remembers_no_keep_alives() -> None:
    outbox = Outbox(max_unacked=10)
    for number in range(1, 4):
        outbox.keep_alive()
        assert take(outbox).number == number
    assert not outbox._sent


async def test_values_are_streamed_in_order_and_lost_rather_than_kept() -> None:
    """Of too many the latest are lost; over a new connection nothing goes again."""
    outbox = Outbox(max_unacked=10)
    for index in range(1, STREAMED_MOST + 3):
        outbox.stream(run_pb2.StreamedValue(task_id="t", attempt=1, index=index))
    assert [each.index for each in take(outbox).streamed] == [*range(1, STREAMED_MOST + 1)]
    outbox.stream(run_pb2.StreamedValue(task_id="t", attempt=1, index=9))
    outbox.restart()
    assert outbox.take() is None
