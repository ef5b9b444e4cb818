"""Holding workflows and letting them go on."""

from collections.abc import Callable, Sequence, Set
from typing import Protocol

from millstream.application.code_workflows import CodeWorkflows
from millstream.application.pauses import Pauses
from millstream.application.registering import Registering
from millstream.application.views.idempotency import Key
from millstream.application.views.workflows import WorkflowHead, WorkflowPause
from millstream.domain.agents import Pause
from millstream.domain.code import LEAD
from millstream.domain.errors import NotFound
from millstream.domain.principals import Principal

LISTED_MOST = 1000


class PauseReads(Protocol):
    """What is read; see store.workflows, store.registry and store.runs."""

    async def find(self, tenant: str, id_or_name: str) -> WorkflowHead | None: ...


class Paused(Protocol):
    """Reads pauses; see store.registry."""

    async def pauses(self, tenant: str = "") -> Sequence[Pause]: ...


class DueRuns(Protocol):
    """Reads runs; see store.runs."""

    async def due_of(self, tenant: str, workflow: str) -> list[str]: ...


class WorkflowPauses:
    """The use cases of holding workflows.

    Args:
        look: Has runs looked at.
    """

    def __init__(
        self,
        registering: Registering,
        pauses: Pauses,
        registry: Paused,
        workflows: PauseReads,
        code: CodeWorkflows,
        runs: DueRuns,
        look: Callable[[Set[str]], None],
    ) -> None:
        self._registering = registering
        self._pauses = pauses
        self._registry = registry
        self._workflows = workflows
        self._code = code
        self._runs = runs
        self._look = look

    async def pause(
        self, principal: Principal, id_or_name: str, reason: str, key: Key | None
    ) -> tuple[WorkflowPause, bool]:
        """Hold a workflow; whether it is a replay. Raises NotFound, IdempotencyConflict."""
        name = await self._name(principal, id_or_name)
        replayed = await self._registering.pause_workflow(principal, name, reason, key)
        await self._pauses.changed_here()
        found = await self.list(principal)
        held = next((each for each in found if each.workflow == name), None)
        # It was resumed meanwhile: this call did hold it.
        return held or WorkflowPause(name, 0, principal.name, reason), replayed

    async def resume(self, principal: Principal, id_or_name: str, key: Key | None) -> tuple[str, bool]:
        """Let a workflow go on; its name, and whether it is a replay. Raises NotFound, IdempotencyConflict."""
        name = await self._name(principal, id_or_name)
        replayed = await self._registering.pause_workflow(principal, name, None, key)
        await self._pauses.changed_here()
        self._look({*await self._runs.due_of(principal.tenant, name)})
        return name, replayed

    async def list(self, principal: Principal) -> list[WorkflowPause]:
        """Workflows that are held, by name."""
        found = await self._registry.pauses(principal.tenant)
        held = [
            WorkflowPause(each.kind.removeprefix(LEAD), each.paused_us, each.paused_by, each.reason)
            for each in found
            if each.kind.startswith(LEAD) and not each.queue
        ]
        return sorted(held, key=lambda each: each.workflow)[:LISTED_MOST]

    async def _name(self, principal: Principal, id_or_name: str) -> str:
        head = await self._workflows.find(principal.tenant, id_or_name)
        if head is not None:
            # Runs of one that was deleted go on, and may have to be held, too.
            return head.name
        if not await self._code.known(principal.tenant, id_or_name):
            raise NotFound(f"there is no workflow {id_or_name!r}")
        return id_or_name
