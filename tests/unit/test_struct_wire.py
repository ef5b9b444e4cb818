"""The payload walker reads and writes what protobuf itself would."""

from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from hypothesis import given
from hypothesis import strategies as st

from millstream.domain.struct_wire import (
    Json,
    decode_struct,
    decode_value,
    encode_list,
    encode_struct,
    encode_value,
)

_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
)
_VALUES: st.SearchStrategy[Any] = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)
_OBJECTS = st.dictionaries(st.text(max_size=5), _VALUES, max_size=5)


@given(_OBJECTS)
def test_an_object_written_by_protobuf_reads_as_json_format_reads_it(value: dict[str, Any]) -> None:
    message = json_format.ParseDict(value, Struct())
    assert decode_struct(message.SerializeToString()) == json_format.MessageToDict(message)


@given(_OBJECTS)
def test_an_object_that_we_write_is_the_same_to_protobuf(value: dict[str, Any]) -> None:
    assert Struct.FromString(encode_struct(value)) == json_format.ParseDict(value, Struct())


@given(_VALUES)
def test_any_value_comes_back_as_it_went_in(value: Json) -> None:
    assert decode_value(encode_value(value)) == value


@given(st.lists(_VALUES, max_size=4))
def test_a_list_of_encoded_values_is_the_encoded_list(values: list[Json]) -> None:
    """And nothing is null in it, too."""
    assert encode_list(map(encode_value, values)) == encode_value(values)
    assert decode_value(encode_list([*map(encode_value, values), b""])) == [*values, None]


@given(_OBJECTS)
def test_key_order_is_kept(value: dict[str, Any]) -> None:
    assert list(decode_struct(encode_struct(value))) == list(value)


@given(st.binary(max_size=60))
def test_bytes_are_read_as_protobuf_reads_them_or_refused(data: bytes) -> None:
    try:
        expected = json_format.MessageToDict(Value.FromString(data))
    except Exception:
        return  # what protobuf refuses never gets past the transport
    try:
        got = decode_value(data)
    except ValueError:
        return
    assert repr(got) == repr(expected) or got == expected


def test_whole_numbers_become_integers_below_two_to_the_53() -> None:
    assert repr(decode_value(encode_value(12.0))) == "12"
    assert repr(decode_value(encode_value(2.0**53 - 1))) == "9007199254740991"
    assert repr(decode_value(encode_value(2.0**53))) == "9007199254740992.0"


def test_nothing_is_null() -> None:
    assert decode_value(b"") is None
    assert decode_struct(b"") == {}
    assert decode_struct(b"\x0a\x03\x0a\x01k") == {"k": None}


def test_a_message_field_given_twice_is_merged() -> None:
    one = Value(struct_value=json_format.ParseDict({"a": 1, "b": 2}, Struct())).SerializeToString()
    two = Value(struct_value=json_format.ParseDict({"b": 3}, Struct())).SerializeToString()
    assert decode_value(one + two) == json_format.MessageToDict(Value.FromString(one + two))
    items = Value(list_value=ListValue(values=[Value(bool_value=True)])).SerializeToString()
    assert decode_value(items + items) == [True, True]


@pytest.mark.parametrize("data", [b"\x1a", b"\x1a\x05ab", b"\x11\x00", b"\x0b", b"\x0f", b"\x1a\x01\xff", b"\x80" * 12])
def test_malformed_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode_value(data)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, {1: 2}, object()])
def test_what_json_cannot_hold_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r".+"):
        encode_value(value)


def test_very_deep_nesting_is_refused_and_not_a_stack_overflow() -> None:
    data = b""
    for _ in range(3000):
        item = b"\x0a" + _size(len(data)) + data
        data = b"\x32" + _size(len(item)) + item
    with pytest.raises(ValueError, match="nested too deeply"):
        decode_value(data)


def _size(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
