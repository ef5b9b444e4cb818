"""JSON values to and from the wire's Struct and Value, by hand.

`json_format` does the same at about twice the cost, and this stands on the path of every task.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from google.protobuf.struct_pb2 import ListValue, Struct, Value
from pydantic_core import to_jsonable_python

from millstream.sdk.errors import PayloadError

JsonValue: TypeAlias = Any
"""None, bool, int, float, str, or a list or a dict (with string keys) of these."""

EXACT_INTEGER: Final = 2**53
"""Integers from here on are not exact as the doubles that JSON numbers are on the wire."""


def from_struct(struct: Struct) -> dict[str, JsonValue]:
    """The object as a dict. A whole number comes as an int, as JSON writes it."""
    return {key: from_value(value) for key, value in struct.fields.items()}


def from_value(value: Value) -> JsonValue:
    """The value as plain JSON; None also where nothing is set."""
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        return value.string_value
    if kind == "number_value":
        number = value.number_value
        # What is beyond is no exact integer, and could not be sent back as one.
        return int(number) if number.is_integer() and abs(number) < EXACT_INTEGER else number
    if kind == "struct_value":
        return {key: from_value(item) for key, item in value.struct_value.fields.items()}
    if kind == "list_value":
        return [from_value(item) for item in value.list_value.values]
    if kind == "bool_value":
        return value.bool_value
    return None


def fill_struct(struct: Struct, data: Mapping[str, JsonValue]) -> None:
    """Puts the items of `data` into an empty Struct.

    Raises:
        PayloadError: something in it is no JSON value; the message names its path.
    """
    fields = struct.fields
    for key, item in data.items():
        if type(key) is not str:
            raise PayloadError(f"keys must be strings, {key!r} is not")
        try:
            fill_value(fields[key], item)
        except PayloadError as error:
            raise error.under(key) from None


def fill_value(value: Value, data: JsonValue) -> None:
    """Sets an empty Value to `data`, of which models become objects, and dates and the like become strings.

    Raises:
        PayloadError: something in it is no JSON value; the message names its path.
    """
    kind = type(data)
    if kind is str:
        value.string_value = data
    elif kind is bool:
        value.bool_value = data
    elif kind is int:
        if not -EXACT_INTEGER < data < EXACT_INTEGER:
            raise PayloadError("integers beyond 2^53 are not exact in JSON: send them as strings")
        value.number_value = data
    elif kind is float:
        if data - data != 0:
            raise PayloadError("JSON has no NaN and no infinity")
        value.number_value = data
    elif kind is dict:
        # Touching the field makes an empty object of it, which an empty dict must become.
        struct = value.struct_value
        struct.SetInParent()
        fill_struct(struct, data)
    elif kind is list or kind is tuple:
        values = value.list_value
        values.SetInParent()
        _fill_list(values, data)
    elif data is None:
        value.null_value = 0  # type: ignore[assignment]
    else:
        fill_value(value, _plain(data))


def _fill_list(values: ListValue, data: Sequence[JsonValue]) -> None:
    add = values.values.add
    for index, item in enumerate(data):
        try:
            fill_value(add(), item)
        except PayloadError as error:
            raise error.under(f"[{index}]") from None


def _plain(data: object) -> JsonValue:
    """Models, enumerations, dates and the like as the JSON that pydantic makes of them."""
    try:
        return to_jsonable_python(data, by_alias=True)
    except ValueError as error:
        raise PayloadError(f"{type(data).__name__} is no JSON value") from error
