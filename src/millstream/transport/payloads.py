"""What a JSON payload must be: of bounded size and depth, well-formed, without NaN and infinities.

The proxy has scanned what comes over REST, so there only the size is checked. For native callers protobuf itself
(in C) tells whether the bytes are well-formed, two byte searches tell in almost all cases that there is no odd
number, and only what looks suspicious is read in full to name the path of the fault.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct, Value

from millstream.domain.errors import MillstreamError, PayloadTooLarge, ValidationFailed
from millstream.domain.struct_wire import Json, decode_struct, decode_value

MAX_DEPTH = 30
"""Containers in containers at most; the proxy's scanner has the same bound."""

# A double whose exponent is all ones is a NaN or an infinity; the tag may stand in an overlong form.
_ODD_NUMBER = re.compile(rb"\x11.{6}[\xf0-\xff][\x7f\xff]", re.DOTALL).search
_OVERLONG_TAG = re.compile(rb"\x91\x80{0,3}\x00").search
# protobuf refuses more than 100 messages in messages. A list is two, so under 20 lists 30 more still fit, and
# an object is three, so that what passes is within MAX_DEPTH for certain.
_WRAPS = 20


@dataclass(frozen=True, slots=True)
class PayloadRules:
    """Bounds of payloads; `trusted` ones were scanned by the proxy."""

    max_bytes: int

    def check_struct(self, data: bytes, field: str, trusted: bool) -> None:
        """Raise PayloadTooLarge or ValidationFailed unless `data` is a Struct that may be stored."""
        self.check_size(data, field)
        if not trusted and data:
            _check(data, field, is_struct=True)

    def check_value(self, data: bytes, field: str, trusted: bool) -> None:
        """Raise PayloadTooLarge or ValidationFailed unless `data` is a Value that may be stored."""
        self.check_size(data, field)
        if not trusted and data:
            _check(data, field, is_struct=False)

    def check_size(self, data: bytes, field: str) -> None:
        """Raise PayloadTooLarge over the bound."""
        if len(data) > self.max_bytes:
            raise too_large(field, len(data), self.max_bytes)


def too_large(field: str, size: int, limit: int) -> MillstreamError:
    """The error about a size over its limit, both in bytes."""
    way = "; upload it, and give its payload_ref instead" if field.rpartition(".")[2] == "payload" else ""
    return PayloadTooLarge(f"{field} has {size:,} bytes; the limit is {limit:,} bytes{way}")


def _check(data: bytes, field: str, is_struct: bool) -> None:
    try:
        if data.count(b"\x2a") + data.count(b"\x32") < MAX_DEPTH:
            # Fewer containers than the bound: it cannot be too deep.
            (Struct if is_struct else Value).FromString(data)
            suspicious = False
        else:
            suspicious = not _surely_shallow(data, is_struct)
    except DecodeError:
        raise ValidationFailed.of(
            field, f"is no well-formed JSON value, or nested deeper than {MAX_DEPTH} levels"
        ) from None
    if suspicious or _may_have_odd_number(data):
        _check_in_full(data, field, is_struct)


def _may_have_odd_number(data: bytes) -> bool:
    # The last byte of such a double is one of two that are rare; looking for it first costs a tenth of the pattern.
    if b"\x7f" not in data and b"\xff" not in data:
        return False
    return bool(_ODD_NUMBER(data) or _OVERLONG_TAG(data))


def _surely_shallow(data: bytes, is_struct: bool) -> bool:
    """Whether the payload parses even inside of _WRAPS lists. Raises DecodeError where it parses nowhere."""
    heads: list[bytes] = []
    size = len(data)
    tags = [b"\x2a"] if is_struct else []
    for tag in tags + [b"\x0a", b"\x32"] * _WRAPS:
        head = tag + _varint(size)
        heads.append(head)
        size += len(head)
    heads.reverse()
    try:
        Value.FromString(b"".join([*heads, data]))
    except DecodeError:
        (Struct if is_struct else Value).FromString(data)
        return False
    return True


def _check_in_full(data: bytes, field: str, is_struct: bool) -> None:
    try:
        value: Json = decode_struct(data) if is_struct else decode_value(data)
    except ValueError as error:
        raise ValidationFailed.of(field, str(error)) from None
    for path, fault in _faults(value, field, 1):
        raise ValidationFailed.of(path, fault)


def _faults(value: Json, path: str, depth: int) -> Iterator[tuple[str, str]]:
    if isinstance(value, float) and not math.isfinite(value):
        yield path, "JSON has no NaN and no infinity"
    elif isinstance(value, dict | list):
        if depth > MAX_DEPTH:
            yield path, f"is nested deeper than {MAX_DEPTH} levels"
            return
        if isinstance(value, dict):
            for key, item in value.items():
                yield from _faults(item, f"{path}.{key[:40]}", depth + 1)
        else:
            for index, item in enumerate(value):
                yield from _faults(item, f"{path}[{index}]", depth + 1)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
