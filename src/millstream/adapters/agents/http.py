"""Agents by plain HTTP: a task is one POST of JSON, and its answer is JSON."""

from collections.abc import Callable
from typing import Any, Final

import httpx
import orjson

from millstream.adapters.agents import faults
from millstream.adapters.agents.guard import Clients
from millstream.application.call_ports import Answer, Call, CallFailed, CallWatch, Given, Made
from millstream.domain.struct_wire import Json

MADE_MOST: Final = 1000
TAGS_MOST: Final = 32
TEXT_MOST: Final = 128
_FIELDS: Final = frozenset({"output", "artifacts"})
_ARTIFACT_FIELDS: Final = frozenset({"type", "payload", "tags", "partition_key"})


class HttpAgents:
    """Calls agents by HTTP. One that is cancelled sees its connection end."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients

    async def call(self, call: Call, watch: CallWatch) -> Answer:
        """Raises CallFailed."""
        headers = {
            "content-type": "application/json",
            "accept": "application/json",
            "idempotency-key": call.token,
            "x-correlation-id": call.correlation_id,
        } | ({"traceparent": call.trace} if call.trace else {})
        try:
            client = self._clients.of(call.tenant)
            response = await client.post(call.url, content=orjson.dumps(request_of(call)), headers=headers)
        except httpx.HTTPError as error:
            raise faults.of_transport(error) from error
        if not response.is_success:
            raise _failure(response)
        return answer_of(response.content)


def request_of(call: Call) -> dict[str, Json]:
    """What an agent is sent."""
    return {
        "agent": call.agent,
        "task_id": call.task_id,
        "attempt": call.attempt,
        "idempotency_token": call.token,
        "correlation_id": call.correlation_id,
        "artifacts": [_given(each) for each in call.artifacts],
        "input": call.input,
    }


def _given(given: Given) -> dict[str, Json]:
    out: dict[str, Json] = {
        "id": given.id,
        "type": given.type,
        "produced_by": given.produced_by,
        "tags": [*given.tags],
        "partition_key": given.partition_key,
        "payload": given.payload,
    }
    return out | {"payload_ref": given.payload_ref} if given.payload_ref else out


def answer_of(body: bytes) -> Answer:
    """What an agent answered. Raises CallFailed."""
    if not body.strip():
        return Answer()
    try:
        found: Any = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _invalid(f"is no JSON: {error}") from None
    fields = _object(found, "", _FIELDS)
    artifacts = _list(fields.get("artifacts"), "artifacts")
    if len(artifacts) > MADE_MOST:
        raise _invalid(f"has {len(artifacts)} artifacts; at most {MADE_MOST} are taken")
    return Answer(fields.get("output"), tuple(_made(index, each) for index, each in enumerate(artifacts)))


def _made(index: int, item: Any) -> Made:
    where = f"artifacts[{index}]"
    fields = _object(item, where, _ARTIFACT_FIELDS)
    payload, tags = fields.get("payload") or {}, _list(fields.get("tags"), f"{where}.tags")
    if not isinstance(payload, dict):
        raise _invalid(f"{where}.payload must be an object")
    texts = {"type": fields.get("type"), "partition_key": fields.get("partition_key") or ""}
    for name, value in [*texts.items(), *((f"tags[{place}]", tag) for place, tag in enumerate(tags))]:
        limit = 255 if name == "type" else TEXT_MOST
        if not isinstance(value, str) or len(value) > limit or (not value and name != "partition_key"):
            raise _invalid(f"{where}.{name} must be a text of 1 to {limit} characters")
    if len(tags) > TAGS_MOST:
        raise _invalid(f"{where}.tags has {len(tags)}; at most {TAGS_MOST} are taken")
    return Made(str(texts["type"]), payload, tuple(dict.fromkeys(tags)), str(texts["partition_key"]))


def _object(value: Any, where: str, known: frozenset[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _invalid(f"{where or 'the answer'} must be an object")
    unknown = sorted(value.keys() - known)
    if unknown:
        raise _invalid(f"{where or 'the answer'} has {unknown[0]!r}; there may be {', '.join(sorted(known))}")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise _invalid(f"{where} must be a list")
    return value


def _invalid(text: str) -> CallFailed:
    return CallFailed(faults.INVALID, f"the agent's answer: {text}", retryable=False)


def _failure(response: httpx.Response) -> CallFailed:
    """Of a status that is no success; an agent may say more in a JSON object."""
    try:
        said: Any = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return faults.of_status(response, response.content[: faults.BODY_MOST].decode(errors="replace").strip())
    fields: dict[str, Any] = said if isinstance(said, dict) else {}
    get: Callable[[str], Any] = fields.get
    code, message, retryable = get("code"), get("message"), get("retryable")
    failure = faults.of_status(response, message if isinstance(message, str) else "")
    if isinstance(code, str) and code:
        failure.code = code
    if isinstance(retryable, bool):
        failure.retryable = retryable
    return failure
