"""Templates: JSON whose texts of the form "${CEL}" stand for the value of the expression."""

import re
from collections.abc import Iterator, Mapping

from millstream.domain.workflows import Template

VARIABLES = frozenset({"input", "steps", "result", "item", "index"})
"""What expressions of a workflow may be about; each place in a document has some of them."""
_whole = re.compile(r"\$\{(.*)\}", re.DOTALL).fullmatch


def expression_of(text: str) -> str | None:
    """The expression that a text stands for; None where it stands for itself."""
    found = _whole(text)
    return found[1] if found else None


def expressions_in(template: Template, path: str = "") -> Iterator[tuple[str, str]]:
    """The expressions of a template, each with its path."""
    for where, text in texts_in(template, path):
        found = expression_of(text)
        if found is not None:
            yield where, found


def texts_in(template: Template, path: str = "") -> Iterator[tuple[str, str]]:
    """The texts of a template, each with its path."""
    if isinstance(template, str):
        yield path, template
    elif isinstance(template, Mapping):
        for key, each in template.items():
            yield from texts_in(each, f"{path}.{key}" if path else key)
    elif isinstance(template, tuple):
        for index, each in enumerate(template):
            yield from texts_in(each, f"{path}[{index}]")
