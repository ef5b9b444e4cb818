"""The documentation says what the code does: settings, metrics, errors, roles, commands, targets, links, examples."""

import ast
import importlib
import re
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import typer
import yaml
from prometheus_client import CollectorRegistry

from millstream import sdk
from millstream.adapters.metrics import Metrics
from millstream.cli import app as cli
from millstream.config import AgentCredentialSettings, ApiKeySettings, Settings
from millstream.domain.principals import ROLES
from millstream.domain.runs import AttemptStatus
from millstream.transport.errors import STATUSES

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
CONFIGURATION = ROOT / "docs" / "configuration.md"
OBSERVABILITY = ROOT / "docs" / "observability.md"
MONITORING = ROOT / "docs" / "monitoring"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
TEXT = {page: page.read_text() for page in PAGES}
GUIDES = TEXT[README] + TEXT[CONFIGURATION]

# Names that look like settings, and what reads them.
OTHER_VARIABLES = {
    "MILLSTREAM_CONFIG": "src/millstream/config.py",
    "MILLSTREAM_TARGET": "src/millstream/cli/connect.py",
    "MILLSTREAM_API_KEY": "src/millstream/cli/connect.py",
    "MILLSTREAM_CONFORMANCE_KINDS": "src/millstream/conformance/kinds.py",
    "MILLSTREAM_CONFORMANCE_OPTIONAL_KINDS": "src/millstream/conformance/kinds.py",
    "MILLSTREAM_CONFORMANCE_SLOTS": "src/millstream/conformance/kinds.py",
    "MILLSTREAM_CONFORMANCE_LEASE_S": "src/millstream/conformance/kinds.py",
    "MILLSTREAM_ENVOY_BIN": "src/millstream/cli/programs.py",
    "MILLSTREAM_PG_BIN": "src/millstream/store/embedded/binaries.py",
}
INTERNAL_VARIABLES = {"MILLSTREAM_TETHER_POLL"}


