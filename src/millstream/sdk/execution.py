"""One task in a worker's hands, from its lease to the report that ends it."""

import asyncio
import contextvars
import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.struct_pb2 import Value
from pydantic import BaseModel, ValidationError

from millstream.sdk import tracing
from millstream.sdk.channel import MAX_MESSAGE_BYTES
from millstream.sdk.context import Context, Extra, Publishable
from millstream.sdk.errors import PayloadError, ServiceError, TaskCancelled, TaskError
from millstream.sdk.handlers import AgentHandler, Handler, TaskHandler, WorkflowHandler
from millstream.sdk.logs import CURRENT, trace_of
from millstream.sdk.outbox import Fence, Report, completion_report, failure_report
from millstream.sdk.payload import JsonValue, fill_struct, fill_value, from_struct, from_value
from millstream.sdk.policies import TypeRef, duration, type_name
from millstream.v1 import artifact_pb2, worker_pb2
from millstream.v1.task_log_pb2 import LogLine

MAX_REPORT_BYTES: Final = MAX_MESSAGE_BYTES - 1024 * 1024
"""A larger result could not be sent; the rest of the message stands in the megabyte left."""
_LOG: Final = logging.getLogger("millstream.worker")


Ahead = Callable[[worker_pb2.Lease, Value | None], bytes]
"""What the code of a task's run says to its output, framed, or b""."""


@dataclass(frozen=True, slots=True)
class Threads:
    """Where sync handlers run: the pool, and a gate so that none waits inside the pool unseen."""

    pool: Executor
    gate: asyncio.Semaphore


class Execution:
    """One attempt at one task."""

    __slots__ = ("_aborted", "ahead", "context", "credit", "fence", "handler", "lease", "lost", "task", "underway")

    def __init__(self, lease: worker_pb2.Lease, fence: Fence, handler: Handler, context: Context) -> None:
        self.lease = lease
        self.fence = fence
        self.handler = handler
        self.context = context
        self.task: asyncio.Task[None] | None = None
        self.underway = False
        """The handler has begun; until then the lease can be given back."""
        self.lost = False
        """The lease is no longer ours: nothing is reported."""
        self.ahead: Ahead | None = None
        """Says what follows in a run whose code this worker has."""
        self.credit = 1
        """What the server is given back when it ends; 0 where the server does not count it."""
        self._aborted = False

    def abort(self) -> None:
        """Ends the handler because the worker stops; another worker may try again."""
        self._aborted = True
        if self.task is not None:
            self.task.cancel()

    async def run(self, threads: Threads) -> Report | None:
        """Runs the handler. Returns its report; None where there is nothing to tell or nobody to tell it to."""
        try:
            report = await self._attempt(threads)
        except asyncio.CancelledError:
            report = self.interrupted()
        except Exception as error:
            report = self._failed(error)
        return None if self.lost else report

    async def _attempt(self, threads: Threads) -> Report:
        handler = self.handler
        tracing.enter(self.lease.traceparent)
        if any(artifact.payload_ref for artifact in self.lease.artifacts):
            await self._load()
        CURRENT.set(self.context)
        value = _model(handler, self.lease) if isinstance(handler, AgentHandler) else _task_input(handler, self.lease)
        call = handler.call
        if call.is_async:
            self.underway = True
            result = await call(value, self.context)
        else:
            async with threads.gate:
                self.underway = True
                run = contextvars.copy_context().run
                result = await asyncio.get_running_loop().run_in_executor(threads.pool, run, call, value, self.context)
        return self._completed(result)

    async def _load(self) -> None:
        """Puts JSON that is kept outside into its place, so that it makes no difference to the handler."""
        payloads = self.context.payloads
        for artifact in self.lease.artifacts:
            ref = artifact.payload_ref
            if not ref:
                continue
            try:
                await payloads.fill(artifact.payload, ref, int(artifact.payload_bytes))
            except PayloadError as error:
                raise InvalidInput(f"the payload {ref} of {artifact.type}: {error.message}") from error
            except ServiceError as error:
                raise TaskError(
                    error.code, f"the payload {ref} did not come: {error.message}", retryable=True
                ) from error

    def _completed(self, result: Any) -> Report:
        fence, handler = self.fence, self.handler
        completion = worker_pb2.Completion(task_id=fence.task_id, attempt=fence.attempt)
        try:
            outputs = None
            if isinstance(handler, AgentHandler):
                outputs = handler.outputs
                for item in _publishables(result):
                    _produce(completion, item, outputs)
            elif result is not None:
                fill_value(completion.output, result)
            for extra in self.context.take_extras():
                _produce_extra(completion, extra, outputs)
        except PayloadError as error:
            raise TaskError("INVALID_OUTPUT", str(error)) from error
        if last := self.context.close_log():
            completion.log_offset = last
        report = completion_report(fence, completion)
        if len(report.frame) > MAX_REPORT_BYTES:
            raise TaskError(
                "PAYLOAD_TOO_LARGE",
                f"the result is {len(report.frame):,} bytes; at most {MAX_REPORT_BYTES:,} can be sent",
            )
        if self.ahead is not None and not self.lost and not self.context.cancelling:
            said = self.ahead(self.lease, completion.output if completion.HasField("output") else None)
            return Report(fence, report.frame + said) if said else report
        return report

    def interrupted(self) -> Report:
        """The report of an attempt that was cancelled, by the service or because the worker stops."""
        if self._aborted:
            return self._failure("WORKER_STOPPED", "the worker stopped before the task ended", retryable=True)
        if self.context.cancelling:
            return self._failure("CANCELLED", "cancelled", retryable=False)
        return self._failure("CancelledError", "the handler was cancelled from within")

    def _failed(self, error: Exception) -> Report:
        if isinstance(error, TaskError):
            failure = self._failure(error.code, error.message, error.retryable, error.retry_after)
        elif isinstance(error, TaskCancelled):
            failure = self.interrupted()
        elif isinstance(error, InvalidInput):
            failure = self._failure("INVALID_INPUT", str(error), retryable=False)
        else:
            _LOG.warning(
                "%s failed in task %s, attempt %d",
                self.lease.kind,
                self.fence.task_id,
                self.lease.tries,
                exc_info=error,
            )
            log = self.context.attempt_log
            log.write(LogLine.ERROR, f"{type(error).__name__}: {error}", {"exception": trace_of(error)})
            failure = self._failure(type(error).__name__, str(error))
        return failure

    def _failure(self, code: str, message: str, retryable: bool | None = None, retry_after: Any = None) -> Report:
        failure = worker_pb2.AttemptFailure(
            task_id=self.fence.task_id,
            attempt=self.fence.attempt,
            code=code[:128],
            message=_encodable(message[:4000]),
            retryable=retryable,
            retry_after=None if retry_after is None else duration(retry_after),
            log_offset=self.context.close_log() or None,
        )
        return failure_report(self.fence, failure)


