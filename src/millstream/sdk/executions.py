"""Runs of workflows: begun, waited for, and their steps."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from millstream.sdk.calls import Area, Listing
from millstream.sdk.payload import JsonValue, fill_value, from_value
from millstream.sdk.policies import Seconds, duration
from millstream.sdk.results import BatchOutcome, item_error, when
from millstream.sdk.run_results import Fault, RunResult
from millstream.v1 import execution_pb2, run_pb2
from millstream.v1 import execution_service_pb2 as tenant_wire
from millstream.v1 import run_service_pb2 as runs_wire
from millstream.v1 import workflow_service_pb2 as wire

CALL_MARGIN_S = 15.0
"""A call that waits for a run may take so much longer than the wait."""


@dataclass(frozen=True, slots=True)
class Execution:
    """A run that was begun."""

    run_id: str
    workflow: str
    version: str
    status: str
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Triggered:
    """A run that was begun, or that has the key."""

    run_id: str
    workflow: str
    status: str
    """PENDING where it was begun by this call, else where it stands."""
    created_at: datetime | None = None
    existing: bool = False
    """It was there, with this key."""


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run of a workflow to begin."""

    workflow: str
    """Name or id."""
    input: JsonValue = None
    version: str = ""
    """Default: the latest."""
    labels: Mapping[str, str] = field(default_factory=dict)
    idempotency_key: str = ""
    run_timeout: Seconds | None = None
    """How long it may take in all; then it fails with RUN_TIMEOUT. Default: as long as its workflow says."""

    def fill(self, draft: Any) -> Any:
        """Write into a request or an item of one."""
        draft.workflow_id = self.workflow
        draft.version = self.version
        draft.labels.update(self.labels)
        fill_value(draft.input, self.input)
        if self.run_timeout is not None:
            draft.run_timeout.CopyFrom(duration(self.run_timeout))
        return draft


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a run."""

    id: str
    kind: str
    status: str
    """WAITING, PENDING, RUNNING, COMPLETED, SKIPPED, FAILED or CANCELLED."""
    needs: tuple[str, ...] = ()
    task_id: str = ""
    attempt: int = 0
    input: JsonValue = None
    output: JsonValue = None
    """As later steps see it."""
    error: Fault | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    child_run_id: str = ""
    items: tuple[int, int, int] | None = None
    """Of a map: items begun, ended, and of those failed."""

    @classmethod
    def from_wire(cls, found: Any) -> "Step":
        """The value of a Step."""
        items = found.items
        return cls(
            found.id,
            found.kind,
            run_pb2.Step.Status.Name(found.status),
            tuple(found.needs),
            found.task_id,
            found.attempt,
            from_value(found.input) if found.HasField("input") else None,
            from_value(found.output) if found.HasField("output") else None,
            Fault.of(found),
            when(found, "created_at"),
            when(found, "started_at"),
            when(found, "finished_at"),
            found.child_run_id,
            (items.begun, items.ended, items.failed) if found.HasField("items") else None,
        )


class Executions(Area):
    """Executes workflows."""

    async def execute(
        self,
        workflow: str,
        input: JsonValue = None,  # noqa: A002  (the contract's name)
        *,
        version: str = "",
        labels: Mapping[str, str] | None = None,
        run_timeout: Seconds | None = None,
        idempotency_key: str = "",
    ) -> Execution:
        """Begins a run of a workflow, by its name or id, and answers at once.

        Args:
            run_timeout: how long the run may take in all. Default: as long as its workflow says.

        Raises:
            InvalidRequestError: the input breaks the workflow's schema.
            NotFoundError: there is no such workflow or version.
        """
        answer = await self._calls.write(
            "WorkflowService/ExecuteWorkflow",
            NewRun(workflow, input, version, labels or {}, run_timeout=run_timeout).fill(wire.ExecuteWorkflowRequest()),
            wire.ExecuteWorkflowResponse,
            key=idempotency_key,
        )
        found = answer.message
        status = run_pb2.Run.Status.Name(found.status)
        return Execution(found.run_id, found.workflow, found.version, status, when(found, "created_at"))

    async def execute_sync(
        self,
        workflow: str,
        input: JsonValue = None,  # noqa: A002  (the contract's name)
        *,
        version: str = "",
        labels: Mapping[str, str] | None = None,
        timeout: float = 30.0,  # noqa: ASYNC109  (the service waits)
        fail_on_timeout: bool = False,
        run_timeout: Seconds | None = None,
        idempotency_key: str = "",
    ) -> RunResult:
        """Begins a run of a workflow and waits for its end, `timeout` seconds (1 to 300) at most.

        Args:
            fail_on_timeout: raise DeadlineError where it has not ended by then.
            run_timeout: how long the run itself may take in all. Default: as long as its workflow says.

        Raises as `execute`; a run that fails is no error of the call: see the result's status and error.
        """
        request = wire.ExecuteWorkflowSyncRequest(timeout=timeout, fail_on_timeout=fail_on_timeout)
        answer = await self._calls.write(
            "WorkflowService/ExecuteWorkflowSync",
            NewRun(workflow, input, version, labels or {}, run_timeout=run_timeout).fill(request),
            wire.ExecuteWorkflowSyncResponse,
            key=idempotency_key,
            timeout_s=timeout + CALL_MARGIN_S,
        )
        return RunResult.from_wire(answer.message)

    async def trigger(
        self,
        workflow: str,
        input: JsonValue = None,  # noqa: A002  (the contract's name)
        *,
        tenant: str = "default",
        version: str = "",
        queue: str = "",
        priority: int = 0,
        labels: Mapping[str, str] | None = None,
        run_key: str = "",
        run_key_ttl: Seconds | None = None,
        idempotency_key: str = "",
    ) -> Triggered:
        """Begins a run of a workflow, by its name, unless one with its key stands.

        Args:
            tenant: the caller's own.
            queue: of its tasks that name none. Default "default".
            priority: of its tasks that name none, -100 to 100, the higher the sooner.
            run_key: while a run of this workflow and key stands (not failed, not cancelled), that one is the answer,
                whoever calls.
            run_key_ttl: how long the key holds, in whole seconds. Default 24 h.

        Raises:
            InvalidRequestError: the input breaks the workflow's schema.
            NotFoundError: there is no such workflow or version, or the tenant is not the caller's.
        """
        request = tenant_wire.TriggerWorkflowRequest(
            tenant=tenant, kind=workflow, version=version, task_queue=queue, priority_seconds=-priority,
            labels=labels or {}, idempotency_key=run_key,
        )  # fmt: skip
        fill_value(request.input, input)
        if run_key_ttl is not None:
            request.idempotency_key_ttl = f"{math.ceil(duration(run_key_ttl).ToTimedelta().total_seconds())}s"
        answer = await self._calls.write(
            "WorkflowExecutionService/TriggerWorkflow",
            request,
            tenant_wire.TriggerWorkflowResponse,
            key=idempotency_key,
        )
        found = answer.message
        status = execution_pb2.WorkflowExecutionStatus.Value.Name(found.status)
        existing = found.idempotency_key_used and not found.idempotency_key_new
        return Triggered(found.workflow_execution_id, found.kind, status, when(found, "created_at"), existing)

    async def execute_batch(self, runs: Iterable[NewRun]) -> list[BatchOutcome]:
        """Begins up to 1,000 runs, each with an outcome of its own, in their order."""
        request = wire.ExecuteWorkflowBatchRequest()
        for new in runs:
            new.fill(request.runs.add(idempotency_key=new.idempotency_key))
        answer = await self._calls.write(
            "WorkflowService/ExecuteWorkflowBatch", request, wire.ExecuteWorkflowBatchResponse
        )
        return [
            BatchOutcome(
                each.index,
                each.status,
                "",
                each.run_id,
                item_error(each.error) if each.HasField("error") else None,
            )
            for each in answer.message.results
        ]


@dataclass(frozen=True, slots=True)
class WorkflowPause:
    """A workflow that is held."""

    workflow: str
    paused_at: datetime | None = None
    paused_by: str = ""
    reason: str = ""


class Holding(Area):
    """Holds workflows."""

    async def pause(self, workflow: str, reason: str = "") -> WorkflowPause:
        """Holds a workflow, of a definition or of code: no step of its runs begins until it is resumed."""
        request = wire.PauseWorkflowRequest(workflow_id=workflow, reason=reason)
        answer = await self._calls.write("WorkflowService/PauseWorkflow", request, wire.PauseWorkflowResponse)
        return _held(answer.message)

    async def resume(self, workflow: str) -> None:
        """Lets a held workflow go on."""
        request = wire.ResumeWorkflowRequest(workflow_id=workflow)
        await self._calls.write("WorkflowService/ResumeWorkflow", request, wire.ResumeWorkflowResponse)

    async def paused(self) -> list[WorkflowPause]:
        """The workflows that are held, by name, the first 1,000."""
        found = await self._calls.read(
            "WorkflowService/ListWorkflowPauses", wire.ListWorkflowPausesRequest(), wire.ListWorkflowPausesResponse
        )
        return [_held(each) for each in found.items]


def _held(found: Any) -> WorkflowPause:
    return WorkflowPause(found.workflow, when(found, "paused_at"), found.paused_by, found.reason)


class StepReading(Area):
    """Reads the steps of runs."""

    def steps(self, run_id: str, *, page_size: int = 100) -> Listing[Step]:
        """Lists the steps of a run that follows a workflow, in the order of its definition."""

        async def fetch(cursor: str | None) -> tuple[list[Step], str | None]:
            request = runs_wire.ListRunStepsRequest(run_id=run_id, page_size=page_size, page_token=cursor or "")
            page = await self._calls.read("RunService/ListRunSteps", request, runs_wire.ListRunStepsResponse)
            return [Step.from_wire(item) for item in page.items], page.pagination.next_page_token

        return Listing(fetch)
