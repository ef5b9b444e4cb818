"""Where a watch goes on: how far each lane of the feed was read, and at which time what was read was judged.

The artifacts sent up to a cursor are those of the rows up to its places that are visible to the reader at its moment.
Nothing else is needed to go on at any server, without a loss and without a double.
"""

import base64
import binascii
import struct
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from millstream.application.ports import Places
from millstream.domain.errors import ValidationFailed

LAST_ID: Final = "ffffffff-ffff-ffff-ffff-ffffffffffff"
_HEAD: Final = struct.Struct(">BQ16s")
_LANE: Final = struct.Struct(">16sQI")
_FORM: Final = 1
_MOST: Final = 1 << 62


@dataclass(slots=True)
class WatchCursor:
    """A place in the feed, and a moment.

    Attributes:
        at_us: What is visible at this time was sent, microseconds since the epoch.
        after_id: Of what became visible at that very time, up to this id.
    """

    places: Places = field(default_factory=dict)
    at_us: int = 0
    after_id: str = LAST_ID

    @property
    def moment(self) -> tuple[int, str]:
        """Time and id, as they are compared."""
        return self.at_us, self.after_id

    def move(self, lane: str, n: int, taken: int) -> None:
        """A row was read so far."""
        self.places[lane] = max(self.places.get(lane, (0, 0)), (n, taken))

    def join(self, places: Places) -> None:
        """Everything up to these places was read."""
        for lane, (n, taken) in places.items():
            self.move(lane, n, taken)

    def covers(self, places: Places) -> bool:
        """Whether everything up to these places was read."""
        return all(self.places.get(lane, (0, 0)) >= place for lane, place in places.items())

    def encode(self) -> str:
        """The cursor as callers have it."""
        parts = [_HEAD.pack(_FORM, self.at_us, UUID(self.after_id).bytes)]
        parts += [_LANE.pack(UUID(lane).bytes, n, taken) for lane, (n, taken) in self.places.items()]
        return base64.urlsafe_b64encode(b"".join(parts)).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> "WatchCursor":
        """The reverse of encode. Raises ValidationFailed on what is no cursor of a watch."""
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            form, at_us, after = _HEAD.unpack_from(raw)
            places = {str(UUID(bytes=lane)): (n, taken) for lane, n, taken in _LANE.iter_unpack(raw[_HEAD.size :])}
        except (binascii.Error, ValueError, struct.error):
            raise ValidationFailed.of("cursor", "is no cursor of a watch; start without it") from None
        if form != _FORM or at_us >= _MOST or any(n >= _MOST for n, _ in places.values()):
            raise ValidationFailed.of("cursor", "is no cursor of a watch; start without it")
        return cls(places, at_us, str(UUID(bytes=after)))
