"""Publishing artifacts: at once, in batches, and waiting for the cascade."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace

from millstream.application.cascades import CascadeReads, Cascades
from millstream.application.catalog import Catalog, Catalogs
from millstream.application.engine.commands import ClaimKey, Publish, Refuse
from millstream.application.engine.engine import Engine
from millstream.application.engine.queue import Outcome, RegistryMoved, Replayed
from millstream.application.ids import new_id
from millstream.application.referring import Referring, referred
from millstream.application.rounds import MATCH_ROUNDS
from millstream.application.views.artifacts import Published, SyncResult
from millstream.application.views.batches import Batch
from millstream.application.views.idempotency import Key
from millstream.application.views.runs import RunResult
from millstream.application.views.tasks import CreatedTask
from millstream.domain.agents import Activation
from millstream.domain.artifacts import EXTERNAL, NewArtifact
from millstream.domain.batch import KeyClaim
from millstream.domain.errors import MillstreamError, Unavailable
from millstream.domain.principals import Principal
from millstream.domain.publication import Produce


class Publishing:
    """The use cases of publishing.

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

    async def publish(self, principal: Principal, new: NewArtifact, key: Key | None, rerun_of: str = "") -> Published:
        """Publish one artifact; `rerun_of` is the run that its cascade repeats. Raises NotFound, ValidationFailed,
        Conflict, IdempotencyConflict, RateLimited."""
        result = (await self._publish_all(principal, [new], [key], rerun_of=rerun_of))[0]
        if isinstance(result, MillstreamError):
            raise result
        return replace(result, notice=self._notice(principal, new))

    def _notice(self, principal: Principal, new: NewArtifact) -> str:
        """What whoever published this is told of its type."""
        catalog = self._catalogs.cached(principal.tenant)
        known = catalog.types.get(new.type) if catalog else None
        return known.notice if known else ""

    async def publish_batch(
        self,
        principal: Principal,
        items: Sequence[NewArtifact | MillstreamError],
        keys: Sequence[Key | None],
        key: Key | None,
    ) -> Batch:
        """Publish many, each with an outcome of its own. A key of the call stands for this request, and for one key of
        each item that has none, so what failed may be tried again under it. Raises IdempotencyConflict, RateLimited."""
        await claim_call(self._engine, self._claim(principal, key))
        keys = [own or item_key(key, index) for index, own in enumerate(keys)]
        wanted = [index for index, item in enumerate(items) if isinstance(item, NewArtifact)]
        found = await self._publish_all(
            principal,
            [item for item in items if isinstance(item, NewArtifact)],
            [keys[index] for index in wanted],
            by_item=True,
        )
        results: list[Published | CreatedTask | MillstreamError] = [
            item if isinstance(item, MillstreamError) else Unavailable("") for item in items
        ]
        for index, result in zip(wanted, found, strict=True):
            item = items[index]
            if isinstance(item, NewArtifact) and (notice := self._notice(principal, item)):
                result = replace(result, notice=notice) if isinstance(result, Published) else result
            results[index] = result
        return batch_of(results, key)

    async def publish_sync(
        self, principal: Principal, new: NewArtifact, key: Key | None, timeout_s: float
    ) -> SyncResult:
        """Publish one artifact and wait until its cascade is idle. Raises as publish; never for the time-out."""
        engine = self._engine
        run_id = new.correlation_id or new_id()
        deadline = asyncio.get_running_loop().time() + timeout_s
        with engine.waiters.wait(run_id) as ended:
            result = (await self._publish_all(principal, [new], [key], run_id=run_id, waiter=engine.lane_id))[0]
            if isinstance(result, MillstreamError):
                raise result
            if not result.replayed:
                answer = await self._cascades.result(principal, result, ended, deadline)
                return replace(answer, notice=self._notice(principal, new))
        return replace(await self._cascades.replay(principal, result, deadline), notice=self._notice(principal, new))

    async def _publish_all(
        self,
        principal: Principal,
        items: Sequence[NewArtifact],
        keys: Sequence[Key | None],
        run_id: str = "",
        waiter: str = "",
        by_item: bool = False,
        rerun_of: str = "",
    ) -> list[Published | MillstreamError]:
        """Check, match and store artifacts; again those whose registry moved in between."""
        results: list[Published | MillstreamError] = [Unavailable("the registry keeps moving; try again")] * len(items)
        left = list(range(len(items)))
        catalog = self._catalogs.cached(principal.tenant) or await self._catalogs.get(principal.tenant)
        for _ in range(MATCH_ROUNDS):
            commands: list[Publish | Refuse] = []
            sent: list[int] = []
            unsettled: list[int] = []
            fresh: Catalog | None = None
            for index in left:
                try:
                    version, activations, new = await self._referring.examine(
                        principal, catalog, items[index], EXTERNAL
                    )
                except MillstreamError as error:
                    # A type may have come, or changed, through another server: only the present registry refuses.
                    fresh = fresh or await self._catalogs.get(principal.tenant, fresh=True)
                    if fresh is not catalog:
                        unsettled.append(index)
                    elif (claim := self._claim(principal, keys[index])) is not None:
                        sent.append(index)
                        commands.append(Refuse(key=claim, locked=True, error=error))
                    else:
                        results[index] = error
                    continue
                sent.append(index)
                produce = Produce(new, new_id(), version, activations, ids_for(activations))
                made = self._command(principal, produce, keys[index], run_id, waiter, catalog.version)
                made.rerun_of = rerun_of
                commands.append(made)
            outcomes = await self._engine.submit_all(commands)
            for index, command, outcome in zip(sent, commands, outcomes, strict=True):
                if isinstance(outcome, RegistryMoved):
                    unsettled.append(index)
                else:
                    results[index] = _published(command, outcome)
            if not unsettled:
                break
            left = sorted(unsettled)
            catalog = await self._catalogs.get(principal.tenant, fresh=True)
        return results

    def _command(
        self, principal: Principal, produce: Produce, key: Key | None, run_id: str, waiter: str, version: int
    ) -> Publish:
        new = produce.new
        cascade = new.correlation_id or run_id or new_id()
        return Publish(
            run_id=cascade,
            new_run=not new.correlation_id,
            gated=produce.gated,
            locked=produce.tenant_wide,
            registry=(principal.tenant, version),
            key=self._claim(principal, key, produce.artifact_id, cascade),
            size_bytes=400 + len(new.payload),
            payloads=referred(principal.tenant, (new,)),
            tenant=principal.tenant,
            by=principal.name,
            produce=produce,
            waiter=waiter,
        )

    def _claim(self, principal: Principal, key: Key | None, *made: str) -> KeyClaim | None:
        if key is None:
            return None
        response = json.dumps(made)
        expires_us = self._engine.clock.now_us() + self._key_ttl_us
        return KeyClaim(principal.tenant, principal.name, key.rpc, key.value, key.fingerprint, response, expires_us)


