"""CEL expressions, by Google's C++ implementation.

Loops share a budget of 10,000 iterations an evaluation, regular expressions run in RE2, which takes linear time, and
an expression has at most 2,000 characters (the contract's rule). What happens within an iteration is bounded by nothing
but the size of the payload, though: it may compare large maps, or add long texts. So the work of an evaluation is
estimated from above, and where that is much, the evaluation is left to the sandbox.
"""

import hashlib
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
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
    """Compiles predicates and keys over `payload` and `artifact`."""

    def compile(self, text: str) -> "Predicate":
        """A predicate. Raises ValueError, with line and column, on an expression that does not compile or is no
        condition."""
        return Predicate(compiled(text), Cost(text))

    def compile_key(self, text: str) -> "KeyOf":
        """A key. Raises ValueError, likewise, or where it is no text, number or bool."""
        return KeyOf(compiled(text, KEY_TYPES), Cost(text))


class Cost:
    """What an evaluation may cost."""

    __slots__ = ("_loops", "_steps")

    def __init__(self, text: str) -> None:
        # Words within texts are counted too: it is an estimate from above.
        self._loops = len(_loops_in(text))
        self._steps = 1 + len(text) // _STEP_CHARACTERS + _PATTERN_STEPS * len(_patterns_in(text))

    def check(self, size_bytes: int) -> None:
        """Raise Costly where to evaluate it for a payload of so many bytes may take long."""
        values = size_bytes // _VALUE_BYTES + 10
        rounds = 1
        if self._loops:
            rounds = ITERATIONS_MOST if self._loops > 1 else min(values, ITERATIONS_MOST)
        if self._loops > _LOOPS_HERE or self._steps * values * rounds > HERE_MOST:
            raise Costly


@dataclass(frozen=True, slots=True)
class Predicate:
    """A compiled condition."""

    expression: Any
    cost: Cost

    def __call__(self, variables: Mapping[str, Json], size_bytes: int = 0) -> bool:
        """Whether it holds for a payload of so many bytes. Raises Costly where to find out may take long."""
        self.cost.check(size_bytes)
        return holds(self.expression, variables)


@dataclass(frozen=True, slots=True)
class KeyOf:
    """A compiled key."""

    expression: Any
    cost: Cost

    def __call__(self, variables: Mapping[str, Json], size_bytes: int = 0) -> str | None:
        """The key of a payload of so many bytes; None where it has none. Raises Costly, as a predicate does."""
        self.cost.check(size_bytes)
        return key(self.expression, variables)


CONDITION_TYPES = frozenset({"BOOL", "DYN"})
KEY_TYPES = frozenset({"BOOL", "DYN", "STRING", "INT", "UINT", "DOUBLE"})
KEY_CHARS_MOST = 200
"""A longer key is kept as its hash."""


def compiled(text: str, types: Set[str] = CONDITION_TYPES) -> Any:
    """The expression, of one of these types. Raises ValueError."""
    try:
        expression = _ENVIRONMENT.compile(text)
    except RuntimeError as error:
        raise ValueError(reason_of(str(error))) from error
    kind = expression.return_type().name()
    if kind not in types:
        wanted = "true or false" if types is CONDITION_TYPES else "a text, a number, true or false"
        raise ValueError(f"is of type {kind.lower()}; it must be {wanted}")
    return expression


def key(expression: Any, variables: Mapping[str, Json]) -> str | None:
    """The value of a compiled expression as a key: a text as it is, a number without needless digits."""
    try:
        found = expression.eval(data=variables)
    except RuntimeError:
        return None
    # An error, such as of a missing key, is a value too, and its text is no key.
    value = found.value() if found.type().name() in KEY_TYPES else None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int | float):
        return None
    text = str(value)
    return text if len(text) <= KEY_CHARS_MOST else hashlib.sha256(text.encode()).hexdigest()


def holds(expression: Any, variables: Mapping[str, Json]) -> bool:
    """Whether a compiled expression is true."""
    try:
        return expression.eval(data=variables).value() is True
    except RuntimeError:
        # A missing key, a wrong type or a spent budget: the artifact does not satisfy the predicate.
        return False


def reason_of(text: str) -> str:
    """The first line of the compiler's report, without its prefix."""
    line = text.splitlines()[0]
    return line.removeprefix("INVALID_ARGUMENT: ").removeprefix("ERROR: ").replace("<input>:", "line ")
