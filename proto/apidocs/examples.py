"""The examples of operations: what is sent, and what the service answered.

A file of proto/examples is played from its first step to its last: {"about": "...", "steps": [...]}. A step is

    {"rpc": "GetTask",              the operation; with "door": 1 the second REST path of the RPC, and so on
     "title": "A task that waits",  what it shows
     "path": {...}, "query": {...}, "headers": {...}, "body": {...},   what is sent; "raw" is a body that is no JSON
     "answer": {"status": 200, "media": "application/json", "body": ...},   what came
     "keep": {"task": "task_id"}}   what later steps call {{task}}: a path in the answer's body

`{{tenant}}` is the tenant. "hidden": true keeps a step out of the documentation: it only prepares others. "until":
{"status": "COMPLETED"} repeats a step until its answer says so. "frames": 2 reads so many frames of an answer that may
never end. The answers are recorded: `make examples` fills in those that are missing; with "fixed": true one stays as it
was written, where the real one is too long to be shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

JSON = dict[str, Any]

TENANT = "default"
_NAME = re.compile(r"\{\{(\w+)\}\}")
_SUCCESS = range(200, 300)


@dataclass(frozen=True)
class Example:
    """A call of an operation and its answer, as they are shown."""

    title: str
    step: JSON

    @property
    def answer(self) -> JSON:
        """What came."""
        found: JSON = self.step["answer"]
        return found

    @property
    def succeeded(self) -> bool:
        """Whether it is an example of a success."""
        return self.answer["status"] in _SUCCESS


class Examples:
    """All files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._by_operation: dict[tuple[str, int], list[Example]] = {}
        for path in sorted(folder.glob("*.json")):
            for example in _examples(path):
                operation = (example.step["rpc"], example.step.get("door", 0))
                self._by_operation.setdefault(operation, []).append(example)

    def of(self, rpc: str, door: int) -> list[Example]:
        """The examples of an operation, in the order of the files."""
        return self._by_operation.get((rpc, door), [])

    def operations(self) -> set[tuple[str, int]]:
        """The operations that have one that succeeds."""
        return {each for each, examples in self._by_operation.items() if any(one.succeeded for one in examples)}


def filled(value: Any, known: JSON) -> Any:
    """The value with its {{names}} replaced; one that is nothing but a name becomes what it stands for."""
    if isinstance(value, dict):
        return {filled(name, known): filled(each, known) for name, each in value.items()}
    if isinstance(value, list):
        return [filled(each, known) for each in value]
    if not isinstance(value, str):
        return value
    whole = _NAME.fullmatch(value)
    return known[whole[1]] if whole else _NAME.sub(lambda name: str(known[name[1]]), value)


def kept(step: JSON, body: Any) -> JSON:
    """What a step keeps of an answer."""
    return {name: _at(body, path) for name, path in step.get("keep", {}).items()}


def _at(body: Any, path: str) -> Any:
    for part in path.split("."):
        body = body[int(part)] if isinstance(body, list) else body[part]
    return body


def _examples(path: Path) -> Iterator[Example]:
    known: JSON = {"tenant": TENANT}
    for step in json.loads(path.read_text())["steps"]:
        if "answer" not in step:
            raise SystemExit(f"{path.name}: the step {step['rpc']} has no answer yet: run `make examples`")
        shown = {name: filled(value, known) if name != "keep" else value for name, value in step.items()}
        known |= kept(step, step["answer"].get("body"))
        if not step.get("hidden"):
            yield Example(step.get("title", ""), shown)
