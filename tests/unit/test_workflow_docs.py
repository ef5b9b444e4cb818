"""The definitions that the documentation shows are fine."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from tests.unit.test_workflow_rules import Sandbox

from millstream.adapters.schemas import JsonSchemas
from millstream.adapters.values import CelExpressions
from millstream.application.definitions import json_schema
from millstream.application.workflow_rules import examine
from millstream.cli.definitions import definitions_of

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs" / "workflows.md"]


def examples(page: Path, folder: Path) -> list[dict[str, Any]]:
    """The definitions of a page."""
    found = []
    for number, text in enumerate(re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)):
        file = folder / f"{number}.yaml"
        file.write_text(text)
        found += definitions_of(str(file))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_have_no_faults(page: Path, tmp_path: Path) -> None:
    """WM-2: and no warnings."""
    shown = examples(page, tmp_path)
    assert shown
    for each in shown:
        found = asyncio.run(examine(each, CelExpressions(), JsonSchemas(), Sandbox()))
        assert (found.faults, found.warnings) == ([], [])


def test_every_field_of_a_definition_is_explained() -> None:
    text = PAGES[1].read_text()
    schema = json_schema()
    for name, model in {"": schema, **schema["$defs"]}.items():
        for field in model.get("properties", {}):
            assert f"`{field}`" in text or f"{{{field}" in text or f"`{{{field}, " in text or f", {field}}}" in text, (
                f"{name}.{field}"
            )
