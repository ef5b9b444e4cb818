"""What registers an agent, given as JSON: read field by field, so that a fault is named as the contract names it."""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from math import isfinite
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import ParseDict, ParseError

from millstream.sdk.errors import PayloadError

_DURATION: Final = "google.protobuf.Duration"
_TIME: Final = re.compile(r"-?\d{1,12}(\.\d{1,9})?s")
_WHOLE: Final = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def fill_spec(request: Any, spec: Mapping[str, Any]) -> Any:
    """Puts it into the request, which is returned.

    Raises:
        PayloadError: a field that the contract does not know, or of another kind; says where, and what may be there.
    """
    _message(dict(spec), request.DESCRIPTOR, "")
    try:
        return ParseDict(dict(spec), request)
    except ParseError as error:
        raise PayloadError(f"is no agent: {error}") from error


def _message(value: Any, descriptor: Descriptor, path: str) -> None:
    if not isinstance(value, Mapping):
        raise PayloadError("must be a JSON object", path)
    names = {field.name: field for field in descriptor.fields}
    fields = {field.json_name: field for field in descriptor.fields} | names
    for name, each in value.items():
        where = f"{path}.{name}" if path else str(name)
        if name not in fields:
            near = get_close_matches(str(name), names, 1)
            hint = f"did you mean {near[0]}?" if near else f"there may be {', '.join(sorted(names))}"
            raise PayloadError(f"there is no such field; {hint}", where)
        if each is not None:
            _field(each, fields[name], where)


def _field(value: Any, field: FieldDescriptor, path: str) -> None:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        if not isinstance(value, Mapping):
            raise PayloadError("must be a JSON object", path)
        for name, each in value.items():
            _single(each, kind.fields_by_name["value"], f"{path}.{name}")
    elif field.is_repeated:
        if not isinstance(value, list | tuple):
            raise PayloadError("must be a list", path)
        for place, each in enumerate(value):
            _single(each, field, f"{path}[{place}]")
    else:
        _single(value, field, path)


def _single(value: Any, field: FieldDescriptor, path: str) -> None:
    kind = field.cpp_type
    if field.message_type is not None and field.message_type.full_name == _DURATION:
        if not isinstance(value, str) or not _TIME.fullmatch(value):
            raise PayloadError('must be a time in seconds, such as "30s"', path)
    elif field.message_type is not None and field.message_type.full_name.startswith("google."):
        return
    elif field.message_type is not None:
        _message(value, field.message_type, path)
    elif kind in (FieldDescriptor.CPPTYPE_STRING, FieldDescriptor.CPPTYPE_ENUM):
        if not isinstance(value, str):
            raise PayloadError("must be a text", path)
    elif kind == FieldDescriptor.CPPTYPE_BOOL:
        if not isinstance(value, bool):
            raise PayloadError("must be true or false", path)
    elif isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise PayloadError("must be a number", path)
    elif kind in _WHOLE:
        least, most = _WHOLE[kind]
        if value != int(value) or not least <= value <= most:
            raise PayloadError(f"must be a whole number, {least} to {most}", path)
