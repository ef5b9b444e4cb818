"""CEL expressions, by Google's C++ implementation.

Its evaluation is bounded by itself: loops share a budget of 10,000 iterations an evaluation, and regular expressions
run in RE2, which takes linear time. Expressions are at most 2,000 characters (the contract's rule).
"""

from collections.abc import Callable, Mapping

from cel_expr_python import cel

from millstream.domain.struct_wire import Json

_ENVIRONMENT = cel.NewEnv(variables={"payload": cel.Type.DYN, "artifact": cel.Type.DYN})


class CelPredicates:
    """Compiles predicates over `payload` and `artifact`."""

    def compile(self, text: str) -> Callable[[Mapping[str, Json]], bool]:
        """A predicate. Raises ValueError, with line and column, on an expression that does not compile or is no
        condition."""
        try:
            expression = _ENVIRONMENT.compile(text)
        except RuntimeError as error:
            raise ValueError(_reason(str(error))) from error
        kind = expression.return_type().name()
        if kind not in ("BOOL", "DYN"):
            raise ValueError(f"is of type {kind.lower()}; it must be true or false")

        def holds(variables: Mapping[str, Json]) -> bool:
            try:
                return expression.eval(data=variables).value() is True
            except RuntimeError:
                # A missing key, a wrong type or a spent budget: the artifact does not satisfy the predicate.
                return False

        return holds


def _reason(text: str) -> str:
    """The first line of the compiler's report, without its prefix."""
    line = text.splitlines()[0]
    return line.removeprefix("INVALID_ARGUMENT: ").removeprefix("ERROR: ").replace("<input>:", "line ")
