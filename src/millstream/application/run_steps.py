"""The steps of a run, as they stand."""

from collections.abc import Sequence
from typing import Protocol

from millstream.application.advancing import Advancing
from millstream.application.children import child_of
from millstream.application.paging import (
    Page,
    PageRequest,
    decode_token,
    encode_token,
    fitting,
    page_info,
    token_count,
    token_of,
)
from millstream.application.step_values import Outcome
from millstream.application.views.steps import ItemCounts, StepView
from millstream.domain.errors import NotFound
from millstream.domain.graph import ENDED, Graph, StepState
from millstream.domain.principals import Principal
from millstream.domain.runs import Run, RunKind, Task, TaskStatus
from millstream.domain.workflows import StepKind

_STATES = {
    StepState.WAITING: "WAITING",
    StepState.RESERVED: "WAITING",
    StepState.DUE: "PENDING",
    StepState.COMPLETED: "COMPLETED",
    StepState.SKIPPED: "SKIPPED",
    StepState.FAILED: "FAILED",
    StepState.CANCELLED: "CANCELLED",
}
_TASKS = {
    TaskStatus.IN_LINE: "PENDING",
    TaskStatus.SCHEDULED: "PENDING",
    TaskStatus.PENDING: "PENDING",
    TaskStatus.RUNNING: "RUNNING",
}


class StepReads(Protocol):
    """What is read of steps; see store.runs."""

    async def run(self, tenant: str, run_id: str) -> Run | None: ...
    async def step_tasks(self, found: Run) -> dict[int, Task]: ...
    async def item_counts(self, found: Run) -> dict[int, ItemCounts]: ...


class RunSteps:
    """The use case of reading a run's steps."""

    def __init__(self, advancing: Advancing, reads: StepReads) -> None:
        self._advancing = advancing
        self._reads = reads

    async def list(self, principal: Principal, run_id: str, request: PageRequest) -> Page[StepView]:
        """Steps in the order of the definition. Raises NotFound; a run without a definition has none."""
        request.check()
        run = await self._reads.run(principal.tenant, run_id)
        if run is None:
            raise NotFound(f"there is no run {run_id}")
        found = await self._steps(run) if run.kind is RunKind.GRAPH else []
        start = request.skip
        if request.page_token:
            start = decode_token(request.page_token, token_of("steps"), token_count)[1]
        rest = found[start:]
        page = fitting(rest, request.size, lambda each: 400 + len(each.input) + len(each.output))
        token = encode_token("steps", start + len(page)) if len(rest) > len(page) else ""
        return Page(page, page_info(request, (len(found), False), token))

    async def _steps(self, run: Run) -> Sequence[StepView]:
        definition, values = await self._advancing.values_of(run)
        tasks, counts = await self._reads.step_tasks(run), await self._reads.item_counts(run)
        graph = Graph(definition, run.plan)
        found = []
        for number, spec in enumerate(definition.steps):
            task = tasks.get(number) if graph.state(number) not in (StepState.WAITING, StepState.DUE) else None
            outcome = values.outcomes.get(number)
            shown = outcome is not None and graph.state(number) is StepState.COMPLETED
            found.append(
                StepView(
                    spec.id,
                    str(spec.kind),
                    self._status(run, graph, number, task),
                    spec.needs,
                    task,
                    task.input if task is not None else b"",
                    outcome.output.wire if shown and outcome is not None else b"",
                    counts.get(number) if spec.kind is StepKind.MAP else None,
                    child_of(task) if task is not None and spec.begins_a_run else "",
                    _error_of(outcome) if outcome is not None and task is None else ("", ""),
                )
            )
        return found

    def _status(self, run: Run, graph: Graph, number: int, task: Task | None) -> str:
        state = graph.state(number)
        if state is StepState.OPEN:
            return _TASKS.get(task.status, "RUNNING") if task is not None else "RUNNING"
        if run.finished_us and state not in ENDED:
            # What never came to be in a run that has ended.
            return "SKIPPED" if state is StepState.RESERVED else "CANCELLED"
        return _STATES[state]


def _error_of(outcome: Outcome) -> tuple[str, str]:
    error = outcome.error or {}
    return str(error.get("code", "")), str(error.get("message", ""))
