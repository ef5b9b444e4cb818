"""JSON text, as it is stored, and the wire form of Struct, as it is sent."""

import orjson

from millstream.domain.struct_wire import decode_struct, encode_struct


def text_of(struct: bytes) -> str:
    """The JSON text of a Struct in wire form, with its keys in the order given; "" for {}."""
    value = decode_struct(struct)
    return orjson.dumps(value).decode() if value else ""


def struct_of(text: str) -> bytes:
    """The wire form as Struct of a JSON object as text; "" is {}."""
    return encode_struct(orjson.loads(text)) if text else b""


def labels_text(labels: dict[str, str]) -> str:
    """Labels as they are stored."""
    return orjson.dumps(labels, option=orjson.OPT_SORT_KEYS).decode() if labels else ""


def labels_of(text: str) -> dict[str, str]:
    """Labels from their stored form."""
    labels: dict[str, str] = orjson.loads(text) if text else {}
    return labels
