"""`millstream publish --file`: a file of artifacts, one a line, published once each however often it is interrupted.

Each line has an idempotency key of its own, made of the run's id (kept in the progress file) and its number: what was
sent before an interruption, and not yet noted, is sent again and found to be there.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Final

from millstream.cli.publish_line import Line
from millstream.cli.publish_progress import Counts, Results, Standing, numbered
from millstream.sdk import Client, PayloadError, ServiceError

NOTED_EVERY_S: Final = 0.2
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 10.0

Told = Callable[[str], None]


@dataclass(slots=True)
class FilePublisher:
    """Publishes the lines of a file: those behind where its standing is, or those before it that failed.

    Attributes:
        type_name: The type of all lines, which then hold a payload each; "" where each line names its own.
        again: Publish the lines that failed; else what is left of the file.
        advanced: Called with the bytes and lines that are done.
        told: Called with what a person should know meanwhile.
    """

    client: Client
    type_name: str
    standing: Standing
    results: Results
    again: bool
    batch_size: int
    parallel: int
    advanced: Callable[[int, Counts], None]
    told: Told
    _deprecated: set[str] = field(default_factory=set)

    async def run(self, source: BinaryIO) -> None:
        """Publish them. Raises ServiceError where the service refuses a call as a whole, PayloadError where a line has
        no end."""
        under_way: deque[tuple[list[Line], asyncio.Task[None]]] = deque()
        # Before anything is sent: a crash must not lose the run's id, of which the keys are made.
        self.standing.note(self.results)
        noted = time.monotonic()
        try:
            for lines in self._batches(source):
                under_way.append((lines, asyncio.create_task(self._publish(lines))))
                if len(under_way) >= self.parallel:
                    await self._settle(*under_way.popleft())
                if time.monotonic() - noted >= NOTED_EVERY_S:
                    self.standing.note(self.results)
                    noted = time.monotonic()
            while under_way:
                await self._settle(*under_way.popleft())
            if not self.again:
                self.standing.end()
        finally:
            for _, task in under_way:
                task.cancel()
            self.standing.note(self.results)

    def _batches(self, source: BinaryIO) -> Iterator[list[Line]]:
        lines: list[Line] = []
        for line in self._failed(source) if self.again else self._left(source):
            line.read(self.standing.run, self.type_name)
            lines.append(line)
            if len(lines) >= self.batch_size:
                yield lines
                lines = []
        if lines:
            yield lines

    def _left(self, source: BinaryIO) -> Iterator[Line]:
        end = self.standing.offset
        for number, raw in numbered(source, self.standing.line):
            if self.standing.ended_at:
                # There is more by now; an interruption leaves a file that is not done.
                self.standing.ended_at = ""
            end += len(raw)
            yield Line(number, end, raw)

    def _failed(self, source: BinaryIO) -> Iterator[Line]:
        source.seek(0)
        end = 0
        for number, raw in numbered(source, until=self.standing.line):
            end += len(raw)
            if number in self.standing.failed:
                yield Line(number, end, raw)

    async def _publish(self, lines: Sequence[Line]) -> None:
        """Publish a batch, again and again while the service is away or full, until each line has an outcome."""
        left = [line for line in lines if line.artifact is not None]
        pause_s = FIRST_PAUSE_S
        while left:
            try:
                outcomes = await self.client.publish_batch([line.artifact for line in left if line.artifact])
            except PayloadError as error:
                if len(left) == 1:
                    left[0].fault = str(error)
                    return
                for line in left:
                    await self._publish([line])
                return
            except ServiceError as error:
                if not error.retryable:
                    raise
                pause_s = await self._wait(error, pause_s)
                continue
            for line, outcome in zip(left, outcomes, strict=True):
                line.outcome = outcome
            again = [line for line in left if line.outcome and line.outcome.error and line.outcome.error.retryable]
            if again and again[0].outcome and again[0].outcome.error:
                pause_s = await self._wait(again[0].outcome.error, pause_s)
            left = again

    async def _wait(self, error: ServiceError, pause_s: float) -> float:
        """Wait as long as the service says, or longer each time; the next pause."""
        wait_s = max(error.retry_after or 0.0, pause_s * random.uniform(0.5, 1))  # noqa: S311
        self.told(f"{error.message}; trying again in {wait_s:.1f} s")
        await asyncio.sleep(wait_s)
        return min(pause_s * 2, LONGEST_PAUSE_S)

    async def _settle(self, lines: list[Line], task: asyncio.Task[None]) -> None:
        """Write the results of a batch down, once it and all before it have them."""
        await task
        for line in lines:
            self._count(line)
        if not self.again:
            self.standing.line, self.standing.offset = lines[-1].number, lines[-1].end
        self.advanced(lines[-1].end, self.standing.counts)

    def _count(self, line: Line) -> None:
        counts, result = self.standing.counts, line.result()
        if self.again or not line.empty:
            self.results.add(result)
        if result["status"] == "failed":
            counts.failed += not self.again
            return
        self.standing.good(line.number, line.raw)
        counts.failed -= self.again
        if line.empty or line.outcome is None:
            return
        if result["status"] == "duplicate":
            counts.duplicates += 1
        else:
            counts.published += 1
        self._warn(line)

    def _warn(self, line: Line) -> None:
        """Tells of a deprecated type, once."""
        if line.artifact is None or line.outcome is None or not line.outcome.deprecation:
            return
        name = str(line.artifact.item[0]) if isinstance(line.artifact.item, tuple) else str(line.artifact.item)
        if name not in self._deprecated:
            self._deprecated.add(name)
            self.told(deprecated(name, line.outcome.deprecation))


def deprecated(type_name: str, message: str) -> str:
    """That a type is deprecated, for people."""
    return f"{type_name} is deprecated: {message}"
