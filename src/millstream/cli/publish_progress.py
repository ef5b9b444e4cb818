"""How far a file has been published, kept beside it, and what became of its lines."""

import os
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, Final

import orjson

_CHUNK: Final = 1 << 20


class ProgressError(Exception):
    """The progress cannot be gone on from."""


class Results:
    """The results, one JSON document a line; nowhere, where no file is given."""

    def __init__(self, path: Path | None, at: int = 0) -> None:
        """Opens the file, and cuts off what stands behind `at`: of those lines nothing was noted."""
        self._file: BinaryIO | None = None
        self.failures: list[dict[str, Any]] = []
        """The first that failed, to be shown."""
        if path is not None:
            self._file = path.open("r+b" if at and path.exists() else "wb")
            self._file.truncate(at)
            self._file.seek(at)

    def add(self, result: dict[str, Any]) -> None:
        """Adds one."""
        if result["status"] == "failed" and len(self.failures) < 10:
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


@dataclass(slots=True)
class Standing:
    """How far a file is published.

    Attributes:
        path: Where it is kept; None for what cannot be gone on with, such as stdin.
        run: Id of this publication of the file; another makes other keys.
        line, offset: Lines and bytes that are done.
        results_at: Size of the results that belong to them.
        ended: All of the file is done.
    """

    path: Path | None
    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    line: int = 0
    offset: int = 0
    results_at: int = 0
    ended: bool = False
    digest: Any = field(default_factory=lambda: blake2b(digest_size=16))

    @classmethod
    def read(cls, path: Path, source: BinaryIO) -> "Standing":
        """The standing of a file, which is left where it goes on; a new one where there is none.

        Raises:
            ProgressError: it is not that of this file.
        """
        try:
            kept = orjson.loads(path.read_bytes())
            found = cls(path, kept["run"], kept["line"], kept["offset"], kept["results_at"], kept["ended"])
            digest = kept["digest"]
        except FileNotFoundError:
            return cls(path)
        except (ValueError, KeyError, TypeError) as error:
            raise ProgressError(f"{path} holds no progress; remove it, or --restart") from error
        left = found.offset
        while left > 0 and (chunk := source.read(min(_CHUNK, left))):
            found.digest.update(chunk)
            left -= len(chunk)
        if left or found.digest.hexdigest() != digest:
            raise ProgressError("the file is not the one that was begun; --restart publishes all of it")
        return found

    def passed(self, lines: Iterable[bytes]) -> None:
        """Lines are done."""
        for raw in lines:
            self.digest.update(raw)

    def note(self, results: Results) -> None:
        """Keeps it, with the results that belong to it: a crash leaves the one before."""
        self.results_at = results.flush()
        if self.path is None:
            return
        kept = {
            "run": self.run,
            "line": self.line,
            "offset": self.offset,
            "results_at": self.results_at,
            "ended": self.ended,
            "digest": self.digest.hexdigest(),
        }
        draft = self.path.with_name(self.path.name + ".new")
        draft.write_bytes(orjson.dumps(kept))
        draft.replace(self.path)
