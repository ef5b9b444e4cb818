"""The planner of graph runs against a simple reference: in whatever order steps end, the same becomes of each."""

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from millstream.domain.graph import Decision, FailStep, Graph, SkipStep, StartStep, StepState, note
from millstream.domain.workflows import Definition, OnFailure, Step, StepKind, cycles, graph_faults

STEPS_MOST = 6
OUTCOMES = {"done": StepState.COMPLETED, "broken": StepState.FAILED, "left out": StepState.SKIPPED}


def step(number: int, needs: list[int], on_failure: OnFailure = OnFailure.CONTINUE) -> Step:
    """A task that needs others."""
    return Step(str(number), StepKind.TASK, "work", tuple(map(str, needs)), on_failure=on_failure)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Definition, list[str]]:
    """A definition, and what becomes of each step that may run."""
    count = draw(st.integers(1, STEPS_MOST))
    needs = [sorted(draw(st.sets(st.integers(0, number - 1)))) if number else [] for number in range(count)]
    outcomes = draw(st.lists(st.sampled_from(sorted(OUTCOMES)), min_size=count, max_size=count))
    return Definition("w", tuple(step(number, each) for number, each in enumerate(needs))), outcomes


def expected(definition: Definition, outcomes: list[str]) -> list[StepState]:
    """What becomes of each step, one after the other in the order of their numbers, which is one of their needs."""
    found: list[StepState] = []
    for number, outcome in enumerate(outcomes):
        needs = [found[need] for need in definition.needs[number]]
        runs = not needs or any(need in (StepState.COMPLETED, StepState.FAILED) for need in needs)
        found.append(OUTCOMES[outcome] if runs else StepState.SKIPPED)
    return found


class Player:
    """Plays a run: decides what is due, now or later, and ends what is open."""

    def __init__(self, definition: Definition, outcomes: list[str]) -> None:
        self.outcomes = outcomes
        self.definition = definition
        self.graph = Graph(definition)
        self.open: list[int] = []
        self.started: list[int] = []

    def decide(self, known: Mapping[int, Decision] | None = None) -> list[int]:
        """Decide all that is due, or only what is known; steps left."""
        graph = Graph(self.definition, self.graph.text)  # it survives being packed

        def decision(number: int) -> Decision | None:
            if known is not None:
                return known.get(number)
            return SkipStep() if self.outcomes[number] == "left out" else StartStep()

        left, failed = graph.decide(decision, lambda number, *_: self._start(number))
        assert failed is None
        self.graph = graph
        return left

    def _start(self, number: int) -> None:
        self.open.append(number)
        self.started.append(number)

    def end(self, number: int) -> list[int]:
        """End an open step; what is due by it."""
        self.open.remove(number)
        return self.graph.ended(number, OUTCOMES[self.outcomes[number]])


@given(graphs(), st.randoms(use_true_random=False))
def test_the_order_of_ends_changes_nothing(drawn: tuple[Definition, list[str]], chance: object) -> None:
    """WM-2: each step runs at most once, after all it needs; the end is the same for every order."""
    definition, outcomes = drawn
    player = Player(definition, outcomes)
    player.decide()
    while player.open:
        number = player.open[chance.randrange(len(player.open))]  # type: ignore[attr-defined]
        for need in definition.before(number):
            assert player.graph.state(need) not in (StepState.WAITING, StepState.DUE, StepState.OPEN)
        player.end(number)
        if chance.random() < 0.7 or not player.open:  # type: ignore[attr-defined]
            player.decide()
    assert player.graph.idle
    assert [player.graph.state(number) for number in range(len(outcomes))] == expected(definition, outcomes)
    assert len(player.started) == len({*player.started})


def test_what_nobody_decided_is_left_due() -> None:
    """A join whose needs end in one batch: neither completion brought its decision along."""
    definition = Definition("w", (step(0, []), step(1, []), step(2, [0, 1])))
    player = Player(definition, ["done"] * 3)
    player.decide()
    assert (player.end(0), player.end(1)) == ([], [2])
    assert player.decide({}) == [2]
    assert not player.graph.idle
    assert player.decide({2: StartStep(b"x")}) == []
    assert player.open == [2]


def test_a_failure_that_is_not_tolerated_ends_the_run() -> None:
    definition = Definition("w", (step(0, []), step(1, [0], OnFailure.FAIL), step(2, [0])))
    graph = Graph(definition)
    begun: list[int] = []
    graph.decide(lambda _: StartStep(), lambda number, *_: begun.append(number))
    graph.ended(0, StepState.COMPLETED)
    broken = FailStep("EXPRESSION_ERROR", "no such key")
    decisions: dict[int, Decision] = {1: broken, 2: StartStep()}
    left, failed = graph.decide(decisions.get, lambda number, *_: begun.append(number))
    assert (left, failed, begun) == ([], (1, broken), [0])


