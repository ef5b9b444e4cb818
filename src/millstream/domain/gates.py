"""Gates: where artifacts wait for others before they activate an agent together.

A gate is what a subscription asks for: so many of each type, all types of one key, or a batch. What waits in it is
kept in buffers, one for each correlation (or one for the tenant) and key; a buffer is a row, locked after its run.
"""

import hashlib
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

PARTS_MOST = 1000
"""Parts that one buffer holds: what a task can be given."""
PARTS_BYTES_MOST = 4 * 1024 * 1024
"""A batch is handed over when its payloads reach this, whatever its size: it has to fit into a message."""


@dataclass(frozen=True, slots=True)
class Gate:
    """What a subscription waits for.

    Attributes:
        sub: Fingerprint of the subscription: parts stay in its buffers while an agent changes in other ways.
        need: (type, number) of what it takes to open; empty for a batch.
        size: Of a batch: artifacts that open it, 0 for no such bound.
        wait_us: Microseconds after which what waits is given up or, of a batch, handed over.
        window: Of a join by count: among how many artifacts a key's parts must be; else 0.
        tenant_wide: Parts come from all correlations; otherwise each correlation has its own, and stays open while
            one waits.
    """

    sub: str
    need: tuple[tuple[str, int], ...]
    size: int
    wait_us: int
    window: int
    tenant_wide: bool

    @property
    def collects(self) -> bool:
        """It is a batch: its time-out hands over what there is."""
        return not self.need


@dataclass(frozen=True, slots=True)
class Part:
    """An artifact that waits.

    Attributes:
        number: Its place among all that the buffer has taken, from 1.
        visible_us: When its visibility lets it be delivered.
    """

    type: str
    key: str
    artifact_id: str
    run_id: str
    depth: int
    number: int
    at_us: int
    visible_us: int
    size_bytes: int


@dataclass(slots=True)
class Buffer:
    """What waits in a gate. Times are microseconds since the epoch.

    Attributes:
        id: Made of what it is for, so that all servers know it: see buffer_id.
        run_id: Run of the correlation, "" for a tenant's.
        key: Of a join within a time.
        collects: It is a batch's.
        arrived: How many artifacts it has taken so far.
        expires_us: When its oldest parts are given up or, of a batch, handed over.
        stored: There is a row of it.
    """

    id: str
    tenant: str
    agent: str
    sub: str
    run_id: str
    key: str
    collects: bool
    opened_us: int
    expires_us: int
    arrived: int = 0
    parts: list[Part] = field(default_factory=list)
    stored: bool = False


def buffer_id(tenant: str, agent: str, gate: Gate, run_id: str, key: str) -> str:
    """The id of the buffer where an artifact of this run and key waits.

    A join by count keeps all keys in one buffer, because its window runs over all of them.
    """
    place = "" if gate.tenant_wide else run_id
    text = "\0".join((tenant, agent, gate.sub, place, "" if gate.window else key))
    return str(uuid.UUID(bytes=hashlib.blake2b(text.encode(), digest_size=16).digest()))


def complete(gate: Gate, parts: Sequence[Part], key: str) -> list[Part]:
    """The parts that open the gate, the oldest of each type first come; empty while something is missing.

    Args:
        key: Of the part that came last: only its key can have become complete.
    """
    if gate.collects:
        full = 0 < gate.size <= len(parts) or sum(part.size_bytes for part in parts) >= PARTS_BYTES_MOST
        return [*parts] if full or len(parts) >= PARTS_MOST else []
    missing = dict(gate.need)
    taken = []
    for part in parts:
        if part.key == key and missing.get(part.type, 0) > 0:
            missing[part.type] -= 1
            taken.append(part)
    return [] if any(missing.values()) else taken


def outdated(gate_wait_us: int, window: int, buffer: Buffer, now_us: int) -> list[Part]:
    """Parts that have waited too long, by time or by the window of a join by count."""
    return [
        part
        for part in buffer.parts
        if part.at_us + gate_wait_us <= now_us or (window and part.number <= buffer.arrived - window)
    ]


def counted(parts: Sequence[Part]) -> dict[str, int]:
    """How many parts of each type."""
    return dict(Counter(part.type for part in parts))
