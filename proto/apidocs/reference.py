"""The reference of the gRPC services in Markdown: a page a service, and one of the messages that several share."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, ServiceDescriptor

from apidocs.contract import PACKAGE, Contract, Rpc
from apidocs.errors import Errors
from apidocs.rules import constraints, is_required

_WIDTH = 118
_SHARED = "messages.md"
_NOTE = "<!-- Made from proto/ by `make gen`: do not edit. -->"
_TYPES = {
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_FLOAT: "float",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "bytes",
}


def reference(contract: Contract) -> dict[str, str]:
    """The pages, by file name."""
    services = contract.services()
    pages = {_page(service): _service(contract, service) for service in services}
    return {"README.md": _index(contract, services), _SHARED: _messages(contract), **pages}


def _page(service: ServiceDescriptor) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", service.name).lower() + ".md"


def _index(contract: Contract, services: list[ServiceDescriptor]) -> str:
    lines = [_NOTE, "", "# Reference of the gRPC services", ""]
    lines += _wrapped(
        f"The package is `{PACKAGE}`; its files stand in [proto/millstream/v1](../../proto/millstream/v1), and gRPC"
        " reflection gives them too. REST, which is the same contract, is described by [openapi.json](../openapi.json),"
        " and served by every server below `/docs` and `/redoc`."
    )
    for service in services:
        lines += ["", f"## [{service.name}]({_page(service)})", "", *_paragraphs(contract.comment(service)), ""]
        for rpc in contract.rpcs(service):
            first = re.split(r"(?<=[a-z)`0-9])[.;:] ", rpc.comment.split("\n")[0], maxsplit=1)[0].rstrip(".")
            lines += _item(f"[{rpc.name}]({_page(service)}#{rpc.name.lower()}): {first}.")
    lines += ["", f"## [Messages]({_SHARED})", "", "What several methods use, and the body of errors.", ""]
    return "\n".join(lines)


def _service(contract: Contract, service: ServiceDescriptor) -> str:
    errors = Errors(contract)
    lines = [_NOTE, "", f"# {service.name}", "", *_paragraphs(contract.comment(service))]
    for rpc in contract.rpcs(service):
        lines += ["", f"## {rpc.name}", "", *_paragraphs(rpc.comment), "", *_facts(rpc, errors)]
        for message in (rpc.method.input_type, rpc.method.output_type):
            if message.file.package == PACKAGE:
                lines += _with_inner(contract, message, "###")
    return "\n".join([*lines, ""])


def _facts(rpc: Rpc, errors: Errors) -> Iterator[str]:
    method, policy = rpc.method, rpc.policy
    taken = ("stream " if method.client_streaming else "") + method.input_type.name
    given = ("stream " if method.server_streaming else "") + method.output_type.name
    yield from _item(f"`rpc {rpc.name}({taken}) returns ({given})`")
    for door in rpc.doors:
        yield from _item(f"REST: `{door.verb.upper()} {door.path}`")
    yield from _item(f"Permission: `{policy.permission}`." if policy.permission else "For anyone, without credentials.")
    if policy.keyed:
        yield from _item("Takes an idempotency key (`x-idempotency-key`).")
    if policy.longest_wait_s:
        yield from _item(f"Waits for up to {policy.longest_wait_s} s where it is told to.")
    listed = errors.listed(rpc)
    said = "; ".join(f"{code} {note}".strip() for code, note in listed.items())
    yield from _item(f"Errors: {said}." if listed else "Errors: those of every call.")


def _messages(contract: Contract) -> str:
    own = {m.full_name for rpc in contract.rpcs() for m in (rpc.method.input_type, rpc.method.output_type)}
    found: dict[str, Descriptor] = {}
    waiting = [m for rpc in contract.rpcs() for m in (rpc.method.input_type, rpc.method.output_type)]
    while waiting:
        message = waiting.pop()
        if message.full_name not in found and message.file.package == PACKAGE:
            found[message.full_name] = message
            waiting += [field.message_type for field in message.fields if field.message_type is not None]
            waiting += list(message.nested_types)
    found[f"{PACKAGE}.ErrorBody"] = contract.message("ErrorBody")
    shared = [m for name, m in sorted(found.items()) if name not in own and m.containing_type is None]
    enums = {
        field.enum_type.full_name: field.enum_type
        for message in found.values()
        for field in message.fields
        if field.enum_type is not None and field.enum_type.containing_type is None
    }
    lines = [_NOTE, "", "# Messages"]
    for message in shared:
        if not message.GetOptions().map_entry:
            lines += _with_inner(contract, message, "##")
    for _, enum in sorted(enums.items()):
        lines += _enum(contract, enum, "##")
    return "\n".join([*lines, ""])


def _with_inner(contract: Contract, message: Descriptor, level: str) -> list[str]:
    lines = ["", f"{level} {_short(message)}", "", *_paragraphs(contract.comment(message)), ""]
    for field in message.fields:
        lines += _field(contract, field)
    if not message.fields:
        lines += ["It has no fields."]
    for inner in message.nested_types:
        if not inner.GetOptions().map_entry:
            lines += _with_inner(contract, inner, level)
    for enum in message.enum_types:
        lines += _enum(contract, enum, level)
    return lines


def _field(contract: Contract, field: FieldDescriptor) -> list[str]:
    rules = contract.rules(field)
    marks = []
    if is_required(rules, field.has_presence):
        marks.append("required")
    elif field.has_presence and field.message_type is None and field.containing_oneof is not None:
        real = not field.containing_oneof.name.startswith("_")
        marks.append(f"one of `{field.containing_oneof.name}`" if real else "optional")
    found = constraints(rules)
    marks += [f"{name} {value}" for name, value in found.items() if isinstance(value, int) and value is not True]
    kind = f"`{_type(field)}`" + (f" ({', '.join(marks)})" if marks else "")
    return _item(f"`{field.name}` {kind}: {contract.comment(field)}".rstrip(": "))


def _enum(contract: Contract, enum: EnumDescriptor, level: str) -> list[str]:
    name = enum.full_name.removeprefix(f"{PACKAGE}.")
    lines = ["", f"{level} {name}", "", *_paragraphs(contract.comment(enum)), ""]
    for value in enum.values:
        lines += _item(f"`{value.name}` = {value.number}: {contract.comment(value)}")
    return lines


def _type(field: FieldDescriptor) -> str:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        return f"map<{_type(key)}, {_type(value)}>"
    if field.message_type is not None:
        name = _short(field.message_type)
    elif field.enum_type is not None:
        name = field.enum_type.full_name.removeprefix(f"{PACKAGE}.")
    else:
        name = _TYPES[field.type]
    return f"repeated {name}" if field.is_repeated else name


def _short(message: Descriptor) -> str:
    return str(message.full_name.removeprefix(f"{PACKAGE}."))


def _paragraphs(text: str) -> list[str]:
    lines: list[str] = []
    for part in text.split("\n\n"):
        lines += [*([""] if lines else []), *_wrapped(part)]
    return lines


def _item(text: str) -> list[str]:
    first, *rest = text.split("\n\n")
    lines = _lines(first, "- ", "  ")
    for part in rest:
        lines += _lines(part, "  ", "  ")
    return lines


def _wrapped(text: str) -> list[str]:
    return _lines(text)


def _lines(text: str, first: str = "", others: str = "") -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=first, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
    )
