"""What every call passes, outermost first.

    errors -> metrics and logs -> authentication -> policy -> admission -> limits, parse, rules, payloads -> handler

It is put together once per method, at registration. Nothing is parsed for a caller who may not call.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import grpc
import structlog
from google.protobuf.message import Message
from structlog.contextvars import bind_contextvars

from millstream.application.tracing import CALL_TRACE
from millstream.application.views.idempotency import Key
from millstream.domain.errors import MillstreamError, NotFound, NotImplementedHere, RateLimited
from millstream.domain.tracing import trace_id
from millstream.transport import errors, idempotency
from millstream.transport.admission import Admission
from millstream.transport.context import Context
from millstream.transport.contract import Method
from millstream.transport.ports import Authenticator, CallSpan, RpcMeter, RpcMetrics, Tracer
from millstream.transport.reading import Limits, Reader
from millstream.transport.streams import CURSOR_HEADER, CURSOR_MOST, Streams

UnaryHandler = Callable[[Any, Context], Awaitable[Message]]
"""A use case's door: the request of the twin and the call, to the answer of the twin."""
AnswersHandler = Callable[[Any, Context], AsyncGenerator[Message | bytes, None]]
"""The same with a stream of answers. It is closed when the stream ends, however that is; before each answer it says in
`context.cursor` where a caller goes on that has this one."""

_log: Final = structlog.get_logger("millstream.rpc")


class Stream(Protocol):
    """The messages of a stream in both directions, as bytes."""

    async def read(self) -> Any:
        """The next message, or grpc.aio.EOF."""
        ...

    async def write(self, message: bytes) -> None:
        """Send a message."""
        ...


StreamHandler = Callable[[Stream, Context, Reader], Awaitable[None]]
CollectHandler = Callable[[Stream, Context, Reader], Awaitable[Message]]
"""Reads a stream of requests, and answers once."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What calls pass on their way; `proxy_token` b"" trusts no proxy."""

    authenticator: Authenticator
    metrics: RpcMetrics
    limits: Limits
    proxy_token: bytes = b""
    streams: Streams = field(default_factory=Streams)
    admission: Admission = field(default_factory=Admission)
    tracer: Tracer | None = None

    def unary(self, method: Method, handler: UnaryHandler) -> "grpc.RpcMethodHandler[bytes, bytes]":
        """The gRPC handler of a method that answers once."""
        gate = _Gate(self, method)
        reader = Reader(method, self.limits)
        status = method.policy.success_status

        async def answered(raw: bytes, call: Any, context: Context) -> bytes:
            request = reader.read(raw, context.trusted)
            gate.own_tenant(request, context)
            if gate.keyed:
                context.key = _key(method, raw, call, context)
            return (await handler(request, context)).SerializeToString()

        async def serve(raw: bytes, call: Any, context: Context) -> bytes:
            gate.enter(context)
            if gate.always:  # whether it lives is told by a full server, too
                answer = await answered(raw, call, context)
            else:
                with self.admission.room(context.principal.tenant):
                    answer = await answered(raw, call, context)
            if context.rest and status:
                context.headers.setdefault("x-http-status", str(status))
            _tell(call, context)
            return answer

        async def handle(raw: bytes, call: Any) -> bytes:
            answer: bytes = await _guarded(gate, call, lambda context: serve(raw, call, context))
            return answer

        return grpc.unary_unary_rpc_method_handler(handle)

    def answers(self, method: Method, handler: AnswersHandler) -> "grpc.RpcMethodHandler[bytes, bytes]":
        """The gRPC handler of a method that answers with a stream."""
        gate = _Gate(self, method)
        reader = Reader(method, self.limits)

        async def serve(raw: bytes, call: Any, context: Context) -> None:
            gate.enter(context)
            request = reader.read(raw, context.trusted)
            gate.own_tenant(request, context)
            await self.streams.send(call, context, handler(request, context), gate.camel_case)

        async def handle(raw: bytes, call: Any) -> None:
            await _guarded(gate, call, lambda context: serve(raw, call, context))

        return grpc.unary_stream_rpc_method_handler(handle)

    def stream(self, method: Method, handler: StreamHandler) -> "grpc.RpcMethodHandler[bytes, bytes]":
        """The gRPC handler of a method that streams in both directions."""
        gate = _Gate(self, method, lasting=True)
        reader = Reader(method, self.limits)

        async def serve(call: Any, context: Context) -> None:
            gate.enter(context)
            await call.send_initial_metadata((("x-correlation-id", context.correlation_id),))
            await handler(call, context, reader)

        async def handle(_: Any, call: Any) -> None:
            await _guarded(gate, call, lambda context: serve(call, context))

        return grpc.stream_stream_rpc_method_handler(handle)

    def collect(self, method: Method, handler: CollectHandler) -> "grpc.RpcMethodHandler[bytes, bytes]":
        """The gRPC handler of a method that reads a stream and answers once."""
        gate = _Gate(self, method)
        reader = Reader(method, self.limits)
        status = method.policy.success_status

        async def serve(call: Any, context: Context) -> bytes:
            gate.enter(context)
            answer = (await handler(call, context, reader)).SerializeToString()
            if context.rest and status:
                context.headers.setdefault("x-http-status", str(status))
            _tell(call, context)
            return answer

        async def handle(_: Any, call: Any) -> bytes:
            answer: bytes = await _guarded(gate, call, lambda context: serve(call, context))
            return answer

        return grpc.stream_unary_rpc_method_handler(handle)

    def unknown(self) -> "grpc.RpcMethodHandler[bytes, bytes]":
        """The gRPC handler of methods that the contract does not have."""
        gate = _Gate(self, None)

        async def refuse(_: Context) -> None:
            raise NotImplementedHere("this version of the service has no such method")

        async def handle(_: Any, call: Any) -> None:
            await _guarded(gate, call, refuse)

        return grpc.stream_stream_rpc_method_handler(handle)