def blocks(page: Path, language: str) -> list[str]:
    """The page's blocks of code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT[page], re.DOTALL | re.MULTILINE)


def shown(value: Any) -> str:
    """A default as the table has it."""
    if hasattr(value, "get_secret_value"):
        value = value.get_secret_value()
    if value in ("", []):
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return number(value) if isinstance(value, int | float) else str(value)


def number(value: float) -> str:
    """With commas where they help."""
    return f"{value:g}" if value < 10_000 else f"{value:,}"


def bounds(field: Any) -> str:
    """What a setting may be, as the table has it."""
    if get_origin(field.annotation) is not None and not field.metadata:
        return ", ".join(choice for choice in get_args(field.annotation) if isinstance(choice, str) and choice)
    low = next((m.ge for m in field.metadata if hasattr(m, "ge")), None)
    high = next((m.le for m in field.metadata if hasattr(m, "le")), None)
    if low is None:
        return ""
    return f"{number(low)} to {number(high)}" if high is not None else f"from {number(low)}"


def row(name: str, field: Any) -> str:
    """The line of the table of settings."""
    return (
        f"| `{name}` | `MILLSTREAM_{name.upper()}` | {shown(field.default)} | {bounds(field)} | {field.description} |"
    )


def test_the_table_of_settings_is_that_of_the_code() -> None:
    table = re.search(r"^\| setting \|.*\n\|.*\n((?:\|.*\n)+)", TEXT[CONFIGURATION], re.MULTILINE)
    assert table is not None
    assert table[1].splitlines() == [row(name, field) for name, field in Settings.model_fields.items()]


def test_every_variable_that_is_named_is_read_and_every_one_that_is_read_is_named() -> None:
    settings = {f"MILLSTREAM_{name.upper()}" for name in Settings.model_fields}
    pattern = re.compile(r"\bMILLSTREAM_[A-Z_]+[A-Z]\b")
    named = {name for text in TEXT.values() for name in pattern.findall(text)}
    assert named == settings | OTHER_VARIABLES.keys()
    for name, file in OTHER_VARIABLES.items():
        assert name in (ROOT / file).read_text()
    read = {name for file in ROOT.glob("src/**/*.py") for name in pattern.findall(file.read_text())}
    assert read <= named | INTERNAL_VARIABLES


def test_every_field_of_an_api_key_is_explained() -> None:
    for name in [*ApiKeySettings.model_fields, *AgentCredentialSettings.model_fields]:
        assert f"| `{name}` |" in TEXT[CONFIGURATION]


@pytest.mark.parametrize("role", ROLES)
def test_a_roles_permissions_are_those_of_the_code(role: str) -> None:
    line = next(line for line in TEXT[CONFIGURATION].splitlines() if line.startswith(f"| `{role}` |"))
    if role == "admin":
        assert ROLES[role] >= {permission for granted in ROLES.values() for permission in granted}
    else:
        assert set(re.findall(r"`([a-z_]+\.[a-z_]+)`", line)) == ROLES[role]


def test_every_metric_is_listed_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    registries: list[CollectorRegistry] = []

    def registry() -> CollectorRegistry:
        registries.append(CollectorRegistry())
        return registries[-1]

    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    monkeypatch.setattr("millstream.adapters.metrics.CollectorRegistry", registry)
    Metrics()
    made = {
        metric.name + ("_total" if metric.type == "counter" else "")
        for metric in registries[0].collect()
        if not metric.name.endswith("_created")
    }
    listed = set(re.findall(r"^\| `(millstream_[a-z_]+)` \|", TEXT[OBSERVABILITY], re.MULTILINE))
    assert listed == made


@pytest.mark.parametrize("name", ["dashboard.json", "alerts.yaml"])
def test_what_is_monitored_is_a_metric_with_the_labels_and_words_it_has(name: str) -> None:
    """WM-12: an expression on a name that is not there is silent for ever."""
    found = yaml.safe_load((MONITORING / name).read_text())
    if name == "alerts.yaml":
        expressions = [rule["expr"] for group in found["groups"] for rule in group["rules"]]
    else:
        expressions = [target["expr"] for panel in found["panels"] for target in panel["targets"]]
    listed = dict(re.findall(r"^\| `(millstream_[a-z_]+)` \| ([a-z, ]*?) ?\|", TEXT[OBSERVABILITY], re.MULTILINE))
    used = {metric for text in expressions for metric in re.findall(r"millstream_[a-z_]+", text)}
    assert {re.sub("_(bucket|sum|count)$", "", metric) for metric in used} <= listed.keys()
    if name == "dashboard.json":
        assert {re.sub("_(bucket|sum|count)$", "", metric) for metric in used} == listed.keys(), "each is shown"
    labels = {label for text in expressions for label in re.findall(r"by \(([a-z, ]+)\)", text)}
    known = {"le", *(label for each in listed.values() for label in each.split(", "))}
    assert {each for label in labels for each in label.split(", ")} <= known
    words = {word for text in expressions for word in re.findall(r"[A-Z_]{4,}", text)}
    assert words <= {*STATUSES, *AttemptStatus.__members__}


def test_every_error_is_listed_with_its_status() -> None:
    listed = set(re.findall(r"^\| `([A-Z_]+)` \| (\d{3}) \| (yes|no) \|", TEXT[README], re.MULTILINE))
    only_in_failures = {"CASCADE_LIMIT"}
    assert listed == {
        (code, str(status.http), "yes" if status.retryable else "no")
        for code, status in STATUSES.items()
        if code not in only_in_failures
    }


def commands(group: typer.Typer | None = None) -> set[str]:
    """Every command with its group, such as "runs list"."""
    found = set()
    for name, (module, attribute) in cli._COMMANDS.items():
        entry = getattr(importlib.import_module(f"millstream.cli.{module}"), attribute)
        found.add(name)
        if isinstance(entry, typer.Typer) and len(entry.registered_commands) > 1:
            found |= {f"{name} {command.name or command.callback.__name__}" for command in entry.registered_commands}  # type: ignore[union-attr]  # a command has a callback
    return found


def test_every_command_that_is_named_exists_and_all_are_named() -> None:
    known = commands()
    groups = {name.split()[0] for name in known if " " in name}
    named = {
        name if name in groups and " " not in words else words
        for text in TEXT.values()
        for words in re.findall(r"\bmillstream ([a-z-]+(?: [a-z-]+)?)\b", text)
        for name in [words.split()[0]]
        if name in known
        for words in [words if name in groups else name]
    }
    unknown = {words for words in named if words not in known}
    assert not unknown
    top = {name for name in known if " " not in name}
    assert top - {words.split()[0] for words in named} == set()


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for text in TEXT.values() for name in re.findall(r"(?:`|^ {4}|\$ )make ([a-z]+)", text, re.MULTILINE)}
    assert named <= targets
    assert {"run", "test", "verify", "setup", "bench"} <= named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_and_path_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", TEXT[page]):
        assert (page.parent / target).exists(), target
    for path in re.findall(r"`((?:src|proto|gen|envoy|migrations|tests|docs|examples)/[\w./-]+)`", TEXT[page]):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_line_is_longer_than_the_projects_lines(page: Path) -> None:
    # Output stands as it came.
    text = re.sub(r"^```.*?^```", "", TEXT[page], flags=re.DOTALL | re.MULTILINE)
    assert [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")] == []


def test_the_examples_in_python_use_what_the_sdk_has() -> None:
    examples = blocks(README, "python")
    assert len(examples) >= 2
    for example in examples:
        for node in ast.walk(ast.parse(example)):
            if isinstance(node, ast.ImportFrom) and node.module == "millstream.sdk":
                assert {alias.name for alias in node.names} <= set(sdk.__all__)


def test_the_examples_are_as_short_as_they_are_said_to_be() -> None:
    worker, client = blocks(README, "python")[:2]
    assert sum(bool(line.strip()) for line in worker.splitlines()) <= 15
    assert sum(bool(line.strip()) for line in client.splitlines()) <= 10