def test_faults_of_a_graph_are_named_by_their_fields() -> None:
    """WM-2: doubled ids, of which the first counts, unknown needs and cycles, all of them at once."""
    steps = (step(0, [3]), step(0, []), step(2, [9, 2]), step(3, [0]))
    assert [(each.field, each.code) for each in graph_faults(steps)] == [
        ("steps[1].id", "DUPLICATE"), ("steps[2].needs[0]", "NOT_FOUND"), ("steps[0].needs", "CYCLE"),
        ("steps[2].needs", "CYCLE"),
    ]  # fmt: skip


def test_each_cycle_is_told() -> None:
    needs = {"a": ["c"], "b": ["a"], "c": ["b"], "d": ["d"], "e": ["a"], "f": ["g"], "g": ["f"]}
    assert sorted(sorted(each) for each in cycles(needs)) == [["a", "b", "c"], ["d"], ["f", "g"]]
    chain = {str(number): [str(number - 1)] if number else [] for number in range(5000)}
    assert list(cycles(chain)) == []


def played(definition: Definition, *ends: tuple[int, StepState]) -> Graph:
    """A run in which these steps ended so, in this order."""
    graph = Graph(definition)
    for number, state in ends:
        graph.decide(lambda _: StartStep(), lambda *_: None)
        graph.ended(number, state)
    return graph


CHAIN = Definition("w", tuple(step(number, [number - 1] if number else [], OnFailure.FAIL) for number in range(4)))
DONE, BROKEN = StepState.COMPLETED, StepState.FAILED


def test_a_retry_keeps_what_was_done() -> None:
    """WM-4, FV-9: it resumes at the incomplete ones."""
    graph = played(CHAIN, (0, DONE), (1, DONE), (2, BROKEN))
    graph.again()
    assert (graph.text, graph.due()) == ("ccd-", [2])


def test_a_retry_from_a_step_begins_it_and_all_that_needs_it_again() -> None:
    graph = played(CHAIN, (0, DONE), (1, DONE), (2, DONE), (3, BROKEN))
    graph.again(1)
    assert graph.text == "cd--"


def test_a_retry_begins_again_what_was_undone() -> None:
    """What compensations took back is not there any more."""
    first = Step("0", StepKind.TASK, "work", on_failure=OnFailure.COMPENSATE, compensation="3")
    spare = Step("3", StepKind.TASK, "undo")
    definition = Definition("w", (first, step(1, [0], OnFailure.FAIL), step(2, [], OnFailure.FAIL), spare))
    graph = played(definition, (0, DONE), (2, DONE), (1, BROKEN))
    assert graph.failed == (1, None)
    graph.put(3, DONE)
    graph.again()
    assert graph.text == "d-cr"


def test_a_tolerated_failure_is_not_begun_again() -> None:
    definition = Definition("w", (step(0, []), step(1, [0], OnFailure.FAIL)))
    graph = played(definition, (0, BROKEN), (1, BROKEN))
    graph.again()
    assert graph.text == "fd"


@given(st.integers(1, 12), st.integers(1, 5), st.randoms(use_true_random=False), st.booleans())
def test_a_map_begins_each_item_once_and_few_at_once(total: int, width: int, chance: object, fails: bool) -> None:
    """Whatever order they end in, and however it is packed meanwhile; a failure that counts lets no other begin."""
    spec = Step("0", StepKind.MAP, over="x", each=step(0, []), width=width, on_failure=OnFailure.FAIL)
    definition = Definition("w", (spec, step(1, [0])))
    begun: list[int] = []
    decision = StartStep(items=(b"x",) * total)
    plan, open_items, failed = "", set[int](), False
    while True:
        graph = Graph(definition, plan)
        graph.look()
        before = len(begun)
        graph.decide(lambda number: decision if number == 0 else None, lambda _, __, item: begun.append(item))
        assert not (failed and len(begun) > before)
        open_items |= {*begun[before:]}
        plan = graph.text
        assert len(open_items) <= width
        if not open_items:
            break
        for item in sorted(open_items)[: chance.randrange(1, len(open_items) + 1)]:  # type: ignore[attr-defined]
            open_items.discard(item)
            broken = fails and item == 2
            failed |= broken
            plan = note(plan, 1, item, BROKEN if broken else DONE)
    assert begun == [*range(1, len(begun) + 1)]
    assert failed or len(begun) == total
    assert graph.state(0) is (BROKEN if failed else DONE)
