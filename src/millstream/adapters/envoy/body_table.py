"""The Lua tables that drive the scanner of JSON bodies (strict_json.lua): what each field may hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from millstream.adapters.envoy.descriptors import HTTP_BODY

_SCALARS = {
    FieldDescriptor.TYPE_DOUBLE: "number",
    FieldDescriptor.TYPE_FLOAT: "number",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_SINT64: "int64",
    FieldDescriptor.TYPE_SFIXED64: "int64",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_FIXED64: "uint64",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_SINT32: "int32",
    FieldDescriptor.TYPE_SFIXED32: "int32",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_FIXED32: "uint32",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_ENUM: "enum",
}
_TYPE_URL = "type.googleapis.com/"
# Messages whose JSON is not an object of their fields. The wrappers read as what they wrap.
_WELL_KNOWN = {
    "google.protobuf.Timestamp": "timestamp",
    "google.protobuf.Duration": "duration",
    "google.protobuf.FieldMask": "string",
    "google.protobuf.Struct": "struct",
    "google.protobuf.Value": "value",
    "google.protobuf.ListValue": "list_value",
    "google.protobuf.Any": "struct",
    "google.protobuf.DoubleValue": "number",
    "google.protobuf.FloatValue": "number",
    "google.protobuf.Int64Value": "int64",
    "google.protobuf.UInt64Value": "uint64",
    "google.protobuf.Int32Value": "int32",
    "google.protobuf.UInt32Value": "uint32",
    "google.protobuf.BoolValue": "bool",
    "google.protobuf.StringValue": "string",
    "google.protobuf.BytesValue": "bytes",
}


Limits = Callable[[FieldDescriptor], tuple[int, int] | None]
"""The least and the most that an integer field may hold, where its rules say so."""


def body_table(bodies: Iterable[Descriptor], limits: Limits) -> str:
    """Return Lua that defines `BODIES`: full name of a body's message -> what the scanner knows of it.

    A message is a table of its fields under both of their names, a field a table of `name` (the proto's),
    `kind`, and what the kind needs: `message`, `values` (names of an enum), `item` (of a list or a map), `least` and
    `most` (of an integer whose rules say so).
    """
    messages = _reachable(body for body in bodies if body.full_name != HTTP_BODY)
    number = {name: index for index, name in enumerate(messages, 1)}
    lines = ["local BODIES = {}", "do", f"local M = {{}} for i = 1, {len(number)} do M[i] = {{}} end"]
    for message in messages.values():
        lines.append(f"-- {message.full_name}")
        for field in message.fields:
            lines.append(f"M[{number[message.full_name]}]{_key(field.name)} = {_field(field, number, limits)}")
            if field.json_name != field.name:
                target = f"M[{number[message.full_name]}]"
                lines.append(f"{target}{_key(field.json_name)} = {target}{_key(field.name)}")
    lines += [f'BODIES["{name}"] = M[{index}]' for name, index in number.items()]
    return "\n".join([*lines, "end", ""])


def parameter_table(requests: Iterable[Descriptor], limits: Limits) -> str:
    """Return Lua that defines `PARAMETERS`: the proto's name of a field -> its documented one (`json_name`),
    `REPEATED`: the documented names of those that are lists, `ENUMS`: the transcoder's name of an enum -> its values,
    `LIMITS`: the name of an integer -> what it must be in most requests, and `OWN_LIMITS`: the full name of one that
    must be something else -> what, or false where its rules do not say.

    Only names of the author's choice are in the first: the camelCase that every field has by itself is no better.
    """
    fields = [field for request in requests for field in request.fields]
    usual = _usual(fields, limits)
    chosen = {field.name: field.json_name for field in fields if field.json_name != _camel_case(field.name)}
    repeated = {chosen.get(field.name, field.name) for field in fields if field.is_repeated}
    entries = ", ".join(f'{_key(name)} = "{shown}"' for name, shown in sorted(chosen.items()))
    lists = ", ".join(f"{_key(name)} = true" for name in sorted(repeated))
    enums = {field.enum_type.full_name: field.enum_type for field in fields if field.enum_type is not None}
    values = ", ".join(f"{_key(_TYPE_URL + name)} = {_names(enum)}" for name, enum in sorted(enums.items()))
    ranges = ", ".join(f"{_key(name)} = {_range(each)}" for name, each in sorted(usual.items()))
    own = {field.full_name: limits(field) for field in fields if limits(field) != usual.get(field.name)}
    others = ", ".join(f"{_key(name)} = {_range(each)}" for name, each in sorted(own.items()))
    return (
        f"local PARAMETERS = {{ {entries} }}\nlocal REPEATED = {{ {lists} }}\nlocal ENUMS = {{ {values} }}\n"
        f"local LIMITS = {{ {ranges} }}\nlocal OWN_LIMITS = {{ {others} }}"
    )


def _names(enum: EnumDescriptor) -> str:
    # The first, for "not given", is none to ask for.
    return '"' + ", ".join(value.name for value in enum.values if value.number) + '"'


def _usual(fields: Iterable[FieldDescriptor], limits: Limits) -> dict[str, tuple[int, int]]:
    """What the integers of each name must be, as most of them say."""
    found: dict[str, Counter[tuple[int, int]]] = {}
    for field in fields:
        if (each := limits(field)) is not None:
            found.setdefault(field.name, Counter())[each] += 1
    return {name: ranges.most_common(1)[0][0] for name, ranges in found.items()}


def _range(limits: tuple[int, int] | None) -> str:
    return "false" if limits is None else f'"an integer between {limits[0]} and {limits[1]}"'


def _camel_case(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def _reachable(bodies: Iterable[Descriptor]) -> dict[str, Descriptor]:
    found: dict[str, Descriptor] = {}
    waiting = list(bodies)
    while waiting:
        message = waiting.pop(0)
        if message.full_name not in found:
            found[message.full_name] = message
            waiting += [inner for field in message.fields for inner in _messages_of(field)]
    return found


def _messages_of(field: FieldDescriptor) -> list[Descriptor]:
    message = field.message_type
    if message is None or message.full_name in _WELL_KNOWN:
        return []
    return _messages_of(message.fields_by_name["value"]) if _is_map(field) else [message]


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _field(field: FieldDescriptor, number: dict[str, int], limits: Limits) -> str:
    name = f'name = "{field.name}"'
    if field.message_type is not None and _is_map(field):
        value = _value(field.message_type.fields_by_name["value"], number)
        return f'{{ {name}, kind = "map", item = {{ {value} }} }}'
    if field.is_repeated:
        return f'{{ {name}, kind = "list", item = {{ {_value(field, number)} }} }}'
    bounds = limits(field)
    least = f", least = {bounds[0]}, most = {bounds[1]}" if bounds is not None else ""
    return f"{{ {name}, {_value(field, number)}{least} }}"


def _value(field: FieldDescriptor, number: dict[str, int]) -> str:
    if field.enum_type is not None:
        names = ", ".join(f"{value.name.upper()} = true" for value in field.enum_type.values)
        return f'kind = "enum", values = {{ {names} }}'
    if field.message_type is None:
        return f'kind = "{_SCALARS[field.type]}"'
    if kind := _WELL_KNOWN.get(field.message_type.full_name):
        return f'kind = "{kind}"'
    return f'kind = "message", message = M[{number[field.message_type.full_name]}]'


def _key(name: str) -> str:
    # Always in brackets: `.end` would be a syntax error in Lua.
    return f'["{name}"]'
