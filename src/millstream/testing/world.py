"""What the service does with code-first runs, in memory: events noted, activations led, commands carried out.

The rules are those of domain.code_runs; the code itself is run by the SDK's own driver, message by message as a worker
would be sent them.
"""

import asyncio
import random
import uuid
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, Final

from pydantic import ValidationError

from millstream.sdk.errors import MillstreamError
from millstream.sdk.execution import Execution, publication
from millstream.sdk.handlers import TaskHandler, WorkflowHandler
from millstream.sdk.payload import JsonValue, from_struct, from_value
from millstream.sdk.workflow_run import plain
from millstream.testing.clock import Clock
from millstream.testing.replays import failed, lead
from millstream.testing.runs import Blocked, CodeRun, Publication, Step
from millstream.testing.stand import Stand
from millstream.testing.tasks import Served, Tasks, TaskStep
from millstream.v1 import code_pb2, worker_pb2
from millstream.v1 import worker_service_pb2 as wire

GRACE_US: Final = 10_000_000
"""What a run that is cancelled has to clean up: the service's."""
PROMISE_US: Final = 30 * 86_400_000_000
"""How long a promise waits that has no timeout: the service's."""
_CASCADE_MOST: Final = 1_000
"""Artifacts of fake agents that follow from one: beyond, they publish in a circle."""