class _Gate:
    """Lets in who may call."""

    __slots__ = (
        "_authenticate",
        "_in_tenant",
        "_permission",
        "_tracer",
        "always",
        "camel_case",
        "keyed",
        "lasting",
        "meter",
        "name",
        "proxy_token",
        "public",
        "rpc",
    )

    def __init__(self, pipeline: Pipeline, method: Method | None, lasting: bool = False) -> None:
        """`lasting`: a call is a worker's connection, of which nothing in a trace tells."""
        self.rpc = method.name if method else "unknown"
        self.lasting = lasting
        self._tracer = pipeline.tracer
        name = method.path.removeprefix("/millstream.v1.") if method else "unknown"
        self.name = name
        self.meter: RpcMeter = pipeline.metrics.meter(name)
        self.proxy_token = pipeline.proxy_token
        self.keyed = bool(method and method.policy.keyed)
        self._authenticate = pipeline.authenticator.authenticate
        self._permission = method.policy.permission if method else ""
        self.public = bool(method and method.policy.public)
        self.always = self.public and name.startswith("SystemService/")
        self.camel_case = bool(method and method.camel_case)
        self._in_tenant = bool(method and method.in_tenant)

    def enter(self, context: Context) -> None:
        """Raise Unauthenticated or Forbidden unless the caller may call."""
        if not self.public:
            context.principal = self._authenticate(context.metadata)
            context.principal.require(self._permission)

    def trace(self, context: Context) -> CallSpan | None:
        """Begin the call's span, and let what it sets off go on from there."""
        if self.lasting:
            return None
        span = None if self._tracer is None else self._tracer.begin(self.name, context.trace)
        if span is not None:
            context.trace = span.traceparent
        if context.trace:
            bind_contextvars(trace_id=trace_id(context.trace))
            CALL_TRACE.set(context.trace)
        return span

    def own_tenant(self, request: Any, context: Context) -> None:
        """Raise NotFound where a request names another tenant than its caller's, whether there is one or not."""
        if self._in_tenant and request.tenant != context.principal.tenant:
            raise NotFound(
                f"there is no tenant {request.tenant!r} for this caller: the path names the tenant of its credentials, "
                "or in developer mode that of the header x-tenant"
            )


async def _guarded(gate: _Gate, call: Any, serve: Callable[[Context], Awaitable[Any]]) -> Any:
    """Serve a call; the one place where errors become statuses."""
    context = Context(gate.rpc, dict(call.invocation_metadata() or ()), gate.proxy_token, call.time_remaining)
    bind_contextvars(correlation_id=context.correlation_id, rpc=gate.rpc)
    span = gate.trace(context)
    gate.meter.begin()
    started = time.perf_counter()
    code = "OK"
    try:
        return await serve(context)
    except asyncio.CancelledError:
        # By the caller, or by its deadline; gRPC has answered, and only the count is left to do.
        code = "TIMEOUT" if context.remaining_s == 0 else "CANCELLED"
        raise
    except Exception as raised:
        error = errors.told(raised, gate.camel_case and context.rest)
        code = error.code
        if isinstance(error, errors.Internal):
            _log.exception("call failed", rpc=gate.rpc, exc_info=raised)
        elif not isinstance(error, RateLimited):
            # Without its message, which may hold what the caller sent. Nor for each call that a full server refuses:
            # to refuse has to be cheap, and they are counted.
            _log.info("call refused", rpc=gate.rpc, code=code)
    finally:
        gate.meter.end(code, time.perf_counter() - started)
        if span is not None:
            span.end(code)
    return await _abort(call, error, context)


def _tell(call: Any, context: Context) -> None:
    """Say what goes with an answer, in its trailers, which the proxy shows as headers.

    Initial metadata would take a trip of their own: 90 us of CPU, a third of a small call.
    """
    # A cascade's id takes the place of the call's label: two values would reach REST as one, "a,b".
    told = {"x-correlation-id": context.correlation_id, **context.headers}
    call.set_trailing_metadata(tuple(told.items()))


async def _abort(call: Any, error: MillstreamError, context: Context) -> None:
    metadata = errors.metadata_of(error, context.correlation_id, context.rest, trace_id(context.trace))
    # Over REST the last line of the body says it: metadata has room for the error alone.
    if context.cursor and not context.rest and len(context.cursor) <= CURSOR_MOST:
        metadata.append((CURSOR_HEADER, context.cursor))
    await call.abort(errors.STATUSES[error.code].grpc, errors.message_of(error), tuple(metadata))


def _key(method: Method, raw: bytes, call: Any, context: Context) -> Key | None:
    if not idempotency.may_have_key(context.metadata):
        return None
    value = idempotency.key_of(call.invocation_metadata())
    return None if value is None else idempotency.key(value, method.name, raw, method.public_request)
