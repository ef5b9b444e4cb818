"""The answer of a sync publish: what a cascade made, from memory where it ended here, else read."""

import asyncio
import json
from typing import Protocol

from millstream.application.engine.cache import KEPT_ARTIFACTS
from millstream.application.engine.commands import AttachWaiter
from millstream.application.engine.engine import Engine
from millstream.application.engine.waiting import Ended, until
from millstream.application.paging import encode_token, fitting, text_bytes
from millstream.application.sight import Sight, SightReads, may_see, restricted
from millstream.application.views.artifacts import ArtifactQuery, Published, SyncResult
from millstream.domain.artifacts import Artifact, Reader
from millstream.domain.errors import NotFound
from millstream.domain.planners import LIMIT_CODE
from millstream.domain.principals import Principal
from millstream.domain.runs import Event, Failure, Run, Task
from millstream.domain.struct_wire import Json

FAILURES_MOST = 1000
FAILURE_BYTES = 512 * 1024
"""Of an answer: beside 3 MiB of artifacts they fit into a message. The run's tasks tell the rest."""


class CascadeReads(SightReads, Protocol):
    """What is read of runs and artifacts; see store.runs and store.artifacts."""

    async def run(self, tenant: str, run_id: str) -> Run | None: ...
    async def first_end(self, found: Run, after_seq: int) -> tuple[int, int] | None: ...
    async def limits_reached(self, found: Run) -> list[Event]: ...
    async def failed_tasks(self, run_id: str) -> list[Task]: ...
    async def by_ids(self, tenant: str, ids: list[str]) -> dict[str, Artifact]: ...
    async def of_run(self, run_id: str, after_seq: int, limit: int) -> tuple[list[Artifact], bool]: ...
    async def seen_of_run(
        self, tenant: str, query: ArtifactQuery, reader: Reader | None, now_us: int, after_seq: int, limit: int
    ) -> tuple[list[Artifact], bool]: ...


class Cascades:
    """Waits for cascades and gathers what they made."""

    def __init__(self, engine: Engine, reads: CascadeReads) -> None:
        self._engine = engine
        self._reads = reads
        self._sight = Sight(reads)

    async def result(
        self, principal: Principal, published: Published, ended: "asyncio.Future[Ended]", deadline: float
    ) -> SyncResult:
        """Wait for the end and answer. Of a run that was made and ended here nothing is read."""
        end = await until(ended, deadline)
        if end is not None and end.run is not None and end.artifacts is not None:
            mine = next((item for item in end.artifacts if item.id == published.artifact_id), None)
            # Without it, the run ended before this artifact was stored, which opened it again.
            if mine is not None:
                run = end.run
                failures = await self._failures(principal, run, (run.last_seq, run.finished_us))
                artifacts = self._visible(principal, end.artifacts, mine)
                duration_ms = (run.finished_us - mine.created_us) / 1000
                return SyncResult(published.correlation_id, artifacts, True, duration_ms, failures)
        artifact = await self._artifact(principal, published)
        return await self._read_at_end(principal, artifact, deadline)

    async def replay(self, principal: Principal, published: Published, deadline: float) -> SyncResult:
        """The same answer again: rebuilt up to the point where the cascade was first idle, or waited for on."""
        engine, run_id = self._engine, published.correlation_id
        artifact = await self._artifact(principal, published)
        run = await self._run(artifact)
        if await self._reads.first_end(run, artifact.seq) is None:
            command = AttachWaiter(run_id=run_id, locked=True, tenant=principal.tenant, waiter=engine.lane_id)
            await engine.submit(command)
        return await self._read_at_end(principal, artifact, deadline, replayed=True)

    async def _read_at_end(
        self, principal: Principal, artifact: Artifact, deadline: float, replayed: bool = False
    ) -> SyncResult:
        """The answer once the run ended after the artifact, or the deadline passed. An end before it (another publish
        into the same cascade) wakes its waiters too, so each wake-up is looked at."""
        while True:
            with self._engine.waiters.wait(artifact.run_id) as ended:
                run = await self._run(artifact)
                end = await self._reads.first_end(run, artifact.seq)
                if end is not None or asyncio.get_running_loop().time() >= deadline:
                    return await self._read(principal, run, artifact, end, replayed)
                await until(ended, deadline)

    async def _artifact(self, principal: Principal, published: Published) -> Artifact:
        found = await self._reads.by_ids(principal.tenant, [published.artifact_id])
        if published.artifact_id not in found:
            raise NotFound(f"the artifact {published.artifact_id} is gone: its retention has passed")
        return found[published.artifact_id]

    async def _run(self, artifact: Artifact) -> Run:
        run = await self._reads.run(artifact.tenant, artifact.run_id)
        if run is None:
            raise NotFound(f"the cascade {artifact.run_id} is gone: its retention has passed")
        return run

    async def _read(
        self, principal: Principal, run: Run, artifact: Artifact, end: tuple[int, int] | None, replayed: bool
    ) -> SyncResult:
        """The answer from the store: what there is up to the first end after the artifact (its number and time)."""
        now_us = self._engine.clock.now_us()
        reader = restricted(principal)
        found, more = await self._reads.seen_of_run(
            run.tenant, ArtifactQuery(correlation_id=run.id), reader, now_us, 0, KEPT_ARTIFACTS
        )
        token = encode_token("run", run.id, found[-1].seq) if more else ""
        if end is not None:
            kept = [item for item in found if item.seq < end[0]]
            token = "" if len(kept) < len(found) else token
            found, now_us = kept, end[1]
        return SyncResult(
            run.id,
            self._visible(principal, found, artifact),
            end is not None,
            max(now_us - artifact.created_us, 0) / 1000,
            await self._failures(principal, run, end),
            token,
            replayed,
        )

    async def _failures(self, principal: Principal, run: Run, end: tuple[int, int] | None) -> list[Failure]:
        """What failed in the run, up to an end (its number and time)."""
        found: list[Failure] = []
        if run.failed_tasks:
            found = [
                Failure(task.agent, task.id, task.error_code, task.error_message, task.tries, task.artifact_ids)
                for task in await self._reads.failed_tasks(run.id)
                if end is None or task.finished_us <= end[1]
            ]
        if run.error_code == LIMIT_CODE:
            for event in await self._reads.limits_reached(run):
                if end is None or event.seq < end[0]:
                    data: dict[str, Json] = json.loads(event.data)
                    agent, message = str(data["agent"]), str(data["message"])
                    found.append(Failure(agent, "", LIMIT_CODE, message, 0, (event.artifact_id,)))
        found = await self._sight.failures(principal, found, self._engine.clock.now_us())
        return fitting(found, FAILURES_MOST, lambda each: 300 + text_bytes(each.message), FAILURE_BYTES)

    def _visible(self, principal: Principal, artifacts: list[Artifact], mine: Artifact) -> list[Artifact]:
        """What the caller may see; what it published itself it always sees."""
        reader = restricted(principal)
        now_us = self._engine.clock.now_us()
        if reader is None:
            return artifacts
        return [item for item in artifacts if item.id == mine.id or may_see(reader, item, now_us)]
