"""Golden files: documented requests and answers, replayed in order, and compared by status, headers, names and types.

A file of tests/golden is a scenario: {"about": "...", "steps": [{"request": {"method", "path", "headers"?, "body"?},
"response": {"status", "headers"?, "body"?}, "capture"?: {name: path in the answer}}, ...]}. A body that is no JSON
stands as text in "content" instead.

In requests and expected answers `{{name}}` stands for what was captured, `{{unique}}` for a word that is the replay's
own, and `{{hex}}` for twelve digits of it, to end a UUID with.
In expected answers "<uuid>", "<time>", "<string>", "<text>" (one that is not empty), "<integer>",
"<number>", "<boolean>", "<object>", "<array>" and "<any>" stand for every value of that type; a name ending in "?" may
be absent; {"...": 0} among names lets others be there; ["<each>", x] is a list, not empty, of items that are x;
["<some>", x] one that has such an item. Everything else is that very value.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from tests.e2e.answers import check_ok

FOLDER = Path(__file__).parents[1] / "golden"
_NAME = re.compile(r"\{\{(\w+)\}\}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z").fullmatch
_ERRORS = 400
_NO_CONTENT = 204


def _is_uuid(value: Any) -> bool:
    try:
        return isinstance(value, str) and str(uuid.UUID(value)) == value
    except ValueError:
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_TYPES: dict[str, Callable[[Any], bool]] = {
    "<uuid>": _is_uuid,
    "<time>": lambda value: isinstance(value, str) and _TIME(value) is not None,
    "<string>": lambda value: isinstance(value, str),
    "<text>": lambda value: isinstance(value, str) and value != "",
    "<integer>": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "<number>": _is_number,
    "<boolean>": lambda value: isinstance(value, bool),
    "<object>": lambda value: isinstance(value, dict),
    "<array>": lambda value: isinstance(value, list),
    "<any>": lambda _: True,
}


def scenarios() -> list[Path]:
    """The files."""
    return sorted(FOLDER.glob("*.json"))


def differences(expected: Any, found: Any, at: str = "body") -> list[str]:
    """Where an answer is not what is expected."""
    if isinstance(expected, str) and expected in _TYPES:
        return [] if _TYPES[expected](found) else [f"{at}: {found!r} is no {expected}"]
    if isinstance(expected, dict):
        return _of_objects(expected, found, at)
    if isinstance(expected, list):
        return _of_lists(expected, found, at)
    same = type(expected) is type(found) or (_is_number(expected) and _is_number(found))
    return [] if same and expected == found else [f"{at}: {found!r} is not {expected!r}"]


def _of_objects(expected: dict[str, Any], found: Any, at: str) -> list[str]:
    if not isinstance(found, dict):
        return [f"{at}: {found!r} is no object"]
    named = {name.removesuffix("?"): (name, value) for name, value in expected.items() if name != "..."}
    faults = [f"{at}.{name}: is missing" for name, (told, _) in named.items() if told == name and name not in found]
    if "..." not in expected:
        faults += [f"{at}.{name}: is not documented" for name in found if name not in named]
    for name, value in found.items():
        if name in named:
            faults += differences(named[name][1], value, f"{at}.{name}")
    return faults


def _of_lists(expected: list[Any], found: Any, at: str) -> list[str]:
    if not isinstance(found, list):
        return [f"{at}: {found!r} is no list"]
    if expected[:1] == ["<each>"]:
        faults = [] if found else [f"{at}: is empty"]
        return faults + [each for n, item in enumerate(found) for each in differences(expected[1], item, f"{at}[{n}]")]
    if expected[:1] == ["<some>"]:
        tried = [differences(expected[1], item, f"{at}[{n}]") for n, item in enumerate(found)]
        return [] if [] in tried else [f"{at}: none is as expected: {tried}"]
    if len(expected) != len(found):
        return [f"{at}: has {len(found)} items, not {len(expected)}: {found!r}"]
    return [fault for n, item in enumerate(found) for fault in differences(expected[n], item, f"{at}[{n}]")]


def _filled(value: Any, known: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        return {_filled(name, known): _filled(each, known) for name, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, known) for each in value]
    if not isinstance(value, str):
        return value
    whole = _NAME.fullmatch(value)
    return known[whole[1]] if whole else _NAME.sub(lambda name: str(known[name[1]]), value)


def _found_at(body: Any, path: str) -> Any:
    for part in path.split("."):
        body = body[int(part)] if isinstance(body, list) else body[part]
    return body


async def replay(path: Path, rest: httpx.AsyncClient) -> None:
    """Send the requests of a file in order, and check each answer."""
    digits = uuid.uuid4().hex[:12]
    known: dict[str, Any] = {"unique": f"g{digits}", "hex": digits}
    for number, step in enumerate(json.loads(path.read_text())["steps"], start=1):
        request, wanted = _filled(step["request"], known), _filled(step["response"], known)
        where = f"{path.name}, step {number}: {request['method']} {request['path']}"
        content = json.dumps(request["body"]) if "body" in request else request.get("content")
        headers = {"content-type": "application/json"} if content is not None else {}
        answer = await rest.request(
            request["method"],
            request["path"],
            headers=headers | request.get("headers", {}),
            content=content,
            timeout=60,
        )
        assert answer.status_code == wanted["status"], f"{where}: {answer.status_code} {answer.text}"
        if answer.status_code != _NO_CONTENT and answer.status_code < _ERRORS:
            check_ok(answer, wanted["status"])
        for name, value in wanted.get("headers", {}).items():
            faults = differences(value, answer.headers.get(name), name)
            assert not faults, f"{where}: {faults}"
        if "body" not in wanted:
            continue
        body = answer.json()
        faults = differences(wanted["body"], body)
        assert not faults, f"{where}: {faults}\n{answer.text}"
        known |= {name: _found_at(body, at) for name, at in step.get("capture", {}).items()}
