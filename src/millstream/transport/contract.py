"""The contract as the server reads it: its services, each method's policy, and the messages of the twin.

Requests and answers are the bytes twin's, under the public names; policies and reflection come from the public
descriptors.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from google.api import annotations_pb2, http_pb2
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from millstream.v1 import (
    agent_service_pb2,
    artifact_service_pb2,
    correlation_service_pb2,
    documentation_service_pb2,
    execution_service_pb2,
    payload_service_pb2,
    policy_pb2,
    promise_service_pb2,
    queue_service_pb2,
    run_service_pb2,
    stream_service_pb2,
    system_service_pb2,
    task_log_service_pb2,
    task_service_pb2,
    tenant_service_pb2,
    worker_service_pb2,
    workflow_service_pb2,
)
from millstream.wire.v1 import (
    agent_service_pb2 as _wire_agents,
)
from millstream.wire.v1 import (
    artifact_service_pb2 as _wire_artifacts,
)
from millstream.wire.v1 import (
    correlation_service_pb2 as _wire_correlations,
)
from millstream.wire.v1 import (
    documentation_service_pb2 as _wire_documentation,
)
from millstream.wire.v1 import (
    execution_service_pb2 as _wire_executions,
)
from millstream.wire.v1 import (
    payload_service_pb2 as _wire_payloads,
)
from millstream.wire.v1 import (
    promise_service_pb2 as _wire_promises,
)
from millstream.wire.v1 import (
    queue_service_pb2 as _wire_queues,
)
from millstream.wire.v1 import (
    run_service_pb2 as _wire_runs,
)
from millstream.wire.v1 import (
    stream_service_pb2 as _wire_streams,
)
from millstream.wire.v1 import (
    system_service_pb2 as _wire_system,
)
from millstream.wire.v1 import (
    task_log_service_pb2 as _wire_task_logs,
)
from millstream.wire.v1 import (
    task_service_pb2 as _wire_tasks,
)
from millstream.wire.v1 import (
    tenant_service_pb2 as _wire_tenants,
)
from millstream.wire.v1 import (
    worker_service_pb2 as _wire_workers,
)
from millstream.wire.v1 import (
    workflow_service_pb2 as _wire_workflows,
)

PACKAGE = "millstream.v1"
TWIN_PACKAGE = "millstream.wire.v1"
CAMEL_PATHS = "/api/tenants"
"""Below it JSON has camelCase names; see also adapters.envoy.descriptors."""

_AREAS = (
    (artifact_service_pb2, _wire_artifacts),
    (payload_service_pb2, _wire_payloads),
    (correlation_service_pb2, _wire_correlations),
    (agent_service_pb2, _wire_agents),
    (workflow_service_pb2, _wire_workflows),
    (run_service_pb2, _wire_runs),
    (task_service_pb2, _wire_tasks),
    (task_log_service_pb2, _wire_task_logs),
    (promise_service_pb2, _wire_promises),
    (queue_service_pb2, _wire_queues),
    (worker_service_pb2, _wire_workers),
    (stream_service_pb2, _wire_streams),
    (tenant_service_pb2, _wire_tenants),
    (execution_service_pb2, _wire_executions),
    (documentation_service_pb2, _wire_documentation),
    (system_service_pb2, _wire_system),
)


@dataclass(frozen=True, slots=True)
class Method:
    """A method of the contract.

    Attributes:
        name: Its name, such as "Publish".
        path: Its gRPC path, such as "/millstream.v1.ArtifactService/Publish".
        policy: What it asks of its caller.
        request: Class of its request in the twin.
        public_request: Class of its request in the contract.
        streaming: It is a stream in both directions.
        answers_stream: It answers one request with a stream.
        takes_stream: It answers a stream of requests once.
        has_rest: It has a REST path.
        camel_case: Over REST its names are in camelCase.
        in_tenant: Its request names the tenant, which has to be its caller's own.
    """

    name: str
    path: str
    policy: policy_pb2.Policy
    request: type[Message]
    public_request: type[Message]
    streaming: bool
    answers_stream: bool
    takes_stream: bool
    has_rest: bool
    camel_case: bool
    in_tenant: bool


def services() -> list[ServiceDescriptor]:
    """The services of the contract."""
    return [service for public, _ in _AREAS for service in public.DESCRIPTOR.services_by_name.values()]


def methods() -> Iterator[Method]:
    """The methods of the contract."""
    for public, wire in _AREAS:
        for service in public.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                yield _method(service, method, wire.DESCRIPTOR.message_types_by_name[method.input_type.name])


def descriptor_of(message: Message | type[Message]) -> Descriptor:
    """The descriptor of a message or its class; the stubs name it by two types of which one is hidden."""
    return cast(Descriptor, message.DESCRIPTOR)


def _path_of(rule: http_pb2.HttpRule) -> str:
    path: str = getattr(rule, rule.WhichOneof("pattern") or "get")
    return path


def _method(service: ServiceDescriptor, method: MethodDescriptor, request: Descriptor) -> Method:
    options = method.GetOptions()
    return Method(
        name=method.name,
        path=f"/{service.full_name}/{method.name}",
        policy=options.Extensions[policy_pb2.policy],
        request=message_factory.GetMessageClass(request),
        public_request=message_factory.GetMessageClass(method.input_type),
        streaming=method.client_streaming and method.server_streaming,
        answers_stream=method.server_streaming and not method.client_streaming,
        takes_stream=method.client_streaming and not method.server_streaming,
        has_rest=options.HasExtension(annotations_pb2.http),
        camel_case=_path_of(options.Extensions[annotations_pb2.http]).startswith(CAMEL_PATHS),
        in_tenant="tenant" in method.input_type.fields_by_name,
    )
