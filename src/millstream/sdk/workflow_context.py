"""What a workflow's code is given: everything that may differ from run to run, it asks for here."""

import asyncio
import logging
import random
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, NoReturn

from pydantic import BaseModel, TypeAdapter

from millstream.sdk.context import Publishable
from millstream.sdk.errors import ContinueAsNew
from millstream.sdk.journal import CommandType
from millstream.sdk.logs import KnownFields, logging_to
from millstream.sdk.payload import JsonValue
from millstream.sdk.policies import RetryPolicy, Seconds, Timeouts, Visibility
from millstream.sdk.workflow_run import Instance, StepFuture, plain

LONG_HISTORY: Final = 10_000
"""From so many commands on, `ctx.long` says that it is time to continue as new."""
_LOG: Final = logging.getLogger("millstream.workflow")


def _seconds(value: Seconds) -> float:
    return value.total_seconds() if isinstance(value, timedelta) else float(value)


class State(MutableMapping[str, JsonValue]):
    """What the run remembers by name: its own, and shown to whoever looks at the run."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._values: dict[str, JsonValue] = {}

    def __getitem__(self, key: str) -> JsonValue:
        return self._values[key]

    def __setitem__(self, key: str, value: JsonValue) -> None:
        kept = plain(value)
        self._instance.emit(CommandType.STATE, key, kept)
        self._values[key] = kept

    def __delitem__(self, key: str) -> None:
        del self._values[key]
        self._instance.emit(CommandType.STATE, key, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class ReplayLogger(KnownFields):
    """Says nothing of what it said before."""

    def __init__(self, instance: Instance) -> None:
        info = instance.info
        super().__init__(_LOG, {"run_id": info.run_id, "workflow": info.workflow, "version": info.version})
        self._instance = instance

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802  (logging's name)
        """Not while the run is led through its history, nor ahead of it: an activation logs that."""
        instance = self._instance
        instance.looked = instance.looked or instance.guessing
        return not (instance.replaying or instance.guessing) and super().isEnabledFor(level)

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Logs a line of the run's own task, here and in the service."""
        if self.isEnabledFor(level):
            kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
            with logging_to(self._instance):
                super().log(level, msg, *args, **kwargs)


class OpenPromise:
    """Something that somebody outside will say: await it. They name it by its key.

    Attributes:
        key: By which it is resolved or rejected.
    """

    def __init__(self, future: StepFuture, key: str) -> None:
        self.key = key
        self._future = future

    def __await__(self) -> Any:
        return self._future.__await__()

    def cancel(self) -> None:
        """Waits no more."""
        self._future.cancel()


