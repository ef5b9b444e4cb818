"""Running an agent by name."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace

from millstream.application.cascades import CascadeReads, Cascades
from millstream.application.catalog import Catalog, Catalogs
from millstream.application.engine.commands import Refuse
from millstream.application.engine.engine import Engine
from millstream.application.engine.queue import RegistryMoved, Replayed
from millstream.application.engine.run_agent import RunAgent
from millstream.application.ids import new_id
from millstream.application.referring import Referring, referred
from millstream.application.registering import named
from millstream.application.rounds import MATCH_ROUNDS
from millstream.application.runs import claim_of
from millstream.application.views.artifacts import Published, SyncResult
from millstream.application.views.idempotency import Key
from millstream.domain.agents import Agent
from millstream.domain.artifacts import EXTERNAL, NewArtifact
from millstream.domain.errors import MillstreamError, Unavailable, ValidationFailed
from millstream.domain.matching import activation_of, direct
from millstream.domain.principals import Principal
from millstream.domain.publication import Produce


class AgentRuns:
    """The use case of running an agent.

    Args:
        key_ttl_us: How long an idempotency key holds, microseconds.
    """

    def __init__(
        self, engine: Engine, catalogs: Catalogs, referring: Referring, reads: CascadeReads, key_ttl_us: int
    ) -> None:
        self._engine = engine
        self._catalogs = catalogs
        self._referring = referring
        self._cascades = Cascades(engine, reads)
        self._key_ttl_us = key_ttl_us

    async def run(
        self, principal: Principal, id_or_name: str, inputs: Sequence[NewArtifact], key: Key | None, timeout_s: float
    ) -> SyncResult:
        """Give the inputs to one task of the agent and wait until all that follows is done; the answer has what the
        agent itself made. Raises NotFound, ValidationFailed, IdempotencyConflict, RateLimited."""
        engine = self._engine
        deadline = asyncio.get_running_loop().time() + timeout_s
        run_id = new_id()
        with engine.waiters.wait(run_id) as ended:
            published, name = await self._submit(principal, id_or_name, inputs, key, run_id)
            if published.replayed:
                result = await self._cascades.replay(principal, published, deadline)
            else:
                result = await self._cascades.result(principal, published, ended, deadline)
        return replace(
            result,
            artifacts=[each for each in result.artifacts if each.produced_by == name],
            notice=self._notice(principal, inputs),
        )

    async def rerun(
        self, principal: Principal, agent: str, inputs: Sequence[NewArtifact], key: Key | None, rerun_of: str
    ) -> Published:
        """Give the inputs of another run to one task of the agent again, without waiting. Raises as run."""
        return (await self._submit(principal, agent, inputs, key, new_id(), rerun_of))[0]

    def _notice(self, principal: Principal, inputs: Sequence[NewArtifact]) -> str:
        """What the caller is told of the inputs' types: each that is deprecated."""
        catalog = self._catalogs.cached(principal.tenant)
        known = [catalog.types.get(name) for name in dict.fromkeys(each.type for each in inputs)] if catalog else []
        return "; ".join(f"{kind.name}: {kind.notice}" for kind in known if kind is not None and kind.notice)

    async def _submit(
        self,
        principal: Principal,
        id_or_name: str,
        inputs: Sequence[NewArtifact],
        key: Key | None,
        run_id: str,
        rerun_of: str = "",
    ) -> tuple[Published, str]:
        """Start the run; with the agent's name."""
        command: RunAgent | Refuse
        for _ in range(MATCH_ROUNDS):
            # Somebody runs an agent by name because it is there now: only the present registry knows.
            catalog = await self._catalogs.get(principal.tenant, fresh=True)
            try:
                command = await self._command(principal, catalog, id_or_name, inputs, key, run_id)
                command.rerun_of = rerun_of
            except MillstreamError as error:
                claim = claim_of(principal, key, [], self._expires_us())
                if claim is None:
                    raise
                # What the key's first call started stands, whatever became of the agent and its types.
                command = Refuse(key=claim, locked=True, error=error)
            outcome = (await self._engine.submit_all([command]))[0]
            if isinstance(outcome, Replayed):
                artifact_id, first_run, name = json.loads(outcome.claim.response)
                return Published(artifact_id, first_run, replayed=True), name
            if isinstance(outcome, RegistryMoved):
                continue
            if isinstance(outcome, Exception) or isinstance(command, Refuse):
                raise outcome
            return Published(command.inputs[0].artifact_id, run_id), command.start.agent
        raise Unavailable("the registry keeps moving; try again")

    async def _command(
        self,
        principal: Principal,
        catalog: Catalog,
        id_or_name: str,
        inputs: Sequence[NewArtifact],
        key: Key | None,
        run_id: str,
    ) -> RunAgent:
        agent = named(catalog.agents, id_or_name)
        priority = _priority(agent, inputs)
        produced = [await self._checked(principal, catalog, each, index) for index, each in enumerate(inputs)]
        made = [produced[0].artifact_id, run_id, agent.spec.name]
        return RunAgent(
            run_id=run_id,
            new_run=True,
            registry=(principal.tenant, catalog.version),
            key=claim_of(principal, key, made, self._expires_us()),
            size_bytes=400 + sum(400 + len(each.payload) for each in inputs),
            payloads=referred(principal.tenant, [each.new for each in produced]),
            tenant=principal.tenant,
            by=principal.name,
            inputs=produced,
            start=activation_of(agent, priority),
            task_id=new_id(),
            waiter=self._engine.lane_id,
        )

    def _expires_us(self) -> int:
        return self._engine.clock.now_us() + self._key_ttl_us

    async def _checked(self, principal: Principal, catalog: Catalog, new: NewArtifact, index: int) -> Produce:
        version, _, new = await self._referring.examine(principal, catalog, new, EXTERNAL, f"inputs[{index}].")
        return Produce(new, new_id(), version)


def _priority(agent: Agent, inputs: Sequence[NewArtifact]) -> int:
    """How urgent the task is. Raises ValidationFailed where the agent does not take an input."""
    found = []
    for index, new in enumerate(inputs):
        subscription = direct(agent, new.type)
        if subscription is None:
            text = f"agent {agent.spec.name!r} takes no {new.type} when it is run by name"
            raise ValidationFailed.of(f"inputs[{index}].type", text, "NOT_TAKEN")
        found.append(subscription.priority)
    return max(found)
