"""What steps may ask of each other, beyond a graph without cycles: branches' cases, and steps that undo others."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from graphlib import CycleError, TopologicalSorter

from millstream.domain.errors import FieldFault
from millstream.domain.workflows import OnFailure, Step, StepKind

OTHERWISE = "default"
"""The case of a branch of which no case holds."""
_UNDOING = frozenset({StepKind.TASK, StepKind.AGENT, StepKind.WORKFLOW, StepKind.PUBLISH})


def ancestors(steps: Sequence[Step]) -> dict[int, int]:
    """For each step those that have ended when it starts, as a set of bits: bit n for step n. Steps within or after a
    cycle are left out. Of a step that undoes another, the other one and what that comes after count too."""
    place = places(steps)
    needs = {number: {place[need] for need in step.needs if need in place} for number, step in enumerate(steps)}
    for number, step in enumerate(steps):
        undo = place.get(step.compensation)
        if undo is not None and undo != number:
            needs[undo].add(number)
    sorter = TopologicalSorter(needs)
    found: dict[int, int] = {}
    with suppress(CycleError):
        sorter.prepare()
    # What no cycle blocks is told, cycle or not.
    while ready := sorter.get_ready():
        for number in ready:
            bits = 0
            for need in needs[number]:
                bits |= found[need] | 1 << need
            found[number] = bits
        sorter.done(*ready)
    return found


def places(steps: Sequence[Step]) -> dict[str, int]:
    """Number of each step by its id; of a doubled id, the first."""
    found: dict[str, int] = {}
    for number, step in enumerate(steps):
        found.setdefault(step.id, number)
    return found


def rule_faults(steps: Sequence[Step]) -> Iterator[FieldFault]:
    """What is wrong between steps: needs that are doubled or can never be met, and what undoes what."""
    place = places(steps)
    owners: dict[int, int] = {}
    for number, step in enumerate(steps):
        yield from _needs(steps, place, number)
        if step.kind is StepKind.BRANCH:
            yield from _cases(step, number)
        if step.on_failure is OnFailure.COMPENSATE:
            yield from _compensation(steps, place, number, owners)
    yield from _undoing(steps, place, owners)


def _needs(steps: Sequence[Step], place: Mapping[str, int], number: int) -> Iterator[FieldFault]:
    step = steps[number]
    cases = [*step.cases]
    seen: dict[str, int] = {}
    for index, need in enumerate(step.needs):
        field = f"steps[{number}].needs[{index}]"
        case = cases.pop(0)[1] if cases and cases[0][0] == need else ""
        if need in seen:
            text = f"{need!r} stands in needs[{seen[need]}] already"
            if case:
                text += "; a branch takes one of its cases only"
            yield FieldFault(field, text, "DUPLICATE")
        seen.setdefault(need, index)
        found = place.get(need)
        if found is None or not case:
            continue
        if steps[found].kind is not StepKind.BRANCH:
            text = f"{need!r} is no branch, so there is no case {case!r} of it; name the step alone"
            yield FieldFault(field, text, "NOT_FOUND")
        elif case != OTHERWISE and case not in (known := dict(steps[found].branches)):
            text = f"the branch {need!r} has no case {case!r}; there are {', '.join([*known, OTHERWISE])}"
            yield FieldFault(field, text, "NOT_FOUND")


def _cases(step: Step, number: int) -> Iterator[FieldFault]:
    seen: dict[str, int] = {}
    for index, (name, _) in enumerate(step.branches):
        field = f"steps[{number}].branches[{index}].name"
        if name == OTHERWISE:
            yield FieldFault(field, f"{OTHERWISE!r} is the case where none of the others holds; choose another name")
        elif name in seen:
            yield FieldFault(field, f"{name!r} is branches[{seen[name]}] already", "DUPLICATE")
        seen.setdefault(name, index)


def _compensation(
    steps: Sequence[Step], place: Mapping[str, int], number: int, owners: dict[int, int]
) -> Iterator[FieldFault]:
    """Faults of a step's compensation; noted in `owners` where there is one."""
    step, field = steps[number], f"steps[{number}].on_failure.compensate"
    undo = place.get(step.compensation)
    if undo is None:
        yield FieldFault(field, f"there is no step {step.compensation!r}", "NOT_FOUND")
    elif undo == number:
        yield FieldFault(field, "a step cannot undo itself; name another one")
    elif undo in owners:
        text = f"{step.compensation!r} undoes {steps[owners[undo]].id!r} already; a step undoes one other"
        yield FieldFault(field, text, "DUPLICATE")
    else:
        owners[undo] = number


def _undoing(steps: Sequence[Step], place: Mapping[str, int], owners: Mapping[int, int]) -> Iterator[FieldFault]:
    """Faults of the steps that undo others: they never start by themselves."""
    before = ancestors([*steps])
    for undo, owner in owners.items():
        step, field = steps[undo], f"steps[{undo}]"
        undone = steps[owner].id
        if step.kind not in _UNDOING:
            known = ", ".join(sorted(_UNDOING))
            yield FieldFault(f"{field}.kind", f"a step that undoes another ({undone!r}) is one of {known}")
        if step.on_failure is OnFailure.COMPENSATE:
            yield FieldFault(f"{field}.on_failure", f"it undoes {undone!r} itself; nothing undoes that")
        for index, need in enumerate(step.needs):
            found = place.get(need)
            if found is not None and found != owner and owner in before and not before[owner] >> found & 1:
                text = f"{need!r} has not ended when {undone!r} starts, which this step undoes; leave it out"
                yield FieldFault(f"{field}.needs[{index}]", text)
    for number, step in enumerate(steps):
        for index, need in enumerate(step.needs):
            if place.get(need) in owners:
                text = (
                    f"{need!r} undoes {steps[owners[place[need]]].id!r}: it runs after a failure only, nothing needs it"
                )
                yield FieldFault(f"steps[{number}].needs[{index}]", text)
