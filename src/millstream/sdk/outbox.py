"""What a worker has to say, gathered into as few messages as the stream takes.

Everything queued while a write is under way goes into the next one, so the batch grows with the load and no
timer is needed. Reports are encoded once, as they are queued: a message is put together from ready frames,
which is legal protobuf, so its size is known, it costs no second copy, and a resend costs nothing.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Final, NamedTuple

from millstream.sdk.frames import Fence as Fence
from millstream.sdk.frames import frame as frame
from millstream.sdk.log_buffer import LogBuffer
from millstream.v1 import code_pb2, run_pb2, worker_pb2
from millstream.v1.worker_service_pb2 import WorkRequest

MAX_BYTES: Final = 2 * 1024 * 1024
"""A message is closed at this size, far below the limit of 16 MiB, so that no report waits behind megabytes."""
STREAMED_MOST: Final = 1_000
"""Values that may wait to be streamed; of more, some are lost."""
MAX_ITEMS: Final = 5_000
"""A message is closed at this many reports; the contract's limit is 10,000 of each kind."""


class Report(NamedTuple):
    """A completion or a failure, encoded, with the lease that it ends."""

    fence: Fence
    frame: bytes


def _tag(field_number: int) -> int:
    return field_number << 3 | 2


_DELIVERED: Final = _tag(WorkRequest.DELIVERED_FIELD_NUMBER)
_PROGRESS: Final = _tag(WorkRequest.PROGRESS_FIELD_NUMBER)
_STREAMED: Final = _tag(WorkRequest.STREAMED_FIELD_NUMBER)
_HEARTBEATS: Final = _tag(WorkRequest.HEARTBEATS_FIELD_NUMBER)
_RELEASED: Final = _tag(WorkRequest.RELEASED_FIELD_NUMBER)
_COMPLETIONS: Final = _tag(WorkRequest.COMPLETIONS_FIELD_NUMBER)
_FAILURES: Final = _tag(WorkRequest.FAILURES_FIELD_NUMBER)
_ANSWERS: Final = WorkRequest.ANSWERS_FIELD_NUMBER << 3 | 2
_AHEAD: Final = WorkRequest.AHEAD_FIELD_NUMBER << 3 | 2
_AHEAD_TAG: Final = bytes((_AHEAD & 0x7F | 0x80, _AHEAD >> 7))
_ANSWERS_TAG: Final = bytes((_ANSWERS & 0x7F | 0x80, _ANSWERS >> 7))
"""A field number over 15 takes two bytes."""


def completion_report(fence: Fence, completion: worker_pb2.Completion) -> Report:
    """The report that a task is done."""
    return Report(fence, frame(_COMPLETIONS, completion.SerializeToString()))


def answer_report(fence: Fence, answer: code_pb2.ActivationAnswer) -> Report:
    """What a workflow's code says to an activation."""
    body = answer.SerializeToString()
    return Report(fence, _ANSWERS_TAG + frame(0, body)[1:])


def ahead_frame(said: code_pb2.AnswerAhead) -> bytes:
    """What a workflow's code says to a completion, to go behind that."""
    return _AHEAD_TAG + frame(0, said.SerializeToString())[1:]


def failure_report(fence: Fence, failure: worker_pb2.AttemptFailure) -> Report:
    """The report that an attempt failed."""
    return Report(fence, frame(_FAILURES, failure.SerializeToString()))


def _ref(tag: int, fence: Fence) -> bytes:
    return frame(tag, worker_pb2.LeaseRef(task_id=fence.task_id, attempt=fence.attempt).SerializeToString())


