"""What waits in the gates of an agent, as a reader may see it."""

from typing import Protocol

from millstream.application.sight import may_see, restricted
from millstream.application.views import Waiting, WaitingGate
from millstream.domain.agents import Agent
from millstream.domain.artifacts import Artifact
from millstream.domain.gates import Buffer, counted
from millstream.domain.matching import gate_of
from millstream.domain.principals import Principal

SHOWN_MOST = 100
COUNTED_MOST = 10_000
ARTIFACTS_MOST = 1000
"""Artifacts looked at for one answer; of gates beyond, numbers are told only."""


class BufferReads(Protocol):
    """Reads buffers; see store.buffers."""

    async def of_agent(self, tenant: str, agent: str, limit: int, count_most: int) -> tuple[list[Buffer], int]: ...


class ArtifactReads(Protocol):
    """Reads artifacts; see store.artifacts."""

    async def by_ids(self, tenant: str, ids: list[str]) -> dict[str, Artifact]: ...


class WaitingGates:
    """Reads what waits."""

    def __init__(self, buffers: BufferReads, artifacts: ArtifactReads) -> None:
        self._buffers = buffers
        self._artifacts = artifacts

    async def of(self, principal: Principal, agent: Agent, now_us: int) -> Waiting:
        """What waits for an agent. Artifacts, and a key that was made of them, are told to those who may see them."""
        found, total = await self._buffers.of_agent(agent.tenant, agent.spec.name, SHOWN_MOST, COUNTED_MOST)
        ids = [part.artifact_id for buffer in found for part in buffer.parts][:ARTIFACTS_MOST]
        known = await self._artifacts.by_ids(agent.tenant, ids) if ids else {}
        reader = restricted(principal)
        seen = {each.id for each in known.values() if reader is None or may_see(reader, each, now_us)}
        return Waiting(tuple(_shown(agent, buffer, seen) for buffer in found), total)


def _shown(agent: Agent, buffer: Buffer, seen: set[str]) -> WaitingGate:
    place, gate = next(
        (
            (index, gate)
            for index, gate in enumerate(map(gate_of, agent.spec.subscriptions))
            if gate is not None and gate.sub == buffer.sub
        ),
        (None, None),
    )
    visible = tuple(part.artifact_id for part in buffer.parts if part.artifact_id in seen)
    return WaitingGate(
        place,
        buffer.run_id,
        buffer.key if len(visible) == len(buffer.parts) else "",
        counted(buffer.parts),
        gate.need if gate is not None else (),
        gate.size if gate is not None else 0,
        visible,
        buffer.opened_us,
        buffer.expires_us,
    )
