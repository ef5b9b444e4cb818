"""Where a watch goes on: how far what is committed was read, and at which time it was judged; see watches."""

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
_CASCADE: Final = struct.Struct(">16sI")
_OF_TENANT: Final = 1
_OF_CASCADE: Final = 2
_MOST: Final = 1 << 62
_MOST_SEQ: Final = 1 << 31


@dataclass(slots=True)
class WatchCursor:
    """A place, and a moment.

    Attributes:
        places: How far each lane of the feed was read.
        run_id, seq: Of a watch of one cascade, in place of that: its id, and the number that it was read up to.
        at_us: What is visible at this time was sent, microseconds since the epoch.
        after_id: Of what became visible at that very time, up to this id.
    """

    places: Places = field(default_factory=dict)
    at_us: int = 0
    after_id: str = LAST_ID
    run_id: str = ""
    seq: int = 0

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
        form = _OF_CASCADE if self.run_id else _OF_TENANT
        parts = [_HEAD.pack(form, self.at_us, UUID(self.after_id).bytes)]
        if self.run_id:
            parts.append(_CASCADE.pack(UUID(self.run_id).bytes, self.seq))
        parts += [_LANE.pack(UUID(lane).bytes, n, taken) for lane, (n, taken) in self.places.items()]
        return base64.urlsafe_b64encode(b"".join(parts)).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> "WatchCursor":
        """The reverse of encode. Raises ValidationFailed on what is no cursor of a watch."""
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            form, at_us, after = _HEAD.unpack_from(raw)
            out = cls({}, at_us, str(UUID(bytes=after)))
            if form == _OF_CASCADE:
                run_id, out.seq = _CASCADE.unpack(raw[_HEAD.size :])
                out.run_id = str(UUID(bytes=run_id))
            else:
                lanes = _LANE.iter_unpack(raw[_HEAD.size :])
                out.places = {str(UUID(bytes=lane)): (n, taken) for lane, n, taken in lanes}
        except (binascii.Error, ValueError, struct.error):
            raise ValidationFailed.of("cursor", "is no cursor of a watch; start without it") from None
        numbers = [at_us, *(n for n, _ in out.places.values())]
        if form not in (_OF_TENANT, _OF_CASCADE) or max(numbers) >= _MOST or out.seq >= _MOST_SEQ:
            raise ValidationFailed.of("cursor", "is no cursor of a watch; start without it")
        return out