def ids_for(activations: Sequence[Activation], ids: Callable[[], str] = new_id) -> list[tuple[str, str]]:
    """Ids for what activations may make: a task each, and a run where a gate of the tenant may open."""
    return [(ids(), ids() if each.gate is not None and each.gate.tenant_wide else "") for each in activations]


async def claim_call(engine: Engine, claim: KeyClaim | None) -> None:
    """Claim the key of a call with many items, before any of them is stored. Raises IdempotencyConflict."""
    if claim is not None:
        await engine.submit(ClaimKey(key=claim))


def item_key(key: Key | None, index: int) -> Key | None:
    """The key that a call's key stands for at one of its items."""
    return Key(f"{key.value}#{index}", f"{key.rpc}#", key.fingerprint) if key is not None else None


def batch_of(results: "Sequence[Published | CreatedTask | RunResult | MillstreamError]", key: Key | None) -> Batch:
    """The outcomes of a call; replayed where its key had stored all that succeeded."""
    stored = [result for result in results if not isinstance(result, MillstreamError)]
    return Batch(results, key is not None and bool(stored) and all(result.replayed for result in stored))


def _published(command: Publish | Refuse, outcome: Outcome) -> Published | MillstreamError:
    if isinstance(outcome, Replayed):
        artifact_id, correlation_id = json.loads(outcome.claim.response)
        return Published(artifact_id, correlation_id, replayed=True)
    if isinstance(outcome, MillstreamError) or isinstance(command, Refuse):
        refusal: MillstreamError = outcome
        return refusal
    return Published(command.produce.artifact_id, command.run_id)
