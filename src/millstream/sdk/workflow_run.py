"""One run of a workflow's code: led through its history event by event, and from there on into what is new.

The code is told of one event at a time and runs until it waits again, so what it does depends on the order of the
events alone, and not on how many of them came together. What it asks for at an event is compared with what the history
has there; behind the history's end, it is new.
"""

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from google.protobuf.struct_pb2 import Value

from millstream.sdk.errors import ContinueAsNew, MillstreamError, StepFailed
from millstream.sdk.journal import SHOWN, Command, CommandType, Entry, EntryType, NonDeterminism, differing
from millstream.sdk.log_buffer import AttemptLog
from millstream.sdk.payload import JsonValue, fill_value, from_value
from millstream.sdk.workflow_loop import Stuck, WorkflowLoop

_LOG: Final = logging.getLogger("millstream.worker")

Perform = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs a recorded side effect outside the workflow's loop: a sync function in a thread."""


class EndType(StrEnum):
    """How the code ended."""

    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    CONTINUED = "CONTINUED"


@dataclass(frozen=True, slots=True)
class End:
    """The end of the code.

    Attributes:
        value: What it returned, or the input that it goes on with.
        signals: Of one that goes on as new, the signals that it did not take, by name.
        version: Of one that goes on as new, with which version; "" for the same.
    """

    type: EndType
    value: JsonValue = None
    code: str = ""
    message: str = ""
    signals: tuple[tuple[str, JsonValue], ...] = ()
    version: str = ""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What is known of a run from outside."""

    run_id: str
    workflow: str
    version: str = ""


class StepFuture(asyncio.Future[Any]):
    """The end of something that the code began. To cancel it cancels that too."""

    def __init__(self, instance: "Instance", number: int, kind: CommandType, name: str) -> None:
        super().__init__(loop=instance.loop)
        self.number = number
        self.kind = kind
        self.name = name
        self._instance = instance

    def cancel(self, msg: Any = None) -> bool:
        """Cancels what was begun; whoever awaits it gets CancelledError."""
        if not super().cancel(msg):
            return False
        self._instance.cancel_step(self.number)
        return True


Start = Callable[["Instance", JsonValue], Awaitable[Any]]
"""Calls the workflow's function with a context and its input; returns what it returns, as JSON."""


class _Discarded(BaseException):
    """The run was taken from this worker: its clean-up may do nothing any more."""


