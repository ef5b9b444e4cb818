"""Metrics of several processes that share a directory: one file for each process and kind of metric.

What a process counted has to stay counted after its end, and what it held has not: gauges of the dead are removed,
their counters and histograms added up in one archive for each kind, so that the directory holds files of the living
only, however often processes end.
"""

import contextlib
import fcntl
import json
import logging
import os
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector

log = logging.getLogger(__name__)

_KINDS: Final = ("counter", "histogram")
_LOCK_S: Final = 1.0
"""How long another process may tidy up; one that was stopped in the middle of it is not waited for."""


class SharedMetrics:
    """The directory of all processes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._plan = directory / "fold.json"

    def begin(self) -> None:
        """Make room for this process, before it measures anything: a dead one may have had its process id."""
        with self._alone() as alone:
            if alone:
                for file in self._directory.glob(f"gauge_*_{os.getpid()}.db"):
                    file.unlink(missing_ok=True)
                self._tidy()

    def exposition(self) -> bytes:
        """The metrics of all processes in the text format. It reads files, and may wait for another process."""
        registry = CollectorRegistry()
        with self._alone() as alone:
            if alone:
                self._tidy()
            files = sorted(map(str, self._directory.glob("*.db")))
            registry.register(_Merged(MultiProcessCollector.merge(files)))  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """Keep other processes from tidying up; False where one of them keeps on."""
        lock = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            yield _locked(lock)
        finally:
            os.close(lock)

    def _tidy(self) -> None:
        """Forget what dead processes held, and put away what they counted."""
        self._carry_out()  # what a process left that was killed while it tidied up
        dead = [file for file in self._directory.glob("*_*.db") if _is_dead(file)]
        for file in dead:
            if file.name.startswith("gauge_"):
                file.unlink(missing_ok=True)
        folded = {kind: [file for file in dead if file.name.startswith(f"{kind}_")] for kind in _KINDS}
        if any(folded.values()):
            self._fold({kind: files for kind, files in folded.items() if files})

    def _fold(self, folded: dict[str, list[Path]]) -> None:
        """Add files of dead processes to the archives. Whenever this process is killed, nothing counts twice: either
        the plan is not there yet, or whoever is next carries it out."""
        for kind, files in folded.items():
            fresh = self._archive(kind, ".new")
            fresh.unlink(missing_ok=True)
            _add_up([self._archive(kind), *files], fresh)
        plan = {kind: [file.name for file in files] for kind, files in folded.items()}
        draft = self._plan.with_suffix(".new")
        draft.write_text(json.dumps(plan))
        draft.replace(self._plan)
        self._carry_out()

    def _carry_out(self) -> None:
        try:
            plan = json.loads(self._plan.read_text())
        except FileNotFoundError:
            return
        for kind, names in plan.items():
            with contextlib.suppress(FileNotFoundError):
                self._archive(kind, ".new").replace(self._archive(kind))
            for name in names:
                (self._directory / name).unlink(missing_ok=True)
        self._plan.unlink(missing_ok=True)

    def _archive(self, kind: str, suffix: str = ".db") -> Path:
        return self._directory / f"{kind}_dead{suffix}"


class _Merged:
    """Metrics that were merged before."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Sequence[Metric]:
        return self._metrics


def _locked(lock: int) -> bool:
    until_s = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until_s:
                return False
            time.sleep(0.01)
        else:
            return True


def _is_dead(file: Path) -> bool:
    """Whether the process is gone whose file it is; an archive is nobody's."""
    try:
        os.kill(int(file.stem.rpartition("_")[2]), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, ValueError):
        return False
    return False


def _add_up(files: Sequence[Path], into: Path) -> None:
    sums: dict[str, float] = {}
    for file in files:
        try:
            for key, value, _, _ in MmapedDict.read_all_values_from_file(file):  # type: ignore[no-untyped-call]
                sums[key] = sums.get(key, 0.0) + value
        except FileNotFoundError:
            continue
        except (RuntimeError, struct.error) as error:
            log.warning("metrics of a process that died are lost: %s: %s", file.name, error)
    written = MmapedDict(str(into))  # type: ignore[no-untyped-call]
    for key, value in sums.items():
        written.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]
    written.close()  # type: ignore[no-untyped-call]
