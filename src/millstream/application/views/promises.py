"""What the use cases of promises take and give."""

from dataclasses import dataclass

from millstream.domain.promises import PromiseState
from millstream.domain.runs import Task


@dataclass(frozen=True, slots=True)
class PromiseRef:
    """Which promise: by its id, or by its key."""

    id: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class PromiseView:
    """A promise (its task) with its value (google.protobuf.Value in wire form, b"" for none)."""

    task: Task
    value: bytes = b""
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class PromiseQuery:
    """Which promises; None and "" are "any"."""

    state: PromiseState | None = None
    key: str = ""
    name: str = ""
    run_id: str = ""
