"""Rerunning: a new run with what another was given."""

import json
from typing import Protocol, assert_never

from millstream.application.agent_runs import AgentRuns
from millstream.application.code_runs import CodeRuns
from millstream.application.engine.commands import Refuse
from millstream.application.engine.engine import Engine
from millstream.application.engine.queue import Replayed
from millstream.application.publishing import Publishing
from millstream.application.runs import claim_of
from millstream.application.sight import SightReads, may_see, restricted
from millstream.application.tasks import Tasks
from millstream.application.views.code_runs import NewCodeRun
from millstream.application.views.idempotency import Key
from millstream.application.views.tasks import NewTask, TaskQuery
from millstream.application.workflow_runs import NewRun, WorkflowRuns
from millstream.domain.artifacts import EXTERNAL, Artifact, NewArtifact
from millstream.domain.errors import Conflict, MillstreamError, NotFound, ValidationFailed
from millstream.domain.principals import Principal
from millstream.domain.runs import PROMISE_QUEUE, Event, PayloadKind, Run, RunKind, Task

TASKS_MOST = 100


class RerunReads(SightReads, Protocol):
    """What is read of the run that is repeated; see store.reads."""

    async def run(self, tenant: str, run_id: str) -> Run | None: ...
    async def events(self, found: Run, after_seq: int, limit: int) -> list[Event]: ...
    async def payload(self, found: Run, what: PayloadKind) -> bytes: ...
    async def task(self, tenant: str, task_id: str) -> Task | None: ...
    async def tasks(self, tenant: str, query: TaskQuery, after_id: str, skip: int, limit: int) -> list[Task]: ...
    async def by_ids(self, tenant: str, ids: list[str]) -> dict[str, Artifact]: ...
    async def of_run(self, run_id: str, after_seq: int, limit: int) -> tuple[list[Artifact], bool]: ...


