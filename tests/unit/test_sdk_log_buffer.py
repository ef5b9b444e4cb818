"""What tasks log, on its way: in batches, kept until acknowledged, bounded, and never in the way (DC-6)."""

import asyncio
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from millstream.sdk import TaskLogHandler, log_buffer
from millstream.sdk.frames import Fence
from millstream.sdk.log_buffer import AttemptLog, LogBuffer
from millstream.sdk.logs import CURRENT, KnownFields, logging_to
from millstream.sdk.payload import from_struct
from millstream.transport.payloads import PayloadRules
from millstream.v1.task_log_pb2 import LogAck, LogBatch, LogLine
from millstream.v1.worker_service_pb2 import WorkRequest

ONE, OTHER = Fence("t1", 1), Fence("t2", 3)
WINDOW = 1 << 20


@pytest.fixture
def buffer() -> LogBuffer:
    made = LogBuffer()
    made.restart(WINDOW)
    return made


def taken(buffer: LogBuffer) -> list[LogBatch]:
    return list(WorkRequest.FromString(b"".join(buffer.take())).logs)


def write(log: AttemptLog, count: int, text: str = "line") -> None:
    for _ in range(count):
        log.write(LogLine.INFO, text, {})


def ack(fence: Fence, offset: int, **fields: Any) -> LogAck:
    return LogAck(task_id=fence.task_id, attempt=fence.attempt, offset=offset, **fields)


def test_lines_go_in_batches_of_attempts_in_turn(buffer: LogBuffer) -> None:
    loud, quiet = buffer.open(ONE), buffer.open(OTHER)
    write(loud, 600)
    write(quiet, 1)
    first = taken(buffer)
    assert [(each.task_id, each.attempt, each.offset, len(each.lines)) for each in first] == [
        ("t1", 1, 1, 100), ("t2", 3, 1, 1),
    ]  # fmt: skip
    for offset in range(101, 600, 100):
        assert [(each.offset, len(each.lines)) for each in taken(buffer)] == [(offset, 100)]
    assert not buffer.waits


def test_an_earlier_attempt_has_its_say_first(buffer: LogBuffer) -> None:
    """Once the later one has logged, its lines would not be taken."""
    first, second = buffer.open(ONE), buffer.open(Fence("t1", 2))
    write(second, 1)
    write(first, 200)
    assert [(each.attempt, len(each.lines)) for each in taken(buffer)] == [(1, 100)]
    assert [(each.attempt, len(each.lines)) for each in taken(buffer)] == [(1, 100)]
    assert buffer.waits
    assert [(each.attempt, len(each.lines)) for each in taken(buffer)] == [(2, 1)]


def test_what_is_not_acknowledged_goes_again_on_the_next_connection(buffer: LogBuffer) -> None:
    """DC-6: resumed at the acknowledged offset, nothing doubled, nothing lost."""
    log = buffer.open(ONE)
    write(log, 10)
    taken(buffer)
    buffer.acknowledge(ack(ONE, 4))
    write(log, 2)
    buffer.restart(WINDOW)
    (batch,) = taken(buffer)
    assert (batch.offset, len(batch.lines)) == (5, 8)
    buffer.acknowledge(ack(ONE, 6, again=True))
    (batch,) = taken(buffer)
    assert (batch.offset, len(batch.lines)) == (7, 6)


def test_no_more_is_on_its_way_than_the_service_takes(buffer: LogBuffer) -> None:
    buffer.restart(1000)
    log = buffer.open(ONE)
    write(log, 100, "x" * 100)
    first = taken(buffer)
    assert first
    assert taken(buffer) == []
    buffer.acknowledge(ack(ONE, len(first[0].lines)))
    assert buffer.waits == (len(first[0].lines) < 100)


