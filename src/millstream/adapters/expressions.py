"""CEL expressions, by Google's C++ implementation.

Loops share a budget of 10,000 iterations an evaluation, regular expressions run in RE2, which takes linear time, and
an expression has at most 2,000 characters (the contract's rule). What happens within an iteration is bounded by nothing
but the size of the payload, though: it may compare large maps, or add long texts. So the work of an evaluation is
estimated from above, and where that is much, the evaluation is left to the sandbox.
"""

import re
from collections.abc import Mapping
from typing import Any

from cel_expr_python import cel

from millstream.application.ports import Costly
from millstream.domain.struct_wire import Json

_ENVIRONMENT = cel.NewEnv(variables={"payload": cel.Type.DYN, "artifact": cel.Type.DYN})

HERE_MOST = 2_000_000
"""Values that an evaluation may look at within the server; to compare one takes about 75 ns (large maps)."""
ITERATIONS_MOST = 10_000
_LOOPS_HERE = 2
"""Three loops can multiply a text of theirs by more than the payload's size tells."""
_VALUE_BYTES = 4
"""The smallest value of a payload: a null in a list."""
_STEP_CHARACTERS = 16
_PATTERN_STEPS = 50
_loops_in = re.compile(r"\b(?:all|exists|exists_one|existsOne|map|filter)\b").findall
_patterns_in = re.compile(r"\bmatches\b").findall


class CelPredicates:
    """Compiles predicates over `payload` and `artifact`."""

    def compile(self, text: str) -> "Predicate":
        """A predicate. Raises ValueError, with line and column, on an expression that does not compile or is no
        condition."""
        return Predicate(text)


class Predicate:
    """A compiled condition."""

    __slots__ = ("_expression", "_loops", "_steps")

    def __init__(self, text: str) -> None:
        self._expression = compiled(text)
        # Words within texts are counted too: it is an estimate from above.
        self._loops = len(_loops_in(text))
        self._steps = 1 + len(text) // _STEP_CHARACTERS + _PATTERN_STEPS * len(_patterns_in(text))

    def __call__(self, variables: Mapping[str, Json], size_bytes: int = 0) -> bool:
        """Whether it holds for a payload of so many bytes. Raises Costly where to find out may take long."""
        values = size_bytes // _VALUE_BYTES + 10
        rounds = 1
        if self._loops:
            rounds = ITERATIONS_MOST if self._loops > 1 else min(values, ITERATIONS_MOST)
        if self._loops > _LOOPS_HERE or self._steps * values * rounds > HERE_MOST:
            raise Costly
        return holds(self._expression, variables)


def compiled(text: str) -> Any:
    """The expression. Raises ValueError."""
    try:
        expression = _ENVIRONMENT.compile(text)
    except RuntimeError as error:
        raise ValueError(_reason(str(error))) from error
    kind = expression.return_type().name()
    if kind not in ("BOOL", "DYN"):
        raise ValueError(f"is of type {kind.lower()}; it must be true or false")
    return expression


def holds(expression: Any, variables: Mapping[str, Json]) -> bool:
    """Whether a compiled expression is true."""
    try:
        return expression.eval(data=variables).value() is True
    except RuntimeError:
        # A missing key, a wrong type or a spent budget: the artifact does not satisfy the predicate.
        return False


def _reason(text: str) -> str:
    """The first line of the compiler's report, without its prefix."""
    line = text.splitlines()[0]
    return line.removeprefix("INVALID_ARGUMENT: ").removeprefix("ERROR: ").replace("<input>:", "line ")
