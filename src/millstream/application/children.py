"""Runs that other runs begin: workflows, agents and publications that are steps, and their end with their parent."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from millstream.application.advancing import Definitions
from millstream.application.catalog import Catalogs
from millstream.application.code_runs import CodeRuns
from millstream.application.engine.commands import CancelRun, Command
from millstream.application.engine.graph_commands import TOO_DEEP, FailChild, StartCascade
from millstream.application.ids import new_id
from millstream.application.publishing import ids_for
from millstream.application.referring import Referring, referred
from millstream.application.registering import named
from millstream.application.views.runs import OpenChild
from millstream.application.workflow_runs import NewRun, WorkflowRuns
from millstream.domain.artifacts import EXTERNAL, NewArtifact
from millstream.domain.children import child_id
from millstream.domain.errors import MillstreamError, NotFound, Unavailable, ValidationFailed
from millstream.domain.matching import activation_of, direct
from millstream.domain.principals import Principal
from millstream.domain.publication import Produce
from millstream.domain.runs import Run, RunKind, Task
from millstream.domain.struct_wire import Json, decode_value, encode_struct, encode_value
from millstream.domain.workflows import StepKind

INPUTS_MOST = 100


class ChildReads(Protocol):
    """What is read of children; see store.runs."""

    async def waiting_children(self, parent: Run) -> list[Task]:
        """Tasks of a run that wait for runs of their own."""

    async def known_runs(self, run_ids: Sequence[str]) -> set[str]:
        """Which of these runs there are."""

    async def open_children(self, parent: Run) -> list[OpenChild]:
        """Open runs of a parent whose tasks do not wait for them any more."""

    async def generation(self, run: Run, most: int) -> int:
        """How many runs there are from the one that nobody began to this one, both counted; `most` at most."""


@dataclass(frozen=True, slots=True)
class _Child:
    """A run to begin.

    Attributes:
        run_id: Of the child.
        what: Kind of the step.
        name: Of the workflow, the agent or the type.
        given: Its input.
    """

    run_id: str
    what: str
    name: str
    given: Json
    parent: Run
    task: Task

    @property
    def principal(self) -> Principal:
        """In whose name it runs: that of its parent."""
        return Principal(self.parent.created_by, self.parent.tenant, frozenset())


def child_of(task: Task) -> str:
    """Id of the run that a task waits for, or has waited for."""
    return child_id(task.id, task.tries + 1 if task.open else max(task.tries, 1))


class Children:
    """Begins the runs that tasks wait for, and cancels those that none waits for.

    Args:
        depth_most: Longest chain of runs that begin each other.
    """

    def __init__(
        self,
        definitions: Definitions,
        runs: WorkflowRuns,
        catalogs: Catalogs,
        referring: Referring,
        reads: ChildReads,
        code: CodeRuns,
        depth_most: int,
        ids: Callable[[], str] = new_id,
    ) -> None:
        """`ids`: makes ids of artifacts and tasks."""
        self._definitions = definitions
        self._runs = runs
        self._catalogs = catalogs
        self._referring = referring
        self._reads = reads
        self._code = code
        self._ids = ids
        self._depth_most = depth_most

    async def commands(self, run: Run) -> Sequence[Command]:
        """What is to be done for a run that is looked at."""
        if not await self._may_have(run):
            return []
        commands: list[Command] = [
            CancelRun(
                run_id=orphan, open_tasks=True, locked=True, tenant=run.tenant, by=run.created_by,
                reason=f"run {run.id} does not wait for it any more",
            )
            for orphan in await self._orphans(run)
        ]  # fmt: skip
        if run.finished_us:
            return commands
        waiting = {child_of(task): task for task in await self._reads.waiting_children(run)}
        begun = await self._reads.known_runs([*waiting]) if waiting else set()
        missing = {run_id: task for run_id, task in waiting.items() if run_id not in begun}
        if missing and await self._at_the_bottom(run):
            text = f"{self._depth_most:,} runs have begun each other, which is the most (max_depth)"
            return [*commands, *(_fail(run, task, TOO_DEEP, text) for task in missing.values())]
        for run_id, task in missing.items():
            commands.append(await self._begin(run, task, run_id))
        return commands

    async def _at_the_bottom(self, run: Run) -> bool:
        """Whether no run may be begun by this one: a workflow that begins itself would never end, nor be cancelled as
        fast as it goes on."""
        generation = await self._reads.generation(run, self._depth_most) if run.parent_id else 1
        return generation >= self._depth_most

    async def _orphans(self, run: Run) -> list[str]:
        """Open runs that nothing waits for any more: their task has ended, or has begun another."""
        return [
            each.run_id
            for each in await self._reads.open_children(run)
            if each.ended or each.run_id != child_id(each.task_id, each.tries + 1)
        ]

    async def _may_have(self, run: Run) -> bool:
        """Whether the run may have children: to ask the database would cost each of its steps."""
        if run.kind is not RunKind.GRAPH:
            return run.kind is RunKind.CODE
        definition = await self._definitions.pinned(run.tenant, run.workflow, run.workflow_version)
        return any(step.begins_a_run or (step.each is not None and step.each.begins_a_run) for step in definition.steps)

    async def _begin(self, run: Run, task: Task, run_id: str) -> Command:
        what, _, name = task.kind.partition(":")
        child = _Child(run_id, what, name, decode_value(task.input), run, task)
        try:
            try:
                return await self._start(child)
            except Unavailable:
                raise
            except MillstreamError:
                # Another server may have changed what this one knows: only the present registry refuses.
                await self._catalogs.get(run.tenant, fresh=True)
                return await self._start(child)
        except Unavailable:
            raise
        except MillstreamError as error:
            return _fail(run, task, error.code, error.message)

    async def _start(self, child: _Child) -> Command:
        match child.what:
            case StepKind.WORKFLOW:
                return await self._workflow(child)
            case StepKind.AGENT:
                return await self._agent(child)
            case _:
                return await self._publication(child)

    async def _workflow(self, child: _Child) -> Command:
        name, _, version = child.name.partition("@")
        try:
            return await self._defined(child, name, version)
        except NotFound:
            # A definition goes before code of the same name.
            return await self._code.child(child.parent, child.task, child.run_id, name, version)

    async def _defined(self, child: _Child, name: str, version: str) -> Command:
        found = await self._runs.workflows.current(child.parent.tenant, name, version)
        new = NewRun(name, version, child.task.input)
        command = await self._runs.command(child.parent.tenant, child.parent.created_by, found, new, child.run_id)
        command.run_ids, command.task_ids = (child.parent.id,), (child.task.id,)
        command.parent_id, command.parent_task = child.parent.id, child.task.id
        return command

    async def _agent(self, child: _Child) -> Command:
        catalog = await self._catalogs.get(child.parent.tenant, fresh=True)
        agent = named(catalog.agents, child.name)
        inputs, priorities = [], []
        for index, (type_, payload) in enumerate(_inputs(child.given)):
            subscription = direct(agent, type_)
            if subscription is None:
                text = f"agent {agent.spec.name!r} takes no {type_} when it is run by name"
                raise ValidationFailed.of(f"inputs[{index}].type", text, "NOT_TAKEN")
            priorities.append(subscription.priority)
            inputs.append(await self._checked(child, type_, payload, f"inputs[{index}]."))
        command = self._cascade(child, [Produce(each.new, each.artifact_id, each.version) for each in inputs])
        command.registry = (child.parent.tenant, catalog.version)
        command.start, command.task_id = activation_of(agent, max(priorities)), self._ids()
        return command

    async def _publication(self, child: _Child) -> Command:
        given = child.given if isinstance(child.given, dict) else {}
        payload = given.get("payload")
        if not isinstance(payload, dict):
            raise ValidationFailed.of("payload", "must be an object")
        catalog = await self._catalogs.get(child.parent.tenant)
        produce = await self._checked(child, child.name, payload, "")
        command = self._cascade(child, [produce])
        command.registry = (child.parent.tenant, catalog.version)
        command.gated, command.locked = produce.gated, produce.tenant_wide
        if given.get("wait") is not True:
            command.settled = encode_value({"artifact_id": produce.artifact_id, "correlation_id": child.run_id})
        return command

    async def _checked(self, child: _Child, type_: str, payload: dict[str, Json], prefix: str) -> Produce:
        catalog = await self._catalogs.get(child.parent.tenant)
        new = NewArtifact(type_, encode_struct(payload))
        version, activations, new = await self._referring.examine(child.principal, catalog, new, EXTERNAL, prefix)
        return Produce(new, self._ids(), version, activations, ids_for(activations, self._ids))

    def _cascade(self, child: _Child, inputs: Sequence[Produce]) -> StartCascade:
        return StartCascade(
            run_id=child.run_id,
            new_run=True,
            run_ids=(child.parent.id,),
            task_ids=(child.task.id,),
            size_bytes=600 + 2 * len(child.task.input),
            payloads=referred(child.parent.tenant, [each.new for each in inputs]),
            tenant=child.parent.tenant,
            by=child.parent.created_by,
            parent_id=child.parent.id,
            parent_task=child.task.id,
            inputs=inputs,
        )


def _fail(run: Run, task: Task, code: str, message: str) -> FailChild:
    return FailChild(run_id=run.id, task_ids=(task.id,), code=code, message=message, size_bytes=400)


def _inputs(given: Json) -> list[tuple[str, dict[str, Json]]]:
    """What an agent is given: an artifact, or a list of such, each with type and payload."""
    found: list[tuple[str, dict[str, Json]]] = []
    items = given if isinstance(given, list) else [given]
    if not 0 < len(items) <= INPUTS_MOST:
        raise ValidationFailed.of("input", f"must have 1 to {INPUTS_MOST} artifacts")
    for index, item in enumerate(items):
        type_, payload = (item.get("type"), item.get("payload")) if isinstance(item, dict) else (None, None)
        if not isinstance(type_, str) or not isinstance(payload, dict):
            raise ValidationFailed.of(f"input[{index}]", "must be an artifact: an object with type and payload")
        found.append((type_, payload))
    return found
