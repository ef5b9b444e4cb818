"""Small use cases in memory, which remember what they were asked."""

import asyncio
import contextlib
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field, replace
from typing import Any

from millstream.application.log_levels import Levels
from millstream.application.log_topics import SentLine
from millstream.application.paging import Page, PageInfo, PageRequest
from millstream.application.payloads import Expected, Uploaded
from millstream.application.readiness import Check
from millstream.application.run_topics import RunSent
from millstream.application.views.agents import AgentDetail, AgentHistory, AgentState, Waiting, WaitingGate
from millstream.application.views.artifacts import (
    ArtifactQuery,
    Consumption,
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
from millstream.application.views.leases import Cancellation, Hello, Lease, LeaseRef, Push
from millstream.application.views.log_levels import LogLevel
from millstream.application.views.payloads import StoredPayload
from millstream.application.views.promises import PromiseQuery, PromiseRef, PromiseView
from millstream.application.views.queues import Ends, QueueState
from millstream.application.views.reports import ReportResult, Reports, Streamed
from millstream.application.views.runs import DoneRuns, ManyRuns, RunQuery, RunResult, RunView, StuckQuery, StuckTask
from millstream.application.views.steps import ItemCounts, StepView
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
from millstream.domain.agents import Agent, AgentSpec, ArtifactType, Pause, Subscription
from millstream.domain.artifacts import Artifact, NewArtifact, Visibility
from millstream.domain.code import Entry, EntryType, History
from millstream.domain.errors import Conflict, FieldFault, LeaseLost, MillstreamError, NotFound
from millstream.domain.principals import Principal
from millstream.domain.promises import NewPromise, Rejection, Resolution
from millstream.domain.retry import Timeouts
from millstream.domain.runs import (
    Attempt,
    AttemptStatus,
    Event,
    EventType,
    Failure,
    Run,
    RunKind,
    RunStatus,
    Task,
    TaskStatus,
)
from millstream.domain.struct_wire import encode_struct, encode_value
from millstream.domain.task_logs import LogAck, LogBatch, LogLine
from millstream.domain.tenants import Tenant
from millstream.domain.workers import KindQuery, KindSpec, KnownKind, KnownWorker, ServingWorker, WorkerQuery
from millstream.transport.server import UseCases

ID = "0190f5e2-0000-7000-8000-000000000001"
OTHER = "0190f5e2-0000-7000-8000-000000000002"
AT_US = 1_700_000_000_123_456
_PAGE = PageInfo(total=1, page=1, page_size=50, total_pages=1)


def artifact(name: str = "Order", maker: str = "external") -> Artifact:
    return Artifact(
        id=ID,
        tenant="default",
        run_id=OTHER,
        seq=2,
        type=name,
        version=3,
        payload=encode_struct({"z": 1, "a": [True, None]}),
        produced_by=maker,
        visibility=Visibility(kind="After", ttl_us=1_500_000, then=Visibility(kind="Private", agents=("a",))),
        tags=("x",),
        partition_key="k",
        created_us=AT_US,
    )


def run() -> Run:
    return Run(
        id=OTHER,
        tenant="default",
        kind=RunKind.CASCADE,
        created_us=AT_US,
        status=RunStatus.FAILED,
        labels='{"a":"b"}',
        error_code="BOOM",
        error_message="it broke",
        redone=2,
        paused_us=AT_US,
        timeout_us=90_000_000,
        deadline_us=AT_US + 90_000_000,
        rerun_of=ID,
        workflow="billing",
        workflow_version="3",
        parent_id=ID,
        parent_task=ID,
    )


def workflow() -> WorkflowDetail:
    head = WorkflowHead("default", "order", ID, 3, "takes an order", AT_US, "ada", AT_US + 1)
    document = '{"name":"order","steps":[{"id":"pay","kind":"task","task":"pay"}]}'
    version = WorkflowVersion("order", 3, ID, document, AT_US, "ada")
    return WorkflowDetail(head, version, (FieldFault("definition.steps[0].task", "nobody serves it", "NOT_SERVED"),))


def task(status: TaskStatus = TaskStatus.RUNNING) -> Task:
    return Task(
        id=ID,
        run_id=OTHER,
        tenant="default",
        kind="resize",
        queue="default",
        created_us=AT_US,
        day=0,
        status=status,
        attempt=2,
        input=encode_value({"n": 1}),
        labels='{"a":"b"}',
        deadline_us=AT_US + 5_000_000,
    )


@dataclass
class Fake:
    """Remembers calls; `error` is raised by every one of them, `answer` replaces what is returned."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)
    error: BaseException | None = None
    answer: Any = None
    gate: Callable[[], Awaitable[None]] | None = None

    async def seen(self, *call: Any) -> None:
        self.calls.append(call)
        if self.gate is not None:
            await self.gate()
        if self.error is not None:
            raise self.error


class Artifacts(Fake):
    async def publish(self, principal: Principal, new: NewArtifact, key: Key | None) -> Published:
        await self.seen("publish", principal, new, key)
        return self.answer or Published(ID, OTHER, replayed=key is not None and key.value == "again")

    async def publish_sync(
        self, principal: Principal, new: NewArtifact, key: Key | None, timeout_s: float
    ) -> SyncResult:
        await self.seen("publish_sync", principal, new, key, timeout_s)
        failure = Failure(agent="a", task_id=ID, code="C", message="m", attempts=2, artifact_ids=(ID,))
        return self.answer or SyncResult(OTHER, [artifact(), artifact("Payment", "payments")], True, 1.5, [failure])

    async def publish_batch(
        self,
        principal: Principal,
        items: list[NewArtifact | MillstreamError],
        item_keys: list[Key | None],
        key: Key | None,
    ) -> Batch:
        await self.seen("publish_batch", principal, items, item_keys, key)
        return Batch(
            [
                each
                if isinstance(each, MillstreamError)
                else self.answer or Published(ID, OTHER, item_keys[i] is not None)
                for i, each in enumerate(items)
            ]
        )

    async def summarize(self, principal: Principal, query: ArtifactQuery) -> Summary:
        await self.seen("summarize", principal, query)
        return Summary(2, {"Order": 2}, {"external": 2}, {"Public": 2}, {"x": 1}, AT_US, AT_US)

    async def get(self, principal: Principal, artifact_id: str) -> Artifact:
        await self.seen("get", principal, artifact_id)
        return artifact()

    async def list(
        self, principal: Principal, query: ArtifactQuery, page: PageRequest, embed_meta: bool
    ) -> Page[ListedArtifact]:
        await self.seen("list", principal, query, page, embed_meta)
        eaten = [Consumption(ID, "payments", OTHER, AT_US)] if embed_meta else None
        return Page([ListedArtifact(artifact(), eaten)], PageInfo(total=1, limit=50, offset=0))


class Watching(Fake):
    """`items` are sent; then, at `fail`, that is raised, and else nothing follows. `closed`: a watch was ended."""

    def __init__(self) -> None:
        super().__init__()
        self.items = [Sent(None, "w0"), Sent(artifact(), "w1"), Sent(None, "w2")]
        self.fail: Exception | None = None
        self.closed = asyncio.Event()

    async def watch(self, principal: Principal, wanted: WatchFilter, cursor: str) -> AsyncGenerator[Sent, None]:
        await self.seen("watch", principal, wanted, cursor)
        try:
            for each in self.items:
                yield each
            if self.fail is not None:
                raise self.fail
            await asyncio.Event().wait()
        finally:
            self.closed.set()


class RunWatching(Fake):
    """`items` are sent; then, at `fail`, that is raised, and else it ends. `closed`: a watch was ended."""

    def __init__(self) -> None:
        super().__init__()
        happened = Event(ID, 0, 7, EventType.TASK_RETRY, 1_500_000, ID, "", 2, '{"code":"X","next_attempt_in_ms":10}')
        self.items = [RunSent("6"), RunSent("7", happened), RunSent("7", ended=True)]
        self.fail: Exception | None = None
        self.closed = asyncio.Event()

    async def watch(
        self, principal: Principal, run_id: str, cursor: str = "", *, deep: bool = False, tasks: bool = False
    ) -> AsyncGenerator[RunSent, None]:
        await self.seen("watch", principal, run_id, cursor, deep, tasks)
        try:
            for each in self.items:
                yield each
            if self.fail is not None:
                raise self.fail
        finally:
            self.closed.set()


class Correlations(Fake):
    """`pages` are what an export sends; after the page `fail_after` it awaits `failed`. `closed`: it was ended."""

    def __init__(self) -> None:
        super().__init__()
        self.pages = [[Sent(artifact(), "c1"), Sent(artifact("Payment"), "c2")], [Sent(artifact("Note"), "c3")]]
        self.fail_after: int | None = None
        self.failed: Callable[[], Awaitable[None]] = asyncio.Event().wait  # type: ignore[assignment]
        self.closed = asyncio.Event()

    async def status(self, principal: Principal, correlation_id: str) -> CorrelationStatus:
        await self.seen("status", principal, correlation_id)
        return self.answer or CorrelationStatus(correlation_id, "active", True, 3, False, 1, AT_US, AT_US)

    async def export(self, principal: Principal, correlation_id: str, cursor: str) -> AsyncGenerator[list[Sent], None]:
        await self.seen("export", principal, correlation_id, cursor)
        try:
            for n, page in enumerate(self.pages):
                yield page
                if n == self.fail_after:
                    await self.failed()
        finally:
            self.closed.set()


class Types(Fake):
    kind = ArtifactType("default", "Order", 1, '{"type":"object"}', "an order", AT_US)

    async def create(self, principal: Principal, spec: TypeSpec, key: Key | None) -> tuple[ArtifactType, bool]:
        await self.seen("create", principal, spec, key)
        return self.kind, False

    async def get(self, principal: Principal, name: str, version: int | None) -> ArtifactType:
        await self.seen("get", principal, name, version)
        return self.kind

    async def update(self, principal: Principal, change: TypeChange, key: Key | None) -> tuple[ArtifactType, bool]:
        await self.seen("update", principal, change, key)
        return self.kind, key is not None

    async def versions(self, principal: Principal, name: str, page: PageRequest) -> Page[ArtifactType]:
        await self.seen("versions", principal, name, page)
        return Page([self.kind], _PAGE)

    async def list(self, principal: Principal, page: PageRequest) -> Page[ArtifactType]:
        await self.seen("list", principal, page)
        return Page([self.kind], _PAGE)


class Agents(Fake):
    agent = Agent(ID, "default", AgentSpec("payments", subscriptions=(Subscription(("Order",)),)), 1, AT_US, AT_US)

    async def create(self, principal: Principal, spec: AgentSpec, key: Key | None) -> tuple[AgentState, bool]:
        await self.seen("create", principal, spec, key)
        return AgentState(self.agent, "ONLINE"), False

    async def update(
        self,
        principal: Principal,
        id_or_name: str,
        spec: AgentSpec,
        expected: int | None,
        key: Key | None,
        read_id: str = "",
    ) -> tuple[AgentState, bool]:
        await self.seen("update", principal, id_or_name, spec, expected, key, read_id)
        return AgentState(self.agent, "ONLINE"), False

    async def delete(self, principal: Principal, id_or_name: str, key: Key | None) -> bool:
        await self.seen("delete", principal, id_or_name, key)
        return False

    async def pause(
        self, principal: Principal, id_or_name: str, reason: str, key: Key | None
    ) -> tuple[AgentState, bool]:
        await self.seen("pause", principal, id_or_name, reason, key)
        return AgentState(self.agent, "PAUSED", Pause("default", "", self.agent.kind, AT_US, "root", reason)), False

    async def resume(self, principal: Principal, id_or_name: str, key: Key | None) -> tuple[AgentState, bool]:
        await self.seen("resume", principal, id_or_name, key)
        return AgentState(self.agent, "ONLINE"), False

    async def run(
        self, principal: Principal, id_or_name: str, inputs: Sequence[NewArtifact], key: Key | None, timeout_s: float
    ) -> SyncResult:
        await self.seen("run", principal, id_or_name, inputs, key, timeout_s)
        return SyncResult(ID, [artifact()], True, 1.5, [], "next", notice="Order: " + "x" * 2000)

    async def get(self, principal: Principal, id_or_name: str) -> AgentState:
        await self.seen("get", principal, id_or_name)
        return AgentState(self.agent, "ONLINE")

    async def detail(self, principal: Principal, agent: Agent) -> AgentDetail:
        workers = (ServingWorker(ID, "worker", "server", AT_US, AT_US),)
        gate = WaitingGate(0, OTHER, "k", {"Order": 2}, (("Order", 3),), 0, 7, (ID,), AT_US, AT_US)
        return AgentDetail(Waiting((gate,), 1), workers, 1)

    async def history(self, principal: Principal, id_or_name: str) -> tuple[Agent, AgentHistory]:
        await self.seen("history", principal, id_or_name)
        return self.agent, AgentHistory({"Payment": 2}, {"Order": 3}, False)

    async def list(self, principal: Principal, page: PageRequest, name: str, status: str | None) -> Page[AgentState]:
        await self.seen("list", principal, page, name, status)
        return Page([AgentState(self.agent, "OFFLINE")], _PAGE)


class Workflows(Fake):
    def schema(self) -> bytes:
        return b'{"type":"object"}'

    async def validate(self, principal: Principal, given: Mapping[str, Any]) -> Validation:
        await self.seen("validate", given)
        return self.answer or Validation((FieldFault("definition.steps", "is required", "REQUIRED"),), ())

    async def create(
        self, principal: Principal, given: Mapping[str, Any], key: Key | None
    ) -> tuple[WorkflowDetail, bool]:
        await self.seen("create", principal, given, key)
        return self.answer or workflow(), key is not None

    async def update(
        self, principal: Principal, id_or_name: str, given: Mapping[str, Any], expected: int | None, key: Key | None
    ) -> tuple[WorkflowDetail, bool]:
        await self.seen("update", id_or_name, given, expected)
        return self.answer or workflow(), key is not None

    async def delete(self, principal: Principal, id_or_name: str, key: Key | None) -> bool:
        await self.seen("delete", id_or_name)
        return key is not None

    async def get(self, principal: Principal, id_or_name: str) -> WorkflowDetail:
        await self.seen("get", id_or_name)
        return self.answer or replace(workflow(), warnings=())

    async def version(self, principal: Principal, id_or_name: str, version: int) -> WorkflowVersion:
        await self.seen("version", id_or_name, version)
        return workflow().version

    async def versions(self, principal: Principal, id_or_name: str, page: PageRequest) -> Page[WorkflowVersion]:
        await self.seen("versions", id_or_name, page)
        return Page([workflow().version], _PAGE)

    async def list(self, principal: Principal, query: WorkflowQuery, page: PageRequest) -> Page[WorkflowHead]:
        await self.seen("list", query, page)
        return Page([workflow().head], _PAGE)


class Runs(Fake):
    async def view(self, principal: Principal, run_id: str) -> RunView:
        await self.seen("view", principal, run_id)
        return RunView(run(), encode_value({"n": 1}), encode_value("done"))

    async def children(self, principal: Principal, run_id: str, page: PageRequest) -> Page[Run]:
        await self.seen("children", principal, run_id, page)
        return Page([run()], _PAGE)

    async def events(
        self, principal: Principal, run_id: str, after_seq: int, limit: int
    ) -> tuple[list[Event], int | None]:
        await self.seen("events", principal, run_id, after_seq, limit)
        return [Event(run_id, 0, 1, EventType.RUN_CREATED, AT_US, data='{"n":1}')], 1

    async def tasks(self, principal: Principal, query: TaskQuery, page: PageRequest) -> Page[Task]:
        await self.seen("tasks", principal, query, page)
        return Page([task()], _PAGE)

    async def cancel(self, principal: Principal, run_id: str, reason: str, key: Key | None) -> tuple[Run, bool]:
        await self.seen("cancel", principal, run_id, reason, key)
        return run(), key is not None

    async def list(self, principal: Principal, query: RunQuery, page: PageRequest) -> Page[Run]:
        await self.seen("list", principal, query, page)
        return Page([run()], _PAGE)


class CodeRuns(Fake):
    async def start(self, principal: Principal, new: NewCodeRun, key: Key | None, wait_s: float) -> StartedRun:
        await self.seen("start", principal, new, key, wait_s)
        return StartedRun(run(), encode_value("done"), started=True, replayed=key is not None)

    async def signal(
        self, principal: Principal, run_id: str, name: str, value: bytes, key: Key | None
    ) -> tuple[int, bool]:
        await self.seen("signal", principal, run_id, name, value, key)
        return 7, key is not None

    async def state(self, principal: Principal, run_id: str) -> dict[str, bytes]:
        await self.seen("state", principal, run_id)
        return {"paid": encode_value(True), "forgotten": b""}

    async def history(self, principal: Principal, run_id: str, after: int, number: int) -> RunHistory:
        await self.seen("history", principal, run_id, after, number)
        return RunHistory(run(), 3, 7, History([Entry(7, EntryType.SIGNALLED, AT_US, name="go")], more=True))


class Executions(Fake):
    def now_us(self) -> int:
        return AT_US + 1_500_000

    async def execute(self, principal: Principal, new: NewRun, key: Key | None) -> RunResult:
        await self.seen("execute", principal, new, key)
        return self.answer or RunResult(graph_run(), replayed=key is not None)

    async def execute_sync(self, principal: Principal, new: NewRun, key: Key | None, timeout_s: float) -> RunResult:
        await self.seen("execute_sync", principal, new, key, timeout_s)
        done = graph_run(RunStatus.COMPLETED) if new.workflow != "slow" else graph_run()
        return RunResult(done, b"\x20\x01" if new.workflow != "slow" else b"")

    async def execute_batch(
        self, principal: Principal, items: list[NewRun | MillstreamError], item_keys: list[Key | None], key: Key | None
    ) -> Batch:
        await self.seen("execute_batch", principal, items, item_keys, key)
        return Batch([each if isinstance(each, MillstreamError) else RunResult(graph_run()) for each in items])

    async def result(self, principal: Principal, run_id: str, timeout_s: float) -> RunResult:
        await self.seen("result", principal, run_id, timeout_s)
        return RunResult(graph_run())


def graph_run(status: RunStatus = RunStatus.RUNNING) -> Run:
    """A run of a workflow."""
    finished_us = AT_US + 2_000_000 if status is RunStatus.COMPLETED else 0
    return Run(
        "r1", "acme", RunKind.GRAPH, AT_US, workflow="order", workflow_version="3", status=status,
        finished_us=finished_us,
    )  # fmt: skip


class WorkflowPauses(Fake):
    async def pause(
        self, principal: Principal, id_or_name: str, reason: str, key: Key | None
    ) -> tuple[WorkflowPause, bool]:
        await self.seen("pause", principal, id_or_name, reason, key)
        return WorkflowPause(id_or_name, AT_US, "ann", reason), key is not None

    async def resume(self, principal: Principal, id_or_name: str, key: Key | None) -> tuple[str, bool]:
        await self.seen("resume", principal, id_or_name, key)
        return id_or_name, key is not None

    async def list(self, principal: Principal) -> list[WorkflowPause]:
        await self.seen("list", principal)
        return [WorkflowPause("order", AT_US, "ann", "look")]


class RunSteps(Fake):
    async def list(self, principal: Principal, run_id: str, page: PageRequest) -> Page[StepView]:
        await self.seen("list", principal, run_id, page)
        done = StepView("pay", "task", "COMPLETED", (), task(TaskStatus.COMPLETED), b"\x20\x01", b"\x20\x00")
        every = StepView("all", "map", "RUNNING", ("pay",), None, b"", b"", ItemCounts(3, 2, 1), "r2")
        return Page([done, every], _PAGE)


class RunOperations(Fake):
    async def retry(
        self, principal: Principal, run_id: str, note: str, from_step: str, key: Key | None
    ) -> tuple[Run, bool]:
        await self.seen("retry", principal, run_id, note, from_step, key)
        return run(), key is not None

    async def rerun(self, principal: Principal, run_id: str, version: str, key: Key | None) -> tuple[Run, bool]:
        await self.seen("rerun", principal, run_id, version, key)
        return run(), key is not None

    async def pause(self, principal: Principal, run_id: str, reason: str, key: Key | None) -> tuple[Run, bool]:
        await self.seen("pause", principal, run_id, reason, key)
        return run(), key is not None

    async def resume(self, principal: Principal, run_id: str, key: Key | None) -> tuple[Run, bool]:
        await self.seen("resume", principal, run_id, key)
        return run(), key is not None

    async def retry_many(self, principal: Principal, many: ManyRuns, key: Key | None) -> DoneRuns:
        await self.seen("retry_many", principal, many, key)
        return DoneRuns([(ID, "accepted"), (OTHER, Conflict("no"))], 5, 3, "more")

    async def cancel_many(self, principal: Principal, many: ManyRuns, key: Key | None) -> DoneRuns:
        await self.seen("cancel_many", principal, many, key)
        return DoneRuns([(ID, "matched")], 1)


class Tasks(Fake):
    async def create(self, principal: Principal, new: NewTask, key: Key | None) -> CreatedTask:
        await self.seen("create", principal, new, key)
        return self.answer or CreatedTask(task(TaskStatus.PENDING))

    async def create_batch(
        self,
        principal: Principal,
        items: list[NewTask | MillstreamError],
        item_keys: list[Key | None],
        key: Key | None,
    ) -> Batch:
        await self.seen("create_batch", principal, items, item_keys, key)
        return Batch([each if isinstance(each, MillstreamError) else CreatedTask(task()) for each in items])

    async def get(self, principal: Principal, task_id: str) -> TaskView:
        await self.seen("get", principal, task_id)
        return self.answer or TaskView(task(TaskStatus.COMPLETED), encode_value("done"))

    async def cancel(self, principal: Principal, task_id: str, reason: str, key: Key | None) -> TaskView:
        await self.seen("cancel", principal, task_id, reason, key)
        return TaskView(task())

    async def attempts(
        self, principal: Principal, task_id: str, after: int, limit: int, run_id: str = ""
    ) -> tuple[list[Attempt], int | None]:
        await self.seen("attempts", principal, task_id, after, limit, *([run_id] if run_id else []))
        return [Attempt(task_id, 1, 0, AttemptStatus.FAILED, AT_US, AT_US + 2500, "w", "BOOM", "it broke")], None

    async def stuck(
        self, principal: Principal, query: StuckQuery, size: int, page_token: str
    ) -> tuple[list[StuckTask], str]:
        await self.seen("stuck", principal, query, size, page_token)
        retried = task(TaskStatus.SCHEDULED)
        retried.run_at_us = AT_US + 5_000_000
        return [StuckTask(retried, AT_US, 7, True)], "more"

    async def list(self, principal: Principal, query: TaskQuery, page: PageRequest) -> Page[Task]:
        await self.seen("list", principal, query, page)
        return Page([task()], _PAGE)


def promise(status: TaskStatus = TaskStatus.PENDING) -> Task:
    return Task(
        id=ID,
        run_id=OTHER,
        tenant="default",
        kind="approval",
        queue="~promise",
        created_us=AT_US,
        day=0,
        status=status,
        input=encode_value({"n": 1}),
        labels='{"a":"b"}',
        timeouts=Timeouts(schedule_to_start_us=60_000_000),
        promise_key="order-1",
    )


class Promises(Fake):
    async def create(self, principal: Principal, new: NewPromise, key: Key | None) -> PromiseView:
        await self.seen("create", principal, new, key)
        return PromiseView(promise())

    async def get(self, principal: Principal, ref: PromiseRef) -> PromiseView:
        await self.seen("get", principal, ref)
        return self.answer or PromiseView(promise())

    async def settle(
        self, principal: Principal, ref: PromiseRef, outcome: Resolution | Rejection, key: Key | None
    ) -> PromiseView:
        await self.seen("settle", principal, ref, outcome, key)
        settled = promise(TaskStatus.COMPLETED if isinstance(outcome, Resolution) else TaskStatus.FAILED)
        settled.worker_name, settled.finished_us = principal.name, AT_US + 1_000_000
        if isinstance(outcome, Rejection):
            settled.error_code, settled.error_message = outcome.code, outcome.message
            return PromiseView(settled)
        return PromiseView(settled, outcome.value)

    async def cancel(self, principal: Principal, ref: PromiseRef, reason: str, key: Key | None) -> PromiseView:
        await self.seen("cancel", principal, ref, reason, key)
        return PromiseView(promise(TaskStatus.CANCELLED))

    async def wait(self, principal: Principal, ref: PromiseRef, timeout_s: float, fail_on_timeout: bool) -> PromiseView:
        await self.seen("wait", principal, ref, timeout_s, fail_on_timeout)
        return PromiseView(promise())

    async def list(self, principal: Principal, query: PromiseQuery, page: PageRequest) -> Page[Task]:
        await self.seen("list", principal, query, page)
        return Page([promise()], _PAGE)


class DeadLetters(Fake):
    async def retry(self, principal: Principal, wanted: BulkWanted, key: Key | None) -> BulkDone:
        await self.seen("retry", principal, wanted, key)
        return BulkDone(3, ((ID, None), (OTHER, Conflict("it is RUNNING"))), more=True)

    async def drop(self, principal: Principal, wanted: BulkWanted, key: Key | None) -> BulkDone:
        await self.seen("drop", principal, wanted, key)
        return BulkDone(2)

    async def list(self, principal: Principal, query: DeadLetterQuery, page: PageRequest) -> Page[Task]:
        await self.seen("list", principal, query, page)
        return Page([task(TaskStatus.FAILED)], _PAGE)


class Queues(Fake):
    async def pause(self, principal: Principal, queue: str, reason: str, key: Key | None) -> tuple[QueueState, bool]:
        await self.seen("pause", principal, queue, reason, key)
        return QueueState(queue, 1, 2, 3, 4, AT_US, Pause("default", queue, "", AT_US, "root", reason)), True

    async def resume(self, principal: Principal, queue: str, key: Key | None) -> tuple[QueueState, bool]:
        await self.seen("resume", principal, queue, key)
        return QueueState(queue), False

    async def throughput(self, principal: Principal) -> Ends:
        await self.seen("throughput", principal)
        return Ends(7, 6, 5, 4, 3, 2, 1)

    async def list(self, principal: Principal, page: PageRequest) -> Page[QueueState]:
        await self.seen("list", principal, page)
        return Page([QueueState("default", running=10_001)], _PAGE)


def lease(payload_bytes: int = 0) -> Lease:
    given = artifact()
    given.payload = encode_struct({"text": "x" * payload_bytes}) if payload_bytes else given.payload
    return Lease(task(), 2, [given], 1)


@dataclass
class Session:
    """A worker's session; `lost` are tasks whose reports are refused."""

    hello: Hello
    push: Push
    id: str = "session"
    lease_s: float = 30.0
    lost: frozenset[str] = frozenset()
    credit: int = 0
    times_heard: int = 0
    drained: bool = False
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    reports: list[Reports] = field(default_factory=list)
    streamed: list[Streamed] = field(default_factory=list)
    block: asyncio.Event | None = None

    @property
    def held(self) -> tuple[LeaseRef, ...]:
        return self.hello.held

    def heard(self) -> None:
        self.times_heard += 1

    def add_credit(self, count: int) -> None:
        self.credit += count

    def stream(self, streamed: Sequence[Streamed]) -> None:
        self.streamed += streamed

    def drain(self) -> None:
        self.drained = True

    async def report(self, reports: Reports) -> list[ReportResult]:
        if self.block is not None:
            await self.block.wait()
        self.reports.append(reports)
        return results_of(reports, self.lost)

    async def close(self) -> None:
        self.closed.set()

    def tell(self, *leases: Lease, cancellations: list[Cancellation] | None = None, drain: bool = False) -> None:
        self.push(list(leases), cancellations or [], drain)


def results_of(reports: Reports, lost: frozenset[str] = frozenset()) -> list[ReportResult]:
    return [
        ReportResult(
            each.task_id, each.attempt, LeaseLost("gone") if each.task_id in lost else getattr(each, "fault", None)
        )
        for kind in (reports.completions, reports.failures, reports.progress, reports.heartbeats, reports.released)
        for each in kind
    ]


class Workers(Fake):
    def __init__(self) -> None:
        super().__init__()
        self.sessions: list[Session] = []
        self.opened = asyncio.Event()
        self.lease_s = 30.0

    async def open(self, principal: Principal, hello: Hello, push: Push) -> Session:
        await self.seen("open", principal, hello)
        session = Session(hello, push, lease_s=self.lease_s)
        self.sessions.append(session)
        self.opened.set()
        return session

    async def history(self, principal: Principal, ref: LeaseRef, after: int, number: int) -> History:
        await self.seen("history", principal, ref, after, number)
        return History([Entry(3, EntryType.SIGNALLED, AT_US, name="go", value=encode_value(1))], True)

    async def poll(
        self,
        principal: Principal,
        worker_id: str,
        name: str,
        kinds: tuple[str, ...],
        queues: tuple[str, ...],
        max_tasks: int,
        wait_s: float,
    ) -> list[Lease]:
        await self.seen("poll", principal, worker_id, name, kinds, queues, max_tasks, wait_s)
        return [lease()]

    async def report(self, principal: Principal, reports: Reports) -> list[ReportResult]:
        await self.seen("report", principal, reports)
        return results_of(reports)


class LogSource:
    """A sender of lines; all is stored at once, until it is told otherwise."""

    def __init__(self, intake: "LogIntake", read: Callable[[bytes], LogBatch], told: Callable[[list[LogAck]], None]):
        self.intake = intake
        self.read = read
        self.told = told
        self.closed = False

    def put(self, batches: Sequence[tuple[str, bytes]]) -> None:
        found = [self.read(raw) for _, raw in batches]
        self.intake.tasks += [task for task, _ in batches]
        self.intake.batches += found
        self.told(
            [LogAck(each.task_id, each.attempt, each.offset + len(each.lines) - 1, error=each.fault) for each in found]
        )

    def ended(self, ends: Sequence[tuple[str, int, int]]) -> None:
        self.intake.ends += ends

    async def room(self) -> None:
        pass

    async def settled(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class LogIntake:
    """Takes in lines, and remembers them."""

    def __init__(self) -> None:
        self.drained = asyncio.Event()
        self.batches: list[LogBatch] = []
        self.tasks: list[str] = []
        self.ends: list[tuple[str, int, int]] = []
        self.sources: list[LogSource] = []

    def now_us(self) -> int:
        return AT_US

    def open(
        self, principal: Principal, read: Callable[[bytes], LogBatch], told: Callable[[list[LogAck]], None]
    ) -> LogSource:
        self.sources.append(LogSource(self, read, told))
        return self.sources[-1]


class TaskLogs(Fake):
    """One line."""

    entry = LogEntry(OTHER, 5, ID, 2, 7, LogLine(3, "odd", AT_US, "shop", encode_struct({"n": 1})))

    async def of_task(
        self, principal: Principal, query: LogQuery, page: PageRequest, run_id: str = ""
    ) -> Page[LogEntry]:
        await self.seen("of_task", principal, query, page, run_id)
        return Page([self.entry], PageInfo(total=1, limit=page.size, offset=page.skip))

    async def of_run(self, principal: Principal, query: LogQuery, page: PageRequest) -> Page[LogEntry]:
        await self.seen("of_run", principal, query, page)
        return Page([self.entry], _PAGE)


class LogWatching(Fake):
    """A line between two signs of life, and the end; unless there is an error."""

    error: MillstreamError | None = None

    async def watch(self, principal: Principal, query: LogQuery, cursor: str) -> AsyncGenerator[SentLine, None]:
        await self.seen("watch", principal, query, cursor)
        yield SentLine(None, "c1")
        yield SentLine(TaskLogs.entry, "c2")
        if self.error is not None:
            raise self.error
        yield SentLine(None, "c2", ended=True)


class Discovery(Fake):
    """One worker, and what it serves."""

    spec = KindSpec("resize", 1, "1.2", "makes it small", '{"type":"object"}', '{"type":"string"}')
    known = KnownWorker(
        ID, "w", "DRAINING", "host/1", AT_US, AT_US + 1, 0, 10, 3, ("default",), (spec,), ("payments",), truncated=True
    )

    async def workers(self, principal: Principal, query: WorkerQuery, page: PageRequest) -> Page[KnownWorker]:
        await self.seen("workers", principal, query, page)
        return Page([self.known], _PAGE)

    async def worker(self, principal: Principal, worker_id: str) -> KnownWorker:
        await self.seen("worker", principal, worker_id)
        return self.known

    async def kinds(self, principal: Principal, query: KindQuery, page: PageRequest) -> Page[KnownKind]:
        await self.seen("kinds", principal, query, page)
        serving = (ServingWorker(ID, "w", "host/1", AT_US, AT_US),)
        return Page([KnownKind(self.spec, AT_US, 1, ("default",), serving)], _PAGE)


class Payloads(Fake):
    """One payload, "hello" in two chunks; what is uploaded is in `content`."""

    content = b""
    expected = Expected()

    @contextlib.contextmanager
    def transfer(self, principal: Principal) -> Iterator[None]:
        self.calls.append(("transfer", principal))
        yield

    async def upload(
        self, principal: Principal, content: AsyncIterable[bytes], media_type: str, expected: Expected
    ) -> Uploaded:
        self.expected, self.content = expected, b""
        async for piece in content:
            self.content += piece
        await self.seen("upload", principal, media_type)
        return Uploaded(b"\xab" * 32, StoredPayload(ID, len(self.content), media_type, AT_US), False)

    async def get(self, principal: Principal, sha256: bytes, lease: LeaseRef | None) -> StoredPayload:
        await self.seen("get", principal, sha256, lease)
        return StoredPayload(ID, 5, "text/plain", AT_US)

    async def read(self, found: StoredPayload, offset: int, length: int | None) -> AsyncIterator[bytes]:
        await self.seen("read", offset, length)
        wanted = b"hello"[offset:] if length is None else b"hello"[offset : offset + length]
        for part in (wanted[:3], wanted[3:]):
            if part:
                yield part


class Pages:
    def openapi(self) -> bytes:
        return b'{"openapi": "3.0.3"}'

    def file(self, name: str) -> tuple[str, bytes]:
        if name == "none.js":
            raise NotFound("there is none")
        return ("text/html" if name.endswith(".html") else "text/css", name.encode())


class System:
    def __init__(self) -> None:
        self.faults: dict[str, str] = {}
        self.was_set: tuple[str, str, str, int] | None = None

    async def checks(self) -> list[Check]:
        return [Check(name, name not in self.faults, self.faults.get(name, "")) for name in ("database", "server")]

    async def log_levels(self) -> Levels:
        return Levels("info", "debug", (LogLevel("", "debug", AT_US), LogLevel("millstream.rpc", "error")))

    async def set_log_level(
        self, principal: Principal, logger: str, level: str, for_us: int, key: Key | None
    ) -> tuple[Levels, bool]:
        self.was_set = (principal.name, logger, level, for_us)
        return Levels("info", level or "info", (LogLevel(logger, level),) if level else ()), key is not None


class Tenants(Fake):
    async def create(
        self, principal: Principal, slug: str, name: str, labels: str, key: Key | None
    ) -> tuple[Tenant, bool]:
        await self.seen("create", principal, slug, name, labels, key)
        return Tenant(slug, ID, name, labels, AT_US, principal.name), key is not None

    async def get(self, principal: Principal, slug: str) -> Tenant:
        await self.seen("get", principal, slug)
        return Tenant(slug, ID, "Acme", '{"a":"b"}', AT_US)

    async def list(self, principal: Principal, page: PageRequest) -> Page[Tenant]:
        await self.seen("list", principal, page)
        return Page([Tenant("acme", ID, "Acme", "", AT_US)], _PAGE)


class WorkflowKinds(Fake):
    kept = KeptWorkflow(workflow().head, ("3", "2", "1"), '{"type":"object"}')
    served = ServedKind(
        KnownKind(Discovery.spec, AT_US, 1, ("default",), (ServingWorker(ID, "w", "host/1", AT_US, AT_US),)), ("1.2",)
    )

    async def task_kind(self, principal: Principal, name: str) -> ServedKind:
        await self.seen("task_kind", principal, name)
        return self.served

    async def get(self, principal: Principal, name: str) -> KeptWorkflow | ServedKind:
        await self.seen("get", principal, name)
        return self.kept

    async def list(self, principal: Principal, page: PageRequest) -> Page[KeptWorkflow | ServedKind]:
        await self.seen("list", principal, page)
        return Page([self.kept, self.served], PageInfo(total=2, limit=page.size, offset=page.skip))


class Fakes:
    """All of them."""

    def __init__(self) -> None:
        self.artifacts = Artifacts()
        self.watching = Watching()
        self.run_watching = RunWatching()
        self.correlations = Correlations()
        self.payloads = Payloads()
        self.types = Types()
        self.agents = Agents()
        self.workflows = Workflows()
        self.runs = Runs()
        self.run_operations = RunOperations()
        self.steps = RunSteps()
        self.executions = Executions()
        self.workflow_pauses = WorkflowPauses()
        self.code_runs = CodeRuns()
        self.tasks = Tasks()
        self.promises = Promises()
        self.dead_letters = DeadLetters()
        self.queues = Queues()
        self.workers = Workers()
        self.log_intake = LogIntake()
        self.task_logs = TaskLogs()
        self.log_watching = LogWatching()
        self.discovery = Discovery()
        self.tenants = Tenants()
        self.workflow_kinds = WorkflowKinds()
        self.system = System()
        self.pages = Pages()
        self.drained = False

    def use_cases(self, exposition: Callable[[], bytes]) -> UseCases:
        async def written() -> bytes:
            return exposition()

        return UseCases(
            artifacts=self.artifacts,
            watching=self.watching,
            run_watching=self.run_watching,
            correlations=self.correlations,
            payloads=self.payloads,
            types=self.types,
            agents=self.agents,
            workflows=self.workflows,
            runs=self.runs,
            run_operations=self.run_operations,
            steps=self.steps,
            executions=self.executions,
            workflow_pauses=self.workflow_pauses,
            code_runs=self.code_runs,
            tasks=self.tasks,
            promises=self.promises,
            dead_letters=self.dead_letters,
            queues=self.queues,
            workers=self.workers,
            log_intake=self.log_intake,
            task_logs=self.task_logs,
            log_watching=self.log_watching,
            discovery=self.discovery,
            tenants=self.tenants,
            workflow_kinds=self.workflow_kinds,
            system=self.system,
            pages=self.pages,
            exposition=written,
            leave=self.leave,
            drain=self.drain,
        )

    def leave(self) -> None:
        self.system.faults["server"] = "draining"

    def drain(self) -> None:
        self.drained = True
        for session in self.workers.sessions:
            session.tell(drain=True)
