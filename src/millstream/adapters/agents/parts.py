"""JSON as parts of A2A messages and artifacts, and back.

An artifact is sent as one data part, or as text to an agent whose card takes no JSON. What comes back is JSON: data as
it is, text as {"text": ...}, files as {"files": [...]}. An artifact of A2A becomes one of ours where its type can be
told: by `type` in its metadata, by its name if that is one of the agent's outputs, or because there is one output only.
"""

import base64
import json
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

from a2a.types.a2a_pb2 import AgentCard, Artifact, Message, Part, Role
from google.protobuf.struct_pb2 import Struct, Value

from millstream.adapters.agents import faults
from millstream.application.call_ports import Answer, Call, CallFailed, Given, Made
from millstream.domain.struct_wire import Json, decode_struct, decode_value, encode_struct, encode_value

JSON_TYPE: Final = "application/json"
_ANY: Final = ("*/*", "application/*", JSON_TYPE)

Object: TypeAlias = dict[str, Json]


def message_of(call: Call, card: AgentCard) -> Message:
    """What an agent is sent for a task."""
    as_data = _takes_json(card.default_input_modes)
    parts = [_part(each.payload, _about(each), as_data) for each in call.artifacts]
    if call.input is not None or not parts:
        parts.append(_part(call.input, {}, as_data))
    about: Object = {
        "agent": call.agent,
        "task_id": call.task_id,
        "attempt": call.attempt,
        "idempotency_token": call.token,
        "correlation_id": call.correlation_id,
    }
    return Message(
        # Of its own for each attempt, as A2A wants it; the token is the same for all.
        message_id=f"{call.task_id}-{call.attempt}",
        role=Role.ROLE_USER,
        parts=parts,
        metadata=_struct({"millstream": about}),
    )


def _takes_json(modes: Sequence[str]) -> bool:
    return not modes or any(mode.partition(";")[0].strip().lower() in _ANY for mode in modes)


def _about(given: Given) -> Object:
    about: Object = {"type": given.type, "artifact_id": given.id, "produced_by": given.produced_by}
    if given.payload_ref:
        about["payload_ref"] = given.payload_ref
    return about


def _part(value: Json, about: Object, as_data: bool) -> Part:
    part = Part(metadata=_struct(about)) if about else Part()
    if as_data:
        part.media_type = JSON_TYPE
        part.data.CopyFrom(_value(value))
    else:
        part.text = _text(value)
    return part


def _text(value: Json) -> str:
    """A payload that is a text alone as that text; all others as JSON."""
    if isinstance(value, dict) and value.keys() == {"text"} and isinstance(value["text"], str):
        return value["text"]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def answer_of(results: Iterable[Artifact], outputs: Sequence[str]) -> Answer:
    """What an agent answered with these artifacts. Raises CallFailed where one's type cannot be told."""
    payloads: list[Json] = []
    made: list[Made] = []
    for artifact in results:
        type_name = _type_of(artifact, outputs)
        for value in _values(artifact.parts):
            payloads.append(value)
            if type_name:
                made.append(Made(type_name, value if isinstance(value, dict) else {"value": value}))
    output = payloads[0] if len(payloads) == 1 else payloads or None
    return Answer(output, tuple(made))


def as_artifact(message: Message) -> Artifact:
    """A message that is the whole answer, as the artifact it stands for."""
    return Artifact(parts=message.parts, metadata=message.metadata)


def text_of(parts: Iterable[Part]) -> str:
    """What parts say to people."""
    said = [part.text if part.HasField("text") else _text(_plain(part)) for part in parts]
    return "\n".join(filter(None, said))


def about(metadata: Struct) -> Object:
    """Metadata as JSON."""
    try:
        return decode_struct(metadata.SerializeToString())
    except ValueError:
        return {}


def _type_of(artifact: Artifact, outputs: Sequence[str]) -> str:
    """The type of an artifact; "" where it is none of ours."""
    said = about(artifact.metadata).get("type")
    if isinstance(said, str) and said:
        return said
    if artifact.name in outputs:
        return artifact.name
    if len(outputs) > 1:
        text = (
            f"the artifact {artifact.name or artifact.artifact_id!r} does not say which of {', '.join(outputs)} it is:"
            " its metadata's `type`, or its name, must"
        )
        raise CallFailed("INVALID_OUTPUT", text, retryable=False)
    return outputs[0] if outputs else ""


def _values(parts: Sequence[Part]) -> list[Json]:
    data = [_json(part.data) for part in parts if part.HasField("data")]
    if data:
        return data
    texts = [part for part in parts if part.HasField("text")]
    if len(texts) == 1 and texts[0].media_type.partition(";")[0].strip().lower() == JSON_TYPE:
        return [_parsed(texts[0].text)]
    if texts:
        return [{"text": "\n".join(part.text for part in texts)}]
    files = [_plain(part) for part in parts]
    return [{"files": files}] if files else []


def _parsed(text: str) -> Json:
    try:
        value: Json = json.loads(text)
    except (ValueError, RecursionError):
        raise CallFailed(faults.INVALID, "a part says that it is JSON, and is not", retryable=False) from None
    return value


def _plain(part: Part) -> Json:
    if part.HasField("data"):
        return _json(part.data)
    if part.HasField("text"):
        return part.text
    out: Object = {"name": part.filename, "media_type": part.media_type}
    if part.HasField("url"):
        return out | {"url": part.url}
    return out | {"base64": base64.b64encode(part.raw).decode()}


def _json(value: Value) -> Json:
    try:
        return decode_value(value.SerializeToString())
    except ValueError as error:
        raise CallFailed(faults.INVALID, f"a part's data: {error}", retryable=False) from None


def _value(value: Json) -> Value:
    return Value.FromString(encode_value(value))


def _struct(value: Object) -> Struct:
    return Struct.FromString(encode_struct(value))
