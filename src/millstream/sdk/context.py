"""What a handler is told of its task, and how it talks back."""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from pydantic import BaseModel

from millstream.sdk.errors import TaskCancelled
from millstream.sdk.log_buffer import AttemptLog
from millstream.sdk.logs import KnownFields, Sink, logging_to
from millstream.sdk.outbox import Fence, Outbox
from millstream.sdk.payload import JsonValue, fill_value
from millstream.sdk.payloads import Payloads
from millstream.sdk.policies import TypeRef, Visibility
from millstream.sdk.results import Artifact
from millstream.v1 import run_pb2, worker_pb2

Publishable: TypeAlias = BaseModel | tuple[str, Mapping[str, JsonValue]]
"""A model, or the name of a type with the data."""

ResultT = TypeVar("ResultT")

STREAMED_BYTES: Final = 4096
"""The largest value that is streamed at once."""

_LOG: Final = logging.getLogger("millstream.task")


class Extra(NamedTuple):
    """An artifact to publish beside what the handler returns."""

    item: Publishable | TypeRef
    tags: Sequence[str]
    visibility: Visibility | None
    partition_key: str
    payload_ref: str = ""


class TaskLogger(KnownFields):
    """Adds the task to every record, and keeps what the call itself adds, which the service gets as fields."""

    def __init__(self, sink: Sink, fields: Mapping[str, Any]) -> None:
        """`sink`: where the task logs to, also from a thread that the worker does not know."""
        super().__init__(_LOG, fields)
        self._sink = sink

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Logs a line of the task, here and in the service."""
        if self.isEnabledFor(level):
            kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
            with logging_to(self._sink):
                super().log(level, msg, *args, **kwargs)


class Cancelled(asyncio.Event):
    """An event that is true once it is set, so that `if ctx.cancelled` says what it seems to say."""

    def __bool__(self) -> bool:
        return self.is_set()


class Context:
    """One attempt at one task, from inside. All of it may be used from the thread of a sync handler too."""

    __slots__ = (
        "_attempt_log", "_cancelled", "_extras", "_lease", "_log", "_loop", "_outbox", "_payloads", "_streamed",
        "_thread", "cancelling", "fence", "watched",
    )  # fmt: skip

    def __init__(
        self,
        lease: worker_pb2.Lease,
        fence: Fence,
        outbox: Outbox,
        payloads: Payloads,
        loop: asyncio.AbstractEventLoop,
        thread: int,
    ) -> None:
        """Made by the worker. `thread` is the ident of the loop's thread."""
        self._lease = lease
        self._payloads = payloads
        self._outbox = outbox
        self._loop = loop
        self._thread = thread
        self._log: TaskLogger | None = None
        self._attempt_log: AttemptLog | None = None
        self._cancelled: Cancelled | None = None
        self.cancelling = False
        self._extras: list[Extra] | None = None
        self._streamed = 0
        self.fence = fence
        self.watched = False

    # -- the task ---------------------------------------------------------------------------------------------

    @property
    def task_id(self) -> str:
        """Id of the task."""
        return self.fence.task_id

    @property
    def run_id(self) -> str:
        """Id of its run."""
        return self._lease.run_id

    @property
    def correlation_id(self) -> str:
        """Id of the cascade, which is the run."""
        return self._lease.run_id

    @property
    def kind(self) -> str:
        """What the task is: the kind it was created with, or "agent:" and the agent's name."""
        return self._lease.kind

    @property
    def attempt(self) -> int:
        """Attempts counted so far, this one included."""
        return self._lease.tries

    @property
    def max_attempts(self) -> int:
        """Attempts in all."""
        return self._lease.max_attempts

    @property
    def idempotency_token(self) -> str:
        """The same for all attempts of the task: pass it on where a side effect must happen once."""
        return self._lease.idempotency_token

    @property
    def traceparent(self) -> str:
        """The attempt's place in its trace, as the header of that name has it, for calls of the handler's own; "" where
        it is of none. Calls of the SDK carry it by themselves, and spans of OpenTelemetry are below it."""
        return self._lease.traceparent

    @property
    def deadline(self) -> datetime | None:
        """When the attempt fails unless it has ended; None: never."""
        return self._lease.deadline.ToDatetime(UTC) if self._lease.HasField("deadline") else None

    @property
    def artifacts(self) -> list[Artifact]:
        """For an agent's task, what it is given, with ids, tags and the rest."""
        return [Artifact.from_wire(wire) for wire in self._lease.artifacts]

    @property
    def log(self) -> TaskLogger:
        """A logger whose records carry task_id, attempt, run_id and kind, and go to the service with the task, from
        the level of the logger `millstream.task` on (INFO unless it is set). What a call adds as `extra` goes as the
        line's fields. It never blocks: what cannot be sent in time is counted in one line."""
        if self._log is None:
            fields = {"task_id": self.task_id, "attempt": self.attempt, "run_id": self.run_id, "kind": self.kind}
            self._log = TaskLogger(self, fields)
        return self._log

    @property
    def attempt_log(self) -> AttemptLog:
        """Used by the worker: where the attempt logs to."""
        if self._attempt_log is None:
            self._attempt_log = self._outbox.logs.open(self.fence)
        return self._attempt_log

    def current(self) -> AttemptLog:
        """Used by logging: where what runs here logs to."""
        return self.attempt_log

    def close_log(self) -> int:
        """Called by the worker when the attempt has ended: the number of its last line."""
        return self._attempt_log.close() if self._attempt_log is not None else 0

    # -- signs of life ----------------------------------------------------------------------------------------

    def progress(self, fraction: float, message: str = "") -> None:
        """Tells how far the task is, which is a heartbeat too.

        Args:
            fraction: share done, 0 to 1.
            message: what is going on; cut at 1,000 characters.

        Raises:
            ValueError: `fraction` is outside 0 to 1.
        """
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction must be between 0 and 1, not {fraction}")
        self._on_loop(self._outbox.progress, self.fence, fraction, message[:1000])

    def stream(self, value: JsonValue) -> None:
        """Shows a value, such as a token of a model's answer, to those who watch the run at this moment, in the order
        of the calls. It is not stored, and may be lost: what must not be is returned, or published.

        Args:
            value: JSON, or a model; at most 4,096 bytes.

        Raises:
            ValueError: it is larger.
            PayloadError: something in it is no JSON value.
        """
        out = run_pb2.StreamedValue(task_id=self.task_id, attempt=self.fence.attempt)
        fill_value(out.value, value)
        size = out.value.ByteSize()
        if size > STREAMED_BYTES:
            raise ValueError(f"the value has {size:,} bytes; at most {STREAMED_BYTES:,} are streamed at once")
        self._streamed += 1
        out.index = self._streamed
        self._on_loop(self._outbox.stream, out)

    def heartbeat(self) -> None:
        """Shows that the code is alive, where the task has a heartbeat timeout."""
        self._on_loop(self._outbox.heartbeat, self.fence)

    # -- cancellation -----------------------------------------------------------------------------------------

    @property
    def cancelled(self) -> Cancelled:
        """Set, and true, when the task is to stop. An async handler that looks at it is given the worker's
        `cancel_grace` to stop by itself before asyncio cancels it; any other is cancelled at once."""
        self.watched = True
        if self._cancelled is None:
            self._cancelled = Cancelled()
            if self.cancelling:
                self._cancelled.set()
        return self._cancelled

    def check_cancelled(self) -> None:
        """Call it now and then in a sync handler, which nothing else can stop.

        Raises:
            TaskCancelled: the task is to stop.
        """
        self.watched = True
        if self.cancelling:
            raise TaskCancelled

    def cancel(self) -> None:
        """Called by the worker: the task is to stop."""
        self.cancelling = True
        if self._cancelled is not None:
            self._cancelled.set()

    # -- artifacts --------------------------------------------------------------------------------------------

    def publish(
        self,
        item: Publishable | TypeRef,
        *,
        tags: Sequence[str] = (),
        visibility: Visibility | None = None,
        partition_key: str = "",
        payload_ref: str = "",
    ) -> None:
        """Adds an artifact to those that are stored when the task completes, all of them or none. With `payload_ref`,
        which `payloads.upload` or an artifact of the task gave, `item` is the type alone."""
        if self._extras is None:
            self._extras = []
        self._extras.append(Extra(item, tags, visibility, partition_key, payload_ref))

    def take_extras(self) -> Sequence[Extra]:
        """Called by the worker: what `publish` gathered."""
        return self._extras or ()

    # -- large payloads ---------------------------------------------------------------------------------------

    @property
    def payloads(self) -> Payloads:
        """Downloads what the task was given and is too large to come with it, and uploads what is too large to go."""
        return self._payloads.of(self.fence)

    def wait(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Runs a coroutine of `payloads` from a sync handler, and waits for what it returns.

        Raises:
            RuntimeError: called from an async handler, which awaits it itself.
        """
        if threading.get_ident() == self._thread:
            work.close()
            raise RuntimeError("an async handler awaits it: only a sync one, in its thread, calls wait")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _on_loop(self, call: Callable[..., None], *args: Any) -> None:
        if threading.get_ident() == self._thread:
            call(*args)
        else:
            self._loop.call_soon_threadsafe(call, *args)
