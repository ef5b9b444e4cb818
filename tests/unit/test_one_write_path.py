"""One write path: rows of runs, and of all that belongs to one, are written by the committer's statements alone."""

import ast
import re
from pathlib import Path

from millstream.store import hot

SOURCES = Path(hot.__file__).parents[1]
TABLES = ("run", "task", "event", "attempt", "run_payload", "journal")
_WRITE = re.compile(
    rf"\b(INSERT INTO|UPDATE|DELETE FROM|MERGE INTO|TRUNCATE|COPY)\s+(?:ONLY\s+)?(?:({'|'.join(TABLES)})\b|(⟨))"
)
_HOLE = "⟨"
COMMITTER = {"store/hot.py", "store/single.py"}
"""The statements of the committer: the table is a name from their own lists of columns."""
KNOWN = {
    "store/maintenance.py": {
        # Of leases: renewed, delivered, beaten, shortened; and how far an attempt says that it is.
        "_RENEW": ["UPDATE task"],
        "_DELIVERED": ["UPDATE task"],
        "_BEAT": ["UPDATE task"],
        "_SHORTEN": ["UPDATE task"],
        "_PROGRESS": ["UPDATE task"],
        # Retention: runs that have ended long ago.
        "drop_runs": [
            f"DELETE FROM {table}" for table in ("attempt", "run_payload", "journal", "event", "task", "run")
        ],
    },
}
"""What else writes such rows, by the name that has the statement."""


def writes() -> dict[str, dict[str, list[str]]]:
    """Statements that write such rows, by module and by the name (of a constant or a function) that has them."""
    found: dict[str, dict[str, list[str]]] = {}
    for path in sorted(SOURCES.rglob("*.py")):
        module = path.relative_to(SOURCES).as_posix()
        for owner, text in _texts(ast.parse(path.read_text())):
            for match in _WRITE.finditer(text):
                found.setdefault(module, {}).setdefault(owner, []).append(" ".join(filter(None, match.groups())))
    return found


def _texts(tree: ast.Module) -> list[tuple[str, str]]:
    """Every text in a module, with the innermost function, or the constant, that has it. What is put in is a hole."""
    found: list[tuple[str, str]] = []

    def look(node: ast.AST, owner: str) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            owner = node.name
        elif isinstance(node, ast.Assign) and not owner and isinstance(node.targets[0], ast.Name):
            owner = node.targets[0].id
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else _HOLE for part in node.values]
            found.append((owner, "".join(map(str, parts))))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append((owner, node.value))
        for child in ast.iter_child_nodes(node):
            if not (isinstance(node, ast.JoinedStr) and isinstance(child, ast.Constant)):
                look(child, owner)

    look(tree, "")
    return found


def test_no_other_module_writes_rows_of_runs() -> None:
    """One write path: nothing changes a run, a task, an event, an attempt, what runs were given or a journal but by
    commands through the committer; the few that may are named here."""
    found = writes()
    assert found.keys() >= COMMITTER
    assert {module: by for module, by in found.items() if module not in COMMITTER} == KNOWN


def test_the_scan_sees_statements() -> None:
    """Plain, formatted, and with the table put in."""
    source = """
A = "UPDATE run SET x = 1"
def f(t):
    g(f"WITH x AS (SELECT {t}) INSERT INTO event (a) SELECT 1")
    g(f"DELETE FROM {t} WHERE id = 1")
    g("UPDATE runner SET x = 1; DELETE FROM task_list")
"""
    found = [
        (owner, *filter(None, match.groups()))
        for owner, text in _texts(ast.parse(source))
        for match in _WRITE.finditer(text)
    ]
    assert found == [
        ("A", "UPDATE", "run"), ("f", "INSERT INTO", "event"), ("f", "DELETE FROM", _HOLE),
    ]  # fmt: skip
