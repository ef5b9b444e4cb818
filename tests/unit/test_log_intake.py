"""What tasks log, as a server takes it in: in turn, in little pieces while the engine works, and bounded (DC-6)."""

from collections.abc import Sequence

import pytest

from millstream.application import log_intake
from millstream.application.engine.clock import Clock
from millstream.application.log_intake import SOURCE_BYTES, LogIntake, LogSource
from millstream.domain.principals import Principal
from millstream.domain.task_logs import LogAck, LogBatch, LogLine
from millstream.store.log_writer import Written

WHO = Principal("worker", "default", frozenset())
RAW = b"x" * 10_000


class Store:
    """Stores everything."""

    def __init__(self) -> None:
        self.writes: list[list[LogBatch]] = []

    async def write(self, batches: Sequence[tuple[str, LogBatch]], now_us: int) -> Written:
        self.writes.append([batch for _, batch in batches])
        return Written([LogAck(batch.task_id, batch.attempt, batch.offset) for _, batch in batches])

    async def close(self) -> None:
        pass


class Meter:
    """Counts what was passed over."""

    def __init__(self) -> None:
        self.over = 0

    def stored(self, lines: int, cut: int) -> None:
        pass

    def passed_over(self) -> None:
        self.over += 1


class Stand:
    """An intake, and one sender, whose batches are their place in a list."""

    def __init__(self) -> None:
        self.store, self.meter, self.acks = Store(), Meter(), list[LogAck]()
        self.intake = LogIntake(self.store, Clock(), lambda runs: None, self.meter)
        self.batches: list[LogBatch] = []
        self.source = self.sender()

    def sender(self) -> LogSource:
        return self.intake.open(WHO, lambda raw: self.batches[int.from_bytes(raw[-2:])], self.acks.extend)

    def put(self, task_id: str, offset: int, count: int = 100, source: LogSource | None = None) -> LogBatch:
        batch = LogBatch(task_id, 1, offset, [LogLine(2, "line", 1)] * count)
        self.batches.append(batch)
        (source or self.source).put([(task_id, RAW + (len(self.batches) - 1).to_bytes(2))])
        return batch


@pytest.fixture
def stand() -> Stand:
    return Stand()


async def test_while_the_engine_works_a_write_has_a_little_of_each_task(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DC-6: a flood of lines from one task never delays completions, nor the lines of others."""
    monkeypatch.setattr(log_intake, "BUSY_S", 3600.0)
    flood = [stand.put("flood", 1 + 100 * n) for n in range(3)]
    other = stand.put("other", 1, 10)
    elsewhere = stand.put("flood", 301, source=stand.sender())
    stand.intake.engine_works()
    await stand.intake.flush()
    assert stand.store.writes == [[flood[0], other, elsewhere], [flood[1]], [flood[2]]]


async def test_a_write_of_small_batches_has_as_many_as_there_are_lines(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_intake, "BUSY_S", 3600.0)
    monkeypatch.setattr(log_intake, "TURN_BYTES", 1 << 20)
    batches = [stand.put("task", 1 + n, 1) for n in range(150)]
    stand.intake.engine_works()
    await stand.intake.flush()
    assert stand.store.writes == [batches[:100], batches[100:]]


async def test_while_the_engine_rests_the_tasks_take_turns_in_one_write(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_intake, "BUSY_S", 0.0)
    flood = [stand.put("flood", 1 + 100 * n) for n in range(4)]
    other = stand.put("other", 1, 10)
    stand.intake.engine_works()
    await stand.intake.flush()
    # A turn is 16 KiB: two batches of the flood, all of the other, then the rest of the flood.
    assert stand.store.writes == [[*flood[:2], other, *flood[2:]]]


async def test_a_sender_waits_for_room_and_hears_when_all_is_stored(stand: Stand) -> None:
    """DC-6: bounded; what comes over it is asked for again by one acknowledgement an attempt."""
    fits = SOURCE_BYTES // (len(RAW) + 2)
    for n in range(fits + 3):
        stand.put("flood", n + 1, 1)
    assert (stand.intake.bytes, stand.meter.over) == (fits * (len(RAW) + 2), 3)
    assert not stand.source._room.is_set()
    assert not stand.source._settled.is_set()
    await stand.intake.flush()
    await stand.source.room()
    await stand.source.settled()
    assert stand.intake.bytes == 0
    assert stand.acks[-1] == LogAck("flood", 1, 0)
    assert len(stand.acks) == fits + 1


async def test_the_end_of_an_attempt_follows_its_lines_and_counts_for_nothing(stand: Stand) -> None:
    lines = stand.put("task", 1)
    stand.source.ended([("task", 1, 100)])
    await stand.intake.flush()
    assert stand.store.writes == [[lines, LogBatch("task", 1, final=100)]]
    assert stand.intake.bytes == 0
