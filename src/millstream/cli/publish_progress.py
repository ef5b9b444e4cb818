"""How far a file has been published, kept beside it, and what became of its lines."""

import os
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, Final

import orjson

LINE_BYTES_MOST: Final = 8 * 1024 * 1024
_SUM_BITS: Final = 128
_SHOWN: Final = 10


class ProgressError(Exception):
    """The progress cannot be gone on from."""


@dataclass(slots=True)
class Counts:
    """What became of the lines of a file so far, in all of its runs."""

    published: int = 0
    duplicates: int = 0
    failed: int = 0


class LineSet:
    """Numbers of lines, a bit each: a million lines at fault are 125 kB."""

    def __init__(self) -> None:
        self._bits = bytearray()

    def add(self, number: int) -> None:
        """Adds a line."""
        place = number >> 3
        if place >= len(self._bits):
            self._bits.extend(bytes(place + 1 - len(self._bits)))
        self._bits[place] |= 1 << (number & 7)

    def discard(self, number: int) -> None:
        """Takes a line out, where it is in."""
        if number in self:
            self._bits[number >> 3] ^= 1 << (number & 7)

    def __contains__(self, number: int) -> bool:
        place = number >> 3
        return place < len(self._bits) and bool(self._bits[place] >> (number & 7) & 1)


class Results:
    """The results, one JSON document a line; nowhere, where no file is given. Of a line that was published again the
    last result counts."""

    def __init__(self, path: Path | None, at: int = 0) -> None:
        """Opens the file, and cuts off what stands behind `at`: of those lines nothing was noted.

        Raises:
            OSError: the file cannot be written.
        """
        self._file: BinaryIO | None = None
        self.failures: list[dict[str, Any]] = []
        """The first that failed, to be shown."""
        if path is not None:
            self._file = path.open("r+b" if at else "wb")
            self._file.truncate(at)
            self._file.seek(at)

    def add(self, result: dict[str, Any]) -> None:
        """Adds one."""
        if result["status"] == "failed" and len(self.failures) < _SHOWN:
            self.failures.append(result)
        if self._file is not None:
            self._file.write(orjson.dumps(result) + b"\n")

    def flush(self) -> int:
        """Everything is in the file; its size."""
        if self._file is None:
            return 0
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


@dataclass(frozen=True, slots=True)
class Bound:
    """What a publication is bound to: the lines of a file at another service, of another type or by another caller are
    another publication, which has not begun.

    Attributes:
        target: The service.
        type_name: The type of all lines; "" where each names its own.
        caller: A check sum of the API key, too short to tell anything of it; "" without one.
        results: Where its results are; "" for the file beside it. Any other file would be cut where they end.
    """

    target: str
    type_name: str
    caller: str
    results: str

    @classmethod
    def of(cls, target: str, type_name: str, api_key: str | None, results: str) -> "Bound":
        """What a command line says."""
        caller = blake2b(api_key.encode(), digest_size=2).hexdigest() if api_key else ""
        return cls(target.strip().lower(), type_name, caller, results)

    def check(self, kept: "Bound") -> None:
        """Raises ProgressError where it is another publication."""
        if self.target != kept.target:
            found = f"was published to {kept.target}, not to {self.target}"
        elif self.type_name != kept.type_name:
            found = f"was published {_as(kept.type_name)}, not {_as(self.type_name)}"
        elif self.caller != kept.caller:
            found = "was published with another API key"
        elif self.results != kept.results:
            where = f"by --results {kept.results}" if kept.results else "by leaving --results out"
            raise ProgressError(f"the results so far are in another file; name it {where}, or --restart")
        else:
            return
        raise ProgressError(
            f"the file {found}; for another publication of it name a progress of its own (--progress FILE), or forget "
            "this one (--restart)"
        )


def _as(type_name: str) -> str:
    return f"as payloads of {type_name}" if type_name else "without a TYPE"


