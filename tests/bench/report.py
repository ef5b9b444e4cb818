"""Rows of the benchmark and their figures, as a table for people and as JSON."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from tests.bench.stand import Stand

KINDS = ("server", "worker", "postgres", "envoy", "client", "receiver")


@dataclass
class Outcome:
    """What one window of load came to."""

    ops: int
    seconds: float
    latencies_s: list[float] = field(default_factory=list)
    notes: dict[str, float] = field(default_factory=dict)
    """Further figures, by a name with its unit."""
    client_cpu_s: float = 0.0
    """CPU of clients that are processes of their own."""


Load = Callable[[float], Awaitable[Outcome]]
"""Runs the row's load for so many seconds, and checks every answer."""


@dataclass
class Sample:
    """An outcome with what it cost."""

    value: float
    p50_ms: float | None
    p99_ms: float | None
    cpu_cores: dict[str, float]
    wal_syncs_per_op: float | None
    ops: int
    seconds: float
    notes: dict[str, float]


@dataclass
class Result:
    """A row's figures: those of the median round, and the range over all."""

    name: str
    title: str
    unit: str
    median: Sample
    low: float
    high: float
    rounds: list[Sample]
    aim: str = ""
    met: bool | None = None
    floor: str = ""
    floor_value: float | None = None
    ratio: float | None = None
    remark: str = ""

    @property
    def p50_ms(self) -> float:
        """Median over the rounds of each round's median latency."""
        return statistics.median(sample.p50_ms or 0.0 for sample in self.rounds)


Results = Mapping[str, Result]


@dataclass(frozen=True)
class Aim:
    """What the figure should be: `judge` says whether it is, None where it cannot be told."""

    text: str
    judge: Callable[[Result, Results], bool | None]


@dataclass(frozen=True)
class Floor:
    """What bounds the figure from below (times) or above (rates) on this machine; None where it was not measured."""

    text: str
    value: Callable[[Results], float | None]
    of: Literal["value", "p50"] = "value"


@dataclass(frozen=True)
class Row:
    """One row: how its load is made ready, and what its figure is compared with."""

    name: str
    title: str
    prepare: Callable[[Stand], AbstractAsyncContextManager[Load]]
    unit: str = "/s"
    value: Callable[[Outcome, dict[str, float]], float] = lambda outcome, cpu_s: outcome.ops / outcome.seconds
    """The figure, of an outcome and the CPU seconds by kind of process."""
    aim: Aim | None = None
    floor: Floor | None = None
    group: str = ""
    """Rows of one group are measured in turn, round by round, because they are compared with each other."""
    stretch: float = 1.0
    """Windows are so much longer than asked for."""
    remark: str = ""
    rounds: int | None = None
    """Windows, where one of them is long enough by itself."""


def at_least(figure: float, prototype: str = "") -> Aim:
    """An aim for a rate."""
    return Aim(f">= {figure:,.0f}/s{prototype}", lambda result, _: result.median.value >= figure)


def p50_under(figure_ms: float, prototype: str = "") -> Aim:
    """An aim for a latency."""
    return Aim(f"p50 < {figure_ms:g} ms{prototype}", lambda result, _: result.p50_ms < figure_ms)


def value_under(figure: float, unit: str) -> Aim:
    """An aim for a cost."""
    return Aim(f"< {figure:g} {unit}", lambda result, _: result.median.value < figure)


def percentile_ms(latencies_s: Sequence[float], share: float) -> float | None:
    """A latency in milliseconds, None where there are none."""
    if not latencies_s:
        return None
    ordered = sorted(latencies_s)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000


def result_of(row: Row, samples: list[Sample]) -> Result:
    """A row's result over its rounds."""
    ordered = sorted(samples, key=lambda sample: sample.value)
    low, high = ordered[0].value, ordered[-1].value
    return Result(row.name, row.title, row.unit, ordered[len(ordered) // 2], low, high, samples, remark=row.remark)


def judge(rows: Sequence[Row], results: dict[str, Result]) -> None:
    """Compare every result with its aim and its floor."""
    for row in rows:
        result = results.get(row.name)
        if result is None:
            continue
        if row.aim is not None:
            result.aim, result.met = row.aim.text, row.aim.judge(result, results)
        if row.floor is not None:
            result.floor, result.floor_value = row.floor.text, row.floor.value(results)
            figure = result.p50_ms if row.floor.of == "p50" else result.median.value
            result.ratio = figure / result.floor_value if result.floor_value else None


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 100 else f"{value:.3g}"


def _cells(result: Result) -> list[str]:
    sample = result.median
    spread = f" [{_number(result.low)}-{_number(result.high)}]" if len(result.rounds) > 1 else ""
    times = "" if sample.p50_ms is None else f"{sample.p50_ms:.2f}/{sample.p99_ms:.2f}"
    cpu = " ".join(f"{kind[0]}{cores:.2f}" for kind, cores in sample.cpu_cores.items() if cores >= 0.005)
    spent = {kind: cores * sample.seconds / sample.ops * 1e6 for kind, cores in sample.cpu_cores.items()}
    each = " ".join(f"{kind[0]}{us:.0f}" for kind, us in spent.items() if us >= 1 and kind in KINDS)
    syncs = "" if sample.wal_syncs_per_op is None else f"{sample.wal_syncs_per_op:.3g}"
    ratio = "" if result.ratio is None else f"{result.ratio:.2g}x {result.floor}"
    met = {True: "yes", False: "NO", None: ""}[result.met]
    each = each if result.unit == "/s" else ""
    return [
        result.name,
        f"{_number(sample.value)} {result.unit}{spread}",
        times,
        cpu,
        each,
        syncs,
        ratio,
        result.aim,
        met,
    ]


def table(results: Sequence[Result]) -> str:
    """The table with its notes below."""
    head = ["row", "value [min-max]", "p50/p99 ms", "CPU cores", "CPU us/op", "syncs/op", "of its floor", "aim", "met"]
    lines = [head, *map(_cells, results)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    rendered = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    rendered.insert(1, "  ".join("-" * width for width in widths))
    notes = [
        "",
        "CPU: s server, w worker, p PostgreSQL, e Envoy, c client, r receiver of traces, o all else and the kernel.",
    ]
    for result in results:
        extra = ", ".join(f"{name} {_number(value)}" for name, value in result.median.notes.items())
        text = "; ".join(filter(None, [result.title, result.remark, extra]))
        notes.append(f"  {result.name}: {text}")
    return "\n".join([*rendered, *notes])


def as_json(results: Sequence[Result], machine: Mapping[str, Any], checks: Mapping[str, Any]) -> dict[str, Any]:
    """Everything, for programs."""
    return {
        "machine": dict(machine),
        "checks": dict(checks),
        "rows": [dataclasses.asdict(result) for result in results],
    }
