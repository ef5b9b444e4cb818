"""docs/testing.md: its examples run as they stand."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"


def examples() -> dict[str, Any]:
    """What the page defines, taken as one file."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
    found: dict[str, Any] = {"__name__": "page"}
    exec(compile(code, PAGE.name, "exec"), found)
    return found


EXAMPLES = examples()


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name.startswith("test_")])
async def test_the_examples_of_the_page_pass(name: str, tmp_path: Path) -> None:
    """Each of them is a test."""
    example = EXAMPLES[name]
    assert inspect.iscoroutinefunction(example)
    await (example(tmp_path) if inspect.signature(example).parameters else example())
