"""What the kit knows of one stream: which leases are out, how much credit is left, and which rules a message breaks."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import protovalidate
from google.protobuf.message import Message

from millstream.conformance.rules import Violation
from millstream.v1 import worker_pb2
from millstream.v1.worker_service_pb2 import WorkRequest

Names: TypeAlias = (
    worker_pb2.LeaseRef | worker_pb2.Lease | worker_pb2.Completion | worker_pb2.AttemptFailure | worker_pb2.TaskProgress
)
"""Messages that name a lease."""


class Fence(NamedTuple):
    """A lease by the task's id and the number of the attempt."""

    task_id: str
    attempt: int

    @classmethod
    def of(cls, message: Names) -> "Fence":
        """Of whatever names one."""
        return cls(message.task_id, message.attempt)


@dataclass(slots=True)
class Books:
    """The books of one stream.

    Attributes:
        credit: Tasks the worker has room for, by its own words.
        open: Leases that it holds.
        given: Leases that it may speak of.
    """

    slots: int
    credit: int = 0
    number: int = 0
    welcomed: bool = False
    open: set[Fence] = field(default_factory=set)
    given: set[Fence] = field(default_factory=set)
    arrived: set[Fence] = field(default_factory=set)
    ended: set[Fence] = field(default_factory=set)

    def hello(self, message: WorkRequest) -> None:
        """The first message. Raises Violation."""
        if not message.HasField("hello"):
            raise Violation("W1", "the first message says no hello")
        check_fields(message)
        if message.number != 1:
            raise Violation("W2", f"the hello has the number {message.number}, not 1")
        self.number = 1
        self.slots = message.hello.slots
        self.given = {Fence.of(ref) for ref in message.hello.held}
        # A worker may go on reporting what it holds; it is known to have come.
        self.arrived = set(self.given)

    def welcome(self, held: Iterable[Fence]) -> None:
        """The worker is told what it still holds."""
        self.open = set(held)
        self.credit = self.slots - len(self.open)
        self.welcomed = True

    def push(self, fence: Fence) -> None:
        """A lease goes out."""
        self.credit -= 1
        self.open.add(fence)
        self.given.add(fence)

    def lose(self, fence: Fence) -> None:
        """A lease was lost."""
        self.open.discard(fence)

    def take(self, message: WorkRequest) -> None:
        """A message came. Raises Violation."""
        if message.HasField("hello"):
            raise Violation("W1", "a message after the first says hello")
        check_fields(message)
        if message.number != self.number + 1:
            raise Violation("W2", f"a message has the number {message.number} after {self.number}")
        self.number = message.number
        for name in ("delivered", "completions", "failures", "progress", "heartbeats", "released"):
            for item in getattr(message, name):
                if Fence.of(item) not in self.given:
                    raise Violation("W18", f"{name} names task {item.task_id}, attempt {item.attempt}, never given")
        self.arrived.update(map(Fence.of, message.delivered))
        for fence in (*map(Fence.of, message.completions), *map(Fence.of, message.failures)):
            if fence not in self.arrived:
                raise Violation(
                    "W11", f"the report on task {fence.task_id} came before the acknowledgement of its arrival"
                )
            self._end(fence)
        for fence in map(Fence.of, message.released):
            self._end(fence)
        self.credit += message.credit
        if self.welcomed and self.credit + len(self.open) > self.slots:
            held = len(self.open)
            raise Violation("W8", f"{self.credit} more are asked for while {held} of {self.slots} slots are taken")

    def _end(self, fence: Fence) -> None:
        if fence in self.ended:
            raise Violation("W17", f"task {fence.task_id}, attempt {fence.attempt} was reported twice")
        self.ended.add(fence)
        self.open.discard(fence)


def check_fields(message: Message) -> None:
    """Raises Violation where a message breaks the rules of its fields."""
    try:
        protovalidate.validate(message)
    except protovalidate.ValidationError as error:
        first = error.violations[0].proto
        path = ".".join(element.field_name for element in first.field.elements) if first.field else ""
        raise Violation("W3", f"{path}: {first.message}") from error
