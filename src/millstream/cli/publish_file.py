"""`millstream publish --file`: a file of artifacts, one a line, published once each however often it is interrupted.

Each line has an idempotency key of its own, made of the run's id (kept in the progress file), its number and its
content: what was sent before an interruption, and not yet noted, is sent again and found to be there.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, BinaryIO, Final

import orjson

from millstream.cli.publish_progress import Results, Standing
from millstream.sdk import Client, NewArtifact, PayloadError, ServiceError, Visibility
from millstream.sdk.results import BatchOutcome

NOTED_EVERY_S: Final = 0.2
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 10.0
LINE_BYTES_MOST: Final = 8 * 1024 * 1024
_FIELDS: Final = {"type", "payload", "tags", "partition_key", "correlation_id", "visibility"}

Told = Callable[[str], None]


class BadLine(Exception):
    """What is on a line is no artifact."""


@dataclass(slots=True)
class Line:
    """A line of the file: its number, and the artifact on it or what is wrong with it."""

    number: int
    end: int
    """Offset of the byte behind it."""
    raw: bytes
    artifact: NewArtifact | None = None
    fault: str = ""
    outcome: BatchOutcome | None = None


@dataclass(slots=True)
class Counts:
    """What became of the lines so far."""

    published: int = 0
    duplicates: int = 0
    failed: int = 0


@dataclass(slots=True)
class FilePublisher:
    """Publishes the lines of a file from where its standing says.

    Attributes:
        type_name: The type of all lines, which then hold a payload each; "" where each line names its own.
        advanced: Called with the bytes and lines that are done.
        told: Called with what a person should know meanwhile.
    """

    client: Client
    type_name: str
    standing: Standing
    results: Results
    batch_size: int
    parallel: int
    advanced: Callable[[int, Counts], None]
    told: Told
    counts: Counts = field(default_factory=Counts)

    async def run(self, source: BinaryIO) -> Counts:
        """Publish what is left of the file. Raises ServiceError where the service refuses a call as a whole,
        PayloadError where a line has no end."""
        under_way: deque[tuple[list[Line], asyncio.Task[None]]] = deque()
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
            self.standing.ended = True
        finally:
            for _, task in under_way:
                task.cancel()
            self.standing.note(self.results)
        return self.counts

    def _batches(self, source: BinaryIO) -> Iterator[list[Line]]:
        number, end = self.standing.line, self.standing.offset
        lines: list[Line] = []
        # One byte more than may be, so that a line of endless length is noticed and not read.
        while raw := source.readline(LINE_BYTES_MOST + 1):
            number, end = number + 1, end + len(raw)
            line = Line(number, end, raw)
            self._read(line)
            lines.append(line)
            if len(lines) >= self.batch_size:
                yield lines
                lines = []
        if lines:
            yield lines

    def _read(self, line: Line) -> None:
        if not line.raw.strip():
            return
        if len(line.raw) > LINE_BYTES_MOST:
            raise PayloadError(f"line {line.number} is longer than {LINE_BYTES_MOST:,} bytes: this is no file of lines")
        key = blake2b(f"{self.standing.run} {line.number} ".encode() + line.raw, digest_size=16).hexdigest()
        try:
            line.artifact = _artifact(orjson.loads(line.raw), self.type_name, key)
        except orjson.JSONDecodeError as error:
            line.fault = f"is no JSON: {error}"
        except BadLine as error:
            line.fault = str(error)

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
            if line.artifact is None and not line.fault:
                continue
            self.results.add(self._result(line))
        self.standing.line, self.standing.offset = lines[-1].number, lines[-1].end
        self.standing.passed(line.raw for line in lines)
        self.advanced(self.standing.offset, self.counts)

    def _result(self, line: Line) -> dict[str, object]:
        outcome = line.outcome
        if outcome is None or outcome.error is not None:
            self.counts.failed += 1
            error = outcome.error if outcome is not None else None
            details = [{"field": each.field, "message": each.message} for each in error.details] if error else []
            return {
                "line": line.number,
                "status": "failed",
                "error": {
                    "code": error.code if error else "BAD_LINE",
                    "message": error.message if error else line.fault,
                    "details": details,
                },
            }
        if outcome.status == "duplicate":
            self.counts.duplicates += 1
        else:
            self.counts.published += 1
        return {
            "line": line.number,
            "status": outcome.status,
            "artifact_id": outcome.id,
            "correlation_id": outcome.run_id,
        }


def _artifact(data: Any, type_name: str, key: str) -> NewArtifact:
    """The artifact on a line. Raises BadLine."""
    if not isinstance(data, dict):
        raise BadLine("must be a JSON object")
    if type_name:
        return NewArtifact((type_name, data), idempotency_key=key)
    unknown = sorted(data.keys() - _FIELDS)
    if unknown:
        raise BadLine(f"has the unknown field {unknown[0]!r}; it may have {', '.join(sorted(_FIELDS))}")
    name, payload = data.get("type"), data.get("payload", {})
    if not isinstance(name, str) or not name:
        raise BadLine("needs a type (or name one for all lines: millstream publish TYPE --file ...)")
    if not isinstance(payload, dict):
        raise BadLine("payload must be a JSON object")
    return NewArtifact(
        (name, payload),
        tags=_texts(data.get("tags", [])),
        visibility=_visibility(data.get("visibility")),
        partition_key=_text(data, "partition_key"),
        correlation_id=_text(data, "correlation_id"),
        idempotency_key=key,
    )


def _text(data: Mapping[str, Any], name: str) -> str:
    value = data.get(name, "")
    if not isinstance(value, str):
        raise BadLine(f"{name} must be a text")
    return value


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise BadLine("tags must be a list of texts")
    return value


def _visibility(value: Any) -> Visibility | None:
    """The visibility on a line, as REST takes it but for its ttl, which is a number of seconds."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise BadLine("visibility must be a JSON object")
    fields = dict(value)
    then = _visibility(fields.pop("then", None))
    ttl = fields.get("ttl")
    if isinstance(ttl, str):
        try:
            fields["ttl"] = float(ttl.removesuffix("s"))
        except ValueError:
            raise BadLine("visibility.ttl must be a time such as 30s") from None
    try:
        return Visibility(**fields, then=then)
    except TypeError as error:
        raise BadLine(f"visibility: {error}") from error
