"""Reports of workers: many messages become one command, and what cannot be taken is refused item by item."""

from collections.abc import Iterable
from typing import Final

from google.protobuf.message import Message

from millstream.application.views.code_runs import ActivationAnswer
from millstream.application.views.reports import Completion, ReportResult, Reports, Streamed
from millstream.domain.errors import MillstreamError
from millstream.transport import validation
from millstream.transport.contract import descriptor_of
from millstream.transport.mapping import workers as mapping
from millstream.transport.mapping.code import ahead_of, answer_of
from millstream.transport.mapping.task_logs import ends_of
from millstream.transport.payloads import PayloadRules, too_large
from millstream.transport.text import TextPlan
from millstream.wire.v1 import code_pb2, worker_pb2
from millstream.wire.v1.worker_service_pb2 import WorkRequest

STREAMED_BYTES: Final = 4096
"""The largest value that a task streams: it goes to other servers as a notice, which PostgreSQL bounds."""
_ANSWER_TEXT = TextPlan.of(descriptor_of(code_pb2.ActivationAnswer))
_AHEAD_TEXT = TextPlan.of(descriptor_of(code_pb2.AnswerAhead))
_TEXT = TextPlan.of(descriptor_of(worker_pb2.Completion))


def completions(messages: Iterable[worker_pb2.Completion], rules: PayloadRules, trusted: bool) -> list[Completion]:
    """The completions, those that cannot be taken with their fault: their tasks fail instead of waiting for a worker
    that believes them done."""
    return [_completion(message, rules, trusted) for message in messages]


def _completion(message: worker_pb2.Completion, rules: PayloadRules, trusted: bool) -> Completion:
    try:
        if message.artifacts:
            _TEXT.check(message)
        rules.check_value(message.output, "output", trusted)
        for index, artifact in enumerate(message.artifacts):
            rules.check_struct(artifact.payload, f"artifacts[{index}].payload", trusted)
        return mapping.completion_of(message)
    except MillstreamError as error:
        return _faulty(message, error)


def answers(
    messages: Iterable[code_pb2.ActivationAnswer], rules: PayloadRules, trusted: bool
) -> list[ActivationAnswer]:
    """What the code of runs says; what cannot be taken with its fault, which parks the run until its code is mended."""
    return [_answer(message, rules, trusted) for message in messages]


def _answer(message: code_pb2.ActivationAnswer, rules: PayloadRules, trusted: bool) -> ActivationAnswer:
    try:
        _ANSWER_TEXT.check(message)
        return answer_of(message, rules, trusted)
    except MillstreamError as error:
        return _faulty_answer(message, error)


def _faulty_answer(message: code_pb2.ActivationAnswer, error: MillstreamError) -> ActivationAnswer:
    return ActivationAnswer(message.task_id.lower(), message.attempt, fault=error)


def _faulty(message: worker_pb2.Completion, error: MillstreamError) -> Completion:
    return Completion(message.task_id.lower(), message.attempt, fault=error)


class Collected:
    """What several messages of a worker's stream report together.

    Attributes:
        number: The highest message number.
        credit: Credit in all.
        drain: The worker takes no more.
        streamed: What its tasks stream.
        refused: Results of what could not be taken.
        log_ends: Where attempts have ended to log.
    """

    def __init__(self, rules: PayloadRules) -> None:
        self._rules = rules
        self._messages: list[WorkRequest] = []
        self._taken: list[Completion] = []
        self._answers: list[ActivationAnswer] = []
        self.streamed: list[Streamed] = []
        self.number = 0
        self.credit = 0
        self.drain = False
        self.refused: list[ReportResult] = []
        self.log_ends: list[tuple[str, int, int]] = []

    def add(self, message: WorkRequest) -> None:
        """Add a message, dropping from it what breaks the rules. Raises ValidationFailed where it is beyond that."""
        try:
            validation.check(message)
        except MillstreamError:
            self._drop_faulty(message)
            validation.check(message)
        taken = completions(message.completions, self._rules, trusted=False)
        if message.ahead:
            _put_ahead(taken, message.ahead, self._rules)
        self._taken += taken
        self._answers += answers(message.answers, self._rules, trusted=False)
        for ended in (message.completions, message.failures):
            self.log_ends += ends_of(ended)
        self._stream(message)
        self._messages.append(message)
        self.number = max(self.number, message.number)
        self.credit += message.credit
        self.drain |= message.drain

    def _stream(self, message: WorkRequest) -> None:
        for each in message.streamed:
            try:
                if len(each.value) > STREAMED_BYTES:
                    raise too_large("streamed.value", len(each.value), STREAMED_BYTES)
                self._rules.check_value(each.value, "streamed.value", trusted=False)
            except MillstreamError as error:
                self.refused.append(ReportResult(each.task_id, each.attempt, error))
            else:
                self.streamed.append(Streamed(each.task_id.lower(), each.attempt, each.index, each.value))

    def reports(self) -> Reports:
        """All of it as one command."""
        messages = self._messages
        return Reports(
            completions=tuple(self._taken),
            failures=tuple(mapping.failure_of(each) for m in messages for each in m.failures),
            progress=tuple(mapping.progress_of(each) for m in messages for each in m.progress),
            heartbeats=tuple(ref for m in messages for ref in mapping.refs_of(m.heartbeats)),
            delivered=tuple(ref for m in messages for ref in mapping.refs_of(m.delivered)),
            released=tuple(ref for m in messages for ref in mapping.refs_of(m.released)),
            answers=tuple(self._answers),
        )

    def _drop_faulty(self, message: WorkRequest) -> None:
        for items in (message.completions, message.failures, message.progress, message.answers, message.streamed):
            for index in range(len(items) - 1, -1, -1):
                error = _error_of(items[index])
                if error is not None:
                    item = items[index]
                    if isinstance(item, worker_pb2.Completion) and _names_an_attempt(item):
                        self._taken.append(_faulty(item, error))
                    elif isinstance(item, code_pb2.ActivationAnswer) and _names_an_attempt(item):
                        self._answers.append(_faulty_answer(item, error))
                    else:
                        self.refused.append(ReportResult(item.task_id, item.attempt, error))
                    del items[index]
        if message.ahead:
            # What is said ahead is taken or not: the code is asked again.
            sound = [each for each in message.ahead if _error_of(each) is None]
            del message.ahead[:]
            message.ahead.extend(sound)


def _put_ahead(taken: list[Completion], said: Iterable[code_pb2.AnswerAhead], rules: PayloadRules) -> None:
    """Put what the code of runs says ahead to the completions that it is about; what cannot be taken is left out."""
    by_lease = {(each.task_id, each.attempt): each for each in taken if each.fault is None}
    for message in said:
        completion = by_lease.get((message.task_id.lower(), message.attempt))
        if completion is None:
            continue
        try:
            _AHEAD_TEXT.check(message)
            completion.ahead = ahead_of(message, rules)
        except MillstreamError:
            continue


def _error_of(message: Message) -> MillstreamError | None:
    try:
        validation.check(message)
    except MillstreamError as error:
        return error
    return None


def _names_an_attempt(item: worker_pb2.Completion | code_pb2.ActivationAnswer) -> bool:
    return _error_of(worker_pb2.Completion(task_id=item.task_id, attempt=item.attempt)) is None
