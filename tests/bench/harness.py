"""Measures rows: warm-up, rounds, and what each window cost."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from tests.bench import profile
from tests.bench.load import BenchError
from tests.bench.meters import WalSyncs, cpu_by_kind
from tests.bench.report import Load, Result, Row, Sample, percentile_ms, result_of
from tests.bench.stand import Stand

_IDLE_S = 0.5
_QUIET_CORES = 0.3
"""What else may run during a window, the kernel's own threads included, before it counts as disturbed."""


@dataclass(frozen=True)
class Options:
    """How long, how often, and what is recorded."""

    seconds: float
    rounds: int
    profiled: frozenset[str]
    profile_kind: str
    native: bool
    output: Path
    patience_s: float
    """How long a window may be put off, or measured again, because something else used the machine."""


class Harness:
    """Measures rows on a stand."""

    def __init__(self, stand: Stand, syncs: WalSyncs, options: Options) -> None:
        """Nothing is measured yet."""
        self._stand = stand
        self._syncs = syncs
        self._options = options

    async def measure(self, rows: Sequence[Row]) -> dict[str, Result]:
        """The results of rows, those of a group measured in turn."""
        results: dict[str, Result] = {}
        for _, members in groupby(rows, lambda row: row.group or row.name):
            for result in await self._group(list(members)):
                results[result.name] = result
        return results

    async def _group(self, rows: list[Row]) -> list[Result]:
        samples: dict[str, list[Sample]] = {row.name: [] for row in rows}
        async with contextlib.AsyncExitStack() as stack:
            try:
                loads = [await stack.enter_async_context(row.prepare(self._stand)) for row in rows]
            except BenchError as error:
                print(f"  {', '.join(samples)}: left out: {error}", flush=True)
                return []
            for number in range(self._options.rounds):
                for row, load in zip(rows, loads, strict=True):
                    if row.rounds is None or number < row.rounds:
                        samples[row.name].append(await self._window(row, load))
            for row, load in zip(rows, loads, strict=True):
                if row.name in self._options.profiled:
                    await self._profile(row, load)
        results = [result_of(row, samples[row.name]) for row in rows]
        for result in results:
            print(f"  {result.name}: {result.median.value:,.3g} {result.unit}", flush=True)
        return results

    async def _window(self, row: Row, load: Load) -> Sample:
        """A window that nothing disturbed, as far as patience goes."""
        end = time.monotonic() + self._options.patience_s
        while True:
            while time.monotonic() < end and (await self._idle_cpu())["others"] > _QUIET_CORES:
                pass
            sample = await self._measure_window(row, load)
            if sample.cpu_cores["others"] <= _QUIET_CORES or time.monotonic() >= end:
                return sample

    async def _measure_window(self, row: Row, load: Load) -> Sample:
        seconds = self._options.seconds * row.stretch
        # What fills caches, opens connections and prepares statements is no part of the figure.
        await load(min(0.5, seconds / 2))
        syncs = await self._syncs.read()
        idle = await self._idle_cpu()
        before = cpu_by_kind(self._stand.pids())
        outcome = await load(seconds)
        after = cpu_by_kind(self._stand.pids())
        used = {kind: after[kind] - before.get(kind, 0.0) for kind in after}
        used["client"] += outcome.client_cpu_s
        used["others"] = max(0.0, used["others"] - outcome.client_cpu_s)
        syncs = await self._syncs.read() - syncs
        above_idle = {kind: cpu_s - idle.get(kind, 0.0) * outcome.seconds for kind, cpu_s in used.items()}
        return Sample(
            value=row.value(outcome, used if row.unit.startswith("%") else above_idle),
            p50_ms=percentile_ms(outcome.latencies_s, 0.5),
            p99_ms=percentile_ms(outcome.latencies_s, 0.99),
            cpu_cores={kind: cpu_s / outcome.seconds for kind, cpu_s in used.items()},
            # The second reading's nudge, which is a sync of its own, lies between the two.
            wal_syncs_per_op=max(0, syncs - 1) / outcome.ops if row.unit == "/s" else None,
            ops=outcome.ops,
            seconds=outcome.seconds,
            notes=outcome.notes,
        )

    async def _idle_cpu(self) -> dict[str, float]:
        """Cores that each kind uses while nothing is asked of it."""
        before = cpu_by_kind(self._stand.pids())
        await asyncio.sleep(_IDLE_S)
        after = cpu_by_kind(self._stand.pids())
        return {kind: (after[kind] - before.get(kind, 0.0)) / _IDLE_S for kind in after}

    async def _profile(self, row: Row, load: Load) -> None:
        """A further window under py-spy, which slows what it looks at: it counts for no figure."""
        options = self._options
        pid = self._stand.pids()[options.profile_kind][-1 if row.name.startswith("engine") else 0]
        raw = options.output / f"{row.name}-{options.profile_kind}.raw"
        seconds = max(options.seconds, 2.0)
        recording = asyncio.create_task(profile.record(pid, seconds, raw, native=options.native))
        await asyncio.sleep(0.5)
        await load(seconds + 0.5)
        await recording
        print(
            f"profile of the {options.profile_kind} during {row.name} ({raw}):\n{profile.top_frames(raw)}", flush=True
        )
