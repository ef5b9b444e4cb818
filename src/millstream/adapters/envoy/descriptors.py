"""The contract as the proxy needs it: REST bindings, the messages of their bodies, and the transcoder's set.

Read from the descriptor set that `make gen` writes, in a pool of its own, so that nothing here depends on the
generated Python.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

PACKAGE = "millstream.v1"
HTTP_BODY = "google.api.HttpBody"
TRANSFERS = f"{PACKAGE}.PayloadService"
"""The service whose streams are of any size, and as slow as their clients."""
CAMEL_PATHS = "/api/tenants"
"""Below it JSON has camelCase names; requests may have either."""
_VALIDATE = "buf/validate/validate.proto"
_RULES = "buf.validate.field"
_INTEGERS = {FieldDescriptor.TYPE_UINT32: "uint32", FieldDescriptor.TYPE_INT32: "int32"}
_VERBS = ("get", "put", "post", "delete", "patch")
_VARIABLE = re.compile(r"\{[^}=]+(?:=([^}]*))?\}")


@dataclass(frozen=True)
class Binding:
    """One REST door of one RPC."""

    method: str
    """HTTP method, upper case."""
    template: str
    """Path template, as `google.api.http` spells it."""
    rpc: str
    """Full name of the RPC."""
    request: str
    """Full name of the RPC's request message."""
    body: Descriptor | None
    """Message that the JSON body is read as; None where the path takes no body."""
    streaming: bool
    """The answer is a stream, which no timeout may end."""
    uploading: bool
    """The request is a stream, which is never held as a whole."""
    longest_wait_s: int
    """Seconds that a call may wait by design (the policy option)."""
    public: bool
    """Tells how a server is, to anyone (the policy option)."""

    @property
    def transfer(self) -> bool:
        """It takes or gives a payload of any size."""
        return self.rpc.startswith(f"{TRANSFERS}.") and (self.streaming or self.uploading)

    @property
    def camel_case(self) -> bool:
        """Its answers have camelCase names, as all of the paths of tenants."""
        return self.template.startswith(CAMEL_PATHS)

    @property
    def has_head(self) -> bool:
        """HEAD is answered too. Not for a stream, whose length is known when it ends, unless that of a payload."""
        return self.method == "GET" and (not self.streaming or self.transfer)

    @property
    def path_regex(self) -> str | None:
        """What Envoy matches the path against; None for a path without variables."""
        if "{" not in self.template:
            return None
        parts, end = [], 0
        for variable in _VARIABLE.finditer(self.template):
            parts += [re.escape(self.template[end : variable.start()]), _segments(variable.group(1) or "*")]
            end = variable.end()
        return "".join([*parts, re.escape(self.template[end:])]).replace(r"\-", "-")


def asset(name: str) -> str | bytes:
    """Return a file of the proxy's folder: text, or bytes for the descriptor set.

    Raises FileNotFoundError, naming `make gen`, where the folder has no such file.
    """
    here = Path(__file__).resolve()
    # In a wheel the folder is package data; in a checkout it stands at the top, beside src.
    places = (here.parents[2] / "_assets" / "envoy" / name, here.parents[4] / "envoy" / name)
    for path in places:
        if path.is_file():
            return path.read_bytes() if name.endswith(".binpb") else path.read_text(encoding="utf-8")
    raise FileNotFoundError(f"envoy/{name} is not there: run `make gen`")


