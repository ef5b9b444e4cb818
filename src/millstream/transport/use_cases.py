"""The use cases that the services call, as the transport sees them.

`list` stands last in each class: after it, the name is the method's.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from millstream.application.log_levels import Levels
from millstream.application.log_topics import SentLine
from millstream.application.paging import Page, PageRequest
from millstream.application.payloads import Expected, Uploaded
from millstream.application.readiness import Check
from millstream.application.run_topics import RunSent
from millstream.application.views.agents import AgentDetail, AgentHistory, AgentState
from millstream.application.views.artifacts import (
    ArtifactQuery,
    CorrelationStatus,
    ListedArtifact,
    Published,
    Sent,
    Summary,
    SyncResult,
)
from millstream.application.views.batches import Batch
from millstream.application.views.code_runs import NewCodeRun, RunHistory, StartedRun
from millstream.application.views.dead_letters import BulkDone, BulkWanted, DeadLetterQuery
from millstream.application.views.idempotency import Key
from millstream.application.views.leases import Hello, Lease, LeaseRef, Push
from millstream.application.views.payloads import StoredPayload
from millstream.application.views.promises import PromiseQuery, PromiseRef, PromiseView
from millstream.application.views.queues import Ends, QueueState
from millstream.application.views.reports import ReportResult, Reports, Streamed
from millstream.application.views.runs import DoneRuns, ManyRuns, RunQuery, RunResult, RunView, StuckQuery, StuckTask
from millstream.application.views.steps import StepView
from millstream.application.views.task_logs import LogEntry, LogQuery
from millstream.application.views.tasks import CreatedTask, NewTask, TaskQuery, TaskView
from millstream.application.views.types import TypeChange, TypeSpec
from millstream.application.views.workflows import (
    Validation,
    WorkflowDetail,
    WorkflowHead,
    WorkflowPause,
    WorkflowQuery,
    WorkflowVersion,
)
from millstream.application.watches import WatchFilter
from millstream.application.workflow_kinds import KeptWorkflow, ServedKind
from millstream.application.workflow_runs import NewRun
from millstream.domain.agents import Agent, AgentSpec, ArtifactType
from millstream.domain.artifacts import Artifact, NewArtifact
from millstream.domain.code import History
from millstream.domain.errors import MillstreamError
from millstream.domain.principals import Principal
from millstream.domain.promises import NewPromise, Rejection, Resolution
from millstream.domain.runs import Attempt, Event, Run, Task
from millstream.domain.struct_wire import Json
from millstream.domain.task_logs import LogAck, LogBatch
from millstream.domain.tenants import Tenant
from millstream.domain.workers import KindQuery, KnownKind, KnownWorker, WorkerQuery


class Artifacts(Protocol):
    """Publishing artifacts and reading them back."""

    async def publish(self, principal: Principal, artifact: NewArtifact, key: Key | None) -> Published: ...
    async def publish_sync(
        self, principal: Principal, artifact: NewArtifact, key: Key | None, timeout_s: float
    ) -> SyncResult: ...
    async def publish_batch(
        self,
        principal: Principal,
        items: list[NewArtifact | MillstreamError],
        item_keys: list[Key | None],
        key: Key | None,
    ) -> Batch: ...
    async def summarize(self, principal: Principal, query: ArtifactQuery) -> Summary: ...
    async def get(self, principal: Principal, artifact_id: str) -> Artifact: ...
    async def list(
        self, principal: Principal, query: ArtifactQuery, page: PageRequest, embed_meta: bool
    ) -> Page[ListedArtifact]: ...


class Payloads(Protocol):
    """Large payloads, up and down."""

    def transfer(self, principal: Principal) -> AbstractContextManager[None]: ...
    async def upload(
        self, principal: Principal, content: AsyncIterable[bytes], media_type: str, expected: Expected
    ) -> Uploaded: ...
    async def get(self, principal: Principal, sha256: bytes, lease: LeaseRef | None) -> StoredPayload: ...
    def read(self, found: StoredPayload, offset: int, length: int | None) -> AsyncIterator[bytes]: ...


class Watching(Protocol):
    """Watching what is published."""

    def watch(self, principal: Principal, wanted: WatchFilter, cursor: str) -> AsyncGenerator[Sent, None]: ...


class RunWatching(Protocol):
    """Watching what happens in runs."""

    def watch(
        self, principal: Principal, run_id: str, cursor: str = "", *, deep: bool = False, tasks: bool = False
    ) -> AsyncGenerator[RunSent, None]: ...


class Correlations(Protocol):
    """Cascades as a whole."""

    async def status(self, principal: Principal, correlation_id: str) -> CorrelationStatus: ...
    def export(self, principal: Principal, correlation_id: str, cursor: str) -> AsyncGenerator[list[Sent], None]: ...


class Types(Protocol):
    """Types of artifacts."""

    async def create(self, principal: Principal, spec: TypeSpec, key: Key | None) -> tuple[ArtifactType, bool]: ...
    async def get(self, principal: Principal, name: str, version: int | None) -> ArtifactType: ...
    async def update(self, principal: Principal, change: TypeChange, key: Key | None) -> tuple[ArtifactType, bool]: ...
    async def versions(self, principal: Principal, name: str, page: PageRequest) -> Page[ArtifactType]: ...
    async def list(self, principal: Principal, page: PageRequest) -> Page[ArtifactType]: ...


class Agents(Protocol):
    """Agents; the flag beside one is whether it is the answer of an earlier call."""

    async def create(self, principal: Principal, spec: AgentSpec, key: Key | None) -> tuple[AgentState, bool]: ...
    async def update(
        self,
        principal: Principal,
        id_or_name: str,
        spec: AgentSpec,
        expected: int | None,
        key: Key | None,
        read_id: str = "",
    ) -> tuple[AgentState, bool]: ...
    async def delete(self, principal: Principal, id_or_name: str, key: Key | None) -> bool: ...
    async def pause(
        self, principal: Principal, id_or_name: str, reason: str, key: Key | None
    ) -> tuple[AgentState, bool]: ...
    async def resume(self, principal: Principal, id_or_name: str, key: Key | None) -> tuple[AgentState, bool]: ...
    async def run(
        self, principal: Principal, id_or_name: str, inputs: Sequence[NewArtifact], key: Key | None, timeout_s: float
    ) -> SyncResult: ...
    async def get(self, principal: Principal, id_or_name: str) -> AgentState: ...
    async def detail(self, principal: Principal, agent: Agent) -> AgentDetail: ...
    async def history(self, principal: Principal, id_or_name: str) -> tuple[Agent, AgentHistory]: ...
    async def list(
        self, principal: Principal, page: PageRequest, name: str, status: str | None
    ) -> Page[AgentState]: ...


class Workflows(Protocol):
    """Workflows; the flag beside one is whether it is the answer of an earlier call."""

    def schema(self) -> bytes: ...
    async def validate(self, principal: Principal, given: Mapping[str, Json]) -> Validation: ...
    async def create(
        self, principal: Principal, given: Mapping[str, Json], key: Key | None
    ) -> tuple[WorkflowDetail, bool]: ...
    async def update(
        self, principal: Principal, id_or_name: str, given: Mapping[str, Json], expected: int | None, key: Key | None
    ) -> tuple[WorkflowDetail, bool]: ...
    async def delete(self, principal: Principal, id_or_name: str, key: Key | None) -> bool: ...
    async def get(self, principal: Principal, id_or_name: str) -> WorkflowDetail: ...
    async def version(self, principal: Principal, id_or_name: str, version: int) -> WorkflowVersion: ...
    async def versions(self, principal: Principal, id_or_name: str, page: PageRequest) -> Page[WorkflowVersion]: ...
    async def list(self, principal: Principal, query: WorkflowQuery, page: PageRequest) -> Page[WorkflowHead]: ...


class Runs(Protocol):
    """Runs, their events and tasks."""

    async def view(self, principal: Principal, run_id: str) -> RunView: ...
    async def children(self, principal: Principal, run_id: str, page: PageRequest) -> Page[Run]: ...
    async def events(
        self, principal: Principal, run_id: str, after_seq: int, limit: int
    ) -> tuple[list[Event], int | None]: ...
    async def tasks(self, principal: Principal, query: TaskQuery, page: PageRequest) -> Page[Task]: ...
    async def cancel(self, principal: Principal, run_id: str, reason: str, key: Key | None) -> tuple[Run, bool]: ...
    async def list(self, principal: Principal, query: RunQuery, page: PageRequest) -> Page[Run]: ...


class Executions(Protocol):
    """Runs of workflows."""

    def now_us(self) -> int: ...
    async def execute(self, principal: Principal, new: NewRun, key: Key | None) -> RunResult: ...
    async def execute_sync(self, principal: Principal, new: NewRun, key: Key | None, timeout_s: float) -> RunResult: ...
    async def execute_batch(
        self,
        principal: Principal,
        items: list[NewRun | MillstreamError],
        item_keys: list[Key | None],
        key: Key | None,
    ) -> Batch: ...
    async def result(self, principal: Principal, run_id: str, timeout_s: float) -> RunResult: ...


class WorkflowPauses(Protocol):
    """Workflows that are held; the flag beside one is whether it is the answer of an earlier call."""

    async def pause(
        self, principal: Principal, id_or_name: str, reason: str, key: Key | None
    ) -> tuple[WorkflowPause, bool]: ...
    async def resume(self, principal: Principal, id_or_name: str, key: Key | None) -> tuple[str, bool]: ...
    async def list(self, principal: Principal) -> Sequence[WorkflowPause]: ...


class RunSteps(Protocol):
    """The steps of runs that follow workflows."""

    async def list(self, principal: Principal, run_id: str, page: PageRequest) -> Page[StepView]: ...


class RunOperations(Protocol):
    """What operators do to runs; the flag beside one is whether it is the answer of an earlier call."""

    async def retry(
        self, principal: Principal, run_id: str, note: str, from_step: str, key: Key | None
    ) -> tuple[Run, bool]: ...
    async def rerun(self, principal: Principal, run_id: str, version: str, key: Key | None) -> tuple[Run, bool]: ...
    async def pause(self, principal: Principal, run_id: str, reason: str, key: Key | None) -> tuple[Run, bool]: ...
    async def resume(self, principal: Principal, run_id: str, key: Key | None) -> tuple[Run, bool]: ...
    async def retry_many(self, principal: Principal, many: ManyRuns, key: Key | None) -> DoneRuns: ...
    async def cancel_many(self, principal: Principal, many: ManyRuns, key: Key | None) -> DoneRuns: ...


class CodeRuns(Protocol):
    """Code-first runs, and the results of all."""

    async def start(self, principal: Principal, new: NewCodeRun, key: Key | None, wait_s: float) -> StartedRun: ...
    async def signal(
        self, principal: Principal, run_id: str, name: str, value: bytes, key: Key | None
    ) -> tuple[int, bool]: ...
    async def state(self, principal: Principal, run_id: str) -> dict[str, bytes]: ...
    async def history(self, principal: Principal, run_id: str, after: int, number: int) -> RunHistory: ...


class Tasks(Protocol):
    """Tasks and their attempts."""

    async def create(self, principal: Principal, task: NewTask, key: Key | None) -> CreatedTask: ...
    async def create_batch(
        self,
        principal: Principal,
        items: list[NewTask | MillstreamError],
        item_keys: list[Key | None],
        key: Key | None,
    ) -> Batch: ...
    async def get(self, principal: Principal, task_id: str) -> TaskView: ...
    async def cancel(self, principal: Principal, task_id: str, reason: str, key: Key | None) -> TaskView: ...
    async def attempts(
        self, principal: Principal, task_id: str, after: int, limit: int, run_id: str = ""
    ) -> tuple[list[Attempt], int | None]: ...
    async def stuck(
        self, principal: Principal, query: StuckQuery, size: int, page_token: str
    ) -> tuple[list[StuckTask], str]: ...
    async def list(self, principal: Principal, query: TaskQuery, page: PageRequest) -> Page[Task]: ...


class Promises(Protocol):
    """Promises."""

    async def create(self, principal: Principal, new: NewPromise, key: Key | None) -> PromiseView: ...
    async def get(self, principal: Principal, ref: PromiseRef) -> PromiseView: ...
    async def settle(
        self, principal: Principal, ref: PromiseRef, outcome: Resolution | Rejection, key: Key | None
    ) -> PromiseView: ...
    async def cancel(self, principal: Principal, ref: PromiseRef, reason: str, key: Key | None) -> PromiseView: ...
    async def wait(
        self, principal: Principal, ref: PromiseRef, timeout_s: float, fail_on_timeout: bool
    ) -> PromiseView: ...
    async def list(self, principal: Principal, query: PromiseQuery, page: PageRequest) -> Page[Task]: ...


class DeadLetters(Protocol):
    """Finally failed tasks."""

    async def retry(self, principal: Principal, wanted: BulkWanted, key: Key | None) -> BulkDone: ...
    async def drop(self, principal: Principal, wanted: BulkWanted, key: Key | None) -> BulkDone: ...
    async def list(self, principal: Principal, query: DeadLetterQuery, page: PageRequest) -> Page[Task]: ...


class Queues(Protocol):
    """Queues; the flag beside one is whether it is the answer of an earlier call."""

    async def pause(
        self, principal: Principal, queue: str, reason: str, key: Key | None
    ) -> tuple[QueueState, bool]: ...
    async def resume(self, principal: Principal, queue: str, key: Key | None) -> tuple[QueueState, bool]: ...
    async def throughput(self, principal: Principal) -> Ends: ...
    async def list(self, principal: Principal, page: PageRequest) -> Page[QueueState]: ...


class WorkerSession(Protocol):
    """A connected worker."""

    @property
    def id(self) -> str: ...
    @property
    def held(self) -> tuple[LeaseRef, ...]: ...
    @property
    def lease_s(self) -> float: ...
    def heard(self) -> None: ...
    def add_credit(self, count: int) -> None: ...
    def drain(self) -> None: ...
    def stream(self, streamed: Sequence[Streamed]) -> None: ...
    async def report(self, reports: Reports) -> list[ReportResult]: ...
    async def close(self) -> None: ...


class Workers(Protocol):
    """Workers: the connected ones, and those that poll."""

    async def open(self, principal: Principal, hello: Hello, push: Push) -> WorkerSession: ...
    async def poll(
        self,
        principal: Principal,
        worker_id: str,
        name: str,
        kinds: tuple[str, ...],
        queues: tuple[str, ...],
        max_tasks: int,
        wait_s: float,
    ) -> list[Lease]: ...
    async def report(self, principal: Principal, reports: Reports) -> list[ReportResult]: ...
    async def history(self, principal: Principal, ref: LeaseRef, after: int, number: int) -> History: ...


class LogSource(Protocol):
    """One who sends lines of tasks."""

    def put(self, batches: Sequence[tuple[str, bytes]]) -> None: ...
    def ended(self, ends: Sequence[tuple[str, int, int]]) -> None: ...
    async def room(self) -> None: ...
    async def settled(self) -> None: ...
    def close(self) -> None: ...


class LogIntake(Protocol):
    """Takes in what tasks log."""

    @property
    def drained(self) -> asyncio.Event: ...
    def now_us(self) -> int: ...
    def open(
        self, principal: Principal, read: Callable[[bytes], LogBatch], told: Callable[[list[LogAck]], None]
    ) -> LogSource: ...


class LogWatching(Protocol):
    """Watching what tasks log."""

    def watch(self, principal: Principal, query: LogQuery, cursor: str) -> AsyncGenerator[SentLine, None]: ...


class TaskLogs(Protocol):
    """Reading what tasks log."""

    async def of_task(
        self, principal: Principal, query: LogQuery, page: PageRequest, run_id: str = ""
    ) -> Page[LogEntry]: ...
    async def of_run(self, principal: Principal, query: LogQuery, page: PageRequest) -> Page[LogEntry]: ...


class Discovery(Protocol):
    """Who the workers are, and what they serve."""

    async def workers(self, principal: Principal, query: WorkerQuery, page: PageRequest) -> Page[KnownWorker]: ...
    async def worker(self, principal: Principal, worker_id: str) -> KnownWorker: ...
    async def kinds(self, principal: Principal, query: KindQuery, page: PageRequest) -> Page[KnownKind]: ...


class Tenants(Protocol):
    """Tenants; the flag beside one is whether it is the answer of an earlier call."""

    async def create(
        self, principal: Principal, slug: str, name: str, labels: str, key: Key | None
    ) -> tuple[Tenant, bool]: ...
    async def get(self, principal: Principal, slug: str) -> Tenant: ...
    async def list(self, principal: Principal, page: PageRequest) -> Page[Tenant]: ...


class WorkflowKinds(Protocol):
    """Which workflows there are to begin, and kinds of tasks."""

    async def task_kind(self, principal: Principal, name: str) -> ServedKind: ...
    async def get(self, principal: Principal, name: str) -> KeptWorkflow | ServedKind: ...
    async def list(self, principal: Principal, page: PageRequest) -> Page[KeptWorkflow | ServedKind]: ...


class Pages(Protocol):
    """What describes the API."""

    def openapi(self) -> bytes: ...
    def file(self, name: str) -> tuple[str, bytes]: ...


class System(Protocol):
    """How the service is."""

    async def checks(self) -> Sequence[Check]: ...
    async def log_levels(self) -> Levels: ...
    async def set_log_level(
        self, principal: Principal, logger: str, level: str, for_us: int, key: Key | None
    ) -> tuple[Levels, bool]: ...
