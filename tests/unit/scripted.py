"""A service whose answers the test writes down beforehand."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2

from millstream.v1 import (
    agent_service_pb2,
    artifact_service_pb2,
    correlation_service_pb2,
    execution_service_pb2,
    promise_service_pb2,
    queue_service_pb2,
    run_service_pb2,
    task_log_service_pb2,
    task_service_pb2,
    tenant_service_pb2,
    worker_service_pb2,
    workflow_service_pb2,
)

_SERVICES = {
    service.full_name: service
    for module in (
        agent_service_pb2,
        artifact_service_pb2,
        correlation_service_pb2,
        execution_service_pb2,
        promise_service_pb2,
        queue_service_pb2,
        run_service_pb2,
        task_log_service_pb2,
        task_service_pb2,
        tenant_service_pb2,
        worker_service_pb2,
        workflow_service_pb2,
    )
    for service in module.DESCRIPTOR.services_by_name.values()
}

Answer: TypeAlias = Any
"""A response or its fields, an `Abort`, or a function of the request that returns one of them; of a stream, several."""


@dataclass(frozen=True)
class Abort:
    """An error as the service sends it; without a reason, as a proxy does."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    fields: tuple[tuple[str, str, str], ...] = ()
    retry_after_s: float | None = None
    correlation_id: str = ""

    def raise_in(self, context: Any) -> None:
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        if self.reason:
            status.details.add().Pack(error_details_pb2.ErrorInfo(reason=self.reason, domain="millstream"))
        if self.fields:
            bad = error_details_pb2.BadRequest()
            for name, description, reason in self.fields:
                bad.field_violations.add(field=name, description=description, reason=reason)
            status.details.add().Pack(bad)
        if self.retry_after_s is not None:
            info = error_details_pb2.RetryInfo()
            info.retry_delay.FromMicroseconds(int(self.retry_after_s * 1e6))
            status.details.add().Pack(info)
        details = [("grpc-status-details-bin", status.SerializeToString())] if self.reason else []
        labels = [("x-correlation-id", self.correlation_id)] if self.correlation_id else []
        context.set_trailing_metadata((*details, *labels))
        context.abort(self.code, self.message)


@dataclass
class Call:
    """A call that came in."""

    rpc: str
    request: Any
    metadata: dict[str, str]
    remaining_s: float | None


@dataclass
class ScriptedService(grpc.GenericRpcHandler):
    """Answers each RPC with the next of its answers; the last one stays."""

    answers: dict[str, list[Answer]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    trailing: tuple[tuple[str, str], ...] = ()
    target: str = ""

    def answer(self, rpc: str, *answers: Answer) -> None:
        """What "Service/Method" answers."""
        self.answers[rpc] = list(answers)

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a method of the contract; there is none for others."""
        service, _, method = handler_call_details.method.strip("/").partition("/")
        descriptor = _SERVICES[service].methods_by_name[method]
        rpc = f"{service.removeprefix('millstream.v1.')}/{method}"
        response = GetMessageClass(descriptor.output_type)
        handler, serve = (
            (grpc.unary_stream_rpc_method_handler, self._stream)
            if descriptor.server_streaming
            else (grpc.unary_unary_rpc_method_handler, self._serve)
        )
        return handler(
            lambda request, context: serve(rpc, request, context, response),
            request_deserializer=GetMessageClass(descriptor.input_type).FromString,
            response_serializer=response.SerializeToString,
        )

    def _next(self, rpc: str, request: Any, context: Any) -> Any:
        metadata = dict(context.invocation_metadata())
        self.calls.append(Call(rpc, request, metadata, context.time_remaining()))
        answers = self.answers[rpc]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return answer(request) if isinstance(answer, Callable) else answer  # type: ignore[arg-type]

    def _stream(self, rpc: str, request: Any, context: Any, response: type[Message]) -> Iterator[Any]:
        for each in self._next(rpc, request, context):
            if isinstance(each, Abort):
                each.raise_in(context)
            yield response(**each) if isinstance(each, dict) else each

    def _serve(self, rpc: str, request: Any, context: Any, response: type[Message]) -> Any:
        answer = self._next(rpc, request, context)
        if isinstance(answer, Abort):
            answer.raise_in(context)
        if self.trailing:
            context.set_trailing_metadata(self.trailing)
        return response(**answer) if isinstance(answer, dict) else answer


def start(service: ScriptedService) -> Callable[[], None]:
    """Serves it from threads; returns what stops it."""
    pool = ThreadPoolExecutor(4)
    server = grpc.server(pool, handlers=[service])
    service.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()

    def stop() -> None:
        server.stop(0).wait()
        pool.shutdown()

    return stop