class Outbox:
    """The queue between the code that runs and the one writer of the stream.

    Reports, and acks of deliveries, are kept until the server acknowledges the message they went in, and are
    queued again for the next connection.
    """

    def __init__(self, max_unacked: int) -> None:
        """`max_unacked`: with more reports than this unacknowledged no credit is given, so memory is bounded."""
        self._max_unacked = max_unacked
        self._reports: deque[Report] = deque()
        self._delivered: dict[Fence, None] = {}
        self._released: list[Fence] = []
        self._progress: dict[Fence, worker_pb2.TaskProgress] = {}
        self._heartbeats: dict[Fence, None] = {}
        self._streamed: list[bytes] = []
        self._credit = 0
        self._drain = False
        self._keep_alive = False
        self._number = 0
        self._sent: deque[tuple[int, list[Report], dict[Fence, None]]] = deque()
        self._unacked = 0
        self._open: set[Fence] = set()
        self._wake = asyncio.Event()
        self.logs = LogBuffer()
        self.logs.ready = self._wake.set
        self._settled = asyncio.Event()
        self._settled.set()

    # -- queueing ---------------------------------------------------------------------------------------------

    def report(self, report: Report, *, credit: int) -> None:
        """Queues a completion or a failure, with the credit its slot gives back."""
        self._reports.append(report)
        self._open.add(report.fence)
        self._credit += credit
        self._settled.clear()
        self._wake.set()

    def give_credit(self, credit: int) -> None:
        """Asks for this many tasks more."""
        if credit:
            self._credit += credit
            self._wake.set()

    def delivered(self, fences: Iterable[Fence]) -> None:
        """Acknowledges leases that arrived."""
        self._delivered.update(dict.fromkeys(fences))
        self._wake.set()

    def release(self, fences: Iterable[Fence]) -> None:
        """Gives leases back unstarted."""
        self._released.extend(fences)
        self._wake.set()

    def progress(self, fence: Fence, fraction: float, message: str) -> None:
        """Queues how far a task is; of several for one task only the last is sent."""
        self._progress[fence] = worker_pb2.TaskProgress(
            task_id=fence.task_id, attempt=fence.attempt, fraction=fraction, message=message
        )
        self._wake.set()

    def stream(self, streamed: run_pb2.StreamedValue) -> None:
        """Queues a value for those who watch; lost where too many wait already."""
        if len(self._streamed) < STREAMED_MOST:
            self._streamed.append(frame(_STREAMED, streamed.SerializeToString()))
            self._wake.set()

    def heartbeat(self, fence: Fence) -> None:
        """Queues a sign of life."""
        self._heartbeats[fence] = None
        self._wake.set()

    def drain(self) -> None:
        """Asks for no more tasks."""
        self._drain = True
        self._wake.set()

    def keep_alive(self) -> None:
        """Has a message sent even if it is empty."""
        self._keep_alive = True
        self._wake.set()

    # -- sending ----------------------------------------------------------------------------------------------

    async def ready(self) -> None:
        """Waits until there is something to send."""
        await self._wake.wait()

    def take(self) -> bytes | None:
        """The next message, encoded; None where nothing is to be sent. What it leaves out comes next time."""
        self._wake.clear()
        credit = self._take_credit()
        frames, reports, delivered = self._take_frames()
        # Behind all else: what tasks log delays nothing.
        frames += self.logs.take()
        if self.logs.waits:
            self._wake.set()
        if not (frames or credit or self._drain or self._keep_alive):
            return None
        self._number += 1
        head = WorkRequest(number=self._number, credit=credit, drain=self._drain).SerializeToString()
        self._drain = self._keep_alive = False
        if reports or delivered:
            self._sent.append((self._number, reports, delivered))
            self._unacked += len(reports)
        return head + b"".join(frames)

    def _take_credit(self) -> int:
        if self._unacked > self._max_unacked:
            return 0
        credit = min(self._credit, MAX_ITEMS)
        self._credit -= credit
        if self._credit:
            self._wake.set()
        return credit

    def _take_frames(self) -> tuple[list[bytes], list[Report], dict[Fence, None]]:
        """Frames of everything queued, up to the bounds: acks of deliveries first, since reports follow them."""
        delivered, self._delivered = self._delivered, {}
        frames = [_ref(_DELIVERED, fence) for fence in delivered]
        released, self._released = self._released, []
        frames += [_ref(_RELEASED, fence) for fence in released]
        if self._progress:
            frames += [frame(_PROGRESS, p.SerializeToString()) for p in self._progress.values()]
            self._progress = {}
        if self._streamed:
            frames += self._streamed
            self._streamed = []
        if self._heartbeats:
            frames += [_ref(_HEARTBEATS, fence) for fence in self._heartbeats]
            self._heartbeats = {}
        reports: list[Report] = []
        queue, size = self._reports, 0
        while queue and size < MAX_BYTES and len(reports) < MAX_ITEMS:
            report = queue.popleft()
            size += len(report.frame)
            reports.append(report)
            frames.append(report.frame)
        if queue:
            self._wake.set()
        return frames, reports, delivered

    def acknowledge(self, number: int) -> None:
        """Everything up to this message is stored."""
        sent = self._sent
        while sent and sent[0][0] <= number:
            stored = sent.popleft()[1]
            self._unacked -= len(stored)
            self._open.difference_update(report.fence for report in stored)
        if self._credit and self._unacked <= self._max_unacked:
            self._wake.set()
        if not (self._unacked or self._reports):
            self._settled.set()

    # -- between two connections ------------------------------------------------------------------------------

    def unsettled(self) -> list[Fence]:
        """Leases whose reports are not known to be stored."""
        return [report.fence for _, reports, _ in self._sent for report in reports] + [
            report.fence for report in self._reports
        ]

    def reported(self, fence: Fence) -> bool:
        """Whether the lease has a report that is not known to be stored."""
        return fence in self._open

    async def settled(self) -> None:
        """Waits until every report is acknowledged."""
        await self._settled.wait()

    def restart(self) -> None:
        """For a new connection: numbers begin anew after the hello, and what was not acknowledged goes again."""
        again = deque(report for _, reports, _ in self._sent for report in reports)
        delivered = dict.fromkeys(fence for _, _, fences in self._sent for fence in fences)
        self._reports = again + self._reports
        self._delivered = delivered | self._delivered
        self._sent.clear()
        self._progress.clear()
        self._heartbeats.clear()
        self._streamed.clear()
        self._released.clear()
        self._unacked = self._credit = 0
        self._number = 1
        self._drain = self._keep_alive = False
        if self._reports or self._delivered:
            self._wake.set()

    def forget(self, lost: Iterable[Fence]) -> None:
        """Drops queued acks of deliveries of leases that are no longer ours."""
        for fence in lost:
            self._delivered.pop(fence, None)
