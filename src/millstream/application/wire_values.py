"""JSON values that mostly are only handed on: made into Python's where somebody looks into them."""

from millstream.application.ports import NoValue
from millstream.domain.struct_wire import Json, decode_value, encode_value

_UNMADE = object()
_NULL = encode_value(None)


class WireValue:
    """A value in wire form (google.protobuf.Value), in Python's, or in both."""

    __slots__ = ("_json", "_wire")

    def __init__(self, wire: bytes | None, json: object = _UNMADE) -> None:
        self._wire = wire
        self._json = json

    @classmethod
    def of(cls, json: Json) -> "WireValue":
        """One that was made here."""
        return cls(None, json)

    @property
    def json(self) -> Json:
        """As Python has it. Raises NoValue on malformed bytes."""
        if self._json is _UNMADE:
            try:
                self._json = decode_value(self._wire or b"")
            except ValueError as error:
                raise NoValue(str(error)) from error
        return self._json  # type: ignore[return-value]  # whatever is not unmade is JSON

    @property
    def wire(self) -> bytes:
        """As it is stored and sent. Raises ValueError on what JSON cannot hold."""
        if self._wire is None:
            self._wire = encode_value(self.json)
        return self._wire or _NULL


NOTHING = WireValue(_NULL, None)
"""Null."""