class WorkflowContext:
    """A run of a workflow, from inside.

    The code is run again from its history when it has to be, so it has to do the same each time: the time, chance, and
    whatever comes from outside it takes from here. Between two awaits of what stands here it must not block.
    """

    def __init__(self, instance: Instance) -> None:
        """Made by the worker."""
        self._instance = instance
        self._random = random.Random(instance.info.run_id)  # noqa: S311  (the same in each replay, on purpose)
        self.state = State(instance)
        self.log = ReplayLogger(instance)

    # -- the run ----------------------------------------------------------------------------------------------

    @property
    def run_id(self) -> str:
        """Id of the run."""
        return self._instance.info.run_id

    @property
    def workflow(self) -> str:
        """Its workflow."""
        return self._instance.info.workflow

    @property
    def version(self) -> str:
        """The version that it runs."""
        return self._instance.info.version

    @property
    def now(self) -> datetime:
        """The time of what happened last, in UTC."""
        return datetime.fromtimestamp(self._instance.time_us() / 1e6, UTC)

    @property
    def random(self) -> random.Random:
        """Chance that is the same in each replay."""
        return self._random

    def uuid(self) -> uuid.UUID:
        """A new id that is the same in each replay."""
        return uuid.UUID(int=self._random.getrandbits(128), version=4)

    @property
    def commands(self) -> int:
        """Commands that the run has given since it began or continued as new."""
        return self._instance.count - self._instance.first

    @property
    def long(self) -> bool:
        """It has given so many that it should continue as new when that suits it."""
        return self.commands >= LONG_HISTORY

    # -- what takes time --------------------------------------------------------------------------------------

    def task(
        self,
        kind: str,
        input: JsonValue = None,  # noqa: A002  (the contract's name)
        *,
        queue: str = "",
        priority: int = 0,
        delay: Seconds | None = None,
        retry: RetryPolicy | None = None,
        timeouts: Timeouts | None = None,
        labels: Mapping[str, str] | None = None,
        returns: Any = None,
    ) -> Awaitable[Any]:
        """Has a worker do something, and returns what it returns. It begins at once: await it now or later.

        Args:
            returns: a model or type that the output is made into.

        Raises (when awaited):
            StepFailed: it failed finally.
        """
        options: dict[str, Any] = {"queue": queue, "priority": priority, "retry": retry, "timeouts": timeouts}
        options |= {"delay": delay, "labels": dict(labels or {})}
        return _returning(self._instance.step(CommandType.TASK, kind, _checked(input), **options), returns)

    def child(
        self,
        workflow: str,
        input: JsonValue = None,  # noqa: A002  (the contract's name)
        *,
        version: str = "",
        on_close: Literal["cancel", "abandon"] = "cancel",
        labels: Mapping[str, str] | None = None,
        returns: Any = None,
    ) -> Awaitable[Any]:
        """Begins a run of another workflow, and returns its output.

        Args:
            on_close: what becomes of it when this run ends first, or no longer waits for it.

        Raises (when awaited):
            StepFailed: it failed or was cancelled.
        """
        options: dict[str, Any] = {"version": version, "abandon": on_close == "abandon", "labels": dict(labels or {})}
        return _returning(self._instance.step(CommandType.CHILD, workflow, _checked(input), **options), returns)

    def sleep(self, delay: Seconds) -> Awaitable[None]:
        """Waits; a timer of the service's, which outlasts worker and servers."""
        return self._instance.step(CommandType.TIMER, "", None, delay_us=max(0, round(_seconds(delay) * 1e6)))

    def promise(self, name: str, key: str = "", timeout: Seconds | None = None) -> OpenPromise:
        """Something that somebody outside will resolve or reject, by its id or key.

        Args:
            key: unique in the tenant. Default: the run's id, the name and the command's number.
            timeout: how long it waits.

        Raises (when awaited):
            StepFailed: it was rejected (with the code given there), or nothing came in time (TIMEOUT).
        """
        key = key or f"{self.run_id}/{name}/{self._instance.count + 1}"
        limit_us = round(_seconds(timeout) * 1e6) if timeout is not None else 0
        return OpenPromise(self._instance.step(CommandType.PROMISE, name, None, key=key, timeout_us=limit_us), key)

    async def signal(self, name: str, timeout: Seconds | None = None) -> JsonValue:  # noqa: ASYNC109
        """The next signal of this name, in the order they came; one that came before is kept.

        Raises:
            TimeoutError: none came in time.
        """
        if timeout is None:
            return await self._instance.signal(name)
        async with asyncio.timeout(_seconds(timeout)):
            return await self._instance.signal(name)

    async def gather(self, *awaitables: Awaitable[Any], return_exceptions: bool = False) -> list[Any]:
        """Waits for all, and returns what they return in their order. The first failure is raised at once, and what
        else was begun goes on; with `return_exceptions` failures stand among the results."""
        return list(await asyncio.gather(*awaitables, return_exceptions=return_exceptions))

    # -- what is recorded -------------------------------------------------------------------------------------

    def run(self, function: Callable[[], Any], name: str = "") -> Awaitable[JsonValue]:
        """Calls a function, sync (in a thread) or async, and records what it returns, so that a replay has it without
        calling. For what is short and from outside: a call of a service. Where the worker dies meanwhile it is called
        again.

        Raises (when awaited):
            StepFailed: it raised.
        """
        return self._instance.effect(name or getattr(function, "__name__", ""), function)

    def publish(
        self,
        item: Publishable,
        *,
        tags: Sequence[str] = (),
        visibility: Visibility | None = None,
        partition_key: str = "",
    ) -> None:
        """Publishes an artifact, which begins a cascade of its own."""
        name, payload = (type(item).__name__, item) if isinstance(item, BaseModel) else item
        options: dict[str, Any] = {"tags": list(tags), "visibility": visibility, "partition_key": partition_key}
        self._instance.emit(CommandType.PUBLISH, name, _checked(payload), **options)

    def patched(self, patch: str) -> bool:
        """For changing code while runs of it are under way: true in runs that come here for the first time, false in
        those that were past it before the patch.

            if ctx.patched("check-fraud"):
                await ctx.task("check-fraud", order)
        """
        return self._instance.patched(patch)

    # -- the end ----------------------------------------------------------------------------------------------

    @property
    def cancelled(self) -> bool:
        """The run is being cancelled: the code was told by CancelledError, and may clean up within the grace."""
        return bool(self._instance.cancel_reason)

    def continue_as_new(self, input: JsonValue = None) -> NoReturn:  # noqa: A002
        """Ends the function, and begins it anew with this input and an empty history: for what goes on for ever.
        Signals that were not taken are kept, and so is the run's version."""
        raise ContinueAsNew(_checked(input))


def _checked(value: Any) -> JsonValue:
    """The value as it will come back. Raises PayloadError here, where the code can tell, and not in the worker."""
    return plain(value)


def _returning(future: StepFuture, kind: Any) -> Awaitable[Any]:
    if kind is None:
        return future
    return _Typed(future, kind)


class _Typed:
    """A step whose output becomes a model."""

    def __init__(self, future: StepFuture, kind: Any) -> None:
        self._future = future
        self._kind = kind

    def __await__(self) -> Any:
        output = yield from self._future.__await__()
        return TypeAdapter(self._kind).validate_python(output)

    def cancel(self) -> None:
        """Cancels the step."""
        self._future.cancel()
