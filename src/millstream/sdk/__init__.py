"""What users of Millstream import: an async client, a worker, and the values they speak in."""

from millstream.sdk.agent_results import Agent, AgentHistory, AgentSubscription, ServingWorker, WaitingGate
from millstream.sdk.agents import NewAgent
from millstream.sdk.artifacts import NewArtifact
from millstream.sdk.calls import Listing
from millstream.sdk.client import Client
from millstream.sdk.context import Context
from millstream.sdk.dead_letters import BulkOutcome, DeadLetters
from millstream.sdk.discovery import KindInfo, WorkerInfo
from millstream.sdk.errors import (
    AccessError,
    ConflictError,
    ConnectError,
    DeadlineError,
    FieldDetail,
    InvalidRequestError,
    MillstreamError,
    NotFoundError,
    PayloadError,
    RateLimitedError,
    ServiceError,
    StepFailed,
    TaskCancelled,
    TaskError,
    UnavailableError,
)
from millstream.sdk.executions import Execution, NewRun, Step, Triggered, WorkflowPause
from millstream.sdk.logs import TaskLogHandler
from millstream.sdk.payloads import StoredPayload
from millstream.sdk.policies import Batch, Concurrency, Join, RateLimit, RetryPolicy, Subscription, Timeouts, Visibility
from millstream.sdk.promises import Promise
from millstream.sdk.queues import Queue, Throughput
from millstream.sdk.results import (
    Artifact,
    ArtifactSummary,
    ArtifactType,
    BatchOutcome,
    CorrelationStatus,
    Failure,
    Published,
    SyncResult,
)
from millstream.sdk.run_operations import RunOutcome, RunsDone
from millstream.sdk.run_results import Attempt, Fault, Run, RunEvent, RunResult, Task
from millstream.sdk.run_watches import RunHappening, RunWatch, StreamedValue
from millstream.sdk.streams import ArtifactWatch, Streamed
from millstream.sdk.system import LogLevel, LogLevels
from millstream.sdk.task_logs import LogEntry, LogWatch
from millstream.sdk.tasks import NewTask, StuckTask
from millstream.sdk.tenants import Tenant
from millstream.sdk.worker import Worker
from millstream.sdk.workflow_context import WorkflowContext
from millstream.sdk.workflows import Applied, DefinitionCheck, Workflow, WorkflowVersion

__all__ = [
    "AccessError",
    "Agent",
    "AgentHistory",
    "AgentSubscription",
    "Applied",
    "Artifact",
    "ArtifactSummary",
    "ArtifactType",
    "ArtifactWatch",
    "Attempt",
    "Batch",
    "BatchOutcome",
    "BulkOutcome",
    "Client",
    "Concurrency",
    "ConflictError",
    "ConnectError",
    "Context",
    "CorrelationStatus",
    "DeadLetters",
    "DeadlineError",
    "DefinitionCheck",
    "Execution",
    "Failure",
    "Fault",
    "FieldDetail",
    "InvalidRequestError",
    "Join",
    "KindInfo",
    "Listing",
    "LogEntry",
    "LogLevel",
    "LogLevels",
    "LogWatch",
    "MillstreamError",
    "NewAgent",
    "NewArtifact",
    "NewRun",
    "NewTask",
    "NotFoundError",
    "PayloadError",
    "Promise",
    "Published",
    "Queue",
    "RateLimit",
    "RateLimitedError",
    "RetryPolicy",
    "Run",
    "RunEvent",
    "RunHappening",
    "RunOutcome",
    "RunResult",
    "RunWatch",
    "RunsDone",
    "ServiceError",
    "ServingWorker",
    "Step",
    "StepFailed",
    "StoredPayload",
    "Streamed",
    "StreamedValue",
    "StuckTask",
    "Subscription",
    "SyncResult",
    "Task",
    "TaskCancelled",
    "TaskError",
    "TaskLogHandler",
    "Tenant",
    "Throughput",
    "Timeouts",
    "Triggered",
    "UnavailableError",
    "Visibility",
    "WaitingGate",
    "Worker",
    "WorkerInfo",
    "Workflow",
    "WorkflowContext",
    "WorkflowPause",
    "WorkflowVersion",
]