class World:
    """Runs, tasks, promises and the clock.

    Attributes:
        workflows: Versions by name, the last registered last.
        tasks: Real handlers and fakes, by kind.
        agents: Fakes, with the types that they take.
    """

    def __init__(self, start: datetime, replays: bool) -> None:
        """Needs a running event loop."""
        self.clock = Clock(start)
        self.stand = Stand()
        # Of its own: a copy of a run that is kept is not the replay's.
        self._again = Stand()
        self.workflows: dict[str, dict[str, WorkflowHandler]] = {}
        self.tasks: dict[str, Served] = {}
        self.agents: list[tuple[str, str, Callable[[Any], Any]]] = []
        self.published: list[Publication] = []
        self.runs: dict[str, CodeRun] = {}
        self._replays = replays
        self._numbers = 0
        self._random = random.Random(0)  # noqa: S311  (the same in each run of the test, on purpose)
        self._attempts = Tasks(self.clock, self.tasks.get, self._begin, self._random.random)
        self._promises: dict[str, tuple[CodeRun, int]] = {}
        self._woken = asyncio.Event()
        self._turn = asyncio.Lock()

    async def close(self) -> None:
        """End what still runs."""
        await self._attempts.close()
        self.stand.close()
        self._again.close()

    # -- going on ---------------------------------------------------------------------------------------------

    async def go_on(self, over: Callable[[], bool], limit_us: int | None = None) -> bool:
        """Do what can be done, and let time pass, up to a limit, until it is over; False where it never is."""
        async with self._turn:
            while True:
                await self._settle()
                if over():
                    return True
                if not self.clock.skip(limit_us):
                    return False

    async def settle(self) -> None:
        """Do what can be done without time. Called from within a handler or another turn, that one does it."""
        self._woken.set()
        if not self._turn.locked():
            async with self._turn:
                await self._settle()

    async def _settle(self) -> None:
        while True:
            for run in [*self.runs.values()]:
                while run.waits:
                    await self._activate(run)
            if self._attempts.take_done() or any(run.waits for run in self.runs.values()):
                continue
            if not self._attempts.running:
                return
            await self._until_something()

    async def _until_something(self) -> None:
        self._woken.clear()
        woken = asyncio.ensure_future(self._woken.wait())
        try:
            await asyncio.wait({woken, *self._attempts.running}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()

    def blocked(self) -> Blocked:
        """What every open run waits for."""
        lines = []
        for run in self.runs.values():
            if not run.ended:
                steps = ", ".join(f"{each.number}. {self._waits_for(each)}" for each in run.open.values())
                lines.append(f"run {run.run_id} of {run.workflow!r} waits for {steps or 'a signal'}")
        return Blocked("nothing can go on: " + "; ".join(lines))

    def _waits_for(self, step: Step) -> str:
        lacking = step.task is not None and step.task.kind not in self.tasks
        return f"{step.what} (no handler: give its Worker, or env.fake_task)" if lacking else step.what

    # -- runs -------------------------------------------------------------------------------------------------

    def begin(
        self, workflow: str, value: JsonValue, version: str, run_id: str = "", parent: tuple[CodeRun, int] | None = None
    ) -> CodeRun:
        """Begin a run. Raises MillstreamError: NOT_FOUND, VALIDATION_ERROR, CONFLICT."""
        versions = self.workflows.get(workflow, {})
        version = version or next(reversed(versions), "")
        handler = versions.get(version)
        if handler is None:
            known = ", ".join(f"{name}@{each}" for name, found in self.workflows.items() for each in found)
            text = f"no worker has the workflow {workflow!r}{f' in version {version!r}' if version else ''}"
            raise MillstreamError("NOT_FOUND", f"{text}; there are: {known or '(none)'}")
        value = plain(value)
        if handler.validate is not None:
            try:
                handler.validate(value)
            except ValidationError as error:
                raise MillstreamError("VALIDATION_ERROR", f"input: {error}") from None
        run_id = run_id or self._new_id()
        if run_id in self.runs:
            raise MillstreamError("CONFLICT", f"there is a run {run_id} already")
        run = self.runs[run_id] = CodeRun(run_id, workflow, version, handler, parent)
        run.note(self.clock.now_us, "STARTED", value)
        return run

    def _new_id(self) -> str:
        self._numbers += 1
        return str(uuid.UUID(int=self._numbers, version=4))

    def signal(self, run: CodeRun, name: str, value: JsonValue) -> None:
        """Have the code told of a signal. Raises MillstreamError (CONFLICT) where the run has ended."""
        if run.ended:
            raise MillstreamError("CONFLICT", f"run {run.run_id} has ended as {run.status}")
        run.note(self.clock.now_us, "SIGNALLED", plain(value), name=name)

    def cancel(self, run: CodeRun, reason: str) -> None:
        """Begin to cancel a run. Raises MillstreamError (CONFLICT) where it has ended."""
        if run.ended:
            raise MillstreamError("CONFLICT", f"run {run.run_id} has ended as {run.status}")
        if run.status == "CANCELLING":
            return
        run.status, run.code, run.message = "CANCELLING", "CANCELLED", reason or "cancelled"
        run.note(self.clock.now_us, "CANCELLING")
        event = run.events[-1][0]
        event.error.message = reason
        run.grace = self.clock.after(GRACE_US, lambda: self._end(run, "CANCELLED"))

    async def _activate(self, run: CodeRun) -> None:
        """Have the code look at what has happened, and do what it says."""
        lease = run.lease()
        base, told = run.sequence, len(run.events)
        said = await self.stand.perform(self.stand.execution(lease, run.handler))
        for failure in said.failures:
            self._end(run, "FAILED", failure.code, failure.message)
            raise failed(failure)
        if run.ended:
            return
        run.told, run.answered = told, True
        for answer in said.answers:
            for command in answer.commands:
                run.record(command)
                self._do(run, command)
            if answer.HasField("end") and run.sequence == base:
                await self._close(run, answer.end)

    async def _close(self, run: CodeRun, end: code_pb2.WorkflowEnd) -> None:
        if self._replays:
            await lead(self._again, run.handler, run.history())
        for number in [*run.open]:
            self._drop(run, number)
        kind = end.WhichOneof("end")
        if kind == "continued" and run.status == "RUNNING":
            self._begin_anew(run, end.continued)
        elif run.status == "CANCELLING":
            self._end(run, "CANCELLED")
        elif kind == "failed":
            self._end(run, "FAILED", end.failed.code, end.failed.message)
        elif kind == "completed":
            run.output = from_value(end.completed)
            self._end(run, "COMPLETED")
        else:
            self._end(run, "CANCELLED", "CANCELLED", "cancelled by its code")

    def _begin_anew(self, run: CodeRun, anew: code_pb2.ContinueAsNew) -> None:
        run.events, run.told, run.first, run.answered = [], 0, run.count, False
        run.state = {}
        run.note(self.clock.now_us, "STARTED", from_value(anew.input))
        for kept in anew.signals:
            self.signal(run, kept.name, from_value(kept.value))

    def _end(self, run: CodeRun, status: str, code: str = "", message: str = "") -> None:
        if run.ended:
            return
        if run.grace is not None:
            run.grace.stop()
        for number in [*run.open]:
            self._drop(run, number)
        run.status, run.code, run.message = status, code or run.code, message or run.message
        if run.parent is None:
            return
        parent, step = run.parent
        if status == "COMPLETED":
            self._tell(parent, step, run.output)
        else:
            self._tell(parent, step, code=run.code or status, message=f"run {run.run_id}: {run.message or status}")

    # -- commands ---------------------------------------------------------------------------------------------

    def _do(self, run: CodeRun, command: code_pb2.WorkflowCommand) -> None:
        kind, number = command.WhichOneof("command"), command.number
        match kind:
            case "task":
                self._start_task(run, number, command.task)
            case "timer":
                delay_us = max(command.timer.ToMicroseconds(), 1)
                alarm = self.clock.after(delay_us, lambda: self._tell(run, number))
                run.open[number] = Step(number, "a timer", alarm)
            case "child":
                self._start_child(run, number, command.child)
            case "promise":
                self._open_promise(run, number, command.promise)
            case "publish":
                data = command.publish
                self._publish([Publication(data.type, from_struct(data.payload), tuple(data.tags))])
            case "state":
                key, value = command.state.key, from_value(command.state.value)
                run.state.pop(key, None)
                if value is not None:
                    run.state[key] = value
            case "cancel":
                self._drop(run, command.cancel)

    def _start_task(self, run: CodeRun, number: int, wanted: code_pb2.ScheduleTask) -> None:
        task = TaskStep(run.run_id, self._new_id(), wanted)
        run.open[number] = Step(number, f"the task {wanted.kind!r}", task=task)

        def told(value: JsonValue = None, code: str = "", message: str = "") -> None:
            self._tell(run, number, value, code, message)

        delay_us = wanted.delay.ToMicroseconds()
        if delay_us:
            task.alarm = self.clock.after(delay_us, lambda: self._attempts.start(task, told))
        else:
            self._attempts.start(task, told)

    def _start_child(self, run: CodeRun, number: int, wanted: code_pb2.StartChild) -> None:
        step = run.open[number] = Step(number, f"the run of {wanted.workflow!r}", abandon=wanted.abandon)
        try:
            given = from_value(wanted.input)
            step.child = self.begin(wanted.workflow, given, wanted.version, parent=(run, number))
        except MillstreamError as error:
            self._tell(run, number, code=error.code, message=error.message)

    def _open_promise(self, run: CodeRun, number: int, wanted: code_pb2.OpenPromise) -> None:
        step = run.open[number] = Step(number, f"the promise {wanted.name!r} with key {wanted.key!r}", key=wanted.key)
        if wanted.key in self._promises:
            step.key = ""
            holder = self._promises[wanted.key][0].run_id
            text = f"the key {wanted.key!r} is that of promise {holder}, which is open"
            self._tell(run, number, code="CONFLICT", message=text)
            return
        self._promises[wanted.key] = (run, number)
        limit_us = wanted.timeout.ToMicroseconds() or PROMISE_US
        text = f"nobody settled it within {limit_us / 1e6:g} s"
        step.alarm = self.clock.after(limit_us, lambda: self._tell(run, number, code="PROMISE_TIMEOUT", message=text))

    def settle_promise(self, key: str, value: JsonValue = None, code: str = "", message: str = "") -> None:
        """Resolve a promise, or reject it with a code. Raises MillstreamError (NOT_FOUND) where none is open."""
        found = self._promises.get(key)
        if found is None:
            text = f"there is no open promise with the key {key!r}; there are: {', '.join(self._promises) or '(none)'}"
            raise MillstreamError("NOT_FOUND", text)
        self._tell(*found, plain(value), code, message)

    def _tell(self, run: CodeRun, number: int, value: JsonValue = None, code: str = "", message: str = "") -> None:
        """Have the code told of the end of a step, unless it gave that up."""
        step = run.open.pop(number, None)
        if step is None or run.ended:
            return
        self._forget(step)
        if code:
            run.note_failed(self.clock.now_us, number, code, message)
        else:
            run.note(self.clock.now_us, "COMPLETED", value, step=number)

    def _forget(self, step: Step) -> None:
        if step.alarm is not None:
            step.alarm.stop()
        if step.key:
            self._promises.pop(step.key, None)

    def _drop(self, run: CodeRun, number: int) -> None:
        """End a step that the code gave up, or left open."""
        step = run.open.pop(number, None)
        if step is None:
            return
        self._forget(step)
        if step.task is not None:
            step.task.stop()
        if step.child is not None and not step.abandon and not step.child.ended:
            self.cancel(step.child, f"run {run.run_id} does not wait for it any more")

    # -- work -------------------------------------------------------------------------------------------------

    def _begin(self, lease: worker_pb2.Lease, handler: TaskHandler) -> tuple[Execution, Any]:
        execution = self.stand.execution(lease, handler)
        return execution, self._perform(execution)

    async def _perform(self, execution: Execution) -> wire.WorkRequest:
        said = await self.stand.perform(execution)
        for completion in said.completions:
            self._publish([Publication(a.type, from_struct(a.payload), tuple(a.tags)) for a in completion.artifacts])
        return said

    def _publish(self, items: Iterable[Publication]) -> None:
        """Keep what is published, and have the fake agents that take its type publish what they make of it."""
        waiting = [*items]
        for done, item in enumerate(waiting):
            if done >= _CASCADE_MOST:
                raise MillstreamError("CASCADE_LIMIT", f"fake agents made more than {_CASCADE_MOST:,} artifacts of one")
            self.published.append(item)
            for name, type_, fake in self.agents:
                if type_ == item.type:
                    waiting += [Publication(*publication(each), by=name) for each in _listed(fake(item.payload))]


def _listed(made: Any) -> Sequence[Any]:
    if made is None:
        return ()
    return made if isinstance(made, list) else (made,)
