"""Goes on with runs of workflows: with a step's end where what it made is at hand, else after it."""

import asyncio
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from millstream.application.engine.commands import Command
from millstream.application.engine.engine import Engine
from millstream.application.engine.graph_commands import AdvanceGraph, FailChild, Hold, Looked, TellParent
from millstream.application.engine.queue import RegistryMoved
from millstream.application.ids import new_id
from millstream.application.step_values import Evaluator, Outcome, RunValues
from millstream.application.views.steps import StepEnd
from millstream.application.wire_values import WireValue
from millstream.domain.artifacts import EXTERNAL, Artifact
from millstream.domain.errors import MillstreamError, Unavailable, ValidationFailed
from millstream.domain.graph import ENDED, Decision, FailStep, Graph, StartStep, StepState, note
from millstream.domain.graph_runs import Advance
from millstream.domain.runs import PayloadKind, Run, RunKind, RunStatus, Task, TaskStatus
from millstream.domain.struct_wire import Json, decode_struct, decode_value, encode_list, encode_value
from millstream.domain.workflows import Definition, StepKind

log = logging.getLogger(__name__)

RUNS_MOST = 20_000
BYTES_MOST = 64 * 1024 * 1024
"""Of what runs were given and made, kept in memory; the rest is read again."""
LOOKS_MOST = 200
ARTIFACTS_MOST = 1000
ARTIFACT_BYTES_MOST = 1 << 20
"""Of what a cascade made that a step has begun."""


class GraphReads(Protocol):
    """What is read of runs; see store.runs."""

    async def run_by_id(self, run_id: str) -> Run | None: ...
    async def payload(self, found: Run, what: PayloadKind) -> bytes: ...
    async def step_ends(self, found: Run) -> list[StepEnd]: ...
    async def first_failure(self, run_id: str) -> tuple[str, str]: ...
    async def of_run(self, run_id: str, after_seq: int, limit: int) -> tuple[list[Artifact], bool]: ...


class Definitions(Protocol):
    """Finds definitions; see application.workflows."""

    async def pinned(self, tenant: str, name: str, version: str) -> Definition:
        """A version that a run follows, deleted or not. Raises NotFound."""

    def moved(self, tenant: str) -> None:
        """The tenant's registry has moved: what is asked for from now on is read again."""

    async def check_output(self, definition: Definition, value: Json, size_bytes: int) -> None:
        """Raises ValidationFailed where a run may not answer this."""


class Looks(Protocol):
    """Somebody else who looks at runs that are due, such as for the children that they begin."""

    async def commands(self, run: Run) -> Sequence[Command]: ...


@dataclass(frozen=True, slots=True)
class Followed:
    """What the completion of a step's task is followed by.

    Attributes:
        outcome: What became of the step by it; None where it is an item of a map that goes on.
        output: What the task returned, google.protobuf.Value in wire form.
    """

    advance: Advance
    task: Task
    outcome: Outcome | None
    output: bytes


