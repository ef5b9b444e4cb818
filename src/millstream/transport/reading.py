"""Reads the requests of a method: bytes to a checked message of the twin."""

from collections.abc import Iterator
from dataclasses import dataclass

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message

from millstream.domain.errors import BadRequest
from millstream.transport import validation
from millstream.transport.contract import Method, descriptor_of
from millstream.transport.payloads import PayloadRules, too_large
from millstream.transport.text import TextPlan

_STRUCT = "google.protobuf.Struct"
_VALUE = "google.protobuf.Value"

# Lists whose items are checked one by one where they are mapped, because one bad item fails alone, or whose text is
# made to fit there.
_ITEMS: dict[str, frozenset[str]] = {
    "PublishBatchRequest": frozenset({"artifacts"}),
    "CreateTaskBatchRequest": frozenset({"tasks"}),
    "ExecuteWorkflowBatchRequest": frozenset({"runs"}),
    "WorkRequest": frozenset({"completions", "failures", "progress", "answers"}),
    "CompleteRequest": frozenset({"completions"}),
    "FailRequest": frozenset({"failures"}),
    "AnswerActivationsRequest": frozenset({"answers"}),
    "ReportProgressRequest": frozenset({"progress"}),
}


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of requests, in bytes."""

    max_payload_bytes: int = 1024 * 1024
    max_request_bytes: int = 4 * 1024 * 1024


class Reader:
    """Reads the requests of one method."""

    __slots__ = ("_limit", "_payloads", "_request", "_text", "_validated", "public_request", "rules")

    def __init__(self, method: Method, limits: Limits) -> None:
        items = _ITEMS.get(descriptor_of(method.request).name, frozenset())
        self._request = method.request
        self.public_request = method.public_request
        # A stream's message may carry a batch of results; gRPC's own limit bounds it.
        self._limit = 0 if method.streaming else limits.max_request_bytes
        self._validated = validation.has_rules(descriptor_of(method.request))
        self._text = TextPlan.of(descriptor_of(method.request), skip=items)
        self._payloads = list(_payload_fields(descriptor_of(method.public_request), items))
        self.rules = PayloadRules(limits.max_payload_bytes)

    def read(self, raw: bytes, trusted: bool) -> Message:
        """The request. Raises BadRequest, PayloadTooLarge or ValidationFailed."""
        message = self.parse(raw)
        if self._validated:
            validation.check(message)
        self.check(message, raw, trusted)
        return message

    def parse(self, raw: bytes) -> Message:
        """The request, unchecked but for its size. Raises BadRequest or PayloadTooLarge."""
        if self._limit and len(raw) > self._limit:
            raise too_large("the request", len(raw), self._limit)
        try:
            return self._request.FromString(raw)
        except DecodeError:
            raise BadRequest("the request could not be read: it is malformed, or has text that is not UTF-8") from None

    def check(self, message: Message, raw: bytes, trusted: bool) -> None:
        """Check what field rules cannot say: payloads, and NUL characters."""
        if b"\0" in raw:
            self._text.check(message)
        for path, is_struct in self._payloads:
            for name, data in _find(message, path, ""):
                if is_struct:
                    self.rules.check_struct(data, name, trusted)
                else:
                    self.rules.check_value(data, name, trusted)


_Path = tuple[tuple[str, bool], ...]


def _payload_fields(
    descriptor: Descriptor, skip: frozenset[str], path: _Path = (), seen: frozenset[str] = frozenset()
) -> Iterator[tuple[_Path, bool]]:
    """Paths of (field, repeated) to the payloads of a message, with whether each is a Struct."""
    for field in descriptor.fields:
        kind = field.message_type
        if kind is None or kind.full_name in seen or (field.name in skip and not path):
            continue
        here = (*path, (field.name, field.is_repeated))
        if kind.full_name in {_STRUCT, _VALUE}:
            yield here, kind.full_name == _STRUCT
        elif not kind.GetOptions().map_entry:
            yield from _payload_fields(kind, skip, here, seen | {kind.full_name})


def _find(message: Message, path: _Path, prefix: str) -> Iterator[tuple[str, bytes]]:
    (name, repeated), rest = path[0], path[1:]
    if not rest and repeated:
        for index, data in enumerate(getattr(message, name)):
            yield f"{prefix}{name}[{index}]", data
    elif not rest:
        yield prefix + name, getattr(message, name)
    elif repeated:
        for index, child in enumerate(getattr(message, name)):
            yield from _find(child, rest, f"{prefix}{name}[{index}].")
    elif message.HasField(name):
        yield from _find(getattr(message, name), rest, f"{prefix}{name}.")
