"""The gRPC server: handlers, health, reflection, and an end without loss."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]

from millstream.transport import contract
from millstream.transport.payloads import PayloadRules
from millstream.transport.pipeline import Pipeline
from millstream.transport.reading import Reader
from millstream.transport.services.agents import AgentService
from millstream.transport.services.artifacts import ArtifactService
from millstream.transport.services.correlations import CorrelationService
from millstream.transport.services.documentation import DocumentationService
from millstream.transport.services.payloads import PayloadService
from millstream.transport.services.promises import PromiseService
from millstream.transport.services.queues import QueueService
from millstream.transport.services.runs import RunService
from millstream.transport.services.streams import StreamService
from millstream.transport.services.system import SystemService
from millstream.transport.services.task_logs import TaskLogService
from millstream.transport.services.tasks import TaskService
from millstream.transport.services.tenants import TenantService
from millstream.transport.services.workers import WorkerService
from millstream.transport.services.workflow_executions import Behind, WorkflowExecutionService
from millstream.transport.services.workflows import WorkflowService
from millstream.transport.use_cases import (
    Agents,
    Artifacts,
    CodeRuns,
    Correlations,
    DeadLetters,
    Discovery,
    Executions,
    LogIntake,
    LogWatching,
    Pages,
    Payloads,
    Promises,
    Queues,
    RunOperations,
    Runs,
    RunSteps,
    RunWatching,
    System,
    TaskLogs,
    Tasks,
    Tenants,
    Types,
    Watching,
    Workers,
    WorkflowKinds,
    WorkflowPauses,
    Workflows,
)

MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
"""gRPC's own bound, which answers without our details; ours are lower and say what they are."""
HEALTH_PERIOD_S: Final = 2.0
"""The health service asks this often whether it can serve."""

_OPTIONS: Final = (
    # Two servers on a port would share it silently.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # As many headers as the proxy lets through: by default gRPC refuses some of those over 8 KiB, at random.
    ("grpc.max_metadata_size", 64 * 1024),
    ("grpc.max_concurrent_streams", 4096),
    # From 1,000 calls on that wait to be taken, gRPC would reset some of them at random, which a caller cannot tell
    # from a lost server. Taken, they are refused with a reason; see admission.
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
)
_log: Final = structlog.get_logger("millstream.server")


@dataclass(frozen=True, slots=True)
class UseCases:
    """What the services call.

    Attributes:
        exposition: Writes the metrics in Prometheus' text format.
        leave: Says by readiness that the server is going.
        drain: Tells the connected workers that the server is going.
    """

    artifacts: Artifacts
    payloads: Payloads
    watching: Watching
    run_watching: RunWatching
    correlations: Correlations
    types: Types
    agents: Agents
    workflows: Workflows
    runs: Runs
    run_operations: RunOperations
    steps: RunSteps
    executions: Executions
    workflow_pauses: WorkflowPauses
    code_runs: CodeRuns
    tasks: Tasks
    promises: Promises
    dead_letters: DeadLetters
    queues: Queues
    workers: Workers
    log_intake: LogIntake
    task_logs: TaskLogs
    log_watching: LogWatching
    discovery: Discovery
    tenants: Tenants
    workflow_kinds: WorkflowKinds
    system: System
    pages: Pages
    exposition: Callable[[], Awaitable[bytes]]
    leave: Callable[[], None]
    drain: Callable[[], None]


