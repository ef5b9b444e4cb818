"""Tasks of a test environment: real handlers or fakes, tried again by their policy, in time that is skipped."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.struct_pb2 import Value

from millstream.domain.retry import DEFAULT_RETRY, DEFAULT_TIMEOUTS, RetryPolicy, Timeouts
from millstream.sdk.execution import Execution
from millstream.sdk.handlers import Call, Registry, TaskHandler
from millstream.sdk.payload import JsonValue, from_value
from millstream.testing.clock import Alarm, Clock
from millstream.v1 import code_pb2, retry_pb2, worker_pb2
from millstream.v1 import worker_service_pb2 as wire

_UNIT_US = 1_000_000


@dataclass(frozen=True, slots=True)
class Served:
    """How a kind of tasks is done: a handler, and the time that one attempt takes."""

    handler: TaskHandler
    takes_us: int = 0


def faked(kind: str, fake: Any, takes_us: int) -> Served:
    """A fake: a function of the input (and the Context), an exception to raise, or what to return."""
    if isinstance(fake, BaseException):

        def plainly(_: Any) -> Any:
            raise fake

    elif callable(fake):
        plainly = fake
    else:

        def plainly(_: Any) -> Any:
            return fake

    registry = Registry()
    registry.add_task(plainly, kind, None)
    real = registry.handlers[kind]
    assert isinstance(real, TaskHandler)  # noqa: S101  # what add_task has just put there
    inner = real.call

    async def here(value: Any, context: Any) -> Any:
        result = inner(value, context)
        return await result if inspect.isawaitable(result) else result

    call = Call(here, True, "value", "context", inner.annotation)
    return Served(TaskHandler(call, True, kind, real.validate, real.spec), takes_us)


class TaskStep:
    """A task, through its attempts."""

    def __init__(self, run_id: str, task_id: str, wanted: code_pb2.ScheduleTask) -> None:
        self.run_id = run_id
        self.task_id = task_id
        self.kind = wanted.kind
        self.input: Value = wanted.input
        self.retry = retry_of(wanted.retry)
        self.limits = timeouts_of(wanted.timeouts)
        self.tries = 0
        self.ended = False
        self.running: asyncio.Task[wire.WorkRequest] | None = None
        self.execution: Execution | None = None
        self.alarm: Alarm | None = None

    def lease(self, now_us: int) -> worker_pb2.Lease:
        """Of the next attempt."""
        lease = worker_pb2.Lease(
            task_id=self.task_id, attempt=self.tries + 1, run_id=self.run_id, kind=self.kind, queue="default",
            idempotency_token=self.task_id, tries=self.tries + 1, max_attempts=self.retry.max_attempts,
        )  # fmt: skip
        lease.input.CopyFrom(self.input)
        if self.limits.start_to_close_us:
            lease.deadline.FromMicroseconds(now_us + self.limits.start_to_close_us)
        return lease

    def stop(self) -> None:
        """Nobody waits for it any more: its handler is told, and what it says is not heard."""
        self.ended = True
        if self.alarm is not None:
            self.alarm.stop()
        if self.execution is not None:
            self.execution.lost = True
            self.execution.context.cancel()
        if self.running is not None:
            self.running.cancel()


class Tasks:
    """Tasks that are open.

    Args:
        perform: runs one attempt.
        chance: a number from 0 to 1, for the jitter of waits.
    """

    def __init__(
        self,
        clock: Clock,
        served: Callable[[str], Served | None],
        begin: Callable[[worker_pb2.Lease, TaskHandler], tuple[Execution, Awaitable[wire.WorkRequest]]],
        chance: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._served = served
        self._begin = begin
        self._chance = chance
        self._running: dict[asyncio.Task[wire.WorkRequest], tuple[TaskStep, Callable[..., None]]] = {}

    @property
    def running(self) -> list["asyncio.Task[wire.WorkRequest]"]:
        """Attempts whose handler runs."""
        return [*self._running]

    def start(self, step: TaskStep, told: Callable[..., None]) -> None:
        """Begin an attempt; `told(value)` or `told(code=, message=)` once the task has ended."""
        served, limits = self._served(step.kind), step.limits
        if served is None:
            if limits.schedule_to_start_us:
                text = f"no worker took it within {limits.schedule_to_start_us / _UNIT_US:g} s"
                step.alarm = self._clock.after(
                    limits.schedule_to_start_us,
                    lambda: self._end(step, told, code="SCHEDULE_TO_START_TIMEOUT", message=text),
                )
            return
        if 0 < limits.start_to_close_us <= served.takes_us:
            text = f"the attempt took longer than {limits.start_to_close_us / _UNIT_US:g} s"
            step.alarm = self._clock.after(
                limits.start_to_close_us, lambda: self._fail(step, told, "START_TO_CLOSE_TIMEOUT", text)
            )
        elif served.takes_us:
            step.alarm = self._clock.after(served.takes_us, lambda: self._launch(step, told, served.handler))
        else:
            self._launch(step, told, served.handler)

    def _launch(self, step: TaskStep, told: Callable[..., None], handler: TaskHandler) -> None:
        step.execution, work = self._begin(step.lease(self._clock.now_us), handler)
        step.running = asyncio.ensure_future(work)
        self._running[step.running] = (step, told)

    def take_done(self) -> bool:
        """Look at the attempts that have ended, in the order they began; whether there were any."""
        done = [each for each in self._running if each.done()]
        for each in done:
            step, told = self._running.pop(each)
            if not step.ended and not each.cancelled():
                self._look(step, told, each.result())
        return bool(done)

    def _look(self, step: TaskStep, told: Callable[..., None], said: wire.WorkRequest) -> None:
        for completion in said.completions:
            self._end(step, told, from_value(completion.output))
        for failure in said.failures:
            retryable = failure.retryable if failure.HasField("retryable") else None
            wait_us = failure.retry_after.ToMicroseconds() if failure.HasField("retry_after") else 0
            self._fail(step, told, failure.code, failure.message, retryable, wait_us)

    def _fail(
        self,
        step: TaskStep,
        told: Callable[..., None],
        code: str,
        message: str,
        retryable: bool | None = None,
        wait_us: int = 0,
    ) -> None:
        """As the service does: see domain.lifecycle.fail."""
        step.tries += 1
        if retryable is False or code in step.retry.non_retryable or step.tries >= step.retry.max_attempts:
            self._end(step, told, code=code, message=message)
            return
        wait_us = max(step.retry.delay_us(step.tries, self._chance()), wait_us)
        step.alarm = self._clock.after(wait_us, lambda: self.start(step, told))

    def _end(
        self, step: TaskStep, told: Callable[..., None], value: JsonValue = None, code: str = "", message: str = ""
    ) -> None:
        step.ended = True
        told(value, code=code, message=message)

    async def close(self) -> None:
        """End the handlers that still run."""
        for each, (step, _) in self._running.items():
            step.ended = True
            each.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        self._running.clear()


def retry_of(wire_policy: retry_pb2.RetryPolicy) -> RetryPolicy:
    """The policy, with the service's defaults where nothing is given."""
    given, default = wire_policy.HasField, DEFAULT_RETRY
    initial, maximum = wire_policy.initial_interval, wire_policy.maximum_interval
    return RetryPolicy(
        initial_us=initial.ToMicroseconds() if given("initial_interval") else default.initial_us,
        factor=wire_policy.factor if given("factor") else default.factor,
        maximum_us=maximum.ToMicroseconds() if given("maximum_interval") else default.maximum_us,
        jitter=wire_policy.jitter if given("jitter") else default.jitter,
        max_attempts=wire_policy.max_attempts if given("max_attempts") else default.max_attempts,
        non_retryable=tuple(wire_policy.non_retryable_codes),
    )


def timeouts_of(wire_limits: retry_pb2.Timeouts) -> Timeouts:
    """The timeouts, with the service's defaults where nothing is given."""
    given, default = wire_limits.HasField, DEFAULT_TIMEOUTS
    start, close = wire_limits.schedule_to_start, wire_limits.start_to_close
    return Timeouts(
        schedule_to_start_us=start.ToMicroseconds() if given("schedule_to_start") else default.schedule_to_start_us,
        start_to_close_us=close.ToMicroseconds() if given("start_to_close") else default.start_to_close_us,
    )