@dataclass(slots=True)
class Standing:
    """How far a file is published.

    Attributes:
        path: Where it is kept; None for what cannot be gone on with, such as stdin.
        run: Id of this publication of the file; another makes other keys.
        line, offset: Lines and bytes that are done.
        results_at: Size of the results that belong to them.
        ended_at: When all of the file was done, RFC 3339; "" while it is not.
        counts: What became of them.
        checksum: Of the lines that did not fail, in any order: those at fault may be mended meanwhile.
        failed: The lines that failed, as it was read.
        failures: The first of their results.
    """

    path: Path | None
    bound: Bound
    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    line: int = 0
    offset: int = 0
    results_at: int = 0
    ended_at: str = ""
    counts: Counts = field(default_factory=Counts)
    checksum: int = 0
    failed: LineSet = field(default_factory=LineSet)
    failures: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path, bound: Bound, source: BinaryIO, results: Path) -> "Standing":
        """The standing of a file, which is left where it goes on; a new one where there is none.

        Raises:
            ProgressError: it is not that of this file, of this publication, or its results are not there.
        """
        try:
            kept = orjson.loads(path.read_bytes())
            found = cls(
                path, bound, kept["run"], kept["line"], 0, kept["results_at"], kept["ended_at"],
                Counts(**kept["counts"]), int(kept["checksum"], 16),
            )  # fmt: skip
            kept_bound = Bound(**kept["bound"])
        except FileNotFoundError:
            return cls(path, bound)
        except (ValueError, KeyError, TypeError) as error:
            raise ProgressError(f"{path} holds no progress; remove it, or --restart") from error
        bound.check(kept_bound)
        found._read_results(results)
        found._compare(source)
        return found

    def _read_results(self, path: Path) -> None:
        """Which lines failed."""
        size = path.stat().st_size if path.exists() else 0
        if size < self.results_at:
            raise ProgressError(f"the results so far are not in {path}; name their file (--results), or --restart")
        if not self.counts.failed:
            return
        first: dict[int, dict[str, Any]] = {}
        with path.open("rb") as file:
            while file.tell() < self.results_at:
                try:
                    result = orjson.loads(file.readline())
                    number, failed = result["line"], result["status"] == "failed"
                except (ValueError, KeyError, TypeError) as error:
                    raise ProgressError(f"{path} does not hold the results; --restart publishes all of it") from error
                if failed:
                    self.failed.add(number)
                    if number in first or len(first) < _SHOWN:
                        first[number] = result
                else:
                    self.failed.discard(number)
                    first.pop(number, None)
        self.failures = [first[number] for number in sorted(first)]

    def _compare(self, source: BinaryIO) -> None:
        checksum, line = 0, 0
        for line, raw in numbered(source, until=self.line):
            self.offset += len(raw)
            if line not in self.failed:
                checksum += line_sum(line, raw)
        if line != self.line or checksum % (1 << _SUM_BITS) != self.checksum:
            but = " (only lines that failed may be mended)" if self.counts.failed else ""
            raise ProgressError(
                f"the file is not the one that was begun: its first {self.line:,} lines are others{but}; "
                "--restart publishes all of it"
            )

    def good(self, number: int, raw: bytes) -> None:
        """A line is done, and did not fail."""
        self.checksum = (self.checksum + line_sum(number, raw)) % (1 << _SUM_BITS)

    def end(self) -> None:
        """All of the file is done."""
        self.ended_at = datetime.now(UTC).isoformat(timespec="seconds")

    def note(self, results: Results) -> None:
        """Keeps it, with the results that belong to it: a crash leaves the one before."""
        self.results_at = results.flush()
        if self.path is None:
            return
        kept = {
            "bound": asdict(self.bound),
            "run": self.run,
            "line": self.line,
            "results_at": self.results_at,
            "ended_at": self.ended_at,
            "counts": asdict(self.counts),
            "checksum": f"{self.checksum:x}",
        }
        draft = self.path.with_name(self.path.name + ".new")
        draft.write_bytes(orjson.dumps(kept))
        draft.replace(self.path)


def numbered(source: BinaryIO, behind: int = 0, until: int | None = None) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers, from where it stands. One of endless length is not read but for the byte
    that is too many."""
    number = behind
    while (until is None or number < until) and (raw := source.readline(LINE_BYTES_MOST + 1)):
        number += 1
        yield number, raw


def line_sum(number: int, raw: bytes) -> int:
    """What a line adds to the check sum; a line break that the last line lacked may follow later."""
    content = raw.rstrip(b"\r\n")
    return int.from_bytes(blake2b(b"%d " % number + content, digest_size=_SUM_BITS // 8).digest())
