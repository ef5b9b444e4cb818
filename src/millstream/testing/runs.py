"""Runs of a test environment: their history, their open steps, and how they stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from millstream.sdk.errors import MillstreamError
from millstream.sdk.handlers import WorkflowHandler
from millstream.sdk.histories import History
from millstream.sdk.payload import JsonValue, fill_value
from millstream.testing.clock import EPOCH, Alarm
from millstream.v1 import activation_pb2, code_pb2, worker_pb2

if TYPE_CHECKING:
    from millstream.testing.environment import Environment
    from millstream.testing.tasks import TaskStep

_Event = activation_pb2.HistoryEvent
_Recorded = activation_pb2.RecordedCommand
CONTROL = "CANCELLED"


class RunFailed(MillstreamError):
    """A run failed or was cancelled; `code` and `message` say why."""


class Blocked(Exception):
    """Nothing can go on any more: every open run waits for a promise, a signal, or a task that nobody serves."""


@dataclass(frozen=True, slots=True)
class Publication:
    """An artifact that was published: by a run, or by a fake agent (`by`)."""

    type: str
    payload: Mapping[str, JsonValue]
    tags: Sequence[str] = ()
    by: str = ""


@dataclass(slots=True)
class Step:
    """Something that a run's code began and that has not ended."""

    number: int
    what: str
    alarm: Alarm | None = None
    task: TaskStep | None = None
    child: CodeRun | None = None
    abandon: bool = False
    key: str = ""


@dataclass(slots=True)
class CodeRun:
    """A run as the service would keep it.

    Attributes:
        events: What its code is told, each with the commands given at it.
        told: How many of them it has looked at.
        first, count: Commands before it began or continued as new, and so far.
        attempt: Activations so far.
        parent: The run, and the number of the command, that waits for it.
    """

    run_id: str
    workflow: str
    version: str
    handler: WorkflowHandler
    parent: tuple[CodeRun, int] | None = None
    status: str = "RUNNING"
    output: JsonValue = None
    code: str = ""
    message: str = ""
    state: dict[str, JsonValue] = field(default_factory=dict)
    events: list[tuple[_Event, list[_Recorded]]] = field(default_factory=list)
    told: int = 0
    sequence: int = 0
    first: int = 0
    count: int = 0
    attempt: int = 0
    answered: bool = False
    open: dict[int, Step] = field(default_factory=dict)
    grace: Alarm | None = None

    @property
    def ended(self) -> bool:
        """It takes nothing any more."""
        return self.status not in ("RUNNING", "CANCELLING")

    @property
    def waits(self) -> bool:
        """Its code has not looked at everything."""
        return not self.ended and self.told < len(self.events)

    def note(self, now_us: int, kind: str, value: JsonValue = None, **fields: Any) -> None:
        """Have the code told of something."""
        self.sequence += 1
        event = _Event(sequence=self.sequence, type=_Event.Type.Value(kind), **fields)
        event.at.FromMicroseconds(now_us)
        if value is not None:
            fill_value(event.value, value)
        self.events.append((event, []))

    def note_failed(self, now_us: int, step: int, code: str, message: str) -> None:
        """Have the code told that something failed."""
        self.note(now_us, "FAILED", step=step)
        error = self.events[-1][0].error
        error.code, error.message = code, message
        error.SetInParent()

    def lease(self) -> worker_pb2.Lease:
        """The next activation: what the code has not seen, or everything where no copy of it is kept."""
        self.attempt += 1
        seen = self.events[self.told - 1][0].sequence if self.told else 0
        told = activation_pb2.Activation(
            workflow=self.workflow, version=self.version, base_sequence=self.sequence, seen_sequence=seen,
            after_sequence=seen, cache_token=str(self.attempt - 1) if self.answered else "",
            answer_token=str(self.attempt), first_number=self.first, command_count=self.count,
            history=items(self.events[self.told :]),
        )  # fmt: skip
        return worker_pb2.Lease(task_id=self.run_id, attempt=self.attempt, run_id=self.run_id, activation=told)

    def record(self, command: code_pb2.WorkflowCommand) -> None:
        """Put a command into the history."""
        kind = str(command.WhichOneof("command"))
        made = _Recorded(number=command.number, after_sequence=command.after_sequence)
        made.type = _Recorded.Type.Value(kind.upper())
        match kind:
            case "task":
                made.name = command.task.kind
            case "child":
                made.name = command.child.workflow
            case "promise":
                made.name = command.promise.name
            case "publish":
                made.name = command.publish.type
            case "record":
                made.name = command.record.name
                made.value.CopyFrom(command.record.value)
                if command.record.HasField("error"):
                    made.error.CopyFrom(command.record.error)
            case "patch":
                made.name = command.patch
            case "state":
                made.name = command.state.key
                made.value.CopyFrom(command.state.value)
            case "cancel":
                made.step = command.cancel
        next(page for page in self.events if page[0].sequence == made.after_sequence)[1].append(made)
        self.count = command.number

    def history(self) -> History:
        """What its code has seen and done since it began or continued as new."""
        seen = self.events[self.told - 1][0].sequence if self.told else 0
        return History(self.run_id, self.workflow, self.version, self.first, seen, items(self.events))


def items(events: Sequence[tuple[_Event, Sequence[_Recorded]]]) -> list[activation_pb2.HistoryItem]:
    """Events and commands in order, as the wire has them."""
    found = []
    for event, commands in events:
        found.append(activation_pb2.HistoryItem(event=event))
        found += [activation_pb2.HistoryItem(command=each) for each in commands]
    return found


class TestRun:
    """A run in a test's hands."""

    __test__ = False  # pytest takes classes of this name for tests

    def __init__(self, environment: Environment, run: CodeRun) -> None:
        """Made by `Environment.start`."""
        self._environment = environment
        self._run = run

    @property
    def run_id(self) -> str:
        """Its id."""
        return self._run.run_id

    @property
    def status(self) -> str:
        """ "RUNNING", "CANCELLING", "COMPLETED", "FAILED" or "CANCELLED"."""
        return self._run.status

    @property
    def state(self) -> dict[str, JsonValue]:
        """What it remembers by name (`ctx.state`)."""
        return dict(self._run.state)

    @property
    def history(self) -> History:
        """What its code has seen and done so far, for `replay`."""
        return self._run.history()

    async def result(self) -> JsonValue:
        """Has everything go on, time too, until the run has ended; its output.

        Raises:
            RunFailed: it failed or was cancelled.
            Blocked: it cannot end without a signal, a promise or a task's handler.
            NonDeterminism: its code does something else when it is led through its history again.
        """
        return await self._environment.finish(self._run)

    async def signal(self, name: str, value: JsonValue = None) -> None:
        """Signals it. Raises MillstreamError (CONFLICT) where it has ended."""
        await self._environment.signal(self._run.run_id, name, value)

    async def cancel(self, reason: str = "") -> None:
        """Begins to cancel it: its code is told, and has the grace of the service (10 s) to clean up."""
        await self._environment.cancel(self._run.run_id, reason)


def moment(at_us: int) -> datetime:
    """The time as a datetime in UTC."""
    return EPOCH + timedelta(microseconds=at_us)
