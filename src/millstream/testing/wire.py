"""Between the messages that the SDK reads and writes and what the engine keeps, as the service's transport has it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from millstream.domain.agents import AgentSpec, Subscription
from millstream.domain.artifacts import Artifact, NewArtifact
from millstream.domain.batch import Handoff
from millstream.domain.code import (
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
    StartChild,
    StartTask,
    StartTimer,
    What,
)
from millstream.domain.lifecycle import details
from millstream.domain.retry import DEFAULT_RETRY, DEFAULT_TIMEOUTS, RetryPolicy, Timeouts
from millstream.sdk.payload import JsonValue, fill_value
from millstream.v1 import activation_pb2, agent_pb2, artifact_pb2, code_pb2, retry_pb2, worker_pb2

_NOTHING = History()
_NOTES = {"record": CommandType.RECORD, "patch": CommandType.PATCH, "state": CommandType.STATE}


def encoded(value: JsonValue) -> bytes:
    """A value in wire form. Raises PayloadError where it is no JSON."""
    made = worker_pb2.Lease()
    fill_value(made.input, value)
    return bytes_of(made.input)


def bytes_of(message: Any) -> bytes:
    """A message in wire form, the same each time."""
    return bytes(message.SerializeToString(deterministic=True))


# -- leases ----------------------------------------------------------------------------------------------------


def lease_of(handoff: Handoff, artifacts: Iterable[Artifact], history: History = _NOTHING) -> worker_pb2.Lease:
    """What a worker would be pushed."""
    task, told = handoff.task, handoff.activation
    lease = worker_pb2.Lease(
        task_id=task.id, attempt=handoff.attempt, run_id=task.run_id, kind=task.kind, queue=task.queue,
        agent=task.agent, idempotency_token=task.id, tries=task.tries + 1, max_attempts=task.retry.max_attempts,
    )  # fmt: skip
    if task.input:
        lease.input.MergeFromString(task.input)
    if task.deadline_us:
        lease.deadline.FromMicroseconds(task.deadline_us)
    lease.created_at.FromMicroseconds(task.created_us)
    for each in artifacts:
        made = lease.artifacts.add(
            id=each.id, type=each.type, produced_by=each.produced_by, correlation_id=each.run_id, tags=each.tags,
            partition_key=each.partition_key, version=each.version,
        )  # fmt: skip
        made.payload.MergeFromString(each.payload)
        made.created_at.FromMicroseconds(each.created_us)
    if told is not None:
        lease.activation.CopyFrom(activation_pb2.Activation(
            workflow=told.workflow, version=told.version, base_sequence=told.base, seen_sequence=told.seen,
            after_sequence=told.after, cache_token=str(told.token) if told.token else "",
            answer_token=str(handoff.attempt), first_number=told.first, command_count=told.count,
            history=items(history),
        ))  # fmt: skip
    return lease


def items(history: History) -> list[activation_pb2.HistoryItem]:
    """A piece of a history."""
    return [_event(each) if isinstance(each, Entry) else _recorded(each) for each in history.items]


def _event(entry: Entry) -> activation_pb2.HistoryItem:
    item = activation_pb2.HistoryItem()
    event = item.event
    event.sequence, event.step, event.name = entry.seq, entry.step, entry.name
    event.type = int(entry.type)  # type: ignore[assignment]  # the numbers are those of the contract
    event.at.FromMicroseconds(entry.at_us)
    if entry.value:
        event.value.MergeFromString(entry.value)
    _put_error(event, entry.code, entry.message)
    return item


def _recorded(given: Any) -> activation_pb2.HistoryItem:
    item = activation_pb2.HistoryItem()
    command = item.command
    command.number, command.after_sequence = given.number, given.after
    command.type = int(given.type)  # type: ignore[assignment]
    if given.type is CommandType.CANCEL:
        command.step = int(given.name)
    else:
        command.name = given.name
    if given.value:
        command.value.MergeFromString(given.value)
    _put_error(command, given.code, given.message)
    return item


def _put_error(out: Any, code: str, message: str) -> None:
    if code or message:
        out.error.code, out.error.message = code, message


# -- answers ---------------------------------------------------------------------------------------------------


def commands_of(
    answer: code_pb2.ActivationAnswer, ids: Iterable[str]
) -> tuple[list[Given], list[NewArtifact]]:  # fmt: skip
    """What the code of a run asks for, with ids for what that makes; and what it publishes."""
    artifacts: list[NewArtifact] = []
    found = []
    for command, task_id in zip(answer.commands, ids, strict=False):
        found.append(Given(command.number, command.after_sequence, _what(command, artifacts), task_id))
    return found, artifacts


def _what(command: code_pb2.WorkflowCommand, artifacts: list[NewArtifact]) -> What:
    match kind := command.WhichOneof("command"):
        case "task":
            wanted = command.task
            return StartTask(
                wanted.kind, bytes_of(wanted.input), wanted.queue, wanted.priority, wanted.delay.ToMicroseconds(),
                retry_of(wanted.retry), timeouts_of(wanted.timeouts), _labels(wanted.labels),
            )  # fmt: skip
        case "timer":
            return StartTimer(command.timer.ToMicroseconds())
        case "child":
            child = command.child
            labels = _labels(child.labels)
            return StartChild(child.workflow, child.version, bytes_of(child.input), child.abandon, labels)
        case "promise":
            promise = command.promise
            return OpenPromise(promise.name, promise.key, promise.timeout.ToMicroseconds())
        case "publish":
            artifacts.append(artifact_of(command.publish))
            return PublishItem(command.publish.type, len(artifacts) - 1)
        case "cancel":
            return CancelStep(command.cancel)
        case "patch":
            return Note(CommandType.PATCH, command.patch)
        case "state":
            return Note(CommandType.STATE, command.state.key, bytes_of(command.state.value))
        case _:
            record = command.record
            error = (record.error.code, record.error.message)
            return Note(_NOTES[str(kind)], record.name, bytes_of(record.value), *error)


def end_of(answer: code_pb2.ActivationAnswer) -> End | None:
    """How the code of a run ended, if it did."""
    end = answer.end
    match end.WhichOneof("end") if answer.HasField("end") else None:
        case None:
            return None
        case "completed":
            return End(EndType.COMPLETED, bytes_of(end.completed))
        case "failed":
            return End(EndType.FAILED, code=end.failed.code or "ERROR", message=end.failed.message)
        case "continued":
            signals = [(each.name, bytes_of(each.value)) for each in end.continued.signals]
            return End(EndType.CONTINUED, bytes_of(end.continued.input), signals=signals)
        case _:
            return End(EndType.CANCELLED)


def artifact_of(given: Any) -> NewArtifact:
    """An artifact that is published. Who may see it does not matter in a test."""
    made: artifact_pb2.Artifact = given
    return NewArtifact(
        made.type, bytes_of(made.payload), tags=tuple(made.tags), partition_key=made.partition_key
    )  # fmt: skip


def _labels(given: Any) -> str:
    return details(**dict(sorted(given.items()))) if given else ""


# -- what is registered ----------------------------------------------------------------------------------------


def agent_of(spec: agent_pb2.AgentSpec) -> AgentSpec:
    """An agent with its subscriptions that hand over each artifact by itself, whatever it holds."""
    return AgentSpec(
        spec.name, subscriptions=tuple(_subscriptions(spec.subscriptions)), outputs=tuple(spec.outputs),
        queue=spec.queue or "default", retry=retry_of(spec.retry), timeouts=timeouts_of(spec.timeouts),
    )  # fmt: skip


def _subscriptions(given: Sequence[agent_pb2.Subscription]) -> Iterable[Subscription]:
    for each in given:
        if not (each.where or each.counts or each.HasField("join") or each.HasField("batch")):
            yield Subscription(
                tuple(each.types), from_agents=tuple(each.from_agents), tags=tuple(each.tags), priority=each.priority,
                delivery=each.delivery or "broadcast", mode=each.mode or "both",
            )  # fmt: skip


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
