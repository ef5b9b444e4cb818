"""Waiting for the end of a run, or of a promise; never for anything else."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from millstream.domain.artifacts import Artifact
from millstream.domain.runs import Run


@dataclass(frozen=True, slots=True)
class Ended:
    """That a run or promise ended; `run`, `artifacts` and `output` (google.protobuf.Value in wire form) are None where
    they have to be read."""

    run: Run | None = None
    artifacts: list[Artifact] | None = None
    output: bytes | None = None


class Waiters:
    """Who in this process waits for which run or promise, by its id."""

    def __init__(self) -> None:
        self._futures: dict[str, list[asyncio.Future[Ended]]] = {}

    def __len__(self) -> int:
        return len(self._futures)

    @property
    def runs(self) -> set[str]:
        """The runs and promises waited for."""
        return set(self._futures)

    def among(self, run_ids: dict[str, Run]) -> set[str]:
        """Those of these runs that are waited for."""
        return {run_id for run_id in run_ids if run_id in self._futures} if self._futures else set()

    @contextlib.contextmanager
    def wait(self, run_id: str) -> Iterator["asyncio.Future[Ended]"]:
        """A future of its end. Subscribe first, then look at it: so no end is missed."""
        future: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self._futures.setdefault(run_id, []).append(future)
        try:
            yield future
        finally:
            found = self._futures.get(run_id, [])
            if future in found:
                found.remove(future)
                if not found:
                    del self._futures[run_id]

    def ended(self, run_id: str, ended: Ended) -> None:
        """Wake those who wait for it."""
        for future in self._futures.pop(run_id, ()):
            if not future.done():
                future.set_result(ended)


async def until(ended: "asyncio.Future[Ended]", deadline: float) -> Ended | None:
    """The end, or None at that time of the loop's clock."""
    if ended.done():
        return ended.result()
    left = deadline - asyncio.get_running_loop().time()
    done, _ = await asyncio.wait([ended], timeout=max(left, 0))
    return ended.result() if done else None