def test_one_that_floods_has_a_part_of_the_window(buffer: LogBuffer) -> None:
    """DC-6: the lines of others do not wait behind its own."""
    loud, quiet = buffer.open(ONE), buffer.open(OTHER)
    write(loud, 5000, "x" * 100)
    while taken(buffer):
        pass
    assert WINDOW / 4 <= loud.sent_bytes < WINDOW / 4 + 64 * 1024
    write(quiet, 1)
    assert buffer.waits
    assert [each.task_id for each in taken(buffer)] == ["t2"]
    buffer.acknowledge(ack(ONE, 1000))
    assert [each.task_id for each in taken(buffer)] == ["t1"]


def test_a_service_that_takes_no_lines_is_sent_none(buffer: LogBuffer) -> None:
    """An older release: nothing is kept for it either."""
    log = buffer.open(ONE)
    write(log, 5)
    buffer.restart(0)
    write(buffer.open(OTHER), 5)
    assert taken(buffer) == []
    assert log.lines == buffer.open(OTHER).lines


def test_what_there_is_no_room_for_is_counted_in_one_line(buffer: LogBuffer, monkeypatch: pytest.MonkeyPatch) -> None:
    """DC-6: a flood costs neither memory nor time."""
    monkeypatch.setattr(log_buffer, "TASK_BYTES", 2000)
    log, other = buffer.open(ONE), buffer.open(OTHER)
    write(log, 500, "x" * 50)
    kept = log.last
    write(other, 1)
    assert (log.size <= 2000, other.last) == (True, 1)
    (batch, _) = taken(buffer)
    assert len(batch.lines) == kept
    buffer.acknowledge(ack(ONE, kept))
    write(log, 1, "again")
    mark, line = taken(buffer)[0].lines
    assert (mark.cut, mark.level, line.message) == (500 - kept, LogLine.WARN, "again")
    assert mark.message.startswith(f"{500 - kept} lines were cut here")
    assert log.close() == kept + 2


def test_an_attempt_that_ends_tells_what_it_left_out(buffer: LogBuffer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_buffer, "TASK_BYTES", 200)
    log = buffer.open(ONE)
    write(log, 20)
    last = log.close()
    assert taken(buffer)[0].lines[-1].cut == 20 - (last - 1)
    write(log, 1)
    assert log.last == last


async def test_the_end_waits_until_all_is_acknowledged(buffer: LogBuffer) -> None:
    log = buffer.open(ONE)
    write(log, 3)
    log.close()
    taken(buffer)
    settled = asyncio.ensure_future(buffer.settled())
    buffer.acknowledge(ack(ONE, 2))
    await asyncio.sleep(0)
    assert not settled.done()
    buffer.acknowledge(ack(ONE, 3))
    await settled


@pytest.mark.parametrize("code", ["LEASE_LOST", "VALIDATION_ERROR"])
def test_a_log_that_is_refused_is_thrown_away(buffer: LogBuffer, code: str) -> None:
    log = buffer.open(ONE)
    write(log, 3)
    refused = ack(ONE, 0)
    refused.error.code = code
    buffer.acknowledge(refused)
    write(log, 3)
    assert (taken(buffer), list(log.lines), log.ended) == ([], [], True)
    buffer.discard(ONE)


async def test_a_thread_that_floods_wakes_the_loop_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer, loop = LogBuffer(), asyncio.get_running_loop()
    woken = asyncio.Event()
    buffer.ready = woken.set
    buffer.bind(loop)
    buffer.restart(WINDOW)
    calls: list[bool] = []
    wake = buffer._wake

    def noted(urgent: bool) -> None:
        calls.append(urgent)
        wake(urgent)

    monkeypatch.setattr(buffer, "_wake", noted)
    thread = threading.Thread(target=write, args=(buffer.open(ONE), 2000, "x" * 100))
    thread.start()
    thread.join()
    async with asyncio.timeout(5):
        await woken.wait()
    assert calls == [False, True]


def test_texts_and_fields_are_made_to_fit(buffer: LogBuffer) -> None:
    log = buffer.open(ONE)
    log.write(LogLine.ERROR, "ä" * 40_000 + "\ud800", {"odd": object(), "n": 1})
    log.write(LogLine.INFO, "large", {"x": "y" * 40_000})
    first, second = taken(buffer)[0].lines
    assert len(first.message.encode()) <= 32 * 1024
    assert first.message.endswith(" ... (cut)")
    assert from_struct(first.fields)["n"] == 1
    assert list(second.fields) == ["cut"]


