"""Executing workflows, and waiting for what they answer."""

import asyncio
import json
from dataclasses import dataclass, replace
from typing import Protocol

from millstream.application.advancing import Advancing, labels_of, promising
from millstream.application.engine.commands import AttachWaiter
from millstream.application.engine.engine import Engine
from millstream.application.engine.graph_commands import StartGraph
from millstream.application.engine.queue import Replayed
from millstream.application.engine.waiting import Ended
from millstream.application.ids import new_id
from millstream.application.runs import claim_of
from millstream.application.views import Key
from millstream.domain.errors import NotFound
from millstream.domain.principals import Principal
from millstream.domain.runs import PayloadKind, Run
from millstream.domain.struct_wire import Json, decode_value
from millstream.domain.workflows import Definition


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run to begin.

    Attributes:
        workflow: Name or id.
        version: Its version; "": the latest.
        input: google.protobuf.Value in wire form.
        labels: JSON object as text, or "".
        timeout_us: How long it may take; 0: as long as its definition says.
        rerun_of: The run that it repeats, or "".
    """

    workflow: str
    version: str = ""
    input: bytes = b""
    labels: str = ""
    timeout_us: int = 0
    rerun_of: str = ""


@dataclass(frozen=True, slots=True)
class RunResult:
    """A run, and what it answered where it has completed (google.protobuf.Value in wire form)."""

    run: Run
    output: bytes = b""
    replayed: bool = False

    @property
    def completed(self) -> bool:
        """It has ended."""
        return self.run.finished_us > 0


class ResultReads(Protocol):
    """What is read of runs; see store.runs."""

    async def run(self, tenant: str, run_id: str) -> Run | None: ...
    async def payload(self, found: Run, what: PayloadKind) -> bytes: ...


class Workflows(Protocol):
    """Finds definitions for new runs; see application.workflows."""

    async def definition(self, tenant: str, name_or_id: str, version: str = "") -> Definition:
        """Raises NotFound."""

    async def check_input(self, definition: Definition, value: Json, size_bytes: int, field: str = "input") -> None:
        """Raises ValidationFailed."""


class WorkflowRuns:
    """The use cases of executing workflows.

    Args:
        key_ttl_us: How long an idempotency key holds, microseconds.
    """

    def __init__(
        self, engine: Engine, workflows: Workflows, advancing: Advancing, reads: ResultReads, key_ttl_us: int
    ) -> None:
        self._engine = engine
        self.workflows = workflows
        self._advancing = advancing
        self._reads = reads
        self._key_ttl_us = key_ttl_us

    async def execute(self, principal: Principal, new: NewRun, key: Key | None) -> RunResult:
        """Begin a run. Raises NotFound, ValidationFailed, IdempotencyConflict, RateLimited."""
        return await self._begin(principal, new, key, new_id(), "")

    async def execute_sync(self, principal: Principal, new: NewRun, key: Key | None, timeout_s: float) -> RunResult:
        """Begin a run and wait for its end, so long. Raises as execute does."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        run_id = new_id()
        with self._engine.waiters.wait(run_id) as ended:
            begun = await self._begin(principal, new, key, run_id, self._engine.lane_id)
            if not begun.replayed:
                end = await _until(ended, deadline)
                if end is not None and end.run is not None and end.output is not None:
                    return RunResult(end.run, end.output)
        return replace(await self.wait(principal, begun.run.id, deadline), replayed=begun.replayed)

    async def wait(self, principal: Principal, run_id: str, deadline: float) -> RunResult:
        """Wait for the end of a run until a time of the loop's clock. Raises NotFound."""
        while True:
            with self._engine.waiters.wait(run_id) as ended:
                run = await self._run(principal, run_id)
                if run.finished_us or asyncio.get_running_loop().time() >= deadline:
                    return RunResult(run, await self._reads.payload(run, PayloadKind.OUTPUT))
                if self._engine.lane_id not in run.waiters:
                    command = AttachWaiter(
                        run_id=run_id, locked=True, tenant=principal.tenant, waiter=self._engine.lane_id
                    )
                    await self._engine.submit(command)
                    if (await self._run(principal, run_id)).finished_us:
                        continue
                await _until(ended, deadline)

    async def _run(self, principal: Principal, run_id: str) -> Run:
        run = await self._reads.run(principal.tenant, run_id)
        if run is None:
            raise NotFound(f"there is no run {run_id}")
        return run

    async def _begin(self, principal: Principal, new: NewRun, key: Key | None, run_id: str, waiter: str) -> RunResult:
        definition = await self.workflows.definition(principal.tenant, new.workflow, new.version)
        await self.workflows.check_input(definition, decode_value(new.input), len(new.input))
        command = await self.command(principal.tenant, principal.name, definition, new, run_id)
        command.waiter = waiter
        command.key = claim_of(principal, key, [run_id], self._engine.clock.now_us() + self._key_ttl_us)
        outcome = await self._engine.submit(command)
        if isinstance(outcome, Replayed):
            self._advancing.forget(run_id)
            return RunResult(await self._run(principal, json.loads(outcome.claim.response)[0]), replayed=True)
        return RunResult(outcome)

    async def command(self, tenant: str, by: str, definition: Definition, new: NewRun, run_id: str) -> StartGraph:
        """What begins a run of a definition."""
        advance = await self._advancing.start(run_id, definition, new.input)
        command = StartGraph(
            run_id=run_id,
            new_run=True,
            size_bytes=600 + 2 * len(new.input),
            tenant=tenant,
            by=by,
            input=new.input,
            labels=labels_of(definition.labels, new.labels),
            timeout_us=new.timeout_us,
            rerun_of=new.rerun_of,
            advance=advance,
        )
        return promising(command, tenant, advance)


async def _until(ended: "asyncio.Future[Ended]", deadline: float) -> Ended | None:
    if ended.done():
        return ended.result()
    left = deadline - asyncio.get_running_loop().time()
    done, _ = await asyncio.wait([ended], timeout=max(left, 0))
    return ended.result() if done else None
