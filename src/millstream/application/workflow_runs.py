"""Executing workflows, and waiting for what they answer."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from millstream.application.advancing import Advancing, labels_of, promising
from millstream.application.engine.code_commands import StartRun
from millstream.application.engine.commands import Refuse
from millstream.application.engine.engine import Engine
from millstream.application.engine.graph_commands import StartGraph
from millstream.application.engine.queue import Outcome, RegistryMoved, Replayed
from millstream.application.ids import new_id
from millstream.application.publishing import batch_of, claim_call, item_key
from millstream.application.results import Results
from millstream.application.rounds import MATCH_ROUNDS
from millstream.application.runs import claim_of
from millstream.application.views.batches import Batch
from millstream.application.views.idempotency import Key
from millstream.application.views.runs import RunResult
from millstream.domain.batch import BUSINESS, KeyClaim
from millstream.domain.code_runs import NewRun as CodeRun
from millstream.domain.errors import MillstreamError, NotFound, Unavailable, ValidationFailed
from millstream.domain.principals import Principal
from millstream.domain.struct_wire import Json, decode_value
from millstream.domain.workflows import Definition

Start = StartGraph | StartRun


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
        queue: Of its tasks that name none; "" for "default".
        priority: Urgency of its tasks that name none, the higher the sooner.
        business_key: While a run of this workflow and key stands, it is the answer; "" for none.
        business_ttl_us: How long the key holds, 0 for the server's time.
    """

    workflow: str
    version: str = ""
    input: bytes = b""
    labels: str = ""
    timeout_us: int = 0
    rerun_of: str = ""
    queue: str = ""
    priority: int = 0
    business_key: str = ""
    business_ttl_us: int = 0


class Code(Protocol):
    """Finds workflows whose code workers have; see application.code_workflows."""

    async def version_for(self, tenant: str, name: str, version: str, given: bytes) -> str:
        """Raises NotFound, ValidationFailed."""


class Workflows(Protocol):
    """Finds definitions for new runs; see application.workflows."""

    async def current(
        self, tenant: str, name_or_id: str, version: str = "", fresh: bool = False
    ) -> tuple[Definition, int]:
        """With the version of the registry of which it holds. Raises NotFound."""

    async def check_input(self, definition: Definition, value: Json, size_bytes: int, field: str = "input") -> None:
        """Raises ValidationFailed."""