class InvalidInput(Exception):
    """What the task was given is not what its handler takes."""


def unknown_kind(lease: worker_pb2.Lease, fence: Fence) -> Report:
    """The report on a task that this worker has no handler for."""
    failure = worker_pb2.AttemptFailure(
        task_id=fence.task_id,
        attempt=fence.attempt,
        code="UNKNOWN_KIND",
        message=f"this worker has no handler for {lease.kind!r}",
        retryable=True,
    )
    return failure_report(fence, failure)


def _task_input(handler: TaskHandler | WorkflowHandler, lease: worker_pb2.Lease) -> Any:
    value = from_value(lease.input)
    if handler.validate is None:
        return value
    try:
        return handler.validate(value)
    except ValidationError as error:
        raise InvalidInput(_explain("input", error)) from error


def _model(handler: AgentHandler, lease: worker_pb2.Lease) -> Any:
    if not lease.artifacts:
        raise InvalidInput("the task carries no artifact")
    models = [_model_of(handler, artifact) for artifact in lease.artifacts]
    return models if handler.many else models[0]


def _model_of(handler: AgentHandler, artifact: artifact_pb2.Artifact) -> Any:
    payload = from_struct(artifact.payload)
    model = handler.consumes.get(artifact.type)
    if model is None:
        return payload
    try:
        return model.model_validate(payload)
    except ValidationError as error:
        text = _explain(artifact.type, error)
        if artifact.payload_ref and not payload:
            text += (
                f" (its payload, {artifact.payload_ref}, is no JSON object, or too large: ctx.payloads downloads it)"
            )
        raise InvalidInput(text) from error


def _explain(what: str, error: ValidationError) -> str:
    """The faults on one line, without the values, which may be secret."""
    faults = (
        f"{'.'.join(str(step) for step in fault['loc']) or what}: {fault['msg']}"
        for fault in error.errors(include_url=False, include_context=False, include_input=False)
    )
    return f"not a valid {what}: " + "; ".join(faults)


def _publishables(result: Any) -> Iterable[Publishable]:
    if result is None:
        return ()
    if isinstance(result, BaseModel) or (isinstance(result, tuple) and result and isinstance(result[0], str)):
        return (result,)
    if isinstance(result, Iterable) and not isinstance(result, str | bytes | dict):
        return result
    raise PayloadError(f"an agent returns models, or nothing, not {type(result).__name__}")


def _produce(
    completion: worker_pb2.Completion,
    item: Publishable | TypeRef,
    outputs: frozenset[str] | None,
    payload_ref: str = "",
) -> worker_pb2.ProducedArtifact:
    produced = completion.artifacts.add()
    fill_publication(produced, item, payload_ref)
    if outputs and produced.type not in outputs:
        raise PayloadError(
            f"{produced.type} is not among the types this agent publishes ({', '.join(sorted(outputs))})"
        )
    return produced


def _produce_extra(completion: worker_pb2.Completion, extra: Extra, outputs: frozenset[str] | None) -> None:
    produced = _produce(completion, extra.item, outputs, extra.payload_ref)
    produced.tags.extend(extra.tags)
    produced.partition_key = extra.partition_key
    if extra.visibility is not None:
        produced.visibility.CopyFrom(extra.visibility.to_wire())


def fill_publication(draft: Any, item: Publishable | TypeRef, payload_ref: str = "") -> None:
    """Puts what is to be published into a message: a type with its data, or with the reference to them.

    Raises:
        PayloadError: it is neither.
    """
    if payload_ref:
        if not isinstance(item, str | type):
            raise PayloadError("with payload_ref, give the type alone: the data are those of the reference")
        draft.type, draft.payload_ref = type_name(item), payload_ref
        return
    draft.type, data = publication(item)
    draft.payload.SetInParent()
    fill_struct(draft.payload, data)


def publication(item: Publishable | TypeRef) -> tuple[str, Mapping[str, JsonValue]]:
    """Type name and data of what is to be published.

    Raises:
        PayloadError: it is neither a model nor a type's name with its data.
    """
    if isinstance(item, BaseModel):
        return type(item).__name__, item.model_dump(mode="json", by_alias=True)
    match item:
        case (str() as name, Mapping() as data):
            return name, data
    raise PayloadError(f"publish a model, or (type name, dict), not {type(item).__name__}")


def _encodable(text: str) -> str:
    """Messages of foreign exceptions may hold lone surrogates, which the wire refuses."""
    return text.encode("utf-8", "replace").decode()
