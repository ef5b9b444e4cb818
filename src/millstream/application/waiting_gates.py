"""What waits in the gates of an agent, as a reader may see it."""

from collections.abc import Sequence
from typing import Protocol

from millstream.application.sight import restricted
from millstream.application.views.agents import Waiting, WaitingGate
from millstream.domain.agents import Agent
from millstream.domain.artifacts import Reader
from millstream.domain.gates import Buffer, Part, counted
from millstream.domain.matching import gate_of
from millstream.domain.principals import Principal

SHOWN_MOST = 100
COUNTED_MOST = 10_000
IDS_MOST = 100
"""Artifacts of a gate that are named; all are counted."""
_LOOKED_UP = 10_000
"""Artifacts that one query judges."""


class BufferReads(Protocol):
    """Reads buffers; see store.buffers."""

    async def of_agent(self, tenant: str, agent: str, limit: int, count_most: int) -> tuple[list[Buffer], int]: ...


class ArtifactReads(Protocol):
    """Judges artifacts; see store.artifacts."""

    async def seen(self, tenant: str, ids: Sequence[str], reader: Reader, now_us: int) -> set[str]: ...


class WaitingGates:
    """Reads what waits."""

    def __init__(self, buffers: BufferReads, artifacts: ArtifactReads) -> None:
        self._buffers = buffers
        self._artifacts = artifacts

    async def of(self, principal: Principal, agent: Agent, now_us: int) -> Waiting:
        """What waits for an agent: what the caller may see of it, and a key to those who may see all that has it."""
        found, total = await self._buffers.of_agent(agent.tenant, agent.spec.name, SHOWN_MOST, COUNTED_MOST)
        reader = restricted(principal)
        if reader is None:
            return Waiting(tuple(_shown(agent, buffer, buffer.parts) for buffer in found), total)
        ids = [part.artifact_id for buffer in found for part in buffer.parts]
        seen: set[str] = set()
        for start in range(0, len(ids), _LOOKED_UP):
            seen |= await self._artifacts.seen(agent.tenant, ids[start : start + _LOOKED_UP], reader, now_us)
        visible = [(buffer, [part for part in buffer.parts if part.artifact_id in seen]) for buffer in found]
        gates = tuple(_shown(agent, buffer, parts) for buffer, parts in visible if parts)
        return Waiting(gates, len(gates))


def _shown(agent: Agent, buffer: Buffer, parts: Sequence[Part]) -> WaitingGate:
    place, gate = next(
        (
            (index, gate)
            for index, gate in enumerate(map(gate_of, agent.spec.subscriptions))
            if gate is not None and gate.sub == buffer.sub
        ),
        (None, None),
    )
    return WaitingGate(
        place,
        buffer.run_id,
        buffer.key if len(parts) == len(buffer.parts) else "",
        counted(parts),
        gate.need if gate is not None else (),
        gate.size if gate is not None else 0,
        gate.window if gate is not None else 0,
        tuple(part.artifact_id for part in parts[:IDS_MOST]),
        parts[0].at_us,
        buffer.expires_us,
    )