class WorkflowRuns:
    """The use cases of executing workflows.

    Args:
        key_ttl_us: How long an idempotency key holds, microseconds.
    """

    def __init__(
        self,
        engine: Engine,
        workflows: Workflows,
        code: Code,
        advancing: Advancing,
        results: Results,
        key_ttl_us: int,
    ) -> None:
        self._engine = engine
        self.workflows = workflows
        self._code = code
        self._advancing = advancing
        self._results = results
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
            if not (begun.replayed or begun.existing):
                return RunResult(*await self._results.after(principal, run_id, ended, deadline))
        run, output = await self._results.of(principal, begun.run.id, deadline)
        return RunResult(run, output, replayed=begun.replayed)

    def now_us(self) -> int:
        """The database's time, carried on by this process's clock."""
        return self._engine.clock.now_us()

    async def execute_batch(
        self, principal: Principal, items: Sequence[NewRun | MillstreamError], keys: Sequence[Key | None],
        key: Key | None,
    ) -> Batch:  # fmt: skip
        """Begin many, each with an outcome of its own. Raises IdempotencyConflict, RateLimited."""
        await claim_call(self._engine, claim_of(principal, key, [], self._expires_us()))
        keys = [own or item_key(key, index) for index, own in enumerate(keys)]
        begun = await self._begin_all(
            principal,
            [(each, own, new_id()) for each, own in zip(items, keys, strict=True) if isinstance(each, NewRun)],
        )
        outcomes = iter(begun)
        results = [each if isinstance(each, MillstreamError) else next(outcomes) for each in items]
        return batch_of(results, key)

    async def result(self, principal: Principal, run_id: str, timeout_s: float) -> RunResult:
        """What a run came to, or how it stands when the time has passed. Raises NotFound."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        return RunResult(*await self._results.of(principal, run_id, deadline))

    async def _begin(self, principal: Principal, new: NewRun, key: Key | None, run_id: str, waiter: str) -> RunResult:
        (result,) = await self._begin_all(principal, [(new, key, run_id)], waiter)
        if isinstance(result, MillstreamError):
            raise result
        return result

    async def _begin_all(
        self, principal: Principal, items: Sequence[tuple[NewRun, Key | None, str]], waiter: str = ""
    ) -> list[RunResult | MillstreamError]:
        """Begin runs by their ids; those again whose workflow may be another version by now."""
        results: list[RunResult | MillstreamError] = [
            Unavailable("the registry keeps moving; try again") for _ in items
        ]  # fmt: skip
        left = list(range(len(items)))
        for number in range(MATCH_ROUNDS):
            commands: dict[int, Start | Refuse] = {}
            for index in left:
                new, key, run_id = items[index]
                try:
                    commands[index] = await self._command(principal, new, key, run_id, number > 0)
                except MillstreamError as error:
                    results[index] = error
            for command in commands.values():
                if not isinstance(command, Refuse):
                    command.waiter = waiter
            outcomes = await self._engine.submit_all([*commands.values()])
            left = []
            for index, outcome in zip(commands, outcomes, strict=True):
                if isinstance(outcome, RegistryMoved):
                    left.append(index)
                else:
                    results[index] = await self._begun(principal, outcome, items[index][2])
            if not left:
                break
        return results

    async def _command(
        self, principal: Principal, new: NewRun, key: Key | None, run_id: str, fresh: bool
    ) -> Start | Refuse:
        """What begins a run: of a definition, or where there is none of that name, of code that workers have."""
        claim = claim_of(principal, key, [run_id], self._expires_us())
        try:
            try:
                command = await self._start(principal, new, run_id, fresh)
            except ValidationFailed:
                if fresh:
                    raise
                # Another server may have saved a version that takes this.
                command = await self._start(principal, new, run_id, fresh=True)
        except MillstreamError as error:
            if claim is None:
                raise
            # What the key's first call began stands, whatever became of the workflow.
            return Refuse(key=claim, locked=True, error=error)
        command.key = claim
        return command

    async def _start(self, principal: Principal, new: NewRun, run_id: str, fresh: bool) -> Start:
        command: Start
        try:
            found = await self.workflows.current(principal.tenant, new.workflow, new.version, fresh)
        except NotFound as unknown:
            command, name = await self._code_command(principal, new, run_id, unknown), new.workflow
        else:
            command = await self.command(principal.tenant, principal.name, found, new, run_id)
            name = found[0].name
        command.business_key = self._business_key(principal, new, name, run_id)
        return command

    async def _code_command(self, principal: Principal, new: NewRun, run_id: str, unknown: NotFound) -> StartRun:
        try:
            version = await self._code.version_for(principal.tenant, new.workflow, new.version, new.input)
        except NotFound:
            raise unknown from None
        code = CodeRun(
            new.workflow, version, new.input, new.queue, new.labels, priority=new.priority, timeout_us=new.timeout_us
        )
        return StartRun(
            run_id=run_id, new_run=True, size_bytes=600 + len(new.input), tenant=principal.tenant, by=principal.name,
            new=code,
        )  # fmt: skip

    def _business_key(self, principal: Principal, new: NewRun, name: str, run_id: str) -> KeyClaim | None:
        """The claim of a run's own key, whoever asks for it."""
        if not new.business_key:
            return None
        expires_us = self._engine.clock.now_us() + (new.business_ttl_us or self._key_ttl_us)
        # Two items, where a call's own key has one: so a replay of the call tells whether it had begun the run.
        response = json.dumps([name, run_id])
        return KeyClaim(principal.tenant, "", f"{BUSINESS}workflow {name}", new.business_key, b"", response, expires_us)

    async def _begun(self, principal: Principal, outcome: Outcome, run_id: str) -> RunResult | MillstreamError:
        if isinstance(outcome, Replayed):
            self._advancing.forget(run_id)
            earlier = json.loads(outcome.claim.response)
            replayed = not outcome.claim.rpc.startswith(BUSINESS)
            run = await self._results.run(principal, earlier[-1])
            return RunResult(run, replayed=replayed, existing=len(earlier) > 1)
        if isinstance(outcome, MillstreamError):
            return outcome
        # Whether code began by it is told too.
        return RunResult(outcome[0] if isinstance(outcome, tuple) else outcome)

    def _expires_us(self) -> int:
        return self._engine.clock.now_us() + self._key_ttl_us

    async def command(
        self, tenant: str, by: str, found: tuple[Definition, int], new: NewRun, run_id: str
    ) -> StartGraph:
        """What begins a run of a definition, found in a version of the registry. Raises ValidationFailed where it may
        not be given its input."""
        definition, version = found
        if definition.input_schema:
            await self.workflows.check_input(definition, decode_value(new.input), len(new.input))
        advance = await self._advancing.start(tenant, run_id, definition, new.input)
        command = StartGraph(
            run_id=run_id,
            new_run=True,
            size_bytes=600 + 2 * len(new.input),
            registry=(tenant, version),
            tenant=tenant,
            by=by,
            input=new.input,
            labels=labels_of(definition.labels, new.labels),
            timeout_us=new.timeout_us,
            rerun_of=new.rerun_of,
            queue=new.queue,
            priority=new.priority,
            advance=advance,
        )
        return promising(command, tenant, advance)
