"""What a workflow's code has seen and done: the history that it is replayed from, and the commands that it gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from millstream.sdk.payload import JsonValue

SHOWN: Final = 12
"""Commands that a report of a changed history shows, on either side."""


class EntryType(StrEnum):
    """What happened, as the code is told."""

    STARTED = "STARTED"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    SIGNALLED = "SIGNALLED"
    CANCELLING = "CANCELLING"


class CommandType(StrEnum):
    """What the code asks for, or has recorded."""

    TASK = "TASK"
    TIMER = "TIMER"
    CHILD = "CHILD"
    PROMISE = "PROMISE"
    PUBLISH = "PUBLISH"
    RECORD = "RECORD"
    PATCH = "PATCH"
    STATE = "STATE"
    CANCEL = "CANCEL"


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that the code is told.

    Attributes:
        sequence: Number of the event in the run.
        at_us: When it happened, microseconds since the epoch: what `ctx.now` says from here on.
        step: Number of the command that ended.
        name: Of a signal.
        value: The input, an output, or what a signal carries.
        code, message: Why a step failed, or why the run is cancelled.
    """

    sequence: int
    type: EntryType
    at_us: int = 0
    step: int = 0
    name: str = ""
    value: JsonValue = None
    code: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Command:
    """What the code asks for.

    Attributes:
        number: 1, 2, 3, ... in the run.
        after: Number of the event that the code was looking at.
        name: What it is about: the kind of a task, the workflow of a child, the id of a patch.
        value: What goes with it, or what was recorded.
        code, message: Why what was recorded failed.
        step: The command that a CANCEL is about.
        options: More, by type of command; not part of what a replay compares.
    """

    number: int
    after: int
    type: CommandType
    name: str = ""
    value: JsonValue = None
    code: str = ""
    message: str = ""
    step: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        about = f" {self.name!r}" if self.name else f" of {self.step}" if self.step else ""
        return f"{self.number}. {self.type}{about}"

    def same(self, other: "Command") -> bool:
        """Whether a replay may take one for the other."""
        return (self.number, self.after, self.type, self.name, self.step) == (
            other.number, other.after, other.type, other.name, other.step,
        )  # fmt: skip


class NonDeterminism(BaseException):
    """The code does something else than its history says. Not an Exception, so that no handler of the code's takes it
    for a failure of its own.

    Attributes:
        message: What differs, and both histories around it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def differing(at: int, recorded: Sequence[Command], made: Sequence[Command], why: str) -> NonDeterminism:
    """The error that shows both histories.

    Args:
        at: Number of the event at which they part.
        recorded: Commands of the history, up to and around that event.
        made: Commands of the code, likewise.
        why: What differs, in a sentence.
    """
    return NonDeterminism(
        f"{why} (after event {at})\n"
        f"history: {_listed(recorded)}\n"
        f"code:    {_listed(made)}\n"
        "Undo the change, or guard it with ctx.patched(...) or a new version, then retry the run."
    )


def _listed(commands: Sequence[Command]) -> str:
    shown = [str(each) for each in commands[-SHOWN:]]
    return ", ".join((["..."] if len(commands) > SHOWN else []) + shown) or "(nothing)"