class Mute:
    def __str__(self) -> str:
        raise RuntimeError("no")


def nested(levels: int) -> object:
    value: object = "x"
    for level in range(levels):
        value = {"a": value} if level % 2 else [value]
    return value


def circle() -> object:
    value: dict[str, object] = {}
    value["me"] = value
    return value


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (nested(20), nested(20)),
        (nested(21), str(nested(21))),
        (nested(2000), None),
        (circle(), "{'me': {...}}"),
        (Mute(), "a Mute that has no text: RuntimeError"),
        (float("nan"), "nan"),
        (2**60, str(2**60)),
        (b"\xff", "b'\\xff'"),
        ("\ud800", "?"),
    ],
    ids=["nested", "deep", "abyss", "circle", "mute", "nan", "large", "bytes", "surrogate"],
)
def test_an_odd_field_costs_neither_the_line_nor_its_other_fields(
    buffer: LogBuffer, value: object, sent: object
) -> None:
    """DC-6: a line that the service refuses would end the log of its attempt."""
    buffer.open(ONE).write(LogLine.INFO, "said", {"odd": value, "n": 1})
    (line,) = taken(buffer)[0].lines
    PayloadRules(32 * 1024).check_struct(line.fields.SerializeToString(), "fields", trusted=False)
    fields = from_struct(line.fields)
    assert fields["n"] == 1
    assert sent is None or fields["odd"] == sent


class Sink:
    def __init__(self, log: AttemptLog | None) -> None:
        self.log = log

    def current(self) -> AttemptLog | None:
        return self.log


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    found = logging.getLogger("shop.orders")
    handler = TaskLogHandler()
    for each in (found, logging.getLogger("shop")):
        each.addHandler(handler)
        each.setLevel(logging.DEBUG)
    yield found
    for each in (found, logging.getLogger("shop")):
        each.removeHandler(handler)


def test_records_of_the_running_task_are_sent_once_with_their_fields(buffer: LogBuffer, logger: logging.Logger) -> None:
    """DC-6: whoever logs them; also where two handlers see a record."""
    logger.info("to nobody")
    with logging_to(Sink(buffer.open(ONE))):
        logger.warning("took %d s", 3, extra={"order": "o-1", "kind": "gift"})
        try:
            int("bad")
        except ValueError:
            logger.exception("it broke")
    assert CURRENT.get() is None
    took, broke = taken(buffer)[0].lines
    assert (took.level, took.message, took.logger, dict(took.fields)) == (
        LogLine.WARN, "took 3 s", "shop.orders", {"order": "o-1", "kind": "gift"},
    )  # fmt: skip
    assert broke.level == LogLine.ERROR
    assert "ValueError: invalid literal" in str(broke.fields["exception"])


def test_what_the_service_knows_of_a_line_is_not_sent_but_what_the_call_says_is(
    buffer: LogBuffer, logger: logging.Logger
) -> None:
    adapter = KnownFields(logger, {"task_id": "t1", "kind": "charge"})
    with logging_to(Sink(buffer.open(ONE))):
        adapter.info("charged", extra={"kind": "gift", "version": "1.2"})
        adapter.info("again")
    first, second = taken(buffer)[0].lines
    assert (from_struct(first.fields), from_struct(second.fields)) == ({"kind": "gift", "version": "1.2"}, {})


def test_a_record_that_cannot_be_written_stops_nobody(
    buffer: LogBuffer, logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    with logging_to(Sink(buffer.open(ONE))):
        logger.info("%d", "no number")
        logger.info("next")
    assert [line.message for line in taken(buffer)[0].lines] == ["next"]


def test_nothing_is_sent_where_the_code_is_led_through_its_history(buffer: LogBuffer, logger: logging.Logger) -> None:
    with logging_to(Sink(None)):
        logger.info("said before")
    assert taken(buffer) == []
