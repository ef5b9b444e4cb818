"""The contract as its documentation needs it: messages, RPCs and their REST doors, each with its comment."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet

PACKAGE = "millstream.v1"
HTTP_BODY = "google.api.HttpBody"
CAMEL_PATHS = "/api/tenants"
"""Below it JSON has camelCase names."""
_VERBS = ("get", "put", "post", "delete", "patch")
_VARIABLE = re.compile(r"\{(\w+)(?:=[^}]*)?\}")
# Numbers of the fields of descriptor messages, of which the paths in source_code_info are made.
_MESSAGES, _ENUMS, _SERVICES = 4, 5, 6
_FIELDS, _NESTED, _NESTED_ENUMS, _ONEOFS = 2, 3, 4, 8
_METHODS = _VALUES = 2


@dataclass(frozen=True)
class Door:
    """One REST door of an RPC: an operation of OpenAPI."""

    rpc: Rpc
    verb: str
    path: str
    body: str
    """What the body is read as: "*" all fields that stand not in the path, a field's name, or "" for no body."""
    place: int
    """Which of the RPC's doors it is, from 0."""

    @property
    def variables(self) -> list[str]:
        """Fields that stand in the path."""
        return _VARIABLE.findall(self.path)

    @property
    def camel_case(self) -> bool:
        """JSON has camelCase names there."""
        return self.path.startswith(CAMEL_PATHS)

    @property
    def id(self) -> str:
        """Name of the operation."""
        return self.rpc.name if self.place == 0 else f"{self.rpc.name}_{self.place + 1}"


@dataclass(frozen=True)
class Rpc:
    """An RPC: its policy, and what its comment says."""

    service: str
    name: str
    method: MethodDescriptor
    policy: Any
    comment: str
    errors: str
    """What the comment says behind "Errors:"."""
    rules: tuple[tuple[str, str, str], ...]

    @property
    def doors(self) -> list[Door]:
        """Its REST doors; none where it is gRPC only."""
        return [Door(self, verb, path, body, place) for place, (verb, path, body) in enumerate(self.rules)]

    @property
    def raw(self) -> bool:
        """Its answer is no message but a content of its own."""
        return self.method.output_type.full_name == HTTP_BODY


class Contract:
    """The contract, from a descriptor set that has the comments."""

    def __init__(self, image: bytes) -> None:
        files = FileDescriptorSet.FromString(image)
        self._pool = descriptor_pool.DescriptorPool()
        self._comments: dict[str, str] = {}
        self._files = [file for file in files.file if file.package == PACKAGE]
        for file in files.file:
            self._pool.Add(file)
        for file in self._files:
            self._comments |= _comments_of(file)

    def services(self) -> list[ServiceDescriptor]:
        """The services, by the name of their file."""
        names = [f"{PACKAGE}.{service.name}" for file in self._files for service in file.service]
        return [self._pool.FindServiceByName(name) for name in names]

    def rpcs(self, service: ServiceDescriptor | None = None) -> Iterator[Rpc]:
        """The RPCs of a service, or of all."""
        for each in [service] if service is not None else self.services():
            for method in each.methods:
                yield self._rpc(method)

    def doors(self) -> list[Door]:
        """Every REST door."""
        return [door for rpc in self.rpcs() for door in rpc.doors]

    def message(self, name: str) -> Descriptor:
        """A message of the package."""
        return self._pool.FindMessageTypeByName(f"{PACKAGE}.{name}")

    def comment(self, what: Any) -> str:
        """The comment on a message, field, enum, value or service, its lines joined; "" for Google's."""
        return self._comments.get(_name_of(what), "")

    def rules(self, field: FieldDescriptor) -> Any:
        """The field's rules (buf.validate.FieldRules)."""
        return self._extension(field, "google.protobuf.FieldOptions", "buf.validate.field")

    def _rpc(self, method: MethodDescriptor) -> Rpc:
        http = self._extension(method, "google.protobuf.MethodOptions", "google.api.http")
        rules = []
        for rule in (http, *http.additional_bindings):
            verb = next((verb for verb in _VERBS if getattr(rule, verb)), None)
            if verb is not None:
                rules.append((verb, getattr(rule, verb), rule.body))
        comment, _, errors = self.comment(method).partition("Errors:")
        return Rpc(
            service=method.containing_service.name,
            name=method.name,
            method=method,
            policy=self._extension(method, "google.protobuf.MethodOptions", f"{PACKAGE}.policy"),
            comment=comment.strip(),
            errors=errors.strip(),
            rules=tuple(rules),
        )

    def _extension(self, what: Any, options: str, name: str) -> Any:
        # The options of a pool of our own come without its extensions: they are read again with them.
        kind = message_factory.GetMessageClass(self._pool.FindMessageTypeByName(options))
        found: Any = kind.FromString(what.GetOptions().SerializeToString())
        return found.Extensions[self._pool.FindExtensionByName(name)]


