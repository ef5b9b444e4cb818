"""The bytes twin: the contract's messages with every JSON payload, and every batch of log lines, declared as `bytes`.

A `google.protobuf.Struct` or `Value` field and a `bytes` field of the same number look the same on the wire.
The server reads and writes the twin, so a payload of 1 MB is taken over in microseconds, is never walked by
the validator, and keeps its key order. Everything else (names, numbers, enums, field rules) is the
contract's.
"""

from collections.abc import Iterable

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

PACKAGE = "millstream.v1"
TWIN_PACKAGE = "millstream.wire.v1"
_PATH = PACKAGE.replace(".", "/") + "/"
_TWIN_PATH = TWIN_PACKAGE.replace(".", "/") + "/"
_PAYLOADS = {".google.protobuf.Struct", ".google.protobuf.Value"}
_LATER = {f".{PACKAGE}.LogBatch"}
"""Read by themselves, when there is time for them: what comes with them does not wait."""


def twin(contract: FileDescriptorSet) -> FileDescriptorSet:
    """Return the twin of every file of the contract that declares a message or an enum, with all it imports.

    `contract` holds the contract's files after their imports, as protoc writes them.
    """
    own = [file for file in contract.file if file.package == PACKAGE and (file.message_type or file.enum_type)]
    # Extensions (the method policy) describe services, which the twin has not; two of a number cannot be
    # loaded.
    own = [file for file in own if not file.extension]
    names = {file.name for file in own}
    others = [file for file in contract.file if file.package != PACKAGE]
    return FileDescriptorSet(file=[*others, *(_twin_file(file, names) for file in own)])


def _twin_file(original: FileDescriptorProto, names: set[str]) -> FileDescriptorProto:
    file = FileDescriptorProto()
    file.CopyFrom(original)
    file.name = file.name.replace(_PATH, _TWIN_PATH, 1)
    file.package = TWIN_PACKAGE
    # Source positions no longer fit, and the comments stand in the contract.
    file.ClearField("source_code_info")
    file.ClearField("service")
    for message in file.message_type:
        _twin_message(message)
    _keep_used_imports(file, original, names)
    return file


def _twin_message(message: DescriptorProto) -> None:
    for nested in message.nested_type:
        _twin_message(nested)
    for field in message.field:
        if field.type_name in _PAYLOADS | _LATER:
            _make_bytes(message, field)
        elif field.type_name.startswith(f".{PACKAGE}."):
            field.type_name = field.type_name.replace(f".{PACKAGE}.", f".{TWIN_PACKAGE}.", 1)


def _make_bytes(message: DescriptorProto, field: FieldDescriptorProto) -> None:
    field.type = FieldDescriptorProto.TYPE_BYTES
    field.ClearField("type_name")
    singular = field.label != FieldDescriptorProto.LABEL_REPEATED
    if singular and not field.HasField("oneof_index") and not message.options.map_entry:
        # A message field knows whether it was sent; for bytes that takes `optional`, which is a oneof of one.
        field.proto3_optional = True
        field.oneof_index = len(message.oneof_decl)
        message.oneof_decl.add(name=f"_{field.name}")


def _keep_used_imports(file: FileDescriptorProto, original: FileDescriptorProto, names: set[str]) -> None:
    """Rename the imports of the contract's files, and drop those that only payloads and methods needed."""
    used = set(_type_names(file.message_type))
    file.ClearField("dependency")
    file.ClearField("public_dependency")
    for name in original.dependency:
        if name in names:
            file.dependency.append(name.replace(_PATH, _TWIN_PATH, 1))
        elif name == "buf/validate/validate.proto" or any(
            type_name.startswith(_package_prefix(name)) for type_name in used
        ):
            file.dependency.append(name)


def _type_names(messages: Iterable[DescriptorProto]) -> Iterable[str]:
    for message in messages:
        yield from (field.type_name for field in message.field if field.type_name)
        yield from _type_names(message.nested_type)


def _package_prefix(file_name: str) -> str:
    """`google/protobuf/timestamp.proto` -> `.google.protobuf.`: the directory is the package."""
    return "." + file_name.rpartition("/")[0].replace("/", ".") + "."
