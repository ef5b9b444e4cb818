"""What a workflow's code asks for, and how it ended, as the contract has it."""

from typing import Any

from millstream.sdk.context import Publishable
from millstream.sdk.execution import fill_publication
from millstream.sdk.journal import Command, CommandType
from millstream.sdk.payload import fill_value
from millstream.sdk.policies import duration
from millstream.sdk.workflow_run import End, EndType
from millstream.v1 import code_pb2


def put_command(out: code_pb2.WorkflowCommand, command: Command) -> None:
    """Write a command."""
    out.number, out.after_sequence = command.number, command.after
    given = command.options
    match command.type:
        case CommandType.TASK:
            _put_task(out.task, command)
        case CommandType.TIMER:
            out.timer.FromMicroseconds(given["delay_us"])
            out.timer.SetInParent()
        case CommandType.CHILD:
            out.child.workflow, out.child.version, out.child.abandon = command.name, given["version"], given["abandon"]
            fill_value(out.child.input, command.value)
            out.child.labels.update(given["labels"])
        case CommandType.PROMISE:
            out.promise.name, out.promise.key = command.name, given["key"]
            if given["timeout_us"]:
                out.promise.timeout.FromMicroseconds(given["timeout_us"])
        case CommandType.PUBLISH:
            _put_artifact(out.publish, (command.name, command.value), given)
        case CommandType.RECORD:
            out.record.name = command.name[:255]
            out.record.error.code, out.record.error.message = command.code, command.message
            if not command.code:
                out.record.ClearField("error")
                fill_value(out.record.value, command.value)
        case CommandType.PATCH:
            out.patch = command.name
        case CommandType.STATE:
            out.state.key = command.name
            fill_value(out.state.value, command.value)
        case CommandType.CANCEL:
            out.cancel = command.step


def _put_task(out: code_pb2.ScheduleTask, command: Command) -> None:
    given = command.options
    out.kind, out.queue, out.priority = command.name, given["queue"], given["priority"]
    fill_value(out.input, command.value)
    if given["delay"] is not None:
        out.delay.CopyFrom(duration(given["delay"]))
    if given["retry"] is not None:
        out.retry.CopyFrom(given["retry"].to_wire())
    if given["timeouts"] is not None:
        out.timeouts.CopyFrom(given["timeouts"].to_wire())
    out.labels.update(given["labels"])


def _put_artifact(out: Any, item: Publishable, given: Any) -> None:
    fill_publication(out, item)
    out.tags.extend(given["tags"])
    out.partition_key = given["partition_key"]
    if given["visibility"] is not None:
        out.visibility.CopyFrom(given["visibility"].to_wire())


def put_end(out: code_pb2.WorkflowEnd, end: End) -> None:
    """Write how the code ended."""
    match end.type:
        case EndType.COMPLETED:
            fill_value(out.completed, end.value)
            out.completed.SetInParent()
        case EndType.FAILED:
            out.failed.code, out.failed.message = end.code[:128], _encodable(end.message[:4000])
            out.failed.SetInParent()
        case EndType.CANCELLED:
            out.cancelled = True
        case EndType.CONTINUED:
            fill_value(out.continued.input, end.value)
            for name, value in end.signals:
                fill_value(out.continued.signals.add(name=name).value, value)


def _encodable(text: str) -> str:
    """Messages of foreign exceptions may hold lone surrogates, which the wire refuses."""
    return text.encode("utf-8", "replace").decode()
