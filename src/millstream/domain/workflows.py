"""Workflow definitions: steps in a directed acyclic graph, and what is wrong with one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from graphlib import CycleError, TopologicalSorter
from typing import Final, TypeAlias, Union

from millstream.domain.errors import FieldFault
from millstream.domain.retry import DEFAULT_RETRY, DEFAULT_TIMEOUTS, RetryPolicy, Timeouts

STEPS_MOST = 1000
"""Steps of a definition: a run keeps a character for each in its row."""

Template: TypeAlias = Union[bool, int, float, str, "tuple[Template, ...]", "Mapping[str, Template]", None]
"""JSON whose texts of the form "${CEL}" stand for the value of the expression."""

DEFAULT_QUEUE: Final = "default"
"""Of steps that name none."""


class StepKind(StrEnum):
    """What a step does."""

    TASK = "task"
    AGENT = "agent"
    WORKFLOW = "workflow"
    PUBLISH = "publish"
    WAIT_PROMISE = "wait_promise"
    SLEEP = "sleep"
    MAP = "map"
    BRANCH = "branch"


class OnFailure(StrEnum):
    """What the final failure of a step means for its run."""

    FAIL = "fail"
    CONTINUE = "continue"
    COMPENSATE = "compensate"


@dataclass(frozen=True, slots=True)
class Step:
    """One step.

    Attributes:
        target: Of a task its kind, of an agent, a workflow or a promise its name, of a publication the artifact's
            type; "" for others.
        needs: Ids of steps that must have ended before: it starts once all have, and one of them was not skipped.
        cases: Of branches among its needs, the case that must have been taken: (step's id, case).
        when: CEL; where it is false the step is skipped. "": always.
        input: What it is given; of a publication the payload.
        output: What its result becomes for later steps, over `result`; None: as it is.
        sleep: How long a sleep takes, seconds or CEL of such; None for others.
        over: Of a map, CEL of a list: `each` runs for each of its items, which is `item` and has the number `index`.
        each: Of a map, what is done for an item: a step of kind task, agent or workflow.
        width: Of a map, how many items are worked on at once.
        branches: Of a branch, its cases (name, CEL) in order; the first that holds is taken, else "default".
        key: Of a promise, a template of its key; None: it is found by its id alone.
        version: Of a workflow, the version; "": the latest.
        wait: Of a publication, that it has ended once its cascade has.
        compensation: The step that undoes it, where on_failure is COMPENSATE. That step never starts by itself.
        concurrency_key: A template: of the tasks of one key, over all runs, only so many run at once. None: no bound.
        concurrency_limit: How many; 0 where there is no key.
    """

    id: str
    kind: StepKind
    target: str = ""
    needs: tuple[str, ...] = ()
    cases: tuple[tuple[str, str], ...] = ()
    when: str = ""
    input: Template = None
    output: Template = None
    sleep: float | str | None = None
    over: str = ""
    each: "Step | None" = None
    width: int = 100
    branches: tuple[tuple[str, str], ...] = ()
    key: Template = None
    version: str = ""
    wait: bool = False
    queue: str = DEFAULT_QUEUE
    priority: int = 0
    retry: RetryPolicy = DEFAULT_RETRY
    timeouts: Timeouts = DEFAULT_TIMEOUTS
    on_failure: OnFailure = OnFailure.FAIL
    compensation: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    concurrency_key: Template = None
    concurrency_limit: int = 0

    @property
    def begins_a_run(self) -> bool:
        """What it does is done in a run of its own."""
        return self.kind in (StepKind.AGENT, StepKind.WORKFLOW, StepKind.PUBLISH)


@dataclass(frozen=True)
class Definition:
    """A version of a workflow, with its graph worked out.

    Attributes:
        output: What the run's output is, over `input` and `steps`; None: the outputs of the steps that nothing needs.
        timeout_us: How long a run may take, microseconds; 0: no bound.
        version: Its number, from 1.
        labels: Of its runs, where their caller gives none of that name.
        input_schema: JSON Schema, as text, of what a run is given; "": anything.
        output_schema: JSON Schema, as text, of what a run answers; "": anything.
        place: Number of each step by its id.
        undo: The number of the step that undoes a step, by that step's number, the latest in the order of work first.
        needs: For each step the numbers of those that it needs.
        dependents: For each step the numbers of those that need it.
    """

    name: str
    steps: tuple[Step, ...]
    output: Template = None
    timeout_us: int = 0
    version: int = 0
    labels: tuple[tuple[str, str], ...] = ()
    input_schema: str = ""
    output_schema: str = ""
    undo: Mapping[int, int] = field(init=False)
    place: Mapping[str, int] = field(init=False)
    needs: tuple[tuple[int, ...], ...] = field(init=False)
    dependents: tuple[tuple[int, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        place = {step.id: number for number, step in enumerate(self.steps)}
        needs = tuple(tuple(place[need] for need in step.needs) for step in self.steps)
        dependents: list[list[int]] = [[] for _ in self.steps]
        for number, needed in enumerate(needs):
            for need in needed:
                dependents[need].append(number)
        undo = {
            number: place[self.steps[number].compensation]
            for number in reversed(_in_order(needs))
            if self.steps[number].compensation
        }
        object.__setattr__(self, "undo", undo)
        object.__setattr__(self, "place", place)
        object.__setattr__(self, "needs", needs)
        object.__setattr__(self, "dependents", tuple(map(tuple, dependents)))

    def before(self, number: int) -> frozenset[int]:
        """The steps that have ended when this one starts: all that it needs, directly or not."""
        found: set[int] = set()
        look = list(self.needs[number])
        while look:
            each = look.pop()
            if each not in found:
                found.add(each)
                look += self.needs[each]
        return frozenset(found)


def _in_order(needs: Sequence[Sequence[int]]) -> list[int]:
    """Steps in an order of work. One within a cycle has no place in it."""
    try:
        return [*TopologicalSorter(dict(enumerate(needs))).static_order()]
    except CycleError:
        return []


def graph_faults(steps: Sequence[Step]) -> Iterator[FieldFault]:
    """What is wrong with the graph: doubled ids, needs of steps that there are not, cycles."""
    first: dict[str, int] = {}
    for number, step in enumerate(steps):
        if step.id in first:
            yield FieldFault(f"steps[{number}].id", f"{step.id!r} is steps[{first[step.id]}] already", "DUPLICATE")
        first.setdefault(step.id, number)
    for number, step in enumerate(steps):
        for index, need in enumerate(step.needs):
            if need not in first:
                yield FieldFault(f"steps[{number}].needs[{index}]", f"there is no step {need!r}", "NOT_FOUND")
    # Of a doubled id, the first counts here too.
    needs = {name: [need for need in steps[number].needs if need in first] for name, number in first.items()}
    for cycle in cycles(needs):
        path = " -> ".join([*cycle, cycle[0]])
        yield FieldFault(f"steps[{first[cycle[0]]}].needs", f"is a cycle: {path}", "CYCLE")


def cycles(needs: Mapping[str, Sequence[str]]) -> Iterator[list[str]]:
    """A shortest cycle of each group of steps that all lead to each other, in the order of the work. In linear time: a
    graph of 100,000 needs may come from anybody."""
    for group in _groups(needs):
        start, members = group[0], {*group}
        before: dict[str, str] = {}
        look = [start]
        for step in look:
            for need in needs[step]:
                if need in members and need not in before:
                    before[need] = step
                    look.append(need)
            if start in before:
                break
        path = [start]
        while before[path[-1]] != start:
            path.append(before[path[-1]])
        yield path


def _groups(needs: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Strongly connected components with a cycle, in the order of their first steps, by Tarjan's algorithm (1972)
    without recursion."""
    order = {step: number for number, step in enumerate(needs)}
    found: list[list[str]] = []
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    waiting: list[str] = []
    inside: set[str] = set()
    for root in needs:
        path: list[tuple[str, Iterator[str]]] = [] if root in number else [(root, iter(needs[root]))]
        while path:
            step, left = path[-1]
            if step not in number:
                number[step] = low[step] = len(number)
                waiting.append(step)
                inside.add(step)
            need = next(left, None)
            if need is not None:
                if need not in number:
                    path.append((need, iter(needs[need])))
                elif need in inside:
                    low[step] = min(low[step], number[need])
                continue
            path.pop()
            if path:
                low[path[-1][0]] = min(low[path[-1][0]], low[step])
            if low[step] == number[step]:
                cut = waiting.index(step)
                group, waiting[cut:] = waiting[cut:], []
                inside.difference_update(group)
                if len(group) > 1 or step in needs[step]:
                    found.append(sorted(group, key=order.__getitem__))
    return sorted(found, key=lambda group: order[group[0]])