def _name_of(what: Any) -> str:
    if hasattr(what, "full_name"):
        return str(what.full_name)
    return f"{what.type.full_name}.{what.name}"  # a value of an enum


def _comments_of(file: FileDescriptorProto) -> dict[str, str]:
    names = dict(_paths(file))
    return {
        names[tuple(location.path)]: _joined(location.leading_comments)
        for location in file.source_code_info.location
        if tuple(location.path) in names and location.leading_comments
    }


def _paths(file: FileDescriptorProto) -> Iterator[tuple[tuple[int, ...], str]]:
    for number, message in enumerate(file.message_type):
        yield from _paths_in(message, (_MESSAGES, number), f"{file.package}.{message.name}")
    for number, enum in enumerate(file.enum_type):
        yield from _values(enum, (_ENUMS, number), f"{file.package}.{enum.name}")
    for number, service in enumerate(file.service):
        name = f"{file.package}.{service.name}"
        yield (_SERVICES, number), name
        for place, method in enumerate(service.method):
            yield (_SERVICES, number, _METHODS, place), f"{name}.{method.name}"


def _paths_in(message: DescriptorProto, path: tuple[int, ...], name: str) -> Iterator[tuple[tuple[int, ...], str]]:
    yield path, name
    for number, field in enumerate(message.field):
        yield (*path, _FIELDS, number), f"{name}.{field.name}"
    for number, oneof in enumerate(message.oneof_decl):
        yield (*path, _ONEOFS, number), f"{name}.{oneof.name}"
    for number, inner in enumerate(message.nested_type):
        yield from _paths_in(inner, (*path, _NESTED, number), f"{name}.{inner.name}")
    for number, enum in enumerate(message.enum_type):
        yield from _values(enum, (*path, _NESTED_ENUMS, number), f"{name}.{enum.name}")


def _values(enum: Any, path: tuple[int, ...], name: str) -> Iterator[tuple[tuple[int, ...], str]]:
    yield path, name
    for number, value in enumerate(enum.value):
        yield (*path, _VALUES, number), f"{name}.{value.name}"


def _joined(comment: str) -> str:
    """The comment's paragraphs, each on one line; what linters are told is left out."""
    lines = [line.strip() for line in comment.splitlines() if not line.strip().startswith("buf:lint")]
    return "\n\n".join(" ".join(part.split()) for part in "\n".join(lines).split("\n\n")).strip()


def enum_name(enum: EnumDescriptor) -> str:
    """Its name as a type of its own: "RunStatus"."""
    return enum.full_name.removeprefix(f"{PACKAGE}.").removesuffix(".Value").replace(".", "")


def message_name(message: Descriptor) -> str:
    """Its name as a type of its own: "PublishSyncRequestFilters"."""
    return message.full_name.removeprefix(f"{PACKAGE}.").replace(".", "")
