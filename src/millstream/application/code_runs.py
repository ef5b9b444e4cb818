"""Code-first runs: started, signalled, waited for, and what they remember."""

import asyncio
import json
from typing import Protocol

from millstream.application.code_workflows import CodeWorkflows
from millstream.application.engine.code_commands import SignalRun, StartRun
from millstream.application.engine.engine import HISTORY_BYTES, Engine
from millstream.application.engine.queue import Replayed
from millstream.application.ids import new_id
from millstream.application.results import Results
from millstream.application.runs import claim_of
from millstream.application.views.code_runs import NewCodeRun, RunHistory, StartedRun
from millstream.application.views.idempotency import Key
from millstream.domain.code import History, Standing
from millstream.domain.code_runs import NewRun
from millstream.domain.errors import Conflict, ValidationFailed
from millstream.domain.principals import Principal
from millstream.domain.runs import Run, RunKind, Task


class Journal(Protocol):
    """What is read of code runs; see store.journal."""

    async def state(self, run: Run, first: int) -> dict[str, bytes]: ...
    async def history(
        self, day: int, run_id: str, after: int, number: int, upto: int, first: int, most_bytes: int
    ) -> History: ...


class CodeRuns:
    """The use cases of code-first runs.

    Args:
        key_ttl_us: How long an idempotency key holds, microseconds.
    """

    def __init__(
        self, engine: Engine, results: Results, journal: Journal, workflows: CodeWorkflows, key_ttl_us: int
    ) -> None:
        self._engine = engine
        self._results = results
        self._journal = journal
        self._workflows = workflows
        self._key_ttl_us = key_ttl_us

    async def start(self, principal: Principal, new: NewCodeRun, key: Key | None, wait_s: float = 0) -> StartedRun:
        """Start a run, or signal the one of this id; and wait for its end. Raises NotFound, ValidationFailed, Conflict,
        IdempotencyConflict, RateLimited; never for the time-out."""
        if new.signal is not None and not new.run_id:
            raise ValidationFailed.of("run_id", "is needed with a signal: it tells which run it is for", "REQUIRED")
        found = await self._workflows.version_for(principal.tenant, new.workflow, new.version, new.input)
        run_id = new.run_id or new_id()
        deadline = asyncio.get_running_loop().time() + wait_s
        made = NewRun(
            new.workflow, found, new.input, new.queue, new.labels, priority=new.priority, timeout_us=new.timeout_us,
            rerun_of=new.rerun_of,
        )  # fmt: skip
        with self._engine.waiters.wait(run_id) as ended:
            command = StartRun(
                run_id=run_id,
                new_run=not new.run_id,
                key=claim_of(principal, key, [run_id], self._engine.clock.now_us() + self._key_ttl_us),
                size_bytes=600 + len(new.input),
                tenant=principal.tenant,
                by=principal.name,
                new=made,
                signal=new.signal,
                waiter=self._engine.lane_id if wait_s else "",
            )
            outcome = await self._engine.submit(command)
            if not isinstance(outcome, Replayed):
                run, began = outcome
                if not wait_s:
                    return StartedRun(run, started=began)
                return StartedRun(*await self._results.after(principal, run_id, ended, deadline), started=began)
        (run_id,) = json.loads(outcome.claim.response)
        return StartedRun(*await self._results.of(principal, run_id, deadline), replayed=True)

    async def child(self, parent: Run, task: Task, run_id: str, name: str, version: str) -> StartRun:
        """What begins the run that a task of another waits for. Raises NotFound, ValidationFailed."""
        version = await self._workflows.version_for(parent.tenant, name, version, task.input)
        new = NewRun(name, version, task.input, labels=task.labels, parent_id=parent.id, parent_task=task.id)
        return StartRun(
            run_id=run_id, new_run=True, run_ids=(parent.id,), task_ids=(task.id,), size_bytes=600 + len(task.input),
            tenant=parent.tenant, by=parent.created_by, new=new,
        )  # fmt: skip

    async def signal(
        self, principal: Principal, run_id: str, name: str, value: bytes, key: Key | None
    ) -> tuple[int, bool]:
        """Signal a run: the number of the event (0 for a replay), and whether it is one. Raises NotFound, Conflict,
        IdempotencyConflict."""
        command = SignalRun(
            run_id=run_id,
            key=claim_of(principal, key, [run_id], self._engine.clock.now_us() + self._key_ttl_us),
            size_bytes=300 + len(value),
            tenant=principal.tenant,
            name=name,
            value=value,
        )
        outcome = await self._engine.submit(command)
        return (0, True) if isinstance(outcome, Replayed) else (outcome, False)

    async def state(self, principal: Principal, run_id: str) -> dict[str, bytes]:
        """What a run remembers by name, google.protobuf.Value in wire form. Raises NotFound, Conflict."""
        run = await self._results.run(principal, run_id)
        if run.kind is not RunKind.CODE:
            raise Conflict(f"run {run_id} has no state: it is no code-first run")
        return await self._journal.state(run, Standing.of(run.plan).first)

    async def history(self, principal: Principal, run_id: str, after: int, number: int) -> RunHistory:
        """A page of what a run's code has seen and done, behind an event and a command. Raises NotFound, Conflict."""
        run = await self._results.run(principal, run_id)
        if run.kind is not RunKind.CODE:
            raise Conflict(f"run {run_id} has no history of code: it is no code-first run")
        standing = Standing.of(run.plan)
        start = max((standing.since - 1, standing.first), (after, number))
        page = await self._journal.history(run.day, run.id, *start, standing.last, standing.first, HISTORY_BYTES)
        return RunHistory(run, standing.first, standing.seen, page)
