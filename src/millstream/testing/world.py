"""What the service does with runs, in memory: its own use cases and rules over an engine without a database.

The code of workflows and the handlers of tasks are run by the SDK's own driver, message by message as a worker would be
sent them.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from millstream.adapters.sandbox import Sandbox
from millstream.application.advancing import Advancing, promising
from millstream.application.children import Children
from millstream.application.code_runs import CodeRuns
from millstream.application.engine.code_commands import AnswerActivation, SignalRun, StartRun
from millstream.application.engine.commands import CancelRun, Command, Complete, Fail
from millstream.application.engine.promise_commands import SettlePromise
from millstream.application.results import Results
from millstream.application.run_steps import RunSteps
from millstream.application.step_values import Evaluator
from millstream.application.workflow_runs import NewRun, WorkflowRuns
from millstream.domain.artifacts import EXTERNAL, NewArtifact
from millstream.domain.batch import Handoff
from millstream.domain.code import OpenPromise, Standing
from millstream.domain.code_runs import Answer
from millstream.domain.code_runs import NewRun as NewCodeRun
from millstream.domain.errors import LeaseLost, MillstreamError, NotFound
from millstream.domain.promises import Rejection, Resolution
from millstream.domain.publication import Produce
from millstream.domain.runs import CHILD_QUEUE, PROMISE_QUEUE, TIMER_QUEUE, Run, Task
from millstream.sdk.errors import MillstreamError as ToldError
from millstream.sdk.histories import History
from millstream.sdk.payload import JsonValue
from millstream.testing.clock import Clock
from millstream.testing.engine import LIMITS, TENANT, Engine
from millstream.testing.records import Records
from millstream.testing.registry import EXPRESSIONS, Agents, Code, Documents
from millstream.testing.replays import failed, lead
from millstream.testing.stand import Stand
from millstream.testing.wire import artifact_of, bytes_of, commands_of, encoded, end_of, items, lease_of
from millstream.testing.work import Work
from millstream.v1 import code_pb2, worker_pb2
from millstream.v1 import worker_service_pb2 as wire

WHO = "test"
"""In whose name everything is done."""
_ID_STEP = 1 << 16
"""Between two ids: those of children are made of those of tasks."""


class World:
    """Runs, tasks, promises and the clock."""

    def __init__(self, start: datetime, replays: bool) -> None:
        """Needs a running event loop."""
        self.clock = Clock(start)
        self.records = Records()
        self._stand = Stand()
        # Of its own: a copy of a run that is kept is not the replay's.
        self._again = Stand()
        self.work = Work(self.clock, self._stand)
        self._random = random.Random(0)  # noqa: S311  (the same in each run of the test, on purpose)
        self.engine = Engine(self.clock, self.records, self._serves, self._random.random)
        self._sandbox = Sandbox()
        self.documents = Documents(self._sandbox)
        self.code = Code(lambda: self.documents.names)
        self._numbers = 0
        self.agents = Agents(TENANT, self.new_id)
        self._replays = replays
        self._woken = asyncio.Event()
        self._turn = asyncio.Lock()
        self._activations: deque[Handoff] = deque()
        self._use_cases(self.engine, self.code, self.agents)

    def _use_cases(self, engine: Any, code: Any, agents: Any) -> None:
        """Those of the service, over what stands for its engine, its store and its registry here."""
        evaluator, reads = Evaluator(EXPRESSIONS, self._sandbox), self.records
        results = Results(engine, reads)
        self._advancing = Advancing(engine, self.documents, reads, evaluator, self.new_id)
        self._starting = WorkflowRuns(engine, self.documents, code, self._advancing, results, 0)
        code_runs = CodeRuns(engine, results, code, code, 0)
        children = Children(
            self.documents, self._starting, agents, agents, reads, code_runs, LIMITS.max_depth, self.new_id
        )  # fmt: skip
        self._advancing.others.append(children)
        self.steps = RunSteps(self._advancing, reads)

    def _serves(self, kind: str) -> bool:
        name, _, version = kind.removeprefix("workflow:").partition("@")
        return kind in self.work.served or version in self.code.versions.get(name, {})

    def new_id(self) -> str:
        """An id; the same ones in each run of a test."""
        self._numbers += 1
        return str(uuid.UUID(int=self._numbers * _ID_STEP, version=4))

    async def close(self) -> None:
        """End what still runs."""
        await self.work.close()
        await self._sandbox.close()
        self._stand.close()
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
        while await self._one_thing():
            pass

    async def _one_thing(self) -> bool:
        """Do the next thing; False where there is nothing left but time."""
        self._take_leases()
        if self.engine.due:
            due, self.engine.due = [*self.engine.due], {}
            await self._advancing.look_at(due)
        elif self._activations:
            await self._activate(self._activations.popleft())
        elif done := self.work.take_done():
            for said in done:
                await self._report(said)
        elif not self.engine.call_up():
            if not self.work.running:
                return False
            await self._until_something()
        return True

    def _take_leases(self) -> None:
        engine = self.engine
        begun, engine.begun = engine.begun, []
        for handoff in begun:
            if handoff.activation is not None:
                self._activations.append(handoff)
            else:
                artifacts = self.records.artifacts_with(handoff.task.artifact_ids)
                self.work.begin(handoff, lease_of(handoff, artifacts))
        stopped, engine.stopped = engine.stopped, []
        for task_id, attempt, lost in stopped:
            self.work.stop(task_id, attempt, lost)

    async def _until_something(self) -> None:
        self._woken.clear()
        woken = asyncio.ensure_future(self._woken.wait())
        try:
            await asyncio.wait({woken, *map(asyncio.ensure_future, self.work.running)}, return_when="FIRST_COMPLETED")
        finally:
            woken.cancel()

    # -- runs -------------------------------------------------------------------------------------------------

    async def begin(
        self, workflow: str, value: JsonValue, version: str, run_id: str, signal: tuple[str, JsonValue] | None,
        timeout_us: int,
    ) -> Run:  # fmt: skip
        """Begin a run, or signal the one that there is."""
        run_id = run_id or self.new_id()
        given = encoded(value)
        told = None if signal is None else (signal[0], encoded(signal[1]))
        with plainly():
            command = await self._start(workflow, version, given, run_id, timeout_us)
            if isinstance(command, StartRun):
                command.signal = told
            elif told is not None or run_id in self.records.runs:
                raise ToldError("CONFLICT", f"there is a run {run_id} already, or it takes no signals")
            self.engine.decide(command)
        return self.records.runs[run_id]

    async def _start(self, workflow: str, version: str, given: bytes, run_id: str, timeout_us: int) -> Command:
        try:
            found = await self.documents.current(TENANT, workflow, version)
        except NotFound:
            # A definition goes before code of the same name.
            version = await self.code.version_for(TENANT, workflow, version, given)
            new = NewCodeRun(workflow, version, given, timeout_us=timeout_us)
            return StartRun(run_id=run_id, tenant=TENANT, by=WHO, new=new)
        new_run = NewRun(workflow, version, given, timeout_us=timeout_us)
        return await self._starting.command(TENANT, WHO, found, new_run, run_id)

    def signal(self, run_id: str, name: str, value: JsonValue) -> None:
        """Have the code of a run told of a signal."""
        self._do(SignalRun(run_id=run_id, tenant=TENANT, name=name, value=encoded(value)))

    def cancel(self, run_id: str, reason: str) -> None:
        """Begin to cancel a run."""
        self._do(CancelRun(run_id=run_id, tenant=TENANT, reason=reason, by=WHO))

    def settle_promise(self, key: str, outcome: Resolution | Rejection) -> None:
        """Settle an open promise, by its key, its id, or its name where only one is called so."""
        open_ = [each for each in self.records.tasks.values() if each.queue == PROMISE_QUEUE and each.open]
        named = [each for each in open_ if each.kind == key]
        found = [each for each in open_ if key in (each.promise_key, each.id)] or (named if len(named) == 1 else [])
        if not found:
            known = ", ".join(each.promise_key or f"{each.kind} ({each.id})" for each in open_)
            text = f"there is no open promise with the key {key!r}; there are: {known or '(none)'}"
            raise ToldError("NOT_FOUND", text)
        self._do(SettlePromise(task_ids=(found[0].id,), tenant=TENANT, by=WHO, outcome=outcome))

    def _do(self, command: Command) -> None:
        with plainly():
            self.engine.decide(command)

    def history(self, run: Run, standing: Standing | None = None, seen: int = 0) -> History:
        """What the code of a run has seen and done since it began or continued as new."""
        now = Standing.of(run.plan)
        upto = seen if standing is not None else now.last
        standing, seen = standing or now, seen or now.seen
        told = items(self.records.history(run, 0, standing, upto))
        return History(run.id, run.workflow, run.workflow_version, standing.first, seen, told)

    def waits(self) -> str:
        """What every open run waits for."""
        lines = []
        for run in self.records.runs.values():
            if not run.finished_us:
                open_ = [each for each in self.records.tasks_of(run.id) if each.open and not each.leads]
                steps = ", ".join(f"{each.step or 1}. {self._what(each)}" for each in open_)
                name = f"{run.workflow!r}" if run.workflow else "agents"
                lines.append(f"run {run.id} of {name} waits for {steps or 'a signal'}")
        return "; ".join(lines)

    def _what(self, task: Task) -> str:
        if task.queue == TIMER_QUEUE:
            return "a timer"
        if task.queue == PROMISE_QUEUE:
            key = f" with key {task.promise_key!r}" if task.promise_key else ""
            return f"the promise {task.kind!r}{key}"
        if task.queue == CHILD_QUEUE:
            return f"the run of {task.kind.partition(':')[2]!r}"
        lacking = "" if self._serves(task.kind) else " (no handler: give its Worker, or env.fake_task)"
        return f"the task {task.kind!r}{lacking}"

    # -- what code says ---------------------------------------------------------------------------------------

    async def _activate(self, handoff: Handoff) -> None:
        """Have the code of a run look at what has happened, and do what it says."""
        told, run = handoff.activation, self.records.runs[handoff.task.run_id]
        if told is None:
            return
        standing = Standing.of(run.plan)
        lease = lease_of(handoff, (), self.records.history(run, told.after, standing, told.base))
        handler = self.code.handler(run.workflow, run.workflow_version)
        said = await self._stand.perform(self._stand.execution(lease, handler))
        for failure in said.failures:
            self._fail(failure.task_id, failure.attempt, failure.code, failure.message)
            raise failed(failure)
        for answer in said.answers:
            self._answer(answer)
            if self._replays and answer.HasField("end"):
                await lead(self._again, handler, self.history(run, standing, answer.base_sequence))

    def _answer(self, answer: code_pb2.ActivationAnswer) -> None:
        commands, artifacts = commands_of(answer, (self.new_id() for _ in answer.commands))
        said = Answer(
            answer.attempt, answer.base_sequence, commands, end_of(answer),
            [self._produce(each, EXTERNAL) for each in artifacts], [self.new_id() for _ in artifacts],
        )  # fmt: skip
        keys = [(TENANT, each.what.key) for each in commands if isinstance(each.what, OpenPromise) and each.what.key]
        try:
            self.engine.decide(AnswerActivation(run_id=answer.task_id, tenant=TENANT, said=said, promise_keys=keys))
        except LeaseLost:
            return
        except MillstreamError as error:
            self._fail(answer.task_id, answer.attempt, "INVALID_ANSWER", error.message)

    def _produce(self, new: NewArtifact, producer: str) -> Produce:
        activations = self.agents.activations(new, producer)
        return Produce(new, self.new_id(), 1, activations, [(self.new_id(), "") for _ in activations])

    # -- what tasks come to -----------------------------------------------------------------------------------

    async def _report(self, said: wire.WorkRequest) -> None:
        for completion in said.completions:
            await self._complete(completion)
        for failure in said.failures:
            retryable = failure.retryable if failure.HasField("retryable") else None
            wait_us = failure.retry_after.ToMicroseconds()
            self._fail(failure.task_id, failure.attempt, failure.code, failure.message, retryable, wait_us)

    async def _complete(self, completion: worker_pb2.Completion) -> None:
        task = self.records.tasks[completion.task_id]
        output = bytes_of(completion.output) if completion.HasField("output") else b""
        command = Complete(task_ids=(task.id,), tenant=TENANT, attempt=completion.attempt, output=output)
        if completion.artifacts and not task.agent:
            text = "a standalone task cannot publish artifacts; give its result as its output"
            self._fail(task.id, completion.attempt, "INVALID_OUTPUT", text)
            return
        command.produced = [self._produce(artifact_of(each), task.agent) for each in completion.artifacts]
        followed = None if command.produced else await self._advancing.follow(task.id, output)
        if followed is not None:
            command.follow = followed.advance
            promising(command, TENANT, followed.advance)
        try:
            changed = self.engine.decide(command)
        except MillstreamError:
            # Nobody waits for it any more.
            return
        if followed is not None and changed:
            self._advancing.completed(followed)

    def _fail(
        self, task_id: str, attempt: int, code: str, message: str, retryable: bool | None = False, wait_us: int = 0
    ) -> None:
        command = Fail(
            task_ids=(task_id,), tenant=TENANT, attempt=attempt, code=code or "ERROR", message=message,
            retryable=retryable, retry_after_us=wait_us,
        )  # fmt: skip
        try:
            self.engine.decide(command)
        except MillstreamError:
            # Nobody waits for it any more.
            return


@contextmanager
def plainly() -> Iterator[None]:
    """Errors of the service as its callers know them."""
    try:
        yield
    except MillstreamError as error:
        raise ToldError(error.code, error.message) from None
