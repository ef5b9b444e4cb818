"""Record what the service answers to the examples: `python -m tests.documentation.record [--all]`, or `make examples`.

Answers that are there already stay, unless --all is given. Ids and times become steady ones, so that to record the
same again changes nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import sys
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.documentation.calls import EXAMPLES, call, named, operations
from tests.documentation.conftest import WORKER
from tests.e2e.stack import ORDERS, rest_client, running_stack

JSON = dict[str, Any]

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TIME = re.compile(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z")
_SPACE = uuid.UUID("6f6c6c69-6d73-4472-a561-6d0000000000")
_BEGAN = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
_MOST_ITEMS = 3
_FAR = 2090


class _Steady:
    """Steady ids and times in place of those that came."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._ids: dict[str, str] = {}
        self._times: dict[str, str] = {}

    def __call__(self, value: Any) -> Any:
        """The value with its ids and times replaced, and its lists cut."""
        if isinstance(value, dict):
            return {name: self(each) for name, each in value.items()}
        if isinstance(value, list):
            return [self(each) for each in value[:_MOST_ITEMS]]
        if not isinstance(value, str):
            return round(value, 1) if isinstance(value, float) and value > 1 else value
        return _TIME.sub(lambda m: self._time(m[0]), _UUID.sub(lambda m: self._id(m[0]), value))

    def _id(self, found: str) -> str:
        return self._ids.setdefault(found, str(uuid.uuid5(_SPACE, f"{self._file} {len(self._ids)}")))

    def _time(self, found: str) -> str:
        if int(found[:4]) > _FAR:
            return found
        at = _BEGAN + timedelta(milliseconds=37 * len(self._times))
        return self._times.setdefault(found, at.isoformat(timespec="milliseconds").replace("+00:00", "Z"))


async def record(again: bool) -> int:
    """Play all files against a service of their own; return how many steps failed."""
    failed = 0
    async with contextlib.AsyncExitStack() as exits:
        stack = await exits.enter_async_context(running_stack({"auth_mode": "developer", "cancel_grace_s": "0.5"}))
        for program, name in ((ORDERS, "orders"), (WORKER, "examples")):
            await stack.worker(program, name)
        client = await exits.enter_async_context(rest_client(stack.url))
        for path in sorted(EXAMPLES.glob("*.json")):
            failed += await _file(path, client, again)
    return failed


async def _file(path: Path, client: Any, again: bool) -> int:
    told = json.loads(path.read_text())
    known: JSON = {"tenant": "default"}
    steady = _Steady(path.stem)
    failed = 0
    for number, step in enumerate(told["steps"], start=1):
        try:
            answer = await call(client, step, known)
        except Exception as error:  # the other files go on
            print(f"{path.name}, step {number}, {step['rpc']}: {error!r}", file=sys.stderr)
            failed += 1
            break
        body = steady(answer.body)
        wanted = step.get("answer", {}).get("status", operations()[named(step)].success)
        if answer.status != wanted:
            print(f"{path.name}, step {number}, {step['rpc']}: {answer.status}: {answer.body}", file=sys.stderr)
            failed += 1
        elif "body" not in step.get("answer", {}) or (again and not step.get("fixed")):
            step["answer"] = {"status": answer.status, "media": answer.media, "body": body}
    path.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--all", action="store_true", help="record also what has an answer")
    sys.exit(1 if asyncio.run(record(parser.parse_args().all)) else 0)
