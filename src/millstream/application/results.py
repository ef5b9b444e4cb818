"""The ends of runs: waited for, and what they came to."""

import asyncio
from typing import Protocol

from millstream.application.engine.commands import AttachWaiter
from millstream.application.engine.engine import Engine
from millstream.application.engine.waiting import Ended, until
from millstream.domain.errors import NotFound
from millstream.domain.principals import Principal
from millstream.domain.runs import PayloadKind, Run, RunStatus


class ResultReads(Protocol):
    """What is read of runs; see store.runs."""

    async def run(self, tenant: str, run_id: str) -> Run | None: ...
    async def payload(self, found: Run, what: PayloadKind) -> bytes: ...


class Results:
    """How runs ended. An output is google.protobuf.Value in wire form, b"" where a run has none."""

    def __init__(self, engine: Engine, reads: ResultReads) -> None:
        self._engine = engine
        self._reads = reads

    async def run(self, principal: Principal, run_id: str) -> Run:
        """A run as it stands. Raises NotFound."""
        found = await self._reads.run(principal.tenant, run_id)
        if found is None:
            raise NotFound(f"there is no run {run_id}")
        return found

    async def of(self, principal: Principal, run_id: str, deadline: float) -> tuple[Run, bytes]:
        """A run at its end, or as it stands at a time of the loop's clock, and its output. Raises NotFound."""
        loop = asyncio.get_running_loop()
        while True:
            with self._engine.waiters.wait(run_id) as ended:
                run = await self.run(principal, run_id)
                if run.finished_us or loop.time() >= deadline:
                    return run, await self._output(run)
                if self._engine.lane_id not in run.waiters:
                    command = AttachWaiter(
                        run_id=run_id, locked=True, tenant=principal.tenant, waiter=self._engine.lane_id
                    )
                    run = await self._engine.submit(command)
                    if run.finished_us:
                        return run, await self._output(run)
                told = _told(await until(ended, deadline))
                if told is not None:
                    return told

    async def after(
        self, principal: Principal, run_id: str, ended: "asyncio.Future[Ended]", deadline: float
    ) -> tuple[Run, bytes]:
        """The same of a run that was begun here, for this lane to wait for. Of one that ended here nothing is read."""
        return _told(await until(ended, deadline)) or await self.of(principal, run_id, deadline)

    async def _output(self, run: Run) -> bytes:
        return await self._reads.payload(run, PayloadKind.OUTPUT) if run.status is RunStatus.COMPLETED else b""


def _told(ended: Ended | None) -> tuple[Run, bytes] | None:
    """What the end itself says; None where it has to be read."""
    if ended is None or ended.run is None:
        return None
    if ended.run.status is not RunStatus.COMPLETED:
        return ended.run, b""
    return None if ended.output is None else (ended.run, ended.output)
