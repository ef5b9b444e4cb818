"""JSON Schemas of messages, as REST shows them: in snake_case, or in camelCase below the paths of tenants."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from apidocs.contract import Contract, Door, enum_name, message_name
from apidocs.rules import constraints, is_required

JSON = dict[str, Any]

_F = FieldDescriptor
_SCALARS: dict[int, JSON] = {
    _F.TYPE_DOUBLE: {"type": "number", "format": "double"},
    _F.TYPE_FLOAT: {"type": "number", "format": "float"},
    _F.TYPE_INT32: {"type": "integer", "format": "int32", "minimum": -(2**31), "maximum": 2**31 - 1},
    _F.TYPE_UINT32: {"type": "integer", "format": "int64", "minimum": 0, "maximum": 2**32 - 1},
    _F.TYPE_BOOL: {"type": "boolean"},
    _F.TYPE_STRING: {"type": "string"},
    _F.TYPE_BYTES: {"type": "string", "format": "byte"},
}
DURATION = r"^-?[0-9]+(\.[0-9]{1,9})?s$"
_WELL_KNOWN: dict[str, JSON] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": DURATION, "example": "30s"},
    "google.protobuf.Struct": {"type": "object", "additionalProperties": True},
    "google.protobuf.Value": {},
    "google.protobuf.ListValue": {"type": "array", "items": {}},
    "google.protobuf.FieldMask": {"type": "string"},
    "google.protobuf.DoubleValue": {"type": "number"},
    "google.protobuf.StringValue": {"type": "string"},
    "google.protobuf.BoolValue": {"type": "boolean"},
    "google.protobuf.UInt32Value": _SCALARS[_F.TYPE_UINT32],
    "google.protobuf.Int32Value": _SCALARS[_F.TYPE_INT32],
}


class Schemas:
    """The schemas of a contract's messages; what was asked for, and what it refers to, stands in `components`."""

    def __init__(self, contract: Contract) -> None:
        self.components: dict[str, JSON] = {}
        self._contract = contract
        doors = contract.doors()
        asked = [door.rpc.method.input_type for door in doors]
        self._asked = _reachable(asked)
        self._answered = _reachable(door.rpc.method.output_type for door in doors)
        snake = [each for door in doors if not door.camel_case for each in _messages_of(door)]
        self._snake = _reachable(snake)

    def reference(self, message: Descriptor, camel_case: bool) -> JSON:
        """A reference to the schema of a message."""
        return {"$ref": f"#/components/schemas/{self._named(message, camel_case)}"}

    def body(self, door: Door) -> JSON:
        """What the JSON body of a door holds: the request without what stands in the path."""
        message = door.rpc.method.input_type
        if not door.variables:
            return self.reference(message, door.camel_case)
        name = message_name(message)
        self.components[name] = self._object(message, door.camel_case, frozenset(door.variables))
        return {"$ref": f"#/components/schemas/{name}"}

    def required(self, message: Descriptor, camel_case: bool) -> list[str]:
        """The fields of a request that have to be given."""
        return [shown(field, camel_case) for field in message.fields if self._has(message, field)]

    def resolved(self, schema: JSON) -> JSON:
        """What a reference refers to."""
        return self.components[schema["$ref"].rpartition("/")[2]]

    def of_field(self, field: FieldDescriptor, camel_case: bool) -> JSON:
        """The schema of a field, with its comment and its rules."""
        rules = constraints(self._contract.rules(field))
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value = self._value(field.message_type.fields_by_name["value"], camel_case)
            values = _joined(value, rules.pop("additionalProperties", {}))
            schema: JSON = {"type": "object", "additionalProperties": values, **rules}
        elif field.is_repeated:
            items = _joined(self._value(field, camel_case), rules.pop("items", {}))
            schema = {"type": "array", "items": items, **rules}
        else:
            schema = _joined(self._value(field, camel_case), rules)
        if field.GetOptions().deprecated:
            schema["deprecated"] = True
        said = self._contract.comment(field)
        if not said:
            return schema
        # Beside a reference nothing else counts in OpenAPI 3.0.
        return {"allOf": [schema], "description": said} if "$ref" in schema else {**schema, "description": said}

    def enum(self, enum: EnumDescriptor) -> JSON:
        """The names of an enum but the first, which stands for "not given"."""
        return {"type": "string", "enum": [value.name for value in enum.values if value.number]}

    def _named(self, message: Descriptor, camel_case: bool) -> str:
        name = message_name(message)
        if camel_case and message.full_name in self._snake:
            name = f"Tenant{name}"
        if name not in self.components:
            self.components[name] = {}  # it may hold itself
            self.components[name] = self._object(message, camel_case)
        return name

    def _object(self, message: Descriptor, camel_case: bool, without: frozenset[str] = frozenset()) -> JSON:
        fields = [field for field in message.fields if field.name not in without]
        required = [shown(field, camel_case) for field in fields if self._has(message, field)]
        schema: JSON = {"type": "object"}
        if said := self._contract.comment(message):
            schema["description"] = said
        if required:
            schema["required"] = required
        schema["properties"] = {shown(field, camel_case): self.of_field(field, camel_case) for field in fields}
        if message.full_name not in self._answered:
            # A request with an unknown field is refused; an answer may have more fields one day.
            schema["additionalProperties"] = False
        return schema

    def _has(self, message: Descriptor, field: FieldDescriptor) -> bool:
        """Whether the field is always there: in a request by its rules, in an answer since it is always printed."""
        if message.full_name in self._asked:
            return is_required(self._contract.rules(field), field.has_presence)
        return not field.has_presence

    def _value(self, field: FieldDescriptor, camel_case: bool) -> JSON:
        if field.enum_type is not None:
            return self._enum_reference(field.enum_type)
        if field.message_type is None:
            return {**_SCALARS[field.type]}
        if (known := _WELL_KNOWN.get(field.message_type.full_name)) is not None:
            return {**known}
        return self.reference(field.message_type, camel_case)

    def _enum_reference(self, enum: EnumDescriptor) -> JSON:
        name = enum_name(enum)
        if name not in self.components:
            lines = [f"- `{value.name}`: {self._contract.comment(value)}" for value in enum.values if value.number]
            said = "\n".join([self._contract.comment(enum), "", *lines]).strip()
            self.components[name] = {
                "type": "string",
                "enum": [value.name for value in enum.values],
                "description": said,
            }
        return {"$ref": f"#/components/schemas/{name}"}


def shown(field: FieldDescriptor, camel_case: bool) -> str:
    """The name that REST shows: the proto's, unless its author chose another."""
    if camel_case or field.json_name != _camel_case(field.name):
        return str(field.json_name)
    return field.name


def _camel_case(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def _joined(schema: JSON, rules: JSON) -> JSON:
    return {**schema, **rules} if "$ref" not in schema else schema


def _messages_of(door: Door) -> list[Descriptor]:
    return [door.rpc.method.input_type, door.rpc.method.output_type]


def _reachable(messages: Iterable[Descriptor]) -> set[str]:
    found: set[str] = set()
    waiting = list(messages)
    while waiting:
        message = waiting.pop()
        if message.full_name not in found:
            found.add(message.full_name)
            waiting += [field.message_type for field in message.fields if field.message_type is not None]
    return found