class Instance:
    """A run in this worker's memory.

    Attributes:
        sequence: The last event that the code has seen.
        first: Commands given before it began, or began anew.
        count: Commands so far, these included.
        new: Those that no answer has carried yet.
        end: How the code ended; None while it goes on.
        replaying: It is led through what it did before.
        guessing: It is told of an end that the service has not stored, at a time that is not known.
        looked: It has looked at the time meanwhile, which may turn out another, or had something to log.
    """

    def __init__(self, info: RunInfo, start: Start, perform: Perform, first: int = 0) -> None:
        self.info = info
        self.loop = WorkflowLoop(self)  # type: ignore[abstract]  # what code may not use stays as it is: it raises
        self.sequence = 0
        self.count = self.first = first
        self.new: list[Command] = []
        self.end: End | None = None
        self.replaying = self.guessing = self.looked = False
        self.at_us = 0
        self.cancel_reason = ""
        self._start = start
        self._perform = perform
        self._main: asyncio.Task[Any] | None = None
        self._steps: dict[int, StepFuture] = {}
        self._timers: dict[int, Callable[[], None]] = {}
        self._signals: dict[str, deque[JsonValue]] = {}
        self._waiting: dict[str, deque[asyncio.Future[Any]]] = {}
        self._patches: dict[str, bool] = {}
        self._effects: list[tuple[int, Callable[[], Any], asyncio.Future[Any]]] = []
        self._expected: Sequence[Command] = ()
        self._at = 0
        self._made: deque[Command] = deque(maxlen=SHOWN)
        self._shown: deque[Command] = deque(maxlen=SHOWN)
        self._fault: NonDeterminism | None = None
        self._discarded = False
        self.log: AttemptLog | None = None
        """Where its code logs to, in the activation that runs."""

    def current(self) -> AttemptLog | None:
        """Where its code logs to; nowhere while it says again what it said before, or is told ahead: an activation
        logs that."""
        self.looked = self.looked or self.guessing
        return None if self.replaying or self.guessing else self.log

    # -- being led --------------------------------------------------------------------------------------------

    async def apply(self, entry: Entry, recorded: Sequence[Command] = (), replaying: bool = False) -> None:
        """Tells the code of an event and runs it until it waits.

        Args:
            recorded: What the history has at this event.
            replaying: The event was answered before: the code has to do what is recorded, and no more.

        Raises:
            NonDeterminism: it does not.
            Stuck: it never waits.
        """
        self.sequence, self.at_us, self.replaying = entry.sequence, entry.at_us, replaying
        self.loop.now_s = entry.at_us / 1e6
        self._expected, self._at = recorded, 0
        self._shown.extend(recorded)
        self._tell(entry)
        self._turn()
        await self._perform_effects(recorded)
        self._skip_patches()
        if self._at < len(recorded):
            raise self._part(f"the history goes on with {recorded[self._at]}, and the code with nothing")

    async def _perform_effects(self, recorded: Sequence[Command] = ()) -> None:
        while self._effects:
            effects, self._effects = self._effects, []
            recorded_to = recorded[-1].number if recorded else 0
            done = [self._recorded(effect[0]) for effect in effects if effect[0] <= recorded_to]
            done += await self._do(effects[len(done) :])
            for (_, _, future), outcome in zip(effects, done, strict=True):
                _settle(future, outcome)
            self._turn()

    # -- going ahead ------------------------------------------------------------------------------------------

    def waits_only_for(self, step: int) -> bool:
        """Whether the code goes on with the end of this step, and with nothing else but what comes unasked."""
        return len(self._steps) == 1 and step in self._steps and not self._timers and not any(self._waiting.values())

    def go_ahead(self, step: int, value: JsonValue) -> bool:
        """Tells the code that a step has ended well, before the service does; what it asks for then stands in `new`.
        False where it has side effects, which wait until the service has.

        Raises:
            Stuck: it never waits.
        """
        self.replaying, self._expected, self._at = False, (), 0
        self.guessing = True
        try:
            self._tell_step(Entry(self.sequence, EntryType.COMPLETED, self.at_us, step, value=value))
            self._turn()
        finally:
            self.guessing = False
        return not self._effects

    async def catch_up(self, entry: Entry) -> None:
        """The service tells now what the code was told of ahead: it goes on from there."""
        self.sequence, self.at_us = entry.sequence, entry.at_us
        self.loop.now_s = entry.at_us / 1e6
        self.new = [replace(each, after=entry.sequence) for each in self.new]
        await self._perform_effects()

    def time_us(self) -> int:
        """The time of the event that is being looked at."""
        self.looked = self.looked or self.guessing
        return self.at_us

    def _turn(self) -> None:
        self.loop.turn()
        if self._fault is not None:
            raise self._fault
        if self.end is None and self._main is not None and self._main.done():
            self.end = self._ended(self._main)

    def _tell(self, entry: Entry) -> None:
        match entry.type:
            case EntryType.STARTED:
                self._main = self.loop.create_task(self._run(entry.value))
            case EntryType.COMPLETED | EntryType.FAILED:
                self._tell_step(entry)
            case EntryType.SIGNALLED:
                self._tell_signal(entry.name, entry.value)
            case EntryType.CANCELLING:
                self.cancel_reason = entry.message or "cancelled"
                if self._main is not None:
                    self.loop.call_soon(self._main.cancel)

    async def _run(self, value: JsonValue) -> Any:
        return await self._start(self, value)

    def _tell_step(self, entry: Entry) -> None:
        fire = self._timers.pop(entry.step, None)
        if fire is not None:
            fire()
            return
        future = self._steps.pop(entry.step, None)
        if future is None or future.done():
            return
        if entry.type is EntryType.COMPLETED:
            future.set_result(entry.value)
        else:
            future.set_exception(StepFailed(entry.code, entry.message, future.kind.lower(), future.name))

    def _tell_signal(self, name: str, value: JsonValue) -> None:
        waiting = self._waiting.get(name)
        while waiting:
            future = waiting.popleft()
            if not future.done():
                future.set_result(value)
                return
        self._signals.setdefault(name, deque()).append(value)
        if self.end is not None and self.end.type is EndType.CONTINUED:
            # Its end was put off by this: what begins anew is to find it.
            self.end = replace(self.end, signals=(*self.end.signals, (name, value)))

    def _ended(self, main: "asyncio.Task[Any]") -> End:
        if main.cancelled():
            return End(EndType.CANCELLED, message=self.cancel_reason)
        error = main.exception()
        if error is None:
            return End(EndType.COMPLETED, main.result())
        if isinstance(error, ContinueAsNew):
            left = tuple((name, value) for name, values in self._signals.items() for value in values)
            return End(EndType.CONTINUED, error.input, signals=left)
        if isinstance(error, MillstreamError):
            return End(EndType.FAILED, code=error.code, message=error.message)
        name = type(error).__name__
        if not self.replaying:
            info = self.info
            _LOG.warning("run %s of workflow %s failed", info.run_id, info.workflow, exc_info=error)
        return End(EndType.FAILED, code=name, message=str(error) or name)

    # -- what the code asks for -------------------------------------------------------------------------------

    def emit(self, kind: CommandType, name: str = "", value: JsonValue = None, step: int = 0, **options: Any) -> int:
        """Gives a command, or finds it in the history; returns its number.

        Raises:
            NonDeterminism: the history has another, or none.
        """
        if self._discarded:
            raise _Discarded
        if kind is not CommandType.PATCH:
            self._skip_patches()
        command = Command(self.count + 1, self.sequence, kind, name, value, step=step, options=options)
        if self._at < len(self._expected):
            if not self._expected[self._at].same(command):
                raise self._part(f"the history has {self._expected[self._at]}, and the code {command}", command)
            self._at += 1
        elif self.replaying:
            raise self._part(f"the code goes on with {command}, and the history with nothing", command)
        else:
            self.new.append(command)
        self.count = command.number
        self._made.append(command)
        return command.number

    def _skip_patches(self) -> None:
        """Patches that the code does not ask for any more: everything that runs is past them."""
        while self._at < len(self._expected) and self._expected[self._at].type is CommandType.PATCH:
            self.count = self._expected[self._at].number
            self._at += 1

    def _part(self, why: str, command: Command | None = None) -> NonDeterminism:
        made = [*self._made, *([command] if command is not None else [])]
        self._fault = differing(self.sequence, [*self._shown], made, why)
        return self._fault

    def step(self, kind: CommandType, name: str, value: JsonValue, **options: Any) -> StepFuture:
        """Begins something that ends some time later."""
        number = self.emit(kind, name, value, **options)
        future = self._steps[number] = StepFuture(self, number, kind, name)
        return future

    def cancel_step(self, number: int) -> None:
        """Cancels what the code waits for no more."""
        if self._steps.pop(number, None) is not None and not self._discarded:
            self.emit(CommandType.CANCEL, step=number)

    def start(self, delay_s: float, fire: Callable[[], None]) -> int:
        """Starts a durable timer for the loop."""
        number = self.emit(CommandType.TIMER, delay_us=round(delay_s * 1e6))
        self._timers[number] = fire
        return number

    def cancel(self, number: int) -> None:
        """Stops a timer of the loop."""
        if self._timers.pop(number, None) is not None and not self._discarded:
            self.emit(CommandType.CANCEL, step=number)

    def signal(self, name: str) -> "asyncio.Future[Any]":
        """The next signal of this name."""
        future: asyncio.Future[Any] = self.loop.create_future()
        buffered = self._signals.get(name)
        if buffered:
            future.set_result(buffered.popleft())
        else:
            self._waiting.setdefault(name, deque()).append(future)
        return future

    def patched(self, patch: str) -> bool:
        """Whether the run takes the new way; the first answer holds for all of it."""
        if patch not in self._patches:
            ahead = self.replaying or self._at < len(self._expected)
            self._patches[patch] = taken = self._find_patch(patch) if ahead else True
            if taken:
                self.emit(CommandType.PATCH, patch)
        return self._patches[patch]

    def _find_patch(self, patch: str) -> bool:
        """Go to where the history has the patch, if it has it here."""
        for place in range(self._at, len(self._expected)):
            found = self._expected[place]
            if found.type is not CommandType.PATCH:
                return False
            if found.name == patch:
                self._at, self.count = place, found.number - 1
                return True
        return False

    # -- side effects -----------------------------------------------------------------------------------------

    def effect(self, name: str, function: Callable[[], Any]) -> "asyncio.Future[Any]":
        """Something to be done once, and recorded."""
        future: asyncio.Future[Any] = self.loop.create_future()
        self._effects.append((self.emit(CommandType.RECORD, name), function, future))
        return future

    def _recorded(self, number: int) -> Command:
        return next(each for each in self._expected if each.number == number)

    async def _do(self, effects: Sequence[tuple[int, Callable[[], Any], "asyncio.Future[Any]"]]) -> list[Command]:
        """Does what is asked for, all at once, and puts the outcomes into the commands."""
        done = await asyncio.gather(*(self._outcome(function, future) for _, function, future in effects))
        first = self.new[0].number if self.new else 0
        outcomes = []
        for (number, _, _), fields in zip(effects, done, strict=True):
            place = number - first
            self.new[place] = replace(self.new[place], **fields)
            outcomes.append(self.new[place])
        return outcomes

    async def _outcome(self, function: Callable[[], Any], future: "asyncio.Future[Any]") -> Mapping[str, Any]:
        if future.done():
            return {}
        try:
            return {"value": plain(await self._perform(function))}
        except Exception as error:
            if isinstance(error, MillstreamError):
                return {"code": error.code[:128], "message": error.message[:4000]}
            return {"code": type(error).__name__[:128], "message": str(error)[:4000]}

    # -- the end ----------------------------------------------------------------------------------------------

    def discard(self) -> None:
        """The run goes on elsewhere, or is over."""
        self._discarded = True
        self.loop.discard()


def _settle(future: "asyncio.Future[Any]", outcome: Command) -> None:
    if future.done():
        return
    if outcome.code:
        future.set_exception(StepFailed(outcome.code, outcome.message, "side effect", outcome.name))
    else:
        future.set_result(outcome.value)


def plain(value: Any) -> JsonValue:
    """A value as it comes back from the wire, so that nothing depends on whether it was there.

    Raises:
        PayloadError: it is no JSON.
    """
    wire = Value()
    fill_value(wire, value)
    return from_value(wire)


async def perform_here(function: Callable[[], Any]) -> Any:
    """Runs a side effect in this loop."""
    result = function()
    return await result if inspect.isawaitable(result) else result


__all__: Final = ["End", "EndType", "Instance", "RunInfo", "StepFuture", "Stuck", "perform_here", "plain"]
