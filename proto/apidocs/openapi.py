"""The OpenAPI document (3.0.3) of the REST face."""

from __future__ import annotations

import re
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from apidocs.contract import Contract, Door
from apidocs.errors import NOT_JSON, Errors, Reason
from apidocs.examples import Example, Examples
from apidocs.schemas import Schemas, shown

JSON = dict[str, Any]

_ABOUT = """\
Millstream runs work that must not get lost: artifacts and the agents they set off, tasks, workflows, promises.

Every operation here is also a gRPC method; this document is made from the same contract.

**Credentials.** An API key, as `Authorization: Bearer KEY` or `X-API-Key: KEY`; each operation names the permission
that the key's roles have to grant. A server in developer mode takes calls without a key.

**Errors** have one body everywhere, `ErrorBody`; its `code` says what went wrong, and `retryable` whether the same
request may succeed later.

**Idempotency.** Operations that write take `X-Idempotency-Key`: the same request with the same key within its time
(24 hours by default) gets the first answer again, with the header `Idempotency-Replayed: true`.

Paths below `/api/tenants` show names in camelCase and name the tenant, which has to be the caller's own.
"""
# Up to what ends it, with code passed over whole: a colon in that ends nothing.
_SENTENCE = re.compile(r"(?:`[^`]*`|.)+?(?=(?<=[A-Za-z)`0-9])[.;:] |$)").match
_SERVERS = [{"url": "/", "description": "The server that this document came from"}]
_SECURITY: list[JSON] = [{"bearer": []}, {"apiKey": []}]
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key: `Authorization: Bearer KEY`"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key: `X-API-Key: KEY`"},
}
_HEADERS = {
    "CorrelationId": {
        "description": "Label of this request in logs; of a publish the id of its cascade.",
        "schema": {"type": "string"},
    },
    "IdempotencyReplayed": {
        "description": "`true` where the answer is that of an earlier request with the same key.",
        "schema": {"type": "string", "enum": ["true"]},
    },
    "RetryAfter": {"description": "Seconds to wait before trying again.", "schema": {"type": "integer", "minimum": 1}},
}
_PARAMETERS: dict[str, JSON] = {
    "IdempotencyKey": {
        "name": "X-Idempotency-Key",
        "in": "header",
        "description": "1 to 255 printable ASCII characters. The same request with the same key takes effect once.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
    },
    "LastEventId": {
        "name": "Last-Event-ID",
        "in": "header",
        "description": "The `id` of the last event that was received; an EventSource sends it by itself.",
        "schema": {"type": "string", "maxLength": 40000},
    },
}
_JSON_MEDIA = "application/json"
_EVENTS = "text/event-stream"
_TOLD_200 = re.compile(r"\bWith 200\b")
_STATUS_NAMES = {
    400: "The request could not be read",
    401: "No credentials, or none that are known",
    403: "A permission is missing",
    404: "Not found",
    409: "Conflict",
    413: "Too large",
    415: "Not JSON",
    422: "Fields break their rules",
    429: "Too much at once",
    500: "A fault of the server",
    503: "The server cannot serve now",
    504: "The time passed first",
}


