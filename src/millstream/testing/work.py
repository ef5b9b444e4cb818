"""Who does the tasks of a test: handlers of workers and fakes, each attempt in the time that it is said to take."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from millstream.domain.batch import Handoff
from millstream.sdk.execution import Execution
from millstream.sdk.handlers import AgentHandler, Consumes, Registry, TaskHandler
from millstream.testing.clock import Alarm, Clock
from millstream.testing.stand import Stand
from millstream.v1 import worker_pb2
from millstream.v1 import worker_service_pb2 as wire

_Fence = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Served:
    """How a kind of tasks is done: a handler, and the time that one attempt takes; None: it never ends."""

    handler: TaskHandler | AgentHandler
    takes_us: int | None = 0


def faked(kind: str, fake: Any, takes_us: int | None) -> Served:
    """A fake: a function of the input (and the Context), an exception to raise, or what to return."""
    registry = Registry()
    registry.add_task(_function(fake), kind, None)
    found = registry.handlers[kind]
    assert isinstance(found, TaskHandler)  # noqa: S101  # what add_task has just put there
    return Served(_on_the_loop(found), takes_us)


def faked_agent(name: str, consumes: Consumes, fake: Any, takes_us: int | None) -> Served:
    """The same of an agent: a function of the artifact's payload."""
    registry = Registry()
    registry.add_agent(_function(fake), consumes, (), {"name": name})
    found = registry.handlers[f"agent:{name}"]
    assert isinstance(found, AgentHandler)  # noqa: S101  # what add_agent has just put there
    return Served(_on_the_loop(replace(found, consumes={})), takes_us)


def _function(fake: Any) -> Callable[..., Any]:
    if isinstance(fake, BaseException):

        def raises(_: Any) -> Any:
            raise fake

        return raises
    if callable(fake) and _is_named(fake):
        return fake  # type: ignore[no-any-return]
    if callable(fake):

        def calls(given: Any) -> Any:
            return fake(given)

        return calls

    def returns(_: Any) -> Any:
        return fake

    return returns


def _is_named(function: Callable[..., Any]) -> bool:
    """Whether its parameters can be given by name; those of `list.append` and its like cannot."""
    try:
        kinds = [each.kind for each in inspect.signature(function).parameters.values()]
    except ValueError:
        return False
    return inspect.Parameter.POSITIONAL_ONLY not in kinds


def _on_the_loop(handler: Any) -> Any:
    """Fakes see what their test sees, so sync ones run where it does."""
    inner = handler.call

    async def here(value: Any, context: Any) -> Any:
        result = inner(value, context)
        return await result if inspect.isawaitable(result) else result

    call = replace(inner, function=here, is_async=True, input_name="value", context_name="context")
    return replace(handler, call=call, auto_heartbeat=True)


@dataclass(slots=True)
class _Attempt:
    execution: Execution
    alarm: Alarm | None = None
    running: asyncio.Task[wire.WorkRequest] | None = None


class Work:
    """Attempts at tasks.

    Attributes:
        served: Who does each kind.
    """

    def __init__(self, clock: Clock, stand: Stand) -> None:
        self.served: dict[str, Served] = {}
        self._clock = clock
        self._stand = stand
        self._attempts: dict[_Fence, _Attempt] = {}
        self._given_up: list[wire.WorkRequest] = []

    @property
    def running(self) -> list[Awaitable[wire.WorkRequest]]:
        """Attempts whose handlers run."""
        return [each.running for each in self._attempts.values() if each.running is not None]

    def begin(self, handoff: Handoff, lease: worker_pb2.Lease) -> None:
        """Begin an attempt."""
        served = self.served[handoff.task.kind]
        attempt = _Attempt(self._stand.execution(lease, served.handler))
        self._attempts[lease.task_id, lease.attempt] = attempt

        def launch() -> None:
            attempt.running = asyncio.ensure_future(self._stand.perform(attempt.execution))

        if served.takes_us:
            attempt.alarm = self._clock.after(served.takes_us, launch)
        elif served.takes_us == 0:
            launch()

    def stop(self, task_id: str, number: int, lost: bool) -> None:
        """Tell an attempt to stop, as a worker does. `lost`: what it reports would be refused."""
        attempt = self._attempts.get((task_id, number))
        if attempt is None:
            return
        execution = attempt.execution
        execution.lost = execution.lost or lost
        execution.context.cancel()
        if attempt.running is None:
            del self._attempts[task_id, number]
            if attempt.alarm is not None:
                attempt.alarm.stop()
            if not lost:
                self._given_up.append(wire.WorkRequest.FromString(execution.interrupted().frame))
        elif execution.handler.call.is_async and not execution.context.watched:
            attempt.running.cancel()

    def take_done(self) -> list[wire.WorkRequest]:
        """What attempts report that have ended, in the order they began."""
        found, self._given_up = self._given_up, []
        for fence, attempt in [*self._attempts.items()]:
            if attempt.running is not None and attempt.running.done():
                del self._attempts[fence]
                if not attempt.running.cancelled():
                    found.append(attempt.running.result())
        return found

    async def close(self) -> None:
        """End the handlers that still run."""
        running = [each.running for each in self._attempts.values() if each.running is not None]
        for each in running:
            each.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        self._attempts.clear()
