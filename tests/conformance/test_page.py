"""The page on the protocol has every rule, with the scenarios that check it, and all that a worker is told."""

import re
from pathlib import Path

from millstream.conformance import ALWAYS, RULES, SCENARIOS
from millstream.conformance.kinds import INPUT, KINDS, OPTIONAL_KINDS, OUTPUT, PUBLISHER, environment

PAGE = (Path(__file__).parents[2] / "docs" / "worker-protocol.md").read_text()


def line(rule: str) -> str:
    """The rule's line of the table."""
    names = [f"`{each.name}`" for each in SCENARIOS.values() if rule in each.rules]
    checked = ", ".join(names)
    if rule in ALWAYS["poll"]:
        checked = "every one that polls"
    if rule in ALWAYS["stream"]:
        checked = "every one of the stream" if rule not in ALWAYS["poll"] else "every one"
    return f"| {rule} | {RULES[rule]} | {checked} |"


def test_the_table_of_rules_is_that_of_the_kit() -> None:
    assert re.findall(r"^\| W\d+ \|.*$", PAGE, re.MULTILINE) == [line(rule) for rule in RULES]


def test_every_rule_is_explained_where_its_subject_is() -> None:
    text = PAGE[: PAGE.index("## The rules")]
    assert set(re.findall(r"\bW\d+\b", text)) == RULES.keys()


def test_what_a_worker_has_to_serve_and_finds_is_told() -> None:
    assert re.findall(r"^\| `(conformance\.\w+)` \|", PAGE, re.MULTILINE) == [*KINDS, *OPTIONAL_KINDS]
    assert re.findall(r"^\| `(MILLSTREAM_\w+)` \|", PAGE, re.MULTILINE) == [*environment("")]
    assert all(name in PAGE for name in (PUBLISHER, INPUT, OUTPUT))
