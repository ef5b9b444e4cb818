"""Activations in a worker's hands: runs of workflows kept alive between them, or led through their history again."""

import asyncio
import contextvars
import inspect
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.struct_pb2 import Value
from pydantic import ValidationError

from millstream.sdk.answers import put_command, put_end
from millstream.sdk.calls import Calls
from millstream.sdk.errors import MillstreamError, TaskError
from millstream.sdk.execution import MAX_REPORT_BYTES, Execution, Threads
from millstream.sdk.handlers import WorkflowHandler
from millstream.sdk.journal import Command, CommandType, Entry, EntryType, NonDeterminism
from millstream.sdk.logs import CURRENT
from millstream.sdk.outbox import Report, ahead_frame, answer_report
from millstream.sdk.payload import JsonValue, from_value
from millstream.sdk.workflow_context import WorkflowContext
from millstream.sdk.workflow_run import Instance, RunInfo, Stuck, plain
from millstream.v1 import activation_pb2, code_pb2, worker_pb2
from millstream.v1 import worker_service_pb2 as wire

_LOG: Final = logging.getLogger("millstream.worker")
AHEAD_BYTES: Final = 1024 * 1024
"""More is not said ahead: it goes beside the task's output, in one message."""


@dataclass(slots=True)
class _Kept:
    """A run in memory.

    Attributes:
        token: Of its last answer that is known to be accepted, or of the activation that is answered.
        ahead: The step of whose end its code was told before the service said so; 0: none.
    """

    token: str
    instance: Instance
    ahead: int = 0

    def taken(self) -> None:
        """What it said ahead was accepted."""
        self.token, self.ahead, self.instance.new = _following(self.token), 0, []

    def foresaw(self, told: activation_pb2.Activation) -> bool:
        """Whether the first event is the one that the code was told of."""
        if told.cache_token != self.token or not told.history:
            return False
        event = told.history[0].event
        return event.type == activation_pb2.HistoryEvent.COMPLETED and event.step == self.ahead

    def is_behind(self, step: int) -> bool:
        """Whether the code may be told of the end of this step: not before what it said ahead of another is known to be
        accepted, which a task shows that it asked for there."""
        if self.ahead and any(each.number == step for each in self.instance.new):
            self.taken()
        return not self.ahead

    def framed(self, lease: worker_pb2.Lease) -> bytes:
        """What the code says, where the service takes such ahead."""
        instance = self.instance
        if any(each.type in (CommandType.PROMISE, CommandType.PUBLISH) for each in instance.new):
            return b""
        said = code_pb2.AnswerAhead(task_id=lease.task_id, attempt=lease.attempt, run_id=lease.run_id, token=self.token)
        for command in instance.new:
            put_command(said.commands.add(), command)
            said.commands[-1].after_sequence = 0
        if instance.end is not None:
            put_end(said.end, instance.end)
        frame = ahead_frame(said)
        return frame if len(frame) <= AHEAD_BYTES else b""


def _following(token: str) -> str:
    """The token of an answer that was given ahead, behind the one of this token."""
    return str(int(token) + 1) if token.isdecimal() else ""


class LiveRuns:
    """Runs whose code stands in this worker's memory, the least recently used out first.

    Each is known by the token of its last answer: the service names the token of the last answer that it accepted, so a
    copy that went another way is never taken for the run.
    """

    def __init__(self, most: int, calls: Calls) -> None:
        """`calls` fetches histories."""
        self._most = most
        self._calls = calls
        self._runs: OrderedDict[str, _Kept] = OrderedDict()
        self._asked: set[str] = set()
        self._looking: set[tuple[str, str]] = set()

    def __len__(self) -> int:
        return len(self._runs)

    def expect(self, run_id: str) -> None:
        """An activation of the run is here: nothing goes ahead of it."""
        if run_id in self._runs:
            self._asked.add(run_id)

    def take(self, run_id: str, told: activation_pb2.Activation) -> tuple[Instance | None, bool]:
        """The run as an activation takes it to be, and whether its code was told of the first event ahead; what is
        known of it otherwise is of no use any more."""
        self._asked.discard(run_id)
        found = self._runs.pop(run_id, None)
        if found is None or not told.cache_token:
            return None, False
        if found.ahead and told.cache_token == _following(found.token):
            found.taken()
        elif found.ahead and found.foresaw(told):
            return found.instance, True
        if not found.ahead and found.token == told.cache_token:
            return found.instance, False
        found.instance.discard()
        return None, False

    def keep(self, run_id: str, token: str, instance: Instance) -> None:
        """Keep a run for its next activation."""
        self._runs[run_id] = _Kept(token, instance)
        while len(self._runs) > self._most:
            evicted, oldest = self._runs.popitem(last=False)
            self._asked.discard(evicted)
            oldest.instance.discard()

    def clear(self) -> None:
        """The worker ends."""
        for kept in self._runs.values():
            kept.instance.discard()
        self._runs.clear()

    def go_ahead(self, lease: worker_pb2.Lease, output: Value | None) -> bytes:
        """What the code of a task's run says to its completion, framed, where it waits here for nothing else; or b"".

        A run that was told ahead and cannot be sent keeps what it said for its activation. One that looked at the time
        has seen one that is not that of the event, and one that logs does that in an activation: it is led through its
        history again, and such workflows are not told ahead any more.
        """
        kept = self._runs.get(lease.run_id)
        if kept is None or lease.run_id in self._asked or not kept.is_behind(lease.step):
            return b""
        instance = kept.instance
        workflow = (instance.info.workflow, instance.info.version)
        if workflow in self._looking or not instance.waits_only_for(lease.step):
            return b""
        kept.ahead = lease.step
        try:
            sendable = instance.go_ahead(lease.step, from_value(output) if output is not None else None)
        except Exception:
            # It will do the same once it is told, and is reported then.
            instance.looked = True
            sendable = False
        if instance.looked:
            self._looking.add(workflow)
            del self._runs[lease.run_id]
            instance.discard()
            return b""
        return kept.framed(lease) if sendable else b""

    async def fetch(self, task_id: str, attempt: int, after: int, number: int) -> wire.FetchHistoryResponse:
        """A page of a history. Raises ServiceError."""
        request = wire.FetchHistoryRequest(task_id=task_id, attempt=attempt, after_sequence=after, after_number=number)
        return await self._calls.read("WorkerService/FetchHistory", request, wire.FetchHistoryResponse)


