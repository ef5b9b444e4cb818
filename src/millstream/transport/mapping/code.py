"""Code-first workflows: what workers have the code of, what it is told, and what it answers."""

from typing import Any

from millstream.application.views.code_runs import ActivationAnswer
from millstream.domain.code import (
    Activation,
    CancelStep,
    CommandType,
    End,
    EndType,
    Entry,
    Given,
    History,
    Note,
    OpenPromise,
    PublishItem,
    Recorded,
    StartChild,
    StartTask,
    StartTimer,
    What,
)
from millstream.domain.errors import ValidationFailed
from millstream.domain.retry import DEFAULT_RETRY, DEFAULT_TIMEOUTS
from millstream.transport.mapping.artifacts import new_artifact
from millstream.transport.mapping.json import labels_text
from millstream.transport.mapping.policies import retry_of, timeouts_of
from millstream.transport.mapping.runs import put_error
from millstream.transport.mapping.times import duration_us, put
from millstream.transport.payloads import PayloadRules
from millstream.wire.v1 import activation_pb2, code_pb2

_MAX_CODE, _MAX_MESSAGE = 128, 4000


def put_activation(out: activation_pb2.Activation, told: Activation, attempt: int, history: History) -> None:
    """Write what a run's code is to look at; its answer's token is the attempt's number."""
    out.workflow = told.workflow
    out.version = told.version
    out.base_sequence = told.base
    out.seen_sequence = told.seen
    out.after_sequence = told.after
    out.cache_token = str(told.token) if told.token else ""
    out.answer_token = str(attempt)
    out.first_number = told.first
    out.command_count = told.count
    out.more = history.more
    put_history(out.history, history)


def put_history(out: Any, history: History) -> None:
    """Write a piece of a history."""
    for item in history.items:
        if isinstance(item, Entry):
            _put_entry(out.add().event, item)
        else:
            _put_recorded(out.add().command, item)


def _put_entry(out: activation_pb2.HistoryEvent, entry: Entry) -> None:
    out.sequence = entry.seq
    out.type = int(entry.type)  # type: ignore[assignment]
    put(out.at, entry.at_us)
    out.step = entry.step
    out.name = entry.name
    if entry.value:
        out.value = entry.value
    put_error(out.error, entry.code, entry.message)


def _put_recorded(out: activation_pb2.RecordedCommand, recorded: Recorded) -> None:
    out.number = recorded.number
    out.after_sequence = recorded.after
    out.type = int(recorded.type)  # type: ignore[assignment]
    if recorded.type is CommandType.CANCEL:
        out.step = int(recorded.name)
    else:
        out.name = recorded.name
    if recorded.value:
        out.value = recorded.value
    put_error(out.error, recorded.code, recorded.message)


def answer_of(message: code_pb2.ActivationAnswer, rules: PayloadRules, trusted: bool) -> ActivationAnswer:
    """What a run's code says. Raises ValidationFailed, PayloadTooLarge."""
    answer = ActivationAnswer(message.task_id.lower(), message.attempt, message.base_sequence)
    _put_said(answer, message, rules, trusted)
    return answer


def ahead_of(message: code_pb2.AnswerAhead, rules: PayloadRules) -> ActivationAnswer:
    """What a run's code says before it is told; its attempt is the token's. Raises ValidationFailed,
    PayloadTooLarge."""
    answer = ActivationAnswer(message.run_id.lower(), int(message.token))
    _put_said(answer, message, rules, trusted=False)
    return answer


def _put_said(
    answer: ActivationAnswer,
    message: code_pb2.ActivationAnswer | code_pb2.AnswerAhead,
    rules: PayloadRules,
    trusted: bool,
) -> None:
    for index, command in enumerate(message.commands):
        field = f"commands[{index}]"
        what = _what(command, answer, field, rules, trusted)
        answer.commands.append(Given(command.number, command.after_sequence, what))
    if message.HasField("end"):
        answer.end = _end(message.end, rules, trusted)
    answer.size_bytes = 300 + message.ByteSize()


def _what(
    command: code_pb2.WorkflowCommand, answer: ActivationAnswer, field: str, rules: PayloadRules, trusted: bool
) -> What:
    kind = command.WhichOneof("command")
    match kind:
        case "task":
            rules.check_value(command.task.input, f"{field}.task.input", trusted)
            return _task(command.task)
        case "timer":
            return StartTimer(duration_us(command.timer))
        case "child":
            rules.check_value(command.child.input, f"{field}.child.input", trusted)
            child = command.child
            return StartChild(child.workflow, child.version, child.input, child.abandon, _labels(child))
        case "promise":
            promise = command.promise
            limit_us = duration_us(promise.timeout) if promise.HasField("timeout") else 0
            return OpenPromise(promise.name, promise.key, limit_us)
        case "publish":
            rules.check_struct(command.publish.payload, f"{field}.publish.payload", trusted)
            answer.artifacts.append(new_artifact(command.publish, prefix=f"{field}.publish."))
            return PublishItem(command.publish.type, len(answer.artifacts) - 1)
        case "cancel":
            return CancelStep(command.cancel)
        case _:
            return _note(command, kind or "", field, rules, trusted)


def _note(command: code_pb2.WorkflowCommand, kind: str, field: str, rules: PayloadRules, trusted: bool) -> Note:
    match kind:
        case "record":
            record = command.record
            rules.check_value(record.value, f"{field}.record.value", trusted)
            code, text = record.error.code[:_MAX_CODE], record.error.message[:_MAX_MESSAGE]
            return Note(CommandType.RECORD, record.name, record.value, code, text)
        case "patch":
            return Note(CommandType.PATCH, command.patch)
        case "state":
            rules.check_value(command.state.value, f"{field}.state.value", trusted)
            return Note(CommandType.STATE, command.state.key, command.state.value)
        case _:
            raise ValidationFailed.of(field, "is a command that this server does not know; upgrade it", "UNKNOWN")


def _task(wanted: code_pb2.ScheduleTask) -> StartTask:
    given = wanted.HasField
    return StartTask(
        wanted.kind, wanted.input, wanted.queue, wanted.priority,
        duration_us(wanted.delay) if given("delay") else 0,
        retry_of(wanted.retry) if given("retry") else DEFAULT_RETRY,
        timeouts_of(wanted.timeouts) if given("timeouts") else DEFAULT_TIMEOUTS,
        _labels(wanted),
    )  # fmt: skip


def _labels(message: Any) -> str:
    return labels_text(dict(message.labels)) if message.labels else ""


def _end(message: code_pb2.WorkflowEnd, rules: PayloadRules, trusted: bool) -> End:
    match message.WhichOneof("end"):
        case "completed":
            rules.check_value(message.completed, "end.completed", trusted)
            return End(EndType.COMPLETED, message.completed)
        case "failed":
            failed = message.failed
            return End(EndType.FAILED, code=failed.code[:_MAX_CODE] or "ERROR", message=failed.message[:_MAX_MESSAGE])
        case "cancelled":
            return End(EndType.CANCELLED)
        case "continued":
            rules.check_value(message.continued.input, "end.continued.input", trusted)
            for index, kept in enumerate(message.continued.signals):
                rules.check_value(kept.value, f"end.continued.signals[{index}].value", trusted)
            signals = [(kept.name, kept.value) for kept in message.continued.signals]
            return End(EndType.CONTINUED, message.continued.input, signals=signals)
        case _:
            raise ValidationFailed.of("end", "is an end that this server does not know; upgrade it", "UNKNOWN")
