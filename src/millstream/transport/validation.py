"""The field rules of the contract, checked by protovalidate on the bytes twin."""

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from protovalidate import Validator, Violation

from buf.validate import validate_pb2
from millstream.domain.errors import FieldFault, ValidationFailed
from millstream.transport.contract import descriptor_of

_VALIDATOR = Validator()
"""One for the process: it compiles the rules of each message type once."""

_RANGES = frozenset(
    {"gt", "gte", "lt", "lte", "len", "min_len", "max_len", "min_bytes", "max_bytes", "min_items", "max_items"}
    | {"min_pairs", "max_pairs", "gte_lte", "gt_lte", "gte_lt", "gt_lt"}
)
PATTERNS = {
    "^[a-z][A-Za-z0-9.-]*$": "must be the name of a file: a small letter, then letters, digits, . or -",
    "^[A-Za-z_][A-Za-z0-9_.-]*$": "must begin with a letter or _; letters, digits, and _ . - follow",
    "^[A-Za-z][A-Za-z0-9_.-]*$": "must begin with a letter; letters, digits, and _ . - follow",
    "^[A-Za-z][A-Za-z0-9_.:-]*$": "must begin with a letter; letters, digits, and _ . : - follow",
    "^[A-Za-z0-9_.-]+$": "must have letters, digits, and _ . - only",
    "^[^~]": "must not begin with ~",
    "^[^=]+=": "must be key=value",
    "^[A-Za-z0-9_.-]*$": "may have letters, digits, and _ . -",
    "^[A-Za-z0-9_.:@-]*$": "may have letters, digits, and _ . : @ -",
    "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$": "may have lower-case letters, digits, and - between them",
    "^[1-9][0-9]*$": "must be a whole number from 1 on, such as 7",
    "^([0-9]+[smhd])?$": "must be a number and s, m, h or d, such as 30s, 5m, 2h or 7d",
    "^[A-Z0-9_]*$": "may have capital letters, digits, and _",
    "^([A-Za-z]+(,[A-Za-z]+)*)?$": "must be names with commas between, such as WARN,ERROR",
    "^[ -~]*$": "may have printable ASCII characters only",
    "^sha256:[0-9a-f]{64}$": "must be sha256: and 64 hexadecimal digits in lower case, as the upload answered",
    "^(millstream(\\.[a-z0-9_]+)*)?$": "must be millstream, or a name below it such as millstream.engine",
}
"""What the patterns of the contract ask for, in words."""
_AT_LEAST_ONE = frozenset({"string.min_len", "repeated.min_items"})


def has_rules(descriptor: Descriptor, seen: frozenset[str] = frozenset()) -> bool:
    """Whether any field, at any depth, has a rule."""
    if descriptor.full_name in seen:
        return False
    seen |= {descriptor.full_name}
    return any(
        field.GetOptions().HasExtension(validate_pb2.field)
        or (field.message_type is not None and has_rules(field.message_type, seen))
        for field in descriptor.fields
    )


def check(message: Message) -> None:
    """Raise ValidationFailed naming every field that breaks a rule."""
    violations = _VALIDATOR.collect_violations(message)
    if violations:
        raise failed(_faults(message, violations))


def failed(faults: list[FieldFault]) -> ValidationFailed:
    """The error about these fields."""
    first = faults[0]
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return ValidationFailed(f"{first.field}: {first.message}{more}", faults)


def _faults(message: Message, violations: list[Violation]) -> list[FieldFault]:
    out: list[FieldFault] = []
    for violation in violations:
        fault = _fault(descriptor_of(message), violation)
        # An empty name breaks its length and its pattern; saying that it is required is enough.
        if not (out and out[-1].field == fault.field and out[-1].code == "REQUIRED"):
            out.append(fault)
    return out


def _fault(descriptor: Descriptor, violation: Violation) -> FieldFault:
    field = _path(descriptor, violation)
    rule = violation.proto.rule_id
    text = violation.proto.message
    if rule == "required" or (rule in _AT_LEAST_ONE and not violation.field_value):
        return FieldFault(field, "is required", "REQUIRED")
    if rule.rpartition(".")[2] in _RANGES:
        return FieldFault(field, text, "OUT_OF_RANGE")
    if rule == "repeated.unique":
        return FieldFault(field, "holds a value twice; leave the second out", "DUPLICATE")
    if rule == "string.pattern":
        text = PATTERNS.get(violation.rule_value, text)
    # The empty string that stands for the default is nothing that a caller would send.
    return FieldFault(field, text.replace("must be in list [, ", "must be in list ["), "INVALID")


def _path(descriptor: Descriptor, violation: Violation) -> str:
    out = ""
    kind: Descriptor | None = descriptor
    for element in violation.proto.field.elements if violation.proto.field else ():
        name = element.field_name
        out += ("." if out else "") + _shown(kind, name)
        if element.subscript is not None:
            value = element.subscript.value
            out += f"[{value}]" if isinstance(value, int) else f'["{value}"]'
        field = kind.fields_by_name.get(name) if kind is not None else None
        kind = field.message_type if field is not None else None
    return out


def _shown(kind: Descriptor | None, name: str) -> str:
    """The field's name as callers write it: its own, unless the contract spells another out."""
    field = kind.fields_by_name.get(name) if kind is not None else None
    if field is None:
        return name
    words = name.split("_")
    usual = words[0] + "".join(word.capitalize() for word in words[1:])
    return name if field.json_name == usual else field.json_name