class Contract:
    """The services of a descriptor set."""

    def __init__(self, descriptor_set: bytes) -> None:
        self._files = descriptor_pb2.FileDescriptorSet.FromString(descriptor_set)
        self._pool = descriptor_pool.DescriptorPool()
        for file in self._files.file:
            self._pool.Add(file)

    def services(self, camel_case: bool | None = None) -> list[str]:
        """Full names of the services that have a REST binding, of one style of names or (None) of any."""
        wanted = (each for each in self.bindings() if camel_case in (None, each.camel_case))
        return sorted({binding.rpc.rpartition(".")[0] for binding in wanted})

    def bindings(self) -> list[Binding]:
        """Every binding of every RPC, the most specific paths first."""
        found = [
            binding
            for file in self._files.file
            if file.package == PACKAGE
            for service in file.service
            for method in self._pool.FindServiceByName(f"{PACKAGE}.{service.name}").methods
            for binding in self._bindings_of(method)
        ]
        # A path with variables would also match a longer-spelt one without (`/tasks/{id}` and `/tasks/batch`).
        return sorted(found, key=lambda b: ("{" in b.template, -len(_VARIABLE.sub("", b.template)), b.template))

    def requests(self) -> list[Descriptor]:
        """Request messages of the RPCs that have a REST binding."""
        methods = [self._pool.FindMethodByName(name) for name in sorted({binding.rpc for binding in self.bindings()})]
        return [method.input_type for method in methods]

    def limits(self, field: FieldDescriptor) -> tuple[int, int] | None:
        """The least and the most that an integer field may hold, by its rules; None where these do not say both."""
        options = self._pool.FindMessageTypeByName("google.protobuf.FieldOptions")
        given = message_factory.GetMessageClass(options).FromString(field.GetOptions().SerializeToString())
        rules = getattr(self._extension(given, _RULES), _INTEGERS.get(field.type, ""), None)
        if rules is None or not rules.WhichOneof("less_than"):
            return None
        most = rules.lte if rules.WhichOneof("less_than") == "lte" else rules.lt - 1
        match rules.WhichOneof("greater_than"):
            case "gte":
                return int(rules.gte), int(most)
            case "gt":
                return int(rules.gt) + 1, int(most)
            case _:
                return (0, int(most)) if field.type == FieldDescriptor.TYPE_UINT32 else None

    def transcoder_set(self) -> bytes:
        """Return the descriptor set without what a transcoder never reads: field rules, which are most of it."""
        slim = descriptor_pb2.FileDescriptorSet()
        slim.CopyFrom(self._files)
        kept = [file for file in slim.file if file.name != _VALIDATE]
        for file in kept:
            dependencies = [name for name in file.dependency if name != _VALIDATE]
            file.ClearField("dependency")
            file.dependency.extend(dependencies)
            for message in file.message_type:
                _drop_rules(message)
        return descriptor_pb2.FileDescriptorSet(file=kept).SerializeToString(deterministic=True)

    def _bindings_of(self, method: MethodDescriptor) -> Iterator[Binding]:
        options = self._options(method)
        http, policy = self._extension(options, "google.api.http"), self._extension(options, f"{PACKAGE}.policy")
        for rule in (http, *http.additional_bindings):
            for verb in _VERBS:
                if template := getattr(rule, verb):
                    yield Binding(
                        method=verb.upper(),
                        template=template,
                        rpc=method.full_name,
                        request=method.input_type.full_name,
                        body=_body(method, rule.body),
                        streaming=method.server_streaming,
                        uploading=method.client_streaming,
                        longest_wait_s=policy.longest_wait_s,
                        public=policy.public,
                    )

    def _options(self, method: MethodDescriptor) -> Any:
        # Options come as the class of the default pool, which does not know this pool's extensions.
        options = self._pool.FindMessageTypeByName("google.protobuf.MethodOptions")
        return message_factory.GetMessageClass(options).FromString(method.GetOptions().SerializeToString())

    def _extension(self, options: Any, name: str) -> Any:
        return options.Extensions[self._pool.FindExtensionByName(name)]


def _segments(pattern: str) -> str:
    return "/".join({"*": "[^/]+", "**": ".+"}.get(segment, re.escape(segment)) for segment in pattern.split("/"))


def _body(method: MethodDescriptor, name: str) -> Descriptor | None:
    if name in ("", "*"):
        return method.input_type if name else None
    message = method.input_type.fields_by_name[name].message_type
    if message is None or (message.file.package == "google.protobuf"):
        raise ValueError(f"{method.full_name}: the scanner of bodies knows no body of the kind of `{name}`")
    return message


def _drop_rules(message: descriptor_pb2.DescriptorProto) -> None:
    for field in message.field:
        field.ClearField("options")
    for nested in message.nested_type:
        _drop_rules(nested)
