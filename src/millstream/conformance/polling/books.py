"""What the kit knows of a worker that polls: which leases are out, what it asked for, and which rules a call breaks."""

from dataclasses import dataclass, field
from typing import Final

from millstream.conformance.books import Fence
from millstream.conformance.rules import Violation
from millstream.v1.worker_service_pb2 import PollRequest

LOST: Final = "LEASE_LOST"


@dataclass(slots=True)
class PollBooks:
    """The books of one worker.

    Attributes:
        asked: Leases that its open polls ask for.
        open: Leases that it holds.
        given: Leases that it may speak of.
        ended: Leases whose report was answered.
        refused: Leases whose report is answered with an error.
        cancelled: Leases that it is asked to end.
        lost: Leases that are not its own any more; `told`: those of which it knows.
    """

    slots: int
    asked: int = 0
    worker_id: str = ""
    open: set[Fence] = field(default_factory=set)
    given: set[Fence] = field(default_factory=set)
    ended: set[Fence] = field(default_factory=set)
    refused: set[Fence] = field(default_factory=set)
    cancelled: set[Fence] = field(default_factory=set)
    lost: set[Fence] = field(default_factory=set)
    told: set[Fence] = field(default_factory=set)

    def ask(self, request: PollRequest) -> int:
        """A poll came; how many leases it asks for. Raises Violation."""
        if self.worker_id not in ("", request.worker_id):
            raise Violation("W39", "the worker's id is another one than in the poll before")
        self.worker_id = request.worker_id
        most = request.max_tasks if request.HasField("max_tasks") else 1
        if self.asked + most + len(self.open) > self.slots:
            held = len(self.open)
            raise Violation("W40", f"{self.asked + most} are asked for while {held} of {self.slots} slots are taken")
        self.asked += most
        return most

    def give(self, fence: Fence) -> None:
        """A lease goes out."""
        self.open.add(fence)
        self.given.add(fence)

    def speak(self, fence: Fence, what: str) -> None:
        """A call names a lease. Raises Violation."""
        if fence not in self.given:
            raise Violation("W18", f"{what} names task {fence.task_id}, attempt {fence.attempt}, never given")

    def report(self, fence: Fence) -> str:
        """A lease was reported; the error that answers it, or "". Raises Violation."""
        self.speak(fence, "a report")
        if fence in self.told:
            raise Violation("W44", f"task {fence.task_id} was reported though its lease was lost")
        if fence in self.ended:
            rule = "W24" if fence in self.refused else "W17"
            raise Violation(rule, f"task {fence.task_id}, attempt {fence.attempt} was reported twice")
        self.ended.add(fence)
        self.open.discard(fence)
        return LOST if fence in self.lost or fence in self.refused else ""

    def renew(self, fence: Fence) -> str:
        """A lease is to be renewed; the error that answers it, or "". Raises Violation."""
        self.speak(fence, "a heartbeat")
        if fence in self.lost:
            self.told.add(fence)
            self.open.discard(fence)
        # A heartbeat may cross the report on its way.
        return LOST if fence in self.lost or fence in self.ended else ""