class Rerunning:
    """The use case of rerunning.

    Args:
        key_ttl_us: How long an idempotency key holds, microseconds.
    """

    def __init__(
        self,
        engine: Engine,
        reads: RerunReads,
        publishing: Publishing,
        agent_runs: AgentRuns,
        tasks: Tasks,
        workflow_runs: WorkflowRuns,
        code_runs: CodeRuns,
        key_ttl_us: int,
    ) -> None:
        self._engine = engine
        self._reads = reads
        self._publishing = publishing
        self._agent_runs = agent_runs
        self._tasks = tasks
        self._workflow_runs = workflow_runs
        self._code_runs = code_runs
        self._key_ttl_us = key_ttl_us

    async def rerun(self, principal: Principal, run_id: str, version: str, key: Key | None) -> tuple[str, bool]:
        """The id of the new run, and whether that is a replay. Raises NotFound, Conflict, and what beginning it
        raises."""
        try:
            found = await self._reads.run(principal.tenant, run_id)
            if found is None:
                raise NotFound(f"there is no run {run_id}")
            if version and found.kind in (RunKind.CASCADE, RunKind.SINGLE):
                raise ValidationFailed.of("version", "only runs of a workflow have one; leave it out")
            return await self._again(principal, found, version, key)
        except MillstreamError as error:
            # What the key's first call began stands, whatever became of the run since.
            return await self._first(principal, key, error), True

    async def _first(self, principal: Principal, key: Key | None, error: MillstreamError) -> str:
        claim = claim_of(principal, key, [], self._engine.clock.now_us() + self._key_ttl_us)
        if claim is None:
            raise error
        outcome = await self._engine.submit(Refuse(key=claim, locked=True, error=error))
        assert isinstance(outcome, Replayed)  # noqa: S101  (else it has raised)
        made = json.loads(outcome.claim.response)
        if len(made) > 1:
            return str(made[1])
        if await self._reads.run(principal.tenant, made[0]) is not None:
            return str(made[0])
        task = await self._reads.task(principal.tenant, made[0])
        if task is None:
            raise NotFound("the run is gone: its retention has passed")
        return task.run_id

    async def _again(self, principal: Principal, found: Run, version: str, key: Key | None) -> tuple[str, bool]:
        match found.kind:
            case RunKind.SINGLE:
                return await self._task_again(principal, found, key)
            case RunKind.CASCADE:
                return await self._cascade_again(principal, found, key)
            case RunKind.GRAPH:
                return await self._workflow_again(principal, found, version, key)
            case RunKind.CODE:
                return await self._code_again(principal, found, version, key)
            case _:
                assert_never(found.kind)

    async def _task_again(self, principal: Principal, found: Run, key: Key | None) -> tuple[str, bool]:
        listed = await self._reads.tasks(principal.tenant, TaskQuery(run_id=found.id), "", 0, 1)
        task = await self._reads.task(principal.tenant, listed[0].id) if listed else None
        if task is None:
            raise NotFound(f"there is no run {found.id}")
        if task.queue == PROMISE_QUEUE:
            raise Conflict(f"run {found.id} is of a promise, which is settled once; make another")
        new = NewTask(
            task.kind, task.input, task.queue, task.priority, retry=task.retry, timeouts=task.timeouts,
            labels=task.labels, run_timeout_us=found.timeout_us, bounds=task.bounds,
        )  # fmt: skip
        created = await self._tasks.create(principal, new, key, found.id)
        return created.task.run_id, created.replayed

    async def _workflow_again(
        self, principal: Principal, found: Run, version: str, key: Key | None
    ) -> tuple[str, bool]:
        given = await self._reads.payload(found, PayloadKind.INPUT)
        wanted = "" if version == "latest" else found.workflow_version
        new = NewRun(found.workflow, wanted, given, found.labels, found.timeout_us, found.id)
        result = await self._workflow_runs.execute(principal, new, key)
        return result.run.id, result.replayed

    async def _code_again(self, principal: Principal, found: Run, version: str, key: Key | None) -> tuple[str, bool]:
        """Begin it in the latest version that a worker has registered, as any new run: what an older one does wrong is
        why runs of code are repeated, and it may have no workers any more."""
        given = await self._reads.payload(found, PayloadKind.INPUT)
        lead = await self._reads.task(principal.tenant, found.id)
        if lead is None:
            raise NotFound(f"there is no run {found.id}")
        new = NewCodeRun(
            found.workflow, found.workflow_version if version == "same" else "", given, queue=lead.queue,
            labels=found.labels, priority=found.priority, timeout_us=found.timeout_us, rerun_of=found.id,
        )  # fmt: skip
        result = await self._code_runs.start(principal, new, key)
        return result.run.id, result.replayed

    async def _cascade_again(self, principal: Principal, found: Run, key: Key | None) -> tuple[str, bool]:
        if found.parents:
            raise Conflict(f"run {found.id} was begun by a gate; rerun one of the runs in its parent_run_ids")
        first = await self._reads.events(found, 0, 1)
        agent = json.loads(first[0].data).get("agent", "") if first and first[0].data else ""
        if agent:
            tasks = await self._reads.tasks(principal.tenant, TaskQuery(run_id=found.id), "", 0, 1)
            given = await self._reads.by_ids(principal.tenant, [*tasks[0].artifact_ids]) if tasks else {}
            inputs = [given.get(each) for each in tasks[0].artifact_ids] if tasks else [None]
            new = [self._seen(principal, each, found) for each in inputs]
            published = await self._agent_runs.rerun(principal, agent, new, key, found.id)
        else:
            artifacts, _ = await self._reads.of_run(found.id, 0, 1)
            given_first = artifacts[0] if artifacts and artifacts[0].produced_by == EXTERNAL else None
            published = await self._publishing.publish(
                principal, self._seen(principal, given_first, found), key, found.id
            )
        return published.correlation_id, published.replayed

    def _seen(self, principal: Principal, artifact: Artifact | None, found: Run) -> NewArtifact:
        """The artifact to publish again, if the caller may see it: whoever publishes it may for ever."""
        reader = restricted(principal)
        if artifact is None or (reader is not None and not may_see(reader, artifact, self._engine.clock.now_us())):
            raise NotFound(f"what run {found.id} began with is gone, or not yours to see")
        return NewArtifact(
            artifact.type, artifact.payload, artifact.visibility, artifact.tags, artifact.partition_key,
            payload_digest=artifact.payload_digest,
        )  # fmt: skip