def openapi(contract: Contract, examples: Examples, version: str) -> JSON:
    """The document."""
    document = _Document(contract, examples)
    paths: dict[str, JSON] = {}
    for door in contract.doors():
        paths.setdefault(_path(door), {})[door.verb] = document.operation(door)
    return {
        "openapi": "3.0.3",
        "info": {
            "title": "Millstream",
            "version": version,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "servers": _SERVERS,
        "security": _SECURITY,
        "tags": document.tags(),
        "paths": paths,
        "components": {
            "schemas": dict(sorted(document.schemas.components.items())),
            "parameters": _PARAMETERS,
            "headers": _HEADERS,
            "responses": document.responses(),
            "securitySchemes": _SCHEMES,
        },
    }


class _Document:
    def __init__(self, contract: Contract, examples: Examples) -> None:
        self._contract = contract
        self._examples = examples
        self._errors = Errors(contract)
        self._used: set[int] = set()
        self.schemas = Schemas(contract)
        self._error = self.schemas.reference(contract.message("ErrorBody"), camel_case=False)

    def tags(self) -> list[JSON]:
        """The services that have REST paths."""
        used = {door.rpc.service for door in self._contract.doors()}
        services = [service for service in self._contract.services() if service.name in used]
        return [{"name": each.name, "description": self._contract.comment(each)} for each in services]

    def responses(self) -> dict[str, JSON]:
        """What errors say where an operation says no more; to be asked for when all operations are made."""
        by_status: dict[int, list[tuple[Reason, str]]] = {}
        for reason in self._errors.reasons.values():
            if reason.status:
                by_status.setdefault(reason.status, []).append((reason, ""))
        by_status[NOT_JSON] = [(self._errors.reasons["BAD_REQUEST"], "")]
        used = sorted(self._used)
        return {f"Error{status}": self._response(status, by_status[status]) for status in used}

    def operation(self, door: Door) -> JSON:
        """One operation."""
        rpc, policy = door.rpc, door.rpc.policy
        examples = self._examples.of(rpc.name, door.place)
        said, permission = rpc.comment, policy.permission
        if permission:
            said += f"\n\nPermission: `{permission}`."
        found: JSON = {
            "operationId": door.id,
            "tags": [rpc.service],
            "summary": _summary(rpc.comment),
            "description": said,
        }
        if permission:
            found["x-permission"] = permission
        else:
            found["security"] = []
        if parameters := self._parameters(door, examples):
            found["parameters"] = parameters
        if door.body:
            found["requestBody"] = self._request_body(door, examples)
        found["responses"] = self._responses(door, examples)
        return found

    # -- what is sent ------------------------------------------------------------------------------------------

    def _parameters(self, door: Door, examples: list[Example]) -> list[JSON]:
        fields = door.rpc.method.input_type.fields
        sent = next((one.step for one in examples if one.succeeded), {})
        found = []
        for field in fields:
            if field.name in door.variables:
                found.append(self._parameter(door, field, "path", sent.get("path", {})))
            elif door.body != "*" and field.name != door.body:
                found.append(self._parameter(door, field, "query", sent.get("query", {})))
        if door.rpc.policy.keyed:
            found.append({"$ref": "#/components/parameters/IdempotencyKey"})
        if _EVENTS in door.rpc.policy.media_types:
            found.append({"$ref": "#/components/parameters/LastEventId"})
        return found

    def _parameter(self, door: Door, field: FieldDescriptor, place: str, sent: JSON) -> JSON:
        # The path's own names are what stands in its brackets.
        name = shown(field, door.camel_case)
        schema = self.schemas.of_field(field, door.camel_case)
        if field.enum_type is not None and not field.is_repeated:
            schema = {**self.schemas.enum(field.enum_type), "description": schema.get("description", "")}
        found: JSON = {"name": name, "in": place, "description": schema.pop("description", "")}
        if place == "path":
            found["required"] = True
            # An empty segment is another path.
            schema = {**schema, "minLength": 1} if schema.get("type") == "string" and "enum" not in schema else schema
        elif name in self.schemas.required(door.rpc.method.input_type, door.camel_case):
            found["required"] = True
        found["schema"] = schema
        value = sent.get(name, sent.get(field.name))
        if value is not None:
            found["example"] = value
        return found

    def _request_body(self, door: Door, examples: list[Example]) -> JSON:
        if door.body != "*":
            content: JSON = {"schema": {"type": "string", "format": "binary"}}
            sent = {one.title: {"value": one.step["raw"]} for one in examples if "raw" in one.step and one.succeeded}
            return {
                "required": True,
                "description": "The content, whatever it is.",
                "content": {"*/*": {**content, **({"examples": _named(sent)} if sent else {})}},
            }
        schema = self.schemas.body(door)
        media: JSON = {"schema": schema}
        sent = {one.title: {"value": one.step.get("body", {})} for one in examples if one.succeeded}
        if sent:
            media["examples"] = _named(sent)
        required = bool(self.schemas.resolved(schema).get("required"))
        return {"required": required, "content": {_JSON_MEDIA: media}}

    # -- what comes --------------------------------------------------------------------------------------------

    def _responses(self, door: Door, examples: list[Example]) -> JSON:
        found: JSON = {}
        status = door.rpc.policy.success_status or 200
        found[str(status)] = self._success(door, status, examples)
        if status != 200 and _TOLD_200.search(door.rpc.comment):
            found["200"] = self._success(door, 200, examples)
        for code, reasons in self._errors.of(door).items():
            real = [one for one in examples if one.answer["status"] == code]
            if any(note for _, note in reasons) or real:
                found[str(code)] = self._response(code, reasons, real)
            else:
                self._used.add(code)
                found[str(code)] = {"$ref": f"#/components/responses/Error{code}"}
        return found

    def _success(self, door: Door, status: int, examples: list[Example]) -> JSON:
        rpc = door.rpc
        headers: JSON = {"X-Correlation-Id": {"$ref": "#/components/headers/CorrelationId"}}
        if rpc.policy.keyed:
            headers["Idempotency-Replayed"] = {"$ref": "#/components/headers/IdempotencyReplayed"}
        output = rpc.method.output_type
        found: JSON = {"description": "The content." if rpc.raw else self._contract.comment(output), "headers": headers}
        came = [one for one in examples if one.answer["status"] == status]
        if status == 204:
            found["description"] = "Done; there is no body."
        elif rpc.raw:
            found["content"] = {media: _raw(media, came) for media in rpc.policy.media_types}
        else:
            media: JSON = {"schema": self.schemas.reference(output, door.camel_case)}
            if came:
                media["examples"] = _named({one.title: {"value": one.answer["body"]} for one in came})
            found["content"] = {_JSON_MEDIA: media}
        return found

    def _response(self, status: int, reasons: list[tuple[Reason, str]], real: list[Example] | None = None) -> JSON:
        lines = [f"- `{reason.code}`: {_told(reason, note)}" for reason, note in reasons]
        shown_bodies: JSON = {reason.code: {"value": reason.example} for reason, _ in reasons}
        for one in real or []:
            shown_bodies[one.answer["body"]["code"]] = {"summary": one.title, "value": one.answer["body"]}
        headers: JSON = {"X-Correlation-Id": {"$ref": "#/components/headers/CorrelationId"}}
        if status in (429, 503):
            headers["Retry-After"] = {"$ref": "#/components/headers/RetryAfter"}
        return {
            "description": "\n".join([_STATUS_NAMES[status] + ".", "", *lines]),
            "headers": headers,
            "content": {_JSON_MEDIA: {"schema": self._error, "examples": shown_bodies}},
        }


def _path(door: Door) -> str:
    """The path with the names of parameters as they are shown, and no patterns in it."""
    fields = door.rpc.method.input_type.fields_by_name
    return re.sub(r"\{(\w+)(=[^}]*)?\}", lambda name: "{" + shown(fields[name[1]], door.camel_case) + "}", door.path)


def _told(reason: Reason, note: str) -> str:
    if not note:
        return reason.meaning
    inner = note[1:-1] if note.startswith("(") and note.endswith(")") else note
    return f"{reason.meaning} Here: {inner}."


def _raw(media: str, came: list[Example]) -> JSON:
    """A content that is no message; what is JSON has any form."""
    schema: JSON = {"type": "string"}
    if media.endswith("json") and "ndjson" not in media:
        schema = {"type": "object"}
    elif media == "*/*":
        schema = {"type": "string", "format": "binary"}
    found: JSON = {"schema": schema}
    fitting = [one for one in came if media in ("*/*", one.answer.get("media"))]
    if fitting:
        found["examples"] = _named({one.title: {"value": one.answer["body"]} for one in fitting})
    return found


def _named(examples: JSON) -> JSON:
    return {
        f"example{number}" if number > 1 else "example": {"summary": title, **each} if title else each
        for number, (title, each) in enumerate(examples.items(), start=1)
    }


def _summary(comment: str) -> str:
    sentence = _SENTENCE(comment.split("\n")[0])
    return sentence[0].rstrip(".") if sentence else ""