class Advancing:
    """Decides what follows in runs of workflows."""

    def __init__(
        self,
        engine: Engine,
        definitions: Definitions,
        reads: GraphReads,
        evaluator: Evaluator,
        ids: Callable[[], str] = new_id,
    ) -> None:
        """`ids`: makes ids of tasks."""
        self._engine = engine
        self._holds = engine.dispatcher.holds
        self._definitions = definitions
        self._reads = reads
        self._evaluator = evaluator
        self._ids = ids
        self._values: OrderedDict[str, RunValues] = OrderedDict()
        self._bytes = 0
        self._wanted: set[str] = set()
        self._asked = asyncio.Event()
        self.others: list[Looks] = []

    # Beginning.

    async def start(self, tenant: str, run_id: str, definition: Definition, input_: bytes) -> Advance:
        """How a run begins."""
        values = RunValues(0, WireValue(input_), size_bytes=len(input_))
        decisions: dict[int, Decision] = {}
        if not self._holds(tenant, definition.name):
            decisions = await self._decided(definition, values, Graph(definition).text)
        self._keep(run_id, values)
        return Advance(definition, 0, decisions, self._ids)

    # With a step's end.

    async def follow(self, task_id: str, output: bytes) -> Followed | None:
        """What follows when the task of a step completes; None where that is not known here."""
        task = self._engine.cache.task(task_id)
        owned = self._engine.cache.run(task.run_id) if task is not None and task.step else None
        if task is None or owned is None or owned.run.kind is not RunKind.GRAPH or owned.run.error_code:
            return None
        run = owned.run
        if self._holds(run.tenant, run.workflow):
            return None
        values = self._values.get(run.id)
        if values is None or values.redone != run.redone:
            return None
        definition = await self._definitions.pinned(run.tenant, run.workflow, run.workflow_version)
        step = task.step - 1
        plan = note(run.plan, task.step, task.item, StepState.COMPLETED)
        outcome: Outcome | None
        if task.item:
            items, decision = Graph(definition, plan).items(step), values.started.get(step)
            if items is None or decision is None:
                return None
            if items.done < items.total:
                return self._followed(definition, values, {step: decision}, task, None, output)
            outcome = await self._outcome_of_items(definition, values, task, output, items.total)
        else:
            outcome = await self._evaluator.outcome(definition, values, step, output)
        if outcome is None:
            return None
        values = values.with_outcome(step, outcome, len(output))
        if not _whole(definition, values, plan):
            return None
        decisions = await self._decided(definition, values, plan)
        return self._followed(definition, values, decisions, task, outcome, output)

    def _followed(
        self, definition: Definition, values: RunValues, decisions: dict[int, Decision], task: Task,
        outcome: Outcome | None, output: bytes,
    ) -> Followed:  # fmt: skip
        advance = Advance(definition, values.redone, decisions, self._ids, values.errors)
        return Followed(advance, task, outcome, output)

    async def _outcome_of_items(
        self, definition: Definition, values: RunValues, task: Task, output: bytes, total: int
    ) -> Outcome | None:
        """What a map has made with its last item; None where that of others is not known here."""
        made = {**values.items.get(task.step - 1, {}), task.item: output}
        if len(made) < total:
            return None
        return await self._list_of(definition, values, task.step - 1, made, total)

    def completed(self, followed: Followed) -> None:
        """A completion with what it was followed by was stored: what it made may be built upon."""
        task, follow = followed.task, followed.advance
        values = self._values.get(task.run_id)
        if values is None or values.redone != follow.redone:
            return
        if len(follow.definition.steps) in follow.decisions:
            self.forget(task.run_id)
            return
        if task.item:
            values.items.setdefault(task.step - 1, {})[task.item] = followed.output
        if followed.outcome is not None:
            values.outcomes[task.step - 1] = followed.outcome
        begun = {
            step: each for step, each in follow.decisions.items()
            if isinstance(each, StartStep) and each.items and step not in values.started
        }  # fmt: skip
        values.started |= begun
        more = len(followed.output) + sum(len(item) for each in begun.values() for item in each.items)
        values.size_bytes += more
        self._bytes += more
        self._trim()

    # After it.

    def look(self, run_ids: Set[str]) -> None:
        """Runs are due to be looked at."""
        self._wanted |= run_ids
        self._asked.set()

    async def run(self) -> None:
        """Look at runs until cancelled."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            while self._wanted:
                ids = [self._wanted.pop() for _ in range(min(len(self._wanted), LOOKS_MOST))]
                try:
                    await self.look_at(ids)
                except MillstreamError as error:
                    # They stay due: the safety poll finds them.
                    log.warning("runs could not be looked at: %s", error.message)
                except Exception:
                    log.exception("runs could not be looked at")

    async def look_at(self, run_ids: Sequence[str]) -> None:
        """Do what is to be done for runs that are due."""
        found = await asyncio.gather(*(self._commands(run_id) for run_id in run_ids))
        # A mark is only taken back once all is stored that it stands for: a child that could not be begun, or that a
        # crash kept from it, would be nobody's.
        first = [(number, command) for number, each in enumerate(found) for command in each[:-1]]
        outcomes = await self._submit([command for _, command in first])
        again = {
            number
            for (number, command), each in zip(first, outcomes, strict=True)
            # A child that failed at once is looked at anew, with its reason.
            if isinstance(each, Unavailable | RegistryMoved)
            or (isinstance(command, FailChild) and isinstance(found[number][-1], AdvanceGraph))
        }
        await self._submit([each[-1] for number, each in enumerate(found) if each and number not in again])
        for (_, command), each in zip(first, outcomes, strict=True):
            if isinstance(each, RegistryMoved) and command.registry is not None:
                self._definitions.moved(command.registry[0])
                self.look({*command.run_ids})

    async def _submit(self, commands: Sequence[Command]) -> Sequence[object]:
        outcomes = await self._engine.submit_all(commands, urgent=True) if commands else []
        for command, outcome in zip(commands, outcomes, strict=True):
            if isinstance(outcome, MillstreamError):
                log.warning("run %s: %s", command.run_id, outcome.message)
        return outcomes

    async def _commands(self, run_id: str) -> list[Command]:
        """What is to be done for a run that is due; the last one takes its mark back."""
        run = await self._stored(run_id)
        if run is None or not run.due_us:
            return []
        due_us = run.due_us
        if run.status is RunStatus.RUNNING and run.workflow and self._holds(run.tenant, run.workflow):
            return [Hold(run_id=run.id, due_us=due_us)]
        try:
            commands = [command for other in self.others for command in await other.commands(run)]
            if run.finished_us:
                commands.append(await self._tell_parent(run))
            elif run.kind is RunKind.GRAPH and run.status is RunStatus.RUNNING:
                commands.append(await self._advance(run, due_us))
            else:
                commands.append(Looked(run_id=run.id, due_us=due_us))
        except MillstreamError as error:
            # It stays due.
            log.warning("run %s: %s", run_id, error.message)
            return []
        return commands

    async def _stored(self, run_id: str) -> Run | None:
        """A run as it is stored, which is what is read of it beside: the committer's own may be ahead of that, by a
        batch that is being written; or behind, where another server has marked it."""
        owned = self._engine.cache.run(run_id)
        if owned is not None and owned.run.due_us and owned.run.updated_us == owned.run.stored_us:
            return replace(owned.run)
        return await self._reads.run_by_id(run_id)

    async def _tell_parent(self, run: Run) -> Command:
        output, code, message = b"", "", ""
        if run.parent_task:
            output = await (self._artifacts(run) if run.kind is RunKind.CASCADE else self._output(run))
            if run.status is RunStatus.FAILED and not run.error_code:
                # A cascade's failures are those of its tasks; the first says why.
                code, message = await self._reads.first_failure(run.id)
        return TellParent(
            run_id=run.id, run_ids=(run.parent_id,) if run.parent_id else (), locked=True, code=code, message=message,
            task_ids=(run.parent_task,) if run.parent_task else (), output=output, size_bytes=200 + len(output),
        )  # fmt: skip

    async def values_of(self, run: Run) -> tuple[Definition, RunValues]:
        """What a run of a workflow follows, and what its steps have made."""
        definition = await self._definitions.pinned(run.tenant, run.workflow, run.workflow_version)
        values = await self._load(run, definition)
        await self._evaluator.note(definition, values, Graph(definition, run.plan))
        return definition, values

    async def _output(self, run: Run) -> bytes:
        return await self._reads.payload(run, PayloadKind.OUTPUT)

    async def _artifacts(self, run: Run) -> bytes:
        """What a cascade has made, as its parent is told."""
        found, more = await self._reads.of_run(run.id, 0, ARTIFACTS_MOST)
        made: list[Json] = []
        size = 0
        for each in found:
            if each.produced_by == EXTERNAL:
                continue
            size += len(each.payload)
            if size > ARTIFACT_BYTES_MOST:
                more = True
                break
            payload: Json = decode_struct(each.payload) if not each.payload_digest else None
            shown: dict[str, Json] = {
                "id": each.id, "type": each.type, "payload": payload, "produced_by": each.produced_by,
            }  # fmt: skip
            if each.payload_digest:
                shown["payload_ref"] = each.payload_digest.hex()
            made.append(shown)
        return encode_value({"correlation_id": run.id, "artifacts": made, "truncated": more})

    async def _advance(self, run: Run, due_us: int) -> Command:
        definition = await self._definitions.pinned(run.tenant, run.workflow, run.workflow_version)
        values = self._values.get(run.id)
        if values is None or values.redone != run.redone or not _whole(definition, values, run.plan):
            values = await self._load(run, definition)
            self._keep(run.id, values)
        decisions: dict[int, Decision]
        if run.error_code:
            decisions = await self._evaluator.winding_up(definition, values, run.plan)
        else:
            decisions = await self._evaluator.decisions(definition, values, run.plan)
        whole = bool(run.error_code)
        await self._check_output(definition, decisions)
        advance = Advance(definition, run.redone, decisions, self._ids, values.errors, whole)
        command = AdvanceGraph(run_id=run.id, open_tasks=whole, locked=whole, due_us=due_us, advance=advance)
        return promising(command, run.tenant, advance)

    async def _decided(self, definition: Definition, values: RunValues, plan: str) -> dict[int, Decision]:
        decisions = await self._evaluator.decisions(definition, values, plan)
        await self._check_output(definition, decisions)
        return decisions

    async def _check_output(self, definition: Definition, decisions: dict[int, Decision]) -> None:
        """What the run would answer against its schema breaks it."""
        end = decisions.get(len(definition.steps))
        if definition.output_schema and isinstance(end, StartStep):
            try:
                await self._definitions.check_output(definition, decode_value(end.input), len(end.input))
            except ValidationFailed as error:
                decisions[len(definition.steps)] = FailStep("INVALID_OUTPUT", error.message)

    async def _load(self, run: Run, definition: Definition) -> RunValues:
        """What the run was given and made, as it is stored; and why steps of it failed."""
        given = await self._reads.payload(run, PayloadKind.INPUT)
        values = RunValues(run.redone, WireValue(given), size_bytes=len(given))
        graph = Graph(definition, run.plan)
        for end in await self._reads.step_ends(run):
            step = end.step - 1
            values.size_bytes += len(end.output)
            if end.item <= 1:
                # It was begun again: what became of it before is over.
                values.errors.pop(step, None)
                values.items.pop(step, None)
            if end.item:
                values.items.setdefault(step, {})[end.item] = end.output
            if end.status is not TaskStatus.COMPLETED:
                values.errors.setdefault(step, (end.code, end.message))
            if not end.item and graph.state(step) in ENDED:
                values.outcomes[step] = await self._outcome(definition, values, end)
        for step, made in values.items.items():
            if graph.state(step) in ENDED or _all_done(graph, step):
                values.outcomes[step] = await self._list_of(definition, values, step, made, max(made))
        return values

    async def _outcome(self, definition: Definition, values: RunValues, end: StepEnd) -> Outcome:
        if end.status is TaskStatus.COMPLETED:
            return await self._evaluator.outcome(definition, values, end.step - 1, end.output)
        return Outcome(end.status.name, error={"code": end.code, "message": end.message})

    async def _list_of(
        self, definition: Definition, values: RunValues, step: int, made: dict[int, bytes], total: int
    ) -> Outcome:
        """What a map has made: a list in the order of its items, null for one that failed."""
        found = encode_list([made.get(item, b"") for item in range(1, total + 1)])
        return await self._evaluator.outcome(definition, values, step, found)

    # What is kept.

    def _keep(self, run_id: str, values: RunValues) -> None:
        self.forget(run_id)
        self._values[run_id] = values
        self._bytes += values.size_bytes
        self._trim()

    def forget(self, run_id: str) -> None:
        """A run is not gone on with here."""
        gone = self._values.pop(run_id, None)
        self._bytes -= gone.size_bytes if gone is not None else 0

    def _trim(self) -> None:
        while self._values and (len(self._values) > RUNS_MOST or self._bytes > BYTES_MOST):
            self.forget(next(iter(self._values)))


C = TypeVar("C", bound=Command)


def promising(command: C, tenant: str, advance: Advance) -> C:
    """The command, which names the keys of the promises that it may make."""
    if keys := advance.keys:
        command.promise_keys = [(tenant, key) for key in keys]
        command.locked = True
    return command


def _all_done(graph: Graph, step: int) -> bool:
    items = graph.items(step)
    return items is not None and items.done == items.total


def _whole(definition: Definition, values: RunValues, plan: str) -> bool:
    """Whether it is known of each step that has ended what became of it, and of one that fails, why."""
    graph = Graph(definition, plan)
    if not values.errors.keys() >= {*graph.failing}:
        return False
    for step, spec in enumerate(definition.steps):
        if step in values.outcomes:
            continue
        state = graph.state(step)
        if state is StepState.SKIPPED or spec.kind is StepKind.BRANCH:
            continue
        if state is StepState.COMPLETED and spec.kind is StepKind.SLEEP and spec.output is None:
            values.outcomes[step] = Outcome("COMPLETED")
        elif state in ENDED or _all_done(graph, step):
            return False
    return True


def labels_of(own: Sequence[tuple[str, str]], given: str) -> str:
    """Labels of a run, JSON object as text: those of its definition, where its caller gives none of that name."""
    merged = {**dict(own), **(json.loads(given) if given else {})}
    return json.dumps(merged, separators=(",", ":"), ensure_ascii=False) if merged else ""