class ActivationExecution(Execution):
    """One attempt at one activation."""

    __slots__ = ("live",)
    handler: WorkflowHandler
    live: LiveRuns

    async def _attempt(self, threads: Threads) -> Report:
        told, run_id = self.lease.activation, self.lease.run_id
        self.underway = True
        instance, foreseen = self.live.take(run_id, told)
        kept = instance is not None
        if instance is None:
            info = RunInfo(run_id, told.workflow, told.version)
            instance = Instance(info, _starting(self.handler), _performing(threads), told.first_number)
        # Whatever its code logs from here on it logs in this activation.
        instance.log = self.context.attempt_log
        try:
            await self._lead(instance, whole=not kept, foreseen=foreseen)
            report = self._answer(instance)
        except NonDeterminism as error:
            instance.discard()
            raise TaskError("NON_DETERMINISM", error.message) from None
        except Stuck as error:
            instance.discard()
            raise TaskError("WORKFLOW_STUCK", str(error)) from None
        except BaseException:
            instance.discard()
            raise
        self.live.keep(run_id, told.answer_token, instance)
        return report

    async def _lead(self, instance: Instance, whole: bool, foreseen: bool) -> None:
        """Tell the code what the activation does, or all of the history where there is no copy to go on from.

        Args:
            foreseen: The code was told of the first event ahead.
        """
        told = self.lease.activation
        event: Entry | None = None
        commands: list[Command] = []
        async for item in self._items(refetch=whole and bool(told.cache_token)):
            if item.HasField("command"):
                commands.append(_command(item.command))
                continue
            if foreseen:
                await instance.catch_up(_entry(item.event))
                foreseen = False
                continue
            if event is not None:
                await instance.apply(event, commands, event.sequence <= told.seen_sequence)
            event, commands = _entry(item.event), []
        if event is not None:
            await instance.apply(event, commands, event.sequence <= told.seen_sequence)

    async def _items(self, refetch: bool) -> AsyncIterator[activation_pb2.HistoryItem]:
        told, fence = self.lease.activation, self.fence
        after, number, more = 0, 0, True
        items: Iterable[activation_pb2.HistoryItem] = ()
        if not refetch:
            items, more = told.history, told.more
        while True:
            for item in items:
                if item.HasField("event"):
                    if item.event.sequence > told.base_sequence:
                        # It came while this was fetched, and makes an activation of its own.
                        return
                    after, number = item.event.sequence, 0
                else:
                    after, number = item.command.after_sequence, item.command.number
                yield item
            if not more:
                return
            page = await self.live.fetch(fence.task_id, fence.attempt, after, number)
            items, more = page.items, page.more

    def _answer(self, instance: Instance) -> Report:
        answer = code_pb2.ActivationAnswer(
            task_id=self.fence.task_id, attempt=self.fence.attempt, base_sequence=self.lease.activation.base_sequence
        )
        commands, instance.new = instance.new, []
        for command in commands:
            put_command(answer.commands.add(), command)
        if instance.end is not None:
            put_end(answer.end, instance.end)
        report = answer_report(self.fence, answer)
        if len(report.frame) > MAX_REPORT_BYTES:
            raise TaskError(
                "PAYLOAD_TOO_LARGE",
                f"what the workflow asks for at once takes {len(report.frame):,} bytes; at most {MAX_REPORT_BYTES:,} "
                "can be sent",
            )
        return report


def _starting(handler: WorkflowHandler) -> Callable[[Instance, JsonValue], Any]:
    async def start(instance: Instance, value: JsonValue) -> JsonValue:
        if handler.validate is not None:
            try:
                value = handler.validate(value)
            except ValidationError as error:
                raise MillstreamError("INVALID_INPUT", str(error)) from None
        CURRENT.set(instance)
        return plain(await handler.call(value, WorkflowContext(instance)))

    return start


def _performing(threads: Threads) -> Callable[[Callable[[], Any]], Any]:
    """Calls side effects: sync ones in a thread, so that the worker goes on."""

    async def perform(function: Callable[[], Any]) -> Any:
        if inspect.iscoroutinefunction(function):
            return await function()
        async with threads.gate:
            run = contextvars.copy_context().run
            result = await asyncio.get_running_loop().run_in_executor(threads.pool, run, function)
        return await result if inspect.isawaitable(result) else result

    return perform


def _entry(event: activation_pb2.HistoryEvent) -> Entry:
    name = activation_pb2.HistoryEvent.Type.Name(event.type)
    at_us = event.at.seconds * 1_000_000 + event.at.nanos // 1000
    return Entry(
        event.sequence, EntryType(name), at_us, event.step, event.name, from_value(event.value), event.error.code,
        event.error.message,
    )  # fmt: skip


def _command(command: activation_pb2.RecordedCommand) -> Command:
    name = activation_pb2.RecordedCommand.Type.Name(command.type)
    return Command(
        command.number, command.after_sequence, CommandType(name), command.name, from_value(command.value),
        command.error.code, command.error.message, command.step,
    )  # fmt: skip
