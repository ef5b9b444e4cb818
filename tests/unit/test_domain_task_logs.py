"""The lines of an attempt: taken once, in order, and bounded (DC-6)."""

import pytest

from millstream.domain.errors import LeaseLost, NotFound, ValidationFailed
from millstream.domain.task_logs import (
    ALWAYS_KEPT,
    CUT_MOST,
    LogAck,
    LogBatch,
    LogBounds,
    LogEnd,
    LogLine,
    cut_message,
    latest,
    take,
)

PLENTY = LogBounds(1_000_000, 1 << 30)


def lines(first: int, last: int) -> list[LogLine]:
    return [LogLine(2, f"line {n}", n) for n in range(first, last + 1)]


def batch(first: int, last: int, attempt: int = 1) -> LogBatch:
    return LogBatch("t", attempt, first, lines(first, last))


def test_lines_that_come_twice_are_taken_once() -> None:
    """DC-6: a worker that connects again sends what was not acknowledged."""
    first = take(LogEnd("t", "r"), batch(1, 10), PLENTY)
    assert [n for n, _ in first.kept] == [*range(1, 11)]
    again = take(first.end, batch(6, 15), PLENTY)
    assert [(n, line.message) for n, line in again.kept] == [(n, f"line {n}") for n in range(11, 16)]
    assert (again.ack.offset, again.ack.again, again.ack.error) == (15, False, None)
    stale = take(again.end, batch(1, 10), PLENTY)
    assert (stale.kept, stale.ack.offset, stale.ack.again) == ([], 15, False)


def test_lines_that_leave_a_gap_are_asked_for_again() -> None:
    """DC-6: nothing is lost where a batch before them was."""
    end = take(LogEnd("t", "r"), batch(1, 10), PLENTY).end
    found = take(end, batch(12, 20), PLENTY)
    assert (found.kept, found.ack.offset, found.ack.again) == ([], 10, True)
    assert found.end == end


def test_a_question_is_answered_with_where_the_log_stands() -> None:
    end = take(LogEnd("t", "r"), batch(1, 3), PLENTY).end
    asked = take(end, LogBatch("t", 1), PLENTY)
    assert (asked.ack.offset, asked.ack.again) == (3, True)


def test_the_next_attempt_begins_anew_and_ends_the_one_before() -> None:
    end = take(LogEnd("t", "r"), batch(1, 10), PLENTY).end
    second = take(end, batch(1, 2, attempt=2), PLENTY)
    assert ([n for n, _ in second.kept], second.end.last, second.end.lines) == ([1, 2], 2, 12)
    late = take(second.end, batch(11, 12), PLENTY)
    assert (late.kept, late.end) == ([], second.end)
    assert isinstance(late.ack.error, LeaseLost)


@pytest.mark.parametrize(
    "bounds", [LogBounds(150, 1 << 30), LogBounds(1 << 30, 150 * lines(1, 1)[0].size_bytes + 1000)]
)
def test_what_is_beyond_the_bound_is_cut_and_counted_and_acknowledged(bounds: LogBounds) -> None:
    """DC-6: by lines, and by bytes; what comes twice is counted once."""
    first = take(LogEnd("t", "r"), batch(1, 400), bounds)
    assert 140 <= len(first.kept) <= 170
    assert (first.ack.offset, first.end.cut) == (400, 400 - len(first.kept))
    again = take(first.end, batch(390, 410), bounds)
    assert (again.kept, again.ack.offset, again.end.cut) == ([], 410, first.end.cut + 10)


def test_lines_that_the_worker_had_cut_are_counted_where_its_mark_is_cut() -> None:
    """DC-6: a flood that is more than the worker can send, and than is kept: what is missing is known all the same."""
    marked = [*lines(1, 200), LogLine(3, "70 lines were cut here", 200, cut=70), *lines(201, 210)]
    found = take(LogEnd("t", "r"), LogBatch("t", 1, 1, marked), LogBounds(150, 1 << 30))
    assert (len(found.kept), found.cut_from, found.end.cut) == (150, 151, 50 + 70 + 10)
    more = take(found.end, LogBatch("t", 1, 212, [LogLine(3, "", 210, cut=CUT_MOST), *lines(212, 212)]), PLENTY)
    assert (more.kept, more.cut_from, more.end.cut) == ([], 212, CUT_MOST)


def test_each_attempt_can_say_something() -> None:
    """DC-6: an attempt that flooded leaves room for what the last one has to say."""
    bounds = LogBounds(500, 1 << 30)
    end = take(LogEnd("t", "r"), batch(1, 1000), bounds).end
    second = take(end, batch(1, 1000, attempt=2), bounds)
    assert (len(second.kept), second.end.cut) == (ALWAYS_KEPT, 1000 - ALWAYS_KEPT)


def test_a_log_is_complete_when_its_last_line_is_there() -> None:
    end = take(LogEnd("t", "r"), batch(1, 3), PLENTY).end
    told = take(end, LogBatch("t", 1, final=4), PLENTY)
    assert (told.end.complete, told.ack.again) == (False, False)
    assert take(told.end, batch(4, 4), PLENTY).end.complete
    assert not end.complete


def test_a_batch_with_a_fault_stores_nothing() -> None:
    fault = ValidationFailed.of("lines[0].message", "is too long")
    found = take(LogEnd("t", "r"), LogBatch("t", 1, 1, fault=fault), PLENTY)
    assert (found.kept, found.ack.offset, found.ack.error) == ([], 0, fault)


def test_the_mark_says_how_many_and_why() -> None:
    assert cut_message(12345, LogBounds(100_000, 1 << 24)).startswith("12,345 lines were cut: of a task 100,000 lines")
    assert cut_message(1, LogBounds(1, 1)).startswith("1 line was cut")


def test_of_two_acknowledgements_the_later_is_told_and_what_is_asked_for_again_still_is() -> None:
    """DC-6: the end of an attempt is acknowledged behind lines that there was no room for."""
    again, end = LogAck("t", 1, 0, again=True), LogAck("t", 1, 0)
    refused = LogAck("t", 1, 3, error=NotFound("gone"))
    assert latest(None, end) == end
    assert latest(again, end) == again
    assert latest(again, LogAck("t", 1, 5)) == LogAck("t", 1, 5, again=True)
    assert latest(end, refused) == latest(refused, end) == refused
