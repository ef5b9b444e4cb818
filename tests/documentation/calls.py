"""Calls of operations as the OpenAPI document describes them, and what is wrong with their answers."""

from __future__ import annotations

import asyncio
import copy
import json
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from openapi_schema_validator import OAS30Validator, oas30_format_checker

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "proto"))

from apidocs.contract import Contract as Contract  # noqa: E402 (the generator stands beside the contract)
from apidocs.examples import filled, kept  # noqa: E402

EXAMPLES = ROOT / "proto" / "examples"
OPENAPI = ROOT / "docs" / "openapi.json"
JSON = dict[str, Any]

told: list[str] = []
"""What the tests have to tell beside their outcome."""
_WAIT_S = 30.0
_AGAIN_S = 0.05
_VERBS = ("get", "put", "post", "delete", "patch")


@dataclass(frozen=True)
class Operation:
    """An operation of the document."""

    path: str
    verb: str
    told: JSON

    @property
    def success(self) -> int:
        """The status of its success."""
        return min(int(status) for status in self.told["responses"] if status != "200" or not self._made)

    @property
    def _made(self) -> bool:
        return "201" in self.told["responses"]


@dataclass(frozen=True)
class Answer:
    """What came: `body` is JSON where the media type says so, else text."""

    status: int
    media: str
    body: Any
    headers: httpx.Headers


@cache
def document() -> JSON:
    """The OpenAPI document."""
    found: JSON = json.loads(OPENAPI.read_text())
    return found


@cache
def operations() -> dict[str, Operation]:
    """The operations by name."""
    return {
        told["operationId"]: Operation(path, verb, told)
        for path, item in document()["paths"].items()
        for verb, told in item.items()
        if verb in _VERBS
    }


def named(step: JSON) -> str:
    """Name of a step's operation."""
    door = step.get("door", 0)
    return step["rpc"] if door == 0 else f"{step['rpc']}_{door + 1}"


async def call(client: httpx.AsyncClient, step: JSON, known: JSON) -> Answer:
    """Send what a step says; `known` is what earlier ones kept, and becomes what this one keeps too."""
    operation = operations()[named(step)]
    sent = filled({name: step[name] for name in ("path", "query", "headers", "body", "raw") if name in step}, known)
    path = operation.path.format(**{name: str(value) for name, value in sent.get("path", {}).items()})
    content: JSON = {"json": sent["body"]} if "body" in sent else {}
    if "raw" in sent:
        content = {"content": sent["raw"].encode()}
    request = {"headers": sent.get("headers"), "params": sent.get("query"), **content}
    wanted = step.get("until", {})
    async with asyncio.timeout(_WAIT_S):
        while True:
            if "frames" in step:
                return await _beginning(client, operation, path, request, step["frames"])
            answer = _read(await client.request(operation.verb.upper(), path, **request))
            if all(answer.body.get(name) == value for name, value in wanted.items()):
                break
            await asyncio.sleep(_AGAIN_S)
    known |= kept(step, answer.body)
    return answer


async def _beginning(client: httpx.AsyncClient, operation: Operation, path: str, request: JSON, frames: int) -> Answer:
    """The first frames of an answer that may never end; of server-sent events with those lines that come between."""
    async with client.stream(operation.verb.upper(), path, **request) as response:
        media = response.headers["content-type"].partition(";")[0]
        end = "\n\n" if media == "text/event-stream" else "\n"
        text = ""
        async for part in response.aiter_text():
            text += part
            if text.count(end) >= frames:
                break
        shown = end.join(text.split(end)[:frames]) + end
        return Answer(response.status_code, media, shown, response.headers)


def _read(response: httpx.Response) -> Answer:
    media = response.headers.get("content-type", "").partition(";")[0]
    whole = media.endswith("json") and not media.endswith("ndjson")
    return Answer(response.status_code, media, response.json() if whole else response.text, response.headers)


def faults(operation: str, status: int, media: str, body: Any) -> list[str]:
    """What is wrong with an answer, by the document: status, media type, and each place in the body."""
    responses = operations()[operation].told["responses"]
    if str(status) not in responses:
        return [f"the status {status} is not documented"]
    told = responses[str(status)]
    if "$ref" in told:
        told = document()["components"]["responses"][told["$ref"].rpartition("/")[2]]
    content = told.get("content", {})
    if not content:
        return [] if body in ("", None) else ["a body is not documented"]
    fitting = content.get(media, content.get("*/*"))
    if fitting is None:
        return [f"the media type {media!r} is not documented"]
    found = OAS30Validator(_strict(fitting["schema"]), format_checker=oas30_format_checker).iter_errors(body)
    return [f"{'.'.join(map(str, each.absolute_path)) or 'body'}: {each.message}" for each in found]


def faults_in_request(operation: str, body: Any) -> list[str]:
    """What is wrong with a JSON body that is sent, by the document."""
    schema = operations()[operation].told["requestBody"]["content"]["application/json"]["schema"]
    found = OAS30Validator(_strict(schema), format_checker=oas30_format_checker).iter_errors(body)
    return [f"{'.'.join(map(str, each.absolute_path)) or 'body'}: {each.message}" for each in found]


def _strict(schema: JSON) -> JSON:
    return {"allOf": [schema], "components": _strict_components()}


@cache
def _strict_components() -> JSON:
    """The schemas, which here allow no field that they do not name."""
    components: JSON = copy.deepcopy(document()["components"])
    for schema in components["schemas"].values():
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
    return {"schemas": components["schemas"]}