def handlers(pipeline: Pipeline, use_cases: UseCases, version: str) -> dict[str, Any]:
    """The handler of each method by its path. Raises AttributeError where a service lacks a method."""
    methods = {method.path: method for method in contract.methods()}
    readers = {m.name: Reader(m, pipeline.limits) for m in methods.values()}
    services: dict[str, Any] = {
        "ArtifactService": ArtifactService(
            use_cases.artifacts, use_cases.watching, use_cases.types, readers["Publish"]
        ),
        "PayloadService": PayloadService(use_cases.payloads),
        "CorrelationService": CorrelationService(use_cases.correlations),
        "AgentService": AgentService(use_cases.agents),
        "WorkflowService": WorkflowService(
            use_cases.workflows, use_cases.executions, use_cases.workflow_pauses, readers["ExecuteWorkflow"]
        ),
        "RunService": RunService(
            use_cases.runs,
            use_cases.run_watching,
            use_cases.run_operations,
            use_cases.steps,
            use_cases.executions,
            use_cases.code_runs,
        ),
        "TaskService": TaskService(use_cases.tasks, use_cases.dead_letters, readers["CreateTask"]),
        "TaskLogService": TaskLogService(use_cases.task_logs, use_cases.log_watching),
        "PromiseService": PromiseService(use_cases.promises),
        "QueueService": QueueService(use_cases.queues),
        "WorkerService": WorkerService(
            use_cases.workers,
            use_cases.log_intake,
            use_cases.discovery,
            PayloadRules(pipeline.limits.max_payload_bytes),
            version,
        ),
        "TenantService": TenantService(use_cases.tenants),
        "WorkflowExecutionService": WorkflowExecutionService(
            Behind(
                use_cases.executions,
                use_cases.runs,
                use_cases.run_operations,
                use_cases.tasks,
                use_cases.promises,
                use_cases.discovery,
                use_cases.workflow_kinds,
                use_cases.task_logs,
            )
        ),
        "DocumentationService": DocumentationService(use_cases.pages),
        "StreamService": StreamService(use_cases.watching, use_cases.run_watching, use_cases.log_watching),
        "SystemService": SystemService(use_cases.system, version, use_cases.exposition),
    }
    out: dict[str, Any] = {}
    for path, method in methods.items():
        service = services[path.split("/")[1].rpartition(".")[2]]
        handler = getattr(service, _snake(method.name))
        out[path] = _door(pipeline, method)(method, handler)
    return out


def _door(pipeline: Pipeline, method: contract.Method) -> Callable[[contract.Method, Any], Any]:
    """How the pipeline serves a method of this shape."""
    if method.answers_stream:
        return pipeline.answers
    if method.takes_stream:
        return pipeline.collect
    return pipeline.stream if method.streaming else pipeline.unary


class _Handlers(grpc.GenericRpcHandler):
    """Finds the handler of a call; what nobody has is answered in our form."""

    def __init__(self, by_path: dict[str, Any], unknown: Any = None) -> None:
        self._by_path = by_path
        self._unknown = unknown

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._by_path.get(handler_call_details.method, self._unknown)


class Server:
    """A server on one address.

    `ready` asks whether the service can serve. At the end, calls are taken for `drain_delay_s` more, and those in
    flight get `drain_timeout_s`.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        use_cases: UseCases,
        version: str,
        ready: Callable[[], Awaitable[bool]],
        drain_timeout_s: float,
        drain_delay_s: float = 0.0,
    ) -> None:
        self._server = grpc.aio.server(options=_OPTIONS)
        self._use_cases = use_cases
        self._streams = pipeline.streams
        self._ready = ready
        self._drain_timeout_s = drain_timeout_s
        self._drain_delay_s = drain_delay_s
        self._health = health.aio.HealthServicer()
        self._watch: asyncio.Task[None] | None = None
        self._server.add_generic_rpc_handlers((_Handlers(handlers(pipeline, use_cases, version)),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = [service.full_name for service in contract.services()]
        self._names: Sequence[str] = ["", *names]
        reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server)
        self._server.add_generic_rpc_handlers((_Handlers({}, pipeline.unknown()),))

    async def start(self, address: str) -> int:
        """Listen, and return the port. Raises OSError where the address is taken."""
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: is another process using the port?") from error
        if port == 0:
            raise OSError(f"cannot listen on {address}: is another process using the port?")
        await self._say(await self._ready())
        await self._server.start()
        self._watch = asyncio.create_task(self._watch_health(), name="health")
        return port

    async def stop(self) -> None:
        """End: say so, go on until proxies have noticed, tell workers and readers of streams, take no new calls, and
        give those in flight their time.

        Whoever calls in between would be refused in a way that nobody may safely repeat; and who was told too soon
        would be sent here again.
        """
        if self._watch is not None:
            self._watch.cancel()
        # Sticks: whatever the database says later, this server is going.
        await self._health.enter_graceful_shutdown()
        self._use_cases.leave()
        _log.info("draining", delay_s=self._drain_delay_s, timeout_s=self._drain_timeout_s)
        await asyncio.sleep(self._drain_delay_s)
        self._use_cases.drain()
        self._streams.drain()
        await self._server.stop(self._drain_timeout_s)

    async def _watch_health(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_PERIOD_S)
            await self._say(await self._ready())

    async def _say(self, serving: bool) -> None:
        states = health_pb2.HealthCheckResponse
        state = states.SERVING if serving else states.NOT_SERVING
        for name in self._names:
            await self._health.set(name, state)


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
